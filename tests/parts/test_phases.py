"Phases: where they begin, one without epochs, and what a fresh network forgets"
from types import SimpleNamespace

import pytest
import torch

from contract import learner
from labelkit.errors import LabelKitError
from labelkit.parts.phases import Phases, phase_starts, restart, weights_of


def at(epoch, n_epoch=8): return SimpleNamespace(epoch=epoch, n_epoch=n_epoch)


def test_starts():
    assert phase_starts(10, (1, 1)) == [0, 5]
    assert phase_starts(10, (.3, .5, .2)) == [0, 3, 8]
    assert phase_starts(3, (0, 1, 0)) == [0, 0, 3]


def test_one_without_epochs_is_skipped():
    phases = Phases(1, 0, 1)
    assert [phases.now(at(i)) for i in range(8)] == [0]*4 + [2]*4
    assert [i for i in range(8) if phases.begins(at(i))] == [0, 4]
    assert Phases(0, 1).now(at(0)) == 1 and Phases(0, 1).begins(at(0))
    # too few epochs for all
    assert [Phases(1, 1, 1).now(at(i, 2)) for i in range(2)] == [0, 2]


def test_a_fit_that_begins_in_the_middle_of_a_phase():
    "As `fit(8, start_epoch=3)`: there the phase begins"
    phases = Phases(1, 2, 1)
    later = lambda epoch: SimpleNamespace(
        epoch=epoch, n_epoch=8, skip_to_epoch=SimpleNamespace(_skip_to=3)
    )
    assert [phases.now(later(i)) for i in range(3, 8)] == [1]*3 + [2]*2
    assert [i for i in range(3, 8) if phases.begins(later(i))] == [3, 6]


@pytest.mark.parametrize("shares", [(0, 0), (1, -1)])
def test_what_is_no_length(shares):
    with pytest.raises(LabelKitError, match="are no lengths"): Phases(*shares)


def test_restart_forgets():
    learn = learner()
    before = weights_of(learn)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert any("grad_avg" in o for o in learn.opt.state.values())
    restart(learn, before)
    now = learn.model.state_dict()
    assert all(torch.equal(now[k], before[k]) for k in before)
    assert not any("grad_avg" in o for o in learn.opt.state.values())
