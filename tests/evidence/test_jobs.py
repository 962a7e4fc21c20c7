"Calls in other processes: the same results, one thread each, errors with their place, nothing lost"
import os, signal, subprocess, sys, time
from pathlib import Path
from threading import Lock

import pytest

from labelkit.errors import LabelKitError
from labelkit.evidence.jobs import in_a_row, in_processes


def test_results_with_their_place():
    def work(a, b):
        import torch
        return a*b, torch.get_num_threads(), os.getpid()
    todo = [(2, 3), (4, 5), (6, 7)]
    there = dict(in_processes(work, todo, 2))
    assert [there[i][:2] for i in range(3)] == [(6, 1), (20, 1), (42, 1)]
    assert os.getpid() not in {v[2] for v in there.values()}
    assert [(i, v[0]) for i,v in in_a_row(work, todo)] == [(0, 6), (1, 20), (2, 42)]


def test_ctrl_c_is_answered_here_alone():
    here = signal.getsignal(signal.SIGINT)
    def work(): return signal.getsignal(signal.SIGINT)
    there = [v for _,v in in_processes(work, [(), ()], 2)]
    assert there == [signal.SIG_IGN, signal.SIG_IGN]
    assert signal.getsignal(signal.SIGINT) is here


def test_what_is_done_first_comes_first():
    def work(seconds):
        time.sleep(seconds)
        return seconds
    assert [i for i,_ in in_processes(work, [(3.,), (0.,)], 2)] == [1, 0]


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, LabelKitError])
def test_an_error_has_its_place_and_loses_no_result(error):
    def work(i):
        if i == 1: raise error("on purpose")
        return i
    results = in_processes(work, [(0,), (1,)], 1)
    assert next(results) == (0, 0)
    with pytest.raises(error, match="on purpose") as e: next(results)
    assert "in work" in e.value.__notes__[0]


def test_what_cannot_be_sent_is_said_before_anything_runs(tmp_path):
    lock = Lock()
    def work(i):
        (tmp_path/"ran").touch()
        return lock
    with pytest.raises(LabelKitError, match="jobs=2: something in the rows.*lock.*use jobs=1"):
        list(in_processes(work, [(0,)], 2))
    assert not list(tmp_path.iterdir())


def test_what_is_not_found_there(tmp_path, monkeypatch):
    (tmp_path/"only_here.py").write_text("def work(i): return i\n")
    monkeypatch.syspath_prepend(tmp_path)
    from only_here import work
    monkeypatch.undo()
    with pytest.raises(LabelKitError, match="does not find .*only_here"):
        list(in_processes(work, [(0,)], 2))


def test_a_process_that_dies():
    with pytest.raises(LabelKitError, match="jobs=2: a process ended"):
        list(in_processes(os._exit, [(1,)], 2))


INTERRUPTED = """
import sys, time
from labelkit.evidence.jobs import in_processes
def work(i):
    if i: time.sleep(600)
    return i
if __name__ == "__main__":
    try:
        for i,_ in in_processes(work, [(0,), (1,), (2,)], 2): print("done", i, flush=True)
    except KeyboardInterrupt: print("interrupted", flush=True)
"""


def test_ctrl_c_ends_every_process(tmp_path):
    script = tmp_path/"script.py"
    script.write_text(INTERRUPTED)
    p = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )
    assert p.stdout.readline() == "done 0\n"
    os.killpg(p.pid, signal.SIGINT)
    out,_ = p.communicate(timeout=60)
    assert out == "interrupted\n" and p.returncode == 0
    for _ in range(100):  # they end a moment later
        if not (left := members(p.pid)): break
        time.sleep(.1)
    assert not left


def members(group):
    "Processes of a process group"
    found = []
    for f in Path("/proc").glob("[0-9]*/stat"):
        try: fields = f.read_text().rsplit(")", 1)[1].split()
        except OSError: continue
        if int(fields[2]) == group and fields[0] != "Z": found.append(f.parent.name)
    return found
