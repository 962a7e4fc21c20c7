"""Every notebook runs from top to bottom; what is committed is clean, what it shows is small."""
import base64, json, os, re

import pytest
from notebooks import NBS, execute, fresh, notebooks, outputs, source

ALL = notebooks()
ids = [str(p.relative_to(NBS)) for p in ALL]
LIMIT = 300 * 1024 # bytes an output may have


# what no page should show a reader
UNREADABLE = {
    "a warning": r"\b\w*Warning: ",
    "a folder of this machine": r"(?<![\w.])/(tmp|home|root|work|var)/",
    "an object's address": r" at 0x[0-9a-f]{6,}",
    "a progress bar": r"\[\d+/\d+ \d\d:\d\d<",
    "a number's 64 bits": r"(?<!ratio=\[0\.75, )(?<![\w.])-?\d\.\d{12,}",
    "an inner class": r"TensorBase\(|np\.float\d\d\(|grad_fn=",
}


def shown(o):
    "What an output says in words: of its forms the one that a page takes"
    data = o.get("data", {})
    if "application/vnd.jupyter.widget-view+json" in data: return ""
    # the site leaves out what libraries say about themselves (scripts/site_pages.py)
    if o.get("name") == "stderr" and "site-packages" in "".join(o["text"]): return ""
    said = "".join(data.get("text/html") or data.get("text/plain") or o.get("text") or "")
    return "" if "<svg" in said else said


def size(o):
    "Bytes of an output as it is stored, pictures decoded"
    data = o.get("data", {})
    text = sum(
        len(base64.b64decode(v))
        if k.startswith("image/") and "svg" not in k
        else len(json.dumps(v))
        for k, v in data.items()
    )
    return text + len(json.dumps(o.get("text", "")))


@pytest.mark.full
@pytest.mark.parametrize("path", ALL, ids=ids)
@pytest.mark.timeout(900)
def test_runs(path):
    """In .ci/run the site has just run them with the same cells and library: those copies are
    taken, not run again"""
    nb = (os.environ.get("LABELKIT_REUSE_EXECUTED") and fresh(path)) or execute(path)
    for i, o in outputs(nb):
        assert size(o) <= LIMIT, (
            f"cell {i} of {path.name} puts {size(o) // 1024} KB in one output, at most "
            f"{LIMIT // 1024} KB: draw fewer or smaller pictures"
        )
        html = "".join(o.get("data", {}).get("text/html", ""))
        assert '<script src="http' not in html and '<link href="http' not in html, (
            f"cell {i} of {path.name} loads something from the network"
        )
        said = shown(o)
        for what, pattern in UNREADABLE.items():
            found = re.search(pattern, said)
            assert not found, (
                f"cell {i} of {path.name} shows {what}: {said[found.start():][:100]!r}"
            )


@pytest.mark.parametrize("path", ALL, ids=ids)
def test_is_clean(path):
    nb = json.loads(path.read_text(encoding="utf-8"))
    for i, c in enumerate(nb["cells"]):
        assert not c.get("outputs") and c.get("execution_count") is None, (
            f"cell {i} of {path.name} has stored outputs: make export"
        )
        assert not c["metadata"], (
            f"cell {i} of {path.name} has metadata {c['metadata']}: make export"
        )
    assert path.stat().st_size < 150 * 1024, (
        f"{path.name} has {path.stat().st_size // 1024} KB of source"
    )


@pytest.mark.parametrize("path", ALL, ids=ids)
def test_begins_as_a_lesson(path):
    """`# Title` and `> one sentence` in the first markdown cell: the site's menus and tables read
    them"""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    lines = source(next(c for c in cells if c["cell_type"] == "markdown")).strip().splitlines()
    assert lines[0].startswith("# ") and any(x.startswith("> ") for x in lines[1:4]), (
        f"{path.name} begins with {lines[:3]}"
    )
