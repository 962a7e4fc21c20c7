"SimCLR: published values, and its loss in a batch"
import json

import pytest
import torch
from torch import tensor

from contract import learner
from labelkit.lesson.batch import look
from labelkit.parts.contrast import nt_xent
from labelkit.represent.simclr import SimCLR
from places import REFERENCES


def published(name):
    return {o["name"]: o for o in json.loads((REFERENCES/"contrast.json").read_text())}[name]


def test_published():
    "The official code returns the sum over the two directions, twice the mean over all views"
    o = published("simclr_nt_xent_T0.5")
    z = tensor(o["inputs"]["hidden"])
    loss = float(nt_xent(z[:4], z[4:], o["inputs"]["temperature"]))
    assert loss == pytest.approx(o["expected"]["per_direction_mean"], abs=1e-5)
    assert 2*loss == pytest.approx(o["expected"]["loss"], abs=1e-5)


def test_of_a_batch():
    b = look(learner([SimCLR(temperature=.3)]))
    projector = b.state["simclr"].projector
    a,c = (projector(b.record.features(f"simclr.{k}")) for k in ("one", "two"))
    torch.testing.assert_close(b.losses["simclr"][0], nt_xent(a, c, .3))
    assert a.shape == (48, 64) and not torch.equal(a, c)


def test_one_image():
    "A view whose only other one is its twin is right"
    assert float(nt_xent(torch.randn(1, 4), torch.randn(1, 4), .2)) == 0
