"""What the contract tests share: small real data, and a way to build any registered technique.

What a technique needs, and what shows it at work, is on its card; there are no lists by name here.
"""
import atexit, random, tempfile
from copy import deepcopy

import torch
from fastai.basics import Callback, Learner, accuracy, set_seed
from fastai.callback.all import *  # (patches no_bar, fit_one_cycle, … into Learner)
from sklearn.datasets import load_digits
from torch import nn

import labelkit.all  # noqa: F401  (registers every technique)
from labelkit.core.technique import registry
from labelkit.data.loaders import from_arrays
from labelkit.models import small_cnn, small_vit

SLUGS = sorted(registry)

# on a GPU "the same numbers" means those of deterministic kernels, where there are some
if torch.cuda.is_available(): torch.use_deterministic_algorithms(True, warn_only=True)

# Techniques that cannot keep a rule, with the reason. The test of that rule is left out for them
# alone.
EXCEPTIONS:dict[tuple[str, str], str] = {
    ("prockd", "test_what_is_missing_is_said"): "its teacher may know any classes",
    ("spl", "test_loss_reaches_the_weights"): (
        "one epoch is its pre-training, which has a head of its own and leaves the model's alone"
    ),
}


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
    "The small data, in the setting that technique `slug` is for"
    return data(**(registry[slug].data if slug else {}) | kwargs)


def model(seed=0):
    torch.manual_seed(seed)
    return small_cnn(c=10, c_in=1, width=4)


def vit(seed=0):
    torch.manual_seed(seed)
    return small_vit(c=10, c_in=1, size=8, dim=16, depth=2)


def with_dropout(seed=0):
    "A model that draws from the global stream while it trains"
    net = model(seed)
    net.body.append(nn.Dropout2d(.2))
    return net


# Techniques that need another model than the small convolutional one
MODEL = {slug: vit for slug,card in registry.items() if card.model == "small_vit"}


def build(slug, active=False, dls=None, **kwargs):
    "The technique as its card shows it, with what it needs, made for `dls`"
    card = registry[slug]
    needed = dict(teacher=model(seed=9)) if "teacher" in card.needs else {}
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    dls = (dls or loaders(slug)) if card.makes else None
    return card.cls(**needed | card.arguments(dls, folder.name + "/made", active) | kwargs)


def learner(cbs=(), dls=None, seed=3, slug=None, make=None, **kwargs):
    "A seeded learner on the small data, those of technique `slug` where it needs others"
    set_seed(seed, reproducible=True)
    random.seed(seed)
    dls = dls or loaders(slug)
    make = make or MODEL.get(slug, model)
    return Learner(dls, make(seed), metrics=accuracy, cbs=list(cbs), **kwargs)


def fit(learn, epochs=1, cbs=(), seed=3):
    set_seed(seed)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, 3e-3, cbs=list(cbs))
    return learn


def weights(learn): return {k: v.cpu().clone() for k,v in learn.model.state_dict().items()}
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


def cannot_compose(a, b):
    "Why techniques `a` and `b` cannot work in one fit, or an empty string"
    for one,other in ((registry[a], registry[b]), (registry[b], registry[a])):
        if other.slug in one.clashes: return one.clashes[other.slug]
        if not one.data: continue
        if other.data and other.data != one.data:
            return f"{a} and {b} need different data: labels of one kind are none of the other"
        if "bag_size" in one.data and not other.data:
            if "ids" in other.needs and other.family == "relabel":
                return f"{other.slug} corrects given labels, and in a bag nobody has one"
            if "unlabeled" in other.needs:
                return f"{other.slug} needs labeled and unlabeled samples side by side, not bags"
        if "complementary" in one.data and other.reads == "class":
            return f"{other.slug} reads a label as what the sample is; here it says what it is not"
    return ""


def pair_loaders(a, b):
    "The small data that both need"
    return loaders(a if registry[a].data else b)
