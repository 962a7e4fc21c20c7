"CWBASS: the authors' threshold, borders, weights, and what a batch of class maps is told"
import json

import pytest
import torch
from fastai.basics import Learner, set_seed
from torch import tensor
from torch.nn import functional as F

from contract import fit, learner
from labelkit.errors import LabelKitError
from labelkit.pseudo.cwbass import (
    CWBASS, borders, confidence_threshold, mean_iou, pixel_net, scenes, weighted_pixel_loss,
)
from mix.mixtools import Keep
from places import REFERENCES

close = torch.testing.assert_close


def test_reference():
    (ref,) = json.loads((REFERENCES/"cwbass.json").read_text())
    i = ref["inputs"]
    for mean in i["mean_confidence"]:
        got = confidence_threshold(mean, i["base"], i["beta"], *i["clamp"])
        assert got == pytest.approx(ref["expected"][str(mean)], abs=1e-5)


class TestFunctions:
    def test_borders(self):
        y = torch.zeros(2, 6, 6).long()
        y[0, 2:4, 2:4] = 1
        b = borders(y)
        assert not b[1].any() and not b[0, 0].any() and not b[0, :, 0].any()
        assert b[0, 2, 2] and b[0, 1, 1] and b[0, 2, 1]
        # the frame is none, also where a class reaches it
        y[0] = 3
        assert not borders(y).any()

    @pytest.mark.parametrize("across", [True, False])
    def test_borders_of_both_directions(self, across):
        y = torch.zeros(1, 6, 6).long()
        y[0, 3:] = 1
        b = borders(y if across else y.mT)
        b = b[0] if across else b[0].T
        assert b[2:4].all() and not b[:2].any() and not b[4:].any()

    def test_loss(self):
        z = torch.randn(2, 3, 4, 4)
        t = F.one_hot(torch.randint(3, (2, 4, 4)), 3)
        t = t.movedim(-1, 1).float()
        w = torch.rand(2, 4, 4)*(torch.rand(2, 4, 4) > .5)
        each = F.cross_entropy(z, t.argmax(1), reduction="none")
        close(weighted_pixel_loss(z, t, w), (each*w)[w > 0].sum()/(w > 0).sum())
        assert weighted_pixel_loss(z, t, torch.zeros_like(w)) == 0

    def test_threshold_that_follows(self):
        steep = [confidence_threshold(c, 1.2, 8.) for c in (0., .5, 1.)]
        assert steep == pytest.approx([.3, .6, .8])
        # a step, however steep
        assert [confidence_threshold(c, 1., 2e4, 0., 1.) for c in (.1, .9)] == [0., 1.]


def train(cb, *more, epochs=1):
    set_seed(0)
    dls = scenes(8, 32)
    learn = Learner(dls, pixel_net(dls, 8), loss_func=F.cross_entropy, cbs=[cb, *more])
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, 1e-2)
    return learn


def test_what_a_batch_of_class_maps_is_told():
    cb = CWBASS(warmup=0., gamma=2.)
    said = 3*torch.randn(32, 4, 14, 14, generator=torch.Generator().manual_seed(0))
    cb.predict = lambda s: said
    train(cb, keep := Keep())
    s = keep.seen[-1]
    mine = s.own(cb)
    label = mine.target.argmax(1)
    strong = s.outputs["cwbass.strong"]
    each = F.cross_entropy(strong, label, reduction="none")
    confidence = said.softmax(1).amax(1)
    assert torch.equal(mine.kept, confidence > cb.limit)
    assert cb.limit == confidence_threshold(float(confidence.mean()))
    close(s.losses["cwbass"][0], (each*confidence**2)[mine.kept].mean())
    edge = borders(label) & mine.kept
    assert edge.any() and mine.kept.any()
    close(s.losses["cwbass.boundary"][0], each[edge].mean())
    assert s.losses["cwbass.boundary"][1] == .5
    assert .3 <= cb.limit < .34


def test_without_weights_it_is_the_mean_of_what_is_kept():
    train(cb := CWBASS(warmup=0., gamma=0., boundary=0., threshold=.3), keep := Keep())
    s = keep.seen[-1]
    mine = s.own(cb)
    label = mine.target.argmax(1)
    each = F.cross_entropy(s.outputs["cwbass.strong"], label, reduction="none")
    close(s.losses["cwbass"][0], each[mine.kept].mean())
    assert "cwbass.boundary" not in s.losses and cb.limit == .3


def test_the_weight_grows_in_the_warmup():
    def whole(s):
        mine = s.own(cb)
        each = F.cross_entropy(s.outputs["cwbass.strong"], mine.target, reduction="none")
        return each[mine.kept].mean()
    cb = CWBASS(warmup=.5, threshold=0., gamma=0., boundary=0.)
    train(cb, keep := Keep(), epochs=2)
    share = torch.stack([s.losses["cwbass"][0]/whole(s) for s in keep.seen])
    n = len(share)
    close(share, (torch.arange(n)/(n/2)).clamp_max(1.))


def test_weights_of_both_losses():
    cb = CWBASS(warmup=0., threshold=0., weight=3., boundary=.25)
    said = 3*torch.randn(32, 4, 14, 14)
    cb.predict = lambda s: said
    train(cb, keep := Keep())
    losses = keep.seen[-1].losses
    assert losses["cwbass"][1] == 3. and losses["cwbass.boundary"][1] == .75


def test_a_sample_with_one_class_has_no_border():
    fit(learner([CWBASS(warmup=0., threshold=0.), keep := Keep()]))
    assert set(keep.seen[-1].losses) == {"cwbass"}


def test_scenes():
    dls = scenes(6, 20, digits=2, bs=4, ratio=2)
    x,y = dls.one_batch()
    assert x.shape == (4, 1, 14, 14) and y.shape == (4, 14, 14) and dls.c == 3
    assert set(y.unique().tolist()) <= {0, 1, 2} and x.min() >= 0 and x.max() <= 1
    assert len(dls.unlabeled.one_batch()[0]) == 8 and dls.n_ids == 26
    again = scenes(6, 20, digits=2, bs=4, ratio=2)
    assert torch.equal(again.train_ds[0][0], dls.train_ds[0][0])
    assert torch.equal(scenes(6, 20, seed=3).valid_ds[0][0], scenes(6, 20).valid_ds[0][0])


def test_mean_iou():
    learn = train(CWBASS(threshold=.9))
    x,y = next(iter(learn.dls.valid))
    learn.model.forward = lambda x: F.one_hot(answer(len(x)), 4).movedim(-1, 1).float()
    answer = lambda n: tensor([[[0]]]).expand(n, 14, 14)
    ground = torch.cat([b[1] for b in learn.dls.valid]) == 0
    assert mean_iou(learn) == pytest.approx(float(ground.float().mean())/4, abs=1e-4)


def test_refused():
    for k,v in dict(threshold=2, base=-1, gamma=-1, boundary=-1, ema_decay=2, warmup=2).items():
        with pytest.raises(LabelKitError, match=f"{k}={v}"): CWBASS(**{k: v})
