"""Looking ahead: a virtual step is the step that would be taken, nothing of the real student moves,
and the teacher follows."""
import copy

import pytest
import torch
from fastai.basics import Callback, DataLoader, DataLoaders, Learner, OptimWrapper, partial
from fastai.callback.training import GradientAccumulation
from fastai.optimizer import SGD, Adam
from torch import nn, tensor

from contract import data, fit, learner, same, weights
from labelkit.data.loaders import label_dls
from labelkit.errors import LabelKitError
from labelkit.core.teachers import EMA, Future, VirtualStudent
from labelkit.core.record import Supervision
from labelkit.lesson.batch import look
from labelkit.pseudo.cwbass import pixel_net, scenes, shaded
from labelkit.pseudo.future_self_training import (
    FutureSelfTraining,
    another_batch,
    draw_batch,
    in_one_pass,
)


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 2)
    )


def tensors(model, opt):
    "Everything that training may change"
    states = opt.state_dict()
    states = states.get("state", states)
    found = []
    def visit(o):
        if isinstance(o, torch.Tensor): found.append(o.clone())
        elif isinstance(o, dict): [visit(v) for v in o.values()]
        elif isinstance(o, (list, tuple)): [visit(v) for v in o]
        elif isinstance(o, (int, float)): found.append(tensor(float(o)))
    visit(states if isinstance(states, dict) else list(states))
    return [
        *(v.clone() for v in model.state_dict().values()),
        *found,
        *(p.grad.clone() for p in model.parameters() if p.grad is not None),
        torch.get_rng_state(),
    ]


optimisers = {
    "SGD": partial(SGD, lr=0.1, mom=0.9),
    "Adam": partial(Adam, lr=0.01, wd=0.1),
    "torch AdamW": partial(OptimWrapper, opt=torch.optim.AdamW, lr=0.01),
}


@pytest.mark.parametrize("name", optimisers)
def test_a_virtual_step_is_the_real_one_and_nothing_moves(name):
    model = net()
    x = torch.randn(8, 3)
    opt = optimisers[name](list(model.parameters()))
    for _ in range(2):
        model(x).pow(2).sum().backward()
        opt.step()
        opt.zero_grad()
    model(x).sum().backward()  # gradients that are waiting, as under accumulation
    waiting = [p.grad.clone() for p in model.parameters()]
    loss = model(x).pow(2).sum()
    before = tensors(model, opt)
    ahead = VirtualStudent(model, opt).step(loss)
    for _ in range(2): ahead.step(ahead(x).pow(2).sum())
    after = tensors(model, opt)
    assert len(before) == len(after) and all(torch.equal(a, b) for a,b in zip(before, after))

    first = VirtualStudent(model, opt).step(loss)
    for p in model.parameters(): p.grad = None
    loss.backward()
    opt.step()
    for k,p in model.named_parameters(): assert torch.equal(p, first.weights[k]), k
    assert len(waiting) == len(first.weights)


def test_two_virtual_steps_are_two_real_ones():
    "Without dropout, whose numbers a virtual step does not spend"
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    x = torch.randn(8, 3)
    opt = Adam(model.parameters(), lr=.05)
    loss = model(x).pow(2).sum()
    ahead = VirtualStudent(model, opt).step(loss)
    ahead.step(ahead(x).pow(2).sum())
    loss.backward()
    opt.step()
    opt.zero_grad()
    model(x).pow(2).sum().backward()
    opt.step()
    for k,p in model.named_parameters():
        torch.testing.assert_close(p.detach(), ahead.weights[k].detach())
    for k,b in model.named_buffers(): torch.testing.assert_close(b, ahead.buffers[k])


def test_frozen_layers_stay():
    model = net()
    x = torch.randn(8, 3)
    opt = SGD([list(model[0].parameters()), [p for m in model[1:] for p in m.parameters()]], lr=.1)
    opt.freeze_to(1)
    ahead = VirtualStudent(model, opt).step(model(x).pow(2).sum())
    assert torch.equal(ahead.weights["0.weight"], model[0].weight) and not torch.equal(
        ahead.weights["4.weight"], model[4].weight
    )


def test_scaled_losses_make_the_same_step():
    model = net()
    x = torch.randn(8, 3)
    opt = SGD(model.parameters(), lr=.1)
    loss = model(x).pow(2).sum()
    a = VirtualStudent(model, opt).step(loss)
    b = VirtualStudent(model, opt).step(loss, scale=1024.)
    for k in a.weights: torch.testing.assert_close(a.weights[k], b.weights[k])


def test_future_averages_students_and_refuses_others():
    model = net()
    x = torch.randn(8, 3)
    opt = SGD(model.parameters(), lr=.1)
    teacher = Future(model, .5, warmup=None)
    loss = model(x)
    a = VirtualStudent(model, opt).step(loss.pow(2).sum())
    b = VirtualStudent(model, opt).step(loss.sum())
    want = .5*model[0].weight + .25*(a.weights["0.weight"] + b.weights["0.weight"])
    teacher.update(a, b)
    torch.testing.assert_close(teacher.model[0].weight, want)
    ema = EMA(model, .5, warmup=None)
    for t in (plain := Future(model, .5, warmup=None), ema): t.update(copy.deepcopy(model))
    assert same(plain.state_dict()["model"], ema.state_dict()["model"])
    for wrong in ((), (a, model), (3,)):
        with pytest.raises(LabelKitError, match="pass one module, or VirtualStudents"):
            teacher.update(*wrong)
    with pytest.raises(LabelKitError, match="other parameters"): Future(nn.Linear(2, 2)).update(a)


class Untouched(FutureSelfTraining):
    "Compares everything of the student before and after the look ahead"
    name = "future_self_training"
    looks = 0
    def look_ahead(self, s):
        before = tensors(self.learn.model, self.learn.opt)
        super().look_ahead(s)
        after = tensors(self.learn.model, self.learn.opt)
        assert len(before) == len(after) and all(torch.equal(a, b) for a,b in zip(before, after))
        self.looks += 1

@pytest.mark.parametrize(
    "kwargs", [dict(deep=1), dict(deep=3), dict(wide=3), dict(variant="official")]
)
def test_the_student_is_untouched_in_training(kwargs):
    learn = learner([cb := Untouched(threshold=0., **kwargs), GradientAccumulation(32)])
    fit(learn)
    n = len(learn.dls.train)
    assert cb.looks == n
    assert cb.teacher.steps == (3 if kwargs.get("deep") == 3 else 1) * n + ("variant" in kwargs) * (
        n // 2
    )


def test_virtual_step_equals_the_real_step_of_the_old_teacher():
    "With a teacher that never moves, virtual and real steps are the same one"
    seen = []

    class Check(FutureSelfTraining):
        name = "future_self_training"
        def look_ahead(self, s):
            super().look_ahead(s)
            self.expected = VirtualStudent(self.learn.model, self.learn.opt).step(
                self.virtual_loss(s, s.pred, s.outputs[f"{self.name}.strong"])
            )

        def after_step(self):
            got = dict(self.learn.model.named_parameters())
            seen.append(
                max(
                    float((got[k] - v).detach().abs().max())
                    for k, v in self.expected.weights.items()
                )
            )

    fit(learner([Check(threshold=0., ema_decay=1.)]))
    assert max(seen) < 1e-5 and len(seen) > 2


def test_the_learner_is_the_same_when_nothing_is_believed():
    """Pseudo-labels that are never accepted: looking ahead must leave the student as a teacher of
    the past leaves it"""
    a,b = (fit(learner([FutureSelfTraining(deep=d, threshold=1.)]), 2) for d in (0, 3))
    assert same(weights(a), weights(b)) and a.recorder.losses == b.recorder.losses
    ta = a.future_self_training.teacher.state_dict()
    tb = b.future_self_training.teacher.state_dict()
    assert not same(ta["model"], tb["model"])


def test_every_virtual_student_takes_its_step():
    "On batches of their own, from the same weights: to other places"
    class Kept(FutureSelfTraining):
        name = "future_self_training"
        def further(self, s):
            student = super().further(s)
            weight = self.learn.model.head.weight.detach()
            seen.append(student.weights["head.weight"].detach() - weight)
            return student
    seen = []
    look(learner([Kept(wide=3, threshold=0.)]))
    a,b = seen
    assert a.abs().max() > 0 and b.abs().max() > 0 and not torch.equal(a, b)


def test_further_batches_of_own_loaders_leave_global_random_numbers_alone():
    items = [(torch.rand(1,8,8), torch.tensor(i % 10)) for i in range(40)]
    dls = DataLoaders(DataLoader(items, bs=4, shuffle=True), DataLoader(items, bs=4))
    dls.c = 10
    dls = label_dls(dls, unlabeled=[o[0] for o in items]) or dls
    state = torch.get_rng_state()
    x,y = draw_batch(dls.train, 6, torch.Generator().manual_seed(0))[:2]
    assert x.shape == (6,1,8,8) and y.shape == (6,) and torch.equal(state, torch.get_rng_state())
    rows = draw_batch(data().unlabeled, 5, torch.Generator())
    assert len(rows) == 1 and rows[0].shape == (5,1,8,8)


def test_another_batch_is_of_other_samples_and_as_many():
    dls = data()
    s = Supervision(torch.rand(6, 1, 8, 8), torch.arange(6), 10, unlabeled=torch.rand(9, 1, 8, 8))
    s.labeled_weight = .25
    other = another_batch(s, dls, torch.Generator().manual_seed(0))
    assert (len(other.x), len(other.y), len(other.unlabeled)) == (6, 6, 9)
    assert other.labeled_weight == .25 and (other.c, other.kind) == (10, "single")
    a,b = in_one_pass(lambda x: x.flatten(1).sum(1), other.x, other.unlabeled)
    torch.testing.assert_close(b, other.unlabeled.flatten(1).sum(1))
    assert len(a) == 6


def test_a_search_teaches_nobody():
    learn = learner([cb := FutureSelfTraining(threshold=0.)])
    with learn.no_bar(), learn.no_logging(): learn.lr_find(num_it=5, show_plot=False)
    assert cb.teacher.steps == 0


def test_what_is_refused():
    for bad, what in (
        (dict(deep=-1), "deep"),
        (dict(wide=0), "wide"),
        (dict(deep=1.5), "whole number"),
        (dict(deep=2, wide=2), "together"),
        (dict(deep=0, wide=2), "together"),
        (dict(variant="x"), "variant"),
        (dict(ema_decay=2), "ema_decay"),
        (dict(threshold=-1), "threshold"),
    ):
        with pytest.raises(LabelKitError, match=what): FutureSelfTraining(**bad)


class Count(Callback):
    "Forward passes of the student"
    order = 1000
    handle = None
    def before_batch(self):  # not earlier: the teacher is a copy of the model, hooks included
        if self.handle is None:
            self.n, self.handle = (
                0,
                self.learn.model.register_forward_hook(
                    lambda *_: setattr(self, "n", self.n + self.training)
                ),
            )

    def after_fit(self): self.handle.remove()

@pytest.mark.parametrize("deep,passes", [(0, 1), (1, 1), (3, 3)])
def test_the_first_look_costs_no_forward_pass(deep, passes):
    learn = learner([FutureSelfTraining(threshold=0., deep=deep), c := Count()])
    fit(learn)
    assert c.n == passes*len(learn.dls.train)


@pytest.mark.parametrize("kwargs", [dict(deep=0), dict(deep=2), dict(wide=2)])
def test_a_label_for_each_pixel(kwargs):
    "The paper's own task: the teacher says something of each pixel, in every look"
    dls = scenes(labeled=8, unlabeled=64, bs=8, ratio=2)
    cb = FutureSelfTraining(threshold=0., strong=shaded, **kwargs)
    learn = Learner(dls, pixel_net(dls), loss_func=nn.functional.cross_entropy, cbs=[cb])
    fit(learn)
    n = len(dls.train)
    assert cb.teacher.steps == n*(2 if kwargs.get("deep") == 2 else 1)
    x,y = dls.one_batch()
    assert cb.teacher(x).shape == (len(x), dls.c, *y.shape[1:])
