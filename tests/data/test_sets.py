"The data sets: digits offline, and torchvision's from files as it keeps them."
import pickle
import struct

import numpy as np
import pytest
import torch

from labelkit.data import sets
from labelkit.data.ids import ids_of
from labelkit.data.sets import cifar10, digits, fashion_mnist, mnist
from labelkit.errors import LabelKitError


def test_digits_may_not_be_flipped():
    "A mirrored 2 is no digit: views must not flip, whatever else is passed"
    for kwargs in ({}, dict(labeled=40), dict(noise_rate=.1, seed=3), dict(vocab=range(10))):
        assert digits(**kwargs).view_hints == dict(flip=False)
    assert digits(view_hints=dict(flip=True)).view_hints == dict(flip=True)


def test_seeds_choose_other_labels_and_the_same_validation():
    a,b = (digits(labeled=40, seed=s) for s in (0, 1))
    assert set(a.train_ds.rows.tolist()) != set(b.train_ds.rows.tolist())
    assert torch.equal(a.valid_ds.arrays.x, b.valid_ds.arrays.x)
    assert torch.equal(a.truth, b.truth)
    assert torch.equal(a.recipe(1).train_ds.rows, b.train_ds.rows)
    noisy = digits(noise_rate=.2)
    assert (noisy.recipe(1).given != noisy.given).any()


def test_batch_sizes_and_share():
    assert (digits().train.bs, digits(labeled=40).train.bs, digits(bs=9).train.bs) == (64, 16, 9)
    assert len(digits(valid_pct=.5).valid_ds) == 898
    with pytest.raises(LabelKitError, match="valid_pct"): digits(valid_pct=1.)


SEVERAL = [dict(labeled=40, ratio=3), dict(labeled=100, bs=32, noise_rate=.3)]


@pytest.mark.parametrize("kwargs", SEVERAL)
def test_ids_in_several_batches_of_a_pass(kwargs):
    "Labeled and unlabeled alike, over more than one batch and more than one pass"
    dls = digits(**kwargs)
    x = dls.train_ds.arrays.x
    for dl in (dls.train, dls.unlabeled):
        batches = [b for _ in range(2) for b in dl]
        assert len(batches) > 4
        for b in batches: assert torch.equal(b[0], x[ids_of(b)])
    for b in dls.train: assert torch.equal(b[1], dls.given[ids_of(b)])
    for b in dls.unlabeled: assert (dls.given[ids_of(b)] == -1).all()


# torchvision's files, with few samples

def idx(path, a):
    "A file of the MNIST family"
    magic = struct.pack(">HBB", 0, 8, a.ndim) + struct.pack(f">{a.ndim}I", *a.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(magic + a.astype(np.uint8).tobytes())


@pytest.mark.parametrize("make,folder", [(mnist, "MNIST"), (fashion_mnist, "FashionMNIST")])
def test_mnist(tmp_path, make, folder):
    rng = np.random.default_rng(0)
    for part,n in (("train", 60), ("t10k", 20)):
        x = rng.integers(0, 256, (n, 28, 28))
        x[:, 0, 0] = np.arange(n)
        idx(tmp_path/folder/"raw"/f"{part}-images-idx3-ubyte", x)
        idx(tmp_path/folder/"raw"/f"{part}-labels-idx1-ubyte", np.arange(n) % 10)
    dls = make(tmp_path, labeled=20, bs=5, ratio=2, seed=1)
    assert dls.view_hints == dict(flip=False) and dls.c == len(dls.vocab) == 10
    assert dls.train_ds.arrays.x.dtype == torch.uint8
    b = dls.train.one_batch()
    assert b[0].shape == (5, 1, 28, 28) and b[0].dtype == torch.float32
    assert torch.equal((b[0][:, 0, 0, 0]*255).round().long(), ids_of(b))
    assert torch.equal(ids_of(b) % 10, b[1]) and len(dls.valid_ds) == 20
    few = make(tmp_path, n=30, seed=2)
    assert few.n_ids == 30 and len(few.train_ds) == 30
    for n in (0, 61):
        said = f"n={n} is not between 1 and 60"
        with pytest.raises(LabelKitError, match=said): make(tmp_path, n=n)


def test_cifar(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *a: True)
    folder = tmp_path/CIFAR10.base_folder
    folder.mkdir()
    for name,_ in CIFAR10.train_list + CIFAR10.test_list:
        x = np.arange(4*3072).reshape(4, 3072).astype(np.uint8)
        (folder/name).write_bytes(pickle.dumps(dict(data=x, labels=[0, 1, 2, 3])))
    names = "a b c d e f g h i j".split()
    meta = dict(label_names=names)
    (folder/CIFAR10.meta["filename"]).write_bytes(pickle.dumps(meta))
    dls = cifar10(tmp_path, bs=4)
    assert dls.view_hints == dict(flip=True) and dls.vocab == names
    # planes of red, green and blue, as the file has them
    first = torch.arange(3072).to(torch.uint8).view(3, 32, 32)
    assert torch.equal(dls.train_ds.arrays.x[0], first) and len(dls.train_ds) == 20


def test_what_is_not_there(tmp_path):
    for make in (mnist, cifar10, sets.svhn, sets.stl10):
        said = "does not hold .*pass download=True"
        with pytest.raises(LabelKitError, match=said): make(tmp_path)
