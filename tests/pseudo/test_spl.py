"Sub-pseudo labels: which combinations are classes, what each phase trains, and with which head"
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.basics import Callback
from torch import tensor
from torch.nn import functional as F

from contract import data, fit, learner, model
from labelkit.errors import LabelKitError
from labelkit.parts.phases import weights_of
from mix.mixtools import Keep
from labelkit.pseudo.spl import (
    SPL, check_weak, pretext_labels, sub_labels, weakly_labeled_digits,
)


class TestLabels:
    def test_by_hand(self):
        weak = tensor([0, 0, 0, 1, 1, 2, -1])
        said = tensor([0, 1, 1, 1, 0, 0, 2])
        # cells (0,0) (0,1) (0,1) (1,1) (1,0) (2,0); with two at least, (1,0) and (2,0) are rare
        assert sub_labels(weak, said, 3, 2).tolist() == [0, 1, 1, 2, 3, 4, -1]
        assert sub_labels(weak, said, 3, 1).tolist() == [0, 1, 1, 3, 2, 4, -1]
        assert sub_labels(weak, said, 3, 3).tolist() == [0, 1, 1, 2, 3, 4, -1]

    def test_two_rare_ones_share_a_class_and_the_diagonal_is_kept(self):
        weak = tensor([0, 0, 0, 1])
        said = tensor([1, 2, 0, 1])
        assert sub_labels(weak, said, 3, 2).tolist() == [1, 1, 0, 2]

    @pytest.mark.parametrize("least", [1, 5, 9])
    def test_no_two_combinations_share_a_class(self, least):
        g = torch.Generator().manual_seed(least)
        weak,said = torch.randint(-1, 4, (2, 150), generator=g)
        pairs = list(zip(weak.tolist(), said.clamp_min(0).tolist()))
        own = lambda w, t: w == t or pairs.count((w, t)) >= least
        keys = [(w, t) if own(w, t) else (w, "rest") for w,t in pairs]
        got = sub_labels(weak, said.clamp_min(0), 4, least).tolist()
        known = {(k, c) for k,c,w in zip(keys, got, weak.tolist()) if w >= 0}
        assert len(known) == len({k for k,_ in known}) == len({c for _,c in known})
        assert {c for _,c in known} == set(range(len(known)))

    def test_what_it_is_held_against(self):
        weak = tensor([0, 1, -1])
        said = tensor([0, 0, 1])
        assert pretext_labels(weak, said, 2, classes="weak").tolist() == [0, 1, -1]
        assert pretext_labels(weak, said, 2, classes="teacher").tolist() == [0, 0, 1]
        assert pretext_labels(weak, said, 2, classes="agree").tolist() == [0, -1, -1]

    @pytest.mark.parametrize("least", [1, 3, 20])
    def test_there_is_room_for_all(self, least):
        g = torch.Generator().manual_seed(least)
        weak,said = torch.randint(7, (2, 300), generator=g)
        most = min(7*8, 2*7 + 300//least)
        assert sub_labels(weak, said, 7, least).max() < most


class Epochs(Callback):
    order = 6
    def before_fit(self): self.found = []
    def after_loss(self):
        if not self.training or self.iter: return
        s = self.learn.supervision.record
        now = weights_of(self.learn)
        self.found.append((list(s.losses), s.labeled_weight, now["head.weight"], now))


def weak_of(dls): return (dls.truth + torch.arange(dls.n_ids) % 2) % 10


def test_three_phases_and_two_heads():
    dls = data()
    spy = Epochs()
    cb = SPL(weak_of(dls), first=.25, pretrain=.5, least=2)
    fit(learner([cb, spy], dls=dls), 4)
    losses,factors,heads,_ = zip(*spy.found)
    assert losses == ([], ["spl"], ["spl"], []) and factors == (1, 0, 0, 1)
    assert torch.equal(heads[1], heads[0])  # fresh
    # the own head learns nothing in pre-training
    assert heads[3].sub(heads[1]).abs().max() < 1e-2
    assert not torch.equal(heads[0], cb.learn.model.head.weight)
    assert ((cb.pseudo_label >= 0) == (dls.given < 0)).all()


def test_the_pretext_loss_by_hand():
    "Each sample its own combination, those without a weak label left out of sum and count"
    dls = data()
    weak = weak_of(dls)
    weak[::3] = -1
    net = model(4)
    cb = SPL(weak, net, pretrain=1., least=2)
    class Kept(SPL):
        name = "spl"
    fit(learner([cb, keep := Keep()], dls=dls))
    ids = (dls.given < 0).nonzero().flatten()
    with torch.no_grad(): said = net.eval()(dls.train_ds.arrays.x[ids]).argmax(1)
    want = sub_labels(weak[ids], said, 10, 2)
    assert torch.equal(cb.pseudo_label[ids], want) and (want < 0).any()
    s = keep.seen[0]
    assert s.labeled_weight == 0 and Kept.name == cb.name
    label = cb.pseudo_label[s.unlabeled_ids]
    assert (label < 0).any()


@pytest.mark.parametrize("none", [True, False])
def test_a_batch_of_nothing_but_unknown_weak_labels(none):
    dls = data()
    weak = torch.full((dls.n_ids,), -1) if none else weak_of(dls)
    class Kept(SPL):
        name = "spl"
        def after_forward(self, s):
            super().after_forward(s)
            label = self.pseudo_label[s.unlabeled_ids]
            said = self.cells(s.features("spl"))
            kept = label >= 0
            each = F.cross_entropy(said[kept], label[kept], reduction="sum")
            found.append((s.losses["spl"][0], each/max(int(kept.sum()), 1)))
    found = []
    weak[:40] = -1
    fit(learner([Kept(weak, model(4), pretrain=1., least=2)], dls=dls))
    for a,b in found: torch.testing.assert_close(a, b)
    assert any(a > 0 for a,_ in found) is not none


def test_it_combines_once():
    "Not at every epoch of the pre-training, which would begin anew each time"
    dls = data()
    fit(learner([cb := SPL(weak_of(dls), first=.2, pretrain=.8)], dls=dls), 5)
    assert cb.ledger.epochs == [1]


def test_a_teacher_replaces_the_first_phase():
    dls = data()
    net = model(4)
    for o in (net, lambda x: net(x)):
        spy = Epochs()
        cb = SPL(weak_of(dls), o, first=.25, pretrain=.5)
        fit(learner([cb, spy], dls=dls), 4)
        assert [o[1] for o in spy.found][0] == 0 and spy.found[-1][1] == 1
    assert isinstance(cb.ledger.epochs, list) and cb.ledger.epochs == [0]
    # its share is of the whole training, and the labels have the rest, whatever `first` is
    phases = SPL(weak_of(dls), net, pretrain=.8).shares
    assert phases == pytest.approx((0, .8, .2))


def test_errors():
    dls = data()
    for bad in (weak_of(dls)[:9], weak_of(dls) + 1):
        with pytest.raises(LabelKitError, match="weak_labels has shape"):
            fit(learner([SPL(bad)], dls=dls))
    with pytest.raises(LabelKitError, match="and goes from -2 to 9"):
        fit(learner([SPL(weak_of(dls).where(weak_of(dls) > 0, -2))], dls=dls))
    with pytest.raises(LabelKitError, match=r"first=0.6 and pretrain=0.5 are more than"):
        SPL(weak_of(dls), first=.6, pretrain=.5)
    with pytest.raises(LabelKitError, match="least=0"): SPL(weak_of(dls), least=0)


def test_digits():
    dls = weakly_labeled_digits(3)
    wrong = dls.weak_labels != dls.truth
    assert wrong.float().mean() == pytest.approx(.4, abs=.02)
    assert (dls.weak_labels[wrong] == (dls.truth[wrong] + 1) % 10).all()


def test_weak_labels_in_every_container():
    for weak in ([0, None, 2], np.array([0, np.nan, 2]), pd.Series([0, -1, 2], index=[5, 6, 7])):
        assert check_weak(weak, 3, 3).tolist() == [0, -1, 2]
    for weak,said in (
        (["a", "b", "c"], "weak_labels of row 0 is 'a'"), ([0, -5, 1], "goes from -5 to 1"),
        ([0, 3, 1], "goes from 0 to 3"), ([], r"weak_labels has shape \(0,\): pass"),
    ):
        with pytest.raises(LabelKitError, match=said): check_weak(weak, 3, 3)
