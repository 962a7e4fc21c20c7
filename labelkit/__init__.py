"""Learn and use techniques that change a classifier's labels, each one fastai callback.

Every name of `labelkit.all` is an attribute of the package, loaded when it is first used."""
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from . import _moved

__version__ = "0.1.0"

_moved.install()


@cache
def _places():
    "The module of each public name: `labelkit.all` consists of imports, which are read, not run"
    import ast
    from pathlib import Path
    text = (Path(__file__).parent/"all.py").read_text(encoding="utf-8")
    imports = (n for n in ast.parse(text).body if isinstance(n, ast.ImportFrom))
    return {alias.name: n.module for n in imports for alias in n.names}


if TYPE_CHECKING: from .all import *  # what editors and type checkers see
else:
    def __getattr__(name):
        if name == "__all__": return list(_places())
        if not name.startswith("__") and (module := _places().get(name)):
            return getattr(import_module(module), name)
        raise AttributeError(f"module 'labelkit' has no attribute {name!r}")


def __dir__(): return sorted({*globals(), *_places()})
