"""HIAST: the authors' thresholds, images in their order, the two regions, and pasted pixels with
their labels"""
import json
import math
from types import SimpleNamespace

import pytest
import torch
from fastai.basics import Learner, set_seed
from torch import tensor
from torch.nn import functional as F

from contract import fit, learner
from labelkit.core.supervision import LabelCallback
from labelkit.errors import LabelKitError
from labelkit.pseudo.cwbass import pixel_net, scenes
from labelkit.pseudo.hiast import (
    HIAST,
    adaptive_thresholds,
    class_confidence,
    hard_pixels,
    judged,
    region_losses,
)
from mix.mixtools import Keep
from places import REFERENCES

close = torch.testing.assert_close


def test_reference():
    (ref,) = json.loads((REFERENCES/"hiast.json").read_text())
    i = ref["inputs"]
    theta = torch.full((3,), i["init"])
    for image,want in zip(i["probs_per_image"], ref["expected"]):
        probs = tensor(image)
        theta = adaptive_thresholds(theta, probs, i["alpha"], i["beta"], i["gamma"])
        close(theta, tensor(want["after"]), atol=ref["tolerance_abs"], rtol=0)
        confidence,label = probs.max(1)
        kept = confidence >= theta[label]
        assert torch.where(kept, label, 255).tolist() == want["pseudo"]
        assert [int((kept & (label == c)).sum()) for c in range(3)] == want["kept"]


class TestThresholds:
    def test_a_class_that_is_not_there_stays(self):
        theta = tensor([.7, .8, .9])
        new = adaptive_thresholds(theta, tensor([[.9, .1, 0.]]))
        assert new[0] > .7 and new[1:].tolist() == theta[1:].tolist()
        assert theta.tolist() == tensor([.7, .8, .9]).tolist()

    def test_by_hand(self):
        "Halfway from .5 to the middle of the class's own threshold and its one confidence, .8"
        new = adaptive_thresholds(tensor([.9, .5]), tensor([[.2, .8]]), share=1., decay=.5, power=1)
        close(new, tensor([.9, .575]))

    def test_never_one(self):
        theta = tensor([.9, .9])
        for _ in range(99): theta = adaptive_thresholds(theta, tensor([[1., 0.]]*8))
        assert theta[0] == tensor(.999)

    def test_the_order_of_images_matters(self):
        a,b = (tensor([[p, 1-p]]*5) for p in (.95, .6))
        start = tensor([.9, .9])
        one,two = (
            adaptive_thresholds(adaptive_thresholds(start, x), y) for x,y in ((a, b), (b, a))
        )
        assert one[0] != two[0]


class TestJudged:
    def test_images_one_after_the_other(self):
        probs = torch.rand(3, 2, 4, 4).softmax(1)
        theta = tensor([.6, .6])
        moved,kept = judged(theta, probs, .2, .9, 8.)
        for x,mine in zip(probs, kept):
            theta = adaptive_thresholds(theta, x.flatten(1).T, .2, .9, 8.)
            confidence,label = x.max(0)
            assert torch.equal(mine, confidence >= theta[label])
        close(moved, theta)

    def test_a_batch_where_an_image_has_one_class(self):
        probs = torch.rand(5, 3).softmax(1)
        theta = torch.full((3,), .4)
        moved,kept = judged(theta, probs, .2, .9, 8.)
        close(moved, adaptive_thresholds(theta, probs, .2, .9, 8.))
        confidence,label = probs.max(1)
        assert torch.equal(kept, confidence >= moved[label])


class TestHardPixels:
    label = tensor([[[0, 1], [1, 2]], [[0, 0], [0, 2]], [[0, 0], [0, 0]]])
    sure = torch.ones(3, 2, 2).bool()

    def pasted(self, value, hard, seed=0, sure=None):
        rng = torch.Generator().manual_seed(seed)
        return hard_pixels(self.label, self.sure if sure is None else sure, value, hard, rng)

    def test_the_least_sure_class_and_no_other(self):
        # only the first image has a 1
        source,mask = self.pasted(tensor([.9, .2, .8]), 1)
        assert source.tolist() == [0, 0, 0]
        assert mask.tolist() == [[[False, True], [True, False]]]*3

    def test_all_hard_classes_of_the_drawn_image(self):
        for seed in range(5):
            source,mask = self.pasted(tensor([.9, .2, .3]), 2, seed)
            for i,m in zip(source.tolist(), mask):
                assert i in (0, 1) and torch.equal(m, self.label[i] > 0)

    def test_what_is_not_believed_stays(self):
        sure = self.sure.clone()
        sure[0, 0, 1] = False
        source,mask = self.pasted(tensor([.9, .2, .8]), 1, sure=sure)
        assert mask.tolist() == [[[False, False], [True, False]]]*3

    def test_how_often_each_is_drawn(self):
        # (1-.5)² to (1-.8)²; a 1 comes from the first image, a 2 from the first two alike
        value = tensor([.99, .8, .5])
        many = torch.cat([self.pasted(value, 2, s)[0] for s in range(400)])
        close((many == 1).float().mean(), tensor(.25/.29/2), atol=.04, rtol=0)

    def test_nothing_hard_nothing_pasted(self):
        label = self.label*0
        source,mask = hard_pixels(label, self.sure, tensor([1., .2, .2]), 2, torch.Generator())
        assert not mask.any() and source.tolist() == [0, 1, 2]

    def test_confidence_of_a_class(self):
        label = tensor([0, 0, 1, 2])
        confidence = tensor([.8, .6, .5, .9])
        believed = tensor([True, True, True, False])
        new = class_confidence(tensor([0., .9, .3]), label, confidence, believed)
        close(new, tensor([.7, .99*.9 + .01*.5, .3]))


class TestRegions:
    def test_both_by_hand(self):
        z = torch.randn(4, 3)
        t = F.one_hot(tensor([0, 1, 2, 0]), 3).float()
        soft = torch.rand(4, 3).softmax(1)
        sure = tensor([True, True, False, False])
        target = torch.where(sure[:, None], t, soft)
        p = z.softmax(1)
        kl = (tensor(1/3)*((1/3)/p).log()).sum(1)
        known = F.cross_entropy(z[:2], tensor([0, 1])) + .1*kl[:2].mean()/3
        rest = (3*-(p*p.log()).sum(1) + F.cross_entropy(z, soft, reduction="none"))[2:].mean()/3
        close(region_losses(z, target, sure), known + rest)

    @pytest.mark.parametrize("all_of_them", [True, False])
    def test_an_empty_region_counts_nothing(self, all_of_them):
        z = torch.randn(3, 4, requires_grad=True)
        loss = region_losses(z, z.detach().softmax(1), torch.full((3,), all_of_them))
        loss.backward()
        assert loss.isfinite() and z.grad.isfinite().all()

    def test_dense(self):
        z = torch.randn(2, 3, 4, 5)
        t = z.softmax(1)
        mask = torch.rand(2, 4, 5) > .5
        flat = lambda o: o.movedim(1, -1).flatten(0, 2)
        close(region_losses(z, t, mask), region_losses(flat(z), flat(t), mask.flatten()))
        assert math.isfinite(region_losses(z, t, mask))


def test_the_batch_moves_the_threshold_before_it_is_judged():
    cb = HIAST(start=.5, decay=.9)
    fit(learner([cb]))
    assert ((cb.theta != .5).sum() > 0) and cb.theta.max() <= .999
    fixed = HIAST(start=.5, decay=1.)
    fit(learner([fixed]))
    assert (fixed.theta == .5).all()


class Moved(LabelCallback):
    "Keep what HIAST asked for and taught in the first batch"
    stage = "teach"
    def before_forward(self, s):
        if self.learn.train_iter: return
        self.given = s.unlabeled.clone()
        self.strong = s.requests["hiast.strong"].clone()
        self.guess = self.learn.hiast.teacher(self.given).argmax(1)
    def after_forward(self, s):
        if not hasattr(self, "mine"): self.mine = s.own(self.learn.hiast)


def dense(cb):
    set_seed(0)
    dls = scenes(8, 32)
    kept = Moved()
    net = pixel_net(dls, 8)
    learn = Learner(dls, net, loss_func=F.cross_entropy, cbs=[cb, kept])
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
    return kept


def still(x, rng=None): return x


class TestPasting:
    def test_pixels_and_their_labels_move_together(self):
        kept = dense(HIAST(start=0., strong=still))
        x = kept.strong[:, 0]
        given = kept.given[:, 0]
        label = kept.mine.label
        moved = x != given
        assert moved.any() and kept.mine.believed[moved].all()
        for i,at in enumerate(moved):
            if not at.any(): assert torch.equal(label[i], kept.guess[i])
            if not at.any(): continue
            # all of them come from one image, and so do their labels
            (j,) = [j for j in range(len(x)) if torch.equal(x[i][at], given[j][at])]
            assert i != j and torch.equal(label[i][at], kept.guess[j][at])
            own = (label[i] == kept.guess[i]) | (given[i] == given[j])
            assert own[~at].all()

    def test_the_given_images_stay(self):
        a,b = (dense(HIAST(start=0., strong=still, paste=p)) for p in (.75, 0.))
        assert torch.equal(a.given, b.given) and torch.equal(b.strong, b.given)

    def test_nothing_believed_nothing_pasted(self):
        kept = dense(HIAST(start=1., decay=1., strong=still))
        assert torch.equal(kept.strong, kept.given) and not kept.mine.believed.any()


def test_what_a_batch_is_told():
    "The average labels the weak view; what is below the threshold keeps its distribution"
    class Kept(HIAST):
        name = "hiast"
        def consistency(self, strong, target, mask):
            found.append((target, mask))
            return super().consistency(strong, target, mask)
    found = []
    said = torch.randn(32, 10, generator=torch.Generator().manual_seed(0))
    cb = Kept(start=.3, smooth=.2, sharp=1.5, power=2., share=.4)
    cb.predict = lambda s: said
    fit(learner([cb, keep := Keep()]))
    probs = said.softmax(1)
    confidence,label = probs.max(1)
    theta = torch.full((10,), .3)
    for (target,mask),s in zip(found, keep.seen):
        theta = adaptive_thresholds(theta, probs, .4, .9, 2.)
        want = confidence >= theta[label]
        assert torch.equal(mask, want) and want.any() and not want.all()
        close(target[want], F.one_hot(label, 10)[want].float())
        close(target[~want], probs[~want])
        close(s.losses["hiast"][0], region_losses(s.outputs["hiast.strong"], target, mask, .2, 1.5))
    close(cb.theta, theta)


@pytest.mark.parametrize("start", [0, 1])
def test_a_whole_number_is_a_threshold_too(start):
    fit(learner([cb := HIAST(start=start)]))
    fit(learner([same := HIAST(start=float(start))]))
    assert cb.theta.is_floating_point() and torch.equal(cb.theta, same.theta)
    assert ((cb.theta - start).abs() > 1e-4).any()


def test_a_guess_at_the_threshold_is_believed():
    said = torch.zeros(32, 10)
    said[:, 0] = 2.
    cb = HIAST(start=float(said[0].softmax(0)[0]), decay=1.)
    cb.predict = lambda s: said
    fit(learner([cb]))
    f = cb.ledger.frame()
    assert f[f.epoch >= 0].accepted.all()


def test_images_of_pixels_are_judged_one_after_the_other():
    "The second image meets the thresholds that the first one has left"
    cb = HIAST(start=.5, decay=.5)
    first,second = (tensor([[p, 1-p]]*6).T.view(2, 2, 3) for p in (.9, .6))
    cb.theta = torch.full((2,), .5)
    cb.learn = SimpleNamespace()
    g = SimpleNamespace(
        probs=torch.stack([first, second]), s=SimpleNamespace(own=lambda cb: SimpleNamespace())
    )
    g.confidence,g.label = g.probs.max(1)
    mask = cb.believe(g)
    theta = adaptive_thresholds(torch.full((2,), .5), first.flatten(1).T, .2, .5, 8.)
    after = adaptive_thresholds(theta, second.flatten(1).T, .2, .5, 8.)
    close(cb.theta, after)
    assert mask[0].all() and torch.equal(mask[1], g.confidence[1] >= after[0])
    assert theta[0] > .5


def test_a_search_leaves_the_thresholds():
    learn = learner([cb := HIAST(start=.5)])
    with learn.no_bar(), learn.no_logging(): learn.lr_find(num_it=6, show_plot=False)
    assert (cb.theta == .5).all()


def test_the_average_measures_the_batch_itself():
    fit(learner([cb := HIAST(start=.1)]))
    assert cb.teacher.batch_stats


def test_errors():
    with pytest.raises(LabelKitError, match="start=2 is not a number between 0 and 1"):
        HIAST(start=2)
