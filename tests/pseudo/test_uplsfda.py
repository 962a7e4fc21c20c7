"UPL-SFDA: the authors' mask and entropy, which pass teaches which, and that no label is read"
import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn, tensor
from torch.nn import functional as F

from contract import data, fit, learner
from labelkit.errors import LabelKitError
from labelkit.lesson.batch import look
from labelkit.parts.phases import weights_of
from labelkit.pseudo.uplsfda import (
    UPLSFDA, HeadCopies, believed_loss, each_head, mean_entropy, reliable_labels,
)
from places import REFERENCES

close = torch.testing.assert_close


def test_reference():
    "Before the largest component is taken, which labels of whole images do not have"
    (ref,) = json.loads((REFERENCES/"uplsfda.json").read_text())
    i,want = (ref[k] for k in ("inputs", "expected"))
    first,second = (tensor(i[f"{o}_pass_head_probs"]) for o in ("first", "second"))
    label,_,mask = reliable_labels(first, i["threshold"])
    by_class = tensor(want["above_threshold_before_component"])
    for c in range(by_class.shape[1]):
        assert torch.equal((mask & (label == c)).long(), by_class[:, c])
    close(mean_entropy(second), tensor(want["mean_entropy"]), atol=1e-5, rtol=0)


def test_the_mean_decides_and_not_its_members():
    probs = tensor([[[.99, .01]], [[.01, .99]]])
    assert not reliable_labels(probs, .6)[2]
    assert not reliable_labels(tensor([[[.95, .05]]]), .95)[2]  # strictly above
    assert mean_entropy(probs) > mean_entropy(probs[:1])


class TestPasses:
    def test_gradient_comes_from_the_second_pass_alone(self):
        o = look(learner([UPLSFDA(threshold=0.)]))
        assert o.record.labeled_weight == 0
        assert list(o.record.apart) == ["uplsfda.first"]
        assert list(o.record.requests) == ["uplsfda.second"]
        assert len(o.record.requests["uplsfda.second"]) == 4*len(o.record.x)
        first,second = (o.requests[f"uplsfda.{k}"] for k in ("first", "second"))
        assert not torch.equal(first, second)  # other draws

    def test_every_term_by_hand(self):
        "Each head its own view and features; the first pass labels, the second one learns"
        class Kept(UPLSFDA):
            name = "uplsfda"
            def ask(self, s, name):
                out = super().ask(s, name)
                said.append((name, out.detach()))
                return out
        said = []
        o = look(learner([Kept(threshold=.14, weight=3., entropy=.5)]))
        (one,first),(two,second) = said
        assert (one, two) == ("first", "second") and first.shape == (4, len(o.record.x), 10)
        assert not torch.equal(first, second)
        label,_,mask = reliable_labels(first.softmax(2), .14)
        assert mask.any() and not mask.all()
        each = torch.stack([F.cross_entropy(z, label, reduction="none") for z in second])
        value,weight = o.losses["uplsfda"]
        close(value.detach(), each[:, mask].mean())
        assert weight == 3. and o.losses["uplsfda.entropy"][1] == 1.5
        close(o.losses["uplsfda.entropy"][0].detach(), mean_entropy(second.softmax(2)))

    def test_each_head_sees_a_draw_of_its_own(self):
        o = look(learner([UPLSFDA(threshold=0.)]))
        for name in ("first", "second"):
            views = o.requests[f"uplsfda.{name}"].chunk(4)
            assert not any(torch.equal(views[0], v) for v in views[1:])

    @pytest.mark.parametrize("dropout", [0., .25, .9])
    def test_dropout_keeps_the_mean(self, dropout):
        "What is left counts as much more"
        cb = UPLSFDA(heads=2, dropout=dropout)
        learn = learner([cb])
        fit(learn)
        s = SimpleNamespace(features=lambda name: torch.ones(4000, 16))
        seen = []
        said = lambda f: seen.append(f) or torch.zeros(len(f), 10)
        cb.copies.module.forward = lambda features: list(map(said, features))
        cb.ask(s, "second")
        f = seen[0]
        assert float((f == 0).float().mean()) == pytest.approx(dropout, abs=.02)
        assert float(f.mean()) == pytest.approx(1, abs=.05)

    def test_the_view_that_was_asked_for(self):
        o = look(learner([UPLSFDA(threshold=0., weak=lambda x: x + 7)]))
        assert all(o.requests[f"uplsfda.{k}"].min() >= 7 for k in ("first", "second"))

    def test_nothing_believed(self):
        o = look(learner([UPLSFDA(threshold=1.)]))
        assert o.losses["uplsfda"][0] == 0 and o.losses["uplsfda.entropy"][0] > 0

    def test_all_heads_begin_alike_and_learn(self):
        cb = UPLSFDA(threshold=0., heads=3)
        learn = learner([cb])
        begin = learn.model.head.weight.detach().clone()
        fit(learn)
        heads = [learn.model.head, *cb.copies.module.copies]
        assert len(heads) == 3
        for h in heads: assert not torch.equal(h.weight, begin)
        assert not torch.equal(heads[0].weight, heads[1].weight)


def test_labels_have_no_part():
    found = []
    for shift in (0, 1):
        dls = data(labeled=None)
        y = dls.train_ds.arrays.y
        y.copy_((y + shift) % 10)
        learn = learner([UPLSFDA(threshold=0.)], dls=dls)
        fit(learn)
        found.append(weights_of(learn))
    assert all(torch.equal(found[0][k], found[1][k]) for k in found[0])


def test_errors():
    with pytest.raises(LabelKitError, match="heads=1"): UPLSFDA(heads=1)
    with pytest.raises(LabelKitError, match="threshold=95"): UPLSFDA(threshold=95)


def test_each_head_sees_its_own_view_and_part():
    head = nn.Linear(4, 2, bias=False)
    copies = HeadCopies(head, 3)
    f = torch.ones(6, 4)
    z = each_head(head, copies, f, 3, 0., torch.Generator())
    torch.testing.assert_close(z, head(f).unflatten(0, (3, 2)))
    half = each_head(head, copies, f, 3, .5, torch.Generator().manual_seed(0))
    assert len(half.flatten(0, 1).unique(dim=0)) > 1


def test_what_is_believed_is_learned_by_every_head():
    z = torch.randn(3, 4, 5)
    label = torch.tensor([0, 1, 2, 3])
    mask = torch.tensor([True, False, True, False])
    want = torch.stack([F.cross_entropy(o[mask], label[mask]) for o in z]).mean()
    torch.testing.assert_close(believed_loss(z, label, mask), want)
    assert believed_loss(z, label, mask & False) == 0
