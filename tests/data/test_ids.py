"""Ids belong to items: each sample says itself who it is, and the id that came with it must agree,
however a loader orders, skips, repeats or shares its items, and whoever goes through it."""
import copy
import pickle
import random
from itertools import zip_longest

import numpy as np
import pytest
import torch
from fastai.data.core import TfmdDL
from fastai.data.load import DataLoader
from fastai.distributed import DistributedDL
from fastai.text.data import LMDataLoader
from torch import tensor

from labelkit.data.arrays import ArrayDL
from labelkit.data.ids import Batch, WithIds, give_ids, has_ids, ids_of
from labelkit.errors import LabelKitError
from labelkit.processes import ShardedDL
from small import BROKEN, LOADERS, N, Numbers, number


@pytest.fixture(params=LOADERS)
def loader(request):
    random.seed(0)
    np.random.seed(0)
    make,read = LOADERS[request.param]
    dl = make()
    return (dl if isinstance(dl, ArrayDL) else give_ids(dl)),read


def agrees(dl, read, first=0):
    "Ids of a pass, after they were compared with what the samples say"
    seen = []
    for b in dl:
        assert isinstance(b, Batch) and torch.equal(ids_of(b), read(b) + first)
        seen += ids_of(b).tolist()
    assert seen
    return seen


def test_every_sample_has_its_own_id(loader):
    for _ in range(2): agrees(*loader)


def test_two_passes_at_once(loader):
    dl,read = loader
    for a,b in zip_longest(dl, dl):
        for o in (a, b):
            if o is not None: assert torch.equal(ids_of(o), read(o))


def test_copies_know_the_ids(loader):
    dl,read = loader
    for other in (dl.new(shuffle=False), copy.copy(dl), copy.deepcopy(dl)): agrees(other, read)
    if dl.fake_l.num_workers == 0: agrees(pickle.loads(pickle.dumps(dl)), read)


def test_one_batch(loader):
    dl,read = loader
    b = dl.one_batch()
    assert torch.equal(ids_of(b), read(b))
    assert type(b[:1]) is tuple and ids_of(b[:1]) is None


def test_the_order_and_the_random_numbers_are_fastais():
    make = LOADERS["plain"][0]
    states = []
    for give in (lambda dl: dl, give_ids):
        random.seed(1)
        torch.manual_seed(1)
        dl = give(make())
        passes = [number(b).tolist() for _ in range(2) for b in dl]
        states.append((passes, random.random(), torch.rand(1)))
    assert states[0] == states[1]


def test_first_id_and_other_items():
    dl = give_ids(DataLoader(Numbers(), bs=4, shuffle=True), first_id=100)
    assert sorted(agrees(dl, number, 100)) == list(range(100, 100+N))
    assert not has_ids(dl.new(Numbers())) and has_ids(dl.new(dl.dataset))
    assert type(dl.new(Numbers())) is DataLoader
    assert isinstance(dl, WithIds) and isinstance(dl, DataLoader)
    assert type(dl).__name__ == "DataLoader"


def test_skipped_samples_are_not_there():
    seen = agrees(give_ids(LOADERS["skips"][0]()), number)
    assert sorted(seen) == [i for i in range(N) if i not in BROKEN]


def test_weights_repeat():
    seen = agrees(give_ids(LOADERS["weighted"][0]()), number)
    assert len(set(seen)) < len(seen) == N


def test_processes_share_a_pass():
    "Two processes together have the ids of one, each those of its own samples"
    def part(rank):
        random.seed(3)
        return ShardedDL(give_ids(DataLoader(Numbers(), bs=4, shuffle=True)), True, rank, 2)
    parts = [part(0), part(1)]
    random.seed(3)
    whole = give_ids(DataLoader(Numbers(), bs=8, shuffle=True))
    for b,*pieces in zip(whole, *parts):
        for o in pieces: assert torch.equal(ids_of(o), number(o))
        assert torch.equal(ids_of(b), torch.cat([ids_of(o) for o in pieces]))
    assert has_ids(parts[0]) and not has_ids(ShardedDL(DataLoader(Numbers(), bs=4), True, 0, 2))


def test_fastais_own_sharing_goes_on(loader):
    "`distrib_ctx` without `shard`: batches as ever, without ids"
    class Quiet(DistributedDL):
        def _broadcast(self, t, rank): return [int(i) for i in t]
    dl,read = loader
    parts = [read(b).tolist() for r in range(2) for b in Quiet(dl, rank=r, world_size=2)]
    assert len(parts) > 1 and len(sum(parts, [])) > 1


def test_shared_objects_tell_nothing():
    "Items that share their label, and labels that are Python's own numbers, keep their place"
    zero = tensor(0)
    items = [(tensor([float(i)]), zero) for i in range(8)]
    copied = lambda b: [(o[0].clone(), o[1]) for o in b]
    dl = give_ids(TfmdDL(items, bs=4, num_workers=0, shuffle=True, before_batch=copied))
    agrees(dl, number)
    same = [(tensor([3.]), 1)]*4
    b = give_ids(TfmdDL(same, bs=4, num_workers=0, before_batch=lambda b: list(b))).one_batch()
    assert ids_of(b).tolist() == [0, 1, 2, 3]


def test_samples_that_appear_are_refused():
    twice = lambda o: torch.cat([o, o])
    dl = give_ids(TfmdDL(Numbers(), bs=4, num_workers=0, after_batch=twice))
    with pytest.raises(LabelKitError, match="has 8 samples and was made of 4 items"): dl.one_batch()
    dl = give_ids(TfmdDL(Numbers(), bs=4, num_workers=0, before_batch=lambda b: b[:3]))
    with pytest.raises(LabelKitError, match="has 3 samples and was made of 4"): dl.one_batch()


class Makes(DataLoader):
    def create_batches(self, samps): yield torch.zeros(2, 1),torch.zeros(2)


@pytest.mark.parametrize(
    "make,said",
    [
        (lambda: DataLoader(Numbers(), bs=None), "bs=None"),
        (lambda: DataLoader(iter([1, 2]), bs=2), "a stream"),
        (lambda: Makes(Numbers(), bs=2), "makes its batches itself"),
        (lambda: torch.utils.data.DataLoader([1, 2]), "is a torch loader.*fastai's DataLoader"),
        (lambda: ShardedDL(DataLoader(Numbers(), bs=4), True, 0, 2), "several processes"),
        (lambda: [1, 2], "fastai's DataLoader"),
    ],
)
def test_what_has_no_ids_is_refused(make, said):
    with pytest.raises(LabelKitError, match=said): give_ids(make())


def test_a_language_model_is_refused():
    dl = LMDataLoader([torch.arange(50)], bs=2, seq_len=5)
    with pytest.raises(LabelKitError, match="language model"): give_ids(dl)


def test_a_batch_is_a_tuple():
    b = Batch((1, 2, 3), tensor([4]), 2)
    assert b == (1, 2, 3) and b.inputs == (1, 2) and b.targets == (3,) and b[:1] == (1,)
    assert Batch((1,)).inputs == (1,) and ids_of(b[:1]) is None and ids_of(torch.ones(2)) is None
    assert ids_of(pickle.loads(pickle.dumps(b))).tolist() == [4]
