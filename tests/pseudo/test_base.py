"""Pseudo-labeling: values of the official code, values worked by hand, and the mistakes that would
go unnoticed."""
import json, math, pickle
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from fastai.basics import Callback, DataLoader, DataLoaders, Learner
from torch import nn, tensor
from torch.nn import functional as F

from contract import data, fit, learner, model, same, weights
from labelkit.core.checkpoint import Checkpoint
from labelkit.data.loaders import label_dls
from labelkit.errors import LabelKitError
from labelkit.data.samples import Samples, predict_unlabeled
from labelkit.parts.rounds import round_epochs
from labelkit.pseudo.base import (
    Guess,
    above_margin,
    above_threshold,
    consistency_loss,
    hard_target,
    ramp_up,
    sharpen,
    top_k,
    top_k_per_class,
)
from labelkit.mix.adautomix import AdAutoMix
from labelkit.pseudo.fixmatch import FixMatch
from labelkit.pseudo.future_self_training import FutureSelfTraining
from labelkit.pseudo.mean_teacher import MeanTeacher, agreement_loss
from labelkit.pseudo.simmatchv2 import SimMatchV2
from labelkit.pseudo.self_training import SelfTraining, surest

still = lambda x: x  # a view that changes nothing


# Selection, targets, losses

def test_fixmatch_reference(root):
    (ref,) = [
        o
        for o in json.loads((root / "tests/reference/pseudo.json").read_text())
        if o["name"] == "fixmatch_mask_and_loss"
    ]
    weak = tensor(ref["inputs"]["logits_weak"])
    strong = tensor(ref["inputs"]["logits_strong"])
    cb = FixMatch(threshold=ref["inputs"]["threshold"])
    g = Guess(weak, None)
    target = cb.teach(g)
    mask = cb.believe(g)
    assert target.argmax(1).tolist() == ref["expected"]["pseudo_label"]
    assert mask.float().tolist() == ref["expected"]["mask"]
    assert consistency_loss(strong, target, mask).item() == pytest.approx(
        ref["expected"]["loss"], abs=ref["tolerance_abs"]
    )


def test_selection_by_hand():
    p = tensor([[.5,.3,.2], [.1,.8,.1], [.35,.33,.32], [.1,.6,.3]])
    assert above_threshold(p, .5).tolist() == [True, True, False, True]     # 0.5 itself is enough
    assert above_threshold(p, tensor([.6,.6,.3,.6])).tolist() == [False, True, True, True]
    assert top_k(p, 2).tolist() == [False, True, False, True]
    assert top_k(p, 9).all() and not top_k(p, 0).any()
    assert top_k_per_class(p, 1).tolist() == [True, True, False, False]
    assert above_margin(p, .25).tolist() == [False, True, False, True]
    assert hard_target(p).argmax(1).tolist() == [0, 1, 0, 1] and (hard_target(p).sum(1) == 1).all()


def test_sharpening_is_not_ignored():
    z = tensor([[math.log(3), 0.]])
    torch.testing.assert_close(sharpen(z, .5), tensor([[.9, .1]]))           # 3², 1
    torch.testing.assert_close(sharpen(z, 1.), tensor([[.75, .25]]))


def test_agreement_by_hand():
    student = tensor([[0.,0.,0.], [math.log(2),0.,0.]])
    teacher = tensor([[math.log(2),0.,0.], [math.log(2),0.,0.]])
    # (1/3,1/3,1/3) against (1/2,1/4,1/4): squares 1/36 + 1/144 + 1/144 = 1/24; the second row
    # agrees
    assert agreement_loss(student, teacher).item() == pytest.approx(1/24/3/2, rel=1e-5)
    kl = .5*math.log(1.5) + .5*math.log(.75)
    assert agreement_loss(student, teacher, "kl").item() == pytest.approx(kl/2, rel=1e-4)


@pytest.mark.parametrize("loss", ["mse", "kl"])
def test_agreement_is_over_classes_and_not_over_samples(loss):
    z = torch.randn(6, 4)
    t = torch.randn(6, 4)
    one_by_one = torch.stack([agreement_loss(z[i:i+1], t[i:i+1], loss) for i in range(6)]).mean()
    # a softmax over the samples would give something else
    torch.testing.assert_close(agreement_loss(z, t, loss), one_by_one)
    torch.testing.assert_close(
        agreement_loss(z + 5 * torch.randn(6, 1), t + torch.randn(6, 1), loss),
        one_by_one,
        atol=1e-5,
        rtol=1e-4,
    )
    assert agreement_loss(z, z, loss).abs() < 1e-6


@pytest.mark.parametrize("loss", ["mse", "kl"])
def test_agreement_teaches_the_student_only(loss):
    z = torch.randn(5, 3, requires_grad=True)
    t = torch.randn(5, 3, requires_grad=True)
    agreement_loss(z, t, loss).backward()
    assert z.grad.abs().max() > 0 and t.grad is None


def test_ramp():
    assert ramp_up(0) == ramp_up(-1) == math.exp(-5) and ramp_up(1) == ramp_up(2) == 1
    assert ramp_up(.5) == pytest.approx(math.exp(-1.25))


# MeanTeacher

class Agreement(Callback):
    "The agreement of each batch and its largest gradient"
    order = 6
    def before_fit(self):
        self.values = []
        self.grads = []
    def after_loss(self):
        if not self.training: return
        value,_ = self.learn.supervision.record.losses["mean_teacher"]
        params = list(self.learn.model.parameters())
        self.grads.append(
            max(g.abs().max().item() for g in torch.autograd.grad(value, params, retain_graph=True))
        )
        self.values.append(value.item())


def test_a_teacher_is_not_the_student_itself():
    """Even in the same view they differ after a step, as the teacher lags behind; a student
    compared with itself would have no loss and no gradient"""
    cb = MeanTeacher(
        weight=10.0, ema_decay=0.9, weak=still, strong=still, ramp=0.0, augment_labeled=False
    )
    learn = fit(learner([cb, seen := Agreement()]))
    assert cb.teacher.model is not learn.model
    mine = cb.teacher.model.state_dict()
    theirs = learn.model.state_dict()
    assert not any(mine[k].data_ptr() == theirs[k].data_ptr() for k in mine) and not same(
        mine, theirs
    )
    assert seen.values[-1] > 0 and seen.grads[-1] > 0


def test_the_teacher_is_the_average_and_is_never_trained():
    cb = MeanTeacher(ema_decay=.75)
    history = []

    class Weights(Callback):
        order = 1000
        def before_train(self): history.append(self.learn.model.head.weight.detach().clone())
        def after_step(self): history.append(self.learn.model.head.weight.detach().clone())
    fit(learner([cb, Weights()]))
    mean = history[0]
    for i,w in enumerate(history[1:]): mean = torch.lerp(w, mean, min(.75, 1-1/(i+2)))
    torch.testing.assert_close(cb.teacher.model.head.weight, mean)
    assert (
        all(p.grad is None and not p.requires_grad for p in cb.teacher.model.parameters())
        and cb.teacher.steps == len(history) - 1
    )


@pytest.mark.parametrize(
    "make",
    [MeanTeacher, SimMatchV2, AdAutoMix, lambda: FutureSelfTraining(deep=0)],
    ids=["meanteacher", "simmatchv2", "adautomix", "futureselftraining"],
)
def test_a_step_skipped_by_mixed_precision_does_not_move_the_teacher(make):
    class Overflow(Callback):
        name = "mixed_precision"
        order = 10
        def before_step(self): self.skipped = self.learn.iter == 0
    cb = make()
    learn = fit(learner([cb, Overflow()]))
    assert cb.teacher.steps == len(learn.dls.train) - 1


def test_a_search_does_not_move_the_teacher():
    learn = learner([cb := MeanTeacher()])
    before = weights(learn)
    with learn.no_bar(), learn.no_logging(): learn.lr_find(num_it=6, show_plot=False)
    assert (
        cb.teacher.steps == 0
        and same(before, cb.teacher.model.state_dict())
        and not cb.ledger.epochs
    )


def test_the_teacher_predicts_and_the_student_comes_back():
    learn = fit(learner([cb := MeanTeacher(ema_decay=.99)]), 2)
    student = learn.model
    with learn.no_bar(), learn.no_logging():
        loss = learn.validate()[0]
        with cb.averaged(): averaged = learn.validate()
        assert learn.model is student and learn.validate()[0] == loss != averaged[0]
        with pytest.raises(KeyError), cb.averaged(): raise KeyError
    assert learn.model is student
    x,y = learn.dls.valid.one_batch()
    assert averaged[1] == pytest.approx(
        (deepcopy(cb.teacher.model).eval()(x).argmax(1) == y).float().mean().item()
    )
    before = weights(learn)
    assert cb.teacher(x).shape == (len(x), 10) and same(before, weights(learn))


def test_labeled_samples_agree_too_unless_told():
    for only,extra in ((False, 16), (True, 0)):
        sizes = []

        class Sizes(Callback):
            order = 6
            def after_pred(self):
                if self.training:
                    sizes.append(len(self.learn.supervision.record.outputs["mean_teacher"]))
        fit(learner([MeanTeacher(unlabeled_only=only), Sizes()]))
        assert set(sizes) == {32 + extra}


def test_a_pickled_mean_teacher_trains_again():
    learn = fit(learner([cb := MeanTeacher()]))
    assert cb.teacher.model is not None
    cb.learn = None
    again = pickle.loads(pickle.dumps(cb))
    assert again.teacher is None
    with pytest.raises(LabelKitError, match="no teacher"): again.averaged().__enter__()
    learn = fit(learner([again]))
    assert learn.mean_teacher.teacher.model is not None
    copied = deepcopy(MeanTeacher(weight=3.))
    assert copied.weight == 3. and copied.teacher is None


@pytest.mark.parametrize(
    "kwargs,said",
    [
        (dict(weight=-1.0), "weight=-1.0"),
        (dict(ema_decay=1.5), "ema_decay=1.5"),
        (dict(ramp=2), "ramp=2"),
        (dict(loss="l2"), "loss='l2'.*'mse', 'kl'"),
        (dict(weak=3), "3"),
    ],
)
def test_mean_teacher_bad_input(kwargs, said):
    with pytest.raises(LabelKitError, match=said): MeanTeacher(**kwargs)


def test_mean_teacher_without_training():
    learn = learner([MeanTeacher()])
    with pytest.raises(LabelKitError, match="train with it first"):
        learn.mean_teacher.averaged().__enter__()


# SelfTraining

def test_rounds_by_hand():
    assert round_epochs(10, .5, 2) == [5, 7]
    assert round_epochs(10, 0., 10) == list(range(10))
    assert round_epochs(4, .5, 9) == [2, 3]
    assert round_epochs(9, 1/3, every=3) == [3, 6]
    assert round_epochs(5, 1., 3) == []


def test_each_unlabeled_sample_once_in_order():
    dls = data()
    xs,ids = zip(*((b.inputs[0], b.ids) for b in Samples(dls.unlabeled).batches()))
    xs = torch.cat(xs)
    ids = torch.cat(ids)
    assert ids.tolist() == (dls.given == -1).nonzero().flatten().tolist()
    torch.testing.assert_close(xs, dls.unlabeled.dataset.arrays.x[ids])


def test_a_prediction_disturbs_nothing():
    import random
    import numpy as np
    learn = learner()
    learn.model.body[0].eval()
    rng = learn.dls.unlabeled.rng.getstate()
    before = weights(learn)
    modes = [m.training for m in learn.model.modules()]
    states = random.getstate(),np.random.get_state()[1].tolist(),torch.get_rng_state()
    ids,logits = predict_unlabeled(learn)
    assert (
        random.getstate() == states[0]
        and np.random.get_state()[1].tolist() == states[1]
        and torch.equal(torch.get_rng_state(), states[2])
    )
    assert learn.dls.unlabeled.rng.getstate() == rng and same(before, weights(learn))
    assert [m.training for m in learn.model.modules()] == modes
    x = learn.dls.unlabeled.dataset.arrays.x[ids]
    torch.testing.assert_close(logits, deepcopy(learn.model).eval()(x), atol=1e-5, rtol=1e-4)
    assert not logits.requires_grad


def own_loaders(n=20, unlabeled=11):
    """fastai loaders as a user makes them, prepared by `label_dls`; the first pixel of an unlabeled
    item is its number"""
    x = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    items = [(x[i], tensor(i % 10)) for i in range(n)]

    class Own(DataLoaders):
        def test_dl(self, items, **kwargs): return DataLoader([(o,) for o in items], bs=4)
    dls = Own(DataLoader(items, bs=4, shuffle=True), DataLoader(items, bs=4))
    dls.c = 10
    dls.vocab = [str(i) for i in range(10)]
    more = torch.rand(unlabeled, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    more[:,0,0,0] = torch.arange(unlabeled)/100
    return label_dls(dls, unlabeled=list(more), ratio=2),n


def test_loaders_of_one_own():
    import random
    dls,n = own_loaders()
    state = random.getstate()
    learn = Learner(
        dls,
        model(),
        loss_func=nn.CrossEntropyLoss(),
        cbs=[SelfTraining(warmup=0.0, rounds=1, threshold=0.0)],
    )
    xs,ids = zip(*((b.inputs[0], b.ids) for b in Samples(dls.unlabeled).batches()))
    assert torch.cat(ids).tolist() == list(range(n, n+11))
    assert (torch.cat(xs)[:,0,0,0]*100).round().tolist() == list(range(11))
    random.setstate(state)
    predict_unlabeled(learn)
    assert random.getstate() == state
    seen = []

    class Ids(Callback):
        order = 6
        def after_pred(self):
            s = self.learn.supervision.record
            if self.training:
                seen.append(((s.unlabeled[:,0,0,0]*100).round().long() + n, s.unlabeled_ids))
    fit(learn, cbs=[Ids()])
    assert all(torch.equal(a, b) for a,b in seen)
    assert (learn.self_training.pseudo_label[:n] == -1).all() and (
        learn.self_training.pseudo_label[n:] >= 0
    ).all()


def test_pseudo_labeled_samples_are_seen_in_the_strong_view():
    runs = []
    for kwargs in (dict(), dict(noise=False), dict(noise=False, weak=lambda x, rng: x)):
        cb = SelfTraining(warmup=0., threshold=0., augment_labeled=False, **kwargs)
        seen = []

        class Keep(Callback):
            order = 6
            def after_pred(self):
                if not self.training: return
                s = self.learn.supervision.record
                seen.append((s.requests["self_training"] - s.unlabeled).abs().mean())
        fit(learner([cb, Keep()]))
        runs.append(float(torch.stack(seen).mean()))
    strong,weak,none = runs
    assert strong > weak > none == 0


def test_labels_only_until_the_first_round():
    plain = fit(learner(), 2)
    late = fit(learner([SelfTraining(warmup=1., augment_labeled=False)]), 2)
    assert same(weights(plain), weights(late)) and not late.self_training.ledger.epochs
    assert not same(
        weights(plain),
        weights(fit(learner([SelfTraining(warmup=0.5, threshold=0.0, augment_labeled=False)]), 2)),
    )


def test_targets_are_those_of_the_round_and_stay_until_the_next():
    "The loss is the cross-entropy to what was predicted when the round began"
    checks = []
    tables = []
    half = lambda p: p[:,3] > p[:,3].median()

    class Check(Callback):
        order = 6
        def before_batch(self):
            if self.training and self.learn.iter == 0 and self.learn.epoch % 4 == 0:
                ids,logits = predict_unlabeled(self.learn)
                self.table = torch.full((self.dls.n_ids,), -1)
                self.table[ids] = logits.argmax(1).where(half(logits.softmax(1)), -1)
                tables.append(self.table)
        def after_loss(self):
            if not self.training: return
            s = self.learn.supervision.record
            y = self.table[s.unlabeled_ids]
            z = s.outputs["self_training"]
            by_hand = (F.cross_entropy(z, y.clamp_min(0), reduction="none")*(y >= 0)).sum()/len(z)
            checks.append((by_hand.item(), s.losses["self_training"][0].item()))
    learn = fit(learner([cb := SelfTraining(warmup=0., every=4, select=half), Check()]), 8)
    a,b = zip(*checks)
    assert a == pytest.approx(b, rel=1e-4) and len(a) == 8*len(learn.dls.train)
    assert torch.equal(cb.pseudo_label, tables[-1]) and cb.ledger.epochs == [0, 4]
    assert (
        not torch.equal(tables[0], tables[-1])
        and (tables[0] >= 0).sum() == (tables[1] >= 0).sum() == 48
    )


@pytest.mark.parametrize(
    "kwargs,n",
    [
        (dict(select="topk", k=10), 10),
        (dict(select="topk", k=0.25), 24),
        (dict(select=lambda p: p[:, 0] >= 0), 96),
        (dict(select="margin", margin=0.0), 96),
        (dict(select="threshold", threshold=0.0, hard=False), 96),
    ],
)
def test_policies(kwargs, n):
    learn = fit(learner([cb := SelfTraining(warmup=0., rounds=1, **kwargs)]))
    assert (cb.pseudo_label >= 0).sum() == n == cb.ledger.history()["accepted"].sum()
    assert (cb.pseudo_label[learn.dls.given >= 0] == -1).all()


def test_the_surest_by_hand():
    probs = torch.tensor([[.9, .1], [.8, .2], [.4, .6], [.45, .55]])
    said = lambda *args: surest(probs, *args).nonzero().flatten().tolist()
    assert said(2) == [0, 1] and said(.75) == [0, 1, 2] and said(1) == [0]
    assert said(2, True) == said(.5, True) == [0, 2] and said(1, True) == [0, 2]


def test_soft_labels_are_learned_and_resumed(tmp_path):
    args = dict(warmup=0., every=2, threshold=0., hard=False)
    whole = fit(learner([SelfTraining(**args)]), 4)
    unlabeled = whole.dls.given == -1
    torch.testing.assert_close(whole.self_training.soft_label.sum(1), unlabeled.float())

    class Die(Callback):
        order = 1000
        def before_epoch(self):
            if self.epoch == 3: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        fit(learner([SelfTraining(**args)]), 4, cbs=[Checkpoint(tmp_path/"fit.pt"), Die()])
    # begins between two rounds
    resumed = fit(learner([SelfTraining(**args)]), 4, cbs=[Checkpoint(tmp_path/"fit.pt")], seed=99)
    assert same(weights(whole), weights(resumed))
    assert torch.equal(whole.self_training.soft_label, resumed.self_training.soft_label)
    assert not same(
        weights(whole), weights(fit(learner([SelfTraining(**args | dict(hard=True))]), 4))
    )


def test_a_search_begins_no_round():
    learn = learner([cb := SelfTraining(warmup=0., threshold=0.)])
    with learn.no_bar(), learn.no_logging(): learn.lr_find(num_it=6, show_plot=False)
    assert (cb.pseudo_label == -1).all() and not cb.ledger.epochs


def test_inputs_need_not_be_images():
    from labelkit.data.loaders import from_arrays
    x = torch.randn(120, 5, generator=torch.Generator().manual_seed(0))
    y = (x[:,0] > 0).long()
    dls = from_arrays(x[:80], y[:80], x[80:], y[80:], labeled=20, bs=8, ratio=3)
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2))
    for cb in (
        SelfTraining(weak=still, warmup=0.0, threshold=0.0),
        MeanTeacher(weak=still, strong=lambda x: x + 0.1 * torch.randn_like(x)),
        FixMatch(weak=still, strong=still, threshold=0.0),
    ):
        learn = fit(Learner(dls, deepcopy(net), cbs=[cb]), 1)
        assert cb.name in learn.supervision.parts


def test_an_unlabeled_sample_that_is_not_a_number_is_named():
    dls = data()
    bad = int(dls.unlabeled.dataset.rows[3])
    dls.unlabeled.dataset.arrays.x[bad] = float("nan")
    with pytest.raises(LabelKitError, match=rf"samples \[{bad}\] are not finite"):
        fit(learner([SelfTraining(warmup=0.)], dls=dls))


@pytest.mark.parametrize(
    "kwargs,said",
    [
        (dict(select="best"), "select='best'.*'topk'"),
        (dict(threshold=95), "threshold=95"),
        (dict(k=1.5), "k=1.5"),
        (dict(k=0), "k=0"),
        (dict(margin=-1), "margin=-1"),
        (dict(warmup=2), "warmup=2"),
        (dict(rounds=0), "rounds=0"),
        (dict(every=0), "every=0"),
        (dict(weight="1"), "weight='1'"),
    ],
)
def test_self_training_bad_input(kwargs, said):
    with pytest.raises(LabelKitError, match=said): SelfTraining(**kwargs)


def test_a_dense_prediction_is_accepted_with_most_of_its_pixels():
    "And its confidence is that of the pixels' mean"
    learn = learner([cb := FixMatch()])
    cb._ensure_ready()
    learn.epoch = 0
    ids = tensor([70, 71, 72])
    probs = torch.zeros(3, 10, 2, 2)
    probs[:, 1] = 1.
    probs[1, :, 0] = 0.
    probs[1, 2, 0] = 1.
    probs[1, 2, 1, 0] = probs[1, 1, 1, 0] = .5
    mask = tensor([[[True, False], [False, False]], [[True]*2]*2, [[True, True], [True, False]]])
    cb.note(SimpleNamespace(s=SimpleNamespace(unlabeled_ids=ids), ids=ids, probs=probs), mask)
    f = cb.ledger.frame()
    f = f[f.epoch >= 0]
    assert f.accepted.tolist() == [False, True, True]
    assert f.confidence.tolist() == pytest.approx([1, .625, 1])
