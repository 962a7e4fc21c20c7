"""Drawings: well-formed, escaped, no box over another, and words for who does not see them"""
import re
from itertools import combinations
from xml.etree import ElementTree

import pytest

from labelkit.errors import LabelKitError
from labelkit.lesson.drawing import KINDS, WIDTH, Drawing, box, text_width, wrapped

SVG = "{http://www.w3.org/2000/svg}"


def sample():
    d = Drawing("Images & labels <go> \"down\" to the loss.")
    d.row(box("images"), None, box("labels", "target", "of forty <images>"))
    d.row(box("weak view", "view"), box("strong view", "view", "shifted & cut"))
    d.row(box("teacher", "frozen"), None, box("student", "model"))
    d.row(box("bank", "store", key="b"), box("loss", "loss", span=2))
    d.arrow("images", "weak view").arrow("images", "strong view")
    d.arrow("weak view", "teacher").arrow("strong view", "student")
    d.arrow("student", "teacher", "moving average", grad=False).arrow("teacher", "student", "x < y")
    d.arrow("student", "loss", "a & b", grad=True).arrow("labels", "loss", "one", grad=False)
    return d.arrow("teacher", "b").arrow("b", "weak view", "back up", grad=False)


def parts(d, tag): return list(ElementTree.fromstring(d.svg()).iter(SVG+tag))


def test_it_is_well_formed_and_says_what_it_shows():
    root = ElementTree.fromstring(sample().svg())
    said = 'Images & labels <go> "down" to the loss.'
    assert root.get("role") == "img" and root.get("aria-label") == said
    assert root.find(f"{SVG}title").text == said
    words = " ".join(o.text for o in root.iter(f"{SVG}text"))
    assert "of forty <images>" in words and "a & b" in words and "x < y" in words
    assert "the gradient comes back" in words and "no gradient" in words
    assert "<images>" not in sample().svg()
    assert sample()._repr_html_() == sample().svg() == sample().svg()


def test_everything_is_inside_and_no_two_boxes_meet():
    d = sample()
    width,height = map(float, parts(d, "svg")[0].get("viewBox").split()[2:])
    assert width == WIDTH
    assert height > 200
    boxes = list(d.boxes.values())
    assert min(min(o.x, o.y) for o in boxes) > 0
    assert max(o.x+o.w for o in boxes) < width
    assert max(o.y+o.h for o in boxes) < height
    for a,b in combinations(boxes, 2):
        apart = a.x+a.w <= b.x or b.x+b.w <= a.x or a.y+a.h <= b.y or b.y+b.h <= a.y
        assert apart, (a.key, b.key)
    for o in boxes:
        assert o.h >= 16*len(o.lines())
        assert all(text_width(t) <= o.w for t,_ in o.lines())
    for t in parts(d, "text"):
        middle = text_width(t.text)/2
        left = float(t.get("x")) - (0 if t.get("class") == "lk-first" else middle)
        assert left >= 0 and left+2*middle <= width
        assert 0 < float(t.get("y")) < height


def test_an_arrow_past_a_row_meets_none_of_its_boxes():
    d = sample()
    d.svg()
    long = [a for a in d.arrows if a.lane is not None]
    assert [(a.start.key, a.end.key) for a in long] == [("labels", "loss"), ("b", "weak view")]
    for a in long:
        rows = range(min(a.start.row, a.end.row)+1, max(a.start.row, a.end.row))
        met = [o for o in d.boxes.values() if o.row in rows]
        assert not [o.key for o in met if o.x <= a.lane <= o.x+o.w]


def test_words_on_arrows_of_one_gap_keep_apart():
    d = Drawing("a").row(box("x", key="1"), box("y", key="2")).row(box("z", key="3"))
    d.arrow("1", "3", "a long note about this one").arrow("2", "3", "a long note about that one")
    d.arrow("1", "3", "and a third note")
    words = [(t.text, *(float(t.get(k)) for k in "xy")) for t in parts(d, "text")]
    for (a,x,y),(b,u,v) in combinations(words, 2):
        assert abs(y-v) >= 14 or abs(x-u) >= (text_width(a)+text_width(b))/2, (a, b)


def test_the_gradient_is_seen():
    d = Drawing("a").row(box("x")).row(box("y", "model")).row(box("z", "loss"))
    d.arrow("x", "y").arrow("y", "z", grad=True).arrow("x", "z", grad=False)
    def tips(cls):
        return [len(g.findall(f"{SVG}path")) for g in parts(d, "g") if g.get("class") == cls]
    assert tips("lk-flow") == [2]        # a line and one point
    assert tips("lk-grad") == [3, 3]     # a point at either end; and the legend's
    assert tips("lk-stop") == [2, 2]
    assert "trained" in [t.text for t in parts(d, "text")]


def test_letters_can_be_read_on_a_telephone():
    size = float(re.search(r"text\{font:(\d+)px", sample().svg()).group(1))
    assert size*350/WIDTH >= 11


def test_no_colour_of_a_page_is_taken_for_granted():
    css = re.search(r"<style>(.*?)</style>", sample().svg(), re.S).group(1)
    assert not re.search(r"#(fff|000)", css)
    assert "currentColor" in css
    assert "--color-background-primary" in css
    assert "--jp-layout-color0" in css


def test_a_file_has_its_own_light_and_dark(tmp_path):
    path = sample().save(tmp_path/"a.svg")
    text = path.read_text(encoding="utf-8")
    ElementTree.fromstring(text)
    assert "color-scheme:light dark" in text


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(kind):
    d = Drawing("a").row(box("x", kind, "note"))
    assert [o.get("class") for o in parts(d, "rect")] == ["lk-box"]


def test_wrapped_words_fit():
    lines = wrapped("the quick brown fox jumps over it", 70)
    assert " ".join(lines) == "the quick brown fox jumps over it"
    assert len(lines) > 2 and max(map(text_width, lines)) <= 70


def wrong(change):
    d = Drawing("a").row(box("x"), box("y"), box("z"))
    change(d)
    return d.svg()

@pytest.mark.parametrize("change,says", [
    (lambda d: d.row(box("x")), "give this one a key="),
    (lambda d: d.row(None), "a row has no box"),
    (lambda d: d.row(box("x", "cloud")), "kind='cloud' is none of"),
    (lambda d: d.arrow("x", "w"), "there is no box 'w': known are x, y, z"),
    (lambda d: d.arrow("x", "z"), "a box stands between 'x' and 'z'"),
    (lambda d: d.arrow("x", "y", "words"), "'words' is wider than its place"),
    (lambda d: d.row(*[box(f"{i} incomprehensible") for i in range(4)]), "say it shorter"),
    (lambda d: Drawing("  "), "alt is empty"),
], ids=["twice", "empty", "kind", "unknown", "between", "no-room", "long", "alt"])
def test_what_cannot_be_drawn(change, says):
    with pytest.raises(LabelKitError, match=re.escape(says)): wrong(change)
