"Hallucinator: what the small network is given, who is trained, which key is looked for"
import pytest
import torch
from torch.nn import functional as F

from contract import fit, learner
from labelkit.errors import LabelKitError
from labelkit.represent.hallucinator import Hallucinator, generator, hallucinated
from labelkit.represent.moco import queue_logits

unit = lambda *shape: F.normalize(torch.randn(*shape), dim=-1)


def test_what_it_is_given():
    q,k = unit(2, 3, 4)
    seen = []
    net = lambda x: seen.append(x) or x[:, 4:]
    out = hallucinated(net, q, k, .1)
    torch.testing.assert_close(seen[0], torch.cat([q, q + .1*(q-k)], 1))
    torch.testing.assert_close(out, F.normalize(q + .1*(q-k), dim=1))
    torch.testing.assert_close(hallucinated(net, q, k, 0.), q)


def test_the_network():
    net = generator(5)
    assert [o.weight.shape for o in net[::2]] == [(10, 10), (10, 10), (5, 10)]
    assert net(torch.randn(2, 10)).shape == (2, 5)


def test_each_key_is_used_twice():
    cb = Hallucinator(reach=0.)
    cb.hallucinate = lambda x: x[:, :4]
    q,k = unit(2, 3, 4)
    queue = unit(5, 4)
    same = torch.zeros(3, 5, dtype=torch.bool)
    same[1, 2] = True
    out = cb.logits(q, k, queue, same)
    once = queue_logits(q, k, queue, .2, same)
    torch.testing.assert_close(out, once.repeat(2, 1))


def test_it_is_trained_and_sends_a_gradient_on():
    learn = learner([cb := Hallucinator()])
    fit(learn)
    before = [p.clone() for p in cb.hallucinate.module.parameters()]
    fit(learn)
    assert all(not torch.equal(a, b) for a,b in zip(before, cb.hallucinate.module.parameters()))
    q = unit(2, 64).requires_grad_()
    hallucinated(cb.hallucinate, q, unit(2, 64), .1).sum().backward()
    assert q.grad.abs().sum() > 0


def test_refused():
    with pytest.raises(LabelKitError, match="reach=-1"): Hallucinator(reach=-1)


def beyond(reach, q, k):
    "The logits of the queries that are made, by a network that gives what lies beyond"
    cb = Hallucinator(reach=reach, temperature=1.)
    cb.hallucinate = lambda x: x[:, q.shape[1]:]
    empty = torch.zeros(0, q.shape[1])
    return cb.logits(q, k, empty, torch.zeros(len(q), 0, dtype=torch.bool))[len(q):, 0]


def test_it_reaches_no_further_than_it_may():
    q,k = unit(2, 50, 4)
    at = lambda r: (F.normalize((1+r)*q - r*k, dim=1)*k).sum(1)
    for _ in range(20):
        z = beyond(.1, q, k)
        assert (z <= at(0.) + 1e-5).all() and (z >= at(.1) - 1e-5).all()
    assert min(float((beyond(.9, q, k) - at(0.)).min()) for _ in range(20)) < -.05


def test_the_query_learns_from_what_was_made_of_it():
    q = unit(3, 4).requires_grad_()
    (grad,) = torch.autograd.grad(beyond(.1, q, unit(3, 4)).sum(), q)
    assert (grad.abs().sum(1) > 0).all()
