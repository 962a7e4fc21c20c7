"""The vote explorer in a browser: by keyboard and by click, in both colour schemes, saying what
Python says, safe with any class name"""
import pytest, torch

from labelkit.data.settings import weak_labels
from labelkit.explore.votes_explorer import VotesExplorer
from labelkit.relabel.label_models import DawidSkene, MajorityVote
from test_widgets import NASTY, press, readout, show  # noqa: F401  (show is a fixture)


def votes(truth=True, **kwargs):
    y = torch.arange(120) % 3
    v = weak_labels(y, [.9, .7, .6, .5], .7, c=3)
    models = dict(DawidSkene=DawidSkene().fit(v, 3), MajorityVote=MajorityVote().fit(v, 3))
    g = torch.Generator().manual_seed(0)
    return VotesExplorer(
        v,
        models,
        y if truth else None,
        ["one", "two", NASTY, "four"],
        ["cat", "dog", NASTY],
        torch.rand(120, 1, 8, 8, generator=g),
        samples=12,
        key="votes",
        **kwargs,
    )


@pytest.mark.parametrize("truth", [True, False])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_state_by_keyboard_says_what_python_says(show, truth, scheme):  # noqa: F811
    e = votes(truth)
    page = show(e, scheme=scheme)
    for model in e.axes["model"]:
        page.locator("[data-axis=model]").select_option(label=model)
        for i,s in enumerate(e.axes["sample"]):
            press(page, "sample", "Home" if i == 0 else "ArrowRight")
            assert readout(page) == e.select(sample=s, model=model).readout()
    assert not page.evaluate("window.hacked") and NASTY in page.locator(
        ".lk"
    ).inner_text() + page.locator(".lk").inner_html().replace("&lt;", "<").replace("&gt;", ">")


def test_a_click_on_a_row_selects_it(show):  # noqa: F811
    e = votes()
    page = show(e)
    cells = page.locator("[data-row='3'] rect")
    cells.nth(0).click()
    page.wait_for_timeout(60)
    assert readout(page) == e.select(sample=e.axes["sample"][3]).readout()
    assert (
        page.locator("[data-row='3'] rect.lk-out").count() == 0
        and page.locator("[data-row='4'] rect.lk-out").count() > 0
    )


def test_colours_follow_the_truth_or_the_model(show):  # noqa: F811
    e = votes()
    page = show(e)
    count = lambda: page.locator("[data-row] rect.lk-fill-a").count()
    rows = e.shown["rows"]
    v = e.votes[rows]
    assert count() == int((v == e.truth[rows][:,None]).sum())
    page.locator("[data-axis=colour]").select_option(label="with the label model")
    page.wait_for_timeout(60)
    assert count() == int((v == e.shown["probs"]["DawidSkene"].argmax(1)[:,None]).sum())


def test_narrow(show):  # noqa: F811
    page = show(votes(), width=360)
    assert page.evaluate("document.documentElement.scrollWidth <= 360")
