"""Rounds: at which epochs they are, also in a fit that goes on, and never in a search"""
from types import SimpleNamespace

import pytest

from labelkit.errors import LabelKitError
from labelkit.parts.rounds import Rounds, round_epochs


def at(epoch, n_epoch=8, **more): return SimpleNamespace(epoch=epoch, n_epoch=n_epoch, **more)


def test_round_epochs():
    assert round_epochs(10, .5, 2) == [5, 7]
    assert round_epochs(10, 0., 10) == list(range(10))
    assert round_epochs(4, .5, 9) == [2, 3]
    assert round_epochs(9, 1/3, every=3) == [3, 6]
    assert round_epochs(5, 1., 3) == [] == round_epochs(5, 0., 0)
    assert round_epochs(7, 0., 3) == [0, 2, 4]


def test_a_fit_that_begins_later_makes_up_for_what_it_missed():
    "As `fit(8, start_epoch=3)`: one round for all that would have been before"
    later = lambda epoch: at(epoch, skip_to_epoch=SimpleNamespace(_skip_to=3))
    r = Rounds(4)
    assert r.epochs(at(0)) == [0, 2, 4, 6]
    assert [e for e in range(3, 8) if r.due(later(e))] == [3, 4, 6] and r.left(later(4)) == [4, 6]
    assert Rounds(1, warmup=.25).epochs(later(3)) == [3]
    assert Rounds(1, warmup=.5).epochs(later(3)) == [4]
    assert Rounds(0).epochs(later(3)) == []
    assert round_epochs(9, 1/3, every=3, first=5) == [5, 6]


@pytest.mark.parametrize("n_epoch", [1, 2, 3, 5, 8, 13])
@pytest.mark.parametrize("warmup", [0., .3, .9])
@pytest.mark.parametrize("rounds", [1, 2, 4, 20])
def test_evenly_spread(n_epoch, warmup, rounds):
    "The first right after the warm-up, none before it, none twice, gaps that differ by one epoch"
    found = round_epochs(n_epoch, warmup, rounds)
    start = round(warmup*n_epoch)
    assert len(set(found)) == len(found) == min(rounds, n_epoch-start) and found == sorted(found)
    if found: assert found[0] == start
    gaps = [b-a for a,b in zip(found, [*found[1:], n_epoch])]
    assert not gaps or max(gaps)-min(gaps) <= 1


def test_due_once_at_each():
    r = Rounds(3, warmup=.25)
    assert [e for e in range(8) if r.due(at(e))] == [2, 4, 6]
    assert [r.left(at(e)) for e in (0, 2, 3, 7)] == [[2, 4, 6], [2, 4, 6], [4, 6], []]
    assert [e for e in range(8) if Rounds(9, every=3).due(at(e))] == [0, 3, 6]
    assert not any(Rounds(0).due(at(e)) for e in range(8))


def test_a_search_is_no_training():
    assert not Rounds(8).due(at(0, lr_finder=None)) and Rounds(8).left(at(0, lr_finder=1)) == []


def test_what_was_done_is_saved():
    r = Rounds(2)
    assert r.done == 0
    r.finish()
    r.finish()
    again = Rounds(2)
    again.load_state_dict(r.state_dict())
    assert again.done == 2 and "done=2" in repr(again)


@pytest.mark.parametrize("kwargs", [dict(rounds=-1), dict(warmup=1.5), dict(every=0)])
def test_refused(kwargs):
    (name,value), = kwargs.items()
    with pytest.raises(LabelKitError, match=f"{name}={value!r}"): Rounds(**kwargs)


def test_each_fit_counts_its_rounds_from_one():
    r = Rounds(3, warmup=.25)
    for _ in range(2):
        assert [r.number(at(e)) for e in range(8)] == [0, 0, 1, 1, 2, 2, 3, 3]
        r.finish()
    assert [Rounds(4, warmup=.2).number(at(e, 3)) for e in range(3)] == [0, 1, 2]
