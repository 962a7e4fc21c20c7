"Every defect of `scripts/planted.py` still finds its place, and the tests that should notice"
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def defects():
    spec = spec_from_file_location("planted", ROOT/"scripts/planted.py")
    planted = module_from_spec(spec)
    spec.loader.exec_module(planted)
    return planted.DEFECTS


@pytest.mark.parametrize("name,file,old,new,tests", defects(), ids=lambda o: o[:30])
def test_a_defect_finds_its_place(name, file, old, new, tests):
    text = (ROOT/file).read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{file} has it {text.count(old)} times: the first is planted"
    assert old != new
    files = tests.split(" -k ")[0].split()
    assert files and all((ROOT/o).is_file() for o in files)
    compile(text.replace(old, new), file, "exec")
