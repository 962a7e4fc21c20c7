"""The unlabeled loader is one of the loaders: whatever a user or fastai does to `dls` after
`label_dls` or `from_arrays` holds for it too."""
import pickle
from inspect import signature
from pathlib import Path

import pytest
import torch
from fastai.basics import Learner
from fastai.callback.data import WeightedDL
from fastai.callback.progress import ProgressCallback  # noqa: F401  (`no_bar`)
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.data.transforms import Normalize
from fastai.learner import load_learner
from fastai.tabular.core import TabWeightedDL
from torch import nn, tensor

from labelkit.data.arrays import LabelDataLoaders
from labelkit.data.ids import has_ids, ids_of
from labelkit.data.loaders import from_arrays, label_dls, unlabeled_loader
from labelkit.data.sets import digits
from labelkit.errors import LabelKitError
from small import brightness, own, pictures, table, table_loaders, text_loaders, texts


# What `label_dls` makes

def test_pictures(files):
    dls = label_dls(pictures(files), unlabeled=files[20:], ratio=2)
    assert (dls.n_ids, dls.unlabeled.bs, dls.unlabeled.first_id) == (22, 8, 12)
    assert dls.loaders == [dls.train, dls.valid, dls.unlabeled]
    for _ in range(2):
        for b in dls.train:
            assert torch.equal(ids_of(b), brightness(b[0]))
            assert torch.equal(b[1].long(), ids_of(b) % 2)
        for b in dls.unlabeled:
            # the unlabeled pictures are those from number 20 on
            assert len(b) == 1 and torch.equal(ids_of(b) - 12 + 20, brightness(b[0]))


def test_texts():
    dls = label_dls(text_loaders(), unlabeled=texts(12).drop(columns="label"), ratio=2)
    for dl,first in ((dls.train, 0), (dls.unlabeled, 20)):
        seen = []
        for b in dl:
            # every word is a token, and one more says that a text begins
            want = [len(dl.dataset[int(i) - first][0]) for i in ids_of(b)]
            assert (b[0] != 1).sum(1).tolist() == want
            seen += ids_of(b).tolist()
        assert len(set(seen)) == len(seen) >= (20 if dl is dls.train else 8)


def test_tables():
    more = table(12).drop(columns="y")
    more["i"] += 100
    dls = label_dls(table_loaders(), unlabeled=more, ratio=2)
    for b in dls.train: assert torch.equal(b[1][:, 0].long(), ids_of(b))
    for b in dls.unlabeled:
        # two inputs, and no target
        assert len(b) == 2 and torch.equal(b[1][:, 0].long() - 100, ids_of(b) - 30)
    # labeled items are taken as well, without their labels
    assert all(len(b) == 2 for b in label_dls(table_loaders(), unlabeled=table(12)).unlabeled)


def test_weights_are_of_labeled_samples(files):
    dls = label_dls(pictures(files, weights=[1]*19+[0]), unlabeled=files[20:], ratio=2)
    assert isinstance(dls.train, WeightedDL) and not isinstance(dls.unlabeled, WeightedDL)
    for b in dls.train: assert torch.equal(ids_of(b), brightness(b[0]))
    seen = [i for b in dls.unlabeled.new(drop_last=False) for i in ids_of(b).tolist()]
    assert sorted(seen) == list(range(12, 22))
    assert not isinstance(label_dls(table_loaders(), table(8)).unlabeled, TabWeightedDL)


def test_plain_loaders():
    dls = own()
    for b in dls.train: assert torch.equal(ids_of(b), b[0][:, 0].long())
    for b in dls.unlabeled: assert len(b) == 1 and torch.equal(ids_of(b), b[0][:, 0].long())


def test_several_inputs():
    items = [(tensor([float(i)]), tensor([-float(i)]), i % 2) for i in range(8)]
    dls = DataLoaders(*[DataLoader(items, bs=4)]*2)
    dls.train.n_inp = 2
    label_dls(dls, unlabeled=[o[:2] for o in items], ratio=1)
    b = dls.train.one_batch()
    assert len(b.inputs) == 2 and len(b.targets) == 1
    assert len(dls.unlabeled.one_batch()) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_workers(files, workers):
    dls = label_dls(pictures(files, num_workers=workers), unlabeled=files[20:], ratio=1)
    assert dls.unlabeled.fake_l.num_workers == workers
    for b in dls.unlabeled: assert torch.equal(ids_of(b) + 8, brightness(b[0]))


# What is done afterwards

def test_other_unlabeled_items(files):
    "A second call takes the new ones; one without any keeps what is there"
    dls = label_dls(pictures(files), unlabeled=files[20:24], ratio=1)
    label_dls(dls)
    assert len(dls.unlabeled.dataset) == 4 and dls.n_ids == 16
    label_dls(dls, unlabeled=files[20:], ratio=1)
    assert len(dls.loaders) == 3 and dls.n_ids == 22
    for b in dls.unlabeled: assert torch.equal(ids_of(b) + 8, brightness(b[0]))
    with pytest.raises(LabelKitError, match="from_arrays"): label_dls(digits(labeled=40), [1])
    plain = digits(labeled=40)
    assert label_dls(plain) is plain
    with pytest.raises(LabelKitError, match="unlabeled is empty"): label_dls(dls, unlabeled=[])


@pytest.mark.parametrize("make", ["pictures", "own", "digits"])
def test_devices(files, make):
    dls = dict(
        pictures=lambda: label_dls(pictures(files), unlabeled=files[20:]),
        own=own,
        digits=lambda: digits(labeled=40, device="cpu"),
    )[make]()
    for move in (lambda: dls.to("meta"), lambda: setattr(dls, "device", "meta")):
        move()
        assert [str(dl.device) for dl in dls.loaders] == ["meta"]*3
        assert {o.device.type for o in dls.unlabeled.one_batch()} == {"meta"}
        if make == "digits": return  # whose samples have gone there, too
        dls.cpu()
        assert {str(dl.device) for dl in dls.loaders} == {"cpu"}
        assert dls.unlabeled.one_batch()[0].device.type == "cpu"


@pytest.mark.parametrize("make", ["pictures", "digits"])
def test_transforms(files, make):
    "`vision_learner` adds the statistics of its pretrained weights to all loaders"
    dls = (
        label_dls(pictures(files), unlabeled=files[20:]) if make == "pictures"
        else digits(labeled=40, device="cpu")
    )
    before = dls.unlabeled.new(shuffle=False).one_batch()[0]
    dls.add_tfms([Normalize.from_stats([.5], [.25], cuda=False)], "after_batch")
    for dl in dls.loaders: assert any(isinstance(f, Normalize) for f in dl.after_batch.fs)
    after = dls.unlabeled.new(shuffle=False).one_batch()[0]
    torch.testing.assert_close(torch.as_tensor(after), (torch.as_tensor(before) - .5)/.25)


class Rows(nn.Module):
    "As many logits as classes, of any images"
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(1, 2)
    def forward(self, x): return self.net(x.flatten(1).mean(1, keepdim=True))


@pytest.mark.parametrize("make", ["pictures", "weighted", "texts", "table", "digits"])
def test_export(tmp_path, files, make):
    "An exported learner keeps every loader, without its samples and without ids"
    dls = dict(
        pictures=lambda: label_dls(pictures(files), unlabeled=files[20:]),
        weighted=lambda: label_dls(pictures(files, weights=[1]*20), unlabeled=files[20:]),
        texts=lambda: label_dls(text_loaders(), unlabeled=texts(12).drop(columns="label")),
        table=lambda: label_dls(table_loaders(), unlabeled=table(12)),
        digits=lambda: digits(labeled=40),
    )[make]()
    empty = dls.new_empty()
    assert [len(dl.dataset) for dl in empty.loaders] == [0, 0, 0]
    if make != "digits": assert not any(has_ids(dl) for dl in empty.loaders)
    learn = Learner(dls, Rows(), path=tmp_path)
    learn.export("x.pkl")
    assert learn.dls is dls and len(dls.unlabeled.dataset) > 0
    assert (tmp_path/"x.pkl").stat().st_size < 300_000
    new = load_learner(tmp_path/"x.pkl")
    assert len(new.dls.loaders) == 3 and type(new.dls) is type(dls)


@pytest.mark.parametrize("make", [own, lambda: digits(labeled=40, device="cpu")])
def test_pickles_with_their_samples(make):
    dls = make()
    new = pickle.loads(pickle.dumps(dls))
    assert new.unlabeled is new.loaders[2] and new.n_ids == dls.n_ids
    b = new.unlabeled.one_batch()
    want = dls.unlabeled.new(shuffle=False, drop_last=False)
    x = torch.cat([o[0] for o in want])
    at = torch.cat([ids_of(o) for o in want])
    for row,i in zip(b[0], ids_of(b)): assert torch.equal(row, x[at == i][0])


def test_predictions_of_the_unlabeled():
    "It is number 2 of the loaders"
    dls = digits(labeled=40)
    torch.manual_seed(0)
    learn = Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    with learn.no_bar(): preds,_ = learn.get_preds(ds_idx=2)
    x = dls.unlabeled.dataset.arrays.x[dls.unlabeled.dataset.rows]
    torch.testing.assert_close(preds, learn.model(x).softmax(1).detach())


@pytest.mark.parametrize("make", ["pictures", "arrays"])
def test_a_batch_size_that_is_set_later(files, make):
    "The unlabeled loader follows, until somebody sets its own"
    dls = dict(
        pictures=lambda: label_dls(pictures(files), unlabeled=files[16:], ratio=3),
        arrays=lambda: from_arrays(
            torch.rand(90, 3), [0, 1]*15 + [-1]*60, torch.rand(4, 3), [0, 1]*2, bs=4, ratio=3
        ),
    )[make]()
    assert unlabeled_loader(dls).bs == dls.unlabeled.bs == min(12, len(dls.unlabeled.dataset))
    dls.train.bs = 2
    assert unlabeled_loader(dls).bs == 6 and len(next(iter(dls.unlabeled))[0]) == 6
    dls.unlabeled.bs = 3
    assert unlabeled_loader(dls).bs == 3
    dls.train.bs = 4000
    assert unlabeled_loader(dls).bs == len(dls.unlabeled.dataset)


def test_the_unlabeled_loader_of_ones_own():
    dls = digits(labeled=40)
    assert dls.unlabeled is dls[2] and dls.loaders[2] is dls.unlabeled
    new = dls.unlabeled.new()
    dls.unlabeled = new
    assert dls[2] is new and len(dls.loaders) == 3
    dls.unlabeled = None
    assert len(dls.loaders) == 2 and dls.unlabeled is None
    assert digits().unlabeled is None


@pytest.mark.parametrize(
    "make,said",
    [
        (lambda: DataLoader([1, 2], bs=None), "bs=None"),
        (lambda: torch.utils.data.DataLoader([1, 2]), "dls.train is a torch loader"),
        (lambda: DataLoader(iter([1]), bs=2), "stream"),
    ],
)
def test_loaders_without_ids(make, said):
    with pytest.raises(LabelKitError, match=said): label_dls(DataLoaders(make(), make()))


# from_arrays

def test_a_recipe_has_everything():
    "Whatever was asked for is asked for again, with another seed"
    more = dict(ratio=2, bs=8, view_hints={})
    dls = digits(labeled=60, noise_rate=.25, noise="pair", imbalance=3, **more)
    new = dls.recipe(5)
    assert (new.given != dls.given).any() and new.n_ids == dls.n_ids
    assert (new.train.bs, new.unlabeled.bs, new.view_hints) == (8, 16, {})
    has = new.given >= 0
    wrong = (new.given != new.truth) & has
    assert int(has.sum()) == 60 and wrong.any()
    assert ((new.given - new.truth)[wrong] % 10 == 1).all()
    assert torch.equal(new.recipe(0).given, dls.given)
    with pytest.raises(LabelKitError, match="function"): LabelDataLoaders(dls.train).recipe(1)


def test_one_tensor_of_inputs():
    "Labeled and unlabeled loaders share the arrays, so that a GPU holds them once"
    dls = digits(labeled=40)
    assert dls.train_ds.arrays is dls.unlabeled.dataset.arrays


def test_types_of_targets():
    x = torch.rand(20, 3)
    for y,kind,loss in (
        (torch.arange(20) % 2, "single", "CrossEntropy"),
        (torch.eye(2)[torch.arange(20) % 2], "multi", "BCE"),
        (torch.rand(20), "regression", "MSE"),
    ):
        dls = from_arrays(x, y, x, y)
        assert dls.train_ds.kind == kind
        assert loss in type(dls.train_ds.loss_func).__name__ + str(dls.train_ds.loss_func)


@pytest.mark.parametrize(
    "change,said",
    [
        (dict(y=[0]*5), "y has 5 targets for 20 inputs"),
        (dict(y_valid=[0]*5), "y_valid has 5 targets"),
        (dict(x=torch.rand(0, 3), y=torch.zeros(0).long()), "both need some"),
        (dict(x_valid=torch.rand(20, 4)), r"x has samples of shape \(3,\) and x_valid of \(4,\)"),
        (dict(y=[7]*20, vocab="ab"), "label 7 of sample 0 is outside the 2 classes"),
        (dict(y=[-2]*20), "label -2 of sample 0 is outside"),
        (dict(labels=4), "labels=4 is no setting.*labeled"),
        (dict(kind="several"), "kind='several'"),
    ],
)
def test_from_arrays_refuses(change, said):
    x = torch.rand(20, 3)
    y = [0, 1]*10
    with pytest.raises(LabelKitError, match=said):
        from_arrays(**dict(x=x, y=y, x_valid=x, y_valid=y) | change)


def test_the_signature_says_every_setting():
    names = signature(from_arrays).parameters
    for k in "labeled noise_rate noise imbalance known complementary bag_size bs seed".split():
        assert k in names
    assert "settings" not in names


@pytest.mark.parametrize("how,said", [
    (dict(bs=0), "bs=0 is not a number at least 1"),
    (dict(bs="8"), "bs='8' is not a whole number"),
    (dict(ratio=0), "ratio=0 is not a number at least 1"),
    (dict(val_bs=2.5), "val_bs=2.5 is not a whole number"),
    (dict(seed=None), "seed=None is not a whole number"),
])
def test_sizes_of_batches(how, said):
    x = torch.rand(6, 4)
    with pytest.raises(LabelKitError, match=said):
        from_arrays(x, [0, 1]*3, x, [0, 1]*3, **dict(labeled=4) | how)


@pytest.mark.parametrize("dls,said", [
    (lambda: None, "dls is a NoneType: pass DataLoaders"),
    (lambda: own().train, "dls is a .*: pass DataLoaders, such as DataLoaders\\(train, valid\\)"),
    (lambda: Learner(own(), nn.Linear(1, 2), loss_func=nn.MSELoss()), "dls is a Learner"),
])
def test_what_is_no_loaders(dls, said):
    with pytest.raises(LabelKitError, match=said): label_dls(dls())


@pytest.mark.parametrize("items,said", [
    (5, "unlabeled is a int: pass the items themselves, as a list"),
    (iter([1]), "unlabeled is a list_iterator: pass the items"),
    (Path("/tmp"), "pass the files in it, such as get_image_files"),
])
def test_what_are_no_unlabeled_items(items, said):
    with pytest.raises(LabelKitError, match=said): label_dls(own(), unlabeled=items)
    with pytest.raises(LabelKitError, match="pass what it loads, its dataset"):
        label_dls(own(), unlabeled=own().valid)
    with pytest.raises(LabelKitError, match="ratio=0"): label_dls(own(), [tensor([1.])], ratio=0)
