"""The site's own code on a small notebook, and, once `make docs` has run, the site itself: it asks
the network for nothing."""
import json
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import api, readme, site_pages, vendor

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT/"docs"/"_site"


class Links(HTMLParser):
    "What a page loads by itself, where it leads to, and its ids"
    def __init__(self, text):
        super().__init__()
        self.loads = []
        self.leads = []
        self.ids = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if "id" in a: self.ids.add(a["id"])
        if tag in ("script", "img", "iframe", "source", "video") and a.get("src"):
            self.loads.append(a["src"])
        if (
            tag == "link"
            and a.get("href")
            and a.get("rel") in ("stylesheet", "icon", "preload", "modulepreload")
        ):
            self.loads.append(a["href"])
        if tag == "a" and a.get("href"): self.leads.append(a["href"])


def code(text, outputs=()):
    return dict(
        cell_type="code",
        id="c",
        metadata={},
        source=text,
        outputs=list(outputs),
        execution_count=None,
    )


def text(text): return dict(cell_type="markdown", id="t", metadata={}, source=text)


def test_hidden_cells_and_directives_are_left_out():
    nb = dict(
        cells=[
            text("# A\n\n> b"),
            code("#| default_exp a"),
            code("#| hide\nx=1"),
            code("#| export\ndef f(): ..."),
            code("f()"),
        ],
        metadata={},
    )
    page = site_pages.prepare(nb)["cells"]
    assert [c["source"] for c in page] == ["# A\n\n> b", "def f(): ...", "f()"]
    assert page[1]["metadata"]["tags"] == ["exported"] and "tags" not in nb["cells"][3]["metadata"]
    assert site_pages.title(nb) == ("A", "b")


def test_readme_comes_from_the_index():
    nb = dict(
        cells=[
            text("# A\n\n[x](mix/mixup.ipynb) [y](https://a.b/c.ipynb)"),
            code("#| hide\n1"),
            code("a=1"),
            code("b=2"),
        ],
        metadata={},
    )
    assert (
        readme.readme(nb)
        == "# A\n\n[x](nbs/mix/mixup.ipynb) "
           "[y](https://a.b/c.ipynb)\n\n```python\na=1\n\nb=2\n```\n"
    )
    now = readme.readme(json.loads((ROOT/"nbs"/"index.ipynb").read_text(encoding="utf-8")))
    assert (ROOT/"README.md").read_text(encoding="utf-8") == now, "make export"
    assert "make demo" in now and "make test" in now


def test_reference_shows_parameters_types_and_comments(monkeypatch):
    monkeypatch.setattr(api, "OURS", __name__)
    class Cut:
        "Cut a box | with `size`"
        def __init__(self,
            size:int=3,          # side in pixels
            *, p:float|None=None # share of images
        ): ...
        def area(self)->int: "Pixels"
    got = api.entry("Cut", Cut)
    assert "py:class} Cut(size=3, *, p=None)" in got
    assert "| `size` | `int` | `3` | side in pixels |" in got and "share of images" in got
    assert "py:method} area() -> int" in got


def test_families_have_a_page_and_every_name_is_documented(root):
    assert all((root/"docs"/f/"index.md").exists() for f in site_pages.FAMILIES)
    for mod in api.modules():
        for name in mod.__all__:
            o = getattr(mod, name)
            if callable(o) and getattr(o, "__module__", None) == mod.__name__:
                assert api.doc(o), f"{mod.__name__}.{name} has no docstring"


@pytest.fixture(scope="module")
def small_site(tmp_path_factory):
    "A site of one page with a formula, a table and a live widget"
    if why := vendor.vendor(): pytest.skip(f"the site's JavaScript is missing: {why}")
    anywidget, traitlets, widgets = (
        pytest.importorskip(m) for m in ("anywidget", "traitlets", "ipywidgets")
    )

    class Press(anywidget.AnyWidget):
        _esm = """export default {render({model, el}) {
            const b = document.createElement("button");
            const show = () => { b.textContent = model.get("words")[model.get("at")]; };
            b.className = "press";
            b.onclick = () => { model.set("at", 1); };
            model.on("change:at", show);
            show();
            el.append(b); }}"""
        words = traitlets.List(["<b>still</b>", "alive"]).tag(sync=True)
        at = traitlets.Int(0).tag(sync=True)

    w = Press()
    out = dict(
        output_type="display_data",
        metadata={},
        data=w._repr_mimebundle_()[0]
        if isinstance(w._repr_mimebundle_(), tuple)
        else w._repr_mimebundle_(),
    )
    state = dict(widgets.Widget.get_manager_state(), version_major=2, version_minor=0)
    nb = dict(
        nbformat=4,
        nbformat_minor=5,
        cells=[text("# Page\n\n> A sentence\n\n$\\lambda^2$"), code("w", [out])],
        metadata={
            "kernelspec": dict(name="python3", display_name="python3", language="python"),
            "widgets": {"application/vnd.jupyter.widget-state+json": state},
        },
    )
    tmp = tmp_path_factory.mktemp("site")
    (tmp/"src").mkdir()
    (tmp/"src"/"index.ipynb").write_text(json.dumps(site_pages.prepare(nb)))
    site_pages.sphinx(tmp/"src", tmp/"html")
    return tmp/"html"


def opened(browser, path, wait=1500, **context):
    "The page, and what went wrong on it"
    page = browser.new_context(offline=True, **context).new_page()
    wrong = []
    page.on("console", lambda m: m.type == "error" and wrong.append(m.text))
    page.on("pageerror", lambda e: wrong.append(str(e)))
    page.on("request", lambda r: r.url.startswith("http") and wrong.append(f"outside: {r.url}"))
    page.on("requestfailed", lambda r: wrong.append(f"failed: {r.url}"))
    page.goto(path.as_uri())
    page.wait_for_timeout(wait)
    return page, wrong


def test_a_widget_lives_from_disk_without_a_network(small_site, browser):
    page, wrong = opened(browser, small_site/"index.html")
    button = page.locator("button.press")
    button.wait_for(timeout=10000)
    assert button.inner_text() == "<b>still</b>", "text from data is text"
    button.focus()
    page.keyboard.press("Enter")
    assert button.inner_text() == "alive"
    assert page.locator("mjx-container svg").count() == 1
    assert not wrong


built = pytest.mark.skipif(
    not (SITE / "index.html").exists(), reason="docs/_site is not built: make docs"
)


@built
def test_pages_load_only_what_lies_beside_them_and_lead_to_pages_that_exist():
    pages = {p: Links(p.read_text(encoding="utf-8")) for p in SITE.rglob("*.html")}
    assert len(pages) > 10
    wrong = []
    for p, links in pages.items():
        for u in links.loads + links.leads:
            parts = urlsplit(u)
            if (
                parts.scheme in ("http", "https", "mailto")
                and u in links.leads
                and u not in links.loads
            ):
                continue
            if parts.scheme == "data": continue
            to = (p.parent/unquote(parts.path)).resolve() if parts.path else p
            if parts.scheme or parts.netloc or not to.exists():
                wrong.append(f"{p.relative_to(SITE)} → {u}")
    assert not wrong, wrong[:20]


@built
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_open_from_disk(browser, scheme):
    live = [
        p
        for p in sorted(SITE.rglob("*.html"))
        if "widget-view+json" in p.read_text(encoding="utf-8")
    ]
    for p in [
        SITE / "index.html",
        SITE / "how_it_works.html",
        SITE / "techniques.html",
        SITE / "api" / "index.html",
        *live[:6],
    ]:
        page, wrong = opened(
            browser,
            p,
            2500 if p in live else 500,
            color_scheme=scheme,
            viewport=dict(width=390, height=800),
        )
        assert not wrong, f"{p.relative_to(SITE)}: {wrong[:5]}"
        assert page.evaluate("document.documentElement.scrollWidth") <= 392, (
            f"{p.relative_to(SITE)} is wider than a phone"
        )
        page.context.close()


@built
def test_search_finds_a_technique(browser):
    page, wrong = opened(browser, SITE/"index.html", 1500)
    page.goto((SITE/"search.html").as_uri() + "?q=supervision")
    page.wait_for_selector("#search-results li", timeout=15000)
    assert not wrong


def test_the_readmes_picture_is_what_its_script_draws():
    from picture import FILE, picture
    assert FILE.read_text(encoding="utf-8") == picture()
