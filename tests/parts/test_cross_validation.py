"""Cross-validation: even folds, nobody judged by what it learned, every container of inputs, and
what cannot be loaded"""
import random

import numpy as np, pytest, torch
from fastai.basics import CrossEntropyLossFlat, DataLoader, DataLoaders
from torch import nn

from small import quadrants
from labelkit.data.loaders import label_dls
from labelkit.data.samples import Samples
from labelkit.errors import LabelKitError
from labelkit.models import small_cnn
from labelkit.parts.cross_validation import out_of_fold, step_counter, stratified_folds


def data(n=120, noise_rate=.25, **kwargs): return quadrants(n, noise_rate=noise_rate, **kwargs)

def net(dls): return lambda: small_cnn(dls, width=4)
def judge(dls, make, **kwargs):
    samples = Samples(dls)
    return out_of_fold(samples, samples.labels(), make, nn.CrossEntropyLoss(), **kwargs)


class TestFolds:
    def test_even_and_seeded(self):
        y = torch.arange(103) % 4
        a,b = (stratified_folds(y, 4, torch.Generator().manual_seed(s)) for s in (1, 1))
        assert torch.equal(a, b)
        for k in range(4):
            n = torch.bincount(a[y == k], minlength=4)
            assert n.max()-n.min() <= 1

    def test_nobody_judges_what_it_learned(self):
        "A model that answers with the labels it was trained on says nothing of the held-out ones"
        dls = data(noise_rate=0.)
        seen = []
        class Parrot(nn.Module):
            def __init__(self):
                super().__init__()
                self.w = nn.Parameter(torch.zeros(4))
                self.known = []
                seen.append(self)
            def forward(self, x):
                if self.training: self.known += [o.sum().item() for o in x]
                else: assert not {o.sum().item() for o in x} & set(self.known)
                return self.w.expand(len(x), 4)

        p = judge(dls, Parrot, folds=3, epochs=2)
        assert len(seen) == 3 and torch.allclose(p.sum(1), torch.ones(len(p)))

    @pytest.mark.parametrize("bs", [1, 7, 200])
    def test_batch_sizes(self, bs):
        dls = data(n=29, bs=bs)
        p = judge(dls, net(dls), folds=2, epochs=1)
        assert torch.allclose(p.sum(1), torch.ones(29), atol=1e-5)

    def test_a_class_with_fewer_samples_than_folds(self):
        with pytest.raises(LabelKitError, match="folds=3, and class 1 has only 2 labeled samples"):
            stratified_folds(torch.tensor([0, 0, 0, 1, 1]), 3, torch.Generator())
        # a class without a sample is no reason
        assert stratified_folds(torch.tensor([0, 0, 2, 2]), 2, torch.Generator()).sum() == 2

    def test_every_sample_is_judged_once_and_trained_in_the_others(self):
        "Steps of each fold follow its size, and the rate rises and falls"
        dls = data(n=40, bs=10, noise_rate=0.)
        counts = torch.zeros(40)
        learned = torch.zeros(40)
        place = {tuple(o.flatten().tolist()): i for i,o in enumerate(dls.train_ds.arrays.x)}
        class Count(nn.Module):
            def __init__(self):
                super().__init__()
                self.w = nn.Parameter(torch.zeros(4))
            def forward(self, x):
                at = [place[tuple(o.flatten().tolist())] for o in x]
                (learned if self.training else counts)[at] += 1
                return self.w.expand(len(x), 4)
        judge(dls, Count, folds=4, epochs=3)
        assert (counts == 1).all()
        # 4 batches x 3 epochs x 3/4 of the samples = 9 steps of 10 samples for each of 4 folds
        assert learned.sum() == 4*9*10 and learned.min() >= 8 and learned.max() <= 10

    def test_what_is_learned_are_the_labels_given(self):
        "All labels are wrong, by one: so are the answers"
        dls = data(noise_rate=0.)
        dls.train_ds.arrays.y.add_(1).remainder_(4)
        p = judge(dls, net(dls), folds=3, epochs=12, lr=.02)
        y = Samples(dls).labels()
        assert torch.equal(y, (dls.truth+1) % 4) and (p.argmax(1) == y).float().mean() > .9

    def test_samples_without_a_label_are_left_out(self):
        dls = data(n=40)
        samples = Samples(dls)
        y = samples.labels()
        y[::2] = -1
        p = out_of_fold(samples, y, net(dls), nn.CrossEntropyLoss(), folds=2, epochs=1)
        assert (p[::2] == 0).all() and torch.allclose(p[1::2].sum(1), torch.ones(20), atol=1e-5)

    def test_the_learning_rate_is_half_a_sine(self, monkeypatch):
        from labelkit.parts import cross_validation as cv
        seen = []
        make = cv.Adam
        def adam(*args, **kwargs):
            opt = make(*args, **kwargs)
            step = opt.step
            opt.step = lambda: (seen.append(opt.hypers[0]["lr"]), step())
            return opt
        monkeypatch.setattr(cv, "Adam", adam)
        judge(data(n=32, bs=8, noise_rate=0.), net(data(n=32)), folds=2, epochs=2, lr=.1)
        assert len(seen) == 8
        want = [.1*np.sin(np.pi*(i+.5)/4) for i in range(4)]
        assert seen[:4] == pytest.approx(want) and seen[4:] == pytest.approx(want)

    def test_diverging_and_bad_inputs(self):
        dls = data(n=40)
        with pytest.raises(LabelKitError, match="lr=1e.30 made a model .* diverge: use a smaller"):
            judge(dls, net(dls), folds=2, epochs=3, lr=1e30)
        dls.train_ds.arrays.x[7] = float("nan")
        with pytest.raises(LabelKitError, match=r"inputs of samples \[.*7.*\] are not finite"):
            judge(dls, net(data(n=40)), folds=2, epochs=1)

    def test_nothing_global_moves(self):
        dls = data(n=40)
        state = torch.get_rng_state(),random.getstate(),np.random.get_state()[1].copy()
        order = dls.train.rng.getstate()
        judge(dls, net(dls), folds=2, epochs=1)
        # `small_cnn` draws inside, the rest draws nothing
        assert torch.equal(state[0], torch.get_rng_state()) and state[1] == random.getstate()
        assert (state[2] == np.random.get_state()[1]).all() and order == dls.train.rng.getstate()

    def test_seeds(self):
        dls = data(n=40)
        a,b,c = (judge(dls, net(dls), folds=2, epochs=1, seed=s) for s in (1, 1, 2))
        assert torch.equal(a, b) and not torch.equal(a, c)


class Both(nn.Module):
    "A model of two inputs, categories and numbers"
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(8, 4)
        self.head = nn.Linear(4+2, 2)
    def forward(self, cat, cont):
        assert not cat.is_floating_point() and cont.is_floating_point()
        return self.head(torch.cat([self.embed(cat[:,0]), cont], 1))


class TestLoaders:
    def test_two_inputs(self):
        y = torch.arange(40) % 2
        items = [(torch.tensor([k]), torch.tensor([k, 0.])+.1*i/40, torch.tensor(k))
                 for i,k in enumerate(y.tolist())]
        dls = label_dls(DataLoaders(
            DataLoader(items, bs=8, shuffle=True, n_inp=2), DataLoader(items, bs=8)
        ))
        dls.train.n_inputs = 2
        p = judge(dls, Both, folds=2, epochs=20, lr=.05)
        assert torch.equal(p.argmax(1), y)

    def test_a_loader_that_sorts_and_skips(self):
        "Texts of unequal length, of which one cannot be read: each answer stands at its own sample"
        from fastai.data.load import SkipItemException
        from fastai.data.core import TfmdDL
        class Texts:
            def __len__(self): return 24
            def __getitem__(self, i):
                if i == 5: raise SkipItemException()
                return torch.full((1 + i % 4,), 1+i % 2),torch.tensor(i % 2)
        def pad(items):
            items = sorted(items, key=lambda o: len(o[0]))
            return [(torch.cat([x, x.new_zeros(4-len(x))]), y) for x,y in items]
        dls = label_dls(DataLoaders(
            TfmdDL(Texts(), bs=6, before_batch=pad, shuffle=True, num_workers=0),
            TfmdDL(Texts(), bs=6, before_batch=pad, num_workers=0),
        ))
        class Bag(nn.Module):
            def __init__(self):
                super().__init__()
                self.embed = nn.Embedding(3, 2)
            def forward(self, x): return self.embed(x).sum(1)
        y = torch.arange(24) % 2
        p = out_of_fold(
            Samples(dls), y, Bag, CrossEntropyLossFlat(), folds=2, epochs=40, lr=.1
        )
        assert (p[5] == 0).all()
        others = torch.arange(24) != 5
        assert torch.equal(p.argmax(1)[others], y[others])

    def test_fastais_tables(self):
        "Categories and numbers, and labels as a column of whole numbers"
        import pandas as pd
        from fastai.tabular.all import CategoryBlock, Categorify, Normalize, TabularDataLoaders
        rng = np.random.default_rng(0)
        df = pd.DataFrame(dict(a=rng.random(60), k=["x", "y", "z"]*20, label=["p", "p", "q"]*20))
        dls = label_dls(TabularDataLoaders.from_df(
            df, procs=[Categorify, Normalize], cat_names=["k"], cont_names=["a"], y_names="label",
            y_block=CategoryBlock(), bs=8, valid_idx=list(range(12)), device="cpu",
        ))
        class Table(nn.Module):
            def __init__(self):
                super().__init__()
                self.embed = nn.Embedding(4, 2)
                self.cont = nn.Linear(1, 2)
            def forward(self, cat, cont): return self.embed(cat[:,0]) + self.cont(cont)
        samples = Samples(dls)
        y = samples.labels()
        p = out_of_fold(samples, y, Table, CrossEntropyLossFlat(), folds=3, epochs=30, lr=.1)
        assert len(y) == 48 and torch.equal(p.argmax(1), y)

    def test_no_augmentation_in_prediction(self):
        "Random transforms act while a fold is trained, and not while it is judged"
        from fastai.data.core import Datasets, TfmdDL
        from fasttransform import Transform
        seen = []
        class Noisy(Transform):
            split_idx = 0
            def encodes(self, x:torch.Tensor):
                if x.is_floating_point(): seen.append(len(x))
                return x
        items = list(range(20))
        number = lambda i: torch.tensor([float(i)])
        ds = Datasets(items, [[number], [lambda i: torch.tensor(i % 2)]])
        mk = lambda: TfmdDL(ds, bs=5, after_batch=[Noisy()], num_workers=0)
        dls = label_dls(DataLoaders(mk(), mk()))
        judge(dls, lambda: nn.Linear(1, 2), folds=2, epochs=2)
        # 4 batches x 2 epochs x half the samples, for each fold, and no batch that is judged
        assert sum(seen) == 2*4*5


def test_counter_without_a_bar():
    from types import SimpleNamespace
    step = step_counter(SimpleNamespace(), "folds")
    assert [step(3) for _ in range(3)] == [None]*3
