"LaSO: sets are sets, the losses the formula's, and a model that only listens does not change"
import pytest
import torch
from fastai.basics import Learner, accuracy_multi
from fastai.callback.core import Callback
import fastai.callback.schedule  # noqa: F401
from torch import nn, tensor
from torch.nn import functional as F

from contract import fit, learner, same, weights
from labelkit.data.loaders import from_arrays
from labelkit.errors import LabelKitError
from labelkit.models import small_cnn, with_features
from labelkit.mix.laso import (
    LaSO,
    SetOperations,
    combine_labels,
    laso_losses,
    multi_digits,
    set_precision,
)


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


def test_labels_of_pairs_that_count_nothing():
    torch.manual_seed(0)
    ops = SetOperations(6, 8)
    head = torch.nn.Linear(6, 3)
    a,b = torch.randn(2, 5, 6)
    ya,yb = torch.rand(2, 5, 3).round()
    w = tensor([1., 3., 0., 0., 2.])
    found = [laso_losses(ops, head, *(o[i:i+1] for o in (a, b, ya, yb)))[0] for i in range(5)]
    want = (found[0] + 3*found[1] + 2*found[4])/6
    torch.testing.assert_close(laso_losses(ops, head, a, b, ya, yb, w)[0], want)


def test_beside_changes_nothing_and_learns():
    cb = LaSO(joint=False)
    first = []
    class Before(Callback):
        def before_batch(self):
            if not first: first.extend(p.clone() for p in cb.operations.module.parameters())
    assert same(weights(fit(learner([cb, Before()]))), weights(fit(learner())))
    assert all(not torch.equal(a, b) for a,b in zip(first, cb.operations.module.parameters()))


@pytest.mark.parametrize("joint", [False, True])
def test_whom_the_losses_train(joint):
    cb = LaSO(weight=.5, reconstruction=.2, joint=joint)
    reached = {}
    class Reach(Callback):
        order = 7
        def after_loss(self):
            if not self.training or reached: return
            s = self.learn.supervision.record
            own = list(self.learn.model.parameters())
            nets = list(cb.operations.module.parameters())
            told = s.losses if joint else s.auxiliary_losses
            other = s.auxiliary_losses if joint else s.losses
            assert not other
            for name,(value,weight) in told.items():
                grads = torch.autograd.grad(value, own+nets, retain_graph=True, allow_unused=True)
                hit = [any(g is not None and g.abs().sum() > 0 for g in gs)
                       for gs in (grads[:len(own)], grads[len(own):])]
                reached[name] = (weight, *hit)
    fit(learner([cb, Reach()]))
    assert reached == {
        "laso": (.5, joint, True),
        "laso.symmetry": (.1, joint, True),
        "laso.whole": (.1, joint, True),
    }


def test_pairs_of_features_and_labels_belong_together():
    "The losses of a fit are those of `laso_losses` for one shift of features and labels alike"
    cb = LaSO()
    checked = []
    class Again(Callback):
        order = 7
        def after_loss(self):
            if not self.training: return
            s = self.learn.supervision.record
            f = s.features().detach()
            y = F.one_hot(s.y, 10).float()
            head = self.learn.model.head
            all_ = [
                laso_losses(cb.operations.module, head, f, f.roll(-k, 0), y, y.roll(-k, 0))
                for k in range(1, len(y))
            ]
            have = [v.item() for v,_ in s.auxiliary_losses.values()]
            near = [all(abs(a-b.item()) < 1e-5 for a,b in zip(have, o)) for o in all_]
            checked.append(sum(near))
    fit(learner([cb, Again()]))
    assert checked == [1]*len(checked) and len(checked) == 4


def test_what_is_combined_is_a_pair_and_its_order():
    "Differences are of the first without the second, also in `combine`"
    learn = fit(learner([cb := LaSO()]))
    a,b = torch.rand(2, 3, 1, 8, 8)
    modes = [m.training for m in learn.model.modules()]
    one = cb.combine(a, b)
    other = cb.combine(b, a)
    assert modes == [m.training for m in learn.model.modules()]
    assert not any(o.requires_grad for o in one.values())
    assert not torch.equal(one["difference"], other["difference"])
    with torch.no_grad():
        fa,fb = (with_features(learn.model.eval(), o)[1] for o in (a, b))
        want = cb.operations.module.one("difference", fa, fb)
        torch.testing.assert_close(one["difference"], want)


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
    assert set(z) == {"union", "intersection", "difference"}
    assert all(v.shape == (7, 16) for v in z.values())
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


class Sets(nn.Module):
    "Features are the label set that the picture holds, and the head leaves them as they are"
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 3)
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(3))
            self.head.bias.zero_()

    def forward(self, x): return self.head(x)


def test_arithmetic_on_features_that_are_the_sets_is_exact():
    g = torch.Generator().manual_seed(0)
    y = (torch.rand(40, 3, generator=g) > .5).float()
    dls = from_arrays(y, y, y, y, kind="multi", vocab="abc", bs=8)
    learn = Learner(dls, Sets())
    assert set_precision(learn) == 1.
    learn.model.head.weight.data.neg_()
    assert set_precision(learn) < .7
