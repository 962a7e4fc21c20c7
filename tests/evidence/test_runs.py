"One run: seeded, on fresh copies, and named when it fails"
import math
from types import SimpleNamespace

import pytest
import torch
from fastai.basics import Callback, DataLoader, DataLoaders, Learner, Metric, accuracy
from torch.utils.data import TensorDataset

from labelkit.data.sets import digits
from labelkit.errors import LabelKitError
from labelkit.evidence.runs import Whole, check_row, run, sendable, train_row
from labelkit.mix.cutmix import CutMix
from labelkit.models import small_cnn

net = lambda dls: small_cnn(dls, width=4)


def a_row(**kwargs):
    return dict(cbs=[], model=net, data=digits(labeled=40), epochs=1, lr=1e-2) | kwargs


def plain_dls(bs=8):
    g = torch.Generator().manual_seed(0)
    x = torch.rand(60, 1, 8, 8, generator=g)
    y = torch.arange(60) % 3
    dls = DataLoaders(
        DataLoader(TensorDataset(x[:40], y[:40]), bs=bs, shuffle=True),
        DataLoader(TensorDataset(x[40:], y[40:]), bs=20),
    )
    dls.c = 3
    return dls


class Watch(Callback):
    "What a run began with: labeled samples, weights, the first batch"
    def __init__(self, seen): self.seen = seen
    def before_fit(self):
        given = getattr(self.dls, "given", None)
        self.seen["given"] = given if given is None else given.tolist()
        self.seen["weights"] = [p.detach().clone() for p in self.model.parameters()]
    def before_batch(self):
        if self.training and self.epoch == 0 and self.iter == 0:
            self.seen["first"] = (self.x.clone(), self.y.clone())


def began(seed, **kwargs):
    seen = {}
    train_row(a_row(cbs=lambda dls: Watch(seen), **kwargs), seed)
    return SimpleNamespace(**seen)


def same(a, b): return all(torch.equal(p, q) for p,q in zip(a, b, strict=True))


def test_a_seed_decides_labeled_samples_weights_and_order():
    a = began(0)
    again = began(0)
    b = began(1)
    assert a.given == again.given and same(a.weights, again.weights) and same(a.first, again.first)
    labeled = lambda o: {i for i,y in enumerate(o.given) if y >= 0}
    assert len(labeled(a)) == len(labeled(b)) == 40 and len(labeled(a) & labeled(b)) < 20
    assert not same(a.weights[:1], b.weights[:1]) and not same(a.first, b.first)


def test_a_seed_decides_which_labels_are_wrong():
    a,b = (began(s, data=digits(noise_rate=.3)).given for s in (0, 1))
    truth = digits().given.tolist()
    wrong = lambda given: {i for i,(y,t) in enumerate(zip(given, truth)) if y != t}
    assert len(wrong(a)) == len(wrong(b)) == round(.3*len(truth)) and wrong(a) != wrong(b)


def test_plain_loaders_differ_in_order_alone():
    dls = plain_dls()
    a,b,again = (began(s, data=dls).first for s in (0, 1, 0))
    assert same(a, again) and not same(a, b)


def test_a_function_gets_the_seed():
    seen = []
    train_row(a_row(data=lambda seed: (seen.append(seed), digits(labeled=40, seed=seed))[1]), 5)
    assert set(seen) == {5}


def test_what_a_rows_function_does_is_undone():
    def busy(dls):
        dls.one_batch()
        torch.rand(100)
        Learner(dls, net(dls)).fit(1)
        return CutMix()
    first = train_row(a_row(cbs=CutMix()), 0)[1]
    assert train_row(a_row(cbs=busy), 0)[1] == first


@pytest.mark.parametrize("rows", ["other data", "other models"])
def test_whatever_drew_before_weights_and_training_draw_the_same(rows):
    states = []
    class Watch(Callback):
        def before_fit(self):
            weights = torch.cat([p.detach().flatten() for p in self.model.parameters()])
            states.append((torch.get_rng_state().tolist(), weights.tolist()[:9]))
    def data(n): return lambda seed: (torch.rand(n), digits(labeled=40, seed=seed))[1]
    def model(n): return lambda dls: (net(dls), torch.rand(n))[0]
    for n in (1, 1000):
        change = dict(data=data(n)) if rows == "other data" else dict(model=model(n))
        train_row(a_row(cbs=Watch(), **change), 3)
    assert states[0] == states[1]


def test_the_random_state_outside_stays():
    before = torch.get_rng_state()
    train_row(a_row(), 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_callbacks_are_copied_anew_for_every_run():
    class Counts(Callback):
        fits = 0
        def __init__(self): self.kept = dict(fits=[])
        def before_fit(self):
            self.fits += 1
            self.kept["fits"].append(1)
        def after_fit(self): seen.append((self.fits, len(self.kept["fits"])))
    seen = []
    cb = Counts()
    row = a_row(cbs=[cb])
    for seed in (0, 1): train_row(row, seed)
    assert seen == [(1, 1)]*2 and cb.fits == 0 and not cb.kept["fits"]
    assert getattr(cb, "learn", None) is None


def test_a_copy_keeps_what_pickles_leave_out():
    class Taught(Callback):
        def __init__(self, teacher): self.teacher = teacher
        def __getstate__(self): return {}
        def before_fit(self): seen.append(self.teacher)
    seen = []
    train_row(a_row(cbs=Taught("kept")), 0)
    assert seen == ["kept"] and Whole(Whole(Taught("kept"))).made().teacher == "kept"


def test_settings_of_a_row_are_used():
    fits = []
    loss = torch.nn.CrossEntropyLoss(label_smoothing=.5)
    def fit(learn, epochs, lr):
        fits.append((epochs, lr, learn.loss_func is loss, learn.wd))
        learn.fit(epochs, lr)
    row = a_row(epochs=2, lr=slice(1e-3), loss_func=loss)
    learn,epochs = train_row(row, 0, fit=fit, wd=.25)
    assert fits == [(2, slice(1e-3), True, .25)] and len(epochs) == 2
    assert learn.model.n_features == 16  # four times the width


def test_every_epoch_is_logged():
    told = []
    _,epochs = train_row(a_row(epochs=2), 0, log=told.append)
    assert told == epochs and list(epochs[0]) == ["train_loss", "valid_loss", "accuracy"]


def test_the_value_after_the_last_epoch_counts():
    values = iter([.9, .5])
    def worse(preds, y): return accuracy(preds, y)*0 + next(values)
    got = run("a", a_row(data=digits(labeled=40, val_bs=2000), epochs=2), 0, metric=worse)
    assert got["metric"] == pytest.approx(.5) and got["curve"] == pytest.approx([.9, .5])


def test_a_metric_with_a_state_starts_anew():
    class Calls(Metric):
        n = 0
        def reset(self): pass
        def accumulate(self, learn): self.n += 1
        @property
        def value(self): return float(self.n)
    metric = Calls()
    one = a_row(data=digits(labeled=40, val_bs=2000))
    assert [run("a", one, 0, metric=metric)["metric"] for _ in range(2)] == [1., 1.]


@pytest.mark.parametrize("error", [RuntimeError, LabelKitError])
def test_an_error_names_row_and_seed_in_one_line(error):
    class Fails(Callback):
        def after_loss(self): raise error("on\n purpose")
    with pytest.raises(LabelKitError, match="row 'a', seed 3: .*on purpose") as e:
        run("a", a_row(cbs=Fails()), 3)
    assert "\n" not in str(e.value) and ("RuntimeError" in str(e.value)) == (error is RuntimeError)


def test_a_fit_without_a_value_is_an_error():
    with pytest.raises(LabelKitError, match="without a value of accuracy"):
        run("a", a_row(), 0, fit=lambda learn, epochs, lr: None)


def test_a_run_on_its_way_is_the_same_run():
    class Taught(Callback):
        def __init__(self, teacher): self.teacher = teacher
        def __getstate__(self): return {}
        def before_fit(self): assert self.teacher
    import cloudpickle
    made = lambda dls: [Taught("kept"), CutMix()]
    for change in (dict(cbs=made(None)), dict(cbs=made), dict(data=plain_dls())):
        row = check_row("a", a_row(**change))
        there = cloudpickle.loads(cloudpickle.dumps(sendable(row)))
        assert run("a", row, 1) | dict(seconds=0) == run("a", there, 1) | dict(seconds=0)


@pytest.mark.parametrize(
    "change,says",
    [
        (dict(cbs=CutMix), "rows['a'] is the class CutMix: make a callback of it, CutMix()"),
        (dict(cbs=[CutMix]), "make a callback of it"),
        (dict(cbs=3), "rows['a'] holds int '3'"),
        (dict(cbs=["cutmix"]), "rows['a'] holds str 'cutmix'"),
        (dict(cb=[]), "the key 'cb' is unknown: did you mean cbs?"),
        (dict(epochs=0), "rows['a']: epochs=0"),
        (dict(epochs=1.5), "rows['a']: epochs=1.5"),
        (dict(lr=math.nan), "rows['a']: lr=nan"),
        (dict(lr=-1), "rows['a']: lr=-1"),
        (dict(model="small_cnn"), "rows['a']: model='small_cnn' is no function"),
        (dict(model=None), "rows['a']: model=None is no function"),
        (dict(loss_func=3), "rows['a']: loss_func=3 is no function"),
        (dict(data=3), "rows['a']: data is int"),
    ],
)
def test_rows_that_cannot_be_trained(change, says):
    with pytest.raises(LabelKitError) as e: check_row("a", a_row(**change))
    assert says in str(e.value)
