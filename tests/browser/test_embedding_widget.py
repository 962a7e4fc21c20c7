"The embedding explorer in a browser: by keyboard and by click, in both schemes, text as text"
import pytest
import torch

from labelkit.explore.embedding_explorer import EmbeddingExplorer
from test_widgets import NASTY, TOO_WIDE, UNNAMED, press, readout, show  # noqa: F401


def explorer(**kwargs):
    g = torch.Generator().manual_seed(0)
    given = dict(
        features=torch.randn(4, 30, 6, generator=g),
        colours={"class": ["a", "b", NASTY]*10, "half": torch.arange(30) < 9},
        key="embedding",
    )
    return EmbeddingExplorer(**given | kwargs)


def test_it_says_what_python_says(show):  # noqa: F811
    e = explorer(pictures=torch.rand(30, 1, 8, 8))
    page = show(e)
    assert readout(page) == e.readout()
    keys = [("epoch", "Home"), ("sample", "ArrowRight"), ("sample", "End"), ("epoch", "End")]
    for axis,key in keys:
        press(page, axis, key)
        e.select(**page.evaluate("window.models[0].get('state')"))
        assert readout(page) == e.readout()
    page.locator("[data-axis=colour]").select_option(label="half")
    assert readout(page) == e.select(colour="half").readout()
    page.locator("circle[data-sample='7']").click(force=True)
    assert readout(page) == e.select(sample=7).readout()


def test_a_group_is_left_and_text_is_text(show):  # noqa: F811
    page = show(explorer(marks=torch.randn(4, 3, 6)))
    faint = "[...document.querySelectorAll('circle[fill-opacity=\"0.18\"]')].length"
    assert page.evaluate(faint) == 0
    page.locator("[data-axis=group]").select_option(label=f"class: {NASTY}")
    assert page.evaluate(faint) == 20
    assert page.evaluate("window.hacked") is None and page.locator(".lk img").count() == 0


@pytest.mark.parametrize("width", [390, 900])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits(show, width, scheme):  # noqa: F811
    texts = ["words "*20]*29 + [NASTY]
    page = show(explorer(texts=texts, state=dict(sample=29)), width=width, scheme=scheme)
    assert page.evaluate(TOO_WIDE) == [] and page.evaluate(UNNAMED) == 0
    assert page.evaluate("window.hacked") is None
