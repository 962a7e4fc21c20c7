"""Nothing heavy is imported before it is needed. (The seconds themselves are in benchmarks/.)"""
import json, subprocess, sys


def imported(statement, cwd):
    "Top-level modules in memory after `statement` in a new Python"
    code = f"{statement}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"
    res = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, timeout=300
    )
    assert res.returncode == 0, res.stderr
    return {m.split(".")[0] for m in json.loads(res.stdout.splitlines()[-1])}


def test_it_is_this_checkout(root, tmp_path):
    "Here, and in a process somewhere else"
    import labelkit
    code = "import labelkit; print(labelkit.__file__)"
    cmd = [sys.executable, "-c", code]
    there = subprocess.run(cmd, capture_output=True, text=True, cwd=tmp_path, check=True).stdout
    assert there.strip() == labelkit.__file__ == str(root/"labelkit"/"__init__.py")


HEAVY = set("torchvision cleanlab plotly pyarrow anywidget ipywidgets sphinx timm zarr".split())


def test_the_package_itself_imports_nothing(tmp_path):
    assert not imported("import labelkit", tmp_path) & (
        HEAVY | set("torch fastai numpy pandas matplotlib".split())
    )


def test_all_imports_nothing_heavy_beyond_fastai(tmp_path):
    "(pandas, which fastai imports, takes pyarrow along where that is installed)"
    fastai = imported("from fastai.basics import *; from fastai.callback.all import *", tmp_path)
    assert sorted((imported("from labelkit.all import *", tmp_path) - fastai) & HEAVY) == []
