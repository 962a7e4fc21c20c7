"""The learner's surface: what a fastai user does with a `Learner` works on labelkit's own loaders
and after `label_dls`, beside one technique of each family, on pictures with a label, pictures with
several, segmentation, texts and a table. Where a technique cannot work, it says so."""
import random
import warnings
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import fastai.vision.learner  # noqa: F401  (how pictures are shown)
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.basics import Callback, CrossEntropyLossFlat, Learner
from fastai.callback.fp16 import MixedPrecision  # noqa: F401  (`to_fp16`)
from fastai.callback.progress import ProgressCallback  # noqa: F401  (`no_bar` of a Learner)
from fastai.callback.schedule import fine_tune, fit_one_cycle  # noqa: F401
from fastai.data.block import CategoryBlock, DataBlock, MultiCategoryBlock
from fastai.interpret import (
    ClassificationInterpretation,
    Interpretation,
    SegmentationInterpretation,
)
from fastai.learner import load_learner
from fastai.losses import BCEWithLogitsLossFlat
from fastai.tabular.core import Categorify, Normalize
from fastai.tabular.data import TabularDataLoaders
from fastai.tabular.learner import tabular_learner
from fastai.text.data import TextDataLoaders
from fastai.vision.core import PILImageBW
from fastai.vision.data import ImageBlock, MaskBlock
from PIL import Image
from torch import nn

from contract import data
from labelkit.data.loaders import label_dls
from labelkit.data.samples import given_labels
from labelkit.distill.knowledge_distillation import KnowledgeDistillation
from labelkit.errors import LabelKitError
from labelkit.mix.mixup import MixUp
from labelkit.pseudo.base import WeakViews
from labelkit.pseudo.fixmatch import FixMatch
from labelkit.pseudo.mean_teacher import MeanTeacher
from labelkit.pseudo.self_training import SelfTraining
from labelkit.relabel.confident_relabel import ConfidentRelabel

warnings.filterwarnings("ignore", "load_learner")


# The data: 24 training samples, 8 for validation, 16 without a label

@cache
def folder():
    "Pictures of bright and dark stripes, upright or lying, with masks"
    keep = TemporaryDirectory()
    root = Path(keep.name)
    rng = np.random.default_rng(0)
    for i in range(48):
        a = rng.integers(0, 60, (12, 12))
        upright = i % 2 == 0
        at = 2 + i % 7
        mask = np.zeros((12, 12), np.uint8)
        if upright: mask[:, at:at+3] = 1
        else: mask[at:at+3] = 1
        a[mask > 0] += 60 + 100*(i % 3 > 0)
        Image.fromarray(a.astype(np.uint8)).save(root/f"{i:02}.png")
        Image.fromarray(mask).save(root/f"{i:02}.mask.png")
    return keep,root

def files(): return [folder()[1]/f"{i:02}.png" for i in range(48)]
def number(o): return int(o.stem)
def shape_of(o): return "lying" if number(o) % 2 else "upright"
def names_of(o): return [shape_of(o)] + (["bright"] if number(o) % 3 else [])
def mask_of(o): return o.with_name(f"{o.stem}.mask.png")
def split(o): return list(range(24)),list(range(24, len(o)))

def pictures(target, get_y, weights=None):
    blocks = ImageBlock(PILImageBW),target
    block = DataBlock(blocks, get_items=lambda o: o, get_y=get_y, splitter=split)
    how = dict(bs=8, num_workers=0, device="cpu")
    if weights is None: return block.dataloaders(files()[:32], **how)
    return block.weighted_dataloaders(files()[:32], weights, **how)

def sentences(n):
    rng = random.Random(0)
    words = "one two three four five six".split()
    say = lambda i: " ".join([("bad", "good")[i % 2]]*2 + rng.choices(words, k=rng.randint(3, 9)))
    label = ["pos" if i % 2 else "neg" for i in range(n)]
    return pd.DataFrame(dict(text=[say(i) for i in range(n)], label=label))

def rows(n):
    label = np.arange(n) % 2
    a = label + np.random.default_rng(0).normal(0, .3, n)
    return pd.DataFrame(dict(a=a, k=list("xyzw")*(n//4), label=np.array(["p", "q"])[label]))

def of_pictures(*args, **kwargs):
    return label_dls(pictures(*args, **kwargs), files()[32:], ratio=2)

def of_texts():
    df = sentences(48)
    df["is_valid"] = [24 <= i < 32 for i in range(48)]
    dls = TextDataLoaders.from_df(
        df[:32], text_col="text", label_col="label", valid_col="is_valid", bs=8, num_workers=0,
        device="cpu",
    )
    return label_dls(dls, df[32:].drop(columns=["label", "is_valid"]), ratio=2)

def of_rows():
    df = rows(48)
    dls = TabularDataLoaders.from_df(
        df[:32], procs=[Categorify, Normalize], cat_names=["k"], cont_names=["a"], y_names="label",
        y_block=CategoryBlock(), valid_idx=list(range(24, 32)), bs=8, device="cpu",
    )
    return label_dls(dls, df[32:].drop(columns="label"), ratio=2)

stripes = MaskBlock(codes=["back", "stripe"])
DATA = dict(
    own=lambda: data(n=64, labeled=24, bs=8, ratio=2, device="cpu"),
    images=lambda: of_pictures(CategoryBlock, shape_of),
    weighted=lambda: of_pictures(CategoryBlock, shape_of, weights=[1, 3]*16),
    several=lambda: of_pictures(MultiCategoryBlock, names_of),
    masks=lambda: of_pictures(stripes, mask_of),
    texts=of_texts,
    table=of_rows,
)


# The models

class Bag(nn.Module):
    "The mean of a text's words"
    def __init__(self, words, c):
        super().__init__()
        self.embed = nn.Embedding(words, 8, padding_idx=1)
        self.head = nn.Linear(8, c)
    def forward(self, x): return self.head(self.embed(x).sum(1))

def model(kind, dls):
    if kind == "texts": return Bag(len(dls.vocab[0]), 2)
    if kind == "masks":
        return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    body = nn.Conv2d(1, 4, 3, 2, 1),nn.BatchNorm2d(4),nn.ReLU(),nn.AdaptiveAvgPool2d(2)
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(16, len(dls.vocab)))

def learner(kind, cbs, dls=None):
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    dls = dls or DATA[kind]()
    how = dict(cbs=cbs, path=folder()[1])
    if kind == "table": return tabular_learner(dls, layers=[8], **how)
    loss = dict(several=BCEWithLogitsLossFlat(), masks=CrossEntropyLossFlat(axis=1)).get(kind)
    return Learner(dls, model(kind, dls), loss_func=loss or CrossEntropyLossFlat(), **how)


# One technique of each family, with settings under which it acts

def probs(dls):
    "Says of every third sample that its label is wrong"
    ids,y = given_labels(dls)
    c = max(2, int(y.max())+1)
    c = dls.c if dls.c > 2 else c
    p = torch.full((dls.n_ids, c), .1/(c-1))
    p[ids] = p[ids].scatter(1, ((y + (torch.arange(len(y)) % 3 == 0)) % c)[:, None], .9)
    return p

TECHNIQUES = dict(
    none=lambda kind, dls: [],
    MixUp=lambda kind, dls: MixUp(),
    FixMatch=lambda kind, dls: FixMatch(threshold=0.),
    ConfidentRelabel=lambda kind, dls: ConfidentRelabel(pred_probs=probs(dls), action="relabel"),
    KnowledgeDistillation=lambda kind, dls: KnowledgeDistillation(learner(kind, [], dls).model),
)


# What cannot work says why; all else must work
REFUSED = {
    ("several", "FixMatch"): "works on",
    ("several", "ConfidentRelabel"): "needs one class number for each sample",
    ("several", "KnowledgeDistillation"): "works on",
    ("masks", "ConfidentRelabel"): "needs one class number for each sample",
    ("masks", "KnowledgeDistillation"): "works on",
    ("texts", "MixUp"): "averages inputs",
    ("table", "MixUp"): "averages inputs",
    ("texts", "FixMatch"): "views of your own",
    ("table", "FixMatch"): "views of your own",
}
# fastai's own functions that show results of texts and plot losses of tables do not work (2.8.7)
NOT_SHOWN = "texts", "table"
CELLS = [(k, t) for k in DATA for t in TECHNIQUES if (k, t) not in REFUSED]


class Acted(Callback):
    "Counts the batches in which the technique changed something"
    order = 7
    def before_fit(self): self.n = 0
    def after_loss(self):
        if not self.training: return
        s = self.learn.supervision.record
        self.n += bool(s.edited or s.losses)

class Autocast(Callback):
    "bf16 on the CPU, opened and closed where fastai's MixedPrecision does"
    order = 10
    def before_batch(self):
        self.context = torch.autocast("cpu", torch.bfloat16)
        self.context.__enter__()
    def after_pred(self): self.learn.pred = self.pred.float()
    def after_loss(self): self.context.__exit__(None, None, None)

def quiet(learn, f):
    with learn.no_bar(), learn.no_logging(), learn.no_mbar(): return f()

def train(learn, f=None):
    "Fit; the weights have moved, are finite, and the technique has acted"
    before = [p.detach().clone() for p in learn.model.parameters()]
    acted = Acted()
    with learn.added_cbs(acted if learn.labelled else []):
        quiet(learn, f or (lambda: learn.fit(1, 1e-2)))
    after = list(learn.model.parameters())
    assert all(p.isfinite().all() for p in after)
    assert any(not torch.equal(a, b) for a,b in zip(before, after))
    if learn.labelled: assert acted.n > 0

def make(kind, technique):
    dls = DATA[kind]()
    cb = TECHNIQUES[technique](kind, dls)
    learn = learner(kind, cb, dls)
    learn.labelled = technique != "none"
    return learn

@pytest.fixture(scope="module", params=CELLS, ids="-".join)
def cell(request):
    "The kind of data and a learner that has been trained"
    kind,technique = request.param
    learn = make(kind, technique)
    train(learn)
    return kind,learn

@pytest.fixture(autouse=True)
def no_figures():
    yield
    plt.close("all")


@pytest.mark.parametrize("kind,technique", REFUSED)
def test_refused_in_words(kind, technique):
    with pytest.raises(LabelKitError, match=REFUSED[kind, technique]): train(make(kind, technique))


def test_fits_in_any_sequence(cell):
    kind,learn = cell
    train(learn, lambda: learn.fit_one_cycle(1, 1e-2))
    train(learn, lambda: learn.fine_tune(1, 1e-2))
    learn.freeze()
    learn.unfreeze()
    train(learn)


def test_mixed_precision(cell):
    kind,learn = cell
    train(learn, lambda: learn.fit(1, 1e-2, cbs=Autocast()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without a GPU nothing is cast
        learn.to_fp16()
        train(learn)
        learn.to_fp32()


def test_predict(cell):
    "The class that the model finds most likely, in words"
    kind,learn = cell
    preds,_ = quiet(learn, learn.get_preds)
    item = dict(texts=lambda: sentences(48).text[24], table=lambda: rows(48).iloc[24]).get(kind)
    item = item() if item else learn.dls.valid_ds[0][0] if kind == "own" else files()[24]
    name,idx,p = quiet(learn, lambda: learn.predict(item))
    torch.testing.assert_close(torch.as_tensor(p), torch.as_tensor(preds[0]), atol=1e-4, rtol=1e-3)
    best = p.argmax(0)
    if kind == "several":
        assert list(name) == [o for o,q in zip(learn.dls.vocab, p) if q > .5]
    elif kind == "masks": assert torch.equal(torch.as_tensor(name).long(), best)
    elif kind == "table": assert name.decode().items.label.iloc[0] == learn.dls.vocab[int(best)]
    else: assert name == (learn.dls.vocab[1] if kind == "texts" else learn.dls.vocab)[int(best)]


def test_show(cell):
    kind,learn = cell
    quiet(learn, learn.dls.show_batch)
    quiet(learn, learn.dls.train.show_batch)
    assert plt.get_fignums() or kind in NOT_SHOWN
    plt.close("all")
    if kind == "texts": return
    quiet(learn, learn.show_results)
    assert plt.get_fignums() or kind in NOT_SHOWN


def test_tta(cell):
    kind,learn = cell
    if kind == "table": pytest.skip("fastai's tables have no test-time augmentation")
    preds,_ = quiet(learn, lambda: learn.get_preds(dl=learn.dls.valid))
    more,_ = quiet(learn, lambda: learn.tta(n=2))
    # nothing is random in these data, so the mean of several is one
    torch.testing.assert_close(torch.as_tensor(more), torch.as_tensor(preds), atol=1e-4, rtol=1e-3)


def test_interpretation(cell):
    kind,learn = cell
    if kind in ("several", "masks"):
        cls = SegmentationInterpretation if kind == "masks" else Interpretation
    else: cls = ClassificationInterpretation
    found = quiet(learn, lambda: cls.from_learner(learn))
    n = len(learn.dls.valid_ds)
    _,_,losses = quiet(learn, lambda: learn.get_preds(with_loss=True))
    top,at = found.top_losses(3)
    assert len(found.losses) == n and torch.equal(losses.topk(3).indices, at)
    if cls is ClassificationInterpretation:
        preds,y = quiet(learn, learn.get_preds)
        m = quiet(learn, found.confusion_matrix)
        assert m.sum() == n and np.trace(m) == int((preds.argmax(1) == y.flatten()).sum())
        quiet(learn, found.plot_confusion_matrix)
        assert plt.get_fignums()
        quiet(learn, found.most_confused)
        quiet(learn, found.print_classification_report)
    if kind in NOT_SHOWN: return
    plt.close("all")
    quiet(learn, lambda: found.plot_top_losses(3))
    assert plt.get_fignums()
    plt.close("all")
    quiet(learn, lambda: found.show_results([0, 2]))
    assert plt.get_fignums()


def test_export(cell):
    "The loaded learner predicts the same, without teachers, stores or samples in its file"
    kind,learn = cell
    learn.export("x.pkl")
    new = load_learner(learn.path/"x.pkl")
    assert (learn.path/"x.pkl").stat().st_size < 400_000
    df = {"texts": sentences(48).text[:4], "table": rows(48)[:4]}
    items = learn.dls.valid_ds.arrays.x[:4] if kind == "own" else df.get(kind, files()[:4])
    a,b = (quiet(o, lambda o=o: o.get_preds(dl=o.dls.test_dl(items))[0]) for o in (learn, new))
    torch.testing.assert_close(a, b)
    train(learn)  # and this one goes on


def test_unlabeled_predictions(cell):
    kind,learn = cell
    preds,_ = quiet(learn, lambda: learn.get_preds(ds_idx=2))
    assert len(preds) == len(learn.dls.unlabeled.dataset)


def test_other_loaders(cell):
    kind,learn = cell
    old = learn.dls
    learn.dls = DATA[kind]()
    train(learn)
    learn.dls = old
    train(learn)


def views_of_ones_own(kind):
    still = lambda x: x
    dls = DATA[kind]()
    learn = learner(kind, FixMatch(threshold=0., weak=still, strong=still), dls)
    learn.labelled = True
    return learn

def test_texts_with_views_of_ones_own(): train(views_of_ones_own("texts"))

def both(xs): return xs[0],xs[1] + .01

@pytest.mark.parametrize("make", [
    lambda: FixMatch(threshold=0., weak=both, strong=both),
    lambda: MeanTeacher(weak=both, strong=both),
    lambda: SelfTraining(weak=both, warmup=0., threshold=0.),
    lambda: WeakViews(weak=both),
])
def test_a_table_with_views_of_both_its_inputs(make):
    learn = learner("table", make(), DATA["table"]())
    learn.labelled = True
    seen = []
    class Keep(Callback):
        order = 6
        def after_pred(self):
            if not self.training: return
            s = self.learn.supervision.record
            seen.append((s, [o.clone() for o in self.xb]))
    learn.add_cb(Keep())
    quiet(learn, lambda: learn.fit(1))
    for s,given in seen:
        assert torch.equal(s.inputs[0], given[0])
        torch.testing.assert_close(s.inputs[1], given[1] + .01)
    if not isinstance(make(), WeakViews): assert all(s.losses for s,_ in seen)

def test_a_view_of_one_input_is_not_enough_for_two():
    one = FixMatch(threshold=0., weak=lambda xs: xs[1], strong=both)
    learn = learner("table", one, DATA["table"]())
    with pytest.raises(LabelKitError, match="a tuple of 2 tensors"):
        quiet(learn, lambda: learn.fit(1))
