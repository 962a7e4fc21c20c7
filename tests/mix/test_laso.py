"""LaSO: sets are sets, the losses are the formula's, and a model that only listens does not change."""
import pytest
import torch
from fastai.basics import Learner, accuracy_multi
from fastai.callback.core import Callback
import fastai.callback.schedule  # noqa: F401
from torch import tensor
from torch.nn import functional as F

from contract import fit, learner, same, weights
from labelkit.errors import LabelKitError
from labelkit.models import small_cnn
from labelkit.mix.laso import LaSO, SetOperations, combine_labels, laso_losses, multi_digits


def test_sets():
    a = tensor([[1.,1.,0.,0.]])
    b = tensor([[0.,1.,1.,0.]])
    s = combine_labels(a, b)
    assert (
        s["union"].tolist() == [[1, 1, 1, 0]]
        and s["intersection"].tolist() == [[0, 1, 0, 0]]
        and s["difference"].tolist() == [[1, 0, 0, 0]]
    )
    assert torch.equal(s["difference"] + s["intersection"], a), (
        "a set is its difference and its intersection"
    )


def test_losses_by_the_formula():
    torch.manual_seed(0)
    ops = SetOperations(6, 8)
    head = torch.nn.Linear(6, 3)
    a = torch.randn(5, 6)
    b = torch.randn(5, 6)
    ya,yb = torch.rand(2, 5, 3).round()
    z = ops(a, b)
    back = ops(b, a)
    found = (
        F.binary_cross_entropy_with_logits(head(z["union"]), ((ya + yb) > 0).float())
        + F.binary_cross_entropy_with_logits(head(z["intersection"]), ya * yb)
        + F.binary_cross_entropy_with_logits(head(z["difference"]), ya * (1 - yb))
    )
    symmetry = (z["union"] - back["union"]).square().mean() + (
        z["intersection"] - back["intersection"]
    ).square().mean()
    whole = sum(
        (ops.one("union", o["difference"], o["intersection"]) - f).square().mean()
        for o, f in ((z, a), (back, b))
    )
    for have,want in zip(laso_losses(ops, head, a, b, ya, yb), (found, symmetry, whole)):
        torch.testing.assert_close(have, want)


def test_beside_changes_nothing_and_learns():
    cb = LaSO(joint=False)
    first = []
    class Before(Callback):
        def before_batch(self):
            if not first: first.extend(p.clone() for p in cb.operations.module.parameters())
    assert same(weights(fit(learner([cb, Before()]))), weights(fit(learner())))
    assert all(not torch.equal(a, b) for a,b in zip(first, cb.operations.module.parameters()))


def test_several_labels_a_sample():
    dls = multi_digits(120, 40, bs=20)
    x = dls.train_ds.arrays.x
    y = dls.train_ds.arrays.y
    assert set(y.sum(1).int().tolist()) <= {1,2,3} and x.shape == (120,1,16,16)
    taken = x.view(120,2,8,2,8).amax((2,4)).flatten(1).gt(0).sum(1)
    assert (taken >= y.sum(1)).all(), "a digit can stand twice, but no label is without a digit"
    learn = Learner(dls, small_cnn(dls, width=4), cbs=LaSO(), metrics=accuracy_multi)
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-2)
    z = learn.laso.combine(x[:7], x[7:14])
    assert {k: v.shape for k, v in z.items()} == {
        k: (7, 16) for k in ("union", "intersection", "difference")
    }
    assert not learn.model.training or learn.model.train()


def test_the_same_seed_makes_the_same_pictures():
    a,b,c = (multi_digits(20, 10, seed=s).train_ds.arrays.x for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_bad_input():
    with pytest.raises(LabelKitError, match="most=0"): multi_digits(most=0)
    with pytest.raises(LabelKitError, match="names no digit"): multi_digits(classes=[12])
    with pytest.raises(LabelKitError, match="no set operations yet"):
        LaSO().combine(torch.rand(2,1,8,8), torch.rand(2,1,8,8))
    with pytest.raises(LabelKitError, match="hidden=0"): LaSO(hidden=0)
