"Soft-target losses and mixes: against published code, and for every kind of loss on a real Learner"
import json
from functools import partial

import pytest, torch
import fastai.callback.progress  # noqa: F401 gives learners no_bar
from fastai.basics import Callback, DataLoader, DataLoaders, Learner, set_seed
from fastai.losses import (
    BCEWithLogitsLossFlat,
    CrossEntropyLossFlat,
    FocalLossFlat,
    LabelSmoothingCrossEntropyFlat,
    MSELossFlat,
)
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from places import REFERENCES
from labelkit.core.losses import dense_targets, per_mass, soft_target_loss
from labelkit.mix.base import blend
from labelkit.parts.shares import sample_lam
from labelkit.mix.cutmix import CutMix, box_masks, cut_boxes
from labelkit.mix.mixup import MixUp, mixup

REFERENCE = {e["name"]: e for e in json.loads((REFERENCES/"mix.json").read_text())}
tensor = torch.tensor
def hot(y, c=3): return F.one_hot(tensor(y), c).float()
def close(a, b, tol=1e-6): torch.testing.assert_close(a, b, atol=tol, rtol=1e-5)


class TestPublished:
    def test_cutmix_boxes(self):
        e = REFERENCE["cutmix_bbox_and_area_corrected_lam"]
        for i,o in zip(e["inputs"], e["expected"]):
            # the authors call the image's second-last side W: it is our number of rows
            boxes, lam = cut_boxes(
                (i["W"], i["H"]),
                tensor([i["lam"]], dtype=torch.float64),
                tensor([[i["cx"], i["cy"]]]),
            )
            assert boxes[0].tolist() == o["bbox"]
            assert lam.item() == pytest.approx(o["lam"], abs=1e-7)  # ours has 32 bits
            assert box_masks((i["W"], i["H"]), boxes).float().mean().item() == pytest.approx(
                o["lam"], abs=1e-6
            )

    def test_mixup_criterion(self):
        e = REFERENCE["mixup_criterion_ce"]
        i = e["inputs"]
        z = tensor(e["inputs"]["logits"])
        t = blend(hot(i["y_a"]), hot(i["y_b"]), tensor([i["lam"]]))
        assert soft_target_loss(nn.CrossEntropyLoss(), z, t).item() == pytest.approx(
            e["expected"]["mean"], abs=e["tolerance"]
        )
        rows = [
            soft_target_loss(nn.CrossEntropyLoss(), z[k : k + 1], t[k : k + 1]).item()
            for k in range(4)
        ]
        assert rows == pytest.approx(e["expected"]["none"], abs=e["tolerance"])

    @pytest.mark.parametrize(
        "lam, smoothing, key",
        [
            ([0.7], 0.0, "smoothing_0"),
            ([0.7], 0.1, "smoothing_0_1"),
            ([0.7, 0.2, 1.0, 0.5], 0.1, "per_sample_lam_smoothing_0_1"),
        ],
    )
    def test_smoothed_targets(self, lam, smoothing, key):
        # timm smooths the target, we leave that to the loss: the same number
        e = REFERENCE["mixup_soft_target_label_smoothing"]
        y = e["inputs"]["target"]
        c = e["inputs"]["num_classes"]
        t = blend(hot(y, c), hot(y[::-1], c), tensor(lam))
        expected = tensor(e["expected"][key])
        close((1-smoothing)*t + smoothing/c, expected)
        z = torch.randn(4, c)
        for lf in (
            nn.CrossEntropyLoss(label_smoothing=smoothing),
            LabelSmoothingCrossEntropyFlat(eps=smoothing),
        ):
            close(soft_target_loss(lf, z, t), -(expected*z.log_softmax(1)).sum(1).mean())

    def test_several_labels(self):
        # binary cross-entropy smooths nothing by itself: one who wants it smooths the labels, and
        # mixing commutes with that
        e = REFERENCE["mixup_soft_target_label_smoothing"]
        y = tensor(e["inputs"]["multi_label_target"])
        s = e["inputs"]["multi_label_smoothing"]
        expected = tensor(e["expected"]["multi_label"])
        smooth = lambda t: (1-s)*t + s/2
        close(blend(smooth(y), smooth(y.flip(0)), tensor([.7])), expected)
        close(smooth(blend(y, y.flip(0), tensor([.7]))), expected)
        z = torch.randn(4, 3)
        close(
            soft_target_loss(BCEWithLogitsLossFlat(), z, expected),
            F.binary_cross_entropy_with_logits(z, expected),
        )

    def test_fastais_mixup(self):
        e = REFERENCE["fastai_mixup_per_sample_lam_and_loss"]
        i = e["inputs"]
        o = e["expected"]
        z = tensor(e["inputs"]["logits"])
        x = torch.arange(16.).reshape(4, 1, 2, 2)
        y = hot(i["y"])
        partner = tensor(i["shuffle"])
        # fastai takes max(λ, 1−λ), so that the own label leads; the paper and we take λ as it is
        # drawn. With fastai's λ all else is equal
        drawn = tensor(i["sampled_beta"])
        lam = torch.maximum(drawn, 1-drawn)
        close(lam, tensor(o["lam"]))
        close(mixup(x, partner, lam).flatten(), tensor(o["x_mixed"]))
        close(
            soft_target_loss(CrossEntropyLossFlat(), z, blend(y, y[partner], lam)),
            tensor(o["loss"]),
        )
        assert (sample_lam(1., 1000, torch.Generator().manual_seed(0)) < .5).float().mean() > .4


WEIGHT = tensor([1., 2., 5.])

def data(kind, n):
    "n samples with 3 classes, or 3 labels, or 2 numbers, or a class for each pixel"
    g = torch.Generator().manual_seed(3)
    x = torch.rand(n, 1, 8, 8, generator=g)
    return x, dict(
        single=lambda: torch.randint(0, 3, (n,), generator=g),
        multi=lambda: (torch.rand(n, 3, generator=g) > 0.5).float(),
        regression=lambda: torch.randn(n, 2, generator=g),
        number=lambda: torch.randn(n, generator=g),
        segmentation=lambda: torch.randint(0, 3, (n, 8, 8), generator=g),
    )[kind]()

def weighted(z, a, b, lam):
    "λ·wₐ·CE(a) + (1−λ)·w_b·CE(b), over the weight that was handed out"
    ce = partial(F.cross_entropy, z, weight=WEIGHT, reduction="none")
    return (lam*ce(a) + (1-lam)*ce(b)).sum() / (lam*WEIGHT[a] + (1-lam)*WEIGHT[b]).sum()

def two_losses(loss): return lambda z, a, b, lam: lam*loss(z, a) + (1-lam)*loss(z, b)
def of_mixed_target(loss): return lambda z, a, b, lam: loss(z, (lam*a + (1-lam)*b).reshape(z.shape))

# loss, targets, and what the loss of a mixed batch is
smooth = partial(F.cross_entropy, label_smoothing=.1)
LOSSES = {
    "CrossEntropyLoss": (lambda: nn.CrossEntropyLoss(), "single", two_losses(F.cross_entropy)),
    "F.cross_entropy": (lambda: F.cross_entropy, "single", two_losses(F.cross_entropy)),
    "CrossEntropyLossFlat": (CrossEntropyLossFlat, "single", two_losses(F.cross_entropy)),
    "class weights": (lambda: nn.CrossEntropyLoss(weight=WEIGHT), "single", weighted),
    "class weights, flat": (lambda: CrossEntropyLossFlat(weight=WEIGHT), "single", weighted),
    "label smoothing": (
        lambda: nn.CrossEntropyLoss(label_smoothing=0.1),
        "single",
        two_losses(smooth),
    ),
    "LabelSmoothingCrossEntropyFlat": (
        lambda: LabelSmoothingCrossEntropyFlat(eps=0.1),
        "single",
        two_losses(smooth),
    ),
    "BCEWithLogitsLossFlat": (
        BCEWithLogitsLossFlat,
        "multi",
        of_mixed_target(F.binary_cross_entropy_with_logits),
    ),
    "BCE, pos_weight": (
        lambda: nn.BCEWithLogitsLoss(pos_weight=WEIGHT),
        "multi",
        of_mixed_target(partial(F.binary_cross_entropy_with_logits, pos_weight=WEIGHT)),
    ),
    "MSELossFlat": (MSELossFlat, "regression", of_mixed_target(F.mse_loss)),
    "MSELossFlat, one number": (MSELossFlat, "number", of_mixed_target(F.mse_loss)),
    "L1": (lambda: nn.L1Loss(), "regression", of_mixed_target(F.l1_loss)),
    "FocalLossFlat": (
        lambda: FocalLossFlat(gamma=2.0),
        "single",
        two_losses(FocalLossFlat(gamma=2.0)),
    ),
    "segmentation": (
        lambda: CrossEntropyLossFlat(axis=1),
        "segmentation",
        two_losses(F.cross_entropy),
    ),
    "segmentation, weights": (
        lambda: CrossEntropyLossFlat(axis=1, weight=WEIGHT),
        "segmentation",
        weighted,
    ),
}

def model_for(kind):
    "A small model for the outputs that the targets need"
    if kind == "segmentation":
        return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1))
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 16),
        nn.ReLU(),
        nn.Linear(16, dict(regression=2, number=1).get(kind, 3)),
    )


class Keep(Callback):
    "The first training batch: record, plan of the mix, the batch's own targets, and the loss"
    order = 6
    first = None
    def __init__(self, which): self.which = which
    def after_loss(self):
        if self.first is None and self.training:
            self.first = dict(
                s=self.learn.supervision.record,
                plan=getattr(self.learn, self.which).plan,
                y=self.yb[0],
                loss=self.learn.loss.item(),
            )

def learner(mix, loss, kind, n=16, bs=8):
    set_seed(0)
    x,y = data(kind, n)
    ds = TensorDataset(x, y)
    dls = DataLoaders(DataLoader(ds, bs=bs), DataLoader(ds, bs=bs))
    assert not hasattr(dls, "c")
    return Learner(dls, model_for(kind), loss_func=loss, cbs=mix)

def fit(learn, *cbs):
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2, cbs=list(cbs))


@pytest.mark.parametrize("mix", [MixUp, CutMix])
@pytest.mark.parametrize("name", LOSSES)
class TestEveryLoss:
    def test_first_batch(self, name, mix):
        make,kind,expected = LOSSES[name]
        loss = make()
        cb = mix()
        learn = learner(cb, loss, kind)
        keep = Keep(cb.name)
        fit(learn, keep)
        s,plan,y,got = keep.first.values()
        own,partner = plan.of(y)
        lam = plan.shares[0,0]
        assert plan.shares[0].eq(lam).all() and 0 < lam < 1
        # every pixel has one label: the plain loss of the cut mask
        if kind == "segmentation" and mix is CutMix:
            want = loss(s.pred, plan.apply_maps(y.float()).long())
        elif kind == "segmentation" and name.endswith("weights"):
            want = weighted(s.pred, own, partner, lam)
        else: want = expected(s.pred, own, partner, lam)
        assert got == pytest.approx(want.item(), rel=2e-5)

    def test_nothing_else_changed(self, name, mix):
        make,kind,_ = LOSSES[name]
        loss = make()
        learn = learner(mix(), loss, kind)
        fit(learn)
        assert learn.loss_func is loss and getattr(loss, "reduction", "mean") == "mean"
        with learn.no_bar(), learn.no_logging():
            valid = learn.validate()[0]
            learn.remove_cb(mix)
            assert learn.validate()[0] == valid
        assert all(p.isfinite().all() for p in learn.model.parameters())

    @pytest.mark.parametrize("n, bs", [(1, 1), (7, 3), (5, 1)])
    def test_batch_of_one_and_an_odd_rest(self, name, mix, n, bs):
        make,kind,_ = LOSSES[name]
        learn = learner(mix(), make(), kind, n, bs)
        fit(learn)
        assert (
            len(learn.recorder.losses) == -(-n // bs)
            and torch.stack(learn.recorder.losses).isfinite().all()
        )


@pytest.mark.parametrize(
    "name", [k for k, v in LOSSES.items() if v[1] in ("single", "segmentation")]
)
def test_one_hot_targets_are_the_plain_loss(name):
    make,kind,_ = LOSSES[name]
    _,y = data(kind, 16)
    z = torch.randn(16, 3, *y.shape[1:])
    close(soft_target_loss(make(), z, dense_targets(y, 3, kind)), make()(z, y))

@pytest.mark.parametrize("name", LOSSES)
def test_a_weight_of_zero_takes_a_sample_out(name):
    make,kind,_ = LOSSES[name]
    _,y = data(kind, 6)
    t = dense_targets(y, 3, kind)
    z = torch.randn(
        6,
        {"regression": 2, "number": 1}.get(kind, 3),
        *(y.shape[1:] if kind == "segmentation" else ()),
    )
    keep = tensor([1., 1., 0., 1., 0., 1.])
    classes = kind in ("single", "segmentation")
    rows = keep > 0
    close(
        soft_target_loss(make(), z, t, keep, classes),
        soft_target_loss(make(), z[rows], t[rows], None, classes),
    )


def test_pixels_to_ignore():
    y = torch.randint(0, 3, (4, 8, 8))
    y[:, :3] = -100
    z = torch.randn(4, 3, 8, 8)
    close(
        soft_target_loss(CrossEntropyLossFlat(axis=1), z, dense_targets(y, 3, "segmentation")),
        F.cross_entropy(z, y),
    )


def test_class_weights_of_soft_targets_differ_from_torch_on_purpose():
    """torch divides soft targets by the number of samples, and class numbers by the weight handed
    out; ours is always the second"""
    z = torch.randn(5, 3)
    y = torch.randint(0, 3, (5,))
    lf = nn.CrossEntropyLoss(weight=WEIGHT)
    close(soft_target_loss(lf, z, hot(y.tolist())), lf(z, y))
    assert (lf(z, hot(y.tolist())) - lf(z, y)).abs() > 1e-3

def test_gradients_of_the_expectation_path_are_those_of_the_mixed_losses():
    z = torch.randn(6, 3, requires_grad=True)
    a = torch.randint(0, 3, (6,))
    b = torch.randint(0, 3, (6,))
    lf = FocalLossFlat(gamma=2.)
    ours = torch.autograd.grad(
        soft_target_loss(lf, z, 0.3 * hot(a.tolist()) + 0.7 * hot(b.tolist())), z
    )[0]
    close(ours, torch.autograd.grad(.3*lf(z, a) + .7*lf(z, b), z)[0])

def test_torchs_own_loader():
    x,y = data("single", 12)
    from torch.utils.data import DataLoader as TorchLoader
    ds = TensorDataset(x, y)
    set_seed(0)
    learn = Learner(
        DataLoaders(TorchLoader(ds, 4), TorchLoader(ds, 4)),
        model_for("single"),
        loss_func=nn.CrossEntropyLoss(),
        cbs=[MixUp(), CutMix()],
    )
    fit(learn)
    assert len(learn.recorder.losses) == 3


@pytest.mark.parametrize("factor", [1., 5., 2.**16])
def test_a_batch_in_which_nothing_counts_has_no_gradient(factor):
    "Whatever the loss is multiplied by, as a weight or by mixed precision"
    assert per_mass(tensor([6., 0.]), tensor([3., 0.])).tolist() == [2., 0.]
    z = torch.randn(4, 3, requires_grad=True)
    for lf in (nn.CrossEntropyLoss(), FocalLossFlat(), nn.BCEWithLogitsLoss()):
        loss = factor*soft_target_loss(lf, z, hot([0, 1, 2, 0]), torch.zeros(4))
        assert loss == 0
        assert torch.equal(torch.autograd.grad(loss, z)[0], torch.zeros(4, 3))
