"Probabilities that somebody brings along"
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.basics import Learner
from fastai.callback.progress import ProgressCallback  # noqa: F401  (`no_bar`)

from labelkit.data.loaders import from_arrays
from labelkit.errors import LabelKitError
from labelkit.models import small_cnn
from labelkit.relabel.confident_relabel import ConfidentRelabel


def test_columns_of_classes_are_known_by_name():
    "A table of probabilities goes by its own names, and the labels by their vocabulary"
    x = torch.rand(12, 1, 8, 8)
    y = pd.Categorical(["b", "a", "c"]*4, categories=["b", "a", "c"])
    dls = from_arrays(x, y, x, y, bs=4)
    probs = pd.DataFrame(np.eye(3)[np.arange(12) % 3]*.7 + .1, columns=["b", "a", "c"])
    for table in (probs, probs[["a", "b", "c"]], probs.to_numpy()):
        learn = Learner(dls, small_cnn(dls, width=4), cbs=ConfidentRelabel(pred_probs=table))
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
        f = learn.confident_relabel.ledger.frame()
        assert f.label_quality.tolist() == pytest.approx([.8]*12)
    wrong = ConfidentRelabel(pred_probs=probs.rename(columns=dict(c="d")))
    learn = Learner(dls, small_cnn(dls, width=4), cbs=wrong)
    said = pytest.raises(LabelKitError, match="pred_probs has no column 'c'")
    with said, learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
