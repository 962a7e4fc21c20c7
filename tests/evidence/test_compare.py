"compare and Comparison: paired, seeded, kept, in a row or side by side; and what goes wrong"
import json, math, re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.basics import Callback, DataLoader, DataLoaders, Learner, SGD
from torch.utils.data import TensorDataset

from places import told
from labelkit.data.sets import digits
from labelkit.errors import LabelKitError
from labelkit.evidence.compare import Comparison, compare
from labelkit.mix.cutmix import CutMix
from labelkit.models import small_cnn

net = partial(small_cnn, width=4)
quick = dict(epochs=1, model=net, progress=False)
few = digits(labeled=40)


def made(n=3, names=("base", "new"), **kw):
    runs = [
        dict(
            row=r,
            seed=s,
            metric=.5 + .1*s + .02*i,
            seconds=1. + i,
            train_loss=.1,
            valid_loss=math.nan,
            curve=[.4, .5],
        )
        for s in range(n) for i,r in enumerate(names)
    ]
    return Comparison(runs, list(names), list(range(n)), "accuracy", **kw)


def plain_dls():
    g = torch.Generator().manual_seed(0)
    x = torch.rand(60, 1, 8, 8, generator=g)
    y = torch.arange(60) % 3
    dls = DataLoaders(
        DataLoader(TensorDataset(x[:40], y[:40]), bs=8, shuffle=True),
        DataLoader(TensorDataset(x[40:], y[40:]), bs=20),
    )
    dls.c = 3
    return dls


class Fails(Callback):
    "Fails in the runs of one seed"
    def __init__(self, error=RuntimeError, seed=0):
        self.error = error
        self.seed = seed
    def before_fit(self):
        if int(torch.initial_seed()) == self.seed: raise self.error("on purpose")


KINDS = dict(recipe=few, function=lambda seed: digits(labeled=40, seed=seed), plain=plain_dls())


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_seed_begin_alike_and_seeds_differ(kind):
    seen = []
    class Watch(Callback):
        def before_fit(self):
            given = getattr(self.dls, "given", torch.zeros(1))
            weights = float(sum(p.detach().abs().sum() for p in self.model.parameters()))
            seen.append([given.tolist(), weights])
        def before_batch(self):
            if self.training and self.iter == 0: seen[-1] += [float(self.x.sum()), self.y.tolist()]
    def teacher(dls):
        Learner(dls, net(dls), loss_func=torch.nn.CrossEntropyLoss()).fit(1)
        return Watch()
    c = compare({"a": Watch(), "b": [Watch()], "c": teacher}, KINDS[kind], seeds=2, **quick)
    first = seen[:3]
    second = seen[3:]
    assert first[0] == first[1] == first[2] and second[0] == second[1] == second[2]
    assert first[0][1:] != second[0][1:]
    # with few labels, each seed labels other samples
    assert (first[0][0] != second[0][0]) == (kind != "plain")
    assert c.values("a") == c.values("b") == c.values("c")
    assert c.table().loc["b", ["difference", "low", "high"]].tolist() == [0, 0, 0]
    again = compare({"b": [Watch()]}, KINDS[kind], seeds=[1], **quick)
    assert again.values("b")[1] == c.values("b")[1]


def kept(c):
    "All that a comparison holds but the time it took"
    runs = [r | dict(seconds=0) for r in c.runs]
    return json.dumps([runs, c.rows, c.seeds, c.metric, c.config], sort_keys=True)


@pytest.mark.parametrize("kind", KINDS)
def test_side_by_side_is_the_same_as_in_a_row(kind, tmp_path):
    class Taught(Callback):
        "Leaves its teacher out of pickles, as techniques do"
        def __init__(self, teacher): self.teacher = teacher
        def __getstate__(self): return {}
        def after_loss(self):
            if self.training: self.learn.loss_grad = self.learn.loss_grad*self.teacher["factor"]
    teacher = dict(factor=.5)
    def trained(dls):
        Learner(dls, net(dls), loss_func=torch.nn.CrossEntropyLoss()).fit(1)
        return Taught(teacher)
    rows = {
        "labels only": [],
        "CutMix": CutMix(),
        "taught": [Taught(teacher)],
        "by a function": trained,
        "other settings": dict(cbs=CutMix(), model=partial(small_cnn, width=8), epochs=2, lr=1e-3),
    }
    seen = []
    watch = lambda run, done, total: seen.append((run["row"], run["seed"], done, total))
    settings = dict(seeds=[4, 1], opt_func=partial(SGD, mom=.9), wd=.1) | quick
    row = compare(rows, KINDS[kind], **settings)
    side = compare(
        rows, KINDS[kind], jobs=2, save=tmp_path/"c.json", **settings | dict(progress=watch)
    )
    assert kept(side) == kept(row) == kept(Comparison.load(tmp_path/"c.json"))
    assert len({r["train_loss"] for r in row.runs}) > 2
    assert sorted(o[:2] for o in seen) == sorted((n, s) for s in (4, 1) for n in rows)
    assert [o[2:] for o in seen] == [(i + 1, 10) for i in range(10)]


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("error", [RuntimeError, LabelKitError])
def test_a_failing_run_is_named_and_loses_nothing(error, jobs, tmp_path):
    says = r"row 'bad', seed 1: .*on purpose \(what was finished, (\d) of 4 runs, is this error's"
    with pytest.raises(LabelKitError, match=says) as e:
        compare(
            {"good": [], "bad": Fails(error, 1)}, few, seeds=2, save=tmp_path/"c.json", jobs=jobs,
            **quick,
        )
    got = e.value.comparison
    assert len(got.runs) == int(re.search(says, str(e.value))[1]) and not got.complete
    assert "\n" not in str(e.value) and f"{len(got.runs)} of 4 runs" in repr(got)
    assert Comparison.load(tmp_path/"c.json").values("good") == got.values("good")
    if jobs == 1: assert len(got.runs) == 3


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_interrupt_loses_nothing(jobs):
    rows = {"good": [], "bad": Fails(KeyboardInterrupt)}
    with pytest.raises(KeyboardInterrupt) as e: compare(rows, few, seeds=1, jobs=jobs, **quick)
    # in two processes the interrupt may come first
    assert len(e.value.comparison.runs) in ((1,) if jobs == 1 else (0, 1))


def test_what_cannot_be_sent_is_said_before_the_first_run():
    from threading import Lock
    lock = Lock()
    runs = []
    model = lambda dls: (runs.append(lock), net(dls))[1]
    with pytest.raises(LabelKitError, match="jobs=2: .*cannot be sent.*use jobs=1"):
        compare({"a": []}, few, jobs=2, **quick | dict(model=model))
    assert not runs


def test_callbacks_and_random_state_are_untouched():
    cb = CutMix()
    before = torch.get_rng_state()
    state = dict(vars(cb))
    compare({"a": cb}, few, seeds=1, **quick)
    assert torch.equal(torch.get_rng_state(), before) and vars(cb) == state


def test_what_was_run_is_told():
    rows = {"small": [], "wide": dict(model=partial(small_cnn, width=8), epochs=2, cbs=CutMix(.5))}
    wds = []
    def fit(learn, epochs, lr):
        wds.append(learn.wd)
        learn.fit(epochs, lr)
    c = compare(rows, few, seeds=[7], wd=np.float32(.5), fit=fit, **quick)
    assert wds == [.5, .5] and c.config["fit"] == "fit"
    assert c.config["rows"] == {
        "small": [],
        "wide": ["CutMix(alpha=0.5)", "model=small_cnn(width=8)", "epochs=2"],
    }
    assert c.config["data"] == "1258 samples, 40 labeled, 10 classes; 539 validation samples"
    assert (c.config["model"], c.config["learner"]) == ("small_cnn(width=4)", dict(wd=.5))
    assert [len(r["curve"]) for r in c.runs] == [1, 2] and c.seeds == [7]


def test_a_function_with_a_name_is_told_as_well():
    def forty_digits(seed): return digits(labeled=40, seed=seed)
    assert compare({"a": []}, forty_digits, seeds=1, **quick).config["data"].startswith(
        "forty_digits: 1258 samples"
    )


@pytest.mark.parametrize(
    "settings",
    [
        dict(lr=slice(1e-4, 1e-3)),
        dict(lr=[1e-3]),
        dict(lr=np.float32(1e-3)),
        dict(lr=None),
        dict(epochs=np.int64(1)),
        dict(seeds=np.arange(1)),
        dict(seeds=(np.int64(0),)),
        dict(moms=(.9, .8, .9)),
        dict(wd=np.float64(.1)),
        dict(model_dir=Path("models")),
        dict(loss_func=torch.nn.CrossEntropyLoss(label_smoothing=.1)),
    ],
    ids=told,
)
def test_what_fastai_takes_is_saved(settings, tmp_path):
    f = tmp_path/"c.json"
    c = compare({"a": []}, few, **quick | dict(seeds=1) | settings, save=f)
    assert kept(Comparison.load(f)) == kept(c)


@pytest.mark.parametrize(
    "settings,says",
    [
        (dict(rows={}), "is no dictionary"),
        (dict(rows=[CutMix()]), "is no dictionary"),
        (dict(rows={"a": CutMix}), "make a callback of it, CutMix()"),
        (dict(rows={"a": dict(callbacks=[])}), "'callbacks' is unknown"),
        (dict(rows={"a": dict(epochs=0)}), "rows['a']: epochs=0"),
        (dict(rows={1: [], "1": []}), "two rows called '1'"),
        (dict(rows={"\ud800": []}), "half a character"),
        (dict(data=3), "data is int"),
        (dict(seeds=0), "seeds=0"),
        (dict(seeds=-1), "seeds=-1"),
        (dict(seeds=True), "seeds=True"),
        (dict(seeds=None), "seeds=None"),
        (dict(seeds=[]), "at least one"),
        (dict(seeds=[1, 1]), "different numbers"),
        (dict(seeds=[.5]), "seeds=0.5"),
        (dict(seeds="12"), "seeds='1'"),
        (dict(epochs=0), "epochs=0"),
        (dict(epochs=-1), "epochs=-1"),
        (dict(epochs=1.), "epochs=1.0"),
        (dict(epochs=True), "epochs=True"),
        (dict(lr=math.nan), "lr=nan"),
        (dict(lr=0), "lr=0"),
        (dict(lr="1e-3"), "lr='1e-3'"),
        (dict(model=None), "model=None"),
        (dict(metric=None), "metric=None"),
        (dict(metric=["accuracy"]), "metric=['accuracy']"),
        (dict(fit=3), "fit=3"),
        (dict(loss_func="ce"), "loss_func='ce'"),
        (dict(jobs=0), "jobs=0"),
        (dict(jobs=1.5), "jobs=1.5"),
        (dict(epoch=3), "did you mean epochs?"),
        (dict(optfunc=SGD), "did you mean opt_func?"),
        (dict(metrics=[]), "did you mean metric?"),
        (dict(cbs=[]), "'cbs' is unknown"),
        (dict(save="/dev/null/c.json"), "cannot be written"),
        (dict(save=3), "path=3 is no path"),
        (dict(save="/"), "is a folder"),
    ],
    ids=told,
)
def test_what_cannot_be_right_is_said_before_the_first_run(settings, says):
    runs = []
    model = lambda dls: (runs.append(1), net(dls))[1]
    args = dict(rows={"a": []}, data=few, seeds=1, **quick | dict(model=model)) | settings
    with pytest.raises(LabelKitError) as e: compare(**args)
    assert says in str(e.value) and not runs


def test_a_failed_start_leaves_the_old_file(tmp_path):
    f = tmp_path/"c.json"
    made().save(f)
    with pytest.raises(LabelKitError): compare({"bad": Fails()}, few, seeds=1, save=f, **quick)
    assert Comparison.load(f).complete


def test_the_table_by_hand():
    runs = [
        dict(row=n, seed=s, metric=v, seconds=t, train_loss=0., valid_loss=0., curve=[v])
        for n,s,v,t in [
            ("base", 0, .5, 1.),
            ("new", 1, .75, 4.),
            ("base", 1, .75, 3.),
            ("new", 0, .75, 2.),
            ("base", 2, .25, 2.),
        ]
    ]
    c = Comparison(runs, ["base", "new"], [0, 1, 2], "accuracy")
    t = c.table()
    assert t.loc["base"].to_dict() == pytest.approx(
        dict(mean=.5, spread=.25, difference=math.nan, low=math.nan, high=math.nan, seeds=3,
             seconds=2.),
        nan_ok=True,
    )
    # of the two seeds that both rows have: .25 and 0, so .125 ± 12.706*.1768/sqrt(2)
    assert t.loc["new", ["mean", "difference", "low", "high", "seeds", "seconds"]].tolist() == (
        pytest.approx([.75, .125, .125 - 1.58828, .125 + 1.58828, 2, 3.], abs=1e-4)
    )
    # half of the distribution with one degree of freedom is within 1
    assert c.table(.5).loc["new", ["low", "high"]].tolist() == pytest.approx([0., .25])


def test_its_text():
    text = repr(made()).splitlines()
    assert text[0].split() == ["accuracy", "spread", "against", "base", "95", "%", "interval",
                               "seconds"]
    assert text[1].split() == ["base", "0.600", "0.100", "–", "–", "1.0"]
    assert text[2].split() == ["new", "0.620", "0.100", "+0.020", "+0.020", "to", "+0.020", "2.0"]
    assert text[3] == "3 seeds, paired; value after the last epoch"
    one = Comparison([], ["base"], [0], "accuracy")
    assert "1 seed, paired" in repr(one) and "0 of 1 runs finished" in repr(one)


def test_save_and_load(tmp_path):
    c = made(names=("base", "ü"), config=dict(epochs=2, lr=slice(1e-3), p=Path("a\udcff")))
    d = Comparison.load(c.save(tmp_path/"c.json") and str(tmp_path/"c.json"))
    assert repr(c) == repr(d) and d.rows == c.rows and d.runs[0]["curve"] == [.4, .5]
    assert math.isnan(d.runs[0]["valid_loss"])
    assert d.config == dict(epochs=2, lr="slice(None, 0.001)", p="a\udcff")
    text = (tmp_path/"c.json").read_text()
    json.loads(text, parse_constant=lambda k: pytest.fail(f"{k} is no JSON"))
    assert [p.name for p in tmp_path.iterdir()] == ["c.json"]


RUN = dict(row="a", seed=0, metric=.5, seconds=1, train_loss=0, valid_loss=0, curve=[])
SAVED = dict(labelkit="comparison", format=1, metric="m", rows=["a"], seeds=[0], config={})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        "3",
        "["*100_000,
        '{"labelkit": "comparison"}',
        json.dumps(SAVED | dict(runs=[{}])),
        json.dumps(SAVED | dict(runs=[RUN, RUN])),
        json.dumps(SAVED | dict(runs=[RUN | dict(row="b")])),
        json.dumps(SAVED | dict(runs=[RUN], format=2)),
        json.dumps(SAVED | dict(runs=[RUN], config=3)),
    ],
    ids=lambda t: t[:60],
)
def test_a_foreign_file_is_refused_by_name(text, tmp_path):
    p = tmp_path/"mine.json"
    p.write_text(text)
    with pytest.raises(LabelKitError, match="mine.json"): Comparison.load(p)


def test_every_truncation_is_refused(tmp_path):
    p = tmp_path/"cut.json"
    whole = made().save(p) and p.read_bytes()
    for n in range(0, len(whole.rstrip()), 37):
        p.write_bytes(whole[:n])
        with pytest.raises(LabelKitError, match="cut.json"): Comparison.load(p)
    with pytest.raises(LabelKitError, match="cannot be read"): Comparison.load(tmp_path/"none.json")


def test_an_unwritable_place_is_left_clean(tmp_path):
    (tmp_path/"file").write_text("in the way")
    (tmp_path/"folder").mkdir()
    for p in (tmp_path/"file"/"x.json", tmp_path/"folder"):
        with pytest.raises(LabelKitError, match=re.escape(str(p))): made().save(p)
    assert sorted(o.name for o in tmp_path.rglob("*")) == ["file", "folder"]
    assert (tmp_path/"file").read_text() == "in the way"


def test_frame():
    f = made().frame
    assert list(f.columns) == ["row", "seed", "accuracy", "seconds", "train_loss", "valid_loss"]
    assert len(f) == 6 and Comparison([], ["base"], [0], "accuracy").frame.empty
