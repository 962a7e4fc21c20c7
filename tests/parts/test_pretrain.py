"A network is trained without labels: in place, but for its head, and the same every time"
import math

import pytest
import torch

from contract import data, same
from labelkit.data.samples import Samples
from labelkit.errors import LabelKitError
from labelkit.models import small_cnn
from labelkit.parts.contrast import nt_xent
from labelkit.parts.pretrain import Embedding, pretrain


def trained(steps=3, bs=32, samples=None):
    torch.manual_seed(0)
    model = small_cnn(c=10, c_in=1, width=4)
    samples = samples or Samples(data().unlabeled)
    seen = []
    rng = torch.Generator().manual_seed(0)
    shaken = lambda x: x + .1*torch.randn(x.shape, generator=rng)
    net = pretrain(model, samples, shaken, rng, steps=steps, bs=bs, step=seen.append)
    assert seen == [steps]*steps
    return net


def test_all_but_the_head_moves_and_the_result_is_quiet():
    torch.manual_seed(0)
    before = small_cnn(c=10, c_in=1, width=4).state_dict()
    net = trained()
    after = net.model.state_dict()
    assert torch.equal(before["head.weight"], after["head.weight"])
    kernels = [k for k,v in before.items() if v.ndim == 4 and k.startswith("body")]
    assert kernels and not any(torch.equal(before[k], after[k]) for k in kernels)
    assert not any(m.training for m in net.modules())
    assert all(p.grad is None for p in net.parameters())
    f = net(torch.rand(5, 1, 8, 8))
    torch.testing.assert_close(f.norm(dim=1), torch.ones(5))


def test_one_seed_one_result_and_any_number_of_samples():
    assert same(trained().state_dict(), trained().state_dict())
    few = Samples(torch.rand(3, 1, 8, 8))
    assert all(v.isfinite().all() for v in trained(5, samples=few).state_dict().values())


def test_what_is_no_number_is_named():
    x = torch.rand(6, 1, 8, 8)
    x[4] = torch.nan
    with pytest.raises(LabelKitError, match=r"samples \[4\] are not finite"):
        trained(samples=Samples(x))


def test_an_embedding_does_not_ask_the_head():
    net = Embedding(small_cnn(c=10, c_in=1, width=4), dim=7)
    net(torch.rand(2, 1, 8, 8)).sum().backward()
    assert net.model.head.weight.grad is None
    assert net(torch.rand(2, 1, 8, 8)).shape == (2, 7)


class Step(torch.optim.Adam):
    "Keeps the learning rate of each step"
    rates = []
    def step(self, *args):
        self.rates.append(self.param_groups[0]["lr"])
        return super().step(*args)


def test_the_rate_rises_and_falls_over_as_many_steps_as_were_asked_for(monkeypatch):
    "Eight samples are one batch, so that every step is a pass of its own; then three are in one"
    monkeypatch.setattr("torch.optim.Adam", Step)
    monkeypatch.setattr(Step, "rates", [])
    for bs in (32, 8):
        Step.rates.clear()
        trained(5, bs, Samples(torch.rand(25, 1, 8, 8)))
        want = [1e-2*math.sin(math.pi*(i+.5)/5) for i in range(5)]
        assert Step.rates == pytest.approx(want)


def test_each_step_contrasts_two_views_in_training_mode(monkeypatch):
    "At the temperature that was asked for"
    seen = []
    def contrast(a, b, temperature):
        seen.append((a.detach(), b.detach(), temperature))
        return nt_xent(a, b, temperature)
    monkeypatch.setattr("labelkit.parts.pretrain.nt_xent", contrast)
    model = small_cnn(c=10, c_in=1, width=4).eval()
    modes = []
    model.body.register_forward_hook(lambda m, *_: modes.append(m.training))
    rng = torch.Generator().manual_seed(0)
    shift = iter(range(100))
    view = lambda x: x + next(shift)*x.flip(3)  # another one at each call
    samples = Samples(torch.rand(12, 1, 8, 8))
    pretrain(model, samples, view, rng, steps=2, bs=6, temperature=.37)
    assert [o[2] for o in seen] == [.37]*2 and modes == [True]*2
    assert all((a-b).abs().max() > .01 for a,b,_ in seen)


def test_the_order_is_the_generators():
    "The same weights to begin with, the same first batch, whatever was drawn in between"
    x = torch.arange(64.)[:, None, None, None].expand(64, 1, 8, 8)
    def first(draws):
        torch.manual_seed(0)
        model = small_cnn(c=10, c_in=1, width=4)
        seen = []
        def view(x):
            seen.append(x.clone())
            return x
        torch.manual_seed(draws)
        rng = torch.Generator().manual_seed(0)
        pretrain(model, Samples(x), view, rng, steps=1, bs=8)
        return seen[0]
    assert torch.equal(first(1), first(2))
