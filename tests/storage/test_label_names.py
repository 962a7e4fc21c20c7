"Names in one Unicode form, and given labels in every common type, with gaps"
import unicodedata
from pathlib import PurePosixPath, PureWindowsPath

import numpy as np, pandas as pd, pytest, torch
from fastai.basics import DataLoader, DataLoaders

from labelkit.data.loaders import from_arrays, label_dls

from labelkit.data.sets import digits
from labelkit.errors import LabelKitError
from labelkit.storage.label_names import check_text, class_names, nfc, read_given, sample_keys

NAN = float("nan")
WORDS = ["cat", "dog"]
decomposed = lambda o: unicodedata.normalize("NFD", o)


@pytest.mark.parametrize("word", ["é", "Käse", "Ångström", "한국어", "ἀρχή", "が", "Việt"])
def test_one_form(word):
    assert decomposed(word) != word and nfc(decomposed(word)) == nfc(word) == word
    assert class_names([decomposed(word)]) == [word]
    with pytest.raises(LabelKitError, match="twice"): class_names([word, decomposed(word)])
    assert sample_keys([decomposed(word)+".png"], 1) == [word+".png"]
    with pytest.raises(LabelKitError, match="twice"): sample_keys([word, decomposed(word)], 2)


@pytest.mark.parametrize("a,b", [("fi", "ﬁ"), ("1", "①"), ("m2", "m²"), ("A", "Ａ"), ("ß", "ss")])
def test_other_letters_are_other_names(a, b):
    "Only the form is brought into one, not the letters"
    assert class_names([a, b]) == [a, b] and nfc(decomposed(b)) == b


def test_keys_of_paths_and_numbers():
    keys = [PurePosixPath("a/b.png"), PureWindowsPath(r"a\c.png"), 7, np.int64(8), np.str_("x")]
    assert sample_keys(keys, 5) == ["a/b.png", "a/c.png", "7", "8", "x"]
    for bad in ("", " ", "\ud800", "a\0b"):
        with pytest.raises(LabelKitError, match="keys="): sample_keys([bad], 1)


def test_names_stay_what_they_are():
    "Nothing is stripped, lowered or guessed"
    names = [" a", "a ", "A", "a", "", "1.0", "1", "01", "nan", "None", "-1", "a\tb"]
    assert class_names([o for o in names if o]) == [o for o in names if o]
    assert class_names([20, 10, 1.5, True]) == ["20", "10", "1.5", "True"]
    with pytest.raises(LabelKitError, match="vocab='' is not a text"): class_names([""])
    assert check_text("reason", "", empty=True) == ""


@pytest.mark.parametrize(
    "given",
    [
        ["cat", None, "dog"],
        ["cat", NAN, "dog"],
        np.array(["cat", None, "dog"], dtype=object),
        pd.Series(["cat", None, "dog"]),
        pd.Series(["cat", NAN, "dog"], dtype=object, index=[5, 5, 9]),
        pd.Series(["cat", pd.NA, "dog"], dtype="string"),
        pd.Categorical(["cat", None, "dog"]),
        pd.Series(["cat", None, "dog"], dtype="category"),
        pd.Index(["cat", None, "dog"]),
    ],
    ids=lambda o: f"{type(o).__name__} {getattr(o, 'dtype', '')}",
)
def test_words_with_a_gap(given):
    for vocab in (None, WORDS):
        names,y = read_given(given, vocab)
        assert names == WORDS and y.tolist() == [0, -1, 1] and y.dtype == torch.long
    assert read_given(given, ["dog", "cat"])[1].tolist() == [1, -1, 0]


@pytest.mark.parametrize(
    "given",
    [
        [0, -1, 1],
        [0, None, 1],
        [0., NAN, 1.],
        [*np.array([0, -1, 1])],
        [torch.tensor(0), torch.tensor(-1), torch.tensor(1)],
        np.array([0, -1, 1], dtype=np.int8),
        np.array([0, NAN, 1]),
        torch.tensor([0, -1, 1]),
        torch.tensor([0., NAN, 1.]),
        pd.Series([0, None, 1]),
        pd.Series([0, None, 1], dtype="Int64", index=[3, 2, 1]),
    ],
    ids=lambda o: f"{type(o).__name__} {getattr(o, 'dtype', '')}",
)
def test_numbers_with_a_gap(given):
    names,y = read_given(given, WORDS)
    assert names == WORDS and y.tolist() == [0, -1, 1]


def test_categories():
    "Names keep the order of their categories; of numbers they are the numbers"
    names,y = read_given(pd.Categorical(["b", None, "a"], ["c", "b", "a"]))
    assert names == ["c", "b", "a"] and y.tolist() == [1, -1, 2]
    assert read_given(pd.Categorical([1, None, 0]))[1].tolist() == [1, -1, 0]
    column = pd.Series([decomposed("ö"), "a"], dtype="category")
    assert read_given(column, ["ö", "a"])[1].tolist() == [0, 1]


def test_words_in_another_form_than_the_vocab():
    names,y = read_given([decomposed("Käse"), "Öl"], ["Öl", "Käse"])
    assert names == ["Öl", "Käse"] and y.tolist() == [1, 0]


def test_loaders():
    dls = digits(labeled=50)
    names,y = read_given(dls)
    assert names == [str(o) for o in dls.vocab] and torch.equal(y, dls.given)
    soft = from_arrays(torch.rand(4, 2), torch.eye(4), torch.rand(4, 2), torch.eye(4), kind="soft")
    with pytest.raises(LabelKitError, match="class number for each sample"): read_given(soft)


def test_own_loaders():
    items = [(torch.rand(3), torch.tensor(i % 2)) for i in range(6)]
    dls = label_dls(DataLoaders(DataLoader(items, bs=2, shuffle=True), DataLoader(items, bs=2)))
    assert read_given(dls)[1].tolist() == [0, 1]*3
    dls.vocab = [decomposed("ä"), "b"]
    assert read_given(dls)[0] == ["ä", "b"]


@pytest.mark.parametrize(
    "given,said",
    [
        ([0, 2], "sample 1 the label 2"),
        ([0, -2], "sample 1 the label -2"),
        ([0, .5], "data of sample 1 is 0.5"),
        (["cat", "cow"], "data of sample 1 is 'cow'"),
        (["cat", 1], "data of sample 1 is 1"),
        ([[0, 1]], "one class number for each sample"),
        (torch.eye(2), "one class number for each sample"),
        (pd.DataFrame(dict(y=[0], z=[1])), "one class number for each sample"),
        ("cat", "data has shape ()"),
        (dict(a="cat"), "data is {'a': 'cat'}"),
    ],
    ids=str,
)
def test_what_is_no_label(given, said):
    with pytest.raises(LabelKitError) as e: read_given(given, WORDS)
    assert said in str(e.value)
