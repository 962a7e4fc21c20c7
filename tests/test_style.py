"""The project keeps to its style, and the check finds what it is for."""
import json
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


def test_files_are_those_of_git(root):
    found = style.files()
    assert root/"labelkit"/"__init__.py" in found and root/"nbs"/"all.ipynb" in found
    assert not [p for p in found if ".venv" in p.parts or "_build" in p.parts]
