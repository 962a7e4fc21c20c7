import copy, pickle
from types import SimpleNamespace

import pytest, torch
from fastai.optimizer import Adam
from torch import nn

from labelkit.errors import LabelKitError
from labelkit.models import unwrap
from labelkit.core.auxiliary import frozen_call
from labelkit.core.teachers import EMA, Ensemble, Frozen, VirtualStudent, as_teacher
from labelkit.core.teachers import check_teacher, ema_decay_at


def net(c=3):
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, c)
    )


def state_of(m): return {k: v.clone() for k, v in m.state_dict().items()}
def same(a, b): return all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def x(): return torch.randn(16, 4)


kinds = dict(
    frozen=lambda m: Frozen(m),
    batch_stats=lambda m: Frozen(m, batch_stats=True),
    ema=lambda m: EMA(m, 0.9),
    ema_batch_stats=lambda m: EMA(m, 0.9, batch_stats=True),
    ensemble=lambda m: Ensemble([m, m]),
)
models_of = lambda t: [u.model for u in t.model] if isinstance(t.model, list) else [t.model]


@pytest.mark.parametrize("kind", kinds)
class TestEveryTeacher:
    def test_asking_never_changes_it(self, kind, x):
        t = kinds[kind](net())
        before = [state_of(m) for m in models_of(t)]
        rng = torch.get_rng_state()
        for _ in range(3): out = t(x)
        assert not out.requires_grad and torch.equal(torch.get_rng_state(), rng)
        assert all(same(b, state_of(m)) for b, m in zip(before, models_of(t)))
        assert not any(p.requires_grad for m in models_of(t) for p in m.parameters())

    def test_the_given_model_stays_as_it_was(self, kind, x):
        m = net().train()
        before = state_of(m)
        t = kinds[kind](m)
        t(x)
        assert m.training and all(p.requires_grad for p in m.parameters())
        assert m[1].track_running_stats and same(before, state_of(m))
        out = t(x)
        with torch.no_grad(): m[0].weight.add_(1)
        assert torch.equal(t(x), out)

    def test_a_loss_on_it_trains_only_the_student(self, kind, x):
        m = net()
        t = kinds[kind](m)
        nn.functional.mse_loss(m(x), t(x)).backward()
        assert all(p.grad is not None for p in m.parameters())
        assert all(p.grad is None for q in models_of(t) for p in q.parameters())

    def test_mixed_precision_answers_in_32_bits(self, kind, x):
        t = kinds[kind](net())
        with torch.autocast("cpu", torch.bfloat16): half = t(x)
        assert half.dtype == torch.float32 and (half - t(x)).abs().max() < .1

    def test_pickle_leaves_the_weights_out(self, kind, x):
        t = kinds[kind](nn.Sequential(nn.Linear(4, 4000), nn.Linear(4000, 3)))
        data = pickle.dumps(t)
        back = pickle.loads(data)
        assert len(data) < 1000
        with pytest.raises(LabelKitError, match="restore"): back(x)
        assert torch.equal(back.restore(models_of(t) if kind == "ensemble" else t.model)(x), t(x))

    def test_deepcopy_keeps_the_weights(self, kind, x):
        t = kinds[kind](net())
        other = copy.deepcopy(t)
        assert torch.equal(other(x), t(x))
        with torch.no_grad(): models_of(other)[0][4].weight.add_(1)
        assert not torch.equal(other(x), t(x))

    def test_someone_calls_train(self, kind, x):
        t = kinds[kind](net())
        out = t(x)
        for m in models_of(t): m.train()
        assert torch.equal(t(x), out)


def test_batch_stats_are_those_of_the_batch(x):
    m = net()
    t = Frozen(m, batch_stats=True)
    m[3].p = 0.
    torch.testing.assert_close(t(x), m.train()(x).detach())


def test_ema_by_hand():
    m = nn.Linear(2, 1)
    nn.init.ones_(m.weight)
    t = EMA(m, .9, warmup=None)
    nn.init.constant_(m.weight, 3.)
    t.update(m)
    torch.testing.assert_close(t.model.weight, torch.full((1, 2), .9*1 + .1*3))
    t.update(m)
    torch.testing.assert_close(t.model.weight, torch.full((1, 2), .9*1.2 + .1*3))
    assert t.steps == 2


def test_ema_warmup():
    assert [ema_decay_at(t) for t in (0, 1, 8)] == [1 / 2, 1 - 1 / 3, 0.9] and ema_decay_at(
        10**6
    ) == 0.999
    assert [ema_decay_at(t, 0.99, "tensorflow") for t in (0, 8)] == [0.1, 0.5] and ema_decay_at(
        0, 0.99, None
    ) == 0.99
    m = nn.Linear(1, 1, bias=False)
    values = []
    t = EMA(m)
    values.append(m.weight.item())
    for _ in range(5):
        nn.init.normal_(m.weight)
        values.append(m.weight.item())
        t.update(m)
    assert t.model.weight.item() == pytest.approx(sum(values)/len(values), abs=1e-6)


@pytest.mark.parametrize("ema_buffers", [False, True])
def test_ema_buffers(x, ema_buffers):
    m = net()
    t = EMA(m, .9, warmup=None, ema_buffers=ema_buffers)
    m(x)
    t.update(m)
    bn = m[1]
    mine = t.model[1]
    torch.testing.assert_close(
        mine.running_mean, 0.1 * bn.running_mean if ema_buffers else bn.running_mean
    )
    assert mine.num_batches_tracked == 1


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, torch.compile, lambda m: torch.compile(nn.DataParallel(m))]
)
def test_wrapped_students(wrap, x):
    m = net()
    w = wrap(m)
    t = EMA(w, 0., warmup=None)
    assert unwrap(w) is m and type(t.model) is nn.Sequential
    with torch.no_grad(): m[0].weight.add_(1)
    t.update(w)
    assert same(state_of(m), state_of(t.model))


def test_frozen_and_tied_weights():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 3)
            self.b = nn.Linear(3, 3)
            self.b.weight = self.a.weight
            self.a.bias.requires_grad_(False)
    m = Tied()
    t = EMA(m, 0., warmup=None)
    with torch.no_grad(): m.a.weight.add_(1)
    t.update(m)
    assert t.model.a.weight is t.model.b.weight and torch.equal(t.model.a.weight, m.a.weight)


def test_update_inside_autocast(x):
    """Autocast keeps low precision copies of weights: a teacher must not be answered from a stale
    one"""
    m = net()
    t = EMA(m, 0., warmup=None)
    with torch.autocast("cpu", torch.bfloat16):
        before = t(x)
        with torch.no_grad(): m[4].weight.add_(1)
        assert not torch.equal(t.update(m)(x), before)


def test_state_roundtrip(x, tmp_path):
    m = net()
    other = net()
    t = EMA(m, .9)
    for _ in range(3):
        with torch.no_grad(): m[0].weight.normal_()
        t.update(m)
    saved = t.state_dict()
    torch.save(saved, tmp_path/"ema.pt")
    fresh = EMA(other, .9).load_state_dict(torch.load(tmp_path/"ema.pt", weights_only=True))
    assert fresh.steps == 3 and torch.equal(fresh(x), t(x))
    for e in (t, fresh): e.update(m)
    assert torch.equal(fresh(x), t(x))
    assert not same(saved["model"], state_of(t.model))           # a copy, not a view
    with pytest.raises(LabelKitError, match="another model"): EMA(net(5)).load_state_dict(saved)
    with pytest.raises(LabelKitError, match="steps"): t.load_state_dict({})


def test_copy_to(x):
    m = net()
    target = net()
    t = EMA(m)
    t.copy_to(target)
    assert same(state_of(m), state_of(target)) and target[0].weight.requires_grad


@pytest.mark.parametrize("decay", [-.1, 1.1, None, "slow", True])
def test_wrong_decay(decay):
    with pytest.raises(LabelKitError, match="decay"): EMA(net(), decay)


def test_wrong_students():
    with pytest.raises(LabelKitError, match="other parameters"): EMA(net()).update(net(4))
    with pytest.raises(LabelKitError, match="use Frozen"): EMA(lambda x: x)
    with pytest.raises(LabelKitError, match="warmup"): EMA(net(), warmup="slow")
    with pytest.raises(LabelKitError, match="unpickled"):
        pickle.loads(pickle.dumps(EMA(nn.Linear(1, 1)))).update(net())


def test_ensemble_means(x):
    a = net().eval()
    b = net().eval()
    mean = (a(x).softmax(1) + b(x).softmax(1))/2
    out = Ensemble([a, b])(x)
    torch.testing.assert_close(out.softmax(1), mean)
    torch.testing.assert_close(out, mean.log())
    torch.testing.assert_close(Ensemble([a, b], "logits")(x), (a(x) + b(x))/2)
    assert (
        Ensemble([lambda x: torch.tensor([[1e4, 0.0]]), lambda x: torch.tensor([[1e4, 0.0]])])(x)
        .isfinite()
        .all()
    )


def test_ensemble_refuses(x):
    with pytest.raises(LabelKitError, match="mode"): Ensemble([net()], "median")
    with pytest.raises(LabelKitError, match="empty"): Ensemble([])
    with pytest.raises(LabelKitError, match="answer alike"): Ensemble([net(3), net(4)])(x)


def test_as_teacher(x):
    m = net().eval()
    learner_like = SimpleNamespace(dls=None, model=m)
    for obj in (m, learner_like, lambda x: m(x), [m, m]):
        assert torch.allclose(as_teacher(obj)(x).softmax(1), m(x).softmax(1), atol=1e-6)
    t = EMA(m)
    assert as_teacher(t) is t and torch.equal(Frozen(learner_like)(x), m(x))
    for wrong in ("resnet18", None, nn.Linear, 3):
        with pytest.raises(LabelKitError, match="teacher must be"): as_teacher(wrong)
    with pytest.raises(LabelKitError, match="tensor of logits"): as_teacher(lambda x: (x, x))(x)


def test_a_real_learner(x):
    from fastai.basics import DataLoaders, Learner
    from torch.utils.data import DataLoader, TensorDataset
    dl = DataLoader(TensorDataset(x, torch.zeros(16, dtype=torch.long)), batch_size=8)
    m = net().eval()
    learn = Learner(DataLoaders(dl, dl), m, loss_func=nn.CrossEntropyLoss())
    assert torch.equal(Frozen(learn)(x), m(x)) and torch.equal(as_teacher(learn)(x), m(x))


def test_no_copy_freezes_the_given_model():
    m = net().train()
    t = Frozen(m, copy=False)
    assert t.model is m and not m.training and not m[0].weight.requires_grad


def test_check_teacher(x):
    assert isinstance(check_teacher(net(3), x, 3), Frozen)
    with pytest.raises(LabelKitError, match="knows 5 classes, the student 3"):
        check_teacher(net(5), x, 3)
    with pytest.raises(LabelKitError, match=r"logits must be \[2, 3\]"):
        check_teacher(lambda x: torch.zeros(3), x, 3)
    with pytest.raises(LabelKitError, match="NaN"):
        check_teacher(lambda x: torch.full((len(x), 3), float("nan")), x, 3)


def test_device():
    assert Frozen(net()).device == torch.device("cpu") and Frozen(lambda x: x).device is None
    t = Frozen(net()).to("meta")
    assert t.device.type == "meta" and t(torch.empty(2, 4, device="meta")).shape == (2, 3)


def test_several_inputs(x):
    "A teacher of two inputs is asked for features, and a virtual student for logits"
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 5)
            self.b = nn.Linear(2, 5)
            self.head = nn.Linear(5, 3)
        def forward(self, x, v): return self.head(self.a(x) + self.b(v))
    model = Two()
    v = torch.randn(16, 2)
    logits,f = Frozen(model)(x, v, features=True)
    torch.testing.assert_close(f, model.a(x) + model.b(v))
    torch.testing.assert_close(logits, model(x, v))
    student = VirtualStudent(model, Adam(list(model.parameters()), lr=.1))
    torch.testing.assert_close(student(x, v), model(x, v))


def test_a_teacher_of_other_inputs_is_named(x):
    with pytest.raises(LabelKitError, match=r"the teacher fails for inputs of shape \(2, 5\)"):
        check_teacher(net(), torch.rand(8, 5), 3)
    with pytest.raises(LabelKitError, match=r"shape \(2, 4\) and \(2, 4\), which the student"):
        check_teacher(net(), (x, x), 3)


def test_a_traced_model(x):
    "It is copied and averaged; what replaces its weights says that it cannot"
    traced = torch.jit.trace(net().train(), x, check_trace=False)
    for teacher in (Frozen(traced), EMA(traced)):
        assert not any(p.requires_grad for p in teacher.model.parameters())
        assert teacher(x).shape == (16, 3)
    with pytest.raises(LabelKitError, match="is a model of torch.jit"):
        VirtualStudent(traced, Adam(list(traced.parameters()), lr=.1))
    with pytest.raises(LabelKitError, match="is a model of torch.jit"): frozen_call(traced, x)


def test_features_of_several_inputs():
    "Both are asked for in the teacher's precision"
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(2, 3)
        def forward(self, a, b): return self.head(a + b)
    teacher = Frozen(Sum().double())
    a,b = torch.rand(2, 4, 2)
    logits,features = teacher(a, b, features=True)
    torch.testing.assert_close(features, a + b)
    torch.testing.assert_close(logits, teacher(a, b))
