"""Wrong input, each kind with a message that names the argument, what was found and what to do."""
import json

import pytest
import torch
from fastai.basics import DataLoader, DataLoaders, Learner
from torch import nn

from contract import data, fit, learner
from labelkit.core.checkpoint import Checkpoint
from labelkit.data.loaders import from_arrays
from labelkit.data.sets import digits
from labelkit.errors import LabelKitError
from labelkit.storage.ledger import Ledger, read_ledger
from labelkit.models import small_cnn
from labelkit.data.views import Strong, Weak
from labelkit.distill.knowledge_distillation import KnowledgeDistillation
from labelkit.evidence.compare import Comparison, compare
from labelkit.evidence.report import report
from labelkit.mix.mixup import MixUp
from labelkit.pseudo.base import WeakViews
from labelkit.pseudo.fixmatch import FixMatch

x = torch.rand(20,1,8,8)
y = torch.arange(20) % 4


def own(y, x=x, c=4):
    "Loaders that are not labelkit's"
    items = list(zip(x, y))
    dls = DataLoaders(DataLoader(items, bs=5), DataLoader(items, bs=5))
    dls.c = c
    return dls


def fails(match, dls, cbs, loss_func=None, model=None):
    learn = Learner(
        dls, model or small_cnn(c=4, c_in=1), loss_func=loss_func or nn.CrossEntropyLoss(), cbs=cbs
    )
    with pytest.raises(LabelKitError, match=match): fit(learn)


def test_no_unlabeled_rows():
    fails(
        "FixMatch needs unlabeled samples and dls has none: pass labeled=",
        from_arrays(x, y, x, y),
        FixMatch(),
    )


def test_no_labeled_rows():
    with pytest.raises(LabelKitError, match="y has no labeled sample: give some"):
        from_arrays(x, torch.full((20,), -1), x, y)
    with pytest.raises(LabelKitError, match="labeled=0 is not between 1 and"): digits(labeled=0)


@pytest.mark.parametrize("label", [4, -2])
def test_label_outside_the_classes(label):
    bad = y.clone()
    bad[7] = label
    with pytest.raises(LabelKitError, match=f"label {label} of sample 7 is outside the 4 classes"):
        from_arrays(x, bad, x, y, vocab="abcd")
    fails(r"outside the 4 classes 0\.\.3", own(torch.full((20,), label)), MixUp())


def test_unlabeled_rows_in_loaders_of_ones_own():
    fails("from_arrays.*label_dls", own(torch.full((20,), -1)), MixUp())


@pytest.mark.parametrize("row", [[.5,.6,.2,-.3], [.5,.6,.2,.3]])
def test_soft_targets_that_are_no_distribution(row):
    soft = torch.tensor([row]*20)
    with pytest.raises(LabelKitError, match="y: row 0 is .* not a distribution .*normalise it"):
        from_arrays(x, soft, x, soft, kind="soft")
    fails("not a distribution", own(soft), MixUp())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite(value):
    bad = x.clone()
    bad[13,0,2,2] = value
    fails(
        r"inputs of samples \[13\] are not finite.*clean or remove",
        from_arrays(bad, y, x, y, bs=20),
        WeakViews(lambda x: x),
    )


def test_unlabeled_inputs_that_are_not_finite():
    dls = data()
    bad = int(dls.unlabeled.dataset.rows[0])
    dls.unlabeled.dataset.arrays.x[bad] = float("nan")
    with pytest.raises(LabelKitError, match=rf"inputs of samples \[{bad}\] are not finite"):
        fit(learner([FixMatch()], dls=dls), 3)


def test_logits_that_are_not_finite():
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(64,4))
        def forward(self, x): return self.net(x) / (x.flatten(1).sum(1, keepdim=True) > 0)
    dark = x.clone()
    dark[5] = 0
    fails(
        r"logits of samples \[5\] are not finite though their inputs are: lower the learning rate",
        from_arrays(dark, y, x, y, bs=20),
        WeakViews(lambda x: x),
        model=Broken(),
    )


def test_a_model_with_another_number_of_outputs():
    fails(
        "the model has 7 outputs for 4 classes",
        from_arrays(x, y, x, y),
        MixUp(),
        model=small_cnn(c=7, c_in=1),
    )


def test_a_teacher_with_another_number_of_classes():
    fails("7.*4|4.*7", from_arrays(x, y, x, y), KnowledgeDistillation(small_cnn(c=7, c_in=1)))


@pytest.mark.parametrize("view", [Weak(pad=3), Strong()])
def test_images_too_small_for_a_view(view):
    with pytest.raises(LabelKitError): view(torch.rand(2,1,1,1), torch.Generator())


def test_a_view_that_is_no_function():
    with pytest.raises(LabelKitError): FixMatch(weak=3)


def result():
    return compare(
        {"plain": [], "MixUp": MixUp()},
        digits(labeled=20),
        seeds=2,
        epochs=1,
        model=lambda dls: small_cnn(dls, width=4),
        progress=False,
    )


def book():
    b = Ledger(4, given=torch.tensor([0,1,-1,-1]))
    b.record(
        torch.tensor([2, 3]),
        torch.tensor([0, 1]),
        torch.tensor([0.9, 0.8]),
        torch.tensor([True, False]),
        epoch=0,
    )
    return b


def test_truncated_files(tmp_path):
    f = tmp_path/"ledger.parquet"
    book().to_parquet(f)
    f.write_bytes(f.read_bytes()[:-40])
    with pytest.raises(LabelKitError, match="ledger.parquet.*not a whole Parquet file"):
        read_ledger(f)
    f = tmp_path/"comparison.json"
    result().save(f)
    f.write_text(f.read_text()[:-30])
    with pytest.raises(LabelKitError, match="comparison.json"): Comparison.load(f)
    f = tmp_path/"fit.pt"
    fit(learner([MixUp()]), cbs=[Checkpoint(f)])
    f.write_bytes(f.read_bytes()[:200])
    with pytest.raises(LabelKitError, match="fit.pt.*not a whole checkpoint"):
        fit(learner([MixUp()]), cbs=[Checkpoint(f)])


def test_a_checkpoint_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    fit(learner([MixUp()]), cbs=[Checkpoint("~/fits/fit.pt")])
    assert Checkpoint(f"file://{tmp_path}/fits/fit.pt").path.is_file()
    with pytest.raises(LabelKitError, match="is a URL"): Checkpoint("s3://bucket/fit.pt")


def test_unwritable_folder_leaves_nothing(tmp_path):
    (tmp_path/"file").write_text("in the way")
    out = tmp_path/"file"/"sub"
    for write in (
        lambda: book().to_parquet(out / "l.parquet"),
        lambda: report(result(), out / "r.html"),
        lambda: result().save(out / "c.json"),
        lambda: fit(learner([MixUp()]), cbs=[Checkpoint(out / "fit.pt")]),
    ):
        with pytest.raises(LabelKitError, match="cannot be written.*choose a folder|may write"):
            write()
    assert [o.name for o in tmp_path.iterdir()] == ["file"]


def test_a_write_that_fails_half_way_leaves_the_old_file(tmp_path, monkeypatch):
    f = tmp_path/"ledger.parquet"
    book().to_parquet(f)
    before = f.read_bytes()
    import pandas as pd

    def broken(self, path, *args, **kwargs):
        path.write_bytes(b"PAR1 half of")
        raise OSError("disk full")
    monkeypatch.setattr(pd.DataFrame, "to_parquet", broken)
    with pytest.raises(OSError, match="disk full"): book().to_parquet(f)
    assert f.read_bytes() == before and [o.name for o in tmp_path.iterdir()] == ["ledger.parquet"]


EVIL = "<img src=x onerror=alert(1)>"


def test_names_with_html_are_text(tmp_path):
    c = compare(
        {EVIL: [], "MixUp": MixUp()},
        digits(labeled=20),
        seeds=2,
        epochs=1,
        model=lambda dls: small_cnn(dls, width=4),
        progress=False,
    )
    report(c, tmp_path/"r.html", title=EVIL)
    for text in (c._repr_html_(), (tmp_path/"r.html").read_text()):
        assert EVIL not in text and "&lt;img src=x" in text
    dls = digits(labeled=20, vocab=[EVIL, *"123456789"])
    dls.show_batch()  # drawn as text
    with pytest.raises(LabelKitError) as e: FixMatch(threshold=EVIL)
    assert "threshold=" in str(e.value)
    json.dumps(str(e.value))
