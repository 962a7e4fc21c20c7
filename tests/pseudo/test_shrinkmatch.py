"ShrinkMatch: the authors' numbers, a loop that says the same, both weights, and the second head"
import json

import pytest
import torch
from torch import tensor
from torch.nn import functional as F

from contract import data, fit, learner, same, weights
from labelkit.errors import LabelKitError
from labelkit.pseudo.base import consistency_loss
from labelkit.pseudo.fixmatch import FixMatch
from labelkit.pseudo.shrinkmatch import (
    FromTheFirst, ShrinkMatch, shrunk_classes, shrunk_losses,
)
from mix.mixtools import Keep
from places import REFERENCES

close = torch.testing.assert_close


def test_reference():
    (ref,) = json.loads((REFERENCES/"shrinkmatch.json").read_text())
    i = ref["inputs"]
    want = ref["expected"]
    p = tensor(i["pseudo_label_probs"])
    z = tensor(i["aux_logits_strong"])
    losses = shrunk_losses(z, p, i["conf_thresh"])
    assert losses.sum().item() == pytest.approx(want["loss_sum_over_batch"], abs=1e-5)
    # the rows are sorted; the fourth is never sure, and has no loss
    stay = shrunk_classes(p, i["conf_thresh"])
    assert stay[0].all() and not stay[3].any()
    first = want["first_kept_rank_per_uncertain_sample"]
    for row,rank in zip((1, 2, 4), (first[0], first[1], first[3])):
        assert stay[row].tolist() == [k == 0 or k >= rank for k in range(5)]


def by_loop(z, p, threshold):
    "Leave out one class after another, sample by sample"
    out = []
    for a,b in zip(p, z):
        order = a.argsort(descending=True, stable=True)
        found = torch.zeros(())
        for c in range(2, len(a)) if a.max() < threshold else []:
            left = torch.cat([order[:1], order[c:]])
            if a[order[0]]/a[left].sum() >= threshold:
                found = a.max()*F.cross_entropy(b[left], tensor(0))
                break
        out.append(found)
    return torch.stack(out)


@pytest.mark.parametrize("c", [2, 3, 10])
@pytest.mark.parametrize("threshold", [.5, .8, .95])
def test_as_a_loop(c, threshold):
    g = torch.Generator().manual_seed(c)
    p = (3*torch.randn(200, c, generator=g)).softmax(1)
    z = torch.randn(200, c, generator=g)
    close(shrunk_losses(z, p, threshold), by_loop(z, p, threshold), atol=1e-5, rtol=1e-5)
    if c == 2: assert not shrunk_losses(z, p, threshold).any()


def test_edges():
    z = torch.zeros(2, 4, requires_grad=True)
    p = tensor([[.25]*4, [1., 0., 0., 0.]])
    losses = shrunk_losses(z, p, .95)
    losses.sum().backward()
    assert losses.tolist() == [0, 0] and z.grad.isfinite().all()
    assert not shrunk_classes(p[:1], .95).any() and shrunk_classes(p[1:], 1.).all()
    assert shrunk_losses(z[:0], p[:0], .95).shape == (0,)


def one_batch(**kwargs):
    learn = fit(learner([cb := ShrinkMatch(**kwargs), keep := Keep()]))
    return cb,keep.seen,learn


def test_losses_of_a_batch():
    cb,seen,_ = one_batch(threshold=.15, ema_decay=.9)
    shares = []
    for s in seen:
        p = s.outputs["shrinkmatch.weak"].detach().softmax(1)
        sure = (p.amax(1) >= .15).float()
        shares.append(sure.mean())
        want = consistency_loss(s.outputs["shrinkmatch.strong"], p, sure)
        close(s.losses["shrinkmatch"][0], want)
        assert s.losses["shrinkmatch.shrink"][0].requires_grad
    mean = shares[0]
    for o in shares[1:]: mean = .9*mean + .1*o
    close(cb.sure.value, mean)
    assert len(set(map(float, shares))) > 1
    last = seen[-1]
    p = last.outputs["shrinkmatch.weak"].detach().softmax(1)
    ratio = last.losses["shrinkmatch.shrink"][0]/mean
    # the weights have moved since, but not the sample's classes and weights
    assert 0 < ratio < 3*shrunk_losses(torch.zeros_like(p), p, .15).mean() + 1e-6


def test_the_second_head_learns_and_the_own_head_does_not_hear_of_it():
    a,b = (fit(learner([ShrinkMatch(threshold=.15, shrink=o)])) for o in (0., 1.))
    assert not same(weights(a), weights(b))
    s = learner([cb := ShrinkMatch(threshold=.15), keep := Keep()])
    fit(s)
    loss = keep.seen[-1].losses["shrinkmatch.shrink"][0]
    assert s.model.head.weight is not cb.second_head.module.weight and loss.requires_grad


def test_the_loss_in_fewer_classes_by_hand():
    "The second head on the strong view, times the running mean, with both weights"
    class Kept(ShrinkMatch):
        name = "shrinkmatch"
        def after_forward(self, s):
            super().after_forward(s)
            p = s.outputs["shrinkmatch.weak"].detach().softmax(1)
            z = self.second_head(s.features("shrinkmatch.strong")).float()
            want = self.sure.value*shrunk_losses(z, p, .15).mean()
            value,weight = s.losses["shrinkmatch.shrink"]
            close(value, want)
            found.append((float(value), weight))
    found = []
    fit(learner([Kept(threshold=.15, shrink=.5, weight=3.)]))
    assert max(o[0] for o in found) > 0 and {o[1] for o in found} == {1.5}


def test_ledger_says_how_many_classes_are_left():
    cb,*_ = one_batch(threshold=.15)
    f = cb.ledger.frame()
    f = f[f.epoch >= 0]
    assert (f.classes_left[f.accepted] == 10).all()
    assert f.classes_left[~f.accepted].isin([0, *range(2, 10)]).all()


def as_it_is(x): return x

def test_without_shrinking_it_is_soft_fixmatch():
    class Soft(FixMatch):
        def teach(self, g): return g.probs
    views = dict(threshold=.15, weak=as_it_is, strong=as_it_is)  # nothing is drawn
    a = fit(learner([Soft(**views)]))
    b = fit(learner([ShrinkMatch(shrink=0., **views)]))
    assert same(weights(a), weights(b))


def test_refused():
    for k,v in dict(threshold=2, shrink=-1, ema_decay=1.5).items():
        with pytest.raises(LabelKitError, match=f"{k}={v}"): ShrinkMatch(**{k: v})
    with pytest.raises(LabelKitError, match="needs unlabeled samples"):
        fit(learner([ShrinkMatch()], dls=data(labeled=None)))


def test_a_mean_from_the_first_batch():
    a = FromTheFirst(torch.zeros(()), decay=.5)
    a.update(tensor([1., 0.]))
    assert a.value == .5
    a.update(tensor([0.]))
    assert a.value == .25
    b = FromTheFirst(torch.zeros(()), decay=.5)
    b.load_state_dict(a.state_dict())
    b.update(tensor([.25]))
    assert b.value == .25
