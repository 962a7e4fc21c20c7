"""The project keeps to its style, and the check finds what it is for."""
import ast
import json
import statistics
import subprocess
import sys

import pytest

import style


@pytest.mark.parametrize("code", [
    "a, b = 1, 2",
    "a, b = x, f(y)",
    "[a, b] = [1, 2]",
    "self.a, self.b = a, b",
    "class A:\n    order, run_valid = 5, False",
    "def f():\n    if x: a, b = 1, 2",
    "a, (b, c) = 1, pair",
    "a, *b = 1, 2, 3",
    "x[0], x[1] = 1, 2",
])
def test_packed(code): assert len(style.packed(code)) == 1


@pytest.mark.parametrize("code", [
    "a, b = b, a",
    "a, b = b, a + b",
    "x[i], x[j] = x[j], x[i]",
    "self.a, b = b, self.a",
    "x, y = batch",
    "(a, b), c = f(x)",
    "a = b = 0",
    "a = 1, 2",
    "a, = [1]",
    "for a, b in zip(x, y): ...",
    "f(a=1, b=2)",
    "with open(p) as a, open(q) as b: ...",
])
def test_not_packed(code): assert not style.packed(code)


def test_notebooks_are_read_by_cell(tmp_path):
    cells = [
        dict(cell_type="markdown", source="a, b = 1, 2"),
        dict(cell_type="code", source=["a = 1\n", "b = 2\n", "a, b = 1, 2"]),
        dict(cell_type="code", source="%matplotlib inline\na, b = 1, 2"),
        dict(cell_type="code", source="!ls"),
    ]
    path = tmp_path/"a.ipynb"
    path.write_text(json.dumps(dict(cells=cells)))
    assert style.code_cells(path) == ["a = 1\nb = 2\na, b = 1, 2"]
    run = subprocess.run(
        [sys.executable, style.__file__, str(path)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert "a.ipynb: code cell 0, line 3: one assignment a line: a, b = " in run.stderr


def test_long_lines_of_a_script_are_named(tmp_path):
    path = tmp_path/"a.js"
    path.write_text("é"*100 + "\n" + "a"*101 + "\n", encoding="utf-8")
    assert style.long_lines(path) == [f"{path}: line 2: 101 characters, at most 100"]


def test_the_project_keeps_to_it(root):
    for cmd in (["-m", "ruff", "check", "--output-format", "concise", "."], [style.__file__]):
        run = subprocess.run(
            [sys.executable, *cmd], cwd=root, capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stdout + run.stderr


def test_no_line_of_the_package_is_wider_than_the_sites_column(root):
    "Generated lines too; ruff lets a line pass that ends with an address"
    wide = [
        f"{p.relative_to(root)}:{i}"
        for p in sorted((root/"labelkit").rglob("*.py"))
        for i, line in enumerate(p.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > 100
    ]
    assert not wide


LONGEST = 79  # lines of a technique's class, from its decorator to its end
MEDIAN = 60


def technique_lines(code):
    "Name of each technique's class in a module, and its lines"
    def registers(d): return isinstance(d, ast.Call) and getattr(d.func, "id", "") == "technique"
    classes = [o for o in ast.parse(code).body if isinstance(o, ast.ClassDef)]
    found = [o for o in classes if any(map(registers, o.decorator_list))]
    return {o.name: o.end_lineno - o.decorator_list[0].lineno + 1 for o in found}


def test_lines_are_counted_from_the_decorator_to_the_end():
    code = 'X = 1\n@technique(\n    "a",\n)\nclass A(B):\n    "Does"\n\n    x = 1\n\nclass C: y = 1'
    assert technique_lines(code) == {"A": 7}


def test_no_technique_is_long(root):
    "What grows is a function beside the class, or a part: see CONTRIBUTING.md"
    lines = {}
    for p in (root/"labelkit").rglob("*.py"): lines |= technique_lines(p.read_text("utf-8"))
    assert len(lines) >= 74
    long = {k: n for k, n in lines.items() if n > LONGEST}
    assert not long
    assert statistics.median(lines.values()) <= MEDIAN


def test_files_are_those_of_git(root):
    found = style.files()
    assert root/"labelkit"/"__init__.py" in found and root/"nbs"/"all.ipynb" in found
    assert not [p for p in found if ".venv" in p.parts or "_build" in p.parts]
