"The atlas: complete, joined to the registry, escaped"
import pytest

from labelkit.errors import LabelKitError
from labelkit.core.technique import registry
from labelkit.atlas import Atlas, atlas, load_techniques, read_atlas

def test_every_registered_technique_has_a_line():
    cards = load_techniques()
    assert cards
    lines = atlas()
    # a line without tier is not in the CSV file
    named = [o["technique"] for o in lines if o["exists"] and o["tier"]]
    ours = sorted(c.name for c in cards.values() if c.cls.__module__.startswith("labelkit."))
    assert sorted(n for n in named) == ours

def test_file_is_sound():
    lines = read_atlas()
    names = [o["name"] for o in lines]
    assert len(lines) >= 188 + 5 and len(set(names)) == len(names)
    assert all(o["tier"] in "1234" and o["ships"] and o["family"].isalpha() for o in lines)
    families = list(dict.fromkeys(o["family"] for o in lines))
    assert families == [
        "mix",
        "augment",
        "pseudo",
        "represent",
        "relabel",
        "distill",
        "adapt",
        "dense",
        "generate",
        "beyond",
    ]


def test_cards_are_joined():
    load_techniques()
    got = {o["technique"]: o for o in atlas(exists=True)}
    for card in registry.values():
        o = got[card.name]
        assert (o["family"], o["year"], o["paper"], o["cost"]) == (
            card.family,
            card.year,
            card.paper,
            card.cost,
        )
    assert not any(o["exists"] for o in atlas(exists=False))

def test_text_fits_and_html_is_escaped():
    assert all(len(l) <= 80 for l in atlas().text(80).splitlines())
    evil = dict(
        name="<b>x</b>",
        family="mix",
        tier="1",
        exists=True,
        technique="",
        ships="<i>y</i>",
        year=2020,
        paper="javascript:alert(1)",
        needs="<u>",
        cost="",
    )
    page = Atlas([evil])._repr_html_()
    assert (
        "<b>" not in page and "<i>" not in page and "<u>" not in page and "javascript" not in page
    )
    assert "&lt;script" not in page and len(Atlas([evil]).frame) == 1

def test_unknown_family():
    with pytest.raises(LabelKitError, match="family='mixx' is unknown"): atlas("mixx")
