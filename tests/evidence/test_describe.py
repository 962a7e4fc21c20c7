"What was run, in words that JSON can hold"
import json, math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.basics import Adam, Callback, Learner

from labelkit.data.sets import digits
from labelkit.evidence.describe import (
    describe,
    describe_callbacks,
    describe_data,
    name_of,
    plain,
    plain_message,
)
from labelkit.mix.cutmix import CutMix
from labelkit.models import small_cnn
from labelkit.pseudo.fixmatch import FixMatch


@pytest.mark.parametrize(
    "value,said",
    [
        (3, 3),
        (np.int64(3), 3),
        (np.float32(.5), .5),
        (np.bool_(True), True),
        (True, True),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        ("ü", "ü"),
        (None, None),
        ((1, [2., None]), [1, [2., None]]),
        (np.arange(3), [0, 1, 2]),
        (torch.tensor(2.), 2.),
        (slice(1e-4, np.float64(1e-3)), "slice(0.0001, 0.001)"),
        (slice(None), "slice(None, None)"),
        (Path("a/b"), "a/b"),
        (Adam, "Adam"),
        (partial(small_cnn, None, width=4), "small_cnn(None, width=4)"),
        (partial(Adam, sqr_mom=[.9, .99]), "Adam(sqr_mom=[0.9, 0.99])"),
        ({1: {2}, "a": b"x"}, {"1": "set", "a": "bytes"}),
        (torch.device("cpu"), "device"),
    ],
)
def test_every_setting_can_be_saved(value, said):
    assert plain(value) == said
    assert json.loads(json.dumps(plain(value), allow_nan=False)) == said


def test_names():
    assert name_of(lambda x: x) == "<lambda>" and name_of(small_cnn) == "small_cnn"
    assert name_of(.1) == "0.1" and name_of("word") == "word" and name_of(CutMix()) == "CutMix"


def test_techniques_say_their_own_settings():
    assert describe(CutMix(alpha=.5)) == "CutMix(alpha=0.5)" and describe(CutMix()) == "CutMix()"
    assert describe(FixMatch(threshold=.8)) == "FixMatch(threshold=0.8)"


def test_other_callbacks_are_read_from_their_signature():
    class Louder(Callback):
        def __init__(self, gain=2., how="loud", names=()):
            self.gain = gain
            self.how = how
            self.names = names
    assert describe(Louder(3.)) == "Louder(gain=3.0, how='loud')"


def test_only_chosen_callbacks_are_told():
    learn = Learner(digits(labeled=40), small_cnn(c=10, c_in=1, width=4), cbs=CutMix())
    assert describe_callbacks(learn.cbs)[-1:] == ["CutMix()"]
    assert not {"Recorder", "SupervisionCallback"} & {
        o.split("(")[0] for o in describe_callbacks(learn.cbs)
    }


def test_data_say_what_was_done_to_them():
    plain_data = describe_data(digits(labeled=40))
    assert plain_data == "1258 samples, 40 labeled, 10 classes; 539 validation samples"
    noisy = describe_data(digits(noise_rate=.3, noise="pair"))
    assert "noise_rate=0.3, noise=pair; 539" in noisy
    assert "bag_size=4" in describe_data(digits(bag_size=4))


def test_a_message_is_one_line_without_fastais_note():
    e = ValueError("Exception occured in `X` when calling event `after_loss`:\n\ttoo\n  loud")
    assert plain_message(e) == "too loud" and plain_message(KeyError()) == "KeyError"
