"""The command line: what it prints where, its exit status, runs that can be repeated, options that
count"""
import argparse, json, os, re, signal, socket, subprocess, sys, time
import urllib.error, urllib.request
from types import SimpleNamespace

import pytest
import torch

from labelkit import cli
from labelkit.atlas import atlas, load_techniques
from labelkit.cli import copy_tutorials, main, make_parser
from labelkit.data import sets

from labelkit.evidence.compare import Comparison

few = ["--labeled", "40", "--epochs", "2"]


def fails(capsys, *words):
    "The one line on standard error of a call that must fail with status 2"
    assert main(list(words)) == 2
    out,err = capsys.readouterr()
    assert out == "" and "Traceback" not in err
    line = err.strip().splitlines()[-1]
    assert line.startswith("labelkit: ")
    return line


def test_help_without_torch():
    code = (
        "import sys; from labelkit.cli import main\n"
        "assert [main([*w.split(), '--help']) for w in ('', 'run', 'compare')] == [0, 0, 0]\n"
        "assert main(['--version']) == 0 and main(['rnu']) == main(['run', '--bs', '0']) == 2\n"
        "assert not {'torch', 'fastai', 'pandas', 'numpy'} & set(sys.modules)"
    )
    r = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert r.returncode == 0, r.stderr
    for name in ("list", "show", "run", "compare", "lab", "demo", "prove", "atlas"):
        assert f"\n    {name} " in r.stdout


def test_list(capsys):
    assert main(["list", "--json"]) == 0
    got = {o["slug"]: o for o in json.loads(capsys.readouterr().out)}
    assert set(got) == set(load_techniques()) and got["cutmix"]["year"] == 2019
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {l.split()[0] for l in lines} == set(got)
    assert main(["list", "PSEUDO", "Teacher"]) == 0
    found = {l.split()[0] for l in capsys.readouterr().out.splitlines()}
    assert "mean_teacher" in found and "cutmix" not in found
    assert main(["list", "no such"]) == 0
    assert capsys.readouterr() == ("", "labelkit: no technique fits\n")


@pytest.mark.parametrize("columns", [60, 100])
def test_list_fits_a_terminal(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    for words in (["list"], ["show", "simmatchv2"]):
        assert main(words) == 0
        lines = capsys.readouterr().out.splitlines()
        # a link is never cut, and the last column keeps 30 characters
        wide = [l for l in lines if len(l) > max(columns, 80) and "https://" not in l]
        assert not wide


def test_show(capsys):
    for slug,card in load_techniques().items():
        assert main(["show", slug]) == 0
        out = capsys.readouterr().out
        assert "https://" in out and re.search(r"^needs +\w", out, re.M)
        assert re.search(rf"^name +{slug}$", out, re.M)
        assert main(["show", card.name, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["slug"] == slug
    main(["show", "cutmix"])
    lines = capsys.readouterr().out.splitlines()
    assert any(l.split()[:2] == ["alpha", "1.0"] and len(l.split()) > 3 for l in lines)


@pytest.mark.parametrize(
    "words,says",
    [
        (["show", "cutmx"], "did you mean CutMix?"),
        (["show", "baseline"], "has no card"),
        (["show", "cutmix+mixup"], "unknown"),
        (["run", "mixup+cutmxi"], "did you mean CutMix?"),
        (["run", "cutmix", "--data", "digit"], "did you mean digits?"),
        (["run", "cutmix", "--model", "smallcnn"], "did you mean small_cnn?"),
        (["run", "cutmix", "--set", "alhpa=1"], "did you mean alpha?"),
        (["run", "cutmix", "--set", "cutmi.alpha=1"], "did you mean CutMix?"),
        (["run", "cutmix", "--set", "mixup.alpha=1"], "'mixup' is unknown"),
        (["run", "cutmix", "--set", "alpha"], "not of the form key=value"),
        (["run", "cutmix", "--set", "alpha=much"], "is not a number"),
        (["run", "cutmix", "--set", "alpha=-1"], "alpha=-1"),
        (["run", "cutmix", "--set", "alpha=1", "--set", "alpha=2"], "stands there twice"),
        (["run", "cutmix+mixup", "--set", "alpha=.5"], "write cutmix.alpha"),
        (["run", "cutmix", "--set", "data.labelled=3"], "did you mean labeled?"),
        (["run", "cutmix", "--set", "data.name=mnist"], "'name' is unknown"),
        (["run", "cutmix", "--labeled", "40", "--set", "data.labeled=3"], "given twice"),
        (["run", "cutmix", "--model", "small_vit", "--set", "model.width=3"], "'width' is unknown"),
        (["run"], "--config FILE"),
        (["run", "cutmix", "--config", "c.json"], "--config FILE"),
        (["run", "cutmix+cutmix"], "named twice"),
        (["run", ""], "unknown"),
        (["run", "cutmix", "--labeled", "3"], "3 labels are fewer"),
        (["run", "cutmix", "--labeled", "4000"], "labeled=4000"),
        (["run", "cutmix", "--noise-rate", ".2", "--noise", "pairs"], "'pairs'"),
        (["run", "cutmix", "--noise", "pair"], "noise='pair' has no effect"),
        (["run", "cutmix", "--data", "mnist"], "--root"),
        (["run", "cutmix", "--n", "100"], "--n has no effect"),
        (["run", "cutmix", "--root", "."], "--root has no effect"),
        (["run", "cutmix", "--download"], "--download has no effect"),
        (["run", "cutmix", "--teacher-width", "8"], "--teacher-width has no effect"),
        (["run", "cutmix", "--model", "small_vit", "--width", "8"], "--width has no effect"),
        (["run", "--config", "no/config.json"], "no/config.json"),
        (["run", "--config", "c.json", "--epochs", "3"], "--epochs has no effect beside --config"),
        (["run", "--config", "c.json", "--seed", "0"], "--seed has no effect beside --config"),
        (["run", "--config", "c.json", "--set", "alpha=1"], "--set has no effect beside --config"),
        (["run", "cutmix", "mixup"], "'mixup' is one word too many"),
        (["run", "cutmix", "--epoch", "3"], "did you mean --epochs?"),
        (["run", "cutmix", "--epo", "3"], "did you mean --epochs?"),
        (["run", "cutmix", "--epochs", "3", "--epochs", "4"], "--epochs: stands there twice"),
        (["run", "cutmix", "--save", ""], "--save: it is empty"),
        (["compare", "cutmix", "cutmix"], "the row cutmix is named twice"),
        (["compare", "cutmix", "CutMix"], "the row cutmix is named twice"),
        (["compare", "baseline", "cutmix", "--no-baseline"], "--no-baseline has no effect"),
        (["compare", "cutmix", "--save", "x", "--report", "x"], "name two files"),
        (["compare", "cutmix", "--seed", "3"], "did you mean --seeds?"),
        (["lab", "--port", "0"], "from 1 to 65535"),
        (["lab", "--port", "65536"], "from 1 to 65535"),
        (["atlas", "--family", "mx"], "family='mx'"),
        (["rnu"], "did you mean run?"),
        ([], "COMMAND"),
    ],
    ids=lambda w: " ".join(w) if isinstance(w, list) else "",
)
def test_wrong_words(capsys, monkeypatch, words, says):
    monkeypatch.setattr(cli, "_trained", lambda config: pytest.fail("trained"))
    monkeypatch.delenv("LABELKIT_DATA", raising=False)
    assert says in fails(capsys, *words)


def options(command):
    "The options of a command by name"
    commands = next(
        a for a in make_parser()._actions if isinstance(a, argparse._SubParsersAction)
    ).choices
    return {a.option_strings[-1]: a for a in commands[command]._actions if a.option_strings}


COMMANDS = ("list", "show", "run", "compare", "lab", "demo", "atlas")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_number_is_checked_by_the_parser(capsys, command):
    words = dict(show=["cutmix"], run=["cutmix"], compare=["cutmix"]).get(command, [])
    seen = 0
    for name,action in options(command).items():
        if action.type is None or action.type is cli._name: continue
        seen += 1
        for text in ("nan", "inf", "many", "", "-1", "1e999", "1.5", "0x10", "None"):
            try: value = action.type(text)
            except argparse.ArgumentTypeError: continue
            # a seed may be below 0, a rate may be broken
            assert (name, text) in {("--seed", "-1"), ("--lr", "1.5")} and value == float(text)
        assert name in fails(capsys, command, *words, name, "many")
        assert "twice" in fails(capsys, command, *words, name, "1", name, "1")
    assert seen or command in ("list", "show", "atlas")


@pytest.fixture
def untrained(monkeypatch):
    "Commands run up to the training; torchvision's sets are 40 random images"
    def trained(config):
        return SimpleNamespace(model=torch.nn.Linear(1, 1)), [dict(accuracy=.5)]
    def load(name, root, train, download):
        if not download: assert root == "/there"
        return torch.rand(40, 1, 8, 8), torch.arange(40) % 2, ["a", "b"]
    monkeypatch.setattr(cli, "_trained", trained)
    monkeypatch.setattr(sets, "_load_set", load)


# For every option of `run`: words under which it has an effect
EFFECT = {
    "--seed": ["--seed", "-5"],
    "--data": ["--data", "mnist", "--root", "/there"],
    "--root": ["--data", "mnist", "--root", "/there"],
    "--download": ["--data", "mnist", "--root", "/there", "--download"],
    "--n": ["--data", "mnist", "--root", "/there", "--n", "30"],
    "--labeled": ["--labeled", "30"],
    "--noise-rate": ["--noise-rate", ".2"],
    "--noise": ["--noise-rate", ".2", "--noise", "pair"],
    "--bs": ["--bs", "8"],
    "--epochs": ["--epochs", "1"],
    "--lr": ["--lr", "1"],
    "--model": ["--model", "wide_resnet"],
    "--width": ["--width", "3"],
    "--teacher-width": ["--teacher-width", "3"],
    "--set": ["--set", "unlabeled=True", "--set", "data.val_bs=3", "--set", "model.width=2"],
}
ELSEWHERE = {"--help", "--json", "--save", "--config"}  # tested below


def test_every_option_of_run_has_an_effect(capsys, untrained):
    assert set(options("run")) == {*EFFECT, *ELSEWHERE}
    def config(words):
        base = ["run", "knowledge_distillation", "--labeled", "40", "--json"]
        if "--labeled" in words: base = [base[0], base[1], base[4]]
        if "mnist" in words: base = [*base[:2], "--labeled", "10", "--json"]
        assert main([*base, *words]) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)["config"]
    plain = config([])
    for name,words in EFFECT.items():
        i = words.index(name)
        without = words[:i] + words[i + (1 if name == "--download" else 2):]
        if name in ("--data", "--root"): without = []
        assert config(words) != config(without), name
        assert config(words) == config(words)
    changed = config(EFFECT["--set"])
    assert changed["techniques"][0]["args"]["unlabeled"] is True
    assert (changed["data"]["val_bs"], changed["model"]["width"]) == (3, 2)
    assert plain["data"]["bs"] == 16  # what the digits choose for few labels


def test_every_option_of_compare_has_an_effect(capsys, monkeypatch, tmp_path):
    "The training options are those of `run`"
    own = {"--seeds", "--jobs", "--no-baseline", "--report", "--save"}
    assert set(options("compare")) - set(options("run")) == own - {"--save"}
    asked = []
    from labelkit.evidence import compare as module
    real = module.compare
    def compare(rows, *args, **kwargs):
        asked.append(dict(kwargs, rows=list(rows)))
        return real(rows, *args, **kwargs | dict(jobs=1))
    monkeypatch.setattr(module, "compare", compare)
    words = ["compare", "cutmix", "--labeled", "20", "--epochs", "1", "--width", "4"]
    save = tmp_path/"c.json"
    page = tmp_path/"r.html"
    assert main([*words, "--seeds", "1"]) == 0 and "written" not in capsys.readouterr().out
    more = ["--seeds", "2", "--jobs", "2", "--no-baseline"]
    assert main([*words, *more, "--save", str(save), "--report", str(page)]) == 0
    one,two = asked
    assert (one["seeds"], one["jobs"], one["rows"]) == (1, 1, ["labels only", "cutmix"])
    assert (two["seeds"], two["jobs"], two["rows"]) == (2, 2, ["cutmix"])
    assert len(Comparison.load(save).runs) == 2 and page.read_text().endswith("</html>\n")
    out = capsys.readouterr().out
    assert f"written: {save}" in out and f"written: {page}" in out


def test_jobs_of_the_demo_reach_it(monkeypatch, tmp_path, capsys):
    from labelkit import demo as module
    asked = {}
    monkeypatch.setattr(module, "demo", lambda path, **kw: asked.update(kw, path=path))
    assert main(["demo", "--seeds", "2", "--jobs", "3", "--out", str(tmp_path)]) == 0
    assert (asked["seeds"], asked["jobs"], asked["path"]) == (2, 3, tmp_path/"report.html")
    assert main(["demo", "--out", str(tmp_path)]) == 0
    assert (asked["seeds"], asked["jobs"]) == (5, 1)


def test_the_baseline_stands_where_it_is_named(capsys):
    words = [*few, "--seeds", "1", "--json"]
    rows = {}
    for names in ("cutmix", "cutmix baseline", "baseline"):
        assert main(["compare", *names.split(), *words]) == 0
        rows[names] = [o["row"] for o in json.loads(capsys.readouterr().out)["table"]]
    assert rows == {
        "cutmix": ["labels only", "cutmix"],
        "cutmix baseline": ["cutmix", "labels only"],
        "baseline": ["labels only"],
    }


def test_technique_that_lacks_data(capsys):
    assert "needs unlabeled samples" in fails(capsys, "run", "fixmatch", "--epochs", "1")


def test_a_technique_with_data_of_its_own(capsys):
    words = ["run", "proportion_loss", "--set", "data.bag_size=4", "--epochs", "1", "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["config"]["data"]["bag_size"] == 4


@pytest.mark.parametrize(
    "words",
    [
        ["cutmix", "--set", "alpha=.5"],
        ["fixmatch+cutmix", "--set", "threshold=.8"],
        ["baseline", "--noise-rate", ".3", "--noise", "pair"],
        ["knowledgedistillation", "--teacher-width", "16"],
        ["MixUp", "--model", "wide_resnet", "--set", "model.depth=10", "--width", "1"],
    ],
    ids=lambda w: w[0],
)
def test_saved_run_repeats_bit_for_bit(capsys, tmp_path, words):
    one = tmp_path/"one"
    two = tmp_path/"two"
    assert main(["run", *words, *few, "--seed", "3", "--save", str(one)]) == 0
    config = json.loads((one/"config.json").read_text())
    for t in config["techniques"]: assert t["args"]
    assert config["seed"] == 3 and config["data"]["bs"] == 16
    assert config["versions"]["torch"] == torch.__version__.split("+")[0]
    torch.rand(5)
    assert main(["run", "--config", str(one/"config.json"), "--save", str(two)]) == 0
    for f in ("metrics.json", "config.json"):
        assert (one/f).read_bytes() == (two/f).read_bytes()
    a,b = (torch.load(p/"model.pth", weights_only=True) for p in (one, two))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert len(json.loads((one/"metrics.json").read_text())["epochs"]) == 2
    assert sorted(p.name for p in one.iterdir()) == ["config.json", "metrics.json", "model.pth"]


def test_other_versions_are_told(capsys, tmp_path, untrained):
    assert main(["run", "cutmix", *few, "--save", str(tmp_path)]) == 0
    config = json.loads((tmp_path/"config.json").read_text())
    config["versions"]["torch"] = "1.0"
    (tmp_path/"config.json").write_text(json.dumps(config))
    capsys.readouterr()
    assert main(["run", "--config", str(tmp_path/"config.json")]) == 0
    assert "made with torch 1.0 (now" in capsys.readouterr().err


def test_json_alone_on_stdout(capsys):
    assert main(["run", "cutmix", *few, "--json"]) == 0
    out,err = capsys.readouterr()
    assert json.loads(out)["last"]["accuracy"] > 0 and "epoch 2/2" in err


def test_run_equals_row_of_compare(capsys):
    main(["run", "cutmix", *few, "--seed", "1", "--json"])
    alone = json.loads(capsys.readouterr().out)["last"]["accuracy"]
    for jobs in ("1", "2"):
        main(["compare", "cutmix", *few, "--seeds", "2", "--jobs", jobs, "--json"])
        runs = json.loads(capsys.readouterr().out)["runs"]
        assert [r["accuracy"] for r in runs if r["row"] == "cutmix" and r["seed"] == 1] == [alone]


def test_an_error_of_the_training_is_one_line(capsys, monkeypatch):
    def broken(*args, **kwargs): raise ZeroDivisionError("a\n bug")
    monkeypatch.setattr(cli, "run_config", broken)
    assert fails(capsys, "run", "cutmix", *few).endswith("labelkit: ZeroDivisionError: a bug")


def test_compare_writes_report_and_json(capsys, tmp_path):
    rep = tmp_path/"out"/"r.html"
    js = tmp_path/"c.json"
    words = ["cutmix", "mixup", "cutmix+mixup", *few, "--seeds", "2", "--set", "cutmix.alpha=.5"]
    assert main(["compare", *words, "--report", str(rep), "--save", str(js)]) == 0
    out,err = capsys.readouterr()
    assert out.splitlines()[1].startswith("labels only") and "cutmix+mixup" in out
    assert "[8/8]" in err and rep.read_text().endswith("</html>\n")
    config = json.loads(js.read_text())["config"]
    assert config["rows"]["cutmix"] == ["CutMix(alpha=0.5)"]
    assert config["model"] == "small_cnn width=32" and config["data"].startswith("digits: 1258")


def test_unwritable_is_known_before_training(capsys, tmp_path, monkeypatch):
    (tmp_path/"file").write_text("in the way")
    monkeypatch.setattr(cli, "_trained", lambda *a: pytest.fail("trained"))
    for words in (
        ["run", "cutmix", "--save"],
        ["compare", "cutmix", "--report"],
        ["compare", "cutmix", "--save"],
        ["demo", "--out"],
    ):
        assert "cannot be written" in fails(capsys, *words, str(tmp_path/"file"/"x"))
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_folder_without_the_data(capsys, tmp_path):
    words = ["run", "cutmix", "--data", "mnist", "--root", str(tmp_path/"none")]
    assert "does not hold MNIST" in fails(capsys, *words, "--save", str(tmp_path/"run"))
    assert not list(tmp_path.iterdir())


def test_a_wrong_word_leaves_the_old_run(capsys, tmp_path, untrained, monkeypatch):
    assert main(["run", "cutmix", *few, "--save", str(tmp_path)]) == 0
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    capsys.readouterr()
    fails(capsys, "run", "cutmix", "--set", "alpha=-1", "--save", str(tmp_path))
    fails(capsys, "run", "cutmix", "--labeled", "4000", "--save", str(tmp_path))
    monkeypatch.undo()
    fails(capsys, "run", "proportion_loss", *few, "--save", str(tmp_path))  # while it trains
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before and len(before) == 3


def test_the_home_folder(capsys, tmp_path, monkeypatch, untrained):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main(["run", "cutmix", *few, "--save=~/run"]) == 0
    assert main(["run", "--config=~/run/config.json"]) == 0
    files = ["--save=~/c.json", "--report=~/r.html"]
    assert main(["compare", "cutmix", *few, "--seeds=1", *files]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.json", "r.html", "run"]


def test_atlas(capsys):
    assert main(["atlas", "--family", "mix", "--json"]) == 0
    assert {"cutmix", "mixup"} <= {o["slug"] for o in json.loads(capsys.readouterr().out)}
    assert main(["atlas", "--here"]) == 0
    assert " + 1  cutmix: " in capsys.readouterr().out
    assert main(["atlas", "Teacher", "copy"]) == 0
    assert capsys.readouterr().out.strip().endswith(atlas(search="teacher copy").summary)


@pytest.fixture
def claimed(monkeypatch):
    "FixMatch claims something that trains for a second"
    from dataclasses import replace
    from functools import partial
    from labelkit.core import technique
    from labelkit.core.claim import Claim, made
    from labelkit.models import small_cnn
    rows = {"weak views": made("WeakViews"), "FixMatch": made("FixMatch", threshold=.5)}
    claim = Claim(
        "It helps.", rows, over="weak views", data=partial(sets.digits, labeled=40), reported="",
        epochs=1, model=partial(small_cnn, width=4), seeds=2,
    )
    card = load_techniques()["fixmatch"]
    for table in (technique.registry, cli.cards_of.__globals__.get("registry", {})):
        monkeypatch.setitem(table, "fixmatch", replace(card, claims=(claim,)))
    return claim


def test_prove(capsys, tmp_path, claimed):
    out = ["--out", str(tmp_path)]
    assert main(["prove", "fixmatch", "--list", "--json", *out]) == 0
    (line,) = json.loads(capsys.readouterr().out)
    assert line["status"] == "missing" and line["baseline"] == "weak views"
    assert main(["prove", "fixmatch", *out]) == 0
    told,progress = capsys.readouterr()
    assert told.startswith("fixmatch  ") and "over weak views" in told
    assert "[4/4]" in progress and (tmp_path/"fixmatch.json").exists()
    assert main(["prove", "fixmatch", "--stale", *out]) == 0
    told,progress = capsys.readouterr()
    assert told == "" and "nothing to prove" in progress
    assert main(["prove", "--list", "--json", *out]) == 0
    lines = {o["name"]: o for o in json.loads(capsys.readouterr().out)}
    assert lines["fixmatch"]["seeds"] == 2 and not lines["fixmatch"]["stale"]
    assert set(lines["fixmatch"]) >= {"name", "status", "baseline", "difference", "interval"}


def test_prove_wrong_words(capsys, tmp_path, claimed):
    assert "wants either names" in fails(capsys, "prove", "--out", str(tmp_path))
    assert "wants either names" in fails(capsys, "prove", "fixmatch", "--all")
    assert "makes no such claim" in fails(capsys, "prove", "fixmatch", "--long")
    assert "did you mean" in fails(capsys, "prove", "fixmach", "--list")
    assert "device='tpu'" in fails(
        capsys, "prove", "fixmatch", "--device", "tpu", "--out", str(tmp_path)
    )


def test_interrupt(capsys, monkeypatch):
    def stop(*args): raise KeyboardInterrupt()
    monkeypatch.setattr(cli, "run_config", stop)
    assert main(["run", "cutmix", *few]) == 130


def test_an_interrupt_keeps_what_was_done(tmp_path):
    save = tmp_path/"c.json"
    words = "compare cutmix --labeled 40 --epochs 20 --seeds 50 --jobs 2".split()
    p = subprocess.Popen(
        [sys.executable, "-c", "from labelkit.cli import main; raise SystemExit(main())", *words,
         "--save", str(save)],
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )
    for line in p.stderr:
        if line.startswith("[2/"): break
    os.killpg(p.pid, signal.SIGINT)
    _,err = p.communicate(timeout=60)
    assert p.returncode == 130 and "labelkit: interrupted" in err and "Traceback" not in err
    assert 2 <= len(Comparison.load(save).runs) < 100


def test_lab_copies_what_is_missing(capsys, tmp_path):
    new = copy_tutorials(tmp_path/"lessons")
    assert new and all(p.suffix == ".ipynb" for p in new)
    new[0].write_text("my own work")
    new[-1].unlink()
    assert copy_tutorials(tmp_path/"lessons") == [new[-1]]
    assert new[0].read_text() == "my own work"
    (tmp_path/"file").write_text("")
    assert "is a file" in fails(capsys, "lab", str(tmp_path/"file"))

def test_lab_serves_the_lessons_to_who_has_the_token(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    cmd = [
        sys.executable,
        "-c",
        "from labelkit.cli import main; raise SystemExit(main())",
        "lab",
        str(tmp_path / "lessons"),
        "--no-browser",
        f"--port={port}",
    ]
    env = os.environ | dict(
        JUPYTER_CONFIG_DIR=str(tmp_path / "config"), JUPYTER_RUNTIME_DIR=str(tmp_path / "run")
    )
    server = subprocess.Popen(
        cmd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=env,
        start_new_session=True,
    )
    try:
        token = next(
            m[1]
            for line in server.stdout
            if (m := re.search(rf"http://127\.0\.0\.1:{port}/lab\?token=(\w+)", line))
        )
        ask = lambda q: urllib.request.urlopen(
            f"http://127.0.0.1:{port}/api/contents/mix{q}", timeout=20
        )
        for _ in range(100):  # it tells its address a moment before it answers
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError: time.sleep(.2)
        names = [o["name"] for o in json.load(ask(f"?token={token}"))["content"]]
        assert {"mixup.ipynb", "cutmix.ipynb"} <= set(names)
        with pytest.raises(urllib.error.HTTPError, match="403"): ask("")
    finally:
        os.killpg(server.pid, 15)
        server.wait(20)


def test_reader_that_stops_early():
    r = subprocess.run(
        f"{sys.executable} -W ignore -c "
        "'from labelkit.cli import main; raise SystemExit(main([\"atlas\"]))' | head -1",
        shell=True,
        capture_output=True,
        text=True,
    )
    assert r.stdout.startswith("mix") and "Traceback" not in r.stderr
