"""The label report: each module by hand, text that stays text, files that are whole or not there"""
import json, math, re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch

from labelkit.data.loaders import from_arrays
from labelkit.errors import LabelKitError
from labelkit.evidence.label_report import (
    MODULES,
    agreement,
    bars,
    class_counts,
    class_drift,
    duplicates,
    input_keys,
    krippendorff_alpha,
    label_report,
    leakage,
    suspected_errors,
)

EVIL = "<script>alert(1)</script>&\"'{0}"


def test_counts():
    f = class_counts(torch.tensor([0, 0, 0, 1, -1]), 3)
    assert f["counts"] == [3, 1, 0] and f["samples"] == 5 and f["labeled"] == 4
    assert f["imbalance"] is None  # a class without a sample
    assert class_counts(torch.tensor([0, 0, 0, 0, 0, 1, 2, 2]), 3)["imbalance"] == 5
    assert f["effective_classes"] == pytest.approx(math.exp(-.75*math.log(.75)-.25*math.log(.25)))
    assert class_counts(torch.tensor([0, 1]), 2)["effective_classes"] == pytest.approx(2)
    assert class_counts(torch.tensor([-1]), 2)["effective_classes"] == 0


@pytest.mark.parametrize("inputs", [
    torch.tensor([[0., 1.], [1., 1.], [-0., 1.]]),
    np.array([[0, 1], [1, 1], [0, 1]]),
    [" The cat", "a dog", "the  CAT"],
    pd.Series(["The cat", "a dog", "the cat "]),
    np.array(["é", "x", "é"]),  # one letter, or a letter and an accent
])
def test_equal_samples(inputs):
    f = duplicates(input_keys(inputs), torch.tensor([0, 1, 1]))
    assert f["groups"] == [[0, 2]] and f["surplus"] == 1 and f["conflicts"] == 1
    f = duplicates(input_keys(inputs), torch.tensor([0, 1, -1]))
    assert f["conflicts"] == 0  # no label contradicts none


def test_leakage_counts_both_sides():
    assert leakage(["a", "b", "a"], ["a", "c", "a", "a"]) == dict(samples=[0, 2], valid=3)


def test_alpha_by_hand_and_as_published():
    assert krippendorff_alpha([[0, 0], [1, 1], [0, 1]]) == pytest.approx(4/9)
    assert krippendorff_alpha([[0, 0], [1, 1]]) == 1
    assert math.isnan(krippendorff_alpha([[0, 0], [0, 0]]))   # one class: no chance to differ
    assert math.isnan(krippendorff_alpha([[0, -1], [-1, 1]])) # nobody was asked twice
    o = -1
    rows = [[0, 1, 2, 2, 1, 0, 3, 0, 1, o, o, o], [0, 1, 2, 2, 1, 1, 3, 0, 1, 4, o, 2],
            [o, 2, 2, 2, 1, 2, 3, 1, 1, 4, 0, o], [0, 1, 2, 2, 1, 3, 3, 0, 1, 4, 0, o]]
    # Krippendorff 2011, https://repository.upenn.edu/asc_papers/43, example C
    assert krippendorff_alpha(torch.tensor(rows).T) == pytest.approx(.743, abs=5e-4)


def test_agreement_of_each():
    votes = torch.tensor([[0, 0, 0], [1, 1, 0], [0, 1, -1], [2, -1, -1]])
    f = agreement(votes, 3, names=["a", "b", "c"])
    assert f["twice"] == 3 and f["agreeing"] == pytest.approx(1/3)
    a,b,c = f["annotators"]
    # second sample: the others of a and b are split
    assert (a["answers"], a["compared"], a["agrees"]) == (4, 2, .5)
    assert (b["answers"], b["compared"], b["agrees"]) == (3, 2, .5)
    assert (c["answers"], c["compared"], c["agrees"]) == (2, 2, .5)
    frame = pd.DataFrame(votes.numpy(), columns=["x", "y", "z"])
    assert [o["annotator"] for o in agreement(frame, 3)["annotators"]] == ["x", "y", "z"]
    assert agreement(votes)["annotators"][0]["annotator"] == "annotator 0"
    with pytest.raises(LabelKitError, match="names has 1 entries"): agreement(votes, names=["a"])


def test_drift():
    y = torch.tensor([0, 0, 0, 1, 0, 1, 1, 1, -1])
    f = class_drift(y, ["b"]*4 + ["a"]*5, 2)
    assert [p["part"] for p in f["parts"]] == ["a", "b"]
    assert [p["labeled"] for p in f["parts"]] == [4, 4]
    assert [p["distance"] for p in f["parts"]] == pytest.approx([.25, .25])
    assert f["cramers_v"] == pytest.approx(.5) and f["p_value"] == pytest.approx(.1573, abs=1e-4)
    # three classes in two parts, and the class says which part it is
    f = class_drift(torch.tensor([0, 0, 1, 2]), ["a", "a", "b", "b"], 3)
    assert f["cramers_v"] == pytest.approx(1)
    same = class_drift(torch.tensor([0, 1]), [1, 1], 2)
    assert same["p_value"] is None and same["parts"][0]["distance"] == 0
    assert len(class_drift(torch.tensor([0, 1]), [1, "x"], 2)["parts"]) == 2


def planted(n=90, c=3):
    y = torch.arange(n) % c
    p = torch.nn.functional.one_hot(y, c)*.7 + .1
    given = y.clone()
    given[:6] = (y[:6]+1) % c
    return given,y,p


def test_errors_are_found():
    given,_,p = planted()
    f = suspected_errors(given, p, 3, n=4)
    assert f["flagged"] == 6 and f["error_rate"] == pytest.approx(6/90, abs=1e-6)
    assert len(f["samples"]) == 4 and all(s["sample"] < 6 for s in f["samples"])
    given[10] = -1
    assert suspected_errors(given, p, 3)["flagged"] == 6


def whole(**more):
    given,y,p = planted()
    x = torch.rand(90, 4)
    x[80] = x[0]
    votes = torch.stack([given, y], 1)
    return label_report(
        given, vocab=[EVIL, "b", "c"], inputs=x, valid_inputs=x[:3], votes=votes, pred_probs=p,
        part=[EVIL]*45 + ["late"]*45, truth=y, truth_source=EVIL, names=[EVIL]*90,
        about={EVIL: EVIL}, title=EVIL, **more,
    )


def test_text_is_text(tmp_path):
    r = whole()
    assert not r.missing and list(r.facts) == list(MODULES)
    page = r.html(tmp_path/"r.html").read_text()
    for text in (page, r._repr_html_(), bars([EVIL], [1])):
        assert "<script" not in text and "&lt;script&gt;" in text
    assert "default-src 'none'" in page and not re.search(r"(src|href|url)\s*[=(]|@import", page)
    opened = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: opened.append(tag)
    parser.handle_endtag = lambda tag: opened.remove(tag)
    parser.feed(r._repr_html_())
    assert not opened  # each is closed


def test_json_says_the_same(tmp_path):
    r = whole()
    d = json.loads(r.json(tmp_path/"r.json").read_text())
    assert d["title"] == EVIL and d["about"] == {EVIL: EVIL} and d["classes"][0] == EVIL
    assert d["facts"]["errors"]["flagged"] == 6 and d["facts"]["truth"]["right"] == 84/90
    assert d["facts"]["duplicates"]["surplus"] == 1 and d["facts"]["duplicates"]["leaked"] == 4
    assert d["not_measured"] == {}
    about = {"n": float("nan"), "half": "a\udcff"}
    few = label_report(["cat", "dog", None, "fox"], votes=[[0, 0]]*4, about=about)
    d = json.loads(few.json(tmp_path/"f.json").read_text())
    assert d["facts"]["agreement"]["alpha"] is None and d["facts"]["counts"]["labeled"] == 3
    few.html(tmp_path/"f.html")


def test_only_what_has_both_labels_is_compared_with_the_truth():
    r = label_report([0, 1, None, 1], truth=[0, 0, 1, None], truth_source="an expert")
    assert r.facts["truth"]["compared"] == 2 and r.facts["truth"]["right"] == .5

def test_what_is_missing_is_said():
    r = label_report([0, 1, 1])
    assert set(r.missing) == set(MODULES) - {"counts"}
    assert "Not measured" in r._repr_html_() and "pred_probs" in r._repr_html_()


def test_loaders_bring_their_own():
    x = torch.rand(40, 1, 4, 4)
    x[3] = x[0]
    dls = from_arrays(x[:20], torch.arange(20) % 2, x[17:], torch.arange(23) % 2, bs=4)
    f = label_report(dls).facts
    assert f["counts"]["samples"] == 20
    assert f["duplicates"]["surplus"] == 1 and f["duplicates"]["leaked"] == 3
    dls = from_arrays(x[:20], torch.arange(20) % 2, x[17:], torch.arange(23) % 2, bs=4, labeled=6)
    assert label_report(dls).facts["counts"]["samples"] == 6


def test_a_file_is_whole_or_not_there(tmp_path, monkeypatch):
    r = label_report([0, 1])
    old = r.json(tmp_path/"r.json").read_text()
    (tmp_path/"d").mkdir()
    for write in (r.html, r.json):
        with pytest.raises(LabelKitError, match="is a folder"): write(tmp_path/"d")
    r.about = {"x": object()}
    r.json(tmp_path/"r.json")
    assert json.loads((tmp_path/"r.json").read_text())["about"]["x"].startswith("<object")
    r.facts["counts"] = None
    with pytest.raises(TypeError): r.html(tmp_path/"r.html")
    assert sorted(o.name for o in tmp_path.iterdir()) == ["d", "r.json"] and old


def test_bad_input():
    for args,said in (
        (dict(labels=[]), "labels is empty"),
        (dict(labels=[0, 5], vocab=["a"]), "label"),
        (dict(labels=["a\udcff", "b"]), "is not a text"),
        (dict(labels=[0, 1], inputs=torch.zeros(3, 2)), "inputs has 3 samples for 2"),
        (dict(labels=[0, 1], inputs="ab"), "pass a tensor"),
        (dict(labels=[0, 1], inputs=[1, 2]), "pass a tensor"),
        (dict(labels=[0, 1], inputs=3), "pass a tensor"),
        (dict(labels=[0, 1], names=["a"]), "names has 1"),
        (dict(labels=[0, 1], votes=[[0]]), "votes has 1 rows"),
        (dict(labels=[0, 1], votes=[[0], [7]]), "votes go from"),
        (dict(labels=[0, 1], part=[1]), "part has 1"),
        (dict(labels=[0, 1], pred_probs=torch.ones(2, 2)), "not a distribution"),
        (dict(labels=[0, 1], pred_probs=torch.ones(2, 3)), "pred_probs has shape"),
        (dict(labels=[0, 1], truth=[0, 1]), "truth_source is missing"),
        (dict(labels=[0, 1], truth=[0], truth_source="an expert"), "truth has 1"),
        (dict(labels=[0, 1], n=-1), "n=-1"),
    ):
        with pytest.raises(LabelKitError, match=said): label_report(**args)


def test_columns_that_were_split():
    "Names stand in rows, whatever a column's index is; where nothing is said is one part"
    probs = np.array([[.05, .95], [.9, .1], [.8, .2], [.1, .9]])
    names = pd.Series(["t0", "t1", "t2", "t3"], index=[10, 11, 12, 13])
    found = label_report([0, 0, 0, 1], names=names, pred_probs=probs).facts["errors"]["samples"]
    assert [(o["name"], o["sample"]) for o in found] == [("t0", 0)]
    with pytest.raises(LabelKitError, match="names has its rows in another order"):
        label_report([0, 0, 0, 1], names=names.set_axis([3, 2, 1, 0]), pred_probs=probs)
    nothing = pd.Series([np.nan, 1., np.nan, None], index=[3, 5, 7, 9])
    parts = class_drift(torch.tensor([0, 1, 0, 1]), nothing, 2)["parts"]
    assert [(o["part"], o["labeled"]) for o in parts] == [("1.0", 1), ("not said", 3)]
    with pytest.raises(LabelKitError, match="about is 'made by me': pass a dictionary"):
        label_report([0, 1], about="made by me")
