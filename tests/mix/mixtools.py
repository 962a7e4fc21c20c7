"What the tests of the mixes share"
import json

import torch
from fastai.basics import Callback, CancelFitException, DataLoader, DataLoaders
from torch.nn import functional as F

from places import REFERENCES

REFERENCE = {e["name"]: e for e in json.loads((REFERENCES/"mixing_kinds.json").read_text())}

def hot(y, c=10): return F.one_hot(y, c).float()
def close(a, b, tol=1e-6): torch.testing.assert_close(a, b, atol=tol, rtol=1e-5)
def gen(seed=0): return torch.Generator().manual_seed(seed)


def own_loaders(*parts, bs=4, n_inp=1, c=None):
    "fastai's loaders of samples that consist of `parts`, [N, ...] each"
    items = list(zip(*parts))
    dls = DataLoaders(*(DataLoader(items, bs=bs) for _ in range(2)))
    for o in dls.loaders: o.n_inp = n_inp
    if c: dls.c = c
    return dls


class Keep(Callback):
    "The records of all training batches"
    order = 7
    def before_fit(self): self.seen = []
    def after_loss(self):
        if self.training: self.seen.append(self.learn.supervision.record)


class NoStep(Callback):
    "Stops after the first batch, before weights move"
    order = 1000
    def after_loss(self):
        if self.training: raise CancelFitException
