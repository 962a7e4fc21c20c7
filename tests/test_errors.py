"Paths in each of their spellings, and files that are whole or not there"
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from labelkit.errors import (
    LabelKitError, atomic_path, check_range, check_whole, is_url, local_path,
)

HOME = os.path.expanduser("~")


@pytest.mark.parametrize(
    "spelling,place",
    [
        ("~/a.db", f"{HOME}/a.db"),
        (Path("~/a.db"), f"{HOME}/a.db"),
        ("~", HOME),
        ("~nobody-is-called-so/a.db", "./~nobody-is-called-so/a.db"),
        ("~$lock.db", "./~$lock.db"),
        ("a~b.db", "./a~b.db"),
        ("rel/a.db", "./rel/a.db"),
        ("./a.db", "./a.db"),
        ("/x/a b #1 50%?.db", "/x/a b #1 50%?.db"),
        ("/x/%20.db", "/x/%20.db"),
        ("file:///x/a%20b%231.db", "/x/a b#1.db"),
        ("FILE:///x/a.db", "/x/a.db"),
        ("file://localhost/x/a.db", "/x/a.db"),
        ("file:/x/a.db", "/x/a.db"),
        ("local:///x/a.db", "/x/a.db"),
        ("file://~/a.db", f"{HOME}/a.db"),
        (Path("file:///x/a.db"), "/x/a.db"),
        ("run::7.db", "./run::7.db"),
        ("10:30.db", "./10:30.db"),
        ("file:name.db", "./file:name.db"),
        (Path("mine:/x"), "./mine:/x"),
        ("/x/back\\slash.db", "/x/back\\slash.db"),
    ],
    ids=str,
)
def test_local_path(spelling, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert local_path(spelling) == Path(place.replace("./", f"{tmp_path}/", 1))


@pytest.mark.parametrize(
    "spelling,said",
    [
        ("s3://bucket/a.db", "dir='s3://bucket/a.db' is a URL"),
        ("https://host/a.db", "is a URL"),
        ("simplecache::s3://bucket/a.db", "is a URL"),
        (Path("s3://bucket/a.db"), "dir='s3:/bucket/a.db' is a URL"),
        ("C:\\data\\a.db", "is a path of Windows"),
        ("C:/data/a.db", "is a path of Windows"),
        ("\\\\server\\share\\a.db", "is a path of Windows"),
        ("a\0b", "zero character"),
        (b"/x/a.db", "is no path"),
        (3, "dir=3 is no path"),
        (None, "dir=None is no path"),
    ],
    ids=str,
)
def test_what_is_no_local_path(spelling, said):
    with pytest.raises(LabelKitError) as e: local_path(spelling, "dir")
    assert said in str(e.value)


def test_urls():
    assert all(map(is_url, ("s3://b/x", "memory://x", "simplecache::https://h/x", "abfss://c@a/x")))
    assert not any(map(is_url, ("file:///x", "/x", "~/x", "a::b", "C:/x", Path("/x"), 3)))


class TestAtomicPath:
    def test_whole_or_the_old_one(self, tmp_path):
        (tmp_path/"f").write_text("old")
        def half():
            with atomic_path(tmp_path/"f") as tmp:
                tmp.write_text("half")
                raise RuntimeError
        with pytest.raises(RuntimeError): half()
        assert (tmp_path/"f").read_text() == "old"
        with atomic_path(f"file://{tmp_path}/new/f") as tmp: tmp.write_text("new")
        assert (tmp_path/"new/f").read_text() == "new"
        assert sorted(p.name for p in tmp_path.rglob("*")) == ["f", "f", "new"]

    def test_home(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        with atomic_path("~/f") as tmp: tmp.write_text("x")
        assert (tmp_path/"f").exists()

    def test_a_link_stays_a_link(self, tmp_path):
        (tmp_path/"disk").mkdir()
        (tmp_path/"link").symlink_to(tmp_path/"disk/f")
        with atomic_path(tmp_path/"link") as tmp: tmp.write_text("x")
        assert (tmp_path/"link").is_symlink() and (tmp_path/"disk/f").read_text() == "x"

    def test_the_longest_name(self, tmp_path):
        name = "é"*127
        with atomic_path(tmp_path/name) as tmp: tmp.write_text("x")
        assert [p.name for p in tmp_path.iterdir()] == [name]

    def test_places_that_cannot_be_written(self, tmp_path):
        (tmp_path/"f").touch()
        for place, said in ((tmp_path/"f/g", "cannot be written"), (tmp_path, "is a folder")):
            with pytest.raises(LabelKitError, match=said), atomic_path(place) as tmp:
                tmp.write_text("x")


def test_range():
    assert check_range("a", 1, 1) == 1
    for bad in (0, True, "1", float("nan"), None):
        with pytest.raises(LabelKitError, match="a=.* is not a number at least 1"):
            check_range("a", bad, 1)


@pytest.mark.parametrize("value", [1, 1., np.float32(1), np.int64(1), np.uint8(1), Fraction(2, 2)])
def test_numbers_of_every_kind(value):
    got = check_range("weight", value, 0, 1)
    assert type(got) in (int, float) and got == 1
    assert type(check_whole("bs", value, 1) if hasattr(value, "__index__") else 1) is int


@pytest.mark.parametrize("value", [True, "1", None, float("nan"), np.float32("nan"), 2, [1]])
def test_what_is_no_number_in_the_range(value):
    with pytest.raises(LabelKitError, match="weight=.* is not a number between 0 and 1"):
        check_range("weight", value, 0, 1)


@pytest.mark.parametrize("value,said", [
    (0, "bs=0 is not a number at least 1"), (1.5, "bs=1.5 is not a whole number"),
    (True, "bs=True is not a whole number"), ("8", "bs='8' is not a whole number"),
])
def test_what_is_no_whole_number(value, said):
    with pytest.raises(LabelKitError, match=said): check_whole("bs", value, 1)
    assert check_whole("bs", 8.) == 8 and check_whole("seed", -3) == -3
