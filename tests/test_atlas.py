"The atlas: complete, joined to the registry, searchable, escaped, narrow enough"
from html.parser import HTMLParser

import pytest

from labelkit.atlas import Atlas, atlas, load_techniques, read_atlas
from labelkit.core.technique import FAMILIES, registry
from labelkit.errors import LabelKitError


def line(**kwargs):
    return dict.fromkeys(Atlas.columns, "") | dict(name="x", family="mix", exists=False) | kwargs


def test_every_registered_technique_has_one_line():
    ours = sorted(
        c.slug for c in load_techniques().values() if c.cls.__module__.startswith("labelkit.")
    )
    assert ours
    # a line without tier is not in the CSV file
    assert sorted(o["slug"] for o in atlas() if o["exists"] and o["tier"]) == ours


def test_file_is_sound():
    lines = read_atlas()
    names = [o["name"] for o in lines]
    assert len(lines) >= 188 + 5 and len(set(names)) == len(names)
    assert all(o["tier"] in "1234" and o["ships"] and o["family"].isalpha() for o in lines)
    families = list(dict.fromkeys(o["family"] for o in lines))
    # what can be a technique, in the order of the house, and what comes last
    assert set(families) == {*FAMILIES, "dense", "generate", "beyond"}
    assert families[-3:] == ["dense", "generate", "beyond"]
    code = [o["technique"] for o in lines if o["technique"]]
    assert len(set(code)) == len(code)


def test_cards_are_joined():
    load_techniques()
    got = {o["slug"]: o for o in atlas(exists=True)}
    assert len(got) == len(registry)
    for slug,card in registry.items():
        o = got[slug]
        for k in ("family", "year", "paper", "cost"): assert o[k] == getattr(card, k)
        assert o["technique"] == card.name
    assert not any(o["exists"] or o["slug"] for o in atlas(exists=False))
    assert len(atlas(exists=True)) + len(atlas(exists=False)) == len(atlas())


def test_words_that_all_occur():
    found = {o["slug"] for o in atlas(search="TEACHER copy", exists=True)}
    assert "mean_teacher" in found and "cutmix" not in found
    for o in atlas(search="teacher copy"):
        said = " ".join(map(str, o.values())).lower()
        assert "teacher" in said and "copy" in said
    assert [o["slug"] for o in atlas(search="manifold_mixup")] == ["manifold_mixup"]
    none = atlas(search="no such thing")
    assert not len(none) and none.text() == "No technique fits." and none._repr_html_()
    assert len(atlas(search=" ")) == len(atlas())


@pytest.mark.parametrize("width", [40, 80, 120])
def test_text_fits_and_says_what_is_typed(width):
    text = atlas().text(width)
    assert all(len(l) <= width for l in text.splitlines()[:-1])
    assert " + 1  manifold_mixup: " in text and "   4  LAGNN" in text


def test_html_is_escaped_and_whole():
    evil = line(name="<b>x</b>", exists=True, slug="<i>", ships="<i>y</i>", year="<s>",
                paper="javascript:alert(1)", needs="<u>", cost="<em>", tier="<tt>")
    page = Atlas([evil])._repr_html_()
    for tag in ("<b>x", "<i>", "<u>", "<s>", "<em>", "<tt>", "javascript"): assert tag not in page
    link = Atlas([evil | dict(paper="https://x.org/?'><script>")])._repr_html_()
    assert "<script" not in link and "https://x.org" in link
    opened = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: opened.append(tag)
    parser.feed(atlas()._repr_html_())
    assert opened.count("tr") == len(atlas()) + 1 and opened.count("code") == len(registry)


def test_frame():
    f = atlas("mix").frame
    assert list(f.columns) == list(Atlas.columns) and set(f.family) == {"mix"}


def test_unknown_family():
    with pytest.raises(LabelKitError, match="family='mixx' is unknown: use one of mix"):
        atlas("mixx")
