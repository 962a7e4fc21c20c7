"""The contract: what every registered technique promises, whatever it does. A technique is covered
by being registered."""
import pickle

import pytest
import torch
from torch import nn
from fastai.basics import (
    CancelFitException,
    DataLoader,
    DataLoaders,
    Learner,
    load_learner,
    set_seed,
)
from fastai.callback.core import Callback
from fastai.callback.training import GradientAccumulation, ShortEpochCallback

from contract import (
    EXCEPTIONS,
    MODEL,
    SLUGS,
    Drawn,
    Raise,
    build,
    data,
    fit,
    learner,
    loaders,
    model,
    same,
    weights,
    with_dropout,
)
from labelkit.core.checkpoint import Checkpoint
from labelkit.core.record import Supervision
from labelkit.data.arrays import Arrays
from labelkit.data.loaders import label_dls
from labelkit.errors import LabelKitError
from labelkit.core.supervision import LabelCallback
from labelkit.core.teachers import EMA
from labelkit.core.technique import registry
from labelkit.lesson.batch import look
from labelkit.mix.cutmix import CutMix
from labelkit.models import unwrap
from labelkit.pseudo.fixmatch import FixMatch


@pytest.fixture(params=SLUGS)
def slug(request):
    reason = EXCEPTIONS.get((request.param, request.node.originalname))
    if reason: pytest.skip(reason)
    return request.param


class Gradients(Callback):
    "The largest gradient that each named loss sends into the weights; the passes of the model"
    order = 6
    def before_fit(self):
        self.seen = {}
        self.passes = 0
    def after_loss(self):
        if not self.training: return
        self.passes += 1 + len(self.learn.supervision.record.apart)
        params = [p for p in self.learn.model.parameters() if p.requires_grad]
        for name,(value,_) in self.learn.supervision.record.losses.items():
            assert value.requires_grad, f"the loss {name!r} has no gradient"
            grads = torch.autograd.grad(value, params, retain_graph=True, allow_unused=True)
            size = max(float(g.abs().max()) for g in grads if g is not None)
            self.seen[name] = max(size, self.seen.get(name, 0.))


def test_loss_reaches_the_weights(slug):
    plain = fit(learner(slug=slug))
    learn = learner([build(slug, active=True), g := Gradients()], slug=slug)
    before = weights(learn)
    fit(learn)
    after = weights(learn)
    assert all(torch.isfinite(v).all() for v in after.values())
    for name,p in learn.model.named_parameters():
        assert not torch.equal(before[name], after[name]) or p.grad is None, f"{name} did not move"
    assert all(v > 0 for v in g.seen.values()), f"no gradient from {g.seen}"
    # what a technique asks the model beside the joint pass leaves batch norm's statistics alone
    tracked = [v for k,v in after.items() if k.endswith("num_batches_tracked")]
    assert all(int(v) <= g.passes for v in tracked), "batch norm was moved more than once a step"
    assert not same(after, weights(plain)), "the technique changed nothing"


def test_neutral_setting_is_the_baseline(slug):
    plain = fit(learner(slug=slug), 2)
    neutral = fit(learner([build(slug, **registry[slug].neutral)], slug=slug), 2)
    assert registry[slug].neutral, "the card names no neutral setting"
    assert same(weights(plain), weights(neutral))
    assert plain.recorder.losses == neutral.recorder.losses


def knowing(slug, shift):
    "A learner whose validation labels, and whose truth, are other classes"
    dls = loaders(slug)
    cb = build(slug, active=True, dls=dls)
    y = dls.valid_ds.arrays.y
    y.copy_((y + shift) % 10)
    asks = "oracle" in registry[slug].cls.parameters()  # for the truth, as somebody would be asked
    if dls.truth is not None and not asks: dls.truth = (dls.truth + shift) % 10
    return learner([cb], dls=dls, slug=slug)


def test_one_seed_one_result(slug):
    "The same whatever the validation set's labels are, and the truth of what is trained on"
    a,b = (fit(knowing(slug, shift)) for shift in (0, 1))
    assert same(weights(a), weights(b))
    other = fit(learner([build(slug, active=True)], slug=slug, seed=4), seed=4)
    assert not same(weights(a), weights(other))


class Twins(nn.Module):
    "A model of two images"
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(8, 10)
    def forward(self, a, b):
        return self.head(torch.cat([self.body(o).mean((2, 3)) for o in (a, b)], 1))


@pytest.mark.parametrize("slug", [s for s in SLUGS if not registry[s].makes])
def test_a_model_of_two_images(slug):
    "It trains, or words say why not; techniques of features work, with the slow copy's too"
    g = torch.Generator().manual_seed(0)
    items = list(zip(*torch.rand(2, 32, 1, 8, 8, generator=g), torch.arange(32) % 10))
    dls = DataLoaders(*(DataLoader(items, bs=8) for _ in range(2)))
    for o in dls.loaders: o.n_inp = 2
    dls.c = 10
    card = registry[slug]
    more = dict(unlabeled=[o[:2] for o in items]) if "unlabeled" in card.needs else {}
    teacher = dict(teacher=Twins()) if "teacher" in card.needs else {}
    learn = Learner(label_dls(dls, **more), Twins(), loss_func=nn.CrossEntropyLoss(),
                    cbs=[build(slug, active=True, **teacher)])
    try: fit(learn)
    except LabelKitError:
        if card.family == "represent": raise
    assert all(torch.isfinite(v).all() for v in weights(learn).values())


ONE_IMAGE = [s for s in SLUGS if registry[s].cls.inputs == "image"]

@pytest.mark.parametrize("slug", ONE_IMAGE)
def test_one_image_is_what_it_looks_at(slug):
    s = Supervision((torch.rand(4, 1, 8, 8),)*2, torch.arange(4), 10)
    with pytest.raises(LabelKitError, match="takes 2 inputs, and .* looks at one image.* use "):
        build(slug).check(s)
    assert {"adautomix", "invariance_constrained", "madaug", "prockd"} <= set(ONE_IMAGE)


# techniques that read or change what layers give, in the joint pass or in one of their own
HOOKED = ["manifold_mixup", "mdcs", "nested_dropout", "prockd", "simclr", "smmix", "uplsfda"]

@pytest.mark.parametrize("slug", HOOKED)
def test_a_compiled_model(slug):
    "What was compiled without hooks, for the batches in which nothing happens, gives the same"
    trained = []
    for wrap in (lambda o: o, lambda o: torch.compile(o, backend="eager")):
        torch.compiler.reset()
        learn = learner([build(slug, active=True, p=.5)], slug=slug)
        learn.model = wrap(learn.model)
        fit(learn, 2)
        trained.append({k: v.clone() for k,v in unwrap(learn.model).state_dict().items()})
    assert same(*trained)


@pytest.mark.parametrize("strict", [False, True])
def test_a_model_of_64_bits(slug, strict, monkeypatch):
    """It stays one, and so do the networks beside it; a strict one does not turn its inputs into
    its own precision"""
    inputs = Arrays.inputs
    monkeypatch.setattr(Arrays, "inputs", lambda self, rows: inputs(self, rows).double())
    learn = learner([cb := build(slug, active=True)], slug=slug)
    if strict: learn.model.normalize = nn.Identity()
    learn.model.double()
    fit(learn, cbs=[ShortEpochCallback(.5)])
    moved = {k: v for k,v in weights(learn).items() if v.is_floating_point()}
    for k,a in cb.auxiliaries.items():
        moved |= {f"{k}.{n}": p for n,p in a.module.named_parameters()}
    for k,v in moved.items(): assert v.dtype == torch.double and torch.isfinite(v).all(), k


class Doubt(LabelCallback):
    "Every third sample of a batch counts nothing, and has another label"
    stage = "relabel"
    def __init__(self, shift):
        super().__init__()
        self.shift = shift

    def before_forward(self, s):
        bad = torch.arange(len(s.x), device=s.x.device) % 3 == 0
        s.targets = torch.where(bad[:, None], s.targets.roll(self.shift, 1), s.targets)
        s.weigh((~bad).float())


@pytest.mark.parametrize("slug", SLUGS)
def test_a_label_that_counts_nothing_teaches_nothing(slug):
    "Neither the model nor a network beside it"
    seen = []
    for shift in (1, 3):
        cb = build(slug, active=True)
        learn = fit(learner([Doubt(shift), cb], slug=slug))
        beside = {f"{k}.{n}": v for k,a in cb.auxiliaries.items()
                  for n,v in a.module.state_dict().items()}
        seen.append(weights(learn) | beside)
    assert same(*seen)


# in all losses of ActiveOutliers the weight is inside, beside answers that count as labels do
WEIGHTED = [
    s for s in SLUGS
    if "weight" in registry[s].cls.parameters() and s != "active_outliers"
]
# losses that have a weight of their own, or count as the labels' loss
APART = {
    "prockd.task": "task_weight",
    "sla.distill": "distill",
    "wad.moved": "those samples count as labeled",
}

@pytest.mark.parametrize("slug", WEIGHTED)
def test_the_weight_counts_for_every_loss(slug):
    factors = []
    for weight in (1., 3.):
        s = look(learner([build(slug, active=True, weight=weight)], slug=slug)).record
        found = s.losses | s.auxiliary_losses
        factors.append({k: float(w) for k,(_,w) in found.items() if k not in APART})
    assert factors[1] == pytest.approx({k: 3*w for k,w in factors[0].items()})


AVERAGED = [s for s in SLUGS if "ema_decay" in registry[s].cls.parameters()]

@pytest.mark.parametrize("slug", AVERAGED)
def test_an_average_follows_the_model_at_its_pace(slug):
    "Once in each step, towards the weights after it, by the share that was asked for"
    if isinstance(registry[slug].cls.parameters()["ema_decay"].default, tuple): return
    for decay in (0., .75):
        cb = build(slug, active=True, ema_decay=decay)
        learn = fit(learner([cb], slug=slug))
        means = {id(o): o for o in vars(cb).values() if isinstance(o, EMA)}.values()
        for mean in means:
            assert mean.decay == decay and mean.steps == len(learn.dls.train)
        if decay == 0 and type(vars(cb).get("teacher")) is EMA:
            assert same(weights(learn), cb.teacher.model.state_dict())


@pytest.mark.full
def test_global_random_numbers_are_left_alone(slug):
    "Dropout, say, sees the same numbers with and without the technique"
    states = []
    for cbs in ([], [build(slug, active=True)]):
        fit(learner(cbs, slug=slug))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_validation_is_untouched(slug):
    learn = fit(learner([build(slug, active=True)], slug=slug))
    with learn.no_bar(), learn.no_logging():
        loss = list(learn.validate())
        preds = learn.get_preds()[0]
        learn.remove_cbs([cb for cb in list(learn.cbs) if isinstance(cb, LabelCallback)])
        assert list(learn.validate()) == loss
        assert torch.equal(learn.get_preds()[0], preds)


def test_the_loss_function_and_data_are_untouched(slug):
    dls = loaders(slug)
    loss = torch.nn.CrossEntropyLoss()
    learn = learner([build(slug, active=True)], slug=slug, dls=dls, loss_func=loss)
    before = list(dls.loaders)
    x = dls.train_ds.arrays.x.clone()
    given = dls.given.clone()
    fit(learn)
    assert learn.loss_func is loss and loss.reduction == "mean"
    assert learn.dls is dls and all(a is b for a,b in zip(before, dls.loaders))
    assert torch.equal(dls.train_ds.arrays.x, x) and torch.equal(dls.given, given)
    assert learn.xb == (None,) and learn.yb == (None,)
    assert "one_batch" not in learn.__dict__


@pytest.mark.full
@pytest.mark.parametrize(
    "event", ["before_batch", "after_pred", "after_loss", "after_step", "after_batch"]
)
@pytest.mark.parametrize("error", [KeyboardInterrupt, CancelFitException])
def test_an_interruption_leaves_a_clean_learner(slug, event, error):
    loss = torch.nn.CrossEntropyLoss()
    learn = learner([build(slug, active=True)], slug=slug, loss_func=loss)
    dls = learn.dls
    drawn = Drawn()
    try: fit(learn, cbs=[drawn, Raise(event, error)])
    except KeyboardInterrupt:
        for a,b in zip((*learn.xb, *learn.yb), drawn.batch): assert torch.equal(a, b)
    assert learn.loss_func is loss and learn.dls is dls
    assert "one_batch" not in learn.__dict__
    fit(learn)
    assert all(torch.isfinite(v).all() for v in weights(learn).values())


@pytest.mark.full
def test_a_resumed_fit_equals_the_unbroken_one(slug, tmp_path):
    "With a model that draws from the global stream: its state belongs to the checkpoint too"
    def start(slug):
        make = MODEL.get(slug, with_dropout)
        return learner([build(slug, active=True)], slug=slug, make=make)
    whole = fit(start(slug), 3)
    path = tmp_path/"fit.pt"

    class Die(Callback):
        order = 1000
        def after_batch(self):
            if self.training and self.epoch == 1 and self.iter == 1: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        fit(start(slug), 3, cbs=[Checkpoint(path), Die()])
    resumed = fit(start(slug), 3, cbs=[Checkpoint(path)], seed=99)
    assert same(weights(whole), weights(resumed))
    assert whole.recorder.losses == resumed.recorder.losses


@pytest.mark.full
def test_a_fit_that_begins_at_a_later_epoch(slug):
    "What would have been found before is found at its beginning"
    def late(*cbs):
        learn = learner(cbs, slug=slug)
        set_seed(3)
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(3, 3e-3, start_epoch=2)
        return weights(learn)
    w = late(build(slug, active=True))
    assert all(torch.isfinite(v).all() for v in w.values())
    assert not same(w, late()), "the technique changed nothing"


@pytest.mark.full
@pytest.mark.parametrize("bs", [1, 7])
def test_batch_of_one_and_odd_batches(slug, bs):
    dls = loaders(slug, n=80, labeled=40, bs=bs)
    learn = fit(learner([build(slug, active=True, dls=dls)], slug=slug, dls=dls))
    assert all(torch.isfinite(v).all() for v in weights(learn).values())


@pytest.mark.full
def test_last_partial_batch(slug):
    dls = loaders(slug)
    dls.train.steps = None
    dls.train.drop_last = False
    dls.train.bs = 60  # 64 labeled samples: 60 and 4
    sizes = []

    class Sizes(Callback):
        def after_batch(self):
            if self.training: sizes.append(len(self.yb[0]))
    learn = fit(learner([build(slug, active=True)], slug=slug, dls=dls), cbs=[Sizes()])
    assert sizes == [60, 4]
    assert all(torch.isfinite(v).all() for v in weights(learn).values())


@pytest.mark.full
def test_used_again_with_another_learner(slug):
    cb = build(slug, active=True)
    fit(learner([cb], slug=slug))
    again = fit(learner([cb], slug=slug))
    fresh = fit(learner([build(slug, active=True)], slug=slug))
    assert same(weights(again), weights(fresh))


class Autocast(Callback):
    "bf16 on the CPU, opened and closed where fastai's MixedPrecision does"
    order = 10
    def before_batch(self):
        self.context = torch.autocast("cpu", torch.bfloat16)
        self.context.__enter__()
    def after_pred(self): self.learn.pred = self.pred.float()
    def after_loss(self): self.context.__exit__(None, None, None)


@pytest.mark.full
def test_bf16_autocast(slug):
    learn = fit(learner([build(slug, active=True), Autocast()], slug=slug))
    assert all(
        v.dtype != torch.bfloat16 and torch.isfinite(v).all() for v in weights(learn).values()
    )


@pytest.mark.full
def test_gradient_accumulation(slug):
    steps = []

    class Steps(Callback):
        order = 1000
        def after_step(self): steps.append(1)
    learn = fit(learner([build(slug, active=True), GradientAccumulation(32), Steps()], slug=slug))
    assert len(steps) == len(learn.dls.train)//2
    assert all(torch.isfinite(v).all() for v in weights(learn).values())


@pytest.mark.full
@pytest.mark.parametrize("other", ["cutmix", "fixmatch"])
def test_beside_another(slug, other):
    mate = CutMix() if other == "cutmix" else FixMatch(threshold=0.)
    if slug == other: pytest.skip("the same technique twice")

    class Sums(Callback):
        order = 6
        def after_pred(self):
            if self.training:
                t = self.learn.supervision.record.targets
                torch.testing.assert_close(t.sum(1), torch.ones(len(t)))
    learn = fit(learner([build(slug, active=True), mate, Sums()], slug=slug))
    alone = fit(learner([build(slug, active=True)], slug=slug))
    assert not same(weights(learn), weights(alone))


@pytest.mark.full
def test_pickles_and_exports_without_a_teacher(slug, tmp_path):
    learn = learner([build(slug, active=True)], slug=slug)
    fit(learn)
    pickle.loads(
        pickle.dumps([cb for cb in learn.cbs if isinstance(cb, LabelCallback)][0].state_dict())
    )
    learn.path = tmp_path
    x = learn.dls.valid.one_batch()[0][:4]
    preds = learn.get_preds(dl=learn.dls.test_dl(x))[0]
    learn.export("learner.pkl")
    weight_bytes = sum(v.numel()*v.element_size() for v in learn.model.state_dict().values())
    assert (tmp_path / "learner.pkl").stat().st_size < 1.7 * weight_bytes + 60_000, (
        "more than one set of weights was exported"
    )
    again = load_learner(tmp_path/"learner.pkl")
    assert torch.equal(again.get_preds(dl=learn.dls.test_dl(x))[0], preds)


@pytest.mark.full
def test_learning_rate_search(slug):
    learn = learner([build(slug, active=True)], slug=slug)
    before = weights(learn)
    with learn.no_bar(), learn.no_logging(): learn.lr_find(num_it=6, show_plot=False)
    assert same(before, weights(learn))
    assert "one_batch" not in learn.__dict__


def test_what_is_missing_is_said(slug):
    needs = registry[slug].needs
    cb = build(slug)
    if "unlabeled" in needs:
        with pytest.raises(LabelKitError, match="needs unlabeled samples.*label_dls"):
            fit(learner([cb], slug=slug, dls=loaders(slug, labeled=None)))
    if "ids" in needs:
        from fastai.basics import DataLoader, DataLoaders
        items = [(torch.rand(1,8,8), torch.tensor(i % 10)) for i in range(20)]
        dls = DataLoaders(DataLoader(items, bs=4), DataLoader(items, bs=4))
        dls.c = 10
        dls.unlabeled = dls.train
        with pytest.raises(LabelKitError, match="no ids: call `label_dls"):
            fit(learner([cb], slug=slug, dls=dls, loss_func=torch.nn.CrossEntropyLoss()))
    if "teacher" in needs:
        from labelkit.models import small_cnn
        with pytest.raises(LabelKitError, match="7.*10|10.*7"):
            fit(learner([registry[slug].cls(teacher=small_cnn(c=7, c_in=1))], slug=slug))


def test_a_sample_that_is_not_a_number_is_named(slug):
    dls = loaders(slug)
    bad = int(dls.train_ds.rows[5])
    dls.train_ds.arrays.x[bad] = float("nan")
    with pytest.raises(LabelKitError, match=rf"samples \[.*{bad}.*\] are not finite"):
        fit(learner([build(slug)], slug=slug, dls=dls), 2)


class Dense(nn.Module):
    "Logits for each pixel, by a linear layer"
    def __init__(self, c):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(8, c)
    def forward(self, x): return self.head(self.body(x).movedim(1, -1)).movedim(-1, 1)


def several(kind, n=24, c=10):
    "Small loaders of random images with targets of another kind, and a loss and a model for them"
    x = torch.rand(n, 1, 8, 8)
    y = dict(
        multi=torch.randint(0, 2, (n, c)).float(), regression=torch.rand(n, 1),
        segmentation=torch.randint(0, c, (n, 8, 8)),
    )[kind]
    items = list(zip(x, y))
    dls = DataLoaders(*(DataLoader(items, bs=8) for _ in range(2)))
    dls.c = 1 if kind == "regression" else c
    dls.vocab = list(map(str, range(dls.c)))
    dls.device = torch.device("cpu")
    dls = label_dls(dls, None)
    loss = dict(multi=nn.BCEWithLogitsLoss, regression=nn.MSELoss, segmentation=nn.CrossEntropyLoss)
    net = Dense(c) if kind == "segmentation" else model()
    if kind == "regression": net.head = nn.Linear(net.head.in_features, 1)
    return dls,loss[kind](),net


@pytest.mark.parametrize("kind", ["multi", "regression", "segmentation"])
def test_targets_it_works_on_and_those_it_refuses(slug, kind):
    "What is declared is what happens: finite weights, or words about the kind of targets"
    card = registry[slug]
    if set(card.needs) & {"unlabeled"} or card.makes or card.model != "small_cnn": return
    dls,loss,net = several(kind)
    set_seed(3)
    learn = Learner(dls, net, loss_func=loss, cbs=[build(slug, active=True)])
    if kind in card.cls.targets:
        fit(learn)
        assert all(torch.isfinite(v).all() for v in weights(learn).values())
    else:
        with pytest.raises(LabelKitError): fit(learn)


def test_one_name_everywhere(slug):
    card = registry[slug]
    assert card.cls.__module__.rsplit(".", 1)[1] == slug == card.slug
    cb = build(slug, active=True)
    learn = learner([cb], slug=slug)
    assert getattr(learn, slug) is cb
    fit(learn)
    parts = set(learn.supervision.parts) - {"labeled"}
    assert all(o == slug or o.startswith(f"{slug}.") for o in parts), parts


def test_settings_are_told_and_can_be_given_again(slug):
    cb = build(slug, active=True)
    assert repr(cb).startswith(f"{registry[slug].name}(")
    assert set(cb.settings()) <= set(cb.parameters())
    again = type(cb)(**cb.settings())
    assert repr(again) == repr(cb)
    assert {"p"} <= set(cb.parameters())


def test_other_loaders_are_a_new_beginning(slug):
    "`learn.dls = …` with more samples: no table by id of the former ones is asked"
    if registry[slug].makes: return  # a store or a log belongs to its samples
    # in half of the batches it does not act, and has to do without what it knows of others
    learn = fit(learner([build(slug, active=True, p=.5)], slug=slug))
    learn.dls = loaders(slug, n=240, labeled=96)
    fit(learn)
    assert all(torch.isfinite(v).all() for v in weights(learn).values())


def test_the_model_of_the_contract_is_real():
    "The small network learns: the contract is not tested on one that cannot"
    learn = learner(dls=data(n=1000, labeled=None, bs=32))
    learn.model = model()
    fit(learn, 6)
    assert learn.final_record[-1] > .8
