"""What was once written with an old name still works and says the new one, or says what to do."""
import subprocess
import sys
import warnings
from importlib import import_module

import pytest

from labelkit._moved import GONE, NAMES, PLACES, Several


@pytest.mark.parametrize("old", PLACES)
def test_an_old_name_gives_the_new_module(old):
    """One warning at the first import, none later; the same objects, so that `isinstance`, patches
    and pickles agree"""
    sys.modules.pop(old, None)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        got = import_module(old)
        import_module(old)
    told = [str(w.message) for w in said if str(w.message).startswith(old)]
    assert len(told) == 1 and all(new in told[0] for new in PLACES[old])
    for new in map(import_module, PLACES[old]):
        for name in new.__all__: assert getattr(got, name) is getattr(new, name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"): _ = got.nothing


@pytest.mark.parametrize("module,old", [(m, o) for m, names in NAMES.items() for o in names])
def test_an_old_name_in_a_module(module, old):
    place,new = NAMES[module][old]
    with pytest.warns(DeprecationWarning, match=f"{module}.{old} is now {place}.{new}") as said:
        got = getattr(import_module(module), old)
    assert got is getattr(import_module(place), new)
    assert [w.filename for w in said] == [__file__]
    assert old not in vars(import_module(module)), "it is there: no old name"
    assert new in import_module(place).__all__


@pytest.mark.parametrize("module,old", [(m, o) for m, names in GONE.items() for o in names])
def test_what_is_gone_says_what_to_use(module, old):
    with pytest.raises(ImportError, match=f"{module}.{old} is `"):
        exec(f"from {module} import {old}")


def test_bases_say_their_new_names():
    import labelkit.all as lk
    for module,old in [("mix", "Mix"), ("pseudo", "PseudoLabel"), ("relabel", "Relabel"),
                       ("distill", "Distill")]:
        with pytest.raises(ImportError, match=f"is `{old}`"):
            exec(f"from labelkit.{module}.base import {old}Callback")
        assert hasattr(lk, old)


def test_a_misspelt_name_is_no_old_one():
    for module in {*NAMES, *GONE}:
        with pytest.raises(ImportError, match="cannot import name 'digit'"):
            exec(f"from {module} import digit")
        assert not hasattr(import_module(module), "__path__")


def test_the_warning_points_at_the_line_that_imports(tmp_path):
    script = tmp_path/"old.py"
    script.write_text(
        "import labelkit.core.errors\n"
        "from labelkit.core.models import small_cnn\n"
        "from labelkit.data.loaders import digits\n"
    )
    run = subprocess.run(
        [sys.executable, "-W", "always", str(script)], capture_output=True, text=True, check=True
    )
    assert f"{script}:1: DeprecationWarning" in run.stderr
    assert f"{script}:2: DeprecationWarning" in run.stderr
    assert f"{script}:3: DeprecationWarning" in run.stderr


def test_a_module_that_was_split():
    errors = import_module("labelkit.errors")
    processes = import_module("labelkit.processes")
    old = Several("labelkit.old", [errors, processes])
    assert old.LabelKitError is errors.LabelKitError and old.gather_rows is processes.gather_rows
    assert {"LabelKitError", "gather_rows"} <= set(dir(old))
    space = {}
    sys.modules["labelkit.old"] = old
    try: exec("from labelkit.old import *", space)
    finally: del sys.modules["labelkit.old"]
    assert space["gather_rows"] is processes.gather_rows


def test_what_never_was_is_not_found():
    with pytest.raises(ModuleNotFoundError): import_module("labelkit.core.nothing")
