"""Knowledge distillation: the loss against the published one, and the teacher as a guest that
nothing happens to"""
import copy, json, pickle
from functools import partial

import pytest, torch
import fastai.callback.schedule  # noqa: F401 gives learners lr_find
from fastai.basics import (
    Callback,
    DataLoader,
    DataLoaders,
    Learner,
    accuracy,
    load_learner,
    set_seed,
)
from fastai.callback.training import ShortEpochCallback
from torch import nn
from torch.nn import functional as F

from places import REFERENCES
from labelkit.data.loaders import from_arrays
from labelkit.data.sets import digits
from labelkit.errors import LabelKitError
from labelkit.models import small_cnn
from labelkit.core.technique import find
from labelkit.distill.base import Distill, soft_kl
from labelkit.distill.knowledge_distillation import KnowledgeDistillation
from labelkit.mix.cutmix import CutMix
from labelkit.mix.mixup import MixUp
from labelkit.pseudo.fixmatch import FixMatch

REFERENCE = {e["name"]: e for e in json.loads((REFERENCES/"distill.json").read_text())}

net = partial(small_cnn, c=10, c_in=1, width=4)
def few(**kwargs): return digits(**dict(labeled=40, ratio=2) | kwargs)
def state_of(m): return {k: v.clone() for k,v in m.state_dict().items()}
def same(a, b): return all(torch.equal(a[k], b[k]) for k in a)

class Keep(Callback):
    "The record, and the loss, of every training batch"
    order = 6
    def before_fit(self):
        self.records = []
        self.seen = []
    def after_loss(self):
        if self.training:
            self.records.append(self.learn.supervision.record)
            self.seen.append(self.learn.loss.item())

def fit(
    *cbs,
    dls=None,
    epochs=1,
    seed=0,
    short=True,
    loss_func=None,
    model=None,
    metrics=accuracy,
    **kwargs,
):
    set_seed(seed)
    dls = dls or few()
    learn = Learner(
        dls, model or net(), cbs=list(cbs), loss_func=loss_func, metrics=metrics, **kwargs
    )
    with learn.no_bar(), learn.no_logging():
        learn.fit(epochs, 3e-3, cbs=ShortEpochCallback(.1, short_valid=False) if short else None)
    return learn

def first(learn, *cbs):
    "The record of the first batch of another epoch, and its loss"
    keep = Keep()
    with learn.no_bar(), learn.no_logging(): learn.fit(1, cbs=[keep, ShortEpochCallback(.01), *cbs])
    return keep.records[0],keep.seen[0]

@pytest.fixture
def teacher():
    torch.manual_seed(11)
    return net()


class TestLoss:
    def test_published_value(self, teacher):
        e = REFERENCE["kd_hinton_T4"]
        student,other = (torch.tensor(e["inputs"][f"logits_{o}"]) for o in ("student", "teacher"))
        t = e["inputs"]["temperature"]
        assert (t**2 * soft_kl(student, other, t).mean()).item() == pytest.approx(
            e["expected"], abs=e["tolerance"]
        )
        assert KnowledgeDistillation(teacher, temperature=t).distill_loss(
            student, other, None
        ).item() == pytest.approx(e["expected"], abs=e["tolerance"])

    def test_properties(self):
        z,v = torch.randn(2, 50, 7)*3
        assert (soft_kl(z, v) >= -1e-6).all() and soft_kl(v, v).abs().max() < 1e-5
        torch.testing.assert_close(soft_kl(z+5, v-3, 2.), soft_kl(z, v, 2.), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            soft_kl(z, v.log_softmax(1)), soft_kl(z, v), atol=1e-5, rtol=1e-4
        )

    def test_a_class_the_teacher_rules_out_costs_nothing(self):
        v = torch.tensor([[0., 0., -float("inf")]])
        z = torch.tensor([[0., 0., -1e4]], requires_grad=True)
        loss = soft_kl(z, v).sum()
        loss.backward()
        assert loss.item() == pytest.approx(0, abs=1e-6) and z.grad.isfinite().all()

    def test_gradient_does_not_shrink_with_the_temperature(self):
        z,v = torch.randn(2, 5, 4).double()
        z.requires_grad_()
        def g(t): return torch.autograd.grad(t**2*soft_kl(z, v, t).sum(), z)[0]
        centred = z.detach()-z.detach().mean(1, keepdim=True) - (v-v.mean(1, keepdim=True))
        torch.testing.assert_close(g(1e4), centred/4, atol=1e-3, rtol=1e-3)


class TestStep:
    def test_the_loss_is_the_formula(self, teacher):
        s, loss = first(
            fit(KnowledgeDistillation(teacher, temperature=3.0, soft_weight=0.7, hard_weight=0.2))
        )
        teacher.eval()
        with torch.no_grad(): v = teacher(s.x)
        p = (v/3).softmax(1)
        logq = (s.pred/3).log_softmax(1)
        kl = (p*(p.log()-logq)).sum(1).mean()
        assert loss == pytest.approx((.2*F.cross_entropy(s.pred, s.y) + .7*9*kl).item(), rel=1e-5)

    def test_turned_off_it_changes_no_bit(self, teacher):
        neutral = find("KnowledgeDistillation").neutral
        a = fit(KnowledgeDistillation(teacher, **neutral))
        b = fit()
        assert a.recorder.losses == b.recorder.losses and same(state_of(a.model), state_of(b.model))

    def test_the_label_weight_scales_the_labeled_loss(self, teacher):
        a = fit(
            KnowledgeDistillation(teacher, hard_weight=0.25), loss_func=nn.CrossEntropyLoss()
        )
        b = fit(
            KnowledgeDistillation(teacher, hard_weight=1.),
            loss_func=lambda z,y: .25*F.cross_entropy(z, y),
        )
        assert same(state_of(a.model), state_of(b.model))

    def test_labels_can_be_left_out(self, teacher):
        wrong = few()
        wrong.train.dataset.arrays.y = (wrong.train.dataset.arrays.y+1) % 10
        a, b = (
            fit(KnowledgeDistillation(teacher, soft_weight=1.0, hard_weight=0.0), dls=d)
            for d in (few(), wrong)
        )
        assert same(state_of(a.model), state_of(b.model))

    def test_validation_is_not_touched(self, teacher):
        learn = fit(KnowledgeDistillation(teacher))
        with learn.no_bar(), learn.no_logging():
            loss = learn.validate()
            learn.remove_cb(KnowledgeDistillation)
            assert learn.validate() == loss

    @pytest.mark.parametrize("mix", [CutMix, MixUp])
    def test_the_teacher_sees_what_the_student_saw(self, teacher, mix):
        asked = []
        def ask(x):
            asked.append(x)
            return teacher(x)
        s,_ = first(fit(KnowledgeDistillation(ask), mix()))
        assert any(x.shape == s.x.shape and torch.equal(x, s.x) for x in asked)
        assert s.targets.max(1).values.min() < 1

    def test_no_gradient_and_the_students_precision(self):
        state = []
        class HalfPrecision(Callback):
            order = 10
            def before_batch(self):
                self.cast = torch.autocast("cpu", torch.bfloat16)
                self.cast.__enter__()
            def after_loss(self): self.cast.__exit__(None, None, None)
        def ask(x):
            state.append((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
            return torch.zeros(len(x), 10)
        learn = fit(KnowledgeDistillation(ask), HalfPrecision())
        assert (
            set(state) == {(False, True)}
            and torch.isfinite(torch.stack(learn.recorder.losses)).all()
        )

    @pytest.mark.parametrize("bs", [1, 7])
    def test_small_batches(self, teacher, bs):
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        learn = fit(KnowledgeDistillation(teacher), dls=few(bs=bs), model=model)
        assert torch.isfinite(torch.stack(learn.recorder.losses)).all()

    def test_plain_loaders(self, teacher):
        x = torch.rand(40, 1, 8, 8)
        y = torch.randint(0, 10, (40,))
        data = torch.utils.data.TensorDataset(x, y)
        learn = fit(
            KnowledgeDistillation(teacher),
            dls=DataLoaders(DataLoader(data, bs=16), DataLoader(data, bs=16)),
            loss_func=nn.CrossEntropyLoss(),
            short=False,
        )
        assert learn.supervision.parts["knowledge_distillation"][0] > 0

    def test_soft_labels(self, teacher):
        x = torch.rand(64, 1, 8, 8)
        y = torch.rand(64, 10).softmax(1)
        dls = from_arrays(x, y, x[:16], y[:16], kind="soft", bs=16)
        learn = fit(
            KnowledgeDistillation(teacher),
            dls=dls,
            loss_func=nn.CrossEntropyLoss(),
            short=False,
            metrics=None,
        )
        assert learn.supervision.parts["knowledge_distillation"][0] > 0

    def test_learning_rate_search(self, teacher):
        set_seed(0)
        learn = Learner(few(), net(), cbs=KnowledgeDistillation(teacher))
        before = state_of(learn.model)
        with learn.no_bar(), learn.no_logging(): learn.lr_find(num_it=8, show_plot=False)
        assert same(before, state_of(learn.model))


class TestUnlabeled:
    def test_every_sample_counts_once(self, teacher):
        cb = KnowledgeDistillation(teacher, unlabeled=True, soft_weight=1., hard_weight=.5)
        s,loss = first(fit(cb))
        teacher.eval()
        x = torch.cat([s.x, s.unlabeled])
        z = torch.cat([s.pred, s.outputs["knowledge_distillation.unlabeled"]])
        assert len(x) == len(s.y) + len(s.unlabeled) > len(s.y)
        with torch.no_grad(): v = teacher(x)
        assert loss == pytest.approx(
            (0.5 * F.cross_entropy(s.pred, s.y) + 16 * soft_kl(z, v, 4.0).mean()).item(), rel=1e-5
        )

    def test_only_when_asked(self, teacher):
        s,_ = first(fit(KnowledgeDistillation(teacher)))
        assert s.unlabeled is None and not s.outputs

    def test_without_unlabeled_samples(self, teacher):
        with pytest.raises(LabelKitError, match="needs unlabeled samples"):
            fit(KnowledgeDistillation(teacher, unlabeled=True), dls=digits())

    def test_beside_fixmatch_and_mixes(self, teacher):
        learn = fit(
            KnowledgeDistillation(teacher, unlabeled=True),
            FixMatch(threshold=0.0),
            MixUp(p=0.5),
            CutMix(p=0.5),
        )
        assert {"labeled", "knowledge_distillation", "fixmatch"} <= set(learn.supervision.parts)


class TestTeacher:
    @pytest.mark.parametrize("kind", ["module", "learner", "function", "list"])
    def test_kinds(self, teacher, kind):
        given = dict(
            module=lambda: teacher,
            learner=lambda: Learner(few(), teacher),
            function=lambda: lambda x: teacher.eval()(x),
            list=lambda: [teacher, teacher],
        )[kind]()
        a = fit(KnowledgeDistillation(given))
        b = fit(KnowledgeDistillation(teacher))
        torch.testing.assert_close(
            torch.stack(a.recorder.losses), torch.stack(b.recorder.losses), atol=1e-4, rtol=1e-4
        )

    def test_it_is_never_trained(self, teacher):
        teacher.train()
        before = state_of(teacher)
        cb = KnowledgeDistillation(teacher)
        learn = fit(cb, wd=.1)
        assert (
            teacher.training
            and same(before, state_of(teacher))
            and same(before, state_of(cb.teacher.model))
        )
        inside = {id(p) for p in cb.teacher.model.parameters()}
        assert not inside & {id(p) for p, *_ in learn.opt.all_params()} and not inside & {
            id(p) for p in learn.model.parameters()
        }
        assert all(p.grad is None and not p.requires_grad for p in cb.teacher.model.parameters())

    def test_the_student_may_teach_itself(self):
        model = net()
        learn = Learner(few(), model)
        start = state_of(model)
        cb = KnowledgeDistillation(learn)
        assert not same(start, state_of(fit(cb, model=model).model)) and same(
            start, state_of(cb.teacher.model)
        )

    def test_export_leaves_it_out(self, teacher, tmp_path):
        big = small_cnn(c=10, c_in=1, width=64)
        learn = fit(KnowledgeDistillation(big))
        learn.path = tmp_path
        learn.export("student.pkl")
        assert (tmp_path / "student.pkl").stat().st_size < sum(
            p.numel() for p in big.parameters()
        ) * 4 / 2
        back = load_learner(tmp_path/"student.pkl")
        x,_ = few().valid.one_batch()
        learn.model.eval()
        assert torch.equal(back.model.eval()(x), learn.model(x))
        back.dls = few()
        with pytest.raises(LabelKitError, match="restore"), back.no_bar(), back.no_logging():
            back.fit(1)
        back.knowledge_distillation.teacher.restore(big)
        with back.no_bar(), back.no_logging(): back.fit(1, cbs=ShortEpochCallback(.1))

    def test_copies_and_state(self, teacher):
        cb = KnowledgeDistillation(teacher, temperature=2.)
        other = copy.deepcopy(cb)
        assert (
            other.temperature == 2.0
            and other.teacher is not cb.teacher
            and same(state_of(cb.teacher.model), state_of(other.teacher.model))
        )
        assert pickle.loads(pickle.dumps(cb)).teacher.model is None
        fit(cb)
        assert set(cb.state_dict()) == {"rng"}


class TestMistakes:
    def test_other_classes(self):
        with pytest.raises(LabelKitError, match="knows 7 classes, the student 10"):
            fit(KnowledgeDistillation(small_cnn(c=7, c_in=1, width=4)))

    def test_no_logits(self):
        with pytest.raises(LabelKitError, match="tensor of logits"):
            fit(KnowledgeDistillation(lambda x: [1]))
        with pytest.raises(LabelKitError, match="must be"): fit(KnowledgeDistillation(lambda x: x))
        with pytest.raises(LabelKitError, match="NaN or infinite"):
            fit(KnowledgeDistillation(lambda x: torch.full((len(x), 10), float("nan"))))

    def test_a_sample_that_is_not_a_number_is_named(self, teacher):
        x = torch.rand(16, 1, 8, 8)
        x[5] = float("nan")
        dls = from_arrays(x, torch.arange(16) % 10, x[:4], torch.arange(4), vocab=range(10), bs=16)
        with pytest.raises(LabelKitError, match=r"samples \[5\]"):
            fit(KnowledgeDistillation(teacher), dls=dls, short=False)

    @pytest.mark.parametrize(
        "y, kind", [(torch.rand(16), "regression"), ((torch.rand(16, 3) > 0.5).float(), "multi")]
    )
    def test_other_targets(self, teacher, y, kind):
        x = torch.rand(16, 1, 8, 8)
        dls = from_arrays(x, y, x, y, bs=8)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3 if kind == "multi" else 1))
        set_seed(0)
        learn = Learner(dls, model, cbs=KnowledgeDistillation(teacher))
        with pytest.raises(LabelKitError, match=kind), learn.no_bar(), learn.no_logging():
            learn.fit(1)

    @pytest.mark.parametrize(
        "bad",
        [
            dict(temperature=0),
            dict(temperature=-1.0),
            dict(soft_weight=-0.1),
            dict(hard_weight="a"),
        ],
    )
    def test_arguments(self, teacher, bad):
        with pytest.raises(LabelKitError, match=next(iter(bad))):
            KnowledgeDistillation(teacher, **bad)
        with pytest.raises(LabelKitError, match="teacher must be"): KnowledgeDistillation(None)


def test_a_technique_is_one_function(teacher):
    class Logits(Distill):
        "Squared difference of logits"
        def distill_loss(self, student, teacher, s): return F.mse_loss(student, teacher)
    learn = fit(Logits(teacher, soft_weight=1., hard_weight=0.), epochs=2)
    a,b = learn.supervision.parts["logits"]
    assert b < a
