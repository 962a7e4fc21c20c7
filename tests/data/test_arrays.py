"Data in memory, with everything that fastai's learner asks of a loader."
import random

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from fastai.basics import Learner
from fastai.callback.progress import ProgressCallback  # noqa: F401  (`no_bar`)
from fastai.data.core import TfmdDL
from fastai.data.transforms import Normalize
from fastai.interpret import ClassificationInterpretation
from fastai.vision.augment import Flip
from fasttransform import Transform
from torch import nn, tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import labelkit.data.ids as ids_module
from labelkit.data.arrays import ArrayDataset, ArrayDL, Arrays
from labelkit.data.ids import ids_of
from labelkit.data.loaders import from_arrays
from labelkit.data.sets import digits
from labelkit.errors import LabelKitError

X = torch.rand(12, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def loaders(y, kind=None, vocab=None, x=X, **kwargs):
    return from_arrays(x, y, x, y, vocab=vocab, kind=kind, bs=4, device="cpu", **kwargs)


def flat(c): return nn.Sequential(nn.Flatten(), nn.Linear(36, c))


def learner(dls, c):
    torch.manual_seed(0)
    return Learner(dls, flat(c))


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


# Batches

def test_bytes_become_floats():
    x = (X*255).byte()
    ds = ArrayDataset(Arrays(x, torch.arange(12)), tensor([3, 5]))
    got,y = ds.batch(ds.rows)
    assert got.dtype == torch.float32 and torch.equal(got, x[[3, 5]].float()/255)
    assert y.tolist() == [3, 5] and len(ds) == 2 and x.dtype == torch.uint8
    assert torch.equal(torch.as_tensor(ds[1][0]), got[1]) and int(ds[1][1]) == 5


@pytest.mark.parametrize("drop_last", [True, False])
def test_the_last_batch(drop_last):
    dl = ArrayDL(ArrayDataset(Arrays(X), torch.arange(10)), bs=4, drop_last=drop_last)
    sizes = [len(b[0]) for b in dl]
    assert sizes == ([4, 4] if drop_last else [4, 4, 2]) and len(dl) == len(sizes)
    assert all(len(b) == 1 for b in dl)


def test_no_samples_no_batch():
    dl = ArrayDL(ArrayDataset(Arrays(X), torch.arange(0)), bs=4)
    assert list(dl) == []


def test_steps_go_round():
    dl = ArrayDL(ArrayDataset(Arrays(X), torch.arange(5)), bs=4, steps=5, shuffle=True)
    seen = torch.cat([ids_of(b) for b in dl]).tolist()
    # four times each, in rounds
    assert len(seen) == 20 and sorted(seen) == sorted([*range(5)]*4)
    for i in range(0, 20, 5): assert sorted(seen[i:i+5]) == list(range(5))


def test_bags_stay_together():
    bags = tensor([0, 1, 2]*4)
    ds = ArrayDataset(Arrays(X), torch.arange(12))
    for bs in (4, 8):
        for b in ArrayDL(ds, bs=bs, bags=bags, shuffle=True):
            ids = ids_of(b)
            assert all((bags[ids] == k).sum() == 4 for k in bags[ids].unique())


def test_what_is_done_to_single_items():
    "A transform of items makes the loader go by items, with the same samples"
    class Double(Transform):
        def encodes(self, x:torch.Tensor): return x*2 if x.is_floating_point() else x
    dls = loaders([0, 1]*6)
    dls.add_tfms([Double()], "after_item")
    for b in dls.train:
        assert torch.allclose(torch.as_tensor(b[0]), 2*X[ids_of(b)])
        assert torch.equal(b[1].long(), ids_of(b) % 2)


def test_random_transforms_act_in_training_only():
    dls = loaders([0, 1]*6, labeled=8)
    dls.add_tfms([Flip(p=1.)], "after_batch")
    b = dls.train.one_batch()
    assert torch.allclose(torch.as_tensor(b[0]), X[ids_of(b)].flip(3), atol=1e-6)
    for dl in (dls.valid, dls.unlabeled):
        b = dl.one_batch()
        assert torch.allclose(torch.as_tensor(b[0]), X[ids_of(b)], atol=1e-6)
    assert isinstance(dls.train, TfmdDL)


# Words

NAMES = ["cat", "$dog$", "<b>"]


def test_a_class_in_words():
    dls = loaders(torch.arange(12) % 3, vocab=NAMES)
    learn = learner(dls, 3)
    with torch.no_grad():
        learn.model[1].bias += tensor([0., 50., 0.])
        with learn.no_bar():
            name,i,p = learn.predict(X[0])
            x,*_ = learn.predict(X[0], with_input=True)
    assert name == "$dog$" and int(i) == 1 and p[1] > .99 and torch.equal(torch.as_tensor(x), X[0])
    shown = dls.valid.show_batch(show=False)[2]
    assert [o[1] for o in shown[:3]] == ["cat", r"\$dog\$", "<b>"]


def test_several_labels_in_words():
    y = torch.eye(3)[torch.arange(12) % 3]
    y[:, 0] = 1
    dls = loaders(y, vocab=NAMES)
    shown = dls.valid.show_batch(show=False)[2]
    assert [list(o[1]) for o in shown[:2]] == [["cat"], ["cat", r"\$dog\$"]]


def test_soft_labels_and_numbers_in_words():
    y = torch.full((12, 2), .25)
    y[:, 1] = .75
    assert loaders(y, "soft", "ab").valid.show_batch(show=False)[2][0][1] == "b"
    assert float(loaders(torch.full((12,), .5)).valid.show_batch(show=False)[2][0][1]) == .5
    two = loaders(torch.full((12, 2), .123456)).valid.show_batch(show=False)[2][0][1]
    assert tuple(two) == (.1235, .1235)


@pytest.mark.parametrize(
    "y,kind,c",
    [
        (torch.arange(12) % 3, None, 3),
        (torch.eye(3)[torch.arange(12) % 3], "soft", 3),
        (torch.eye(3)[torch.arange(12) % 3], None, 3),
        (torch.rand(12), None, 1),
    ],
    ids=["single", "soft", "multi", "regression"],
)
def test_results_are_shown(y, kind, c):
    dls = loaders(y, kind)
    learn = learner(dls, c)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
        learn.show_results(max_n=4)
    titles = [ax.get_title() for ax in plt.gcf().axes]
    assert len(titles) == 4 and all(titles)
    dls.train.show_batch(max_n=2)
    assert dls.show_batch(max_n=3).axes


def test_names_are_drawn_as_text():
    "No formula, and no error, whatever a name holds"
    dls = loaders(torch.arange(12) % 3, vocab=["$x^2$", "$broken", "a_b"])
    learn = learner(dls, 3)
    with learn.no_bar(): learn.show_results(max_n=9)
    dls.show_batch().canvas.draw()
    plt.gcf().canvas.draw()


def test_what_cannot_be_shown():
    for x in (torch.rand(12, 36), torch.rand(12, 2, 6, 6)):
        dls = loaders([0, 1]*6, x=x)
        for f in (dls.show_batch, dls.train.show_batch):
            with pytest.raises(LabelKitError, match="only images with 1 or 3 channels"): f()


def test_the_worst_are_the_worst():
    "Losses, and the samples they belong to"
    dls = loaders(torch.arange(12) % 3, vocab=NAMES)
    learn = learner(dls, 3)
    with learn.no_bar():
        found = ClassificationInterpretation.from_learner(learn)
        logits = learn.model(X).detach()
        losses = nn.functional.cross_entropy(logits, torch.arange(12) % 3, reduction="none")
        values,at,items = found.top_losses(2, items=True)
        torch.testing.assert_close(torch.as_tensor(values), losses.topk(2).values)
        assert items.rows.tolist() == at.tolist() == losses.topk(2).indices.tolist()
        x,preds,y,decoded,_ = found[at]
        assert torch.equal(torch.as_tensor(x), X[at]) and torch.equal(y, at % 3)
        torch.testing.assert_close(preds, logits[at].softmax(1))
        want = np.zeros((3, 3), int)
        for t,p in zip(torch.arange(12) % 3, logits.argmax(1)): want[t, p] += 1
        assert (found.confusion_matrix() == want).all()
        assert list(found.vocab) == NAMES


def test_an_empty_copy_keeps_what_is_known():
    dls = digits(labeled=40, vocab=[f"digit {i}" for i in range(10)])
    empty = dls.new_empty()
    assert (empty.vocab, empty.c, empty.view_hints) == (dls.vocab, 10, dict(flip=False))
    assert empty.stats == dls.stats and empty.given is None and empty.truth is None
    assert all(len(dl.dataset) == 0 for dl in empty.loaders)
    # a view of the samples would be saved with all of them
    assert empty.train_ds.arrays.x.untyped_storage().nbytes() == 0
    assert empty.test_dl(torch.rand(2, 1, 8, 8)).one_batch()[0].shape == (2, 1, 8, 8)


def test_predictions_have_the_transforms_of_validation():
    dls = loaders([0, 1]*6)
    dls.add_tfms([Normalize.from_stats([.5], [.25], cuda=False)], "after_batch")
    x = dls.test_dl(X[:3]).one_batch()[0]
    assert torch.allclose(torch.as_tensor(x), (X[:3] - .5)/.25, atol=1e-6)


def test_making_loaders_draws_what_it_always_drew():
    "One number of Python's for each loader, whatever is asked for"
    for kwargs,n in ((dict(), 2), (dict(labeled=40), 3)):
        random.seed(4)
        digits(**kwargs)
        got = random.random()
        random.seed(4)
        for _ in range(n): random.randint(0, 2**32-1)
        assert got == random.random()


class Devices(TorchDispatchMode):
    "Notes operations whose tensors of one dimension or more lie on several devices"
    def __init__(self):
        super().__init__()
        self.mixed = []
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        there = {o.device for o in tree_leaves(args) if isinstance(o, torch.Tensor) and o.ndim}
        if len(there) > 1: self.mixed.append(str(func))
        return func(*args, **(kwargs or {}))


def test_data_on_a_device_are_indexed_there():
    "An accelerator that gets indices from the CPU is waited for in each step"
    dls = loaders(torch.arange(12) % 3, labeled=6)
    for dl in dls.loaders:
        ds = dl.dataset
        ds.rows = ds.rows.to("meta")
        ds.arrays.to("meta")
        with Devices() as seen: pairs = list(dl.create_pairs(iter([0, 1]*dl.bs)))
        assert pairs and not seen.mixed
        assert all(o.device.type == "meta" for batch,rows in pairs for o in (*batch, rows))
        with Devices() as seen: ds.arrays.inputs(torch.arange(3))
        assert not seen.mixed


def test_a_batch_that_is_there_is_not_moved(monkeypatch):
    moved = []
    usual = ids_module.to_device
    monkeypatch.setattr(
        ids_module, "to_device", lambda b, device: moved.append(device) or usual(b, device)
    )
    dls = loaders(torch.arange(12) % 3)
    assert ids_of(next(iter(dls.train))).device.type == "cpu" and not moved
    dls.train.device = torch.device("meta")
    x,y = b = next(iter(dls.train))
    assert moved and {x.device.type, y.device.type, ids_of(b).device.type} == {"meta"}
