"""Which techniques a run tests whole: those that changed, those that import what changed, a share
of the rest, and all where nothing is known."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import chosen
from chosen import SHARES, choose, git, graph, told

HERE = Path(__file__).parent
MODULES = {
    "core/step": "from ..errors import E",
    "core/part": "",
    "errors": "E = 1",
    "explore/look": "",
    "mix/base": "from ..core import step",
    "mix/a": "from .base import E\n\n@technique('a')\nclass A:\n    def explore(self):\n"
             "        from labelkit.explore.look import x",
    "mix/b": "from .base import E\n\n@technique('b')\nclass B:\n    def f(self):\n"
             "        import labelkit.core.part",
    "relabel/c": "from labelkit.core.part import x\n\n@technique('c')\nclass C: ...",
    **{f"mix/t{i}": f"@technique('t{i}')\nclass T: ..." for i in range(2*SHARES)},
}
CONTRACT = "import labelkit.all\nfrom labelkit.core.part import x\nfrom labelkit.mix.a import A\n"


def commit(root, message="more"):
    run = lambda *args: subprocess.run(["git", *args], cwd=root, check=True, capture_output=True)
    run("add", "-A")
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    run(*who, "commit", "-qm", message)


def put(root, path, text):
    (root/path).parent.mkdir(parents=True, exist_ok=True)
    (root/path).write_text(text)


@pytest.fixture
def project(tmp_path, monkeypatch):
    "A small package of techniques in a repository with two commits; nothing changed since"
    monkeypatch.delenv("LABELKIT_BASE", raising=False)
    for name in [n for n in os.environ if n.startswith("GIT_")]: monkeypatch.delenv(name)
    for name, text in MODULES.items(): put(tmp_path, f"labelkit/{name}.py", text + "\n")
    put(tmp_path, "tests/test_contract.py", "import labelkit.errors\n")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    commit(tmp_path)
    put(tmp_path, "README.md", "words")
    commit(tmp_path)
    yield tmp_path
    graph.cache_clear()


def changed(root):
    graph.cache_clear()
    return {slug for slug, why in choose(root).items() if why.startswith("changed")}


@pytest.mark.parametrize("file,want", [
    ("labelkit/mix/a.py", {"a"}),
    ("labelkit/mix/base.py", {"a", "b"}),
    ("labelkit/core/step.py", {"a", "b"}),
    ("labelkit/core/part.py", {"b", "c"}),       # inside a function, and at the top
    ("labelkit/explore/look.py", set()),         # looks at what a technique did
    ("labelkit/mix/new.py", {"new"}),            # not yet known to git
    ("nbs/relabel/c.ipynb", {"c"}),
    ("nbs/core/step.ipynb", set()),
    ("docs/a.md", set()),
])
def test_what_changed_and_what_imports_it(project, file, want):
    put(project, file, MODULES.get(file[9:-3], "@technique('new')\nclass N: ...") + "\n# changed\n")
    assert changed(project) == want
    commit(project)
    assert changed(project) == want, "against the commit before"
    put(project, "README.md", "other words")
    commit(project)
    assert changed(project) == set()


@pytest.mark.parametrize("file", ["labelkit/errors.py", *sorted(chosen.EVERYTHING)])
def test_what_everything_rests_on(project, file):
    "The contract's own tests import it, or are it"
    put(project, file, "E = 2\n")
    graph.cache_clear()
    assert len(choose(project)) == len(graph(project)[1])


def test_a_technique_beside_others_is_not_what_they_rest_on(project):
    put(project, "tests/contract.py", CONTRACT)
    commit(project)
    put(project, "README.md", "other words")
    commit(project)
    put(project, "labelkit/mix/a.py", MODULES["mix/a"] + "\n# changed\n")
    assert changed(project) == {"a"}
    put(project, "labelkit/core/part.py", "# changed\n")
    assert changed(project) == set(graph(project)[1])


def test_another_commit_chooses_another_share(project, monkeypatch):
    "Each share is about as large as the others, and together they are all"
    slugs = set(graph(project)[1])
    monkeypatch.setenv("LABELKIT_BASE", "HEAD")
    real = git(project, "rev-parse", "HEAD")[0]
    shares = []
    for i in range(SHARES):
        head = lambda root, *args, i=i: (
            [f"{i:040x}"] if args == ("rev-parse", "HEAD") else git(root, *args)
        )
        with monkeypatch.context() as m:
            m.setattr(chosen, "git", head)
            shares.append(set(choose(project)))
    assert set().union(*shares) == slugs and sum(map(len, shares)) == len(slugs)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert set(choose(project)) == shares[int(real, 16) % SHARES]


def test_all_where_nothing_is_known(project, tmp_path, monkeypatch):
    slugs = sorted(graph(project)[1])
    assert list(choose(project, everything=True)) == slugs
    monkeypatch.setenv("LABELKIT_BASE", "f"*40)
    assert list(choose(project)) == slugs
    monkeypatch.delenv("LABELKIT_BASE")
    shallow = tmp_path/"shallow"
    url = project.as_uri()
    subprocess.run(["git", "clone", "-q", "--depth", "1", url, str(shallow)], check=True)
    assert list(choose(shallow)) == slugs
    shutil.rmtree(project/".git")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert list(choose(project)) == slugs
    monkeypatch.setenv("PATH", "")
    assert list(choose(project)) == slugs


def test_since_the_work_left_its_upstream(project, tmp_path):
    clone = tmp_path/"clone"
    subprocess.run(["git", "clone", "-q", str(project), str(clone)], check=True)
    for name in ("a", "b"):
        put(clone, f"labelkit/mix/{name}.py", MODULES[f"mix/{name}"] + "\n# changed\n")
        commit(clone)
    assert changed(clone) == {"a", "b"}


def test_it_is_said():
    assert told({"a": "x", "b": "x"}, 2) == "whole for all 2 techniques"
    said = told({"a": "changed since 1", "b": "the share of 2", "c": "changed since 1"}, 9)
    assert "whole for 3 of 9 techniques: a, c (changed since 1); b (the share of 2)" in said
    assert "ALL=1" in said


TESTS = '''
import pytest
from chosen import graph
from conftest import ROOT

@pytest.fixture(params=sorted(graph(ROOT)[1]))
def slug(request): return request.param

@pytest.mark.full
@pytest.mark.parametrize("other", [1, 2])
def test_whole(slug, other): ...

def test_quick(slug): ...

@pytest.mark.full
def test_of_no_technique(): ...
'''


@pytest.mark.parametrize("workers", [[], ["-n", "2"]])
def test_a_run_takes_the_chosen_and_says_so(project, workers):
    for name in ("conftest.py", "chosen.py"): shutil.copy(HERE/name, project/"tests")
    put(project, "tests/test_contract.py", TESTS)
    put(project, "pytest.ini", "[pytest]\npythonpath=tests\n")
    commit(project)
    put(project, "labelkit/mix/a.py", MODULES["mix/a"] + "\n# changed\n")
    commit(project)
    graph.cache_clear()
    n = len(graph(project)[1])
    whole = choose(project)
    assert "a" in whole and len(whole) < n

    def run(*args):
        cmd = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *workers, *args]
        return subprocess.run(cmd, cwd=project, capture_output=True, text=True, check=False).stdout
    said = run()
    assert f"{n + 1 + 2*len(whole)} passed" in said and told(whole, n) in said
    said = run("--whole")
    assert f"{3*n + 1} passed" in said and f"whole for all {n} techniques" in said
    assert f"{2*n} passed" in run("tests/test_contract.py::test_whole"), "what is asked for by name"
    assert f"{3*n} passed" in run("-k", "whole and not technique or quick")
