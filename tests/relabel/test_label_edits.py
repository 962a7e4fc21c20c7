"""LabelEdits: what a log says is trained, when it is read, and whose log it must be"""
import random

import numpy as np
import pytest
import torch
from fastai.basics import Callback, DataLoader, DataLoaders, Learner
from torch import nn

from labelkit.core.checkpoint import Checkpoint
from labelkit.data.loaders import from_arrays, label_dls
from labelkit.errors import LabelKitError
from labelkit.models import small_cnn
from labelkit.relabel.label_edits import LabelEdits, edited_targets
from labelkit.storage.label_log import LabelLog


def data(n=24, c=3, **kwargs):
    x = torch.rand(2*n, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = torch.arange(2*n) % c
    return from_arrays(x[:n], y[:n], x[n:], y[n:], bs=8, vocab=["cat", "dog", "fox"], **kwargs)

class Records(Callback):
    order = 6
    def __init__(self): self.seen = []
    def after_pred(self):
        if self.training: self.seen.append(self.learn.supervision.record)

def learner(dls, *cbs):
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    return Learner(dls, small_cnn(dls, width=2), cbs=list(cbs), loss_func=nn.CrossEntropyLoss())

def fit(learn, epochs=1, cbs=()):
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, 1e-3, cbs=list(cbs))
    return learn

def trained(seen): return {int(i): t for s in seen for i,t in zip(s.ids, s.targets)}


@pytest.mark.parametrize("trust", [1., .75])
def test_corrected_kept_and_removed(tmp_path, trust):
    dls = data(labeled=18, noise_rate=.3)
    log = LabelLog(tmp_path/"l.db", dls)
    corrected,kept,gone = (dls.given >= 0).nonzero().flatten()[[2, 7, 11]].tolist()
    new = (int(dls.given[corrected])+1) % 3
    log.edit(corrected, new)
    log.edit(kept, int(dls.given[kept]))
    log.edit(gone, None)
    rec = Records()
    cb = fit(learner(dls, LabelEdits(log, trust=trust), rec)).label_edits
    want = torch.eye(3)[dls.given.clamp_min(0)]
    want[corrected] = edited_targets(dls.given[[corrected]], torch.tensor([new]), 3, trust)[0]
    for s in rec.seen:
        assert torch.allclose(s.targets, want[s.ids]) and torch.equal(s.y, dls.given[s.ids])
        assert torch.allclose(s.weights, torch.where(s.ids == gone, 1-trust, 1.))
    book = cb.ledger.frame().set_index("id")
    assert len(book) == 18
    assert book.reason[[corrected, kept, gone]].tolist() == [
        "corrected in review", "kept in review", "label removed in review"
    ]
    assert (book.reason == "not reviewed").sum() == 15
    assert book.suggested_label[[corrected, kept, gone]].tolist() == [
        new, int(dls.given[kept]), int(dls.given[gone])
    ]
    assert book.accepted[book.accepted].index.tolist() == sorted([corrected, gone])


class EditAt(Callback):
    "Edit the log in the middle of a fit"
    order = -100
    def __init__(self, epoch, log, sample, label):
        super().__init__()
        self.at = epoch
        self.log = log
        self.args = (sample, label)
    def before_epoch(self):
        if self.epoch == self.at: self.log.edit(*self.args)


def test_read_at_the_beginning_of_a_fit_and_not_before_the_next(tmp_path):
    dls = data()
    log = LabelLog(tmp_path/"l.db", dls)
    rec = Records()
    learn = learner(dls, LabelEdits(log), rec)
    fit(learn, 2, [EditAt(1, log, 4, "fox")])
    assert dls.given[4] == 1 and not any(s.edited for s in rec.seen)
    rec.seen.clear()
    fit(learn)
    assert trained(rec.seen)[4].argmax() == 2
    log.undo()
    rec.seen.clear()
    fit(learn)
    assert trained(rec.seen)[4].argmax() == 1 and not any(s.edited for s in rec.seen)


def test_a_fit_that_begins_later_reads_it_too(tmp_path):
    dls = data()
    log = LabelLog(tmp_path/"l.db", dls)
    rec = Records()
    learn = learner(dls, LabelEdits(log), rec)
    fit(learn)
    log.edit(4, "fox")
    rec.seen.clear()
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-3, start_epoch=1)
    assert trained(rec.seen)[4].argmax() == 2


def test_a_fit_that_goes_on_keeps_the_labels_it_began_with(tmp_path):
    class Stop(Callback):
        def before_epoch(self):
            if self.epoch == 1: raise KeyboardInterrupt
    dls = data()
    log = LabelLog(tmp_path/"l.db", dls)
    log.edit(4, "fox")
    with pytest.raises(KeyboardInterrupt):
        fit(learner(dls, LabelEdits(log)), 2, [Checkpoint(tmp_path/"c.pt"), Stop()])
    log.edit(4, "cat")
    rec = Records()
    fit(learner(data(), LabelEdits(log), rec), 2, [Checkpoint(tmp_path/"c.pt")])
    assert trained(rec.seen)[4].argmax() == 2 and len(rec.seen) == 3


def test_not_in_a_search(tmp_path):
    from fastai.callback import schedule  # noqa: F401  adds lr_find
    dls = data()
    log = LabelLog(tmp_path/"l.db", dls)
    log.edit(4, "fox")
    learn = learner(dls, LabelEdits(log))
    with learn.no_bar(), learn.no_logging(): learn.lr_find(num_it=4, show_plot=False)
    assert not learn.label_edits.found and not len(learn.label_edits.table.targets)


class TestWhose:
    def refused(self, cb, dls, text):
        with pytest.raises(LabelKitError, match=text): fit(learner(dls, cb))

    def test_of_other_labels_or_classes(self, tmp_path):
        log = LabelLog(tmp_path/"l.db", data())
        self.refused(LabelEdits(log), data(noise_rate=.5), "with other given labels than dls has")
        self.refused(LabelEdits(log), data(n=30), "log is of 24 samples")
        words = LabelLog(tmp_path/"w.db", data().given, vocab=["a", "b", "c"])
        self.refused(LabelEdits(words), data(), "which are not the 3 of dls")
        self.refused(LabelEdits(tmp_path/"none.db"), data(), "is no file")
        with pytest.raises(LabelKitError, match="trust=2"): LabelEdits(log, trust=2)

    def test_of_samples_that_have_keys(self, tmp_path):
        "A path alone does not say which key is which sample; the log opened with the data does"
        dls = data()
        names = [f"{i}.png" for i in range(24)]
        with LabelLog(tmp_path/"k.db", dls.given, dls.vocab, keys=names) as log:
            log.edit("4.png", "fox")
        self.refused(LabelEdits(tmp_path/"k.db"), dls, "log knows its samples by key")
        order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
        x = dls.train_ds.arrays.x[order]
        y = dls.given[order]
        items = [(x[i], y[i]) for i in range(24)]
        own = label_dls(DataLoaders(DataLoader(items, bs=8, shuffle=True), DataLoader(items, bs=8)))
        own.vocab = dls.vocab
        own.c = 3
        there = LabelLog(tmp_path/"k.db", y, dls.vocab, keys=[names[i] for i in order])
        cb = fit(learner(own, LabelEdits(there))).label_edits
        hit = (cb.table.place >= 0).nonzero().flatten()
        assert order[hit].tolist() == [4] and cb.table.targets.argmax(1).tolist() == [2]


def test_random_reviews_of_the_claim_know_nothing_of_the_noise():
    (claim,) = LabelEdits.card.claims
    for seed in range(claim.seeds):
        dls = claim.data(seed=seed)
        log = claim.rows["reviewed at random"](dls).log
        met = torch.tensor(list(log.standing()))
        assert (dls.given[met] != dls.truth[met]).float().mean() < .25, seed
