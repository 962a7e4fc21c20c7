"Two domains: whose digits are whose, what is changed, and rows in which nothing is learned"
import pytest
import torch

from contract import data, fit, learner, same, weights
from labelkit.data.sets import mnist_5k
from labelkit.errors import LabelKitError
from labelkit.pseudo.shift import (
    SHIFTS, asleep, faint, inverted, only_statistics, target_alone, two_domains,
)


def parts():
    ds = mnist_5k(device="cpu")
    return [(o.arrays.x[o.rows], o.arrays.y[o.rows]) for o in (ds.train_ds, ds.valid_ds)]


@pytest.mark.parametrize("shift", SHIFTS)
def test_the_source_has_labels_and_the_target_other_digits_in_another_look(shift):
    (x,y),(xv,yv) = parts()
    dls = two_domains(shift)
    known = dls.given >= 0
    assert int(known.sum()) == 2000 == int((~known).sum())
    a = dls.train_ds.arrays
    assert torch.equal(a.x[known], x[:2000]) and torch.equal(a.y[known], y[:2000])
    assert torch.equal(a.x[~known], SHIFTS[shift](x[2000:]))
    assert not torch.equal(a.x[~known], x[2000:])
    v = dls.valid_ds.arrays
    assert torch.equal(v.x, SHIFTS[shift](xv)) and torch.equal(v.y, yv)
    assert len(dls.unlabeled.dataset) == 2000


def test_a_ceiling_is_trained_on_the_target():
    (x,y),(xv,_) = parts()
    dls = target_alone("inverted")
    assert torch.equal(dls.train_ds.arrays.x, inverted(x[2000:]))
    assert torch.equal(dls.train_ds.arrays.y, y[2000:])
    assert torch.equal(dls.valid_ds.arrays.x, inverted(xv))


def test_looks_by_hand():
    x = torch.tensor([0, 100, 255], dtype=torch.uint8).view(1, 1, 1, 3)
    assert inverted(x).flatten().tolist() == [255, 155, 0]
    assert faint(x, .5, .2).flatten().tolist() == [51, 101, 178]
    with pytest.raises(LabelKitError, match="shift='rainy'"): two_domains("rainy")


@pytest.mark.parametrize("row", [asleep, only_statistics])
def test_nothing_is_learned(row):
    learn = learner(row(None), dls=data())
    before = weights(learn)
    fit(learn)
    after = weights(learn)
    learned = {k: v for k,v in before.items() if "running" not in k and "tracked" not in k}
    assert all(torch.equal(v, after[k]) for k,v in learned.items())
    assert same(before, after) is (row is asleep)
