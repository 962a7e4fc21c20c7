"RandAugment as a technique: what comes first, how strong, and whose dice"
import pytest
import torch

from contract import fit, learner
from labelkit.augment.randaugment import RandAugment
from labelkit.core.supervision import LabelCallback
from mix.mixtools import Keep


class Given(LabelCallback):
    "Pictures of one grey, or as they are"
    stage = "relabel"
    def __init__(self, grey=None, **kwargs):
        super().__init__(**kwargs)
        self.keep(locals())
    def before_forward(self, s):
        if self.grey is not None: s.x = torch.full_like(s.x, self.grey)
        s.inputs_given = s.x


def seen(*args, grey=None, **kwargs):
    fit(learner([Given(grey), RandAugment(*args, **kwargs), keep := Keep()]))
    return keep.seen


@pytest.mark.parametrize("weak", [True, False])
def test_the_weak_view_comes_first_if_it_is_wanted(weak):
    moved = [not torch.allclose(s.x, s.inputs_given, atol=1e-3) for s in seen(0, weak=weak)]
    assert any(moved) is weak


def test_all_operations_have_the_strength_that_was_asked_for():
    x = torch.cat([s.x[:, 0, 0, 0] for s in seen(1, 15., False, ops=dict(brightness=1.8), grey=.5)])
    values = {round(float(o), 4) for o in x}
    assert values == {.3, .7}  # ½·(1 ± .4), darker and lighter


def test_its_dice_are_its_own():
    state = []
    for cbs in ([], [RandAugment()]):
        fit(learner(cbs))
        state.append(torch.get_rng_state())
    assert torch.equal(*state)
