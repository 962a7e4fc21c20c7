"Tables of numbers of every origin as tensors, and what is none in words"
import numpy as np, pandas as pd, pyarrow as pa, pytest, torch

from labelkit.errors import LabelKitError
from labelkit.tables import in_class_order, is_missing, numbers_of, rows_of, unmasked

NAN = float("nan")
WANT = [[0, 1], [2, 3]]
Int = pd.Int64Dtype()


@pytest.mark.parametrize(
    "value",
    [
        WANT,
        tuple(map(tuple, WANT)),
        np.array(WANT),
        np.array(WANT, dtype=np.uint8),
        np.array(WANT, dtype=np.uint16),
        np.array(WANT, dtype=">i4"),
        np.array(WANT[::-1])[::-1],
        np.asfortranarray(np.array(WANT)),
        np.array(WANT, dtype=object),
        torch.tensor(WANT),
        torch.tensor(WANT, dtype=torch.int8),
        [torch.tensor(o) for o in WANT],
        [[np.int64(o) for o in r] for r in WANT],
        pd.DataFrame(WANT),
        pd.DataFrame(WANT, index=[7, 5], columns=["a", "b"]),
        pd.DataFrame(WANT, index=["x", "y"]),
        pd.DataFrame(WANT, dtype="Int64"),
        pa.table(dict(a=[0, 2], b=[1, 3])),
    ],
    ids=lambda o: type(o).__name__,
)
def test_whole_numbers(value):
    got = numbers_of("votes", value)
    assert got.dtype == torch.long and got.tolist() == WANT
    got += 1  # a copy where it was no tensor: what was passed stays as it is


@pytest.mark.parametrize(
    "value",
    [
        [[0, None], [2, 3]],
        pd.DataFrame([[0, NAN], [2, 3]]),
        pd.DataFrame([[0, pd.NA], [2, 3]], dtype=Int),
        pd.DataFrame([[0, None], [2, 3]], dtype=object),
        np.array([[0, NAN], [2, 3]]),
        torch.tensor([[0, NAN], [2, 3]]),
        pa.table(dict(a=[0, 2], b=[None, 3])),
    ],
    ids=lambda o: type(o).__name__,
)
def test_gaps(value):
    assert numbers_of("votes", value, gap=-1).tolist() == [[0, -1], [2, 3]]
    got = numbers_of("votes", value)
    assert got.is_floating_point() and got.isnan().tolist() == [[False, True], [False, False]]


def test_floats_stay_floats():
    for value in ([[.5, .5]], np.array([[.5, .5]], np.float16), pd.DataFrame([[.5, .5]])):
        assert numbers_of("p", value, gap=-1).tolist() == [[.5, .5]]
    assert numbers_of("p", torch.tensor([[0., 1.]])).dtype == torch.float32
    assert numbers_of("votes", torch.tensor([[0., 1.]]), gap=-1).dtype == torch.long
    assert numbers_of("votes", [[float("inf"), 1]], gap=-1).is_floating_point()


def test_columns():
    assert numbers_of("y", pd.Series([4, 5], index=[9, 3]), 1).tolist() == [4, 5]
    assert numbers_of("y", pd.Categorical([4, None]), 1, gap=-1).tolist() == [4, -1]
    assert numbers_of("y", [True, False], 1).tolist() == [1, 0]


def test_gradients_and_subclasses_stay_outside():
    from fastai.torch_core import TensorBase
    t = TensorBase(torch.ones(2, 2)).requires_grad_()
    got = numbers_of("p", t)
    assert type(got) is torch.Tensor and not got.requires_grad


@pytest.mark.parametrize(
    "value,said",
    [
        (pd.DataFrame(WANT, index=[1, 0]), "another order than its index (the first is 1)"),
        (pd.DataFrame(dict(a=["3"])), "votes of row 0 is '3': pass numbers"),
        (pd.DataFrame(dict(a=pd.Categorical(["cat"]))), "votes of row 0 is 'cat'"),
        ([["a", "b"]], "votes of row 0 is "),
        ([[0, 1], [2]], "votes cannot be read as numbers"),
        ([[0], [1j]], "votes of row 0 is "),
        (torch.ones(1, 1, dtype=torch.cfloat), "complex"),
        ([0, 1], "votes has shape (2,): pass a table"),
        (dict(a=1), "votes is {'a': 1}"),
        ("text", "votes is 'text'"),
        (None, "votes has shape (): pass a table"),
    ],
    ids=str,
)
def test_what_is_no_table(value, said):
    with pytest.raises(LabelKitError) as e: numbers_of("votes", value)
    assert said in str(e.value)


def test_missing():
    assert all(map(is_missing, (None, NAN, np.nan, np.float32("nan"), pd.NA, pd.NaT)))
    assert not any(map(is_missing, (0, "", "nan", False, [], np.zeros(2), torch.zeros(2))))


@pytest.mark.parametrize("number", [0, 1.5])
def test_what_is_masked_is_not_there(number):
    hidden = np.ma.masked_array([number, 7, 2], mask=[0, 1, 0])
    assert numbers_of("y", hidden, 1, gap=-1).tolist() == (
        [0, -1, 2] if number == 0 else pytest.approx([1.5, NAN, 2], nan_ok=True)
    )
    assert numbers_of("y", hidden, 1).isnan().tolist() == [False, True, False]
    assert unmasked(hidden) is not hidden and unmasked(WANT) is WANT
    names = np.ma.masked_array(["a", "b"], mask=[1, 0])
    assert unmasked(names).tolist() == [None, "b"]


def test_numbers_of_other_widths():
    wide = np.array([.25, 2], np.longdouble)
    assert numbers_of("p", wide, 1).tolist() == [.25, 2]
    large = np.array([2**63 + 1], np.uint64)
    with pytest.raises(LabelKitError, match=f"p has {2**63 + 1}, which is too large"):
        numbers_of("p", large, 1)
    assert numbers_of("p", np.array([], np.uint64), 1).tolist() == []
    for spans in (np.array([3, 4], "timedelta64[ns]"), pd.Series(pd.to_datetime(["2020-01-01"]))):
        with pytest.raises(LabelKitError, match="p has dates or spans of time"):
            numbers_of("p", spans, 1)


@pytest.mark.parametrize(
    "values",
    [
        ["b", "d"],
        ("b", "d"),
        np.array(["b", "d"]),
        pd.Series(["b", "d"], index=[1, 3]),
        pd.DataFrame(dict(name=["b", "d"]), index=[7, 0]),
        pd.Index(["b", "d"]),
    ],
    ids=lambda o: type(o).__name__,
)
def test_what_stands_in_a_row(values):
    got = rows_of("names", values, 2)
    assert (got[0], got[1], len(got)) == ("b", "d", 2)


def test_rows_of_numbers_stay_as_they_are():
    images = torch.rand(3, 1, 2, 2)
    assert rows_of("items", images, 3) is images
    assert rows_of("items", images.numpy())[1].shape == (1, 2, 2)


@pytest.mark.parametrize(
    "values,said",
    [
        (["a"], "names has 1 entries for 2 samples: pass one for each"),
        (pd.Series(["a", "b"], index=[1, 0]), "another order than its index (the first is 1)"),
        (pd.DataFrame(dict(a=["x", "y"], b=["x", "y"])), "a table of 2 columns: pass one of them"),
        (dict(a=1, b=2), "names is {'a': 1"),
        ("ab", "names is 'ab': pass a list"),
        ({"a"}, "pass a list, one for each sample"),
        (torch.tensor(2), "pass a list, one for each sample"),
        (None, "names is None"),
    ],
    ids=str,
)
def test_what_has_no_rows(values, said):
    with pytest.raises(LabelKitError) as e: rows_of("names", values, 2)
    assert said in str(e.value)


def test_columns_of_classes_are_known_by_name():
    table = pd.DataFrame([[.1, .7, .2]], columns=["b", "a", "c"], index=[5])
    got = in_class_order("p", table, ["a", "b", "c"])
    assert got.to_numpy().tolist() == [[.7, .1, .2]] and got.index.tolist() == [5]
    assert in_class_order("p", table, None) is table
    assert in_class_order("p", table, ["x", "y", "z"]) is table  # columns of something else
    numbered = pd.DataFrame([[.1, .9]])
    assert in_class_order("p", numbered, [1, 0]) is numbered
    assert in_class_order("p", WANT, ["a"]) is WANT
    for vocab,said in ((["a", "b"], "p has the column 'c'"), (list("abcd"), "p has no column 'd'")):
        with pytest.raises(LabelKitError, match=said): in_class_order("p", table, vocab)
