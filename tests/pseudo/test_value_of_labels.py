"ValueOfLabels: the authors' numbers, two trainings in one, and what counts how much"
import json

import pytest
import torch
from fastai.callback.core import Callback
from torch import tensor
from torch.nn import functional as F

from contract import data, fit, learner, same, weights
from labelkit.errors import LabelKitError
from labelkit.pseudo.value_of_labels import (
    ValueOfLabels, a_cycle_each, effective_weights, margin_loss, reweighting,
)
from mix.mixtools import Keep
from places import REFERENCES

close = torch.testing.assert_close


def test_reference():
    (ref,) = json.loads((REFERENCES/"value_of_labels.json").read_text())
    i = ref["inputs"]
    want = ref["expected"]
    counts = tensor(i["counts"])
    for epoch,w in zip(i["epochs"], want["weights"]):
        ours = effective_weights(counts) if epoch >= 160 else torch.ones(4)
        close(ours, tensor(w), atol=1e-4, rtol=1e-5)
    z = tensor(i["logits"])
    y = tensor(i["labels"])
    for epoch in (0, 160):
        w = effective_weights(counts) if epoch else None
        loss = margin_loss(z, y, counts, i["max_m"], i["s"], w)
        assert loss.item() == pytest.approx(want["ldam"][f"epoch_{epoch}"], rel=1e-4)


class TestFunctions:
    def test_weights(self):
        close(effective_weights(tensor([7, 7, 7])), torch.ones(3))
        close(effective_weights(tensor([1, 100]), beta=0.), torch.ones(2))
        # the limit: by the inverse count
        for one in (1, 1.):
            close(effective_weights(tensor([1, 3]), beta=one), tensor([1.5, .5]))
        close(effective_weights(tensor([1, 3]), beta=1-1e-9), tensor([1.5, .5]))
        w = effective_weights(tensor([0, 10, 1000]))
        assert w.isfinite().all() and w.mean().item() == pytest.approx(1)

    def test_the_rarest_class_has_the_whole_margin(self):
        z = torch.zeros(1, 2)
        rare,often = (margin_loss(z, tensor([k]), tensor([1, 16]), .5, 1.) for k in (0, 1))
        close(rare, torch.tensor(.5).exp().log1p())
        close(often, torch.tensor(.25).exp().log1p())


class Rates(Callback):
    "The learning rate of each step"
    order = 99
    def before_fit(self): self.seen = []
    def before_batch(self):
        if self.training: self.seen.append(float(self.learn.opt.hypers[-1]["lr"]))


def rates(cb, epochs, fit):
    learn = learner([cb, seen := Rates()] if cb else [seen := Rates()])
    with learn.no_bar(), learn.no_logging(): fit(learn, epochs, 1e-2)
    return tensor(seen.seen)


class TestTwoTrainings:
    def test_each_has_its_cycle(self):
        both = rates(ValueOfLabels(first=.5), 4, a_cycle_each)
        a,b = both.chunk(2)
        one = rates(None, 2, lambda learn, n, lr: learn.fit_one_cycle(n, lr))
        assert len(a) == len(one)
        close(a, one)
        # the last step of all belongs to both halves' schedules alike
        close(b, one, atol=1e-6, rtol=1e-3)

    def test_one_training_has_one(self):
        one = rates(None, 2, lambda learn, n, lr: learn.fit_one_cycle(n, lr))
        close(rates(ValueOfLabels(first=1.), 2, a_cycle_each), one)
        close(rates(None, 2, a_cycle_each), one)

    def test_the_last_part_of_each_reweighs(self):
        found = [reweighting(e, 10, [0, 4], .25) for e in range(10)]
        assert [e for e in range(10) if found[e]] == [3, 8, 9]
        assert [reweighting(e, 3, [0, 3], 1.) for e in range(3)] == [True]*3
        assert not any(reweighting(e, 10, [0, 4], 0.) for e in range(10))


def test_the_second_training_begins_where_the_first_did():
    class Peek(Callback):
        order = -1
        def before_fit(self): self.at = {}
        def before_batch(self):
            if self.training and self.iter == 0: self.at[self.epoch] = weights(self.learn)
    learn = learner([cb := ValueOfLabels(first=.5, reweight=0.), peek := Peek()])
    begin = weights(learn)
    fit(learn, 4)
    assert same(peek.at[0], begin) and same(peek.at[2], begin)
    assert not same(peek.at[1], begin) and not same(peek.at[3], begin)
    f = cb.ledger.frame()
    f = f[f.epoch >= 0]
    assert len(f) == 96 and f.accepted.all() and (f.epoch == 2).all()
    assert (cb.label[f.id.to_numpy()] == tensor(f.suggested_label.to_numpy())).all()


def test_what_a_batch_is_told():
    fit(learner([cb := ValueOfLabels(first=.5, reweight=.5), keep := Keep()]), 4)
    n = len(keep.seen)//4
    assert not keep.seen[0].losses and not keep.seen[2*n-1].losses
    assert (keep.seen[0].weights == 1).all()
    assert (keep.seen[2*n-1].weights != 1).any()
    s = keep.seen[2*n]
    y = cb.label[s.unlabeled_ids]
    close(s.losses["value_of_labels"][0], F.cross_entropy(s.outputs["value_of_labels"], y))
    assert (s.weights == 1).all()
    s = keep.seen[-1]
    w = effective_weights(cb.counts)
    close(s.weights, w[s.y])
    y = cb.label[s.unlabeled_ids]
    want = F.cross_entropy(s.outputs["value_of_labels"], y, weight=w)
    close(s.losses["value_of_labels"][0], want)


def test_unlabeled_samples_of_rare_classes_count_more_at_the_end():
    "Labels of many classes: of a single one the weights would cancel"
    class Mixed(ValueOfLabels):
        name = "value_of_labels"
        def relabel(self):
            super().relabel()
            self.label = torch.arange(len(self.label)) % 10
    fit(learner([cb := Mixed(first=0., reweight=1.), keep := Keep()]))
    s = keep.seen[-1]
    y = cb.label[s.unlabeled_ids]
    z = s.outputs["value_of_labels"].detach()
    w = effective_weights(cb.counts)
    each = F.cross_entropy(z, y, reduction="none")
    close(s.losses["value_of_labels"][0].detach(), (each*w[y]).sum()/w[y].sum())
    assert abs(each.mean() - (each*w[y]).sum()/w[y].sum()) > 1e-3


def test_counts_are_of_labels_given_and_predicted():
    learn = learner([cb := ValueOfLabels(first=1.)])
    fit(learn)
    given = learn.dls.given
    assert torch.equal(cb.counts, given[given >= 0].bincount(minlength=10))
    assert (cb.label == -1).all()
    fit(learner([cb := ValueOfLabels(first=0.)]))
    assert int(cb.counts.sum()) == 160


@pytest.mark.parametrize("first,n", [(.5, 8), (.25, 8), (1., 5)])
def test_rare_classes_count_more_at_the_end_of_each_training(first, n):
    "In the last fifth, of that training and not of both"
    cb = ValueOfLabels(first=first, reweight=.4)
    fit(learner([cb, keep := Keep()]), n)
    begins = keep.seen[::len(keep.seen)//n]
    found = [s.own(cb).weights is not None for s in begins]
    at = round(first*n)
    want = [k >= at - round(.4*at) for k in range(at)]
    want += [k >= n-at - round(.4*(n-at)) for k in range(n-at)]
    assert found == want


def test_the_optimiser_begins_anew_too():
    class Spy(ValueOfLabels):
        name = "value_of_labels"
        def before_steps(self):
            super().before_steps()
            found.append(any("grad_avg" in o for o in self.learn.opt.state.values()))
    found = []
    fit(learner([Spy(first=.5)]), 2)
    assert found == [False, False]


def test_a_second_fit_begins_with_the_labels_alone():
    "And its pseudo-labels are counted once, beside the given ones"
    learn = learner([cb := ValueOfLabels(first=.5, reweight=0.), keep := Keep()])
    for _ in range(2):
        fit(learn, 2)
        told = [bool(s.losses) for s in keep.seen]
        n = len(learn.dls.train)
        assert told == [False]*n + [True]*n
        labels = torch.cat([learn.dls.given[learn.dls.given >= 0], cb.label[cb.label >= 0].cpu()])
        assert torch.equal(cb.counts, labels.bincount(minlength=10))


def test_a_start_without_labels():
    learn = learner([cb := ValueOfLabels(first=1., pretraining=2, reweight=0.)])
    begin = weights(learn)
    fit(learn)
    assert not same(cb.start, begin)
    assert torch.equal(cb.start["head.weight"], begin["head.weight"])


def test_refused():
    for k,v in dict(first=2, reweight=-1, beta=2, pretraining=-1).items():
        with pytest.raises(LabelKitError, match=f"{k}={v}"): ValueOfLabels(**{k: v})
    with pytest.raises(LabelKitError, match="needs unlabeled samples"):
        fit(learner([ValueOfLabels()], dls=data(labeled=None)))


def test_the_limit_of_effective_numbers_is_the_inverse_count():
    w = effective_weights(torch.tensor([1, 2, 4]), 1.)
    torch.testing.assert_close(w, torch.tensor([12/7, 6/7, 3/7]))
    torch.testing.assert_close(w, effective_weights(torch.tensor([1, 2, 4]), 1-1e-9))
