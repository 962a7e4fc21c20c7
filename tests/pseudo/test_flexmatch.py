"""FlexMatch: the official numbers, the status of samples, the thresholds in ledger and explorer."""
import json
from types import SimpleNamespace

import pytest
import torch
from fastai.basics import Callback
from torch import tensor
from torch.nn import functional as F

from contract import data, fit, learner, same, weights
from labelkit.errors import LabelKitError
from labelkit.storage.ledger import Ledger
from labelkit.pseudo.base import Guess, class_thresholds
from labelkit.pseudo.fixmatch import FixMatch
from labelkit.pseudo.flexmatch import FlexMatch
from pseudo.classmaps import dense


def alone(n, c, **kwargs):
    "The callback with `n` unlabeled samples and `c` classes, and no training"
    cb = FlexMatch(**kwargs)
    cb.learn = SimpleNamespace(
        dls=SimpleNamespace(unlabeled=SimpleNamespace(dataset=range(n)), c=c), epoch=0
    )
    cb.ledger = Ledger(n)
    cb.selected = torch.full((n,), -1)
    cb._set_thresholds()
    return cb


def step(cb, logits, ids):
    g = Guess(logits, SimpleNamespace(unlabeled_ids=ids))
    mask = cb.believe(g)
    cb.note(g, mask)
    cb.remember(g)
    return mask


def test_reference(root):
    (ref,) = [
        o
        for o in json.loads((root / "tests/reference/pseudo.json").read_text())
        if o["name"].startswith("flexmatch_cpl")
    ]
    i = ref["inputs"]
    logits = tensor(i["batch1_logits_weak"])
    cb = alone(i["ulb_dest_len"], i["num_classes"], threshold=i["p_cutoff"])
    for want,z in zip(ref["expected"], (logits, logits[i["batch2_rows_of_batch1"]])):
        torch.testing.assert_close(
            cb.class_threshold,
            tensor(want["class_thresholds_used"]),
            atol=ref["tolerance_abs"],
            rtol=0,
        )
        assert step(cb, z, tensor(want["idx"])).float().tolist() == want["mask"]
        assert cb.selected.tolist() == want["selected_label_after"]
        beta = tensor(want["classwise_acc_after"])
        torch.testing.assert_close(
            cb.class_threshold, i["p_cutoff"] * beta / (2 - beta), atol=ref["tolerance_abs"], rtol=0
        )


def test_thresholds_by_hand():
    counts = tensor([4, 2, 0])
    torch.testing.assert_close(class_thresholds(counts, .9), tensor([.9, .3, 0.]))
    torch.testing.assert_close(
        class_thresholds(counts, 0.9, unused=8), tensor([0.9 / 3, 0.9 * 0.25 / 1.75, 0.0])
    )
    # the most frequent class is larger
    torch.testing.assert_close(class_thresholds(counts, .9, unused=3), tensor([.9, .3, 0.]))
    torch.testing.assert_close(
        class_thresholds(counts, 0.9, mapping="linear"), tensor([0.9, 0.45, 0.0])
    )
    torch.testing.assert_close(
        class_thresholds(counts, 0.9, mapping="concave"), tensor([0.9, 0.9 * 0.5849625, 0.0])
    )
    assert class_thresholds(torch.zeros(3), .9).tolist() == [0, 0, 0]


def test_the_mask_takes_the_status_before_the_batch():
    cb = alone(4, 2, threshold=.8, warmup=False)
    sure = tensor([[4.,0.]])
    unsure = tensor([[.2,0.]])
    # thresholds were 0, though afterwards that of class 0 is .8
    assert step(cb, torch.cat([sure, unsure]), tensor([0, 1])).all()
    torch.testing.assert_close(cb.class_threshold, tensor([.8, 0.]))
    assert not step(cb, unsure, tensor([1])).any()


def test_a_status_stays_until_another_class_passes():
    cb = alone(3, 2, threshold=.8)
    for z,want in (([4.,0.], 0), ([.1,0.], 0), ([0.,.1], 0), ([0.,4.], 1)):
        step(cb, tensor([z]), tensor([2]))
        assert cb.selected.tolist() == [-1, -1, want]


def test_status_and_ledger_of_a_fit():
    learn = fit(learner([cb := FlexMatch(threshold=.15)]), 3)
    given = learn.dls.given
    assert (cb.selected[given >= 0] == -1).all() and (cb.selected[given == -1] >= 0).any()
    counts = torch.bincount(cb.selected[cb.selected >= 0], minlength=10)
    torch.testing.assert_close(
        cb.class_threshold,
        class_thresholds(counts, 0.15, unused=int((given == -1).sum() - counts.sum())),
    )
    history = cb.ledger.history()["class_threshold"]
    assert history.shape == (3, 10) and (history[-1] > 0).any() and (history <= .15 + 1e-6).all()
    cb.explore()
    assert cb.explore().history["class_threshold"].shape == (3, 10)


def test_the_loss_is_that_of_the_thresholds():
    cb = FlexMatch(threshold=.15, warmup=False)
    seen = []

    class Check(Callback):
        order = 6
        def before_batch(self): self.threshold = cb.class_threshold
        def after_pred(self):
            if not self.training: return
            s = self.learn.supervision.record
            p = s.outputs["flexmatch.weak"].softmax(1)
            z = s.outputs["flexmatch.strong"]
            mask = p.amax(1) >= self.threshold[p.argmax(1)]
            seen.append(
                (
                    s.losses["flexmatch"][0].item(),
                    (F.cross_entropy(z, p.argmax(1), reduction="none") * mask).mean().item(),
                    mask.all().item(),
                )
            )

    fit(learner([cb, Check()]), 4)
    a,b,everything = zip(*seen)
    assert a == pytest.approx(b, rel=1e-5) and not all(everything)


def test_knobs_change_something():
    runs = [
        weights(fit(learner([FlexMatch(threshold=0.15, **k)]), 3)) for k in ({}, dict(warmup=False))
    ]
    runs.append(weights(fit(learner([FixMatch(threshold=.15)]), 3)))
    assert not any(same(a, b) for i,a in enumerate(runs) for b in runs[:i])


def test_a_search_gives_nobody_a_status():
    learn = learner([cb := FlexMatch(threshold=0.)])
    with learn.no_bar(), learn.no_logging(): learn.lr_find(num_it=6, show_plot=False)
    assert (cb.selected == -1).all() and not cb.ledger.epochs


def test_without_ids():
    cb = FlexMatch()
    cb.learn = SimpleNamespace(dls=SimpleNamespace(train=[0], unlabeled=data().unlabeled))
    with pytest.raises(LabelKitError, match="no ids: call `label_dls"): cb.check_needs()


@pytest.mark.parametrize(
    "kwargs,said",
    [
        (dict(threshold=95), "threshold=95"),
        (dict(mapping="cubic"), "mapping='cubic'.*'convex'"),
        (dict(weight=-1), "weight=-1"),
    ],
)
def test_bad_input(kwargs, said):
    with pytest.raises(LabelKitError, match=said): FlexMatch(**kwargs)


def test_class_maps_are_refused():
    "Its status is of samples, and a sample of pixels has many classes"
    with pytest.raises(LabelKitError, match="FlexMatch works on single, soft: it follows one"):
        dense(FlexMatch())
