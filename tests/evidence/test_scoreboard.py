"The scoreboard: read from the results, by family and by lack"
import dataclasses

import pytest

from labelkit import FixMatch
from labelkit.core.claim import LACKS, Claim, made
from labelkit.errors import LabelKitError
from labelkit.evidence.claims import Proof
from labelkit.evidence.scoreboard import Scoreboard, _bar, scoreboard

ROWS = {"<weak>": made("WeakViews"), "FixMatch": made("FixMatch")}


def a_proof(values):
    claim = Claim("It helps.", ROWS, over="<weak>", data=dict, reported="", epochs=1, seeds=3)
    runs = [
        dict(row=n, seed=i, metric=v, seconds=1., train_loss=1., valid_loss=1., curve=[v])
        for i,pair in enumerate(values) for n,v in zip(ROWS, pair)
    ]
    return Proof(dataclasses.replace(FixMatch.card, claims=(claim,)), claim, dict(runs=runs))


def test_counts_and_words():
    shown = a_proof([(.5, .6), (.6, .71), (.4, .5)])
    against = a_proof([(.6, .5), (.71, .6), (.5, .4)])
    b = Scoreboard([shown, against, a_proof([])])
    assert b.counts == dict(shown=1, against=1, missing=1)
    assert b.summary == "3 claims: 1 shown, 1 against, 1 missing."
    assert list(b.frame.status) == ["shown", "against", "missing"]
    assert b.html().count("<svg") == 2 and "<weak>" not in b.html()
    assert "<a href='pseudo/fixmatch.html'>" in b.html(dict(fixmatch="pseudo/fixmatch.html"))


def test_every_technique_claims_something():
    # those without an own number to beat are named here, with the reason
    none = {"labeledits": "a person's decisions are not a technique's gain"}
    from labelkit.core.technique import registry, to_slug
    scoreboard()
    own = [c for c in registry.values() if c.cls.__module__.startswith("labelkit.")]
    silent = {to_slug(c.slug) for c in own if not c.claims} - set(none)
    assert not silent


def test_lacks_are_answered():
    assert {p.claim.lack for p in scoreboard().proofs} <= set(LACKS)


def test_bad_input():
    with pytest.raises(LabelKitError, match="lack='money'"): scoreboard(lack="money")
    with pytest.raises(LabelKitError, match="family='mox'"): scoreboard(family="mox")


def test_what_is_asked_for_is_what_is_shown():
    for lack in ("noise", "few labels"):
        found = scoreboard(lack=lack).proofs
        assert found and all(p.claim.lack == lack for p in found)
    assert all(not p.claim.long for p in scoreboard().proofs)
    assert all(p.claim.long for p in scoreboard(long=True).proofs)


def test_the_picture_begins_at_zero_where_that_is_outside():
    "The line at zero, the interval from low to high"
    bar = _bar(.1, .15, .2, "shown")
    assert "x1='4.0' x2='4.0'" in bar and "x1='60.0' x2='116.0'" in bar
    bar = _bar(-.2, -.15, -.1, "against")
    assert "x1='116.0' x2='116.0'" in bar and "x1='4.0' x2='60.0'" in bar
