"""The distillation explorer in Python: its numbers against soft_kl and autograd, what it shows, and
what it refuses"""
import json, subprocess, sys
from functools import partial

import numpy as np, pytest, torch
from fastai.basics import Learner, accuracy, set_seed
from fastai.callback.training import ShortEpochCallback

from labelkit.data.sets import digits
from labelkit.errors import LabelKitError
from labelkit.models import small_cnn
from labelkit.core.teachers import as_teacher
from labelkit.distill.base import soft_kl
from labelkit.distill.knowledge_distillation import KnowledgeDistillation
from labelkit.distill.robust_active_distillation import RobustActiveDistillation
from labelkit.distill.weak_to_strong import WeakToStrong
from labelkit.explore.distill_explorer import DistillExplorer, agreement, distill_view
from labelkit.explore.explorer import to_uint8

net = partial(small_cnn, c=10, c_in=1, width=4)

@pytest.fixture
def logits(): return torch.randn(2, 40, 5, generator=torch.Generator().manual_seed(0))*3

def fit(cb, dls=None):
    set_seed(0)
    learn = Learner(dls or digits(), net(), cbs=[cb], metrics=accuracy)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, cbs=ShortEpochCallback(.1))
    return learn


@pytest.mark.parametrize("t", [.5, 1., 4., 20.])
def test_loss_and_pull_are_those_of_the_library(logits, t):
    for v,z in zip(*logits.double()):
        z = z.clone().requires_grad_()
        loss = t**2*soft_kl(z[None], v[None], t).sum()
        view = distill_view(v, z.detach(), t)
        assert view["loss"] == pytest.approx(loss.item(), abs=1e-9)
        np.testing.assert_allclose(
            view["pull"], -torch.autograd.grad(loss, z)[0].numpy(), atol=1e-9
        )
        assert (
            view["p"].sum() == pytest.approx(1)
            and abs(view["pull"].sum()) < 1e-9
            and 0 <= view["rest"] <= 1
        )


def test_the_rest_by_hand():
    log = lambda *p: np.log(np.maximum(p, 1e-30))
    # nothing to or from the first
    assert distill_view(log(.5,.25,.25), log(.5,.5,0))["rest"] == pytest.approx(1)
    # everything
    assert distill_view(log(.5,.25,.25), log(.25,.5,.25))["rest"] == pytest.approx(0)
    # .1 and .05 up, .15 down
    assert distill_view(log(.6,.3,.1), log(.5,.25,.25))["rest"] == pytest.approx(1-.2/.3)
    assert distill_view(log(0.6, 0.4), log(0.6, 0.4))["rest"] == 0 and distill_view(
        log(0.9, 0.1), log(0.2, 0.8)
    )["rest"] == pytest.approx(0)


def test_a_class_that_is_ruled_out():
    view = distill_view([0., 0., -1e5], [0., 0., 0.])
    assert np.isfinite(view["loss"]) and view["p"][2] == 0

def test_agreement_by_hand():
    v = torch.tensor([[3.,2.,1.],[3.,2.,1.],[1.,2.,3.]])
    z = torch.tensor([[3.,1.,2.],[2.,3.,1.],[1.,2.,3.]])
    assert agreement(v, z, torch.tensor([0, 0, 2])).tolist() == [[.5, -1, 1], [0, -1, 1]]
    # under the classes that are given, whatever the two choose
    assert agreement(v, z, torch.tensor([1, 1, 0])).tolist() == [[1, .5, -1], [1, 0, -1]]

def test_samples_go_from_disagreement_to_agreement(logits):
    e = DistillExplorer(*logits, samples=10)
    kl = soft_kl(logits[1], logits[0])
    assert len(e.shown) == 10 and (kl[e.shown].diff() <= 0).all() and kl[e.shown[0]] == kl.max()
    before = e.shown
    assert (
        e.other_samples().seed == 1
        and not torch.equal(before, e.shown)
        and (kl[e.shown].diff() <= 1e-6).all()
    )
    assert len(DistillExplorer(*logits[:,:3], samples=10).shown) == 3

def test_arrays_and_words(logits):
    y = torch.arange(40) % 5
    x = torch.rand(40, 3, 8, 8)
    e = DistillExplorer(*logits, y, x, vocab=list("abcde"), temperature=7., samples=4, key="d")
    assert e.state == dict(temperature=7., sample=1) and 7. in e.axes["temperature"]
    assert np.array_equal(
        np.frombuffer(e.arrays["teacher"]["data"], np.float32).reshape(4, 5),
        logits[0][e.shown].numpy(),
    )
    assert np.array_equal(
        np.frombuffer(e.arrays["images"]["data"], np.uint8).reshape(4, 3, 8, 8),
        to_uint8(x[e.shown]),
    )
    assert np.allclose(
        np.frombuffer(e.arrays["agreement"]["data"], np.float32).reshape(2, 5),
        agreement(*logits, y),
    )
    json.dumps(e.data)
    e.select(sample=3, temperature=2.)
    p,q = (o[e.shown[2]].div(2).softmax(0) for o in logits)
    words = e.readout()
    assert words.startswith(
        f"Sample 3, T = 2: the teacher says “{'abcde'[p.argmax()]}” ({100 * p.max():.0f} %), the "
        f"student “{'abcde'[q.argmax()]}” ({100 * q.max():.0f} %). T²·KL is "
    )
    assert len(e.plot().axes) == 2
    assert DistillExplorer(*logits, temperature=.7).state["temperature"] == .7

def test_without_labels_the_teachers_first_choice_counts(logits):
    e = DistillExplorer(*logits)
    assert (
        not e.data["by_label"]
        and all(o["label"] is None for o in e.data["samples"])
        and "images" not in e.arrays
    )
    assert np.allclose(
        np.frombuffer(e.arrays["agreement"]["data"], np.float32).reshape(2, 5),
        agreement(*logits, logits[0].argmax(1)),
    )


def test_two_classes():
    assert DistillExplorer(torch.randn(5, 2), torch.randn(5, 2)).readout()

@pytest.mark.parametrize("make", [KnowledgeDistillation, WeakToStrong])
def test_from_a_technique(make):
    teacher = net()
    learn = fit(make(teacher))
    modes = [m.training for m in learn.model.train().modules()]
    e = [cb for cb in learn.cbs if isinstance(cb, make)][0].explore(samples=5)
    x,y = (torch.cat(o) for o in zip(*learn.dls.valid))
    torch.testing.assert_close(e.teacher, as_teacher(teacher)(x), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(e.student, as_teacher(learn.model)(x), atol=1e-5, rtol=1e-4)
    assert (
        torch.equal(e.labels, y) and e.vocab == [str(i) for i in range(10)] and e.images is not None
    )
    assert e.state["temperature"] == 4. and [m.training for m in learn.model.modules()] == modes
    assert all(p.requires_grad for p in learn.model.parameters())

def test_from_a_budget_asks_nothing():
    asked = []
    model = net().eval()
    def teacher(x):
        asked.append(len(x))
        return model(x)

    learn = fit(
        RobustActiveDistillation(teacher, budget=30, warmup=0.0, rounds=1), digits(labeled=40)
    )
    cb = learn.robust_active_distillation
    e = cb.explore()
    ids = (cb.queried >= 0).nonzero().flatten()
    assert (
        sum(asked) == 30 == len(e.teacher)
        and torch.equal(e.teacher, cb.answers[ids])
        and torch.equal(e.labels, learn.dls.truth[ids])
    )
    with pytest.raises(LabelKitError, match="asked about nothing yet"):
        fit(
            RobustActiveDistillation(teacher, soft_weight=0.0), digits(labeled=40)
        ).robust_active_distillation.explore()


def test_before_training():
    with pytest.raises(LabelKitError, match="belongs to no learner yet"):
        KnowledgeDistillation(net()).explore()

@pytest.mark.parametrize(
    "change,message",
    [
        (dict(teacher=torch.randn(40)), r"teacher has shape \(40,\)"),
        (dict(student=torch.randn(40, 4)), "same samples and classes"),
        (dict(student=torch.randn(40, 1)), "two classes at least"),
        (dict(teacher=torch.full((40, 5), float("nan"))), "teacher holds NaN"),
        (dict(labels=torch.arange(40)), r"whole numbers in 0\.\.4"),
        (dict(labels=torch.rand(40)), "whole numbers"),
        (dict(images=torch.rand(40, 2, 8, 8)), "images have shape"),
        (dict(images=torch.rand(40, 1, 8, 8) * 9), "before they are normalized"),
        (dict(vocab=["a"]), "vocab has 1 names for 5"),
        (dict(temperature=0), "temperature=0"),
        (dict(samples=0), "samples=0"),
        (dict(state=dict(sample=99)), "sample"),
        (dict(state=dict(depth=1)), "no axis 'depth'"),
    ],
)
def test_refused(logits, change, message):
    with pytest.raises(LabelKitError, match=message):
        DistillExplorer(**dict(teacher=logits[0], student=logits[1]) | change)

def test_distilling_imports_no_widgets():
    code = (
        "import sys, labelkit.distill.base; print([m for m in ('anywidget', 'ipywidgets', "
        "'labelkit.explore.distill_explorer') if m in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        ).stdout.strip()
        == "[]"
    )
