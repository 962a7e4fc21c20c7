"Contrastive: which images, where the labels' gradient stops, what a probe says"
import pytest
import torch
from fastai.basics import Learner, set_seed
from torch import nn, tensor

from contract import data, fit, learner, same, weights
from labelkit.data.loaders import from_arrays
from labelkit.errors import LabelKitError
from labelkit.lesson.batch import look
from labelkit.pseudo.fixmatch import FixMatch
from labelkit.represent.base import (
    Contrastive,
    all_ids,
    all_inputs,
    features_of,
    head_alone,
    linear_accuracy,
    nearest_accuracy,
    probe,
)
from labelkit.represent.simclr import SimCLR


class TestImages:
    def test_labeled_first_then_unlabeled(self):
        s = look(learner([SimCLR()])).record
        x, = all_inputs(s)
        assert torch.equal(x, torch.cat([s.x, s.unlabeled]))
        assert all_ids(s).tolist() == [*s.ids.tolist(), *s.unlabeled_ids.tolist()]
        assert s.requests["simclr.one"].shape == (48, 1, 8, 8)

    def test_without_unlabeled_samples(self):
        learn = learner([cb := SimCLR()], dls=data(labeled=None))
        s = look(learn).record
        assert "unlabeled" not in cb.needs and s.unlabeled is None
        assert s.requests["simclr.one"].shape == s.x.shape
        fit(learn)

    def test_the_same_callback_on_both(self):
        "What it needs is what the loaders at hand have"
        cb = SimCLR()
        fit(learner([cb]))
        assert "unlabeled" in cb.needs
        fit(learner([cb], dls=data(labeled=None)))
        assert "unlabeled" not in cb.needs

    def test_no_ids(self):
        s = look(learner([SimCLR()])).record
        s.ids = None
        assert all_ids(s)[:16].tolist() == [-1]*16


class TestLabels:
    def test_the_gradient_stops(self):
        head = nn.Linear(3, 2)
        x = torch.randn(4, 3, requires_grad=True)
        out = head_alone(head, (x,), head(x), 3)
        torch.testing.assert_close(out, head(x))
        out.sum().backward()
        assert (x.grad[:3] == 0).all() and (x.grad[3] != 0).any()

    @pytest.mark.parametrize("labels", [False, True])
    def test_of_a_batch(self, labels):
        b = look(learner([SimCLR(labels=labels)]))
        first = next(b.model.parameters())
        grads = torch.autograd.grad(
            b.losses["labeled"][0], [b.model.head.weight, first], allow_unused=True
        ) if labels else None
        if labels: assert grads[1].abs().sum() > 0
        else: assert torch.equal(b.record.pred, b.model.head(b.record.features()))

    def test_no_label_reaches_the_features(self):
        "Other labels, the same features"
        def trained(shift, p=1.):
            dls = data(labeled=None)
            dls.train_ds.arrays.y[:] = (dls.train_ds.arrays.y + shift) % 10
            return weights(fit(learner([SimCLR(p=p)], dls=dls), 2))
        a = trained(0)
        b = trained(3)
        body = lambda w: {k: v for k,v in w.items() if not k.startswith("head")}
        assert same(body(a), body(b)) and not torch.equal(a["head.weight"], b["head.weight"])
        # in batches that are left out they train the whole network, as the docstring says
        a,b = (trained(shift, 1e-9) for shift in (0, 3))
        assert not same(body(a), body(b))

    def test_dense_targets_are_refused(self):
        assert "segmentation" not in Contrastive.targets


class TestProbe:
    def test_nearest_by_hand(self):
        known = tensor([[.8, .6], [.8, -.6], [1., 0.]])
        say = lambda t, k=20: nearest_accuracy(
            known, tensor([0, 0, 1]), tensor([[2., 0.]]), tensor([1]), k, t
        )
        assert say(.07) == 1 and say(1.) == 0 and say(1., k=1) == 1

    def test_linear(self):
        x = torch.randn(60, 2)
        y = (x[:, 0] > 0).long()
        assert linear_accuracy(x, y, x*tensor([1., 1.]), y) > .9
        for n in (0, 1, 60):
            with pytest.raises(LabelKitError, match=f"labels of {n} samples name"):
                linear_accuracy(x[:n], y[:n]*0, x, y)
        with pytest.raises(LabelKitError, match="0 are asked"):
            linear_accuracy(x, y, x[:0], y[:0])

    def test_leaves_the_learner_alone(self):
        learn = fit(learner([SimCLR()]))
        learn.model.train()
        before = weights(learn)
        state = torch.get_rng_state()
        values = probe(learn),probe(learn, "nearest")
        assert all(0 <= o <= 1 for o in values)
        assert same(before, weights(learn)) and learn.model.training
        assert torch.equal(state, torch.get_rng_state())

    def test_features(self):
        learn = fit(learner())
        ids,f = features_of(learn, learn.dls.valid)
        x = torch.cat([o for o,_ in learn.dls.valid])
        torch.testing.assert_close(f, learn.model.eval().features(x))
        assert len(ids) == 40

    def test_one_sample_is_judged_whatever_the_others_are(self):
        "Nothing is learned from the samples in question, their mean and spread included"
        x = torch.randn(60, 2)
        y = (x[:, 0] > 0).long()
        asked = torch.randn(20, 2)
        asked[0] = 1e4
        truth = (asked[:, 0] > 0).long()
        alone = [linear_accuracy(x, y, asked[[i]], truth[[i]]) for i in range(20)]
        assert linear_accuracy(x, y, asked, truth) == pytest.approx(sum(alone)/20)

    @pytest.mark.parametrize("how", ["linear", "nearest"])
    def test_it_learns_from_the_training_labels(self, how):
        "With labels that are all off by one, nothing in validation is right"
        dls = data(labeled=None)
        learn = fit(learner(dls=dls))
        right = probe(learn, how)
        dls.train_ds.arrays.y[:] = (dls.train_ds.arrays.y + 1) % 10
        assert right > .5 and probe(learn, how) < .2

    def test_refused(self):
        with pytest.raises(LabelKitError, match="how='cosine'"): probe(None, "cosine")


class Watched(Contrastive):
    "No technique of ours: a user's own"
    name = "watched"
    def contrast(self, s): return (self.project(s, "one") - self.project(s, "two")).pow(2).mean()


def test_a_loss_of_ones_own():
    learn = fit(learner([Watched()]))
    assert list(learn.supervision.parts) == ["labeled", "watched"]
    with pytest.raises(NotImplementedError, match="overrides contrast"):
        fit(learner([Contrastive()]))


def test_a_view_of_a_table():
    set_seed(0)
    x = torch.randn(60, 6)
    y = (x[:, 0] > 0).long()
    from labelkit.models import mlp
    dls = from_arrays(x, y, x, y, labeled=10, bs=5, ratio=3)
    noise = lambda x, generator: x + .1*torch.randn(x.shape, generator=generator)
    learn = Learner(dls, mlp(dls), cbs=SimCLR(view=noise))
    fit(learn)
    assert learn.supervision.parts["simclr"][-1] > 0


def test_beside_pseudo_labels():
    "FixMatch trains the network on what it believes, also when labels reach the last layer alone"
    learn = fit(learner([SimCLR(), FixMatch(threshold=0.)]))
    assert {"labeled", "simclr", "fixmatch"} <= set(learn.supervision.parts)


def test_arguments():
    for k,v in dict(temperature=0., dim=0, weight=-1).items():
        with pytest.raises(LabelKitError, match=f"{k}="): SimCLR(**{k: v})
    with pytest.raises(LabelKitError, match="view 3"): SimCLR(view=3)


def test_two_draws_of_the_view():
    b = look(learner([SimCLR()]))
    one,two = (b.record.requests[f"simclr.{k}"] for k in ("one", "two"))
    assert (one != two).flatten(1).any(1).float().mean() > .9


def test_the_loss_counts_its_weight():
    for w in (.25, 3.):
        b = look(learner([SimCLR(weight=w)]))
        assert b.losses["simclr"][1] == w
