"""The review widget in a browser: without a kernel read only; with one, every decision shown only
after the log has it; by keyboard alone; text stays text."""
import base64, json
from pathlib import Path

import pandas as pd, pytest, torch

from labelkit.storage.label_log import LabelLog
from labelkit.explore.review import review
from test_widgets import TOO_WIDE, UNNAMED

NASTY = "<img src=x onerror='window.hacked=1'>"
VOCAB = ["cat", "dog", NASTY, *(f"class {i}" for i in range(12))]

PAGE = Path(__file__).with_name("review_page.html").read_text(encoding="utf-8")


def make(folder, n=60, images=True, **kwargs):
    g = torch.Generator().manual_seed(0)
    given = [i % 3 for i in range(n)]
    quality = torch.rand(n, generator=g)*.4
    f = pd.DataFrame(
        dict(
            id=range(n),
            suggested_label=[VOCAB[(i + 1) % 3] for i in range(n)],
            confidence=((1 - quality) * 0.9).numpy(),
            label_quality=quality.numpy(),
            reason=[f"because of {NASTY} {i}" for i in range(n)],
        )
    )
    log = LabelLog(folder/"labels.db", given, VOCAB, author=NASTY)
    return review(f, log, torch.rand(n, 3, 8, 8, generator=g) if images else None, **kwargs)


def page_of(r):
    state = {
        k: getattr(r, k)
        for k in ("title", "key", "axes", "state", "data", "can_refresh", "decided")
    }
    state["arrays"] = {
        k: dict(v, data=base64.b64encode(v["data"]).decode()) for k, v in r.arrays.items()
    }
    return PAGE.replace(
        "WIDGET",
        json.dumps(dict(state=state, esm=str(r._esm), css=str(r._css))).replace("<", "\\u003c"),
        1,
    )


@pytest.fixture
def show(browser, tmp_path):
    wrong = []
    def open_(r, live=True, width=1000, scheme="light"):
        (tmp_path/"page.html").write_text(page_of(r), encoding="utf-8")
        page = browser.new_context(
            viewport=dict(width=width, height=1000), color_scheme=scheme, offline=True
        ).new_page()
        page.on("console", lambda m: m.type == "error" and wrong.append(m.text))
        page.on("pageerror", lambda e: wrong.append(str(e)))
        if live:
            def answer(m):
                sent = []
                r.send = lambda content, buffers=(): sent.append(
                    (content, [base64.b64encode(b).decode() for b in buffers])
                )
                r._answer(r, m, [])
                return dict(decided=list(r.decided), messages=sent)
            page.expose_function("answer", answer)
        page.goto((tmp_path/"page.html").as_uri())
        page.wait_for_selector(".lk-card")
        if live: page.wait_for_selector("[data-do=accept]:enabled")
        page.wait_for_timeout(60)
        return page
    yield open_
    assert not wrong


def said(page): return page.locator(".lk-readout").text_content()

def press(page, *keys):
    for k in keys:
        page.keyboard.press(k)
        page.wait_for_timeout(60)


def test_without_a_kernel_it_is_read_only(show, tmp_path):
    r = make(tmp_path)
    page = show(r, live=False)
    assert (
        page.locator(".lk-readonly").is_visible() and page.locator("[data-do=accept]").is_disabled()
    )
    page.locator(".lk-card").first.click()
    press(page, "a", "1", "c", "ArrowRight")
    assert "0 of 60 decided, 60 shown" in said(page) and len(r.label_log.history()) == 0
    page.locator("[data-axis=severity]").select_option("1")
    assert "60 shown" not in said(page) and page.locator(".lk-card").count() <= 20


def test_by_keyboard_alone(show, tmp_path):
    r = make(tmp_path)
    page = show(r)
    ids = r.ids
    row = r.rows
    page.locator(".lk-card[tabindex='0']").focus()
    press(page, "a", "r", "2")  # each goes on to the next
    assert r.decided[:3] == [row["suggested"][0], row["given"][1], 1]
    assert "3 of 60 decided" in said(page) and f"sample {ids[2]} is dog now" in said(page)
    press(page, "c")
    page.keyboard.type("class 1")
    press(page, "ArrowDown", "Enter")  # class 1, class 10: the second
    assert r.label_log.vocab[r.decided[3]] == "class 10"
    press(page, "u")
    assert (
        r.decided[3] == -3
        and page.evaluate("document.activeElement.getAttribute('data-row')") == "3"
    )
    press(page, "Shift+U")
    assert r.label_log.vocab[r.decided[3]] == "class 10"
    press(page, "ArrowRight", " ", "ArrowDown", " ", "a")
    h = r.label_log.history()
    assert len(h[h.action == h.action.max()]) == 2 and h.author.eq(NASTY).all()
    press(page, "PageDown")
    assert page.locator(".lk-pager").text_content().find("page 2 of 3") >= 0
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_shown_as_decided_only_after_the_log_has_it(show, tmp_path):
    r = make(tmp_path)
    page = show(r)
    page.evaluate("window.hold = true")
    page.locator(".lk-card").first.click()
    press(page, "a")
    first = page.locator("[data-row='0']")
    assert first.get_attribute("data-state") == "saving" and "0 of 60 decided" in said(page)
    page.evaluate("model.held()")
    page.wait_for_timeout(60)
    assert (
        first.get_attribute("data-state") == "done"
        and "accepted" in first.text_content()
        and "1 of 60 decided" in said(page)
    )
    page.evaluate("window.hold = false")
    r.label_log.close()
    r.label_log.path.unlink()
    press(page, "a")
    assert (
        "Not saved: path=" in said(page)
        and "is no file" in said(page)
        and page.locator("[data-row='1']").get_attribute("data-state") == "open"
    )


def test_mouse_scatter_filters_and_images_on_demand(show, tmp_path):
    r = make(tmp_path)
    # a page's pictures only
    r.arrays = {
        k: dict(v, shape=[20, *v["shape"][1:]], data=v["data"][: 20 * 192])
        for k, v in r.arrays.items()
    }
    page = show(r)
    page.locator("[aria-label='next page']").click()
    page.wait_for_timeout(80)
    assert (
        page.evaluate(
            "document.querySelector('.lk-card canvas').getContext('2d').getImageData(0, 0, 1, "
            "1).data[3]"
        )
        == 255
    )
    page.locator("[data-point='45']").first.hover(force=True)
    page.locator("[data-point='45']").first.click(force=True)
    assert page.locator(".lk-card[data-current]").get_attribute("data-row") == "45"
    page.locator("[data-do=accept]").click()
    page.wait_for_timeout(60)
    assert r.decided[45] == r.rows["suggested"][45]
    page.locator("[data-axis=show]").select_option("2")
    assert page.locator(".lk-card").count() == 1
    page.locator("[data-axis=show]").select_option("1")
    assert "59 shown" in said(page)


@pytest.mark.parametrize("width,scheme", [(360, "dark"), (1000, "light")])
def test_fits_and_text_is_text(show, tmp_path, width, scheme):
    page = show(make(tmp_path, images=width > 500, title=NASTY), width=width, scheme=scheme)
    page.locator(".lk-card").first.click()
    press(page, "c")
    assert (
        page.locator("img").count() == 0
        and page.evaluate("window.hacked") is None
        and NASTY in page.locator(".lk-why").text_content()
    )
    over = page.evaluate(TOO_WIDE)
    assert not over and page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate(UNNAMED) == 0
