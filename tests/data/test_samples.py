"Samples by id or place, from every kind of loader; and nothing else is disturbed."
import random

import numpy as np
import pytest
import torch
from fastai.basics import Learner
from fastai.data.core import DataLoaders, TfmdDL
from fastai.data.load import DataLoader
from fasttransform import Transform
from torch import nn, tensor
from torch.utils.data import TensorDataset

from small import (
    BROKEN,
    LOADERS,
    N,
    Numbers,
    Sentences,
    number,
    own,
    pictures,
    table_loaders,
    text_loaders,
    texts,
)
from labelkit.data.ids import WithIds, give_ids, ids_of
from labelkit.data.loaders import from_arrays, label_dls
from labelkit.data.samples import (
    Samples,
    given_labels,
    predict_samples,
    predict_unlabeled,
    untouched,
)
from labelkit.data.sets import digits
from labelkit.errors import LabelKitError
from labelkit.processes import ShardedDL

ORDER = tensor([5, 0, 5, 23, 8, 13])


def states():
    python = random.getstate()
    return python,np.random.get_state()[1].tolist(),torch.get_rng_state().tolist()


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("ids", [True, False])
def test_samples_of_every_loader(name, ids):
    "Those that were asked for, in that order, whatever the loader's own; with ids or without"
    make,read = LOADERS[name]
    dl = make()
    if ids and not isinstance(dl, WithIds): give_ids(dl, 50)
    before = states(),dl.rng.getstate()
    samples = Samples(dl)
    first = int(samples.ids[0])
    gone = BROKEN if name.startswith("skips") or name == "transformed" else ()
    asked = (None, ORDER)
    for at in asked:
        got = []
        for b in samples.batches(at, bs=4):
            assert torch.equal(read(b), b.ids if name in ("arrays", "bags") else b.ids - first)
            got += b.ids.tolist()
        want = (samples.ids if at is None else samples.ids[at]).tolist()
        want = [i for i in want if i - first not in gone]
        # a batch that is sorted, and workers that skip, give another order; ids tell which
        ordered = "in_a_batch" not in name and "in_workers" not in name
        assert got == want if ordered else sorted(got) == sorted(want)
    assert torch.equal(samples.places(samples.ids[ORDER]), ORDER)
    assert (states(), dl.rng.getstate()) == before
    assert type(dl) is type(make()) or ids  # a loader that is only looked at stays what it is


def test_inputs_in_one_piece():
    samples = Samples(DataLoader(Numbers(), bs=4, shuffle=True))
    (x,) = samples.inputs(ORDER)
    assert x[:, 0].long().tolist() == ORDER.tolist()
    assert samples.inputs(ORDER[:0])[0].shape == (0, 2)
    assert samples.inputs()[0].shape == (N, 2)
    with pytest.raises(LabelKitError, match=r"samples \[7\] cannot be loaded"):
        Samples(DataLoader(Numbers([7]), bs=4)).inputs()
    text = TfmdDL(Sentences(), bs=1, num_workers=0)
    with pytest.raises(LabelKitError, match="differ in shape"): Samples(text).inputs()


def test_single_tensors():
    "A data set without targets: tensors in the training, as ever, and tuples from `Samples`"
    dl = give_ids(DataLoader([tensor([float(i)]) for i in range(6)], bs=4))
    assert isinstance(dl.one_batch(), torch.Tensor) and ids_of(dl.one_batch()) is None
    (b,) = Samples(dl).batches(tensor([5, 2]))
    assert b.ids.tolist() == b.inputs[0][:, 0].tolist() == [5, 2] and b.targets == ()


def test_several_inputs():
    (cats, conts) = Samples(table_loaders()).inputs(tensor([3, 1]))
    assert cats.shape == (2, 1) and conts[:, 0].tolist() == [3, 1]


@pytest.mark.parametrize("x", [torch.rand(9, 1, 4, 4), torch.arange(9)[:, None]])
def test_a_tensor(x):
    before = states()
    samples = Samples(x)
    assert samples.ids.tolist() == list(range(9))
    assert torch.equal(samples.inputs(tensor([4, 2]))[0], x[[4, 2]])
    assert states() == before
    bytes_ = Samples((torch.arange(8)*30).byte()[:, None])
    assert torch.equal(bytes_.inputs()[0][:, 0], torch.arange(8)*30/255)


def test_pictures_without_augmentation(files):
    "Random transforms act when they are asked for, and draw nothing when they are not"
    class Noise(Transform):
        split_idx = 0
        order = 99
        def encodes(self, x): return x + torch.rand(1) if x.is_floating_point() else x
    dls = label_dls(pictures(files), unlabeled=files[20:])
    dls.train.after_batch.add([Noise()])
    plain = Samples(dls).inputs(tensor([2, 9]))[0]
    assert torch.equal(plain, Samples(dls).inputs(tensor([2, 9]))[0])
    torch.manual_seed(0)
    (b,) = Samples(dls).batches(tensor([2, 9]), augment=True)
    torch.manual_seed(0)
    (again,) = Samples(dls).batches(tensor([2, 9]), augment=True)
    assert not torch.equal(b[0], plain) and torch.equal(b[0], again[0])
    # the loader's own transforms go on as they were
    noisy = dls.train.new(shuffle=False).one_batch()[0]
    assert not torch.equal(noisy, Samples(dls).inputs()[0][:4])


def test_the_training_goes_on_meanwhile():
    "Samples that are looked at in the middle of a pass do not move it"
    passes = []
    for look in (False, True):
        random.seed(0)
        dls = own()
        seen = []
        for b in dls.train:
            seen.append(b.ids.tolist())
            if look: assert len(list(Samples(dls).batches())) == 3
        passes.append(seen)
    assert passes[0] == passes[1]


# Labels

def test_labels_of_every_data_set(files):
    odd = [i % 2 for i in range(12)]
    assert given_labels(pictures(files))[1].tolist() == [1 if o else 0 for o in odd]
    dls = text_loaders()
    assert given_labels(dls)[1].tolist() == [i % 2 for i in range(20)]
    assert given_labels(table_loaders())[1].tolist() == [i % 2 for i in range(30)]
    assert given_labels(own())[1].tolist() == [i % 2 for i in range(9)]
    tensors = TensorDataset(torch.rand(6, 2), torch.arange(6))
    assert given_labels(DataLoaders(*[DataLoader(tensors, bs=2)]*2))[1].tolist() == list(range(6))


def test_no_picture_is_opened_for_its_label(files, monkeypatch):
    from fastai.vision.core import PILImageBW
    dls = label_dls(pictures(files))
    monkeypatch.setattr(PILImageBW, "create", None)
    for tl in dls.train_ds.tls[:1]: tl.tfms.fs.clear()
    monkeypatch.setattr(type(dls.train_ds), "__getitem__", None)
    assert len(given_labels(dls)[1]) == 12


def test_labels_of_skipped_samples_are_unknown():
    y = Samples(DataLoader(Numbers([0, 4]), bs=4)).labels()
    assert y.tolist() == [-1 if i in (0, 4) else i % 3 for i in range(N)]


def test_labels_are_those_that_were_given():
    "Not the true ones, which differ where labels are noisy"
    dls = digits(noise_rate=.4, labeled=200)
    ids,y = given_labels(dls)
    assert torch.equal(y, dls.given[ids]) and (y != dls.truth[ids]).any() and len(ids) == 200


TARGETS = dict(floats=torch.rand(8), several=torch.eye(8), maps=torch.zeros(8, 4, 4).long())


@pytest.mark.parametrize("y", TARGETS.values(), ids=list(TARGETS))
def test_targets_that_are_no_labels(y):
    items = list(zip(torch.rand(8, 2), y))
    with pytest.raises(LabelKitError, match="needs one class number for each sample"):
        Samples(DataLoader(items, bs=4)).labels()
    if y.ndim < 3:
        dls = from_arrays(torch.rand(8, 2), y, torch.rand(8, 2), y)
        with pytest.raises(LabelKitError, match="needs one class number"): given_labels(dls)


def test_no_targets():
    with pytest.raises(LabelKitError, match="dls has no targets"):
        Samples(digits(labeled=40).unlabeled).labels()


# All that are unlabeled

def test_each_unlabeled_sample_once(files):
    for dls,say in (
        (label_dls(pictures(files), unlabeled=files[20:]), None),
        (own(), number),
        (digits(labeled=40), None),
    ):
        samples = Samples(dls.unlabeled)
        parts = [(b.inputs[0], b.ids) for b in samples.batches()]
        ids = torch.cat([o for _,o in parts])
        assert len(ids.unique()) == len(ids) == len(dls.unlabeled.dataset)
        if say: assert torch.equal(torch.cat([x for x,_ in parts])[:, 0].long(), ids)
        chosen = ids[[3, 0]]
        (x,*_) = samples.inputs(samples.places(chosen))
        at = [torch.cat([x for x,_ in parts])[ids == i][0] for i in chosen]
        assert torch.equal(x, torch.stack(at))


def test_predictions_by_id():
    "Of texts, which every loader of theirs sorts: the number of tokens tells which text it is"
    more = texts(12).drop(columns="label")
    dls = label_dls(text_loaders(), more, ratio=2)
    class Length(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(1))
            self.drop = nn.Dropout(.5)
        def forward(self, x):
            n = (x != 1).sum(1, keepdim=True).float()*self.w
            return self.drop(torch.cat([n, -n], 1))
    learn = Learner(dls, Length(), loss_func=nn.CrossEntropyLoss())
    learn.model.train()
    before = states()
    ids,logits = predict_unlabeled(learn)
    assert states() == before and learn.model.drop.training
    want = [float(len(dls.unlabeled.dataset[int(i) - dls.unlabeled.first_id][0])) for i in ids]
    assert logits[:, 0].tolist() == want and ids.tolist() == list(range(20, 32))
    at = tensor([7, 2])
    first = lambda x: x[:, :1].float()
    some,few = predict_samples(learn, Samples(dls.unlabeled), at, forward=first)
    assert some.tolist() == [27, 22] and few.shape == (2, 1)


def test_a_prediction_that_fails_leaves_the_model_as_it_was():
    dls = digits(labeled=40)
    learn = Learner(dls, nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(64, 10)))
    def broken(x): raise RuntimeError("no")
    with pytest.raises(RuntimeError, match="no"):
        predict_samples(learn, Samples(dls.unlabeled), forward=broken)
    assert learn.model[1].training
    with pytest.raises(LabelKitError, match=r"logits of samples \[\d+, .* are not finite"):
        predict_samples(learn, Samples(dls.unlabeled), forward=lambda x: learn.model(x)/0)


# Refused

@pytest.mark.parametrize(
    "make,said",
    [
        (lambda: torch.utils.data.DataLoader([1, 2]), "is a torch loader"),
        (lambda: DataLoaders(*[torch.utils.data.DataLoader([1, 2])]*2), "is a torch loader"),
        (lambda: DataLoader([], bs=2), "no samples"),
        (lambda: torch.zeros(0, 3), "no samples"),
        (lambda: np.zeros(3), "torch.as_tensor"),
        (lambda: DataLoader(iter([1]), bs=2), "stream"),
    ],
)
def test_what_has_no_samples(make, said):
    with pytest.raises(LabelKitError, match=said): Samples(make())


def test_ids_of_others():
    with pytest.raises(LabelKitError, match=r"samples \[24, -1\] are not among the 24"):
        Samples(DataLoader(Numbers(), bs=2)).places(tensor([3, 24, -1]))


def test_a_share_of_several_processes_is_all_samples():
    dl = ShardedDL(DataLoader(Numbers(), bs=4), True, 1, 2)
    assert Samples(dl).ids.tolist() == list(range(N))


def test_untouched_after_an_error():
    before = states()
    def draw():
        with untouched(): raise ValueError(random.random(), np.random.rand(), torch.rand(1))
    with pytest.raises(ValueError, match="tensor"): draw()
    assert states() == before


def test_a_column_of_class_numbers_is_one_each():
    items = [(torch.rand(2), tensor([i % 3])) for i in range(6)]
    assert Samples(DataLoader(items, bs=3)).labels().tolist() == [0, 1, 2]*2
    for y in (tensor([0, 1]), tensor([.5])):
        with pytest.raises(LabelKitError, match="re-labeling needs one class number"):
            Samples(DataLoader([(torch.rand(2), y)]*4, bs=2)).labels()
