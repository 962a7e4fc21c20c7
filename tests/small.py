"Small loaders of every kind, in which each sample says itself who it is."
import random

import numpy as np
import pandas as pd
import torch
from fastai.callback.core import Callback
from fastai.callback.data import PartialDL, WeightedDL
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.core import DataLoaders, TfmdDL
from fastai.data.load import DataLoader, SkipItemException
from fastai.tabular.core import Categorify, TabularPandas
from fastai.tabular.data import TabularDataLoaders
from fastai.text.data import SortedDL, TextDataLoaders, pad_input
from fastai.vision.core import PILImageBW
from fastai.vision.data import ImageBlock
from PIL import Image
from torch import tensor

from labelkit.data.arrays import ArrayDataset, ArrayDL, Arrays
from labelkit.data.loaders import from_arrays, label_dls

N = 24
BROKEN = 0,7,13


class Numbers:
    "Sample `i` is the number `i`; some cannot be read"
    def __init__(self, broken=()): self.broken = broken
    def __len__(self): return N
    def __getitem__(self, i):
        if i in self.broken: raise SkipItemException()
        return torch.full((2,), float(i)),tensor(int(i) % 3)


class Sentences:
    "Sample `i` is as long as no other, and begins with `i`"
    def __len__(self): return N
    def __getitem__(self, i):
        return torch.full((1 + (i*7) % N,), i),tensor(int(i) % 2)


def by_size(items): return sorted(items, key=lambda o: -o[0][0])
def anew(items): return [(o[0].clone(), o[1]) for o in by_size(items)]
def rows_of_a_table():
    i = np.arange(N, dtype=float)
    df = pd.DataFrame(dict(i=i, k=list("abc")*(N//3), y=["p", "q"]*(N//2)))
    to = TabularPandas(
        df, procs=[Categorify], cat_names="k", cont_names="i", y_names="y", y_block=CategoryBlock(),
        splits=(list(range(N)), [0, 1]),
    )
    return to.train

number = lambda b: b[0][:, 0].long()
lengths = [1 + (i*7) % N for i in range(N)]
text = dict(bs=4, before_batch=pad_input, num_workers=0, res=lengths)
LOADERS = dict(
    plain=(lambda: DataLoader(Numbers(), bs=5, shuffle=True), number),
    in_order=(lambda: DataLoader(Numbers(), bs=5, drop_last=True), number),
    skips=(lambda: DataLoader(Numbers(BROKEN), bs=5, shuffle=True), number),
    skips_in_workers=(
        lambda: TfmdDL(Numbers(BROKEN), bs=3, shuffle=True, num_workers=2), number
    ),
    transformed=(lambda: TfmdDL(Numbers(BROKEN), bs=4, shuffle=True, num_workers=0), number),
    sorted_in_a_batch=(
        lambda: TfmdDL(Numbers(), bs=4, shuffle=True, num_workers=0, before_batch=by_size), number
    ),
    # new tuples, in which the label is the same object as before
    made_anew_in_a_batch=(
        lambda: TfmdDL(Numbers(), bs=4, shuffle=True, num_workers=0, before_batch=anew), number
    ),
    weighted=(
        lambda: WeightedDL(Numbers(), bs=4, wgts=range(N), shuffle=True, num_workers=0), number
    ),
    partial=(lambda: PartialDL(Numbers(), bs=4, partial_n=10, num_workers=0), number),
    texts=(lambda: SortedDL(Sentences(), shuffle=True, **text), lambda b: b[0][:, 0]),
    texts_in_order=(lambda: SortedDL(Sentences(), **text), lambda b: b[0][:, 0]),
    table=(
        lambda: rows_of_a_table().dataloaders(bs=4, device="cpu").train,
        lambda b: b[1][:, 0].long(),
    ),
    arrays=(
        lambda: ArrayDL(
            ArrayDataset(Arrays(torch.arange(2*N).float()[:, None]), torch.arange(N)*2),
            bs=4, steps=9, shuffle=True,
        ),
        number,
    ),
    bags=(
        lambda: ArrayDL(
            ArrayDataset(Arrays(torch.arange(N).float()[:, None]), torch.arange(N)),
            bs=4, bags=torch.arange(N) // 4, shuffle=True,
        ),
        number,
    ),
)


# `DataLoaders` of pictures, texts, a table and tensors

def picture_files(folder):
    "Thirty pictures; how bright one is says which it is"
    for i in range(30): Image.new("L", (8, 8), 8*i).save(folder/f"{i:02}.png")
    return sorted(folder.glob("*.png"))


def pictures(files, weights=None, **kwargs):
    "The first twelve for training, eight for validation"
    random.seed(0)
    block = DataBlock(
        blocks=(ImageBlock(PILImageBW), CategoryBlock),
        get_items=lambda o: o,
        get_y=lambda o: "odd" if int(o.stem) % 2 else "even",
        splitter=lambda o: (list(range(12)), list(range(12, len(o)))),
    )
    kwargs = dict(bs=4, num_workers=0, device="cpu") | kwargs
    if weights is None: return block.dataloaders(files[:20], **kwargs)
    return block.weighted_dataloaders(files[:20], weights, **kwargs)


def texts(n=30):
    words = "a b c d e f g h".split()
    return pd.DataFrame(dict(
        text=[" ".join(words[:1+i % 8]) for i in range(n)], label=["x", "y"]*(n//2)
    ))


def text_loaders():
    df = texts()
    df["is_valid"] = [i >= 20 for i in range(30)]
    random.seed(0)
    return TextDataLoaders.from_df(
        df, text_col="text", label_col="label", valid_col="is_valid", bs=4, num_workers=0,
        device="cpu",
    )


def table(n=40):
    i = np.arange(n, dtype=float)
    return pd.DataFrame(dict(i=i, k=list("abcd")*(n//4), y=["p", "q"]*(n//2)))


def table_loaders():
    return TabularDataLoaders.from_df(
        table(), procs=[Categorify], cat_names=["k"], cont_names=["i"], y_names="y",
        y_block=CategoryBlock(), valid_idx=list(range(30, 40)), bs=4, device="cpu",
    )


def brightness(x): return (x.flatten(1).mean(1)*255/8).round().long()
def own(): return label_dls(
    DataLoaders(*[DataLoader([(tensor([float(i)]), i % 2) for i in range(9)], bs=3)]*2),
    unlabeled=[tensor([float(i)]) for i in range(9, 20)], ratio=2,
)


def quadrants(n=120, c=4, seed=0, bs=16, **kwargs):
    "Images whose brightest quadrant is the class, as many to validate as to train"
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(2*n) % c
    x = torch.rand(2*n, 1, 4, 4, generator=g)*.4
    for i,k in enumerate(y.tolist()): x[i, 0, 2*(k//2):2*(k//2)+2, 2*(k%2):2*(k%2)+2] += .5
    return from_arrays(x[:n], y[:n], x[n:], y[n:], seed=seed, bs=bs, **kwargs)


class Records(Callback):
    "Keeps the record of each batch of the last fit"
    order = 6
    def before_fit(self): self.seen = []
    def after_pred(self):
        if self.training: self.seen.append(self.learn.supervision.record)
