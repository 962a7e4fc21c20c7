"What is said before the first run: names, numbers, places"
import math
from pathlib import Path

import numpy as np
import pytest

from labelkit.errors import LabelKitError
from labelkit.evidence.checks import check_writable, learning_rate, nearest, whole_number


def test_the_nearest_name_in_any_case():
    assert nearest("data", "digits", ("mnist", "digits")) == "digits"
    with pytest.raises(LabelKitError, match="data 'Digit' is unknown: did you mean digits?"):
        nearest("data", "Digit", ("mnist", "digits"))
    with pytest.raises(LabelKitError, match="did you mean FixMatch?"):
        nearest("technique", "fixmach", ("CutMix", "FixMatch"))
    with pytest.raises(LabelKitError, match="use one of mnist, digits"):
        nearest("data", "zzz", ("mnist", "digits"))
    with pytest.raises(LabelKitError, match="data 3 is unknown"): nearest("data", 3, ("mnist",))


@pytest.mark.parametrize("value", [1, 7, np.int64(3), np.uint8(3)])
def test_whole_numbers(value):
    got = whole_number("n", value)
    assert got == value and type(got) is int


@pytest.mark.parametrize("value", [0, -1, 1., 1.5, math.nan, True, np.bool_(True), "3", None, [3]])
def test_what_is_no_whole_number(value):
    with pytest.raises(LabelKitError, match="^n=.* is no whole number of at least 1"):
        whole_number("n", value)


def test_ends_of_whole_numbers():
    assert whole_number("port", 65535, 1, 65535) == 65535 and whole_number("s", -5, None) == -5
    with pytest.raises(LabelKitError, match="from 1 to 65535"):
        whole_number("port", 65536, 1, 65535)


@pytest.mark.parametrize(
    "value", [1e-3, 1, np.float64(.1), None, slice(1e-4, 1e-3), slice(1e-3), [.1, .2], np.ones(2)]
)
def test_learning_rates_that_fastai_takes(value):
    assert np.all(learning_rate("lr", value) == value)
    assert not isinstance(learning_rate("lr", value), np.generic)


@pytest.mark.parametrize(
    "value",
    [0, -.1, math.nan, math.inf, True, "1e-3", [], [.1, -1], slice(None), slice(0, 1), {}, len],
)
def test_learning_rates_that_nothing_learns_with(value):
    with pytest.raises(LabelKitError, match="^lr="): learning_rate("lr", value)


def test_places(tmp_path, monkeypatch):
    (tmp_path/"file").write_text("in the way")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert check_writable("~/new/x.json") == tmp_path/"new"/"x.json"
    assert check_writable(Path(tmp_path)/"file") == tmp_path/"file"
    for bad in (tmp_path/"file"/"x.json", tmp_path, "/", "", 3, "s3://bucket/x.json"):
        with pytest.raises(LabelKitError): check_writable(bad)
    assert [o.name for o in tmp_path.iterdir()] == ["file"]
