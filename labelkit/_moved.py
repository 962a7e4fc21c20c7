"""Old names go on: what was moved is found at its old place, with one DeprecationWarning; what is
gone says what to use instead."""
import sys
import warnings
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# old module -> where its contents are now
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

# module -> old names in it -> module and name now
RENAMED = {
    "core.supervision": {"dense_targets loss_name soft_target_loss unreduced": "core.losses"},
    "data.loaders": {"digits mnist fashion_mnist cifar10 cifar100 svhn stl10": "data.sets"},
    "models": {"Normalize": "models:InputNorm"},
    "pseudo.base": {"align_distribution": "parts.running"},
    "pseudo.self_training": {"round_epochs": "parts.rounds"},
    "pseudo.simmatchv2": {"normalize_features": "parts.heads"},
    "relabel.base": {
        "fresh_copy": "parts.peer",
        "given_labels": "data.samples",
        "out_of_fold stratified_folds": "parts.cross_validation",
    },
}
NAMES = {
    f"labelkit.{module}": {
        old: (f"labelkit.{new.partition(':')[0]}", new.partition(":")[2] or old)
        for names, new in table.items() for old in names.split()
    }
    for module, table in RENAMED.items()
}

_pair = "is `mix_pair` with a technique: mix_pair(CutMix(), x_a, x_b, lam, generator)"
# what has no equal under another name: what to do instead
GONE = {
    "labelkit.data.loaders": {"batch_ids": "is `ids_of` of labelkit.data.ids"},
    "labelkit.data.samples": {
        "unlabeled_in_order": "is `batches` of labelkit.data.samples.Samples(dls.unlabeled)",
        "unlabeled_inputs": "is `inputs` of labelkit.data.samples.Samples(dls.unlabeled)",
    },
    "labelkit.distill.base": {"DistillCallback": "is `Distill`: override `distill_loss`"},
    "labelkit.explore.mix_explorer": dict.fromkeys(
        ["mixup_pair", "cutmix_pair", "resizemix_pair"], _pair
    ),
    "labelkit.mix.base": {"MixCallback": "is `Mix`, which draws a plan: override `plan_for`"},
    "labelkit.pseudo.base": {
        "PseudoLabelCallback": "is `PseudoLabel`: override `believe` (was `select`) and `teach` "
                               "(was `target`)",
        "new_ledger": "is `Ledger.of(dls)` of labelkit.storage.ledger",
    },
    "labelkit.relabel.base": {
        "RelabelCallback": "is `Relabel`: override `find`, which fills `self.table`",
        "sample_ids": "is `ids` of labelkit.data.samples.Samples(dls)",
        "load_rows": "is `inputs` of labelkit.data.samples.Samples(dls)",
    },
}


def old_name(module, name):
    """What was once called `name` in `module`; AttributeError for what never was. What is gone
    raises ImportError, as an AttributeError would not reach whoever imports the name"""
    if name in NAMES.get(module, ()):
        place,new = NAMES[module][name]
        warnings.warn(f"{module}.{name} is now {place}.{new}", DeprecationWarning, stacklevel=3)
        return getattr(import_module(place), new)
    if name in GONE.get(module, ()): raise ImportError(f"{module}.{name} {GONE[module][name]}")
    raise AttributeError(f"module {module!r} has no attribute {name!r}")


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


class OldNames(MetaPathFinder):
    """Gives modules their old names when they are loaded. They do not do it themselves: a
    `__getattr__` in a module would hide every misspelt name from type checkers"""
    def find_spec(self, name, path=None, target=None):
        if name not in NAMES and name not in GONE: return None
        others = (f for f in sys.meta_path if f is not self and hasattr(f, "find_spec"))
        spec = next(filter(None, (f.find_spec(name, path, target) for f in others)), None)
        if spec is None or spec.loader is None: return spec
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            module.__getattr__ = lambda old: old_name(name, old)
        spec.loader.exec_module = exec_module
        return spec


def install():
    "The first and the last of the finders, and once, also where labelkit is imported again"
    known = {type(f).__name__ for f in sys.meta_path}
    if "Moved" not in known: sys.meta_path.append(Moved())
    if "OldNames" not in known: sys.meta_path.insert(0, OldNames())
