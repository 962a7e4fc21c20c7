"Claims: decided by paired differences, kept whole, found again, stale when the code changes"
import dataclasses, json
from functools import partial

import pytest

from labelkit import UDA, FixMatch, digits, small_cnn
from labelkit.core.claim import Claim, made, several, spelled
from labelkit.errors import LabelKitError
from labelkit.evidence import claims, code
from labelkit.evidence.recorded import recorded

net = partial(small_cnn, width=4)
few = partial(digits, labeled=40)


def a_claim(**kwargs):
    rows = {"weak views": made("WeakViews"), "FixMatch": made("FixMatch", threshold=.5)}
    args = dict(says="It helps.", rows=rows, over="weak views", data=few, reported="", epochs=1)
    return Claim(**args | dict(model=net, seeds=2) | kwargs)


def a_card(*claims): return dataclasses.replace(FixMatch.card, claims=claims)


def kept(values, **kwargs):
    "A proof with these numbers, (row to beat, technique) by seed"
    claim = a_claim(seeds=len(values))
    runs = [
        dict(row=n, seed=i, metric=v, seconds=1., train_loss=1., valid_loss=None, curve=[v])
        for i,pair in enumerate(values) for n,v in zip(claim.rows, pair)
    ]
    return claims.Proof(a_card(claim), claim, dict(runs=runs) | kwargs)


@pytest.mark.parametrize("values,status", [
    ([(.5, .6), (.6, .71), (.4, .5)], "shown"),
    ([(.5, .6), (.6, .5), (.4, .5)], "not shown"),
    ([(.6, .5), (.71, .6), (.5, .4)], "against"),
    ([], "missing"),
])
def test_status(values, status):
    claim = a_claim(seeds=3)
    p = kept(values)
    assert claims.Proof(p.card, claim, p.saved).status == status


def test_differences_are_paired():
    # by hand: differences .1, .2, .3; mean .2, s .1, t(.975, 2) 4.303, half width .2484
    p = kept([(.1, .2), (.9, 1.1), (.4, .7)])
    assert p.difference == pytest.approx(.2)
    assert p.high - p.difference == pytest.approx(.2484, abs=1e-4)
    assert p.status == "not shown"


def test_prove_keeps_resumes_and_shares(tmp_path, monkeypatch):
    card = a_card(a_claim())
    trained = []
    told = lambda r, done, total: trained.append((r["row"], r["seed"], done, total))
    claims.prove(card, seeds=1, folder=tmp_path, progress=told)
    assert [t[:2] for t in trained] == [("weak views", 0), ("FixMatch", 0)]
    first = json.loads((tmp_path/"fixmatch.json").read_text())["claims"]["short"]["runs"]
    (p,) = claims.prove(card, folder=tmp_path, progress=told)
    assert [t[:2] for t in trained[2:]] == [("weak views", 1), ("FixMatch", 1)]
    assert p.seeds == 2 and not p.stale and p.runs[:2] == first
    # another technique's claim with a row that is spelled alike
    other = dataclasses.replace(UDA.card, claims=(a_claim(
        rows={"views": made("WeakViews"), "UDA": made("UDA", threshold=.5)}, over="views",
    ),))
    del trained[:]
    (q,) = claims.prove(other, folder=tmp_path, progress=told)
    assert [t[0] for t in trained] == ["UDA", "UDA"]
    assert q.comparison.values("views") == p.comparison.values("weak views")
    # once more trains nothing, and changes nothing
    before = (tmp_path/"fixmatch.json").read_bytes()
    del trained[:]
    claims.prove(card, folder=tmp_path, progress=told)
    assert not trained and (tmp_path/"fixmatch.json").read_bytes() == before


def test_two_processes_give_the_same_values(tmp_path):
    card = a_card(a_claim())
    (a,) = claims.prove(card, folder=tmp_path/"a")
    (b,) = claims.prove(card, folder=tmp_path/"b", jobs=2)
    assert [r["metric"] for r in a.runs] == [r["metric"] for r in b.runs]


def test_stale_when_settings_or_code_change(tmp_path, monkeypatch):
    card = a_card(a_claim())
    (p,) = claims.prove(card, seeds=1, folder=tmp_path)
    assert not p.stale
    (changed,) = claims.proofs_of(a_card(a_claim(epochs=2)), tmp_path)
    assert changed.stale
    reads = code._read
    other = lambda m: ("else", reads(m)[1]) if m == "labelkit.pseudo.fixmatch" else reads(m)
    monkeypatch.setattr(code, "_read", other)
    assert p.stale and "1 of 2 seeds so far" in p.sentence()


def test_code_that_changes_nothing_trains_one_seed(tmp_path, monkeypatch):
    card = a_card(a_claim())
    (p,) = claims.prove(card, folder=tmp_path)
    reads = code._read
    other = lambda m: ("else", reads(m)[1]) if m == "labelkit.pseudo.fixmatch" else reads(m)
    monkeypatch.setattr(code, "_read", other)
    trained = []
    told = lambda r, done, total: trained.append((r["row"], r["seed"]))
    (q,) = claims.prove(card, folder=tmp_path, progress=told)
    assert trained == [("FixMatch", 0)] and not q.stale
    assert [r["metric"] for r in q.runs] == [r["metric"] for r in p.runs]


def test_code_that_changes_numbers_trains_all(tmp_path, monkeypatch):
    card = a_card(a_claim())
    (p,) = claims.prove(card, folder=tmp_path)
    saved = json.loads((tmp_path/"fixmatch.json").read_text())
    part = saved["claims"]["short"]
    part["code"]["FixMatch"] = "elsewhere"
    for r in part["runs"]: r["metric"] += .1*(r["row"] == "FixMatch")
    (tmp_path/"fixmatch.json").write_text(json.dumps(saved))
    trained = []
    told = lambda r, done, total: trained.append((r["row"], r["seed"]))
    (q,) = claims.prove(card, folder=tmp_path, progress=told)
    assert trained == [("FixMatch", 0), ("FixMatch", 1)]
    assert [r["metric"] for r in q.runs] == [r["metric"] for r in p.runs]


def test_settings_that_change_train_all(tmp_path):
    "Runs of other settings are not these runs, whatever their code"
    claims.prove(a_card(a_claim()), folder=tmp_path)
    trained = []
    told = lambda r, done, total: trained.append((r["row"], r["seed"]))
    claims.prove(a_card(a_claim(lr=1e-4)), folder=tmp_path, progress=told)
    assert len(trained) == 4


def test_runs_of_another_device_or_with_other_code_are_not_taken(tmp_path):
    claims.prove(a_card(a_claim()), folder=tmp_path)
    path = tmp_path/"fixmatch.json"
    text = path.read_text()
    other = dataclasses.replace(UDA.card, claims=(a_claim(
        rows={"views": made("WeakViews"), "UDA": made("UDA", threshold=.5)}, over="views",
    ),))
    for change in (("device", "cuda"), ("code", "elsewhere")):
        saved = json.loads(text)
        part = saved["claims"]["short"]
        if change[0] == "device": part["device"] = "cuda"
        else: part["code"] = dict.fromkeys(part["code"], "elsewhere")
        path.write_text(json.dumps(saved))
        (tmp_path/"uda.json").unlink(missing_ok=True)
        trained = []
        told = lambda r, done, total: trained.append(r["row"])
        claims.prove(other, seeds=1, folder=tmp_path, progress=told)
        assert sorted(trained) == ["UDA", "views"], change


def test_a_curve_that_differs_is_another_training(tmp_path):
    "The last value alone may be the same by chance"
    card = a_card(a_claim(epochs=2))
    claims.prove(card, folder=tmp_path)
    saved = json.loads((tmp_path/"fixmatch.json").read_text())
    part = saved["claims"]["short"]
    part["code"]["FixMatch"] = "elsewhere"
    for r in part["runs"]: r["curve"][0] += .1*(r["row"] == "FixMatch")
    (tmp_path/"fixmatch.json").write_text(json.dumps(saved))
    trained = []
    told = lambda r, done, total: trained.append((r["row"], r["seed"]))
    claims.prove(card, folder=tmp_path, progress=told)
    assert trained == [("FixMatch", 0), ("FixMatch", 1)]


def test_fewer_seeds_than_asked_for_decide_nothing():
    claim = a_claim(seeds=5)
    p = kept([(.5, .6), (.6, .71), (.4, .5)])
    assert claims.Proof(p.card, claim, p.saved).status == "missing"


def test_first_run_is_recorded(tmp_path):
    claims.prove(a_card(a_claim(epochs=2)), seeds=1, folder=tmp_path)
    r = recorded(FixMatch, tmp_path/"recorded")
    assert len(r.training["parts"]["fixmatch"]) == 2
    assert (tmp_path/"recorded"/"fixmatch.json").stat().st_size < 40_000
    assert "threshold" in r.explore().axes and "loss" in r.explore(losses=True).axes
    with pytest.raises(LabelKitError, match="labelkit prove uda makes one"):
        recorded(UDA, tmp_path/"recorded")


def test_score_stands_for_the_metric(tmp_path):
    claim = a_claim(score=n_parameters, unit="parameters")
    (p,) = claims.prove(a_card(claim), seeds=1, folder=tmp_path)
    n = sum(p.numel() for p in small_cnn(digits(labeled=40), width=4).parameters())
    assert {r["metric"] for r in p.runs} == {float(f"{n:.5g}")}


def n_parameters(learn): return sum(p.numel() for p in learn.model.parameters())


def test_rows_with_settings_and_several_callbacks(tmp_path):
    rows = {
        "wide": dict(cbs=made("WeakViews"), model=partial(small_cnn, width=5)),
        "both": [made("WeakViews"), made("MixUp", alpha=.4)],
    }
    claim = a_claim(rows=rows, over="wide")
    assert repr(claims.claim_row(claim, "both")["cbs"]) == "WeakViews() + MixUp(alpha=0.4)"
    (p,) = claims.prove(a_card(claim), seeds=1, folder=tmp_path)
    assert p.saved["rows"]["both"] == ["WeakViews()", "MixUp(alpha=0.4)"]


def test_text_is_text():
    p = kept([(.5, .6)], setting=dict(data="<b>data</b>"))
    assert "<b>data" not in p._repr_html_() and "&lt;b&gt;data" in p._repr_html_()


def test_bad_input(tmp_path):
    with pytest.raises(LabelKitError, match="no public name of labelkit"): made("FixMach")(None)
    with pytest.raises(LabelKitError, match="has no name to call it by"): spelled(lambda: 0)
    with pytest.raises(LabelKitError, match="is none of the rows"): a_claim(over="nothing")
    with pytest.raises(LabelKitError, match="own row"): a_claim(over="FixMatch")
    with pytest.raises(LabelKitError, match="device='tpu'"):
        claims.prove(a_card(a_claim()), device="tpu", folder=tmp_path)
    with pytest.raises(LabelKitError, match="makes no long claim"):
        claims.prove(a_card(a_claim()), long=True, folder=tmp_path)
    (tmp_path/"fixmatch.json").write_text("{}")
    with pytest.raises(LabelKitError, match="no file of results"):
        claims.proofs_of(a_card(a_claim()), tmp_path)


def test_code_that_counts():
    found = code.closure(["labelkit.pseudo.flexmatch"])
    assert "labelkit.storage.ledger" in found and "labelkit.pseudo.fixmatch" not in found
    assert not [m for m in found if m.startswith(("labelkit.explore", "labelkit.evidence"))]
    assert code.modules_of(several(made("FixMatch"), [net])) == {
        "labelkit.pseudo.fixmatch", "labelkit.models", "builtins",
    }
    same = code.code_hash(made("FixMatch", threshold=.5))
    assert same == code.code_hash(FixMatch) != code.code_hash(made("UDA"))


@pytest.mark.parametrize("change,counts", [
    ("x = 2", True),
    ("x = 1  # one", False),
    ('"A module"\nx = 1', False),
    ("x:int = 1", False),
    ("x = 1\nc = Claim('words')", None),
])
def test_what_counts_as_a_change(change, counts):
    same = code.computed(change) == code.computed("x = 1")
    if counts is None: assert code.computed(change) == code.computed(change.replace("words", "w"))
    else: assert same == (not counts)


def test_hash_is_the_same_in_every_python():
    "What Python's versions list of emptiness differs: none of it is in the text"
    text = code.computed("def f(x, *, y=1): return f'{x}'\nclass A: pass")
    assert "[]" not in text and "None" not in text and "type_params" not in text
