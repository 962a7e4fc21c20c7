"""Weak-to-strong: the confidence loss against the published one, the balance of self-labels, and
the recovered gap"""
import json
from functools import partial

import numpy as np, pytest, torch
from fastai.basics import Callback, Learner, accuracy, set_seed
from fastai.callback.training import ShortEpochCallback
from torch.nn import functional as F

from places import REFERENCES
from labelkit.data.sets import digits
from labelkit.errors import LabelKitError
from labelkit.models import small_cnn
from labelkit.core.teachers import as_teacher
from labelkit.distill.weak_to_strong import (
    WeakToStrong,
    confidence_at,
    confidence_loss,
    performance_gap_recovered,
    self_labels,
)

REFERENCE = {e["name"]: e for e in json.loads((REFERENCES/"weak_to_strong.json").read_text())}
net = partial(small_cnn, c=10, c_in=1, width=4)


class Keep(Callback):
    order = 6
    def before_fit(self):
        self.records = []
        self.seen = []
        self.pct = []
    def after_loss(self):
        if self.training:
            self.records.append(self.learn.supervision.record)
            self.seen.append(self.learn.loss.item())
            self.pct.append(self.learn.pct_train)

def fit(cb, dls=None, epochs=1, short=.2):
    set_seed(0)
    learn = Learner(dls or digits(), net(), cbs=[cb, keep := Keep()], metrics=accuracy)
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, 3e-3, cbs=ShortEpochCallback(short))
    return learn,keep

@pytest.fixture
def teacher():
    torch.manual_seed(11)
    return net()


@pytest.mark.parametrize("step", [.05, .5])
def test_published_value(step):
    e = REFERENCE["weak_to_strong_logconf"]
    logits,weak = (torch.tensor(e["inputs"][o]) for o in ("logits", "labels"))
    c = confidence_at(step, e["inputs"]["aux_coef"], e["inputs"]["warmup_frac"], "official")
    loss = confidence_loss(logits, weak, self_labels(logits, weak, "official"), c)
    assert loss.item() == pytest.approx(
        e["expected"][f"step_{step}".replace(".", "_")], abs=e["tolerance"]
    )


def test_paper_and_official_agree_after_the_warm_up_where_counts_do():
    e = REFERENCE["weak_to_strong_logconf"]
    logits,weak = (torch.tensor(e["inputs"][o]) for o in ("logits", "labels"))
    assert torch.equal(self_labels(logits, weak), self_labels(logits, weak, "official"))
    assert confidence_at(.5) == confidence_at(.5, variant="official") == .5

def test_the_warm_up_has_no_jump_and_the_official_one_has():
    t = torch.linspace(0, 1, 1001).tolist()
    jumps = {
        v: max(
            abs(confidence_at(b, variant=v) - confidence_at(a, variant=v)) for a, b in zip(t, t[1:])
        )
        for v in ("paper", "official")
    }
    assert jumps["paper"] < .006 and jumps["official"] > .4
    assert confidence_at(0., warmup=0) == .5

@pytest.mark.parametrize("share", [0., .25, .5, 1.])
def test_two_classes_get_exactly_their_share(share):
    g = torch.Generator().manual_seed(1)
    logits = torch.randn(40, 2, generator=g) + torch.tensor([2., 0.])
    own = self_labels(logits, torch.tensor([[share, 1-share]]).expand(40, 2))
    assert int((own == 0).sum()) == round(40*share)
    if 0 < share < 1:
        lean = logits[:,0]-logits[:,1]
        assert lean[own == 0].min() >= lean[own == 1].max()

@pytest.mark.parametrize("scale", [.01, 1., 100.])
def test_many_classes_come_near_their_share_whatever_the_confidence(scale):
    g = torch.Generator().manual_seed(2)
    z = torch.randn(64, 10, generator=g) + 2*torch.randn(10, generator=g)
    weak = (2*torch.randn(64, 10, generator=g)).softmax(1)
    own = self_labels(z*scale, weak)
    wrong = lambda o: float((o.bincount(minlength=10)-64*weak.mean(0)).abs().sum()/2)
    assert wrong(own) < 7 and wrong(own) < wrong(z.argmax(1))/2
    assert own.dtype == torch.long and own.min() >= 0 and own.max() < 10

@pytest.mark.parametrize("c", [2, 3, 10])
def test_one_sample_gets_the_supervisors_label(c):
    weak = torch.full((1, c), .2/(c-1))
    weak[0,1] = .8
    assert self_labels(torch.tensor([[5.]+[0.]*(c-1)]), weak).tolist() == [1]

def test_equal_logits_are_no_trouble():
    own = self_labels(torch.zeros(8, 4), torch.full((8, 4), .25))
    assert len(own) == 8 and own.max() < 4

def test_no_gradient_through_the_self_labels():
    z = torch.randn(6, 3, requires_grad=True)
    weak = torch.randn(6, 3).softmax(1)
    loss = confidence_loss(z, weak, self_labels(z, weak), .5)
    g, = torch.autograd.grad(loss, z)
    target = .5*weak + .5*F.one_hot(self_labels(z, weak), 3)
    torch.testing.assert_close(g, (z.detach().softmax(1)-target)/6)

def test_the_loss_of_training_is_the_formula(teacher):
    learn,keep = fit(WeakToStrong(teacher, warmup=.5))
    assert keep.pct[0] == 0 and keep.pct[2] > 0
    for s,loss,pct in zip(keep.records, keep.seen, keep.pct):
        weak = as_teacher(teacher)(s.x).softmax(1)
        c = .5*min(pct/.5, 1)
        own = self_labels(s.pred, weak)
        expected = (1-c)*F.cross_entropy(s.pred, weak) + c*F.cross_entropy(s.pred, own)
        assert loss == pytest.approx(expected.item(), abs=1e-4)

def test_true_labels_have_no_part(teacher):
    class Wrong(Callback):
        order = -20
        def before_batch(self):
            if self.training: self.learn.yb = (torch.randint_like(self.yb[0], 10),)
    runs = []
    for extra in ([], [Wrong()]):
        set_seed(0)
        learn = Learner(digits(), net(), cbs=[WeakToStrong(teacher), *extra])
        with learn.no_bar(), learn.no_logging():
            learn.fit(1, 3e-3, cbs=ShortEpochCallback(.2, short_valid=False))
        runs.append([p.clone() for p in learn.model.parameters()])
    assert all(torch.equal(a, b) for a,b in zip(*runs))

def test_unlabeled_samples_are_asked_about_too(teacher):
    asked = []
    def ask(x):
        asked.append(len(x))
        return teacher.eval()(x)
    learn,keep = fit(WeakToStrong(ask, unlabeled=True), digits(labeled=40, ratio=2))
    s = keep.records[0]
    assert asked[1] == len(s.x) + len(s.unlabeled)

def test_two_classes_in_training_and_the_official_variant():
    x = torch.rand(64, 1, 8, 8)
    y = torch.arange(64) % 2
    from labelkit.data.loaders import from_arrays
    dls = from_arrays(x, y, x[:8], y[:8], bs=16, vocab=["a", "b"])
    for variant in ("paper", "official"):
        learn = Learner(
            dls,
            small_cnn(c=2, c_in=1, width=4),
            cbs=WeakToStrong(small_cnn(c=2, c_in=1, width=4), variant=variant),
        )
        with learn.no_bar(), learn.no_logging(): learn.fit(1)
        assert np.isfinite(learn.recorder.losses).all()

def test_recovered_gap():
    assert performance_gap_recovered(0.6, 0.6, 0.9) == 0 and performance_gap_recovered(
        0.6, 0.9, 0.9
    ) == pytest.approx(1)
    assert performance_gap_recovered(.6, .95, .9) > 1 and performance_gap_recovered(.6, .5, .9) < 0
    assert performance_gap_recovered(torch.tensor(.5), np.float32(.6), 1) == pytest.approx(.2)

@pytest.mark.parametrize(
    "args,message",
    [
        ((0.9, 0.9, 0.9), "ceiling=0.9 is not above weak=0.9: there is no gap"),
        ((0.9, 0.95, 0.8), "no gap to recover"),
        ((float("nan"), 0.5, 0.9), "weak=nan is not finite"),
        ((0.1, float("inf"), 0.9), "strong_on_weak=inf"),
        ((0.1, 0.5, None), "ceiling=None is not a number"),
        (("high", 0.5, 0.9), "weak='high'"),
        ((0.1, [0.1, 0.2], 0.9), "strong_on_weak="),
    ],
)
def test_a_gap_that_cannot_be_computed(args, message):
    with pytest.raises(LabelKitError, match=message.replace(".", r"\.")):
        performance_gap_recovered(*args)

@pytest.mark.parametrize(
    "kwargs,message",
    [
        (dict(confidence=1.1), "confidence=1.1"),
        (dict(confidence="much"), "confidence='much'"),
        (dict(warmup=-1), "warmup=-1"),
        (dict(variant="code"), "variant='code' is not known"),
        (dict(hard_weight=-1), "hard_weight=-1"),
    ],
)
def test_bad_arguments(kwargs, message, teacher):
    with pytest.raises(LabelKitError, match=message): WeakToStrong(teacher, **kwargs)

def test_official_needs_two_classes(teacher):
    with pytest.raises(LabelKitError, match="knows 2 classes and the student has 10"):
        fit(WeakToStrong(teacher, variant="official"))
