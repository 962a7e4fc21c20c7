"""Inputs and targets in every container: the right tensor, or an error that says which sample and
what to do."""
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from labelkit.data.containers import class_numbers, class_vocab, read_inputs, read_targets
from labelkit.data.loaders import from_arrays
from labelkit.errors import LabelKitError

NAN = float("nan")
PIXELS = np.arange(3*2*4*5, dtype=np.uint8).reshape(3, 2, 4, 5)


# Inputs

@pytest.mark.parametrize(
    "x",
    [
        PIXELS,
        torch.as_tensor(PIXELS),
        list(PIXELS),
        tuple(torch.as_tensor(PIXELS)),
        PIXELS.tolist(),
        np.asfortranarray(PIXELS),
        PIXELS[::-1][::-1],
        np.repeat(PIXELS, 2, axis=0)[::2],
        pd.Series(list(PIXELS), index=[5, 1, 0]),
    ],
    ids=lambda o: f"{type(o).__name__}",
)
def test_inputs_in_every_container(x):
    got = read_inputs(x)
    assert torch.equal(got.long(), torch.as_tensor(PIXELS).long())


@pytest.mark.parametrize("flip", range(4))
def test_negative_strides(flip):
    got = read_inputs(np.flip(PIXELS, flip))
    assert got.dtype == torch.uint8 and torch.equal(got, torch.as_tensor(PIXELS).flip(flip))


@pytest.mark.parametrize(
    "kind,want",
    [
        ("uint8", torch.uint8),
        ("bool", torch.float32),
        ("int8", torch.int64),
        ("int16", torch.int64),
        ("int32", torch.int64),
        ("int64", torch.int64),
        (">i4", torch.int64),
        ("uint32", torch.int64),
        ("uint64", torch.int64),
        ("float16", torch.float16),
        ("float32", torch.float32),
        (">f4", torch.float32),
        ("float64", torch.float32),
    ],
)
def test_types_of_inputs(kind, want):
    a = np.array([[0, 1], [1, 0], [1, 1]]).astype(kind)
    got = read_inputs(a)
    assert got.dtype == want and got.tolist() == a.astype(int).tolist()
    dls = from_arrays(a, [0, 1, 0], a, [0, 1, 0], bs=3)
    x = dls.valid.one_batch()[0]
    # a network gets floats of 32 bits, or whole numbers for an embedding
    assert x.dtype == (torch.int64 if want == torch.int64 else torch.float32)
    assert torch.equal(x*(255 if kind == "uint8" else 1), torch.as_tensor(a.astype(int)))


def test_tables_as_inputs():
    df = pd.DataFrame(dict(a=pd.array([1, None], dtype="Int64"), b=[.5, 2.]), index=[9, 2])
    got = read_inputs(df)
    assert got.dtype == torch.float32 and got[0].tolist() == [1, .5] and got[1, 0].isnan()
    assert read_inputs(pd.Series([1., 2.], index=[3, 1])).tolist() == [1, 2]


def test_a_mapped_file_is_not_copied(tmp_path, recwarn):
    np.save(tmp_path/"x.npy", PIXELS)
    a = np.load(tmp_path/"x.npy", mmap_mode="r")
    got = read_inputs(a)
    assert got.data_ptr() == a.ctypes.data and torch.equal(got, torch.as_tensor(PIXELS))
    assert not [w for w in recwarn if "writable" in str(w.message)]


@pytest.mark.parametrize(
    "x,said",
    [
        (np.zeros((3, 32, 32, 3), np.uint8), "channels last.*permute"),
        (np.zeros((3, 6, 9, 4)), "channels last"),
        (np.zeros((3, 8, 8), np.uint8), r"without channels: pass x\[:, None\]"),
        (np.zeros((3, 8, 8), np.uint16), "16-bit"),
        ([torch.zeros(2), torch.zeros(3)], r"x\[1\] has shape \(3,\)"),
        (["a.png", "b.png"], "files are loaded with fastai"),
        (np.array(["a", "b"]), "files are loaded with fastai"),
        (pd.DataFrame(dict(a=["x", "y"])), "is 'x'"),
        (np.zeros((2, 2), complex), "complex"),
        (3., "one number"),
        ([[1, 2], [3]], r"x\[1\] has shape \(1,\)"),
        (np.array(["2020-01-01"], "datetime64[D]"), "pass numbers"),
        ([object(), object()], "object"),
    ],
)
def test_inputs_that_are_refused(x, said):
    with pytest.raises(LabelKitError, match=said): read_inputs(x)


@pytest.mark.parametrize(
    "shape", [(2, 3, 32, 32), (2, 64, 1, 1), (2, 1, 5, 3), (2, 3, 4, 4), (2, 4, 8, 3)]
)
def test_shapes_that_only_look_like_channels_last(shape):
    assert read_inputs(np.zeros(shape)).shape == shape


# Class labels

NUMBERS = dict(
    list=[2, None, 0],
    nan=[2., NAN, 0.],
    array=np.array([2, NAN, 0]),
    half=np.array([2, NAN, 0], np.float16),
    objects=np.array([2, None, 0], dtype=object),
    minus=[2, -1, 0],
    int8=np.array([2, -1, 0], np.int8),
    tensor=torch.tensor([2., NAN, 0.]),
    series=pd.Series([2, NAN, 0], index=[17, 3, 5]),
    reordered=pd.Series([2, NAN, 0], index=[2, 0, 1]),
    Int64=pd.array([2, None, 0], dtype="Int64"),
    Int64_series=pd.Series([2, pd.NA, 0], dtype="Int64", index=[2, 1, 0]),
    Float64=pd.Series([2, pd.NA, 0], dtype="Float64"),
    object_series=pd.Series([2, None, 0], dtype=object),
    frame=pd.DataFrame(dict(y=[2, NAN, 0]), index=[4, 4, 4]),
    column=np.array([[2], [-1], [0]]),
    category=pd.Series([2, NAN, 0]).astype("category"),
    numbers_of_numpy=[np.int64(2), None, np.int64(0)],
    tensors=[torch.tensor(2), torch.tensor(-1), torch.tensor(0)],
)


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_with_a_gap(name):
    got,vocab = class_numbers(NUMBERS[name], "abc")
    assert got.dtype == torch.int64 and got.tolist() == [2, -1, 0] and vocab == ["a", "b", "c"]


WHOLE = "int8 int16 int32 int64 uint8 uint16 uint32 uint64 >i2 bool".split()


@pytest.mark.parametrize("kind", WHOLE)
def test_types_of_numbers(kind):
    assert class_numbers(np.array([1, 0, 1]).astype(kind))[0].tolist() == [1, 0, 1]


def test_booleans():
    for y in ([True, False], pd.array([True, False], dtype="boolean"), torch.tensor([True, False])):
        assert class_numbers(y)[0].tolist() == [1, 0]
    assert class_numbers(pd.array([True, None], dtype="boolean"))[0].tolist() == [1, -1]


NAMES = dict(
    list=["dog", None, "cat"],
    nan=["dog", NAN, "cat"],
    bytes=[b"dog", None, b"cat"],
    objects=np.array(["dog", NAN, "cat"], dtype=object),
    series=pd.Series(["dog", None, "cat"], index=[17, 0, 2]),
    string=pd.Series(["dog", pd.NA, "cat"], dtype="string"),
    category=pd.Categorical(["dog", None, "cat"]),
    category_series=pd.Series(["dog", None, "cat"], dtype="category", index=[2, 0, 1]),
    frame=pd.DataFrame(dict(y=["dog", None, "cat"])),
    column=np.array([["dog"], [None], ["cat"]], dtype=object),
)


@pytest.mark.parametrize("name", NAMES)
def test_names_with_a_gap(name):
    got,vocab = class_numbers(NAMES[name])
    assert got.tolist() == [1, -1, 0] and vocab == ["cat", "dog"]
    got,vocab = class_numbers(NAMES[name], ["dog", "cow", "cat"])
    assert got.tolist() == [0, -1, 2] and vocab == ["dog", "cow", "cat"]


def test_names_of_numpy():
    assert class_numbers(np.array(["b", "a"]))[0].tolist() == [1, 0]
    assert class_numbers(np.array([b"b", b"a"]))[1] == ["a", "b"]


def test_a_categorical_has_an_order():
    y = pd.Categorical(["lo", "hi"], categories=["lo", "mid", "hi"], ordered=True)
    assert class_numbers(y)[0].tolist() == [0, 2] and class_numbers(y)[1] == ["lo", "mid", "hi"]


@pytest.mark.parametrize(
    "y,vocab,said",
    [
        (["cat", "cow"], ["cat", "dog"], "y of sample 1 is 'cow'.*none of the 2 classes"),
        ([0, .5], None, "y of sample 1 is 0.5, which is no class number"),
        ([NAN, 1., 1.5], "ab", "sample 2 is 1.5"),
        ([0, float("inf")], None, "sample 1 is inf"),
        (np.eye(3), None, r"pass y.argmax\(1\)"),
        ([0, 1], "aa", "vocab has 'a' twice"),
        ([["cat"], ["cat", "dog"]], None, "cannot be read"),
        (np.array([["cat", "dog"]]), None, "one name for each sample"),
        ([1j, 2], None, "y of row 0 is 1j: pass numbers"),
    ],
)
def test_labels_that_are_refused(y, vocab, said):
    with pytest.raises(LabelKitError, match=said): class_numbers(y, vocab)


# Targets of every kind

@pytest.mark.parametrize(
    "y,vocab,kind",
    [
        ([0, 1, 2], None, "single"),
        ([0, 1, None], None, "regression"),      # a float without class names beside it
        ([0, 1, None], "ab", "single"),
        ([0, .5, 1], None, "regression"),
        ([0., 1., 2.], None, "regression"),
        ([0., 1., 2.], "abc", "single"),
        (["a", "b", None], None, "single"),
        ([True, False, True], None, "single"),
        (np.eye(3, dtype=int), None, "multi"),
        (np.eye(3, dtype=bool), None, "multi"),
        (np.eye(3), None, "multi"),
        ([[1, 0], [NAN, NAN], [1, 1]], None, "multi"),
        ([[.5, .5], [.1, .9], [1, 0]], None, "regression"),
        (pd.DataFrame(np.eye(3)), None, "multi"),
        (np.array([[0], [1], [2]]), None, "single"),
    ],
)
def test_what_targets_are(y, vocab, kind): assert read_targets(y, y, vocab)[2] == kind


def test_columns_are_names():
    df = pd.DataFrame([[1, 0], [NAN, NAN], [1, 1]], columns=["wet", "cold"], index=[2, 0, 1])
    y,valid,kind,vocab = read_targets(df, df[:1])
    assert (kind, vocab, valid.tolist()) == ("multi", ["wet", "cold"], [[1, 0]])
    assert y.dtype == torch.float32 and y.isnan().all(1).tolist() == [False, True, False]
    soft = pd.DataFrame([[.25, .75]], columns=["wet", "cold"])
    assert read_targets(soft, soft, kind="soft")[3] == ["wet", "cold"]


def test_names_of_both_columns():
    y,valid,_,vocab = read_targets(["b", "a"], ["c", "a"])
    assert (y.tolist(), valid.tolist(), vocab) == ([1, 0], [2, 0], ["a", "b", "c"])
    cat = pd.Categorical(["z", "a"], categories=["z", "a"])
    assert read_targets(cat, ["a"])[3] == ["z", "a"] and read_targets(cat, ["a"])[1].tolist() == [1]


def test_soft_labels():
    y = [[.25, .75], [1, 0]]
    assert read_targets(y, y, kind="soft")[2] == "soft"
    with pytest.raises(LabelKitError, match="y: row 0 is .* not a distribution"):
        read_targets([[.5, .6]], y, kind="soft")


@pytest.mark.parametrize(
    "y,kw,said",
    [
        (np.zeros((3, 4, 4), int), {}, "maps of classes.*SegmentationDataLoaders"),
        ([[0, 2]], {}, "outside 0..1"),
        ([[0, -1]], {}, "outside 0..1"),
        ([[0., 1.]], dict(vocab="abc"), "2 columns and vocab 3 names"),
        ([0, float("inf")], {}, "infinite"),
        ([0, 1], dict(kind="several"), "kind='several' is none of"),
        ([0, 1], dict(kind="soft"), r"needs \[N, C\]"),
        (np.eye(2), dict(kind="single"), r"argmax\(1\)"),
        ([[1, 2], [3]], {}, "cannot be read as numbers"),
        ([.5, 1.5], dict(vocab="ab"), "which is no class number"),
    ],
)
def test_targets_that_are_refused(y, kw, said):
    with pytest.raises(LabelKitError, match=said): read_targets(y, y, **kw)


def test_both_have_one_width():
    with pytest.raises(LabelKitError, match="pass the same"): read_targets(np.eye(3), np.eye(2))


# In the loaders

X = torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("seed", range(4))
def test_a_split_of_pandas(seed):
    "Labels belong to the inputs beside them, whatever index a split or a shuffle has left"
    from sklearn.model_selection import train_test_split
    y = pd.Series(np.arange(30) % 3)
    xt,xv,yt,yv = train_test_split(X.numpy(), y, test_size=.3, random_state=seed)
    dls = from_arrays(xt, yt, xv, yv)
    assert dls.given.tolist() == yt.tolist() and dls.valid_ds.arrays.y.tolist() == yv.tolist()
    again = y.sample(frac=1, random_state=seed)
    dls = from_arrays(X[again.index.to_numpy()], again, X, y)
    assert dls.given.tolist() == again.tolist()


def test_gaps_are_unlabeled():
    y = (np.arange(30) % 3).astype(float)
    y[[4, 9]] = NAN
    dls = from_arrays(X, y, X, np.arange(30) % 3, bs=10, vocab=["a", "b", "c"])
    assert dls.unlabeled.dataset.rows.tolist() == [4, 9] and dls.c == 3
    assert "CrossEntropy" in type(dls.train_ds.loss_func).__name__
    several = np.eye(3)[np.arange(30) % 3]
    several[5] = NAN
    dls = from_arrays(X, several, X, np.eye(3)[np.arange(30) % 3], bs=10)
    assert dls.unlabeled.dataset.rows.tolist() == [5]
    assert "BCE" in type(dls.train_ds.loss_func).__name__


def test_validation_needs_labels():
    with pytest.raises(LabelKitError, match="y_valid has samples without a label"):
        from_arrays(X, ["a", "b"]*15, X, ["a", None]*15)


def test_inputs_to_predict():
    "`test_dl` takes what `from_arrays` takes"
    dls = from_arrays((X*255).byte(), [0, 1]*15, (X*255).byte(), [0, 1]*15)
    for x in (X[:4], X[:4].double().numpy(), list(X[:4]), (X[:4]*255).byte().numpy()):
        got = dls.test_dl(x).one_batch()[0]
        assert got.dtype == torch.float32 and torch.allclose(got, X[:4], atol=1/255)
    assert dls.test_dl(torch.rand(2, 1, 16, 16)).one_batch()[0].shape[-1] == 16
    for x in (X[0], torch.rand(2, 3, 8, 8), torch.rand(4, 64)):
        with pytest.raises(LabelKitError, match="samples of shape .* and the training set of"):
            dls.test_dl(x)


# Names of classes

def test_names_of_classes():
    "Also of text, whose first vocabulary is of words"
    assert class_vocab(SimpleNamespace(vocab=["a", "b"])) == ["a", "b"]
    assert class_vocab(SimpleNamespace(vocab=[["the", "a"], ["neg", "pos"]])) == ["neg", "pos"]
    assert class_vocab(SimpleNamespace(vocab=None)) is None
    assert class_vocab(SimpleNamespace(vocab=range(3))) == [0, 1, 2]


CONTAINERS = dict(
    tensor=torch.as_tensor, array=np.asarray, table=lambda a: pd.DataFrame(dict(a=np.ravel(a))),
    list=lambda a: np.asarray(a).tolist(),
)

@pytest.mark.parametrize("kind", CONTAINERS)
def test_one_column_is_the_same_in_every_container(kind):
    "Whole numbers are classes, floats 0 and 1 a yes or no; with class names, classes"
    of = CONTAINERS[kind]
    whole = of(np.array([[0], [1], [2]]))
    y,_,found,_ = read_targets(whole, whole)
    assert found == "single" and y.tolist() == [0, 1, 2]
    yes = of(np.array([[0.], [1.], [1.]]))
    y,_,found,_ = read_targets(yes, yes)
    assert found == "multi" and y.tolist() == [[0], [1], [1]]
    y,_,found,vocab = read_targets(yes, yes, vocab=["no", "yes"])
    assert (found, vocab, y.tolist()) == ("single", ["no", "yes"], [0, 1, 1])
    numbers = of(np.array([[.5], [1.], [3.]]))
    assert read_targets(numbers, numbers)[2] == "regression"


def test_a_categorical_of_numbers_with_a_gap_is_classes():
    y,_,kind,_ = read_targets(pd.Categorical([1, None, 0]), [0, 1])
    assert kind == "single" and y.tolist() == [1, -1, 0]


def test_masked_labels_and_inputs_have_gaps():
    assert class_numbers(np.ma.masked_array([2, 1], mask=[0, 1]))[0].tolist() == [2, -1]
    names = np.ma.masked_array(["cat", "dog"], mask=[1, 0])
    assert class_numbers(names)[0].tolist() == [-1, 0]
    x = np.ma.masked_array(np.ones((2, 3)), mask=[[0, 0, 1], [0, 0, 0]])
    assert read_inputs(x).isnan().tolist() == [[False, False, True], [False]*3]


@pytest.mark.parametrize("kind", ["multi", "soft", "regression"])
def test_validation_columns_in_another_order(kind):
    y = pd.DataFrame(np.eye(3)[[0, 1, 2, 1]], columns=["c", "a", "b"])
    valid = y[["b", "c", "a"]]
    for vocab in (None, ["a", "b", "c"]):
        t,t_valid,_,names = read_targets(y, valid, vocab, kind)
        assert torch.equal(t, t_valid)
        want = y[names] if names and vocab else y
        assert t.tolist() == want.to_numpy().tolist()
    with pytest.raises(LabelKitError, match="y_valid has no column 'b'"):
        read_targets(y, valid.drop(columns="b"), None, kind)
