"FPL, IFPL and GRIP: who gets a label, how many in each round, whose scores, and a fresh start"
import numpy as np
import pandas as pd
import pytest
import torch
from torch import tensor

from contract import data, fit, learner, model
from labelkit.errors import LabelKitError
from labelkit.parts.phases import weights_of
from labelkit.pseudo.pseudo_label_schedules import (
    PseudoLabelSchedules, again_and_again, schedule_counts, scores_of, shared_out, topic_scores,
    worst_recall,
)
from labelkit.data.samples import Samples
from labelkit.data.sets import sentences
from mix.mixtools import Keep


def greedy(scores, k):
    "All pairs from the highest score on, one class a sample, k samples a class"
    n,c = scores.shape
    label = [-1]*n
    left = [k]*c
    for i in scores.flatten().argsort(descending=True).tolist():
        row,cls = divmod(i, c)
        if label[row] < 0 and left[cls]:
            label[row] = cls
            left[cls] -= 1
    return label


class TestSharing:
    @pytest.mark.parametrize("k", [1, 3, 7, 30])
    def test_it_is_the_greedy_one(self, k):
        scores = torch.rand(40, 5, generator=torch.Generator().manual_seed(k)).log_softmax(1)
        assert shared_out(scores, k).tolist() == greedy(scores, k)

    def test_edges(self):
        favourite = tensor([[.9, .1, 0.]]).repeat(4, 1) + torch.arange(4)[:, None]/100
        assert sorted(shared_out(favourite, 1).tolist()) == [-1, 0, 1, 2]  # nobody asked for two
        assert shared_out(favourite[:1], 1).tolist() == [0]
        assert shared_out(favourite, 4).tolist() == [0]*4
        assert favourite.isfinite().all()  # what was given is untouched

    def test_counts(self):
        assert schedule_counts("fpl", 10, 16, 900, 5) == [16]
        assert schedule_counts("ifpl", 3, 16, 900, 5) == [16]*3
        assert schedule_counts("grip", 10, 16, 1000, 5) == list(range(20, 201, 20))
        assert schedule_counts("grip", 3, 16, 7, 5) == [1, 1, 2]  # the last takes all


class Beginnings(PseudoLabelSchedules):
    "Note for each epoch whether it begins with the weights of the beginning"
    def setup(self):
        super().setup()
        self.found = []
    def before_steps(self):
        super().before_steps()
        now = weights_of(self.learn)
        self.found.append(torch.equal(now["head.weight"], self.beginning["head.weight"]))


class TestRounds:
    def scorer(self, dls):
        "Right for every sample, but of one class less surely"
        scores = torch.nn.functional.one_hot(dls.truth, 10).float()*5
        scores[:, 3] -= 1
        return scores

    def run(self, *args, epochs=4, **kwargs):
        dls = data()
        cb = PseudoLabelSchedules(self.scorer(dls), *args, **kwargs)
        return fit(learner([cb], dls=dls), epochs),cb

    def test_labels_of_a_table_of_scores(self):
        learn,cb = self.run("fpl", k=2)
        label = cb.pseudo_label
        assert (label[label >= 0] == learn.dls.truth[label >= 0]).all()
        assert label[label >= 0].bincount(minlength=10).tolist() == [2]*10
        assert (label[learn.dls.given >= 0] == -1).all()
        assert cb.ledger.epochs == [0]

    def test_grip_takes_everything_in_the_end(self):
        _,cb = self.run("grip", rounds=4)
        assert cb.ledger.epochs == [0, 1, 2, 3]
        assert (cb.pseudo_label >= 0).sum() == 96
        _,cb = self.run("grip", rounds=4, epochs=2)  # fewer epochs than rounds
        assert (cb.pseudo_label >= 0).sum() == 96

    def test_a_later_round_begins_anew(self):
        for fresh in (True, False):
            cb = Beginnings(self.scorer(data()), "ifpl", rounds=2, fresh=fresh)
            fit(learner([cb]), 4)
            assert cb.found == [True, False, fresh, False]

    def test_a_scorer_needs_no_warmup(self):
        _,cb = self.run("ifpl", rounds=2, warmup=.5)
        assert cb.ledger.epochs == [0, 2]

    def test_later_rounds_ask_the_model(self):
        "What was trained, and not the scorer again"
        dls = data()
        table = self.scorer(dls)
        for rounds in (1, 2):
            cb = PseudoLabelSchedules(table, "ifpl", rounds=rounds)
            fit(learner([cb], dls=dls), 2)
            f = cb.ledger.frame()
            said = table[f.id.tolist()].softmax(1).amax(1).numpy()
            same = np.allclose(f.confidence.to_numpy(float), said, atol=1e-3)
            assert len(f) and same == (rounds == 1)

    def test_a_batch_learns_the_labels_of_its_own_samples(self):
        learn,cb = self.run("fpl", k=3, epochs=1)
        keep = Keep()
        fit(learn, 1, [keep])
        for s in keep.seen:
            ids = s.own(cb).ids
            label = cb.pseudo_label[ids]
            assert (label >= 0).all() and torch.equal(label, learn.dls.truth[ids])
            z = s.outputs["pseudo_label_schedules"]
            want = torch.nn.functional.cross_entropy(z, label)
            torch.testing.assert_close(s.losses["pseudo_label_schedules"][0], want)

    def test_every_class_is_trained_on(self):
        _,cb = self.run("fpl", k=3, epochs=1)
        samples = Samples(cb.dls.unlabeled)
        at = (cb.pseudo_label[samples.ids] >= 0).nonzero().flatten()
        batches = again_and_again(samples, at, cb.rng)
        ids = torch.cat([next(batches).ids for _ in range(6)])
        assert set(cb.pseudo_label[ids].tolist()) == set(range(10))

    def test_the_first_round_goes_on_from_the_warmup(self):
        cb = Beginnings(None, "fpl", k=3, warmup=.5)
        fit(learner([cb]), 4)
        assert cb.found == [True, False, False, False]

    def test_scorers_of_any_kind(self):
        dls = data()
        net = model(5)
        for o in (net, lambda x: net(x)):
            cb = PseudoLabelSchedules(o, "fpl", k=3)
            fit(learner([cb], dls=dls))
            assert (cb.pseudo_label >= 0).sum() == 30
        cb = PseudoLabelSchedules(None, "fpl", k=3, warmup=.5)
        fit(learner([cb], dls=dls), 4)
        assert cb.ledger.epochs == [2]
        with pytest.raises(LabelKitError, match="scorer gives 7 scores for 10 classes"):
            fit(learner([PseudoLabelSchedules(torch.zeros(160, 7))], dls=dls))


def test_sentences_are_scored_without_a_label():
    dls = sentences(labeled=10)
    scores = topic_scores(dls)
    assert scores.shape == (dls.n_ids, 5)
    right = (scores.argmax(1) == dls.truth).float()
    assert .4 < right.mean() < .7
    assert right[shared_out(scores, 16) >= 0].mean() > right.mean()


def test_worst_recall():
    learn = learner()
    with torch.no_grad():
        learn.model.head.weight.zero_()
        learn.model.head.bias.copy_(torch.eye(10)[3])
    assert worst_recall(learn) == 0


def test_some_samples_again_and_again():
    samples = Samples(data().unlabeled)
    at = tensor([3, 5, 8])
    batches = again_and_again(samples, at, torch.Generator().manual_seed(0))
    for _ in range(3): assert set(next(batches).ids.tolist()) == set(samples.ids[at].tolist())
    assert not list(again_and_again(samples, at[:0], torch.Generator()))


def test_worst_recall_is_the_least_of_all_classes():
    learn = learner()
    y = torch.cat([b[1] for b in learn.dls.valid])
    at = iter(y.split(learn.dls.valid.bs))
    flip = (y == y[0]).nonzero().flatten()[0]
    class Almost(torch.nn.Module):
        def forward(self, x):
            z = torch.nn.functional.one_hot(y, 10).float()
            z[flip] = z[flip].roll(1)
            return z
    learn.model = Almost()
    n = int((y == y[0]).sum())
    assert worst_recall(learn) == pytest.approx((n-1)/n) and at


def test_scores_in_every_container():
    dls = data()
    scores = torch.rand(dls.n_ids, 10)
    learn = learner(dls=dls)
    samples = Samples(dls.unlabeled)
    want = scores[samples.ids].log_softmax(1)
    names = list("0123456789")
    turned = pd.DataFrame(scores.numpy(), columns=names)[names[::-1]]
    tables = (scores, scores.numpy(), scores.tolist(), pd.DataFrame(scores.numpy()), turned)
    for table in tables:
        torch.testing.assert_close(scores_of(learn, samples, table)[1], want)
    with pytest.raises(LabelKitError, match="scorer has 12 rows, and ids go up to"):
        scores_of(learn, samples, scores[:12])
    scores[5] = float("nan")
    with pytest.raises(LabelKitError, match="scorer has no number in row 5"):
        scores_of(learn, samples, scores)
    with pytest.raises(LabelKitError, match="scorer is 'clip': pass a model"):
        PseudoLabelSchedules("clip")
