"""LabelCritic: the official rule in both orders, several producers, what is left for a human"""
import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from fastai.basics import Learner
from torch import nn, tensor

from labelkit.data.loaders import from_arrays
from labelkit.errors import LabelKitError
from labelkit.lesson.batch import look
from labelkit.models import small_cnn
from labelkit.relabel.label_critic import (
    LabelCritic,
    ModelJudge,
    ask_both,
    best_labels,
    compare_answers,
    rivals,
    sorted_out,
)

reference = json.loads((Path(__file__).parents[1]/"reference"/"label_critic.json").read_text())
words = {"overlay 1": 1, "overlay 2": 2, "neither": 0}


@pytest.mark.parametrize("case", reference["expected"])
def test_rule_of_the_official_code(case):
    kind,first,second = case.split("|")
    found = compare_answers([words[first]], [words[second]], lenient=kind == "lenient")
    want = reference["expected"][case]
    assert int(found) == (0 if want == .5 else want)


def test_nothing_is_asked_where_they_agree():
    asked = []
    def judge(items, a, b):
        asked.extend(zip(items, a.tolist(), b.tolist()))
        return [2]*len(items)
    said = torch.tensor([[1, 1], [0, 2], [3, -1], [-1, 4]])
    found = best_labels(judge, list("abcd"), said)
    assert asked == [("b", 0, 2), ("b", 2, 0)]
    assert found["label"].tolist() == [1, 0, 3, 4]
    assert found["decided"].tolist() == [True, False, True, True]
    assert found["asked"].tolist() == [0, 1, 0, 0] and found["first"] == 0.


def test_the_champion_meets_the_next():
    def larger(items, a, b): return torch.where(a > b, 1, 2)
    said = torch.tensor([[0, 2, 1], [1, 1, 1], [0, 1, 5]])
    found = best_labels(larger, torch.zeros(3, 1), said)
    assert found["label"].tolist() == [2, 1, 5] and found["decided"].all()
    assert found["asked"].tolist() == [2, 0, 2] and found["first"] == .5

def test_nobody_says_anything():
    found = best_labels(None, torch.zeros(2, 1), torch.full((2, 2), -1))
    assert not found["decided"].any() and found["first"] == .5

def test_questions_come_in_batches():
    sizes = []
    def judge(x, a, b):
        sizes.append(len(x))
        return torch.ones_like(a)
    first,second = ask_both(judge, torch.rand(5, 2), torch.zeros(5).long(), torch.ones(5).long(), 2)
    assert sizes == [2, 2, 2, 2, 1, 1] and len(first) == len(second) == 5

@pytest.mark.parametrize("kind", [list, torch.tensor, pd.Series])
def test_answers_in_any_container(kind):
    assert compare_answers(kind([1, 2]), kind([2, 2])).tolist() == [1, 0]

def test_a_model_judges():
    logits = torch.tensor([[3., 0., 0.]])
    judge = ModelJudge(lambda x: logits.expand(len(x), -1))
    x = torch.zeros(2, 1)
    a = torch.tensor([0, 1])
    b = torch.tensor([1, 2])
    assert judge(x, a, b).tolist() == [1, 0] and judge(x, b, a).tolist() == [2, 0]
    leaning = ModelJudge(lambda x: logits.expand(len(x), -1), leaning=2.)
    assert leaning(x, b, a).tolist() == [1, 1]


def data(n=24, c=3):
    x = torch.rand(2*n, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = torch.arange(2*n) % c
    return from_arrays(x[:n], y[:n], x[n:], y[n:], bs=8, vocab=["cat", "dog", "fox"])

def fit(cb, dls):
    torch.manual_seed(0)
    learn = Learner(dls, small_cnn(dls, width=2), cbs=cb, loss_func=nn.CrossEntropyLoss())
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    return learn

def larger(x, a, b): return torch.where(a > b, 1, 2)
def first(x, a, b): return torch.ones_like(a)

def test_what_is_decided_is_trained_on():
    dls = data()
    second = dls.given.clone()
    second[:12] = 2
    cb = LabelCritic(second, larger)
    fit(cb, dls)
    assert not len(cb.queue())
    changed = (dls.given[:12] != 2).sum()
    assert len(cb.table.targets) == changed and (cb.table.targets.argmax(1) == 2).all()
    assert (cb.table.weights == 1).all()

@pytest.mark.parametrize("undecided", ["drop", "keep"])
def test_what_is_open_is_for_a_human(undecided, tmp_path):
    dls = data()
    second = (dls.given + 1) % 3
    second[12:] = dls.given[12:]
    cb = LabelCritic(second, first, undecided=undecided)
    learn = fit(cb, dls)
    assert len(cb.queue()) == 12 and cb.leaning == 1.
    s = look(learn).record
    assert torch.equal(s.weights, torch.where(s.ids < 12, float(undecided == "keep"), 1.))
    queue = cb.queue()
    assert (queue.suggested_label == (queue.given_label + 1) % 3).all()
    r = cb.explore(log=str(tmp_path/"labels.db"))
    assert sorted(r.ids) == list(range(12))

def test_the_judge_reads_what_it_is_given():
    dls = data()
    seen = []
    def judge(items, a, b):
        seen.extend(items)
        return [0]*len(items)
    fit(LabelCritic((dls.given + 1) % 3, judge, items=[f"text {i}" for i in range(24)]), dls)
    assert len(seen) == 48 and set(seen) == {f"text {i}" for i in range(24)}

def test_what_was_once_undecided_stays_so():
    "Between the first two nobody decides; the third loses clearly"
    def judge(items, a, b): return torch.where((a == 2) | (b == 2), torch.where(a == 2, 2, 1), 0)
    found = best_labels(judge, ["x"], torch.tensor([[0, 1, 2]]))
    assert found["label"].tolist() == [0] and found["decided"].tolist() == [False]
    assert found["first"] == .5 and found["asked"].tolist() == [2]

def test_neither_is_no_leaning():
    def judge(items, a, b): return [1 if o % 2 else 0 for o in range(len(items))]
    found = best_labels(judge, list("abcd"), torch.tensor([[0, 1]]*4))
    assert found["first"] == 1.

def test_a_difference_of_the_margin_is_one():
    said = torch.tensor([[200., -200.]])  # probabilities of exactly 1 and 0
    judge = ModelJudge(lambda x: said, margin=1.)
    assert judge(torch.zeros(1, 1), torch.tensor([0]), torch.tensor([1])).tolist() == [1]

def test_one_order_alone():
    dls = data()
    cb = LabelCritic((dls.given + 1) % 3, first, both=False)
    fit(cb, dls)
    assert not len(cb.queue()) and len(cb.table.targets) == 0  # the first is believed

def test_candidates_and_items_are_by_id():
    "Of a third of the samples, which are not the first"
    x = torch.rand(48, 1, 8, 8)
    y = torch.arange(48) % 3
    given = y.clone()
    given[torch.arange(48) % 4 != 3] = -1
    dls = from_arrays(x, given, x, y, bs=4, vocab=["cat", "dog", "fox"])
    other = torch.full((48,), -1)
    other[[7, 15, 23]] = (y[[7, 15, 23]] + 1) % 3
    seen = []
    def judge(items, a, b):
        seen.extend(items)
        wanted = torch.tensor([(int(o) + 1) % 3 for o in items])
        return torch.where(a == wanted, 1, 2)
    cb = LabelCritic(other, judge, items=list(range(48)))
    fit(cb, dls)
    assert set(seen) == {7, 15, 23}
    assert (cb.table.place >= 0).nonzero().flatten().tolist() == [7, 15, 23]
    assert torch.equal(cb.table.targets[cb.table.place[[7, 15, 23]]].argmax(1), other[[7, 15, 23]])
    f = cb.ledger.frame().set_index("id")
    assert f.reason[7] == "another label wins" and f.reason[3] == "the producers agree"

def test_errors():
    dls = data()
    with pytest.raises(LabelKitError, match="judge is missing"): LabelCritic(dls.given)
    with pytest.raises(LabelKitError, match="for 24 samples"): fit(LabelCritic([1, 2], first), dls)
    with pytest.raises(LabelKitError, match="pass classes 0..2"):
        fit(LabelCritic(dls.given + 1, first), dls)
    with pytest.raises(LabelKitError, match="nobody was asked"): LabelCritic().queue()
    with pytest.raises(LabelKitError, match="undecided='ask'"): LabelCritic(undecided="ask")
    with pytest.raises(LabelKitError, match="a judge answers 1"): compare_answers([.5], [1])

def test_rivals():
    said = torch.tensor([[0, -1, 2], [1, 1, 1], [2, 1, 2]])
    assert rivals(said, torch.tensor([0, 1, 1])).tolist() == [2, 1, 2]


def test_what_becomes_of_each_label():
    candidates = tensor([[0, 0], [1, 2], [1, 2], [1, 2]])
    found = dict(
        label=tensor([0, 1, 2, 1]), decided=tensor([1, 1, 1, 0]) > 0, asked=tensor([0, 1, 1, 1])
    )
    o = sorted_out(found, candidates)
    assert o["changed"].tolist() == [False, False, True, False]
    assert o["reason"].tolist() == [0, 1, 2, 3]
    assert o["shown"].tolist() == [0, 1, 2, 2] and o["sure"].tolist() == [1., 1., 1., .5]


def test_items_of_a_column_that_was_split():
    seen = []
    def judge(items, a, b):
        seen.extend(items)
        return [1.]*len(items)  # whole floats are answers too
    dls = data()
    items = pd.Series([f"t{i}" for i in range(24)], index=range(100, 124))
    fit(LabelCritic((dls.given+1) % 3, judge, items=items), dls)
    assert sorted(set(seen)) == sorted(items)
    with pytest.raises(LabelKitError, match="items has 5 entries, and samples go up to 23"):
        fit(LabelCritic((dls.given+1) % 3, judge, items=["t"]*5), dls)
