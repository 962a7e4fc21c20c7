"Random states: all three streams go on where they stood"
import random

import numpy as np
import torch

from labelkit.core.checkpoint import get_random_states, set_random_states


def drawn(): return random.random(), random.gauss(0, 1), np.random.rand(), torch.rand(2).tolist()


def test_every_stream_is_put_back():
    random.gauss(0, 1)  # the second of a pair is kept for the next call
    state = get_random_states()
    first = drawn()
    for seed in (random.seed, np.random.seed, torch.manual_seed): seed(99)
    assert drawn() != first
    set_random_states(state)
    assert drawn() == first


def test_each_stream_alone():
    for other in (random.seed, np.random.seed, torch.manual_seed):
        state = get_random_states()
        first = drawn()
        set_random_states(state)
        other(99)
        assert drawn() != first
        set_random_states(state)
        assert drawn() == first
