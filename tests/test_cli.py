"The command line: what it prints where, its exit status, runs that can be repeated"
import json, os, re, socket, subprocess, sys, time, urllib.error, urllib.request
import pytest, torch

from labelkit import cli
from labelkit.atlas import load_techniques
from labelkit.cli import copy_tutorials, main

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
        "import sys; from labelkit.cli import main\ntry: main(['--help'])\nexcept SystemExit as e: "
        "assert not e.code\n"
        "assert not {'torch', 'fastai', 'pandas'} & set(sys.modules)"
    )
    r = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert r.returncode == 0, r.stderr
    for name in ("list", "show", "run", "compare", "lab", "demo", "atlas"):
        assert f"\n    {name} " in r.stdout

def test_list(capsys):
    assert main(["list", "--json"]) == 0
    got = {o["slug"]: o for o in json.loads(capsys.readouterr().out)}
    assert set(got) == set(load_techniques()) and got["cutmix"]["year"] == 2019
    assert main(["list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(got)

def test_show(capsys):
    for slug in load_techniques():
        assert main(["show", slug]) == 0
        out = capsys.readouterr().out
        assert "https://" in out and "needs" in out
        assert main(["show", slug, "--json"]) == 0
        json.loads(capsys.readouterr().out)
    main(["show", "cutmix"])
    assert any(
        l.split()[:2] == ["alpha", "1.0"] and len(l.split()) > 3
        for l in capsys.readouterr().out.splitlines()
    )


@pytest.mark.parametrize(
    "words,says",
    [
        (["show", "cutmx"], "did you mean CutMix?"),
        (["run", "mixup+cutmxi"], "did you mean CutMix?"),
        (["run", "cutmix", "--data", "digit"], "did you mean digits?"),
        (["run", "cutmix", "--model", "smallcnn"], "did you mean small_cnn?"),
        (["run", "cutmix", "--set", "alhpa=1"], "did you mean alpha?"),
        (["run", "cutmix", "--set", "cutmi.alpha=1"], "did you mean cutmix?"),
        (["run", "cutmix", "--set", "alpha"], "not of the form knob=value"),
        (["run", "cutmix", "--set", "alpha=much"], "is no number"),
        (["run", "cutmix+mixup", "--set", "alpha=.5"], "write cutmix.alpha"),
        (["run"], "--config FILE"),
        (["run", "cutmix+cutmix"], "named twice"),
        (["run", "cutmix", "--labeled", "-3"], "labeled=-3"),
        (["run", "cutmix", "--noise-rate", "2"], "noise_rate=2"),
        (["run", "cutmix", "--noise-rate", ".2", "--noise", "pairs"], "'pairs'"),
        (["run", "cutmix", "--data", "mnist"], "--root"),
        (["run", "--config", "no/config.json"], "no/config.json"),
        (["compare", "cutmix", "--seeds", "0"], "--seeds 0"),
        (["atlas", "--family", "mx"], "family='mx'"),
    ],
)
def test_wrong_words(capsys, words, says): assert says in fails(capsys, *words)

@pytest.mark.parametrize(
    "words,says",
    [(["rnu"], "did you mean run?"), ([], "COMMAND"), (["run", "--epochs", "many"], "many")],
)
def test_wrong_usage(capsys, words, says):
    with pytest.raises(SystemExit) as e: main(words)
    out,err = capsys.readouterr()
    assert e.value.code == 2 and out == "" and says in err and len(err.strip().splitlines()) == 1

def test_technique_that_lacks_data(capsys):
    load_techniques()
    assert "needs unlabeled samples" in fails(capsys, "run", "fixmatch", "--epochs", "1")

@pytest.mark.parametrize(
    "words",
    [
        ["cutmix", "--set", "alpha=.5"],
        ["fixmatch+cutmix", "--set", "threshold=.8"],
        ["baseline", "--noise-rate", ".3", "--noise", "pair"],
        ["knowledgedistillation", "--teacher-width", "16"],
    ],
    ids=lambda w: w[0],
)
def test_saved_run_repeats_bit_for_bit(capsys, tmp_path, words):
    one = tmp_path/"one"
    two = tmp_path/"two"
    assert main(["run", *words, *few, "--seed", "3", "--save", str(one)]) == 0
    config = json.loads((one/"config.json").read_text())
    for t in config["techniques"]: assert t["args"]
    assert (
        config["seed"] == 3
        and config["data"]["bs"]
        and config["versions"]["torch"] == torch.__version__.split("+")[0]
    )
    torch.rand(5)
    assert main(["run", "--config", str(one/"config.json"), "--save", str(two)]) == 0
    assert (one / "metrics.json").read_bytes() == (two / "metrics.json").read_bytes() and (
        one / "config.json"
    ).read_bytes() == (two / "config.json").read_bytes()
    a,b = (torch.load(p/"model.pth", weights_only=True) for p in (one, two))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert len(json.loads((one/"metrics.json").read_text())["epochs"]) == 2
    assert sorted(p.name for p in one.iterdir()) == ["config.json", "metrics.json", "model.pth"]
    capsys.readouterr()

def test_json_alone_on_stdout(capsys):
    assert main(["run", "cutmix", *few, "--json"]) == 0
    out,err = capsys.readouterr()
    assert json.loads(out)["last"]["accuracy"] > 0 and "epoch 2/2" in err

def test_run_equals_row_of_compare(capsys):
    main(["run", "cutmix", *few, "--seed", "1", "--json"])
    alone = json.loads(capsys.readouterr().out)["last"]["accuracy"]
    main(["compare", "cutmix", *few, "--seeds", "2", "--json"])
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [r["accuracy"] for r in runs if r["row"] == "CutMix" and r["seed"] == 1] == [alone]

@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"techniques": []}',
        '{"techniques": [3], "data": {}, "model": {}, "epochs": 1, "lr": 1, "seed": 1}',
    ],
)
def test_foreign_config(capsys, tmp_path, text):
    p = tmp_path/"mine.json"
    p.write_text(text)
    assert "mine.json" in fails(capsys, "run", "--config", str(p))

def test_compare_writes_report_and_json(capsys, tmp_path):
    rep = tmp_path/"out"/"r.html"
    js = tmp_path/"c.json"
    assert (
        main(
            [
                "compare",
                "cutmix",
                "mixup",
                "cutmix+mixup",
                *few,
                "--seeds",
                "2",
                "--report",
                str(rep),
                "--save",
                str(js),
                "--set",
                "cutmix.alpha=.5",
            ]
        )
        == 0
    )
    out,err = capsys.readouterr()
    assert (
        out.splitlines()[1].startswith("labels only") and "CutMix+MixUp" in out and "[8/8]" in err
    )
    assert rep.read_text().endswith("</html>\n") and json.loads(js.read_text())["config"]["rows"][
        "CutMix"
    ][0].startswith("CutMix(alpha=0.5")


def test_unwritable_is_known_before_training(capsys, tmp_path, monkeypatch):
    (tmp_path/"file").write_text("in the way")
    monkeypatch.setattr(cli, "run_config", lambda *a: pytest.fail("trained"))
    for words in (
        ["run", "cutmix", "--save"],
        ["compare", "cutmix", "--report"],
        ["compare", "cutmix", "--save"],
        ["demo", "--out"],
    ):
        assert "cannot be written" in fails(capsys, *words, str(tmp_path/"file"/"x"))
    assert [p.name for p in tmp_path.iterdir()] == ["file"]

def test_atlas(capsys):
    assert main(["atlas", "--family", "mix", "--json"]) == 0
    assert {"CutMix", "MixUp"} <= {o["technique"] for o in json.loads(capsys.readouterr().out)}
    assert main(["atlas", "--here"]) == 0
    assert "CutMix" in capsys.readouterr().out

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

def test_interrupt(capsys, monkeypatch):
    monkeypatch.setattr(cli, "run_config", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt()))
    assert main(["run", "cutmix", *few]) == 130

def test_reader_that_stops_early():
    r = subprocess.run(
        f"{sys.executable} -W ignore -c "
        "'from labelkit.cli import main; raise SystemExit(main([\"atlas\"]))' | head -1",
        shell=True,
        capture_output=True,
        text=True,
    )
    assert r.stdout.startswith("mix") and "Traceback" not in r.stderr
