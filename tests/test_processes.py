"""Two processes know what one process knows that sees the same samples: weights, thresholds, banks,
ledger."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch


HERE = Path(__file__).parent
SLUGS = ["fixmatch", "flexmatch", "simmatchv2", "mean_teacher", "future_self_training"]


def start(args, out):
    env = os.environ | dict(
        OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join([str(HERE.parent), str(HERE)])
    )
    return subprocess.Popen(
        [sys.executable, *args, str(HERE / "distributed_run.py"), str(out), ",".join(SLUGS)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    pytest.importorskip("accelerate")
    out = tmp_path_factory.mktemp("processes")/"state"
    runs = [
        start([], out),
        start(["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"], out),
    ]
    for r in runs:
        said = r.communicate(timeout=240)[0]
        assert r.returncode == 0, said[-4000:]
    return {k: torch.load(f"{out}.{k}", weights_only=True) for k in ("one", "0", "1")}


@pytest.mark.parametrize("slug", SLUGS)
def test_two_processes_equal_one(results, slug):
    one,*two = (results[k][slug] for k in ("one", "0", "1"))
    assert one["technique"], "the technique keeps nothing"
    for part in ("model", "technique"):
        for key,want in one[part].items():
            for got in two:
                torch.testing.assert_close(
                    got[part][key],
                    want,
                    atol=1e-5,
                    rtol=1e-4,
                    msg=lambda m: f"{slug}: {part} {key}: {m}",
                )


def test_rows_of_unequal_processes_are_gathered_without_padding(results):
    for k in ("0", "1"):
        rows,positive,values = results[k]["rows"]
        assert rows.tolist() == [0, 10, 11, 12] and positive.tolist() == [False, True, True, True]
        assert values.flatten().tolist() == [0., 10., 11., 12.] and positive.dtype == torch.bool


def test_something_was_accepted(results):
    for slug in SLUGS:
        columns = {
            k: v
            for k, v in results["one"][slug]["technique"].items()
            if k.startswith("ledger.columns.")
        }
        accepted = columns["ledger.columns.accepted"].float().sum()
        seen = (columns["ledger.columns.epoch"] >= 0).sum()
        assert 0 < accepted <= seen, slug
