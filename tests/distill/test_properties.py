"""What holds for every distillation, and slips that would go unnoticed."""
from collections import Counter

import pandas as pd
import pytest
import torch
from fastai.basics import Callback, DataLoader, DataLoaders, Learner
from torch import nn, tensor

from contract import SLUGS, build, data, fit, learner, model, same, weights
from labelkit.core.technique import registry
from labelkit.core.teachers import as_teacher, check_origin
from labelkit.data.loaders import from_arrays, label_dls
from labelkit.distill.base import Distill, soft_kl
from labelkit.distill.knowledge_distillation import KnowledgeDistillation
from labelkit.distill.mdcs import MDCS, class_counts
from labelkit.distill.robust_active_distillation import RobustActiveDistillation, choose
from labelkit.errors import LabelKitError
from labelkit.lesson.batch import look

FAMILY = [o for o in SLUGS if issubclass(registry[o].cls, Distill)]


@pytest.mark.parametrize("slug", FAMILY)
def test_one_switch_leaves_the_teacher_unasked(slug):
    asked = []
    for off in (dict(p=0.), dict(soft_weight=0.)):
        cb = build(slug, **off)
        cb.teacher.model.register_forward_hook(lambda *_: asked.append(1))
        assert cb.off
        plain = fit(learner(slug=slug))
        with_it = fit(learner([cb], slug=slug))
        assert same(weights(plain), weights(with_it))
    assert not asked


@pytest.mark.parametrize("slug", FAMILY)
def test_both_weights_are_those_that_were_asked_for(slug):
    b = look(learner([build(slug, active=True, soft_weight=.7, hard_weight=.2)], slug=slug))
    assert b.losses["labeled"][1] == pytest.approx(.2)
    assert b.record.losses[slug][1] == pytest.approx(.7)


@pytest.mark.parametrize("slug", FAMILY)
def test_no_gradient_reaches_the_teacher(slug):
    cb = build(slug, active=True)
    teachers = [m for m in [getattr(cb.teacher, "model", None)] if m is not None]
    fit(learner([cb], slug=slug))
    assert teachers and all(p.grad is None for m in teachers for p in m.parameters())


def test_one_temperature_for_both():
    a,b = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(soft_kl(4*a, 4*b, 4.), soft_kl(a, b))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_teacher_is_asked_in_its_own_precision(dtype):
    x = torch.rand(4, 1, 8, 8)
    net = model(9).eval()
    want = net(x).detach()
    said = as_teacher(model(9).to(dtype))(x)
    assert said.dtype == torch.float32
    torch.testing.assert_close(said, want, atol=.1 if dtype != torch.float64 else 1e-5, rtol=.1)
    learn = fit(learner([KnowledgeDistillation(model(9).to(dtype))]))
    assert all(v.dtype != dtype and torch.isfinite(v).all() for v in weights(learn).values())


def test_what_a_teacher_knows_about_its_classes():
    "Classes in another order would be learned wrong, every one of them"
    teacher = Learner(data(vocab=list("abcdefghij")), model(9))
    same_order = data(vocab=list("abcdefghij"))
    check_origin(teacher, same_order)
    with pytest.raises(LabelKitError, match="classes are .*the same order"):
        fit(learner([KnowledgeDistillation(teacher)], dls=data(vocab=list("jihgfedcba"))))
    check_origin(teacher.model, data(vocab=list("jihgfedcba")))  # a plain model says nothing


def test_several_inputs_are_handed_to_the_teacher():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(6, 3)
        def forward(self, a, b): return self.head(torch.cat([a, b], 1))
    items = [(torch.rand(2), torch.rand(4), tensor(i % 3)) for i in range(12)]
    dls = DataLoaders(*(DataLoader(items, bs=4, n_inp=2) for _ in range(2)))
    dls.c = 3
    teacher = Two()
    learn = Learner(dls, Two(), loss_func=nn.CrossEntropyLoss(), cbs=KnowledgeDistillation(teacher))
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
    assert "knowledge_distillation" in learn.supervision.parts


# MDCS

def test_counts_are_of_the_given_labels():
    "Not of the truth, and not of samples without a label"
    dls = data(labeled=40, imbalance=4)
    given = dls.given[dls.given >= 0]
    counts = class_counts(dls, None, 10)
    assert counts.tolist() == torch.bincount(given, minlength=10).tolist()
    assert counts.sum() == 40 and counts.tolist() != torch.bincount(dls.truth).tolist()


def test_no_gradient_reaches_the_view_that_teaches():
    cb = MDCS()
    found = []

    class Look(Callback):
        order = 6
        def after_loss(self):
            if not self.training: return
            s = self.learn.supervision.record
            loss = s.losses["mdcs.consistency"][0]
            if not loss.requires_grad: return
            said = (s.pred, s.outputs["mdcs"])
            grads = torch.autograd.grad(loss, said, retain_graph=True, allow_unused=True)
            found.append([0. if g is None else float(g.abs().max()) for g in grads])
    fit(learner([cb, Look()], dls=data(labeled=None)), 3)
    assert found and all(weak == 0 for weak,_ in found) and any(strong > 0 for _,strong in found)


# RobustActiveDistillation

def test_policies_by_hand():
    probs = tensor([[.9,.1], [.55,.45], [.6,.4]])
    cb = RobustActiveDistillation(lambda x: x)
    for policy in ("entropy", "margin"):
        assert sorted(choose(policy, cb, probs, 2).tolist()) == [1, 2], "the least certain two"
    with pytest.raises(LabelKitError, match="give k different places"):
        choose(lambda cb,p,k: tensor([0, 0]), cb, probs, 2)


@pytest.mark.parametrize("slug", FAMILY)
def test_each_asks_about_unlabeled_samples_where_it_is_told_to(slug):
    learn = fit(learner([build(slug, active=True, unlabeled=True)], slug=slug))
    assert all(o.isfinite().all() for o in weights(learn).values())


def test_counts_by_name_are_put_into_the_order_of_the_classes():
    "`value_counts` goes by frequency"
    x = torch.rand(6, 1, 4, 4)
    y = list("ccbaaa")
    dls = from_arrays(x, y, x, y, bs=3)
    for counts in (None, [3, 1, 2], pd.Series(y).value_counts(), Counter(y)):
        assert class_counts(dls, counts, 3).tolist() == [3, 1, 2]
    assert class_counts(dls, dict(b=4), 3).tolist() == [0, 4, 0]
    turned = pd.Series([2, 2, 1, 0, 0, 0]).value_counts()
    assert turned.index.tolist() == [0, 2, 1]
    numbered = from_arrays(x, [2, 2, 1, 0, 0, 0], x, [0]*6, bs=3)
    assert class_counts(numbered, turned, 3).tolist() == [3, 1, 2]
    items = [(o, "abc".index(k)) for o,k in zip(x, y)]
    own = label_dls(DataLoaders(DataLoader(items, bs=3), DataLoader(items, bs=3)))
    assert class_counts(own, None, 3).tolist() == [3, 1, 2]
