"""The widgets in a browser, on a page without a kernel: alive, by keyboard, in both colour schemes,
and safe with any class name."""
import base64, json
from pathlib import Path

import pytest
import torch

from labelkit.storage.ledger import Ledger
from labelkit.explore.mix_explorer import MixExplorer, mix_pair
from labelkit.explore.threshold_explorer import ThresholdExplorer

ROOT = Path(__file__).resolve().parents[2]
VENDOR = ROOT/"docs"/"_static"/"vendor"
NASTY = "<img src=x onerror='window.hacked=1'>"

# what stands out of its widget, and controls that a screen reader has no name for
TOO_WIDE = """() => [...document.querySelectorAll('.lk *:not(svg *)')].filter(e => {
    const r = e.getBoundingClientRect(), edge = e.closest('.lk').getBoundingClientRect().right;
    return r.width && r.right > edge + 1 }).map(e => e.className)"""
UNNAMED = """() => [...document.querySelectorAll(
    '.lk input, .lk select, .lk button, .lk [role=option]')].filter(e =>
    !(e.labels && e.labels.length || e.textContent.trim() ||
        e.getAttribute('aria-label'))).length"""

PAGE = Path(__file__).with_name("page.html").read_text(encoding="utf-8")


def page_of(*widgets):
    "A page that shows the widgets without a kernel and without a widget manager"
    out = []
    for w in widgets:
        state = {k: getattr(w, k) for k in ("title", "key", "axes", "state", "data", "can_refresh")}
        state["arrays"] = {
            k: dict(v, data=base64.b64encode(v["data"]).decode()) for k, v in w.arrays.items()
        }
        out.append(dict(state=state, esm=str(w._esm), css=str(w._css)))
    return PAGE.replace("WIDGETS", json.dumps(out).replace("<", "\\u003c"))


def mix(**kwargs):
    return MixExplorer(
        torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(0)),
        torch.arange(12) % 3,
        vocab=["cat", "dog", NASTY],
        **({"technique": "CutMix", "key": "mix"} | kwargs),
    )

def threshold(truth=True, **kwargs):
    g = torch.Generator().manual_seed(0)
    t = torch.randint(0, 3, (200,), generator=g)
    led = Ledger(200, truth=t if truth else None, vocab=["cat", "dog", NASTY])
    for epoch in range(6):
        conf = torch.rand(200, generator=g)*(.4+.1*epoch)
        led.record(
            torch.arange(200),
            torch.where(torch.rand(200, generator=g) < conf, t, (t + 1) % 3),
            conf,
            conf >= 0.4,
            epoch,
            class_threshold=torch.tensor([0.3, 0.4, 0.5]),
        )
    return ThresholdExplorer(led, **({"threshold": .4, "key": "threshold"} | kwargs))


@pytest.fixture
def show(browser, tmp_path):
    """Open widgets on a page; afterwards nothing may have gone wrong, and nothing may have been
    asked of the network"""
    wrong = []
    def open_(*widgets, at="", width=900, scheme="light", html=None, name="page.html"):
        (tmp_path/name).write_text(html or page_of(*widgets), encoding="utf-8")
        page = browser.new_context(
            viewport=dict(width=width, height=900), color_scheme=scheme, offline=True
        ).new_page()
        page.on("console", lambda m: m.type == "error" and wrong.append(m.text))
        page.on("pageerror", lambda e: wrong.append(str(e)))
        page.on("request", lambda r: r.url.startswith("http") and wrong.append(r.url))
        page.goto((tmp_path/name).as_uri()+at)
        page.wait_for_function(
            f"document.querySelectorAll('.lk .lk-readout').length === {len(widgets)}"
        )
        page.wait_for_timeout(100)
        return page
    yield open_
    assert not wrong


def readout(page, i=0): return page.locator(".lk-readout").nth(i).text_content()

def press(page, axis, key, times=1):
    page.locator(f"[data-axis={axis}]").first.focus()
    for _ in range(times): page.keyboard.press(key)
    page.wait_for_timeout(60)


def test_mix_moves_by_keyboard_and_says_what_python_says(show):
    e = mix()
    page = show(e)
    assert readout(page) == e.readout()
    pixels = """[...document.querySelectorAll('[data-picture=mixed] canvas')]
        .map(c => c.toDataURL()).join()"""
    before = page.evaluate(pixels)
    press(page, "lam", "ArrowLeft", 8)
    assert readout(page) == e.select(lam=.25).readout() and page.evaluate(pixels) != before
    for technique in ("MixUp", "CutMix", "ResizeMix"):
        page.locator("[data-axis=technique]").select_option(label=technique)
        page.locator("[data-axis=pair]").select_option(index=3)
        e.select(technique=technique, pair=4)
        for i, lam in enumerate(e.axes["lam"]):
            press(page, "lam", "Home" if i == 0 else "ArrowRight")
            assert readout(page) == e.select(lam=lam).readout()
        assert page.locator("[data-axis=draw]").is_disabled() == (technique == "MixUp")


@pytest.mark.parametrize("technique", ["CutMix", "ResizeMix"])
def test_mixed_picture_is_the_librarys(show, technique):
    e = mix(technique=technique)
    page = show(e)
    x, at, _ = e.shown
    for lam in (e.state["lam"], .25, .1):
        e.select(lam=lam)
        press(page, "lam", "Home")
        press(page, "lam", "ArrowRight", e.axes["lam"].index(lam))
        got = page.evaluate("""() => {
            const c = document.querySelector('[data-picture=mixed] canvas');
            return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]; }""")
        i = e._selected()
        a, b = at[i[1]]
        drawn = torch.Generator().manual_seed(i[2])
        want = mix_pair(e.mixes[technique], x[a], x[b], lam, drawn)[0]
        diff = torch.tensor(got).view(8, 8, 4)[..., :3].permute(2, 0, 1)-want*255
        assert diff.abs().max() <= 1


@pytest.mark.parametrize("truth", [True, False])
def test_threshold_says_what_python_says(show, truth):
    e = threshold(truth)
    page = show(e)
    assert readout(page) == e.readout()
    for axis, key in (
        ("threshold", "ArrowLeft"),
        ("epoch", "ArrowLeft"),
        ("threshold", "Home"),
        ("threshold", "End"),
        ("epoch", "Home"),
    ):
        press(page, axis, key)
        e.select(**page.evaluate("window.models[0].get('state')"))
        assert readout(page) == e.readout()
    page.locator("[data-axis=view]").select_option(label="share in bin")
    assert (
        page.locator(".lk-chart").count() == 3
        and "100 %" in page.locator(".lk-chart").first.text_content()
    )
    assert (page.locator(".lk-key", has_text="wrong").count() == 1) == truth


def test_class_names_are_text(show):
    page = show(mix(), threshold())
    assert page.locator("img").count() == 0 and page.evaluate("window.hacked") is None
    assert (
        NASTY in page.locator("[data-axis=pair]").text_content()
        and "<img src" in page.locator(".lk-chart").nth(3).text_content()
    )


def test_state_travels_in_the_address(show):
    page = show(mix(), threshold(), at="#top")
    assert page.evaluate("location.hash") == "#top" # untouched until somebody moves something
    press(page, "lam", "ArrowRight")
    press(page, "epoch", "ArrowLeft", 2)
    at = page.evaluate("location.hash")
    assert at.startswith("#top&mix=") and "lam:0.7" in at and "threshold=" in at and "epoch:3" in at
    again = show(mix(), threshold(), at=at)
    assert [readout(again, i) for i in (0, 1)] == [readout(page, i) for i in (0, 1)]
    assert again.evaluate("models.map(m => m.get('state'))") == page.evaluate(
        "models.map(m => m.get('state'))"
    )


def test_a_link_from_python_and_a_broken_one(show):
    e = mix().select(lam=.15, draw=3, technique="MixUp")
    assert readout(show(mix(), at=e.link())) == e.readout()
    page = show(mix(), at="#mix=lam:ninety,technique:Nothing,__proto__:1,pair:2,%E0%A4%A:1&&x=")
    assert page.evaluate("models[0].get('state')") == mix().select(pair=2).state
    page.evaluate("location.hash = '#mix=lam:0.1'")
    page.wait_for_timeout(100)
    assert page.evaluate("models[0].get('state').lam") == .1


def test_copy_state(show):
    page = show(mix())
    page.evaluate(
        "Object.defineProperty(navigator, 'clipboard', {value: {writeText: async t => { "
        "window.copied = t; }}})"
    )
    page.get_by_role("button", name="Copy state").click()
    page.wait_for_timeout(60)
    assert json.loads(page.evaluate("window.copied")) == mix().state
    page.evaluate(
        "navigator.clipboard.writeText = async () => { throw new Error('no'); }; "
        "document.execCommand = () => false"
    )
    page.get_by_role("button", name="Copy state").click()
    page.wait_for_timeout(60)
    assert json.loads(page.get_by_label("state to copy").input_value()) == mix().state


def test_other_samples_only_where_a_kernel_answers(show):
    page = show(mix(), threshold())
    assert page.evaluate("models[0].sent") == [{"kind": "ping"}]
    button = page.get_by_role("button", name="Other samples")
    assert button.count() == 0
    page.evaluate("models[0].fire('msg:custom', {kind: 'pong'}, [])")
    assert button.count() == 1
    button.focus()
    page.keyboard.press("Enter")
    assert page.evaluate("models[0].sent.length") == 2
    page.evaluate("""() => {
        const m = models[0], pairs = m.s.data.pairs.map(p => ({a: p.b, b: p.a}));
        m.s.data = {...m.s.data, pairs};
        m.fire('change:data'); m.fire('change:arrays'); }""")
    page.wait_for_timeout(100)
    assert page.locator(".lk-readout").count() == 2 and button.evaluate(
        "e => e === document.activeElement"
    )


def test_two_views_agree_and_clean_up(show):
    page = show(mix())
    page.evaluate("models[0].set('state', {...models[0].get('state'), lam: 0.3})")
    assert "λ drawn 0.30" in readout(page) and page.locator("[data-axis=lam]").input_value() == "6"
    page.evaluate("undo[0]()")
    assert page.evaluate("models[0].f.length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 900])
def test_it_fits_and_can_be_read(show, width, scheme):
    page = show(mix(title="Mix"), threshold(title="Threshold"), width=width, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert not page.evaluate(TOO_WIDE)
    ratio = page.evaluate("""() => {
        const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
        const lum = c => {
            const [r, g, b] = c.match(/[\\d.]+/g).map(v => linear(v / 255));
            return .2126 * r + .7152 * g + .0722 * b; };
        const s = getComputedStyle(document.querySelector('.lk'));
        const a = lum(s.color), b = lum(s.backgroundColor);
        return (Math.max(a, b) + .05) / (Math.min(a, b) + .05); }""")
    assert ratio > 7


def test_everything_has_a_name_and_shows_its_focus(show):
    page = show(mix(title="Mix"), threshold(title="Threshold"))
    assert page.evaluate(UNNAMED) == 0
    assert page.evaluate(
        "[...document.querySelectorAll('.lk [role=img], .lk')].every(e => "
        "e.getAttribute('aria-label'))"
    )
    ids = page.evaluate("[...document.querySelectorAll('.lk [id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    press(page, "lam", "ArrowRight")
    assert page.locator("[data-axis=lam]").get_attribute("aria-valuetext") == "0.70"
    assert (
        page.locator("[data-axis=lam]").evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
    )
    assert page.locator(".lk-readout[aria-live=polite]").count() == 2


@pytest.mark.skipif(
    not (VENDOR / "embed-amd.js").exists(),
    reason="the widget manager is not here: make docs fetches it",
)
def test_alive_under_the_widget_manager(show):
    from ipywidgets.embed import embed_data
    widgets = mix(), threshold()
    d = embed_data(widgets, drop_defaults=False)
    safe = lambda o: json.dumps(o, default=str).replace("<", "\\u003c")
    uri = VENDOR.as_uri()
    html = f"""<!doctype html><meta charset="utf-8"><title>t</title>
<script src="{uri}/require.js"></script>
<script>require.config({{paths: {{anywidget: "{uri}/anywidget"}}}})</script>
<script src="{uri}/embed-amd.js"></script><body>
<script type="application/vnd.jupyter.widget-state+json">{safe(d["manager_state"])}</script>
""" + "".join(
        f'<script type="application/vnd.jupyter.widget-view+json">{safe(v)}</script>'
        for v in d["view_specs"]
    )
    page = show(*widgets, html=html)
    assert [readout(page, i) for i in (0, 1)] == [w.readout() for w in widgets]
    press(page, "lam", "ArrowLeft", 3)
    assert readout(page) == widgets[0].select(lam=0.5).readout() and "lam:0.5" in page.evaluate(
        "location.hash"
    )
    assert page.get_by_role("button", name="Other samples").count() == 0
