"""A forked kernel is what a plain one is, but for the time it takes to import fastai."""
import os
import time

import nbformat
import pytest
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError, DeadKernelError

import warm

pytestmark = pytest.mark.skipif(
    not hasattr(os, "pidfd_open"), reason="this system has no pidfd: its kernels are plain"
)

# one cell each, as far as possible in the order in which a lesson would do it
SAME = """
import os, random, signal, subprocess, sys, threading, warnings
from fastai.basics import *
from fastai.callback.all import *
import fastcore.imports, fastprogress.fastprogress, matplotlib.pyplot as plt
---
sys.argv[0], sys.argv[1], len(sys.argv), sys.path, sys.modules["__main__"].__name__, os.getcwd()
---
sorted((k, v) for k, v in os.environ.items() if k != "JPY_PARENT_PID")
---
signal.getsignal(signal.SIGINT).__name__, signal.getsignal(signal.SIGCHLD), sys.flags
---
os.getpgid(0) == os.getpid() == os.getsid(0), os.environ["JPY_PARENT_PID"] == str(os.getppid())
---
sorted(t.name for t in threading.enumerate())
---
fastcore.imports.IN_NOTEBOOK, fastprogress.fastprogress.IN_NOTEBOOK, torch.get_num_threads()
---
plt.get_backend(), plt.isinteractive(), plt._REPL_DISPLAYHOOK, dict(plt.rcParams)
---
plt.plot([1, 3, 2]);
---
plt.gcf().number, plt.isinteractive(), get_ipython().__class__
---
pd.DataFrame(np.arange(60).reshape(2, 30))
---
x = list(progress_bar(range(3)))
---
subprocess.run(["true"]).returncode, subprocess.run(["false"]).returncode
---
sys.stdin.readline(), [m for m in sys.modules if m.split(".")[0] in ("labelkit", "warm")]
---
import pyarrow
pyarrow.array(range(100000)).sum().as_py(), torch.ones(300, 300).sum().item()
---
torch.manual_seed(0) and torch.randn(3), torch.nn.Linear(3, 2).weight
---
import multiprocessing
with multiprocessing.get_context("spawn").Pool(1) as pool: got = pool.map(abs, [-1])
got
---
1/0
""".strip().split("\n---\n")
RANDOM = ["import random, torch, numpy", "random.random(), torch.rand(1), numpy.random.rand()"]


def run(manager, cells, **kwargs):
    "Outputs of each cell in a kernel that `manager` starts"
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    env = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"}
    kwargs = dict(allow_errors=True, timeout=120) | kwargs
    NotebookClient(nb, kernel_manager_class=manager, **kwargs).execute(env=env)
    return [c.outputs for c in nb.cells]


@pytest.fixture(scope="module")
def forked(): return warm.manager()


@pytest.fixture(scope="module")
def asked(forked):
    "How often a kernel was forked, and how often one was refused"
    count = dict(forked=0, plain=0)
    real = warm.start
    def start(*args):
        got = real(*args)
        count["plain" if got is None else "forked"] += 1
        return got
    warm.start = start
    yield count
    warm.start = real


def test_as_a_plain_kernel(forked, asked):
    want = run(AsyncKernelManager, SAME)
    got = run(forked, SAME)
    assert asked == dict(forked=1, plain=0)
    # warnings of imports were said when the server imported
    for code, a, b in zip(SAME[1:], want[1:], got[1:]): assert b == a, code
    assert got[0] == [] and got[-1][0].ename == "ZeroDivisionError"
    assert got[8][0].data["image/png"]


def test_random_numbers_of_their_own(forked):
    a, b = (run(forked, RANDOM)[1][0].data["text/plain"] for _ in range(2))
    assert all(x != y for x, y in zip(a.strip("()").split(", "), b.strip("()").split(", ")))


def test_one_kernel_leaves_nothing_to_the_next(forked):
    first = ["import os, sys\nos.environ['LEFT'] = '1'\nsys.modules['left'] = sys"]
    run(forked, [*first, "import torch\ntorch.set_default_dtype(torch.float64)"])
    said, = run(forked, [("import os, sys, torch\n"
                         "'LEFT' in os.environ, 'left' in sys.modules, torch.get_default_dtype()")])
    assert said[0].data["text/plain"] == "(False, False, torch.float32)"


def test_it_is_interrupted_and_it_may_die(forked):
    with pytest.raises(CellTimeoutError): run(forked, ["while True: pass"], timeout=2)
    with pytest.raises(DeadKernelError): run(forked, ["import os\nos._exit(3)"])


def test_it_ends(forked):
    "After its notebook no process is left"
    said, = run(forked, ["import os\nos.getpid()"])
    pid = int(said[0].data["text/plain"])
    with pytest.raises(ProcessLookupError): os.kill(pid, 0)


def test_a_plain_kernel_where_it_cannot_fork(forked, asked, monkeypatch):
    "Another program than ipykernel; a server that is gone, or that had another thread"
    env = dict(os.environ)
    assert warm.start(["ir", "-f", "file"], env, ".") is None
    server, = warm.servers.values()
    monkeypatch.setattr(server, "works", False)
    before = dict(asked)
    assert run(forked, ["1 + 1"])[0][0].data["text/plain"] == "2"
    assert asked == dict(before, plain=before["plain"] + 1)
    monkeypatch.setattr(server, "works", True)
    server.process.kill()
    server.process.wait()
    assert run(forked, ["1 + 1"])[0][0].data["text/plain"] == "2" and not server.works


def test_only_a_process_without_threads_is_forked():
    import threading
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    before = warm.alone()
    other.start()
    try: assert not warm.alone()
    finally: done.set()
    other.join()
    for _ in range(100):  # the system's thread ends a moment after Python's
        if warm.alone() == before: return
        time.sleep(.05)
    assert warm.alone() == before
