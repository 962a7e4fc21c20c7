"""The losses of a training in a browser: by keyboard, in both colour schemes, saying what Python
says, safe with any name"""
import pytest

from labelkit.explore.training_explorer import TrainingExplorer
from test_widgets import NASTY, press, readout, show  # noqa: F401  (show is a fixture)


def training(**kwargs):
    parts = {
        "labeled": [2.3, 1.25, 0.7, 0.4005],
        NASTY: [None, None, 3e-7, -0.2],
        "lone": [None, 1.0, None, None],
    }
    return TrainingExplorer(
        parts,
        dict(valid_loss=[2.0, 1.5, 1.0, 0.9], accuracy=[0.1, 0.5, None, 0.8]),
        [0.0, 0.25, 0.5, 1.0],
        [None, 1.0, 0.96, 0.945],
        key="training",
        **kwargs,
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_state_says_what_python_says(show, scheme):  # noqa: F811
    e = training()
    page = show(e, scheme=scheme)
    for scale in e.axes["scale"]:
        page.locator("[data-axis=scale]").select_option(label=scale)
        for i,loss in enumerate(e.axes["loss"]):
            page.locator("[data-axis=loss]").select_option(index=i)
            page.locator("[data-axis=metric]").select_option(index=i % 2)
            for epoch in e.axes["epoch"]:
                press(page, "epoch", "ArrowRight" if epoch else "Home")
                assert (
                    readout(page)
                    == e.select(
                        scale=scale, loss=loss, metric=e.axes["metric"][i % 2], epoch=epoch
                    ).readout()
                )
    assert (
        not page.evaluate("window.hacked")
        and page.locator("img").count() == 0
        and NASTY in page.locator("[data-axis=loss]").text_content()
    )


def test_lines_are_those_of_the_selected_losses(show):  # noqa: F811
    page = show(training())
    first = page.locator(".lk-chart").first
    assert (
        first.locator("[data-line]").count() == 3
        and first.locator("[data-line] path").count() == 3
        and page.locator(".lk-chart").count() == 3
    )
    assert first.locator("[data-line=lone] circle").count() == 1  # a value without neighbours
    styles = first.locator("[data-line] path").evaluate_all(
        "ps => ps.map(p => p.getAttribute('stroke-dasharray'))"
    )
    assert len(set(styles)) == 3
    page.locator("[data-axis=loss]").select_option(label="labeled")
    assert first.locator("[data-line]").count() == 1 and page.locator(
        ".lk-key:visible"
    ).all_text_contents() == ["labeled", "accepted", "accuracy"]


def test_narrow_and_bare(show):  # noqa: F811
    page = show(training(), TrainingExplorer({"labeled": [1.]}, key="bare"), width=360)
    assert page.evaluate("document.documentElement.scrollWidth <= 360")
    assert (
        page.locator(".lk").nth(1).locator(".lk-chart").count() == 1
        and readout(page, 1) == "Epoch 0: labeled 1.000."
    )
