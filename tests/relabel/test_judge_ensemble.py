"""JudgeEnsemble: who may judge and how, the mean by hand, what is dropped or flipped"""
import random

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.basics import Learner
from sklearn.dummy import DummyClassifier
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from labelkit.data.loaders import from_arrays
from labelkit.errors import LabelKitError
from labelkit.lesson.batch import look
from labelkit.models import small_cnn
from labelkit.relabel.judge_ensemble import (
    JudgeEnsemble,
    ask_judges,
    confidence_bins,
    five_judges,
    judge_labels,
    named_judges,
    read_answers,
    reason_of_judges,
    verdicts,
)


def data(n=60, c=3, wrong=6, **kwargs):
    "Pictures whose brightness is their class, some of them labeled wrong"
    y = torch.arange(2*n) % c
    g = torch.Generator().manual_seed(0)
    x = (y/c).view(-1, 1, 1, 1) + .05*torch.rand(2*n, 1, 8, 8, generator=g)
    given = y.clone()
    given[:wrong] = (y[:wrong]+1) % c
    vocab = ["cat", "dog", "fox"]
    dls = from_arrays(x[:n], given[:n], x[n:], y[n:], bs=8, vocab=vocab, **kwargs)
    dls.real = y[:n]
    return dls

def learner(dls, cb):
    torch.manual_seed(0)
    return Learner(dls, small_cnn(dls, width=2), cbs=cb, loss_func=nn.CrossEntropyLoss())

def fit(learn):
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    return learn

def bright(x): return (x.mean((1, 2, 3))*3).long().clamp(0, 2)


def test_mean_by_hand():
    p = torch.tensor([[.9, .1, 0.], [.2, .8, 0.], [.1, .7, .2]])[:, None]
    f = judge_labels(torch.tensor([0]), p)
    assert torch.allclose(f["probs"], torch.tensor([[1.2/3, 1.6/3, .2/3]]))
    assert f["suggested_label"].item() == 1 and f["flagged"].item()
    assert f["confidence"].item() == pytest.approx(1.6/3)
    assert f["label_quality"].item() == pytest.approx(.4)
    assert f["dissent"].item() == pytest.approx(2/3)
    assert not judge_labels(torch.tensor([0]), p, .6)["flagged"].item()
    f = judge_labels(torch.tensor([1]), p)
    assert not f["flagged"].item() and f["suggested_label"].item() == 0


def test_who_says_nothing_does_not_count():
    p = torch.tensor([[[0., 0.], [.3, .7]], [[0., 0.], [0., 0.]]])
    f = judge_labels(torch.tensor([0, 0]), p)
    assert f["flagged"].tolist() == [False, True]  # about the first nobody says anything
    assert f["confidence"].tolist() == pytest.approx([0., .7])
    assert f["dissent"].tolist() == [0., 1.]


def test_kinds_of_judges_say_the_same():
    x = torch.tensor([[0.], [1.], [0.], [1.]])
    y = torch.tensor([0, 1, 0, 1])
    eye = torch.eye(2)[y]
    kinds = dict(
        classes=lambda b: b[:, 0].long(), probs=lambda b: torch.eye(2)[b[:, 0].long()],
        array=lambda b: b[:, 0].long().numpy(), table=y, list=[0, 1, 0, 1],
        frame=pd.DataFrame(eye.numpy()), columns=pd.Series([0., 1., 0., 1.]).astype(int),
        classifier=KNeighborsClassifier(1),
    )
    answers = ask_judges(kinds, x, y, 2, folds=2)
    assert answers.shape == (8, 4, 2)
    for a in answers: assert torch.allclose(a, eye)


def test_nobody_judges_what_they_were_trained_on():
    torch.manual_seed(0)
    x = torch.rand(40, 3)
    y = torch.arange(40) % 2
    answers = ask_judges(dict(nearest=KNeighborsClassifier(1)), x, y, 2)
    # a nearest neighbour repeats the label of what it has seen; labels are random here
    assert (answers[0].argmax(1) == y).float().mean() < .9
    seen = KNeighborsClassifier(1).fit(x.numpy(), y.numpy()).predict(x.numpy())
    assert (seen == y.numpy()).all()


def test_a_class_that_a_classifier_never_saw():
    x = torch.rand(8, 2)
    y = torch.tensor([0, 0, 0, 0, 2, 2, 2, 2])
    answers = ask_judges(dict(often=DummyClassifier(strategy="prior")), x, y, 3, folds=2)
    assert torch.allclose(answers.sum(2), torch.ones(1, 8)) and (answers[0, :, 1] == 0).all()


def test_draws_follow_the_seed_and_nothing_else_moves():
    x = torch.rand(30, 3)
    y = torch.arange(30) % 3
    forest = dict(forest=five_judges()["forest"])
    before = torch.random.get_rng_state(),np.random.get_state()[1].copy(),random.getstate()
    a,b,c = (ask_judges(forest, x, y, 3, seed=s) for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all() and before[2] == random.getstate()
    assert not hasattr(forest["forest"], "estimators_")  # a copy is trained


def test_names():
    assert list(named_judges([bright, bright, DummyClassifier()])) == [
        "bright 0", "bright 1", "DummyClassifier"
    ]
    assert list(named_judges({1: bright})) == ["1"] and len(named_judges(None)) == 5
    for bad in ([], {}, "five", 3):
        with pytest.raises(LabelKitError, match="at least one judge"): named_judges(bad)


def test_nobody_dissents_by_saying_nothing():
    p = torch.tensor([[[0., 0., 0.]], [[.1, .8, .1]]])
    f = judge_labels(torch.tensor([1]), p)
    assert f["dissent"].item() == 0 and not f["flagged"].item()
    f = judge_labels(torch.tensor([2]), p)
    assert f["dissent"].item() == 1 and f["confidence"].item() == pytest.approx(.8)


def test_the_threshold_itself_is_enough_and_the_label_must_be_beaten():
    p = torch.tensor([[[.5, .25, .25]], [[.5, .25, .25]]])
    assert judge_labels(torch.tensor([1]), p, .5)["flagged"].item()
    assert not judge_labels(torch.tensor([1]), p, .51)["flagged"].item()
    tie = torch.tensor([[[.5, .5]]])
    assert not judge_labels(torch.tensor([1]), tie, .5)["flagged"].item()
    assert not judge_labels(torch.tensor([0]), torch.tensor([[[.9, .1]]]), 0.)["flagged"].item()


def test_reasons():
    dissent = torch.tensor([1., .75, .5, .4, 1.])
    flagged = torch.tensor([True, True, True, True, False])
    assert reason_of_judges(dissent, flagged).tolist() == [1, 2, 3, 3, 0]  # half are not most


def test_each_fold_draws_other_numbers_and_answers_stand_where_they_belong():
    class Draws:
        "Says by which seed, and in which order, it was asked"
        classes_ = np.array([0, 1])
        def __init__(self, random_state=None): self.random_state = random_state
        def get_params(self): return dict(random_state=self.random_state)
        def set_params(self, random_state): self.random_state = random_state
        def fit(self, x, y): seeds.append((self.random_state, len(y)))
        def predict_proba(self, x): return np.stack([x[:, 0], 1-x[:, 0]], 1)
    seeds = []
    x = torch.rand(20, 1)
    own = Draws()
    said = ask_judges(dict(a=own), x, torch.arange(20) % 2, 2, folds=4, seed=7)[0]
    torch.testing.assert_close(said[:, 0], x[:, 0])
    assert [o[0] for o in seeds] == [7, 8, 9, 10] and {o[1] for o in seeds} == {15}
    assert own.random_state is None


def test_settings_reach_the_judges():
    dls = data(labeled=24)
    wrong = JudgeEnsemble(dict(a=lambda b: torch.eye(3)[bright(b)]*.4 + .2), threshold=.65)
    assert not fit(learner(dls, wrong)).judge_ensemble.ledger.frame().flagged.any()
    sizes = []
    class Counts(DummyClassifier):
        def fit(self, x, y):
            sizes.append(len(y))
            return super().fit(x, y)
    fit(learner(dls, JudgeEnsemble([Counts(strategy="prior")], folds=3)))
    assert len(sizes) == 3


def test_flipped_samples_that_are_not_the_first():
    dls = data(wrong=0)
    dls.train_ds.arrays.y[40:43] = (dls.train_ds.arrays.y[40:43] + 1) % 3
    cb = fit(learner(dls, JudgeEnsemble([bright], action="flip"))).judge_ensemble
    assert (cb.table.place >= 0).nonzero().flatten().tolist() == [40, 41, 42]
    assert torch.equal(cb.table.targets.argmax(1), dls.real[40:43])


def test_verdicts_by_hand():
    "Of a flagged label the judges' own one and its probability, else the given one and its"
    labels = torch.tensor([0, 1])
    answers = torch.tensor([[[.2, .8], [.3, .7]], [[.4, .6], [.1, .9]]])
    v = verdicts(labels, judge_labels(labels, answers))
    assert v["label"].tolist() == [1, 1] and v["accepted"].tolist() == [True, False]
    assert v["confidence"].tolist() == pytest.approx([.7, .8])
    assert v["label_quality"].tolist() == pytest.approx([.3, .8])

def test_bins():
    t = confidence_bins(
        torch.tensor([.15, .95, 1., .9, .5]), torch.tensor([True, True, True, True, False]),
        torch.tensor([False, True, True, False, True]), bins=10,
    )
    assert t.index.tolist() == ["0.1 to 0.2", "0.9 to 1.0"]
    assert t.flagged.tolist() == [1, 3] and t.precision.tolist() == pytest.approx([0., 2/3])


@pytest.mark.parametrize("action", ["drop", "flip"])
def test_what_is_trained(action, tmp_path):
    dls = data()
    judges = dict(bright=bright, near=KNeighborsClassifier(5))
    learn = learner(dls, JudgeEnsemble(judges, action=action))
    s = look(learn).record
    bad = (dls.given != dls.real)[s.ids]
    if action == "drop":
        assert torch.equal(s.weights, (~bad).float())
        assert torch.equal(s.targets.argmax(1), dls.given[s.ids])
    else:
        assert torch.equal(s.targets.argmax(1), dls.real[s.ids]) and (s.weights == 1).all()
    cb = fit(learn).judge_ensemble
    book = cb.ledger.frame().set_index("id")
    assert book.flagged.sum() == 6 and (book.suggested_label == dls.real.numpy()).all()
    assert set(book.reason[book.flagged]) <= {"all judges name another", "most judges name another"}
    assert set(book.reason[~book.flagged]) == {"judges agree with the label"}
    t = cb.judges_table()
    assert t.index.tolist() == ["bright", "near"] and t.answers.tolist() == [60, 60]
    assert t.agrees["bright"] == pytest.approx(.9)
    assert len(cb.explore(log=tmp_path/"l.db").ids) == 6


def test_threshold_and_few_labels():
    dls = data()
    never = JudgeEnsemble(dict(bright=bright), threshold=1.)
    assert fit(learner(dls, never)).judge_ensemble.ledger.frame().flagged.sum() == 6  # sure ones
    unsure = JudgeEnsemble(dict(a=lambda b: torch.eye(3)[bright(b)]*.7 + .1), threshold=.9)
    assert not fit(learner(dls, unsure)).judge_ensemble.ledger.frame().flagged.any()
    few = data(labeled=24)
    table = few.real
    cb = fit(learner(few, JudgeEnsemble(dict(table=table)))).judge_ensemble
    assert cb.answers.shape == (1, 24, 3)
    assert torch.equal(cb.answers[0].argmax(1), table[cb.ids])


def test_bad_input():
    dls = data()
    nan = lambda b: torch.full((len(b), 3), float("nan"))
    for judges,said in (
        (dict(a=lambda b: b), "judge 'a' answers with shape"),
        (dict(a=lambda b: torch.ones(len(b), 3)), "judge 'a' gives sample 0 numbers"),
        (dict(a=nan), "judge 'a' gives sample 0 numbers"),
        (dict(a=lambda b: torch.full((len(b),), 3)), "class numbers below 3"),
        (dict(a=lambda b: ["cat"]*len(b)), "answers"),
        (dict(a=[0, 1]), "judge 'a' has 2 answers"),
        ([], "at least one judge"),
    ):
        with pytest.raises(LabelKitError, match=said): fit(learner(dls, JudgeEnsemble(judges)))
    def breaks(b): raise KeyError("x")
    with pytest.raises(KeyError) as e: fit(learner(dls, JudgeEnsemble([breaks])))
    assert any("in the judge 'breaks'" in o for o in e.value.__notes__)
    for kwargs,said in ((dict(action="fix"), "action='fix'"), (dict(threshold=2), "threshold=2"),
                        (dict(folds=1), "folds=1")):
        with pytest.raises(LabelKitError, match=said): JudgeEnsemble(**kwargs)
    with pytest.raises(LabelKitError, match="nobody was asked yet"): JudgeEnsemble().judges_table()
    with pytest.raises(LabelKitError, match="folds=50"):
        fit(learner(dls, JudgeEnsemble(dict(k=KNeighborsClassifier(1)), folds=50)))
    with pytest.raises(LabelKitError, match="judge 'a' answers with shape"):
        read_answers(torch.zeros(2, 2), 3, 2, "a")


@pytest.mark.parametrize("answers", [
    np.array([0, np.nan, 1]), pd.array([0, None, 1], dtype="Int64"), [0, -1, 1], [0, None, 1.],
])
def test_a_gap_in_a_table_is_no_answer(answers):
    assert read_answers(answers, 3, 2, "me").tolist() == [[1, 0], [0, 0], [0, 1]]


def test_a_class_is_no_judge():
    with pytest.raises(LabelKitError, match=r"is a class: pass DummyClassifier\(\)"):
        named_judges(dict(me=DummyClassifier))


def test_a_table_of_answers_by_class_name():
    x = torch.rand(12, 1, 8, 8)
    y = ["bac"[i % 3] for i in range(12)]
    dls = from_arrays(x, y, x, y, bs=4, vocab=list("bac"))
    said = pd.DataFrame(np.eye(3)[[0, 1, 2]*4], columns=list("bac"))[list("abc")]
    cb = JudgeEnsemble(dict(me=said))
    fit(Learner(dls, small_cnn(dls, width=4), cbs=cb))
    assert cb.answers[0].argmax(1).tolist() == [0, 1, 2]*4
    assert not cb.ledger.frame().flagged.any()
