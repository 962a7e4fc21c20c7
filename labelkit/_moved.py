"""Modules that have moved keep their old names: importing one gives the new one, and one
DeprecationWarning."""
import sys
import warnings
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# old name -> where its contents are now
MOVED = {
    "core.corrupt": "data.settings",
    "core.data": "data.sets data.arrays data.containers data.loaders data.samples",
    "core.distributed": "processes",
    "core.errors": "errors",
    "core.labels": "storage.label_log",
    "core.ledger": "storage.ledger",
    "core.models": "models",
    "core.predict": "data.samples parts.rounds",
    "core.store": "storage.soft_labels storage.builder storage.stored_views",
    "core.views": "data.views",
    "explore.atlas": "atlas",
    "explore.cli": "cli config",
    "explore.compare": "evidence.compare evidence.runs evidence.describe",
    "explore.demo": "demo",
    "explore.report": "evidence.report",
}
PLACES = {
    f"labelkit.{old}": [f"labelkit.{o}" for o in new.split()] for old, new in MOVED.items()
}


class Several(ModuleType):
    "A module that was split: a name is looked up in each of the new ones"
    def __init__(self, name, new):
        super().__init__(name)
        self._new = new
        self.__all__ = [o for m in new for o in m.__all__]

    def __getattr__(self, name):
        for m in self._new:
            if hasattr(m, name): return getattr(m, name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")

    def __dir__(self): return sorted({*super().__dir__(), *self.__all__})


class Moved(MetaPathFinder, Loader):
    "Finds what no other finder has found under an old name"
    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self) if name in PLACES else None

    def create_module(self, spec):
        new = [import_module(o) for o in PLACES[spec.name]]
        return Several(spec.name, new)

    def exec_module(self, module):
        old = module.__name__
        new = module._new
        warnings.warn(
            f"{old} has moved: import from {' or '.join(m.__name__ for m in new)}",
            DeprecationWarning,
            stacklevel=2,
        )
        # one place: the old name is the new module itself, also for whoever patches it
        if len(new) == 1: sys.modules[old] = new[0]


def install():
    "Last of the finders, and once, also where labelkit is imported again"
    if not any(isinstance(f, Moved) for f in sys.meta_path): sys.meta_path.append(Moved())
