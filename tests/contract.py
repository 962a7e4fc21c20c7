"""What the contract tests share: small real data, a way to build any registered technique, and the
exceptions by name and reason."""
import atexit, random, tempfile
from copy import deepcopy
from functools import cache

import torch
from fastai.basics import Callback, Learner, accuracy, set_seed
from fastai.callback.all import *  # noqa: F403  (patches no_bar, fit_one_cycle, … into Learner)
from sklearn.datasets import load_digits

import labelkit.all  # noqa: F401  (registers every technique)
from labelkit.data.loaders import from_arrays
from labelkit.models import small_cnn, small_vit
from labelkit.core.technique import registry

SLUGS = sorted(registry)

# Arguments under which a technique is sure to act within a few batches. A threshold of .95 is not
# reached by a network that has seen ten batches.
ACTIVE = {
    "laso": dict(joint=True),
    "intra_cluster_mixup": dict(n_clusters=3, alpha=1.),
    "co_teaching": dict(noise_rate=.4, ramp=0),
    "fixmatch": dict(threshold=0.),
    "flexmatch": dict(threshold=.15),
    "inpl": dict(energy_threshold=0.),
    "simmatchv2": dict(threshold=0.),
    "uda": dict(threshold=0.),
    "future_self_training": dict(threshold=0.),
    "iomatch": dict(threshold=0., open_threshold=0., warmup=0),
    "robust_active_distillation": dict(warmup=0., budget=.5),
    "self_training": dict(threshold=0.),
    "smmix": dict(switch=.8),
}
# Arguments that only make it faster; what it does stays the same.
QUICK = {
    "label_proportions": dict(steps=10),
    "confident_relabel": dict(folds=2, epochs=1),
    "self_training": dict(warmup=0., rounds=2),
}

# What a technique needs beside the plain digits: other arguments, loaders or another model, each
# made by a function.
NEEDED = {}  # slug -> function without arguments: keyword arguments
DATA = {     # slug -> function of the keyword arguments of `data`: loaders
    "label_proportions": lambda **kwargs: data(bag_size=4, **kwargs),
    "proportion_loss": lambda **kwargs: data(bag_size=4, **kwargs),
    "complementary_labels": lambda **kwargs: data(complementary=True, **kwargs),
}
MODEL = {    # slug -> function of the seed: a model
    "smmix": lambda seed=0: vit(seed),
}

# Techniques that cannot keep a rule, with the reason. The test of that rule is left out for them
# alone.
EXCEPTIONS:dict[tuple[str, str], str] = {}


def data(n=160, labeled=64, bs=16, ratio=2, seed=0, **kwargs):
    "160 real digits for training, 64 of them labeled, 40 for validation"
    x,y = load_digits(return_X_y=True)
    x = torch.as_tensor(x).float().view(-1,1,8,8)/16
    y = torch.as_tensor(y)
    kwargs = dict(vocab=[str(i) for i in range(10)], view_hints=dict(flip=False)) | kwargs
    return from_arrays(
        x[:n], y[:n], x[-40:], y[-40:], labeled=labeled, bs=bs, ratio=ratio, seed=seed, **kwargs
    )


def loaders(slug, **kwargs):
    "The small data, or those of technique `slug` where it needs others"
    return DATA.get(slug, data)(**kwargs)


def model(seed=0):
    torch.manual_seed(seed)
    return small_cnn(c=10, c_in=1, width=4)


def vit(seed=0):
    torch.manual_seed(seed)
    return small_vit(c=10, c_in=1, size=8, dim=16, depth=2)


@cache
def stored(maps):
    """A small store about the digits of `data`, in a folder that goes when the process ends: label
    maps, or augmented views"""
    from labelkit.storage.soft_labels import AugmentViews
    from labelkit.distill.dataset_reinforcement import reinforce
    from labelkit.relabel.relabel import label_map_store
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    x = data().train_ds.arrays.x
    if maps: return dict(store=label_map_store(folder.name+"/s", x, model(seed=9), progress=False))
    return dict(
        store=reinforce(
            folder.name + "/s",
            x,
            model(seed=9),
            AugmentViews(scale=(0.5, 1.0), flip=False),
            n_views=3,
            progress=False,
        )
    )


@cache
def corrected():
    """A label log of the digits of `data` in which every third labeled sample was corrected to the
    next class, and one has no label"""
    from labelkit.storage.label_log import LabelLog
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    dls = data()
    log = LabelLog(folder.name+"/labels.db", dls, author="test")
    ids = dls.train_ds.rows.cpu()[::3]
    log.edit(ids, (dls.given[ids]+1) % 10)
    log.edit(ids[0], None)
    return log

NEEDED["label_edits"] = lambda: dict(log=corrected())
# a log belongs to its samples, so always these
DATA["label_edits"] = lambda n=160, labeled=64, **kwargs: data(**kwargs)
NEEDED |= dict(relabel=lambda: stored(True), dataset_reinforcement=lambda: stored(False))


def build(slug, active=False, **kwargs):
    "The technique with its defaults, and what it needs"
    card = registry[slug]
    needed = dict(teacher=model(seed=9)) if "teacher" in card.needs else {}
    needed |= NEEDED.get(slug, dict)()
    return card.cls(
        **needed, **QUICK.get(slug, {}), **(ACTIVE.get(slug, {}) if active else {}) | kwargs
    )


def learner(cbs=(), dls=None, seed=3, slug=None, **kwargs):
    "A seeded learner on the small data, those of technique `slug` where it needs others"
    set_seed(seed, reproducible=True)
    random.seed(seed)
    dls = dls or loaders(slug)
    return Learner(dls, MODEL.get(slug, model)(seed), metrics=accuracy, cbs=list(cbs), **kwargs)


def fit(learn, epochs=1, cbs=(), seed=3):
    set_seed(seed)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, 3e-3, cbs=list(cbs))
    return learn


def weights(learn): return {k: v.clone() for k,v in learn.model.state_dict().items()}
def same(a, b): return all(torch.equal(a[k], b[k]) for k in a)


class Raise(Callback):
    "Raise `error` in `event` of the second training batch, after all other callbacks"
    order = 1000
    def __init__(self, event, error):
        self.event = event
        self.error = error
    def _hit(self, event):
        if event == self.event and self.training and self.iter == 1: raise self.error()
for _e in ("before_batch", "after_pred", "after_loss", "after_step", "after_batch"):
    setattr(Raise, _e, lambda self, _e=_e: self._hit(_e))


class Drawn(Callback):
    "Keep the batch as the loader gave it"
    order = -50
    def before_batch(self):
        if self.training: self.batch = [o.clone() for o in (*self.xb, *self.yb)]


def copy(o): return deepcopy(o)


# Techniques that read a label as the class of the sample, and would learn the opposite from a
# complementary one.
READS_LABELS = {
    "co_teaching",
    "confident_relabel",
    "label_edits",
    "mdcs",
    "metrix",
    "weak_supervision",
    "simmatchv2",
    "smmix",
    "laso",
    "weak_to_strong",
}


def cannot_compose(a, b):
    "Why techniques `a` and `b` cannot work in one fit, or an empty string"
    both = {a, b}
    if (
        a in DATA
        and b in DATA
        and DATA[a] is not DATA[b]
        and not both <= {"label_proportions", "proportion_loss"}
    ):
        return f"{a} and {b} need different data: labels of one kind are not labels of the other"
    if both & {"label_proportions", "proportion_loss"} and (
        other := both - {"label_proportions", "proportion_loss"}
    ):
        if any("ids" in registry[o].needs and registry[o].family == "relabel" for o in other):
            return f"{', '.join(other)} corrects given labels, and in a bag nobody has one"
        if any("unlabeled" in registry[o].needs for o in other):
            return f"{', '.join(other)} needs labeled and unlabeled samples side by side; in bags there are only shares"
    if "complementary_labels" in both and (other := both & READS_LABELS):
        return f"{', '.join(other)} reads a label as what the sample is; a complementary one says what it is not"
    return ""


def pair_loaders(a, b):
    "The small data that both need"
    return loaders(a if a in DATA else b)
