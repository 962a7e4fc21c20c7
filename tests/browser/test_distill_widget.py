"""The distillation explorer in a browser: by keyboard, in both colour schemes, saying what
Python says, safe with any class name"""
import pytest, torch

from labelkit.explore.distill_explorer import DistillExplorer
from test_widgets import NASTY, press, readout, show  # noqa: F401  (show is a fixture)


def explorer(pictures=True, **kwargs):
    g = torch.Generator().manual_seed(0)
    v = 3*torch.randn(60, 4, generator=g)
    more = (
        dict(labels=torch.arange(60) % 4, images=torch.rand(60, 1, 8, 8, generator=g))
        if pictures
        else {}
    )
    return DistillExplorer(
        v,
        v + torch.randn(60, 4, generator=g),
        vocab=["cat", "dog", NASTY, "ant"],
        samples=5,
        key="distill",
        **more,
        **kwargs,
    )


@pytest.mark.parametrize("pictures", [True, False])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_state_by_keyboard_says_what_python_says(show, pictures, scheme):  # noqa: F811
    e = explorer(pictures)
    page = show(e, scheme=scheme)
    for i in range(5):
        page.locator("[data-axis=sample]").select_option(index=i)
        for k,t in enumerate(e.axes["temperature"]):
            press(page, "temperature", "Home" if k == 0 else "ArrowRight")
            assert readout(page) == e.select(sample=i+1, temperature=t).readout()
    assert page.locator("canvas").count() == int(pictures)
    assert (
        not page.evaluate("window.hacked")
        and NASTY
        in page.locator("[data-axis=sample]").inner_text() + page.locator(".lk").text_content()
    )


def test_bars_are_the_probabilities(show):  # noqa: F811
    e = explorer(state=dict(sample=2, temperature=3.))
    page = show(e)
    titles = page.locator("svg").first.locator("rect title").all_text_contents()
    view = e.view()
    assert titles[0::2] == [f"teacher, {n}: {p:.3f}" for n,p in zip(e.vocab, view["p"])]
    assert titles[1::2] == [f"student, {n}: {q:.3f}" for n,q in zip(e.vocab, view["q"])]
    heights = [
        float(r.get_attribute("height")) for r in page.locator("svg").first.locator("rect").all()
    ]
    assert heights[0]/heights[1] == pytest.approx(view["p"][0]/view["q"][0], rel=1e-3)


def test_narrow(show):  # noqa: F811
    page = show(explorer(), width=360)
    assert page.evaluate("document.documentElement.scrollWidth <= 360")
