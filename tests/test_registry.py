"""What holds for the code of every technique: its defaults are those that were decided on, and no
argument is without effect."""
import ast
import inspect
import json
import textwrap
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

import pytest

import labelkit.all  # (registers every technique)
from labelkit.core.supervision import LabelCallback
from labelkit.core.technique import registry

SLUGS = sorted(k for k,c in registry.items() if c.cls.__module__.startswith("labelkit."))
DEFAULTS = Path(__file__).parent/"reference"/"defaults.json"


def told(v):
    "A default as JSON holds it: plain values as they are, the rest in words"
    if isinstance(v, (tuple, list)): return [told(o) for o in v]
    if v is None or isinstance(v, (bool, int, float, str)): return v
    return getattr(v, "__name__", type(v).__name__)


def defaults(slug):
    parameters = registry[slug].cls.parameters()
    return {k: told(p.default) for k,p in parameters.items() if p.default is not p.empty}


def test_defaults_are_those_that_were_decided_on():
    "Who changes one writes it down: `python tests/test_registry.py`, and proves the claim again"
    written = json.loads(DEFAULTS.read_text())
    assert {k: written.get(k) for k in SLUGS} == {k: defaults(k) for k in SLUGS}
    assert sorted(written) == SLUGS, "of a technique that is gone"


@cache
def parsed(o): return ast.parse(textwrap.dedent(inspect.getsource(o)))


def reads_of(tree)->set:
    "Names of the attributes that code reads, as `self.alpha`, or `getattr(self, 'alpha')`"
    words = {o.value for o in ast.walk(tree) if isinstance(o, ast.Constant)}
    return words | {o.attr for o in ast.walk(tree)
                    if isinstance(o, ast.Attribute) and isinstance(o.ctx, ast.Load)}


def names_of(tree)->set:
    "Names of the variables that code reads"
    return {o.id for o in ast.walk(tree) if isinstance(o, ast.Name) and isinstance(o.ctx, ast.Load)}


def handed_on(init)->set:
    "Arguments that an `__init__` gives to something else under their names, as `to(size=size)`"
    keywords = {k.arg for o in ast.walk(init) if isinstance(o, ast.Call) for k in o.keywords
                if isinstance(k.value, ast.Name) and k.value.id == k.arg}
    return keywords - {"teacher"}  # that is kept


def ours(cls): return [c for c in cls.__mro__ if c.__module__.startswith("labelkit")]


@pytest.mark.parametrize("slug", SLUGS)
def test_every_argument_is_read(slug):
    "In a method, or in a function of the technique's module"
    cls = registry[slug].cls
    read = set()
    for c in ours(cls):
        for node in parsed(c).body[0].body:
            if not isinstance(node, ast.FunctionDef): continue
            read |= handed_on(node) if node.name == "__init__" else reads_of(node)
        if c is LabelCallback: break
        for node in parsed(import_module(c.__module__)).body:
            if not isinstance(node, ast.ClassDef): read |= reads_of(node)
    unread = set(cls.parameters()) - read
    assert not unread, f"{cls.__name__} takes {sorted(unread)} and never looks at it"


MODULES = sorted(o.name for o in walk_packages(labelkit.__path__, "labelkit.") if not o.ispkg)


@pytest.mark.parametrize("name", MODULES)
def test_every_argument_of_a_function_is_read(name):
    "But for what functions of one kind are all given: loaders for a claim's row, an operation's v"
    for node in parsed(import_module(name)).body:
        if not isinstance(node, ast.FunctionDef) or node.name.startswith(("_", "op_")): continue
        args = node.args
        given = {o.arg for o in (*args.posonlyargs, *args.args, *args.kwonlyargs)} - {"dls"}
        unread = given - set().union(*map(names_of, node.body))
        assert not unread, f"{node.name} never reads {sorted(unread)}"


if __name__ == "__main__":
    text = json.dumps({k: defaults(k) for k in SLUGS}, indent=1, sort_keys=True)
    DEFAULTS.write_text(text + "\n")
