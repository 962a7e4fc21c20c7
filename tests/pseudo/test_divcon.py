"DivCon: the authors' numbers, agreement, Otsu's cut, memory, and what reaches the network"
import json
import math

import pytest
import torch
from torch import tensor
from torch.nn import functional as F

from contract import data, fit, learner
from labelkit.errors import LabelKitError
from labelkit.lesson.batch import look
from labelkit.models import small_cnn
from labelkit.pseudo.base import consistency_loss, hard_target
from labelkit.pseudo.divcon import (
    InlierScores,
    DivCon, head_agreement, head_losses, known_or_not, otsu_threshold, relation_loss,
    running_score, score_weight, shared_information, with_strangers,
)
from mix.mixtools import Keep
from places import REFERENCES

close = torch.testing.assert_close


def test_scores_by_hand():
    "A new sample begins with its first agreement, another one keeps most of what it had"
    old = tensor([-1., 0., .5])
    low = tensor(.2)
    high = tensor(1.)
    score = running_score(old, tensor([.6, .6, 1.]), low, high, .75)
    close(score, tensor([.5, .125, .625]))
    close(running_score(old[:1], low[None], low, low, .75), tensor([0.]))  # all agree alike
    close(score_weight(tensor([.2, .4, .9]), tensor(.4), 2.), tensor([.25, 1., 1.]))
    close(with_strangers(tensor([[.75, .25]]), tensor([.8])), tensor([[.6, .2, .2]]))


def test_reference():
    (ref,) = json.loads((REFERENCES/"divcon.json").read_text())
    i,want = (ref[k] for k in ("inputs", "expected"))
    three,one = (tensor(i[f"head_logits_batch_of_{k}"]) for k in ("3_two_heads", "1_three_heads"))
    for z,k in ((three, "batch_of_3"), (one, "batch_of_1"), (torch.zeros(3, 2, 3), "all_zero")):
        z.requires_grad_()
        loss = shared_information(z.softmax(2))
        assert loss.item() == pytest.approx(want[k], abs=1e-5)
        loss.backward()
        assert z.grad.isfinite().all()


class TestFormulas:
    def test_information_of_all_pairs(self):
        p = torch.rand(7, 4, 3).softmax(2)
        found = []
        for h in range(4):
            for g in range(h):
                joint = sum(torch.outer(a, b) for a,b in zip(p[:,h], p[:,g]))/7
                apart = torch.outer(p[:,h].mean(0), p[:,g].mean(0))
                found.append((joint*(joint/apart).log()).sum())
        close(shared_information(p), torch.stack(found).mean(), atol=1e-6, rtol=1e-4)

    def test_two_that_always_say_the_same_share_all_they_know(self):
        p = torch.eye(4)[:, None].expand(-1, 2, -1).contiguous().requires_grad_()
        loss = shared_information(p)
        assert loss.item() == pytest.approx(math.log(4), abs=1e-5)
        loss.backward()
        assert p.grad.isfinite().all()

    def test_agreement(self):
        p = tensor([[[1., 0.], [0., 1.]], [[.6, .4], [.6, .4]]])
        # of four pairs two differ, by 1 in each class
        close(head_agreement(p), tensor([math.exp(-.5), 1.]))

    def test_otsu(self):
        g = torch.Generator().manual_seed(0)
        low,high = torch.randn(2, 500, generator=g)*.05
        v = torch.cat([low, high+1])
        assert .1 < otsu_threshold(v) < .9
        assert otsu_threshold(torch.full((5,), .3)) == pytest.approx(.3)
        # the cut of every bin, in words
        v = torch.rand(300, generator=g)**3
        counts = torch.histc(v, 256, float(v.min()), float(v.max()))
        at = v.min() + (torch.arange(256)+.5)*(v.max()-v.min())/256
        best = max(range(255), key=lambda k: float(
            counts[:k+1].sum()*counts[k+1:].sum()*(
                (counts*at)[:k+1].sum()/counts[:k+1].sum()
                - (counts*at)[k+1:].sum()/counts[k+1:].sum().clamp_min(1)
            )**2
        ))
        close(otsu_threshold(v), at[best])

    def test_heads(self):
        labeled,weak,strong = (torch.randn(n, 3, 4) for n in (5, 6, 6))
        y = tensor([0, 1, 2, 3, 0])
        w = tensor([1., 2., 0., 1., 1.])
        ce = torch.stack([F.cross_entropy(labeled[:,h], y, reduction="none") for h in range(3)])
        known = (ce.mean(0)*w).sum()/5
        sure = [consistency_loss(
            strong[:,h], hard_target(weak[:,h]), weak[:,h].softmax(1).amax(1) >= .5
        ) for h in range(3)]
        got = head_losses(labeled, F.one_hot(y, 4).float(), w, weak, strong, .5)
        close(got, known + sum(sure)/3)

    def test_relation(self):
        "A neighbour of the same direction says it all when the temperature is low"
        f = F.normalize(torch.randn(2, 5))
        said = tensor([[.7, .2, .1], [0., 0., 1.]])
        loss = relation_loss(f, torch.cat([f, said], 1), said, temperature=.001)
        want = -(said*said.clamp_min(1e-8).log()).sum(1).mean()
        close(loss, want, atol=1e-3, rtol=1e-3)


def six_known(cbs=()):
    make = lambda seed: small_cnn(c=6, c_in=1, width=4)
    return learner(cbs, dls=data(labeled=24, known=6), make=make)


def test_what_a_batch_is_told():
    fit(learner([cb := DivCon(threshold=.1, warmup=0), keep := Keep()]), 2)
    s = keep.seen[-1]
    score = cb.inlier[s.unlabeled_ids]
    assert (score >= 0).all() and (cb.inlier.score <= 1).all()
    p = s.outputs["divcon.weak"].detach().softmax(1)
    weight = (score/cb.inlier.cut).clamp_max(1)**1.5
    mask = (p.amax(1) >= .1)*weight
    want = consistency_loss(s.outputs["divcon.strong"], hard_target(p), mask)
    close(s.losses["divcon"][0], want)
    assert {"divcon", "divcon.relation"} == set(s.losses)
    assert {"divcon.heads", "divcon.shared"} == set(s.auxiliary_losses)
    close(s.own(cb).open.sum(1), torch.ones(len(p)))
    assert cb.memory.rows.shape[1] == 128 + 11 and len(cb.memory) == len(keep.seen)*len(p)


def test_the_losses_of_the_heads_do_not_reach_the_network():
    learn = learner([DivCon(warmup=0, threshold=0.)])
    batch = look(learn)
    body = list(batch.model.body.parameters())
    for name,(value,_) in batch.record.auxiliary_losses.items():
        grads = torch.autograd.grad(value, body, retain_graph=True, allow_unused=True)
        assert all(g is None for g in grads), name


def test_heads_are_pushed_apart():
    "Their shared information is made small, with the weight that was asked for"
    learn = learner([DivCon(warmup=0, threshold=0., weight=2., diversity=.5)])
    assert look(learn).record.auxiliary_losses["divcon.shared"][1] == 1.


def test_what_they_share_moves_all_of_them():
    p = torch.rand(7, 3, 4).double().softmax(2).requires_grad_()
    step = 1e-5
    (g,) = torch.autograd.grad(shared_information(p), p)
    moved = p.detach() + step*g
    gain = shared_information(moved) - shared_information(p.detach())
    close(gain/step, g.square().sum(), atol=0, rtol=.05)  # the whole gradient, by differences


def test_a_relation_is_of_each_sample_with_its_own_target():
    near,far = torch.eye(2)
    memory = torch.cat([torch.eye(2), torch.eye(2)], 1)
    right = relation_loss(torch.stack([near, far]), memory, torch.eye(2), .1)
    wrong = relation_loss(torch.stack([near, far]), memory, torch.eye(2).flip(0), .1)
    assert right < .01 < 5 < wrong
    # a softmax over the memory: further samples change nothing for this one
    alone = relation_loss(near[None], memory, torch.eye(2)[:1], .1)
    close(relation_loss(torch.stack([near]*5), memory, torch.eye(2)[:1].repeat(5, 1), .1), alone)


def test_the_relation_of_a_batch_by_hand():
    class Kept(DivCon):
        name = "divcon"
        def relate(self, s, said):
            before = self.memory.rows.clone()
            super().relate(s, said)
            if not len(before): return
            f = self.experts.module.projector(s.features("divcon.strong")).float()
            want = relation_loss(F.normalize(f), before, said)
            found.append((s.losses["divcon.relation"][0].detach(), want.detach()))
    found = []
    fit(learner([Kept(warmup=0, threshold=0.)]))
    assert len(found) == 3
    for a,b in found: close(a, b)


def test_scores_are_stretched_by_what_all_samples_have_shown():
    "Not by the batch: a batch that agrees alike is neither 0 nor 1"
    class Kept(DivCon):
        name = "divcon"
        def observe(self, g):
            old = self.inlier[g.ids].clone()
            super().observe(g)
            alike = head_agreement(g.s.own(self).probs)
            said = self.inlier.agreement
            bounds = said[said >= 0].aminmax()
            want = running_score(old, alike, *bounds, self.ema_decay)
            close(self.inlier[g.ids], want)
    learn = fit(learner([cb := Kept(warmup=0, threshold=0.)]), 2)
    seen = cb.inlier.agreement[cb.inlier.agreement >= 0]
    low,high = seen.aminmax()
    once = cb.inlier.score[cb.inlier.score >= 0]
    assert once.min() >= 0 and once.max() <= 1 and low < high
    close(cb.inlier.cut, otsu_threshold(once))
    assert (cb.inlier.score[learn.dls.given >= 0] == -1).all()


def test_a_search_leaves_memory_and_scores():
    learn = learner([cb := DivCon(warmup=0, threshold=0.)])
    with learn.no_bar(), learn.no_logging(): learn.lr_find(num_it=6, show_plot=False)
    assert len(cb.memory) == 0 and (cb.inlier.score == -1).all()


def test_nothing_is_believed_before_the_warmup_is_over():
    learn = fit(learner([DivCon(threshold=0., warmup=1), keep := Keep()]), 2)
    losses = [s.losses["divcon"][0].item() for s in keep.seen]
    half = len(losses)//2
    assert not any(losses[:half]) and all(losses[half:])
    assert not any("divcon.relation" in s.losses for s in keep.seen[:half])
    assert all("divcon.relation" in s.losses for s in keep.seen[half:])
    assert learn.divcon.ledger.frame().inlier.max() > 0


def test_score_of_strangers():
    learn = fit(six_known([cb := DivCon(warmup=0)]))
    x = learn.dls.x_unknown[:5].float()
    score = cb.inlier_score(x)
    assert score.shape == (5,) and ((score > 0) & (score <= 1)).all()
    assert 0 <= known_or_not(learn) <= 1
    assert 0 <= known_or_not(fit(six_known())) <= 1
    # whoever is sure that the known ones, which come first, are inside is always right
    learn.divcon.inlier_score = lambda x: -torch.arange(len(x))/len(x)
    assert known_or_not(learn) == 1


def test_refused():
    for k,v in dict(threshold=2, heads=1, diversity=-1, relation=-1, power=-1, warmup=-1).items():
        with pytest.raises(LabelKitError, match=f"{k}={v}"): DivCon(**{k: v})
    with pytest.raises(LabelKitError, match="has no heads yet"): DivCon().inlier_score(None)
    with pytest.raises(LabelKitError, match="needs unlabeled samples"):
        fit(learner([DivCon()], dls=data(labeled=None)))


def test_scores_are_remembered_and_saved():
    a = InlierScores(6, decay=.5)
    a.update(tensor([0, 3]), tensor([.4, .8]))
    assert a[tensor([0, 3, 5])].tolist() == [0., 1., -1.]
    a.update(tensor([3]), tensor([.6]))
    torch.testing.assert_close(a[tensor([3])], tensor([1.]))  # the largest of those that are left
    b = InlierScores(6)
    b.load_state_dict(a.state_dict())
    assert torch.equal(b.score, a.score) and b.cut == a.cut
    b.update(tensor([1]), tensor([.5]))
    assert a.score[1] == -1
