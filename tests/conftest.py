"""Shared by all tests: one thread, drawings without a screen, the project's scripts on the path, a
fixed seed."""
import os
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")

import random, shutil, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


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


def pytest_collection_modifyitems(items):
    "The long ones first, so that the workers finish together"
    long = ("test_notebooks.py", "test_packaging.py", "test_site.py", "test_contract.py")
    items.sort(key=lambda it: long.index(it.path.name) if it.path.name in long else len(long))
