"""What holds for every pseudo-labeling technique, and schedules seen as a whole."""
import math

import pytest
import torch
from fastai.basics import Callback, DataLoader, DataLoaders, Learner
from torch import nn
from torch.nn import functional as F

from contract import SLUGS, build, fit, learner, same, weights
from labelkit.core.technique import registry
from labelkit.data.loaders import label_dls
from labelkit.errors import LabelKitError
from labelkit.pseudo.base import PseudoLabel
from labelkit.pseudo.divcon import DivCon
from labelkit.pseudo.fixmatch import FixMatch
from labelkit.pseudo.flexmatch import FlexMatch
from labelkit.pseudo.inpl import InPL
from labelkit.pseudo.iomatch import IOMatch
from labelkit.pseudo.mean_teacher import MeanTeacher
from labelkit.pseudo.uda import UDA
from pseudo.classmaps import dense

FAMILY = [o for o in SLUGS if issubclass(registry[o].cls, PseudoLabel)]


class Losses(Callback):
    "Each batch's losses and their weights, and what `look` says of the record"
    order = 6
    def __init__(self, look=lambda s: None):
        self.look = look
        self.seen = []
    def after_loss(self):
        if not self.training: return
        s = self.learn.supervision.record
        self.seen.append(({k: (float(v), w) for k,(v,w) in s.losses.items()}, self.look(s)))


@pytest.mark.parametrize("slug", [o for o in FAMILY if o not in ("mean_teacher", "self_training")])
def test_no_gradient_reaches_the_view_that_teaches(slug):
    "The target is the guess, not something that moves towards the student"
    cb = build(slug, active=True)
    found = []

    def look(s):
        weak = s.outputs.get(f"{cb.name}.weak")
        if weak is None: return found.append("a teacher's")
        loss = s.losses[cb.name][0]
        (g,) = torch.autograd.grad(loss, weak, retain_graph=True, allow_unused=True)
        found.append("none" if g is None else float(g.abs().max()))
    fit(learner([cb, Losses(look)], slug=slug))
    assert set(found) <= {"none", 0., "a teacher's"}


@pytest.mark.parametrize("slug", [o for o in FAMILY if "segmentation" in registry[o].cls.targets])
def test_class_maps_where_they_are_declared(slug):
    cb = build(slug, active=True)
    learn = dense(cb)
    assert all(torch.isfinite(v).all() for v in weights(learn).values())
    assert math.isfinite(learn.supervision.parts[slug][-1])
    f = cb.ledger.frame()
    assert len(f) == 32 and f.confidence.between(0, 1).all()


@pytest.mark.parametrize("technique", [FixMatch(0.), FlexMatch(.15), UDA(0.), InPL(0.)])
def test_the_weak_view_may_have_a_pass_of_its_own(technique):
    "Without gradient; the guesses and the loss are made as before"
    kwargs = technique.settings() | dict(weak_grad=False)
    cb = type(technique)(**kwargs)

    def look(s):
        weak = s.outputs[f"{cb.name}.weak"]
        assert not weak.requires_grad and s.outputs[f"{cb.name}.strong"].requires_grad
        return list(s.requests),list(s.apart),len(weak) == len(s.unlabeled)
    learn = fit(learner([cb, kept := Losses(look)]))
    name = cb.name
    assert all(o == ([f"{name}.strong"], [f"{name}.weak"], True) for _,o in kept.seen)
    assert all(torch.isfinite(v).all() for v in weights(learn).values())
    joint = fit(learner([type(technique)(**technique.settings())]))
    assert not same(weights(learn), weights(joint))


def test_the_ramp_of_mean_teacher_begins_low_never_falls_and_ends_high():
    kept = Losses()
    fit(learner([MeanTeacher(weight=10., ramp=.5), kept]), 6)
    w = [o["mean_teacher"][1] for o,_ in kept.seen]
    assert w[0] == pytest.approx(10*math.exp(-5)) and w[-1] == 10.
    assert all(b >= a for a,b in zip(w, w[1:])) and len(set(w)) > 6
    half = w[len(w)//4]  # at half of the ramp
    assert half == pytest.approx(10*math.exp(-5/4), rel=.3)


def test_the_ledger_of_mean_teacher_has_its_answers_about_unlabeled_samples():
    "Also where the teacher was asked about labeled ones in the same breath"
    cb = MeanTeacher(weak=lambda x: x, strong=lambda x: x, batch_stats=False)

    def look(s):
        said = cb.teacher(s.unlabeled).softmax(1)
        noted = {k: v[s.unlabeled_ids] for k,v in cb.ledger.columns.items()}
        assert torch.equal(noted["suggested_label"], said.argmax(1))
        torch.testing.assert_close(noted["confidence"], said.amax(1))
        return True
    learn = fit(learner([cb, kept := Losses(look)]))
    assert kept.seen and (cb.ledger.columns["epoch"][learn.dls.given >= 0] == -1).all()


def test_heads_judge_the_weak_view():
    "What the heads say of the weak view decides; the strong one learns"
    def look(cb, judged):
        def compare(s):
            weak = s.features(f"{cb.name}.weak").detach()
            want,got = judged(weak, s.own(cb))
            torch.testing.assert_close(got, want)
            assert not torch.equal(weak, s.features(f"{cb.name}.strong").detach())
            return True
        return Losses(compare)
    fit(learner([cb := IOMatch(), seen := look(cb, lambda f, own: (cb.experts(f)[0], own.binary))]))
    assert seen.seen
    judged = lambda f, own: (cb.experts(f).float().softmax(2), own.probs)
    fit(learner([cb := DivCon(), seen := look(cb, judged)]))
    assert seen.seen


# they label everything at once, at the beginning of a round
AT_ONCE = ("self_training", "gpc", "prediction_pretraining", "spl", "value_of_labels")

@pytest.mark.parametrize("slug", [o for o in FAMILY if o not in AT_ONCE])
def test_the_ledger_says_in_which_epoch(slug):
    cb = build(slug, active=True)
    fit(learner([cb], slug=slug), 2)
    assert cb.ledger.epochs == [0, 1]
    assert set(cb.ledger.columns["epoch"].tolist()) - {-1} <= {0, 1}
    assert cb.ledger.columns["epoch"].max() == 1


def masks(n=24, size=8):
    "Images whose brightness tells the class of each pixel"
    x = torch.rand(n, 1, size, size)
    return x,(x[:,0] > .5).long()


def test_dense_predictions():
    "A label for each pixel: masks by pixel, views that move nothing, a loss by hand"
    x,y = masks()
    items = list(zip(x, y))
    dls = label_dls(DataLoaders(DataLoader(items[:8], bs=4), DataLoader(items[:8], bs=4)))
    dls.c = 2
    dls.unlabeled = DataLoader([(o,) for o in x[8:]], bs=8)
    dls.unlabeled.first_id = 8
    dls.n_ids = 24
    dls.train.first_id = 0
    net = nn.Conv2d(1, 2, 1)
    cb = FixMatch(threshold=.5)

    def look(s):
        weak,strong = (s.outputs[f"fixmatch.{o}"].detach() for o in ("weak", "strong"))
        assert weak.shape == (8, 2, 8, 8) and torch.equal(s.own(cb).weak, s.unlabeled)
        p = weak.softmax(1)
        ce = F.cross_entropy(strong, p.argmax(1), reduction="none")*(p.amax(1) >= .5)
        return float(ce.mean())
    learn = Learner(dls, net, loss_func=nn.CrossEntropyLoss(), cbs=[cb, kept := Losses(look)])
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
    assert kept.seen
    for losses,by_hand in kept.seen:
        assert losses["fixmatch"][0] == pytest.approx(by_hand, rel=1e-5)


def test_settings_are_told():
    assert repr(FixMatch()) == "FixMatch()"
    assert repr(FixMatch(threshold=.8, weight=2.)) == "FixMatch(threshold=0.8, weight=2.0)"
    assert repr(MeanTeacher(ema_decay=.9)) == "MeanTeacher(ema_decay=0.9)"


@pytest.mark.parametrize("slug", FAMILY)
def test_one_name_and_one_switch(slug):
    card = registry[slug]
    assert card.cls.__module__ == f"labelkit.pseudo.{slug}"
    cb = build(slug, p=0.)
    assert cb.off and cb.name == slug
    assert build(slug, weight=0.).off


def test_several_labels_are_refused_in_words():
    x = torch.rand(16, 1, 8, 8)
    y = torch.randint(0, 2, (16, 3)).float()
    items = list(zip(x, y))
    dls = DataLoaders(DataLoader(items, bs=4), DataLoader(items, bs=4))
    dls.c = 3
    dls.unlabeled = DataLoader([(o,) for o in x], bs=8)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    learn = Learner(dls, net, loss_func=nn.BCEWithLogitsLoss(), cbs=FixMatch(0.))
    with pytest.raises(LabelKitError, match="kind 'multi', and FixMatch works on single, soft"):
        fit(learn)


def test_a_share_of_the_batches():
    kept = Losses()
    fit(learner([FixMatch(0., p=.5), kept]), 6)
    acted = [("fixmatch" in o) for o,_ in kept.seen]
    assert .2 < sum(acted)/len(acted) < .8
