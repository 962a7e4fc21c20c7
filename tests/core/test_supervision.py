"What the supervision does to the learner's events, and when it looks at the loss."
import pickle
from copy import deepcopy

import pytest
import torch
from fastai.basics import DataLoader, DataLoaders
from fastai.callback.core import Callback
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from torch import nn
from torch.nn import functional as F

from labelkit.core import supervision
from labelkit.core.supervision import LabelCallback
from labelkit.core.technique import registry
from labelkit.data.loaders import from_arrays, label_dls
from labelkit.errors import LabelKitError
from labelkit.models import body_layers
from labelkit.pseudo.fixmatch import FixMatch
from labelkit.pseudo.flexmatch import FlexMatch
from labelkit.pseudo.inpl import InPL, margin_logits
from labelkit.pseudo.prediction_pretraining import PredictionPretraining
from labelkit.pseudo.self_training import SelfTraining
from labelkit.represent.moco import MoCo
from tests.contract import build, data, fit, learner, model, weights


class Nothing(LabelCallback):
    pass


class Own(Callback):
    "Answers events in a way of its own"
    def __init__(self): self.heard = []
    def __call__(self, event_name): self.heard.append(event_name)


class Asks(Callback):
    "Lets another object answer"
    _default = "other"
    def __init__(self):
        self.heard = []
        self.other = type("Other", (), {"after_loss": lambda s: self.heard.append("after_loss")})()
    training = True


def heard(*more):
    "What callbacks of several kinds hear in an epoch, and the learner"
    own = Own()
    asks = Asks()
    given = []
    function = Callback(after_backward=lambda self: given.append("after_backward"))
    learn = learner([own, asks, function, *more])
    fit(learn)
    return (own.heard, asks.heard, given), learn


def test_every_callback_hears_what_it_hears_without_us():
    alone,_ = heard()
    together,learn = heard(Nothing())
    steps = alone[0].count("before_step")
    assert steps and together == alone
    assert alone[1] == ["after_loss"]*alone[0].count("after_loss")
    assert alone[2] == ["after_backward"]*steps
    assert not {"one_batch", "_call_one"} & set(vars(learn))


def test_nobody_is_asked_who_has_nothing_to_do(monkeypatch):
    asked = []
    usual = Callback.__call__

    def ask(self, event_name):
        if self.learn.training: asked.append((type(self).__name__, event_name))
        return usual(self, event_name)
    monkeypatch.setattr(Callback, "__call__", ask)
    fit(learner([Nothing()]))
    batch = {e for _,e in asked if e in supervision._EACH_BATCH}
    assert "before_batch" in batch and "before_backward" not in batch


@pytest.mark.parametrize("later", [False, True])
def test_a_loss_that_is_no_number_moves_no_weights(monkeypatch, later):
    "As on a GPU, whose answer is read when the backward pass is under way"
    monkeypatch.setattr(supervision, "_comes_later", lambda t: later)
    backwards = []
    usual = Learner._backward
    monkeypatch.setattr(Learner, "_backward", lambda s: (backwards.append(1), usual(s)))
    dls = data()
    bad = int(dls.unlabeled.dataset.rows[0])
    dls.unlabeled.dataset.arrays.x[bad] = float("nan")
    # the view lets it pass, as one does that has seen good images before
    learn = learner([FixMatch(weak=lambda x: x, strong=lambda x: x)], dls=dls)
    before = []

    class Keep(Callback):
        def before_batch(self): before.append(weights(learn))
    with pytest.raises(LabelKitError, match=rf"inputs of samples \[{bad}\] are not finite"):
        fit(learn, 3, cbs=[Keep()])
    params = dict(learn.model.named_parameters())
    assert all(torch.equal(p, before[-1][k]) for k,p in params.items())
    assert all(p.grad is None or not p.grad.any() for p in params.values())
    assert learn.supervision._finite is None
    assert len(backwards) == len(before) - (not later)


# what a technique is not for, and what it was left without

class OfTwo(nn.Module):
    "Takes an image and a vector"
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(64, 8)
        self.b = nn.Linear(3, 8)
        self.head = nn.Linear(8, 10)
    def forward(self, x, v): return self.head(self.a(x.flatten(1)) + self.b(v))


def of_two():
    items = [(torch.rand(1, 8, 8), torch.rand(3), i % 10) for i in range(40)]
    dls = DataLoaders(DataLoader(items, bs=8, shuffle=True), DataLoader(items, bs=8))
    for dl in dls.loaders: dl.n_inp = 2
    dls = label_dls(dls, [o[:2] for o in items], ratio=1)
    dls.c = 10
    dls.vocab = [str(i) for i in range(10)]
    return dls


def both(x): return tuple(o+.01 for o in x)

@pytest.mark.parametrize("slug,how", [
    ("moco", dict(view=both)), ("feature_transformation", dict(view=both)),
    ("hallucinator", dict(view=both)), ("mochi", dict(view=both)),
    ("future_self_training", dict(weak=both, strong=both, threshold=0.)),
    ("uplsfda", dict(weak=both, threshold=0.)),
    ("wad", dict(weak=both, strong=both, pretraining=2)),
])
def test_models_of_two_inputs(slug, how):
    cb = registry[slug].cls(**how)
    learn = Learner(of_two(), OfTwo(), loss_func=nn.CrossEntropyLoss(), cbs=cb)
    fit(learn, 2)
    assert any(k.startswith(slug) for k in learn.supervision.parts)


@pytest.mark.parametrize("slug,said", [
    ("prockd", "takes 2 inputs, and ProCKD looks at one image"),
    ("adautomix", "takes 2 inputs, and AdAutoMix looks at one image"),
    ("ssld", "the teacher fails for inputs of shape .* and "),
])
def test_what_is_for_one_input_alone(slug, said):
    learn = Learner(of_two(), OfTwo(), loss_func=nn.CrossEntropyLoss(), cbs=build(slug, True))
    with pytest.raises(LabelKitError, match=said): fit(learn)


def several(kind):
    x = torch.rand(24, 1, 8, 8)
    y = dict(multi=torch.rand(24, 10).round(), regression=torch.rand(24, 10))[kind]
    return from_arrays(x, y, x, y, bs=8, ratio=1, labeled=12, kind=kind)

@pytest.mark.parametrize("kind", ["multi", "regression"])
@pytest.mark.parametrize("slug", ["mdcs", "self_training", "robust_active_distillation", "wad"])
def test_targets_are_named_before_anything_that_they_break(slug, kind):
    "Whatever fails while a technique gets ready: what it is not for is what is said"
    learn = learner([build(slug, True)], dls=several(kind))
    with pytest.raises(LabelKitError, match=f"targets are of kind '{kind}', and .* works on"):
        fit(learn)


def test_an_error_on_data_that_it_is_for_stays_as_it_is():
    class Breaks(LabelCallback):
        def setup(self): raise KeyError("mine")
    with pytest.raises(KeyError, match="mine"): fit(learner([Breaks()]))


def masks(cb):
    x = torch.rand(24, 1, 4, 4)
    items = list(zip(x, (x[:,0] > .5).long()))
    dls = DataLoaders(DataLoader(items, bs=8), DataLoader(items, bs=8))
    dls = label_dls(dls, [(o,) for o in x], ratio=1)
    dls.c = 2
    loss = CrossEntropyLossFlat(axis=1)
    return Learner(dls, nn.Conv2d(1, 2, 1), loss_func=loss, cbs=cb)

@pytest.mark.parametrize("cls", [FlexMatch, SelfTraining, PredictionPretraining, MoCo])
def test_who_does_not_label_pixels_says_so(cls):
    with pytest.raises(LabelKitError, match="targets are of kind 'segmentation'"): fit(masks(cls()))


def test_energies_of_pixels():
    "The ledger has a sample's mean; the margin is one a class"
    cb = InPL(energy_threshold=0., margin=.5, ema_decay=0.)
    learn = fit(masks(cb))
    assert cb.mean.value.shape == (2,) and cb.ledger.frame().energy.notna().any()
    logits = torch.randn(3, 2, 4, 4)
    mean = torch.tensor([.2, .8])
    got = margin_logits(logits, mean, .5).permute(0, 2, 3, 1)
    torch.testing.assert_close(got, logits.permute(0, 2, 3, 1) + .5*mean.log())
    assert learn.supervision.parts["inpl"][0] > 0


@pytest.mark.parametrize("kind,keys", [(dict, r" with \['logits'\]"), (tuple, "")])
@pytest.mark.parametrize("slug", [
    "confident_relabel", "self_training", "spl", "madaug", "invariance_constrained", "mixup",
])
def test_outputs_that_are_no_tensor(slug, kind, keys):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model()
        def forward(self, x):
            z = self.net(x)
            return dict(logits=z) if kind is dict else (z, z)
    def loss(p, y): return F.cross_entropy(p["logits"] if kind is dict else p[0], y)
    dls = data()
    learn = Learner(dls, Wrapped(), loss_func=loss, cbs=build(slug, True, dls))
    with pytest.raises(LabelKitError, match=f"the model gives a {kind.__name__}{keys}, and"):
        fit(learn)


@pytest.mark.parametrize("batch,said", [
    (lambda i: ((torch.rand(4), torch.rand(4)), 1), "input 0 of a batch is a tuple"),
    (lambda i: (dict(x=torch.rand(4)), 1), "input 0 of a batch is a dict"),
    (lambda i: (torch.rand(4), dict(y=1)), "the target of a batch is a dict"),
    (lambda i: (torch.rand(4), 1, 2), "batches have 2 targets"),
])
def test_batches_that_are_no_tensors(batch, said):
    items = [batch(i) for i in range(8)]
    dls = DataLoaders(DataLoader(items, bs=4), DataLoader(items, bs=4))
    for dl in dls.loaders: dl.n_inp = 1
    dls.c = 3
    class Any(nn.Module):
        def __init__(self):
            super().__init__()
            self.p = nn.Parameter(torch.zeros(3))
        def forward(self, x): return self.p.expand(4, 3)
    learn = Learner(dls, Any(), loss_func=lambda p,*y: p.sum(), cbs=FixesNothing())
    with pytest.raises(LabelKitError, match=said): fit(learn)


class FixesNothing(LabelCallback): "Is there, and does nothing"


KEPT = dict(
    label_critic=lambda dls: dict(
        candidates=(dls.given+1) % 10, judge=lambda x, a, b: torch.full_like(a, 2)
    ),
    label_budget=lambda dls: dict(good=dls.truth, budget=200., price=2.),
    annotator_quality=lambda dls: dict(votes=dls.given[:, None], gold=dls.truth),
)

@pytest.mark.parametrize("slug", KEPT)
def test_a_copy_acts_and_a_pickle_says_what_it_lacks(slug):
    "Data are left out of a pickle: the technique must not be off without a word"
    dls = data(labeled=None)
    learn = fit(learner([registry[slug].cls(**KEPT[slug](dls))], dls=dls))
    copied = deepcopy(learn)
    cb = getattr(copied, slug)
    assert not cb.off and cb is not getattr(learn, slug)
    for k,v in KEPT[slug](dls).items():
        if torch.is_tensor(v): assert torch.equal(getattr(cb, k), v)
    fit(copied)
    assert cb.ledger is not None and cb.ledger is not getattr(learn, slug).ledger
    back = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(learn))))
    lost = ", ".join(k for k,v in KEPT[slug](dls).items() if not isinstance(v, float))
    with pytest.raises(LabelKitError, match=f"{lost} of .* were left out when it was pickled"):
        fit(back)


def test_a_model_that_wraps_another_has_its_layers():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model()
        def forward(self, x): return self.net(x)
    assert body_layers(Wrapped()) == [f"net.{o}" for o in body_layers(model())]


def of(x):
    items = [(o, i % 3) for i,o in enumerate(x)]
    dls = DataLoaders(DataLoader(items, bs=8), DataLoader(items, bs=8))
    dls = label_dls(dls)
    dls.c = 3
    return dls

BYTES = torch.zeros(16, 1, 8, 8).byte()

@pytest.mark.parametrize("slug,x,said", [
    ("madaug", BYTES, "MADAug computes with inputs.*turn it into floats$"),
    ("cutmix", BYTES, "CutMix averages inputs.*turn it into floats$"),
    ("mixup", torch.zeros(16, 4).long(), r"into floats: use ManifoldMixUp\(layers=…\) to mix"),
    ("cutmix", torch.zeros(16, 4), r"shape \(8, 4\): use MixUp for other inputs$"),
    ("madaug", torch.zeros(16, 4), r"MADAug works on images .* got inputs of shape \(8, 4\)$"),
])
def test_a_reason_about_targets_is_none_about_inputs(slug, x, said):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(x[0].numel(), 3)
        def forward(self, x): return self.head(x.float().flatten(1))
    learn = Learner(of(x), Net(), loss_func=nn.CrossEntropyLoss(), cbs=registry[slug].cls())
    with pytest.raises(LabelKitError, match=said): fit(learn)
