"""The label log under `kill -9`, and its edits a second.

A process makes 10,000 edits and says the number of each one that returned. At twenty random moments
it is killed without warning; the log is opened again and must hold every edit that was said, whole,
and none in part; then another process goes on. Edits are of one to four samples with a reason of
some length, so that a torn one would show. Prints a table and writes
benchmarks/results/label_log.json.
"""
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from timing import save, table, versions

EDITS = 10_000
KILLS = 20
SAMPLES = 1000
CLASSES = 10


def sizes(i): return 1 + i%4
def reason(i): return f"edit {i}: " + "because "*(i%40)


def edit_on(path, first):
    "Make edits `first`.. of `EDITS`, and say each that returned"
    from labelkit.storage.label_log import LabelLog
    log = LabelLog(path, author="robot")
    for i in range(first, EDITS):
        k = sizes(i)
        action = log.edit(
            [(i * 7 + j) % SAMPLES for j in range(k)],
            [(i + j) % CLASSES for j in range(k)],
            reason=reason(i),
        )
        print(i, action, flush=True)


def check(path, said):
    "What is in the log, and whether it is everything that was said and nothing in part"
    from labelkit.storage.label_log import LabelLog
    with LabelLog(path) as log: h = log.history()
    found = {}
    torn = 0
    for action,rows in h.groupby("action"):
        i = int(rows["reason"].iloc[0].split(":")[0].removeprefix("edit "))
        whole = (
            len(rows) == sizes(i)
            and set(rows["reason"]) == {reason(i)}
            and sorted(rows["label"]) == sorted(str((i + j) % CLASSES) for j in range(sizes(i)))
        )
        torn += not whole
        found[action] = i
    lost = sum(found.get(a) != i for i,a in said.items())
    return dict(found=found, lost=lost, torn=torn)


def killed(folder, seed=0):
    "Twenty kills among 10,000 edits"
    from labelkit.storage.label_log import LabelLog
    path = Path(folder)/"labels.db"
    rng = random.Random(seed)
    LabelLog(path, [0]*SAMPLES, vocab=range(CLASSES)).close()
    at = sorted(rng.sample(range(1, EDITS-1), KILLS))
    said = {}
    first = 0
    lost = 0
    torn = 0
    unsaid = 0
    kills = 0
    while first < EDITS:
        stop = next((k for k in at if k >= first), None)
        p = subprocess.Popen(
            [sys.executable, __file__, "edit", str(path), str(first)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for line in p.stdout:
            i,a = map(int, line.split())
            said[i] = a
            if stop is not None and i >= stop:
                time.sleep(rng.random()*.005)  # somewhere inside one of the next edits
                p.send_signal(signal.SIGKILL)
                break
        for line in p.stdout:  # what it said before it died
            if line.endswith("\n"):
                i,a = map(int, line.split())
                said[i] = a
        p.wait()
        kills += p.returncode == -signal.SIGKILL
        state = check(path, said)
        lost = lost+state["lost"]
        torn = torn+state["torn"]
        done = set(state["found"].values())
        unsaid += len(done-set(said))  # on the disk, and killed before it could say so
        said = {i: a for a,i in state["found"].items()}
        first = max(done, default=-1)+1
    return dict(edits=len(said), kills=kills, lost=lost, torn=torn, kept_but_not_said=unsaid)


def speed(folder, singles=1000, batch=1000, rounds=5):
    "Edits a second by the clock, as the disk counts: one at a time, and many in one call"
    from labelkit.storage.label_log import LabelLog
    rates = dict(single=[], batch=[], fsync=[])
    for r in range(rounds):
        with LabelLog(
            Path(folder) / f"speed{r}.db", [0] * SAMPLES, vocab=range(CLASSES), author="robot"
        ) as log:
            start = time.perf_counter()
            for i in range(singles): log.edit(i % SAMPLES, i % CLASSES, reason="as fast as it goes")
            rates["single"].append(singles/(time.perf_counter()-start))
            start = time.perf_counter()
            for i in range(10): log.edit(range(batch), i % CLASSES, reason="many at once")
            rates["batch"].append(10*batch/(time.perf_counter()-start))
        rates["fsync"].append(_fsyncs(Path(folder)/"plain"))
    return {f"{k}_per_second": statistics.median(v) for k,v in rates.items()}


def _fsyncs(path, n=200):
    "What the disk allows: appends of a page to a plain file, each followed by fsync"
    import os
    with open(path, "ab", buffering=0) as f:
        start = time.perf_counter()
        for _ in range(n):
            f.write(b"x"*4096)
            os.fsync(f.fileno())
        return n/(time.perf_counter()-start)


if __name__ == "__main__":
    if sys.argv[1:2] == ["edit"]: edit_on(sys.argv[2], int(sys.argv[3]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            result = dict(killed=killed(folder), speed=speed(folder))
        print(
            table([("kill -9", ""), *result["killed"].items()]),
            "",
            table([("a second", ""), *((k, f"{v:,.0f}") for k, v in result["speed"].items())]),
            sep="\n",
        )
        save(
            "label_log",
            result | dict(versions=versions("torch"), sqlite=__import__("sqlite3").sqlite_version),
        )
        assert not result["killed"]["lost"] and not result["killed"]["torn"]
