"A report: complete, self-contained, text that stays text"
import math, re
from html.parser import HTMLParser

import pytest

from labelkit.errors import LabelKitError
from labelkit.evidence.compare import Comparison
from labelkit.evidence.report import report

EVIL = "<script>alert(1)</script>&\"'$x_1$ {0}"


def made(n=3, names=("base", "new"), **kw):
    runs = [
        dict(row=r, seed=s, metric=.5 + .1*s - .02*i, seconds=1., train_loss=.1,
             valid_loss=math.nan, curve=[.4, .5])
        for s in range(n) for i,r in enumerate(names)
    ]
    return Comparison(runs, list(names), list(range(n)), "accuracy", **kw)


def test_everything_is_in_it(tmp_path):
    config = dict(epochs=2, lr=None, rows={"new": ["CutMix()"]}, versions=dict(torch="2.0"))
    parts = {"One": made(config=config), "Two": made(1, names=("only",))}
    notes = {"": "All of it.\nTwice.", "One": "The first."}
    page = report(parts, tmp_path/"r.html", title="A title", notes=notes).read_text()
    for text in ("<h1>A title</h1>", "<p>All of it.</p><p>Twice.</p>", "<h2>One</h2><p>The first.",
                 "<h2>Two</h2>", "<td>CutMix()</td>", "torch 2.0", "3 seeds, paired"):
        assert text in page
    assert ">−0.020<" in page and ">0.5000<" in page and ">–<" in page
    assert "<th scope='row'>lr</th>" not in page  # what was not set
    assert page.endswith("</html>\n") and "color-scheme: light dark" in page


def test_nothing_is_asked_of_the_network(tmp_path):
    c = made(names=("base", EVIL), config=dict(data=EVIL, rows={EVIL: [EVIL]}, versions={EVIL: 1}))
    c.metric = EVIL
    parts = {EVIL: c}
    page = report(parts, tmp_path/"r.html", title=EVIL, notes={"": EVIL, EVIL: EVIL}).read_text()
    assert "<script" not in page and "&lt;script&gt;" in page and "default-src 'none'" in page
    assert not re.search(r"(src|href|url)\s*[=(]|@import", page)
    seen = set()
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: seen.add(tag)
    parser.feed(page)
    assert seen <= set("html head meta title style body main h1 h2 section p small div svg text "
                       "line rect circle g table thead tbody tr th td details summary footer "
                       "title".split())


def test_its_own_title(tmp_path):
    assert "<h1>accuracy: base, new</h1>" in report(made(), tmp_path/"r.html").read_text()


def test_half_a_character_is_no_error(tmp_path):
    c = made(config=dict(root="a\udcff"))
    assert "ü".encode() in report(c, tmp_path/"r.html", title="ü").read_bytes()


@pytest.mark.parametrize("bad", ["text", {}, {"a": 3}, None, [made()]])
def test_it_wants_comparisons(bad, tmp_path):
    with pytest.raises(LabelKitError, match="pass what compare"): report(bad, tmp_path/"r.html")
    assert not list(tmp_path.iterdir())


def test_an_unwritable_place_is_left_clean(tmp_path):
    (tmp_path/"file").write_text("in the way")
    (tmp_path/"folder").mkdir()
    for p in (tmp_path/"file"/"x.html", tmp_path/"folder"):
        with pytest.raises(LabelKitError, match=re.escape(str(p))): report(made(), p)
    assert sorted(o.name for o in tmp_path.rglob("*")) == ["file", "folder"]
