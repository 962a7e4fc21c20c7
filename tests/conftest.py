"""Shared by all tests: one thread, drawings without a screen, this checkout on the path, a fixed
seed."""
import os
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")

import random, shutil, sys
from pathlib import Path

import pytest

from chosen import choose, graph, told

ROOT = Path(__file__).resolve().parent.parent
# also in the processes that tests start, and where the environment belongs to another checkout
sys.path.insert(0, str(ROOT))
_path = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(_path))


@pytest.fixture(scope="session")
def root(): return ROOT


@pytest.fixture(autouse=True)
def seeded(request):
    "Every test starts from the same random state, in whatever order and worker it runs"
    random.seed(0)
    if "torch" in sys.modules: sys.modules["torch"].manual_seed(0)
    if "numpy" in sys.modules: sys.modules["numpy"].random.seed(0)


@pytest.fixture(scope="session")
def chromium():
    "Path of a Chromium; a test that needs one is skipped where there is none"
    pytest.importorskip("playwright.sync_api")
    found = (
        os.environ.get("CHROMIUM")
        or shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if not found: pytest.skip("no Chromium on this machine (Debian: apt install chromium)")
    return found


@pytest.fixture
def browser(chromium):
    "A headless Chromium that reaches nothing outside this machine"
    from playwright.sync_api import sync_playwright

    flags = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    with sync_playwright() as pw:
        b = pw.chromium.launch(executable_path=chromium, headless=True, args=flags)
        yield b
        b.close()


# ---- what is tested whole, and in which order

def pytest_addoption(parser):
    parser.addoption("--whole", action="store_true", help="test every technique whole")


def pytest_configure(config):
    config.addinivalue_line("markers", "full: only for the techniques that this run tests whole")
    worker = getattr(config, "workerinput", None)  # one of xdist takes what the first process chose
    config.chosen = worker["chosen"] if worker else choose(ROOT, config.getoption("whole"))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node): node.workerinput["chosen"] = node.config.chosen


def technique_of(item):
    "The slug that a test is about: its parameter `slug`, or the notebook `path` of a technique"
    params = item.callspec.params if hasattr(item, "callspec") else {}
    slug = params.get("slug")
    if slug is None and "path" in params: slug = params["path"].stem
    return slug if slug in graph(ROOT)[1] else None


def by_name(config):
    "Was the run asked for single tests? Then those are run, whatever was chosen"
    return config.getoption("keyword") or any("::" in a for a in config.args)


def pytest_collection_modifyitems(config, items):
    "The long ones first, so that the workers finish together"
    long = ("test_notebooks.py", "test_packaging.py", "test_site.py", "test_contract.py")
    items.sort(key=lambda it: long.index(it.path.name) if it.path.name in long else len(long))
    if by_name(config): return
    full = [it for it in items if it.get_closest_marker("full") and technique_of(it)]
    left = {id(it) for it in full if technique_of(it) not in config.chosen}
    config.hook.pytest_deselected(items=[it for it in items if id(it) in left])
    items[:] = [it for it in items if id(it) not in left]
    config.any_full = bool(full)


def pytest_terminal_summary(terminalreporter, config):
    "With workers it is they who collect, so the first process cannot know what there was"
    if by_name(config) or not getattr(config, "any_full", True): return
    terminalreporter.section("contract and lessons")
    terminalreporter.write_line(told(config.chosen, len(graph(ROOT)[1])))
