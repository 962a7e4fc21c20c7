"A training that is shown without training: what is kept of it"
import json

import numpy as np
import pytest
import torch

from contract import build, fit, learner
from labelkit.errors import LabelKitError
from labelkit.evidence.recorded import Recorded, record, recorded, save_record
from labelkit.pseudo.fixmatch import FixMatch
from labelkit.storage.ledger import Ledger


def test_long_ones_keep_twenty_epochs_and_the_last():
    learn = fit(learner([cb := build("fixmatch", active=True)]))
    ids = torch.arange(10)
    cb.ledger = Ledger(10)
    for epoch in range(50):
        cb.ledger.record(ids, ids*0, torch.full((10,), .5), ids < epoch//5, epoch)
    kept = record(learn, "fixmatch")["ledger"]["history"]
    assert len(kept["epochs"]) == 20 and kept["epochs"][0] == 0 and kept["epochs"][-1] == 49
    assert kept["accepted"] == [e//5 for e in kept["epochs"]]
    assert np.shape(kept["correct"]) == (20, 100) and len(kept["bins"]) == 101


@pytest.mark.parametrize("given,kept", [(.3, .3), (-9.5, None), ("auto", None), (None, None)])
def test_a_threshold_that_is_no_confidence_is_left_out(given, kept):
    learn = fit(learner([cb := FixMatch(0.)]))
    cb.threshold = given
    assert record(learn, "fixmatch")["ledger"]["threshold"] == kept


def test_there_and_back(tmp_path):
    learn = fit(learner([FixMatch(0.)]), 2)
    saved = record(learn, "fixmatch")
    save_record(saved, "fixmatch", tmp_path)
    assert json.loads((tmp_path/"fixmatch.json").read_text()) == saved
    r = recorded(FixMatch, tmp_path)
    assert r.training == saved["training"] and "recorded over 2 epochs" in repr(r)
    assert r.explore().state["epoch"] == 1 and "loss" in r.explore(losses=True).axes
    assert Recorded("a", dict(training=saved["training"])).explore().axes["loss"]
    assert record(learn, "uda") is None
    with pytest.raises(LabelKitError, match="labelkit prove"): recorded(FixMatch, tmp_path/"none")
