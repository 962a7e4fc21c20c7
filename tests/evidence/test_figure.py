"The picture and the table of a comparison"
import math, re
from xml.etree import ElementTree

import pytest

from labelkit.evidence.compare import Comparison
from labelkit.evidence.figure import _ticks, figure_svg, number, plot, table_html

EVIL = "<script>alert(1)</script>&\"'$x_1$"


def made(values, metric="accuracy"):
    runs = [
        dict(row=n, seed=s, metric=v, seconds=1., train_loss=.1, valid_loss=.1, curve=[v])
        for n,row in values.items() for s,v in enumerate(row)
    ]
    seeds = range(max(map(len, values.values())))
    return Comparison(runs, list(values), list(seeds), metric)


def panels(c): return ElementTree.fromstring(figure_svg(c)).findall("svg")


def test_a_panel_of_values_and_one_of_differences():
    one,two = panels(made({"base": [.5, .7], "new": [.6, .9]}))
    assert len(one.findall(".//circle")) == 4 and len(two.findall(".//circle")) == 2
    assert one.get("aria-label").startswith("accuracy. base 0.600 (")
    assert two.get("aria-label").startswith("against base, paired. new +0.150 (−0.485 to +0.785)")


def test_places_are_in_order_and_inside():
    one,two = panels(made({"base": [.5, .7], "new": [.6, .9]}))
    width = float(one.get("viewBox").split()[2])
    dots = [float(o.get("cx")) for o in one.findall(".//circle")]
    assert dots[0] < dots[2] < dots[1] < dots[3]  # .5 < .6 < .7 < .9
    for svg in (one, two):
        ends = [float(o.get(k)) for o in svg.findall(".//line") for k in ("x1", "x2")]
        assert min(ends) >= 0 and max(ends) <= width


@pytest.mark.parametrize(
    "values",
    [
        {"only": [.5]},
        {"base": [.9, .9], "new": [.9, .9]},
        {"base": [math.nan], "new": [math.nan]},
        {"base": [], "new": [.5]},
        {"base": [math.inf, .5], "new": [.5, .6]},
        {"base": [-1e-9, 1e9], "new": [0., 1.]},
        {"base": [1., 2.], "a name that is much too long for the width of a panel": [1., 3.]},
    ],
    ids=str,
)
def test_anything_can_be_drawn(values):
    c = made(values)
    shapes = re.sub(r"<title>.*?</title>|aria-label='.*?'", "", figure_svg(c))
    assert "nan" not in shapes and "inf" not in shapes
    assert len(panels(c)) == min(2, len(values))
    assert len(plot(c)) == 2 and c._repr_html_()


def test_names_are_text():
    c = made({"base": [.5, .6], EVIL: [.6, .7]}, metric=EVIL)
    for text in (figure_svg(c), c._repr_html_()):
        assert "<script" not in text and "&lt;script&gt;" in text
        ElementTree.fromstring(f"<div>{text}</div>")
    plot(c)


@pytest.mark.parametrize("lo,hi", [(0, 1), (.61, .83), (-3e-4, 2e-4), (0, 12345), (-1e9, 1e9)])
def test_ticks_are_few_round_and_inside(lo, hi):
    ticks = _ticks(lo, hi)
    assert 2 <= len(ticks) <= 7 and lo - 1e-9 <= ticks[0] and ticks[-1] <= hi*(1 + 1e-9)
    step = round(ticks[1] - ticks[0], 10)
    assert float(f"{step:.0e}") == pytest.approx(step) and f"{step:.0e}"[0] in "125"


def test_numbers():
    got = [number(o, "+.2f") for o in (.5, -.5, math.nan, None)]
    assert got == ["+0.50", "−0.50", "–", "–"]


def test_a_table_says_what_its_cells_are():
    t = ElementTree.fromstring(table_html(["", "a"], [["<b>", "1"]], label="numbers"))
    assert t.get("aria-label") == "numbers"
    assert [o.get("scope") for o in t.iter("th")] == ["col", "row"]
    assert [o.text for o in t.findall("tbody/tr/*")] == ["<b>", "1"]
