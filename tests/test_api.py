"""The public names: what they hide, when they are loaded, and what tools see of them."""
import json
import re
import subprocess
import sys

import pytest

import labelkit
from export import all_module, literal_all, public_names, wrap_head

NAMES = labelkit.__all__
# the names of papers: fastai has callbacks called so, whose arguments ours take; torchvision has a
# transform
SHARED = {"MixUp", "CutMix", "RandAugment"}


def said(code, cwd):
    "What `code` prints as JSON in a new Python"
    cmd = [sys.executable, "-W", "ignore", "-c", f"import json\n{code}"]
    run = subprocess.run(cmd, capture_output=True, text=True, cwd=cwd, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_stars_hide_nothing_of_others(tmp_path):
    "fastai's stars, torchvision's modules and the builtins keep their names"
    code = """
import builtins, torch
from fastai.vision.all import *
from fastai.tabular.all import *
from fastai.text.all import *
from fastai.basics import *
from fastai.callback.all import *
taken = {*globals(), *dir(builtins), *torch.__all__}
import torchvision
from torchvision import datasets, io, models, ops, transforms, utils
from torchvision.transforms import v2
for m in (torchvision, datasets, io, models, ops, transforms, utils, v2):
    taken |= set(getattr(m, "__all__", None) or dir(m))
import labelkit
print(json.dumps(sorted(taken & set(labelkit.__all__))))
"""
    assert set(said(code, tmp_path)) == SHARED
    code = "from fastai.vision.all import *\nfrom labelkit.all import *\n"
    code += "print(json.dumps(Normalize.from_stats(*imagenet_stats).__module__))"
    assert said(code, tmp_path).startswith("fastai.")


def test_every_technique_is_public_and_little_else():
    import labelkit.all as lk
    from labelkit.core.technique import registry
    cards = {c.cls.__name__: c.cls for c in registry.values() if "labelkit." in c.cls.__module__}
    assert all(getattr(lk, name) is cls for name, cls in cards.items())
    assert sorted(NAMES) == sorted(lk.__all__) == sorted(set(lk.__all__))
    assert len(set(NAMES) - set(cards)) <= 75, "choose: what is public stays"


def test_no_public_name_is_a_module_of_the_package(root):
    "`labelkit.atlas` must be the same thing before and after somebody imports that module"
    modules = {p.stem for p in (root/"labelkit").iterdir() if p.suffix in ("", ".py")}
    assert not modules & set(NAMES)


def test_a_name_is_loaded_when_it_is_used(tmp_path):
    code = """
import sys, labelkit
before = [m for m in sys.modules if m.startswith("labelkit.")]
cls = labelkit.MixUp
from labelkit import CutMix
loaded = [m for m in ("mix.mixup", "mix.cutmix", "evidence.compare", "pseudo.fixmatch")
          if f"labelkit.{m}" in sys.modules]
import labelkit.all
print(json.dumps([before, loaded, cls is labelkit.all.MixUp and CutMix is labelkit.all.CutMix]))
"""
    before, loaded, same = said(code, tmp_path)
    assert before == ["labelkit._moved"] and same
    assert loaded == ["mix.mixup", "mix.cutmix"]


def test_attributes_of_the_package():
    assert set(NAMES) <= set(dir(labelkit)) and "__version__" in dir(labelkit)
    with pytest.raises(AttributeError, match="no attribute 'FixMach'"): _ = labelkit.FixMach
    with pytest.raises(ImportError, match="FixMach"): from labelkit import FixMach  # noqa: F401
    space = {}
    exec("from labelkit import *", space)
    assert set(NAMES) <= set(space)


# ---- what the export script writes

def test_long_heads_are_wrapped():
    words = " ".join(["word"]*30)
    names = [f"name_{i}" for i in range(30)]
    text = f'"""{words}"""\n\n# MADE\n\n__all__ = {names}\n\nx = """not\n\nme"""\n'
    got = wrap_head(text)
    assert max(map(len, got.splitlines())) <= 100
    space = {}
    exec(got, space)
    assert space["__all__"] == names and " ".join(space["__doc__"].split()) == words
    assert space["x"] == "not\n\nme" and wrap_head(got) == got
    assert wrap_head("x = 1\n") == "x = 1\n"


def test_public_names_are_looked_up():
    import ast
    sources = {
        "mix.a": "__all__ = ['f', 'g']",
        "mix.b": "__all__ = ['B']\n@technique('b')\nclass B: ...\n",
        "pseudo.a": "__all__ = ['f', 'h']",
    }
    modules = {k: ast.parse(v) for k, v in sources.items()}
    assert public_names({}, modules) == {"mix.b": ["B"]}
    want = {"mix.a": ["g"], "mix.b": ["B"], "pseudo.a": ["h"]}
    assert public_names({"x": "h g", "y": "B h"}, modules) == want
    with pytest.raises(SystemExit, match="k is in no module"): public_names({"x": "k"}, modules)
    with pytest.raises(SystemExit, match="f stands in mix.a and pseudo.a"):
        public_names({"x": "f"}, modules)


def test_all_py_is_literal(tmp_path):
    (tmp_path/"a.py").write_text("__all__ = ['f']\n")
    cells = [
        dict(cell_type="markdown", source="# All\n\n> Everything."),
        dict(cell_type="code", source="public = {'a': 'f'}"),
    ]
    assert all_module(dict(cells=cells), tmp_path).splitlines() == [
        '"""Everything."""',
        "",
        "# AUTOGENERATED! DO NOT EDIT! File to edit: ../nbs/all.ipynb.",
        "",
        "from labelkit.a import f",
        "",
        "__all__ = ['f']",
    ]
    assert literal_all([]) == "__all__ = []"


def test_the_notebooks_are_in_step(root):
    run = subprocess.run(
        [sys.executable, "scripts/export.py", "--check"], cwd=root, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr


# ---- what a type checker and an editor see

def readme_lines(root):
    "The README's Python, one block after the other"
    return re.findall(r"```python\n(.*?)```", (root/"README.md").read_text(encoding="utf-8"), re.S)


@pytest.fixture(scope="module")
def checked(root, tmp_path_factory):
    "basedpyright's report, by file: the README; each public name; lines that are wrong"
    work = tmp_path_factory.mktemp("types")
    (work/"readme.py").write_text("\n".join(readme_lines(root)))
    names = [f"reveal_type({n})\nreveal_type(labelkit.{n})" for n in NAMES]
    head = "import labelkit\nfrom labelkit.all import *\n"
    (work/"names.py").write_text(head + "\n".join(names))
    wrong = """
import labelkit
from labelkit.all import FixMatch, MixUp, compare, digits, small_cnn
from labelkit.all import FixMach
labelkit.FixMach
MixUp(alpha="a lot")
FixMatch(threshold=[.95])
small_cnn(wide=3)
compare()
""".strip()
    (work/"wrong.py").write_text(wrong)
    config = dict(
        include=[str(work)], extraPaths=[str(root)], typeCheckingMode="standard",
        reportWildcardImportFromLibrary="none", reportUnusedExpression="none",
    )
    (work/"pyrightconfig.json").write_text(json.dumps(config))
    cmd = [sys.executable, "-m", "basedpyright", "-p", str(work), "--outputjson"]
    cmd += ["--pythonpath", sys.executable]
    run = subprocess.run(cmd, capture_output=True, text=True, timeout=300, check=False)
    out = {}
    for d in json.loads(run.stdout)["generalDiagnostics"]:
        out.setdefault(d["file"].rsplit("/", 1)[-1], []).append(d)
    return out


def test_the_readme_passes_a_type_checker(checked, root):
    assert len(readme_lines(root)) >= 2
    assert not [d["message"] for d in checked.get("readme.py", [])]


def test_every_public_name_has_a_type(checked):
    "The same through the package and through the star; a function says what it returns"
    told = dict(re.findall(r'Type of "(.+?)" is "(.+)"', "\n".join(
        d["message"].replace("\n", " ") for d in checked["names.py"]
    )))
    assert set(told) == {*NAMES, *(f"labelkit.{n}" for n in NAMES)}
    for name in NAMES:
        assert told[name] == told[f"labelkit.{name}"]
        assert not told[name].startswith(("Unknown", "Any")), f"{name} is {told[name]}"
        assert not told[name].endswith("-> None"), f"{name} returns nothing that is known"


def test_a_type_checker_finds_what_is_wrong(checked):
    lines = sorted({d["range"]["start"]["line"] for d in checked["wrong.py"]})
    assert lines == list(range(2, 8)), checked["wrong.py"]


def test_an_editor_completes_without_running_anything(root):
    import jedi
    project = jedi.Project(root, environment_path=sys.prefix, sys_path=[str(root), *sys.path])
    script = lambda code: jedi.Script(code, project=project)
    complete = lambda code: [c.name for c in script(code).complete()]
    assert complete("import labelkit\nlabelkit.FixM") == ["FixMatch"]
    assert "MixUp" in complete("from labelkit import MixU")
    assert "save" in complete("from labelkit.all import *\ncompare({}, digits()).sa")
    assert "show_batch" in complete("import labelkit\nlabelkit.digits(labeled=40).show_b")
    signature, = script("from labelkit.all import *\nFixMatch(").get_signatures()
    assert "threshold" in {p.name for p in signature.params}


def test_a_notebook_completes_the_readmes_lines(root):
    "As JupyterLab does, with what the cells before have defined"
    import jedi
    space = {}
    first = next(b for b in readme_lines(root) if "Learner(" in b)
    exec(first.split("learn.fit")[0], space)
    complete = lambda code: [c.name for c in jedi.Interpreter(code, [space]).complete()]
    assert complete("FixM") == ["FixMatch"] and "small_cnn" in complete("Learner(dls, small_")
    assert "threshold=" in complete("FixMatch(thr") and "labeled=" in complete("digits(labe")
    assert "fit_one_cycle" in complete("learn.fit_on") and "show_batch" in complete("dls.show")
