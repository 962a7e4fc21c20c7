"""COMIC: values of the official code, the cap, the focus, and edges"""
import json
from pathlib import Path

import pytest
import torch
from fastai.basics import Learner
from torch import nn

from labelkit.data.loaders import from_arrays
from labelkit.errors import LabelKitError
from labelkit.models import small_cnn
from labelkit.relabel.comic import (
    COMIC,
    Positives,
    balance_losses,
    balanced_targets,
    class_weights,
    mean_precision,
    multi_focal_loss,
    precision_by_class,
    recall_labels,
    two_digits,
)

reference = json.loads((Path(__file__).parents[1]/"reference"/"comic.json").read_text())


def test_values_of_the_official_code():
    given = reference["inputs"]
    want = reference["expected"]
    y = torch.tensor(given["given"]).float()
    logits = torch.tensor(given["logits"]) - given["margin"]*y
    counts = torch.tensor(given["class_counts"]).float()
    torch.testing.assert_close(class_weights(counts), torch.tensor(want["class_weight_before"]))
    found = recall_labels(logits.sigmoid(), y, given["tau"])
    corrected = torch.maximum(y, found.float())
    assert corrected.int().tolist() == want["corrected"]
    w = class_weights(counts + found.sum(0))
    torch.testing.assert_close(w, torch.tensor(want["class_weight_used"]))
    loss = multi_focal_loss(logits, corrected, w, given["gamma_neg"], given["gamma_pos"],
                            given["clip"])
    # the official code multiplies by the batch size
    assert float(loss)*given["batch_size"] == pytest.approx(want["loss"], abs=1e-5)


def test_room_is_for_the_surest():
    p = torch.tensor([[.9, .95], [.8, .2], [.85, .99], [.1, .1]])
    y = torch.zeros(4, 2)
    y[0, 1] = 1
    room = torch.tensor([2., 0.])
    assert recall_labels(p, y, .5, room).tolist() == [
        [True, False], [False, False], [True, False], [False, False]
    ]
    # a fraction of a place is none, and less than nothing is nothing
    assert recall_labels(p, y, .5, torch.tensor([.0, -3.])).sum() == 0
    assert recall_labels(p, y, .5).sum() == 4
    # given labels and shares of mixed ones are never recalled
    assert not recall_labels(p, torch.full_like(p, .3), .5).any()


def test_no_positive_label_is_no_division_by_zero():
    z = torch.randn(3, 4, requires_grad=True)
    loss = multi_focal_loss(z, torch.zeros(3, 4), torch.ones(4))
    loss.backward()
    assert loss.isfinite() and z.grad.isfinite().all()
    assert class_weights(torch.zeros(4)).tolist() == [1]*4


def test_extreme_logits_are_finite():
    z = torch.tensor([[80., -80.]], requires_grad=True)
    for y in ([[0., 1.]], [[1., 0.]]):
        loss = multi_focal_loss(z, torch.tensor(y), torch.ones(2))
        (grad,) = torch.autograd.grad(loss, z)
        assert loss.isfinite() and grad.isfinite().all()
        assert multi_focal_loss(z.half(), torch.tensor(y).half(), torch.ones(2)).isfinite()


def test_weights_of_samples_count():
    z = torch.randn(2, 3)
    y = torch.tensor([[1., 0, 0], [0, 1, 0]])
    first = multi_focal_loss(z, y, torch.ones(3), weights=torch.tensor([1., 0.]))
    # who counts nothing is not among the positive ones either
    assert float(first) == pytest.approx(float(multi_focal_loss(z[:1], y[:1], torch.ones(3))))
    twice = multi_focal_loss(z, y, torch.ones(3), weights=torch.tensor([2., 1.]))
    both = multi_focal_loss(z[[0, 0, 1]], y[[0, 0, 1]], torch.ones(3))
    assert float(twice) == pytest.approx(float(both))


def test_the_expert_that_is_right_counts_more():
    head = torch.tensor([[4., 0.]])
    tail = torch.tensor([[-4., 0.]])
    said = balanced_targets(head, tail, torch.tensor([[1., 1.]]))
    assert said[0, 0] > .95 and said[0, 1] == .5
    assert balanced_targets(head, tail, torch.tensor([[0., 0.]]))[0, 0] < .05


def test_mean_of_a_class_is_over_the_batch():
    p = torch.tensor([[.75, .625], [.75, .75], [.75, .75]])
    y = torch.zeros(3, 2)
    # of the first class nobody is above the mean, of the second two are
    assert recall_labels(p, y, .5).tolist() == [[False, False], [False, True], [False, True]]


def test_the_focus_has_no_gradient():
    "How hard a label is weighs it, and is no way to lower the loss"
    z = torch.tensor([[.7, -.4]], requires_grad=True)
    y = torch.tensor([[1., 0.]])
    w = torch.tensor([1., 2.])
    (grad,) = torch.autograd.grad(multi_focal_loss(z, y, w, 2., 3., .05), z)
    p = z.detach().sigmoid()
    hard = torch.stack([(1-p[0, 0])**3, (p[0, 1] - .05)**(2. + 2.)])
    slope = torch.stack([-(1-p[0, 0]), p[0, 1]*(1-p[0, 1])/(1-p[0, 1]+.05)])
    torch.testing.assert_close(grad[0], hard*slope*w)


def test_experts_know_frequent_and_rare_classes():
    "n/mean(n) for the first, its reverse for the second; what they say teaches, and learns nothing"
    g = torch.Generator().manual_seed(0)
    head,tail,z = (torch.randn(5, 3, generator=g).requires_grad_() for _ in range(3))
    y = (torch.rand(5, 3, generator=g) < .4).float()
    n = torch.tensor([8., 2., 1.])
    focus = (3., 0., .05)
    taught,followed = balance_losses([head, tail], z, y, n, focus)
    want = multi_focal_loss(head, y, n/n.mean(), *focus)
    want = want + multi_focal_loss(tail, y, (1/n)/(1/n).mean(), *focus)
    torch.testing.assert_close(taught, want)
    target = balanced_targets(head.detach(), tail.detach(), y)
    torch.testing.assert_close(followed, multi_focal_loss(z, target, class_weights(n), *focus))
    grads = torch.autograd.grad(followed, (head, tail), allow_unused=True, retain_graph=True)
    assert grads == (None, None)


def learner(cb, y=None, n=24):
    g = torch.Generator().manual_seed(0)
    x = torch.rand(n, 1, 8, 8, generator=g)
    y = (torch.rand(n, 3, generator=g) < .3).float() if y is None else y
    dls = from_arrays(x, y, x, y, kind="multi", bs=8)
    torch.manual_seed(0)
    return Learner(dls, small_cnn(dls, width=2), cbs=cb)

def fit(learn, n=2):
    with learn.no_bar(), learn.no_logging(): learn.fit(n, 1e-3)
    return learn

def test_no_more_is_recalled_than_the_cap_allows():
    cb = COMIC(warmup=0., tau=0., cap=.5)
    fit(learner(cb))
    n = cb.positives
    assert (n.found <= .5*n.given + 1).all() and n.found.sum() > 0
    assert int(cb.recalled.sum()) <= int(n.found.sum())
    none = COMIC(warmup=0., tau=0., cap=0.)
    fit(learner(none))
    assert not none.recalled.any()

def test_the_warm_up_is_the_learners_own():
    cb = COMIC(warmup=.5)
    learn = fit(learner(cb), 2)
    first,second = learn.supervision.parts["comic"]
    assert first != first and second == second  # NaN, and a number

def test_what_a_batch_is_told():
    "The margin is taken from given labels; counts are of this epoch and the one before"
    class Kept(COMIC):
        name = "comic"
        def after_forward(self, s):
            super().after_forward(s)
            if "comic" not in s.losses: return
            logits = s.pred - self.margin*s.targets
            y = torch.maximum(s.targets, self.recalled[s.ids].float())
            counts = self.positives.total
            focus = (self.gamma_neg, self.gamma_pos, self.clip, s.weights)
            want = multi_focal_loss(logits, y, class_weights(counts), *focus)
            torch.testing.assert_close(s.losses["comic"][0], want)
            experts = [o - self.margin*s.targets for o in self.experts(s.features().detach())]
            taught,followed = balance_losses(experts, logits, y, counts, focus)
            torch.testing.assert_close(s.losses["comic.balance"][0], followed)
            torch.testing.assert_close(s.auxiliary_losses["comic.experts"][0], taught)
            body = [p for k,p in self.learn.model.named_parameters() if "head" not in k]
            value = s.auxiliary_losses["comic.experts"][0]
            grads = torch.autograd.grad(value, body, allow_unused=True, retain_graph=True)
            assert all(g is None for g in grads)
            assert s.losses["comic.balance"][1] == .25 and s.labeled_weight == 0
            found.append(counts.clone())
    found = []
    cb = Kept(warmup=0., tau=.3, cap=9., balance=.25, gamma_pos=1.)
    learn = fit(learner(cb), 3)
    y = learn.dls.train_ds.arrays.y.sum(0)
    assert len(found) == 9
    n = cb.positives
    assert torch.equal(n.usual, y) and torch.equal(n.given, y)
    assert torch.equal(found[0] - found[0].floor(), torch.zeros(3))
    assert (found[-1] == 2*y + n.found).all()


def test_what_is_no_longer_sure_is_no_longer_recalled():
    cb = COMIC(warmup=0., tau=0., cap=9.)
    learn = fit(learner(cb), 1)
    assert cb.recalled.any()
    cb.tau = 1.
    fit(learn, 1)
    assert not cb.recalled.any()


def test_recalled_labels_of_an_epoch_do_not_fill_the_next():
    cb = COMIC(warmup=0., tau=0., cap=.5)
    learn = fit(learner(cb), 1)
    once = int(cb.positives.found.sum())
    fit(learn, 3)
    n = cb.positives
    assert 0 < int(n.found.sum()) <= float((.5*n.given).sum()) + 3 and once > 0


def test_no_labels_at_all():
    cb = COMIC(warmup=0., tau=0.)
    learn = fit(learner(cb, torch.zeros(24, 3)))
    assert not cb.recalled.any()
    assert all(p.isfinite().all() for p in learn.model.parameters())

def test_one_label_a_sample_counts_as_one_of_several():
    x = torch.rand(16, 1, 8, 8)
    dls = from_arrays(x, torch.arange(16) % 4, x, torch.arange(16) % 4, bs=8)
    cb = COMIC(warmup=0., tau=0.)
    fit(Learner(dls, small_cnn(dls, width=2), cbs=cb, loss_func=nn.CrossEntropyLoss()))
    assert cb.recalled.any()

def test_precision_leaves_out_what_never_occurs():
    y = torch.zeros(24, 3)
    y[:4, 0] = 1
    learn = learner([], y)
    with learn.no_bar():
        ap = precision_by_class(learn)
        assert ap.isnan().tolist() == [False, True, True]
        assert mean_precision(learn) == pytest.approx(float(ap[0]))

def test_the_data():
    dls = two_digits(300, 50, seed=3)
    given = dls.train_ds.arrays.y.cpu()
    assert dls.train_ds.arrays.x.shape == (300, 1, 14, 28)
    assert (given <= dls.all_labels).all()
    assert float(given.sum()/dls.all_labels.sum()) == pytest.approx(.5, abs=.1)
    counts = dls.all_labels.sum(0)
    assert counts[0] > 5*counts[9]
    assert dls.all_labels.sum(1).max() == 2
    valid = two_digits(300, 50, seed=4).valid_ds.arrays.y
    assert torch.equal(valid, dls.valid_ds.arrays.y)
    for bad in (dict(hidden=-1), dict(imbalance=.5)):
        with pytest.raises(LabelKitError): two_digits(**bad)


def test_positives_are_counted_by_epoch():
    n = Positives(2)
    n.count("given", torch.tensor([[1., 0.], [1., 1.]]))
    n.count("found", torch.tensor([[False, True]]))
    assert n.total.tolist() == [2., 2.]
    again = Positives(2)
    again.load_state_dict(n.state_dict())
    again.next_epoch()
    assert again.usual.tolist() == [2., 1.] and again.given.tolist() == [0., 0.]
    assert n.usual.tolist() == [0., 0.] and again.total.tolist() == [2., 1.]


@pytest.mark.parametrize("clip", [0., .05])
def test_a_label_that_the_network_is_sure_is_none_has_a_gradient(clip):
    "-log p of a positive has the slope p-1, however small p is"
    z = torch.full((1, 1), -50., requires_grad=True)
    loss = multi_focal_loss(z, torch.ones(1, 1), torch.ones(1), clip=clip)
    torch.testing.assert_close(loss, torch.tensor(50.))
    torch.testing.assert_close(torch.autograd.grad(loss, z)[0], torch.full((1, 1), -1.))
    if clip: return
    z = torch.full((1, 1), 50., requires_grad=True)
    loss = multi_focal_loss(z, torch.zeros(1, 1), torch.ones(1), clip=0.)
    torch.testing.assert_close(torch.autograd.grad(loss, z)[0], torch.ones(1, 1))
