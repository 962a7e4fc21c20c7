"compare, Comparison and report: paired, seeded, kept; and what happens when something goes wrong"
import json, math, re
import pytest, torch
from fastai.basics import Callback, DataLoader, DataLoaders, Learner, accuracy
from torch.utils.data import TensorDataset

from labelkit.data.loaders import digits
from labelkit.errors import LabelKitError
from labelkit.models import small_cnn
from labelkit.evidence.compare import Comparison, compare, describe, figure_svg, t_interval
from labelkit.evidence.report import report
from labelkit.mix.cutmix import CutMix

quick = dict(epochs=2, progress=False)

class Watch(Callback):
    "Remember the first weights and the first batch of each fit"
    seen = []
    def before_fit(self):
        self.seen.append([float(sum(p.detach().sum() for p in self.model.parameters()))])
    def before_batch(self):
        if self.training and self.iter == 0 and self.epoch == 0:
            self.seen[-1] += [float(self.x.sum()), self.y.tolist()]

class Fails(Callback):
    def __init__(self, error=RuntimeError, at=0):
        self.error = error
        self.at = at
    def before_fit(self):
        if int(torch.initial_seed()) == self.at: raise self.error("on purpose")

def made(n=3, names=("base", "new"), **kw):
    runs = [
        dict(
            row=r,
            seed=s,
            metric=0.5 + 0.1 * s + 0.02 * i,
            seconds=1.0,
            train_loss=0.1,
            valid_loss=math.nan,
            curve=[0.4, 0.5],
        )
        for s in range(n)
        for i, r in enumerate(names)
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

def test_interval():
    from scipy import stats
    v = [.1, .4, .35, .2]
    ref = stats.ttest_1samp(v, 0).confidence_interval(.95)
    mean,low,high = t_interval(v)
    assert (low, high) == pytest.approx((ref.low, ref.high)) and mean == pytest.approx(.2625)
    assert math.isnan(t_interval([1.])[1]) and t_interval([1., 1.]) == (1., 1., 1.)

@pytest.mark.parametrize(
    "data",
    [digits(labeled=40), lambda seed: digits(labeled=40, seed=seed), plain_dls()],
    ids=["recipe", "function", "plain"],
)
def test_rows_of_a_seed_are_paired(data):
    Watch.seen = []
    def teacher(dls):
        Learner(dls, small_cnn(dls), loss_func=torch.nn.CrossEntropyLoss()).fit(1)
        return Watch()
    c = compare({"a": Watch(), "b": [Watch()], "c": teacher}, data, seeds=2, **quick)
    first = Watch.seen[:3]
    second = Watch.seen[3:]
    assert (
        first[0] == first[1] == first[2]
        and second[0] == second[1] == second[2]
        and first[0] != second[0]
    )
    assert c.values("a") == c.values("b") == c.values("c")
    assert c.table().loc["b", ["difference", "low", "high"]].tolist() == [0, 0, 0]
    again = compare({"b": [Watch()]}, data, seeds=[1], **quick)
    assert again.values("b")[1] == c.values("b")[1]

def test_last_value_not_best():
    def worse(preds, y): return accuracy(preds, y)*0 + float(next(values))
    values = iter([.9, .5])
    c = compare({"a": []}, digits(labeled=40, val_bs=2000), seeds=1, metric=worse, **quick)
    assert c.runs[0]["metric"] == pytest.approx(0.5) and c.runs[0]["curve"] == pytest.approx(
        [0.9, 0.5]
    )


def test_random_state_and_callbacks_untouched():
    cb = CutMix()
    before = torch.get_rng_state()
    state = dict(vars(cb))
    compare({"a": cb}, digits(labeled=40), seeds=1, **quick)
    assert torch.equal(torch.get_rng_state(), before) and vars(cb) == state

def test_copies_keep_what_pickles_drop():
    class Teacher(Callback):
        def __init__(self, teacher): self.teacher = teacher
        def __getstate__(self): return {}
        def before_fit(self): assert self.teacher == "kept"
    compare({"a": Teacher("kept")}, digits(labeled=40), seeds=1, **quick)

def test_row_with_its_own_settings():
    c = compare(
        {"small": [], "wide": dict(model=lambda dls: small_cnn(dls, width=48), epochs=3)},
        digits(labeled=40),
        seeds=1,
        **quick,
    )
    assert [len(r["curve"]) for r in c.runs] == [2, 3] and "epochs=3" in c.config["rows"]["wide"]

@pytest.mark.parametrize("error", [RuntimeError, LabelKitError])
def test_failing_run_is_named_and_loses_nothing(error, tmp_path):
    with pytest.raises(
        LabelKitError, match=r"row 'bad', seed 1: .*on purpose \(what was finished, 3 of 4 runs"
    ) as e:
        compare(
            {"good": [], "bad": Fails(error, 1)},
            digits(labeled=40),
            seeds=2,
            save=tmp_path / "c.json",
            **quick,
        )
    got = e.value.comparison
    assert (
        len(got.runs) == 3
        and not got.complete
        and "3 of 4 runs" in repr(got)
        and "\n" not in str(e.value)
    )
    assert Comparison.load(tmp_path/"c.json").values("good") == got.values("good")

def test_interrupt_loses_nothing():
    with pytest.raises(KeyboardInterrupt) as e:
        compare({"good": [], "bad": Fails(KeyboardInterrupt)}, digits(labeled=40), seeds=1, **quick)
    assert len(e.value.comparison.runs) == 1

@pytest.mark.parametrize(
    "rows,says",
    [
        ({}, "is no dictionary"),
        ([CutMix()], "is no dictionary"),
        ({"a": CutMix}, "make a callback of it, CutMix()"),
        ({"a": 3}, "rows['a'] holds int"),
        ({"a": ["cutmix"]}, "rows['a'] holds str"),
        ({"a": dict(callbacks=[])}, "has the key 'callbacks'"),
    ],
)
def test_bad_rows(rows, says):
    with pytest.raises(LabelKitError, match=re.escape(says)): compare(rows, digits(labeled=40))

@pytest.mark.parametrize(
    "kw,says",
    [
        (dict(seeds=0), "seeds=0"),
        (dict(seeds=[1, 1]), "different numbers"),
        (dict(epochs=0), "epochs=0"),
        (dict(data=3), "data is int"),
    ],
)
def test_bad_settings(kw, says):
    with pytest.raises(LabelKitError, match=re.escape(says)):
        compare({"a": []}, **dict(dict(data=digits(labeled=40)), **kw))

def test_save_and_load(tmp_path):
    c = made(config=dict(epochs=2)).save(tmp_path/"c.json")
    d = Comparison.load(tmp_path/"c.json")
    assert (
        repr(c) == repr(d)
        and d.runs[0]["curve"] == [0.4, 0.5]
        and math.isnan(d.runs[0]["valid_loss"])
        and d.config == dict(epochs=2)
    )
    json.loads(
        (tmp_path / "c.json").read_text(), parse_constant=lambda k: pytest.fail(f"{k} is no JSON")
    )
    assert [p.name for p in tmp_path.iterdir()] == ["c.json"]

@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        "3",
        '{"labelkit": "comparison"}',
        '{"labelkit": "comparison", "runs": [{}], "rows": ["a"], "seeds": [0], "metric": "m", '
        '"config": {}}',
    ],
)
def test_foreign_file_is_refused_by_name(text, tmp_path):
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

@pytest.mark.parametrize(
    "write", [lambda c, p: c.save(p), lambda c, p: c.report(p)], ids=["save", "report"]
)
def test_unwritable_place_is_left_clean(write, tmp_path):
    (tmp_path/"file").write_text("in the way")
    (tmp_path/"folder").mkdir()
    for p in (tmp_path/"file"/"x.html", tmp_path/"folder"):
        with pytest.raises(LabelKitError, match=re.escape(str(p))): write(made(), p)
    assert (
        sorted(o.name for o in tmp_path.rglob("*")) == ["file", "folder"]
        and (tmp_path / "file").read_text() == "in the way"
    )


def test_names_are_text(tmp_path):
    evil = "<script>alert(1)</script>&\"'$x_1$"
    c = made(
        names=("base", evil),
        config=dict(epochs=2, data=evil, rows={evil: [evil]}, versions={evil: evil}),
    )
    c.metric = evil
    page = report(
        {evil: c}, tmp_path / "r.html", title=evil, notes={"": evil, evil: evil}
    ).read_text()
    for text in (page, c._repr_html_(), figure_svg(c)):
        assert "<script" not in text and "&lt;script&gt;" in text
    assert not re.search(r"(src|href|url)\s*[=(]", page) and "default-src 'none'" in page
    c.plot()

def test_one_seed_and_equal_values_still_draw(tmp_path):
    one = made(1, names=("only",))
    assert "–" in repr(one) and "nan" not in (
        figure_svg(one) + report(one, tmp_path / "a.html").read_text()
    )
    same = Comparison(
        [dict(r, metric=0.9) for r in made().runs], ["base", "new"], [0, 1, 2], "accuracy"
    )
    assert "nan" not in figure_svg(same) and "inf" not in figure_svg(same)
    lost = Comparison(
        [dict(r, metric=math.nan) for r in made().runs], ["base", "new"], [0, 1, 2], "accuracy"
    )
    assert "nan" not in figure_svg(lost) and len(lost.plot()) == 2
    empty = Comparison([], ["base", "new"], [0], "accuracy")
    assert "0 of 2 runs" in repr(empty) and empty._repr_html_() and empty.frame.empty

def test_report_wants_comparisons(tmp_path):
    for bad in ("text", {}, {"a": 3}):
        with pytest.raises(LabelKitError, match="pass what compare"): report(bad, tmp_path/"r.html")

def test_description_follows_signature():
    assert describe(CutMix(alpha=.5)).startswith("CutMix(alpha=0.5, ")
