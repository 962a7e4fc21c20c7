"""AnnotatorQuality: quality on gold samples, consensus and risk by hand, who is asked next"""
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.basics import Learner
from torch import nn

from labelkit.data.loaders import from_arrays
from labelkit.data.settings import annotators
from labelkit.errors import LabelKitError
from labelkit.lesson.batch import look
from labelkit.models import small_cnn
from labelkit.relabel.annotator_quality import (
    AnnotatorQuality,
    GoldVote,
    bayes_risk,
    gold_quality,
    next_questions,
    posterior_consensus,
    quality_score,
    risk_by_site,
    trained_on,
    weighted_consensus,
    with_gold,
)
from labelkit.relabel.label_models import MajorityVote


def data(n=24, c=3, **kwargs):
    x = torch.rand(2*n, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = torch.arange(2*n) % c
    return from_arrays(x[:n], y[:n], x[n:], y[n:], bs=8, vocab=["cat", "dog", "fox"], **kwargs)

def answers(dls, rates=(.1, .5, .7), coverage=.8, known=3):
    votes = annotators(dls.truth, len(rates), list(rates), 3, generator=0, coverage=coverage)
    gold = dls.truth.where(torch.arange(len(dls.truth)) % known == 0, -1)
    return votes,gold

def learner(dls, cb):
    torch.manual_seed(0)
    return Learner(dls, small_cnn(dls, width=2), cbs=cb, loss_func=nn.CrossEntropyLoss())

def fit(learn):
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    return learn


def test_who_is_trained_on_by_hand():
    said = torch.tensor([[.9, .1], [.5, .5], [.5, .5], [.6, .4]])
    gold = torch.tensor([-1, 1, -1, -1])
    said = with_gold(said, gold)
    assert said[1].tolist() == [0, 1] and said[0].tolist() == pytest.approx([.9, .1])
    told,risky,reason = trained_on(said, gold >= 0, torch.tensor([3, 0, 0, 2]), .3)
    assert told.tolist() == [True, True, False, True]
    assert risky.tolist() == [False, False, False, True]
    assert [AnnotatorQuality.reasons[i] for i in reason] == [
        "consensus", "gold label", "nobody was asked", "consensus too risky"
    ]


def test_score_is_the_papers():
    parts = dict(area=[.75], number=[.33], edge=[.05], category=[.9])
    want = .55*.75 + .225*.33 + .1*.05 + .125*.9
    assert quality_score(parts).item() == pytest.approx(want, abs=1e-6)
    assert quality_score(dict(a=[0, 1]), dict(a=1.)).tolist() == [0, 1]
    with pytest.raises(LabelKitError, match="add up to 1"):
        quality_score(dict(a=[.5]), dict(a=.5))
    with pytest.raises(LabelKitError, match="from 0 to 1"):
        quality_score(dict(a=[1.5]), dict(a=1.))


@pytest.mark.parametrize("kind", [torch.tensor, np.array, list, pd.DataFrame])
def test_quality_by_hand(kind):
    votes = kind([[0, 0], [0, 0], [1, 0], [1, 0], [1, 1]])
    q = gold_quality(votes, [0, 0, 1, 1, None])
    assert q["asked"].tolist() == [4, 4]
    assert torch.allclose(q["accuracy"], torch.tensor([5.5/6, 3.5/6]))
    assert torch.allclose(q["producer"][1], torch.tensor([(2+7/6)/4, (7/6)/4]))


def test_without_smoothing_it_is_the_share():
    votes = torch.tensor([[0, -1], [1, 1], [1, 0]])
    q = gold_quality(votes, torch.tensor([0, 0, 1]), smoothing=0)
    assert q["accuracy"].tolist() == pytest.approx([2/3, 0.])
    assert q["producer"].tolist() == [[.5, 1.], [0., 0.]]
    # a class without gold: as good as elsewhere
    q = gold_quality(torch.tensor([[0], [1]]), torch.tensor([0, 0]), c=3, smoothing=0)
    assert q["producer"].tolist() == [[.5, .5, .5]]


def test_weighted_consensus_is_normalised():
    w = torch.tensor([[.9, .8], [.4, .4], [.4, .2]])
    votes = torch.tensor([[0, 1, 1], [1, -1, 1], [-1, -1, -1]])
    c = weighted_consensus(votes, w)
    assert torch.allclose(c, torch.tensor([[.9/1.5, .6/1.5], [0., 1.], [.5, .5]]))
    assert torch.allclose(bayes_risk(c), torch.tensor([.4, 0., .5]))
    # weak people who agree are believed, whatever their weights are
    assert weighted_consensus(torch.tensor([[1, 1]]), torch.full((2, 2), .1))[0, 1] == 1
    assert weighted_consensus(torch.zeros(0, 2).long(), torch.ones(2, 3)).shape == (0, 3)

@pytest.mark.parametrize("votes, weights, said", [
    ([0, 1], (2, 2), r"votes has shape \(2,\)"), ([[0, 1]], (2,), r"weights \(2,\)"),
    ([[0, 1]], (3, 2), r"votes has shape \(1, 2\) and weights \(3, 2\)"),
    ([[0, 4]], (2, 2), "votes go from 0 to 4"), ([[0, .5]], (2, 2), "float32"),
])
def test_what_is_no_consensus(votes, weights, said):
    with pytest.raises(LabelKitError, match=said):
        weighted_consensus(torch.tensor(votes), torch.ones(weights))


def test_posterior_is_bayes_rule():
    torch.manual_seed(1)
    producer = torch.rand(4, 3)*.8 + .1
    votes = torch.randint(-1, 3, (50, 4))
    prior = torch.tensor([.5, .3, .2])
    want = prior.repeat(50, 1)
    for n in range(50):
        for a in range(4):
            if (v := int(votes[n, a])) < 0: continue
            for k in range(3):
                want[n, k] *= producer[a, k] if v == k else (1-producer[a, k])/2
    want /= want.sum(1, keepdim=True)
    assert torch.allclose(posterior_consensus(votes, producer, prior), want, atol=1e-5)
    assert torch.allclose(bayes_risk(want), 1 - want.max(1).values)


def test_majority_pool_is_the_majority():
    dls = data()
    votes,gold = answers(dls)
    ours = GoldVote(gold, "majority").fit(votes, 3).predict_proba(votes)
    assert torch.equal(ours, MajorityVote().fit(votes, 3).predict_proba(votes))


def test_own_quality_weighs():
    votes = torch.tensor([[0, 1], [1, 0], [0, 1]])
    gold = torch.tensor([0, 0, -1])
    trusted = lambda q: GoldVote(gold, "weighted", quality=q).fit(votes, 2).predict_proba(votes)[2]
    assert trusted([1., .1]).argmax() == 0 and trusted([.1, 1.]).argmax() == 1
    with pytest.raises(LabelKitError, match="2 annotators"): trusted([.5])


def test_state_comes_back():
    dls = data()
    votes,gold = answers(dls)
    one = GoldVote(gold).fit(votes, 3)
    two = GoldVote(gold)
    two.load_state_dict(one.state_dict())
    assert torch.equal(one.predict_proba(votes), two.predict_proba(votes))


def test_the_average_is_over_answers_and_pulls_each_class_towards_its_annotator():
    "Three answers of the first count more than one of the second"
    votes = torch.tensor([[0, -1], [0, -1], [1, 1], [-1, -1]])
    gold = torch.tensor([0, 0, 1, 1])
    q = gold_quality(votes, gold, smoothing=1.)
    assert q["asked"].tolist() == [3, 1]
    assert q["accuracy"].tolist() == pytest.approx([1., 1.])
    votes[0, 0] = 1
    q = gold_quality(votes, gold, smoothing=1.)
    average = 3/4
    first = (2 + average)/4
    assert q["accuracy"].tolist() == pytest.approx([first, (1 + average)/2])
    assert q["producer"][0].tolist() == pytest.approx([(1 + first)/3, (1 + first)/2])


def test_nobody_votes_for_the_first_class_by_saying_nothing():
    w = torch.full((2, 2), .5)
    assert weighted_consensus(torch.tensor([[1, -1]]), w).tolist() == [[0., 1.]]


def test_risk_at_the_threshold_is_none():
    t = risk_by_site(torch.tensor([.5, .5]), ["n", "n"], .5)
    assert t.loc["n", "risky"] == 0


def test_who_was_not_asked_keeps_the_given_label():
    dls = data()
    votes,gold = answers(dls)
    votes[1::2] = -1
    gold[1::2] = -1
    x = dls.given.clone()
    learn = fit(learner(dls, AnnotatorQuality(votes, gold, max_risk=.1)))
    cb = learn.annotator_quality
    book = cb.ledger.frame().set_index("id")
    alone = torch.arange(24) % 2 == 1
    assert (book.suggested_label[alone.numpy()].to_numpy() == x[alone].numpy()).all()
    assert (cb.table.place[alone] == -1).all() and (cb.table.weights[alone] == 1).all()
    risky = torch.tensor((book.reason == "consensus too risky").to_numpy())
    assert risky.any() and torch.equal(cb.table.weights == 0, risky)


def test_labeled_samples_that_are_not_the_first():
    "By id: votes, gold, weights"
    dls = data(labeled=10)
    votes,gold = answers(dls)
    learn = fit(learner(dls, AnnotatorQuality(votes, gold, max_risk=.2)))
    cb = learn.annotator_quality
    told = {int(i) for i in cb.ids}
    weighted = {int(i) for i in (cb.table.weights != 1).nonzero()}
    p = with_gold(GoldVote(gold).fit(votes, 3).predict_proba(votes), gold)
    asked = (votes >= 0).any(1) | (gold >= 0)
    risky = asked & (bayes_risk(p) > .2)
    assert len(told) == 10 and weighted == {i for i in told if risky[i]} and weighted


def test_the_weighted_pool_counts_quality_and_class():
    votes = torch.tensor([[0, 1], [0, 1], [1, 1], [0, 1]])
    gold = torch.tensor([0, 0, 1, -1])
    model = GoldVote(gold, "weighted").fit(votes, 2)
    w = model.accuracy[:, None]*model.producer
    want = torch.stack([w[0, 0], w[1, 1]])
    assert torch.allclose(model.predict_proba(votes)[3], want/want.sum())


def test_sites():
    t = risk_by_site(torch.tensor([.1, .5, .4, 0.]), ["n", "n", "s", "s"], .34)
    assert t.loc["n"].tolist() == pytest.approx([2, .3, .5])
    assert t.loc["s"].tolist() == pytest.approx([2, .2, .5])
    with pytest.raises(LabelKitError, match="site has 1"): risk_by_site(torch.zeros(2), ["n"])


def test_who_is_asked_next():
    votes = pd.DataFrame([[0, -1, -1], [-1, 0, -1], [0, 1, 1], [1, -1, -1]], columns=list("abc"))
    c = torch.tensor([[.6, .4], [.9, .1], [.5, .5], [.2, .8]])
    q = torch.tensor([.9, .7, .8])
    todo = next_questions(votes, c, q)
    assert todo["sample"].tolist() == [0, 3, 1]  # about the third everybody was asked
    assert todo.annotator.tolist() == ["c", "c", "a"]
    assert todo.risk.tolist() == pytest.approx([.4, .2, .1])
    assert next_questions(votes, c, q, each=1).annotator.tolist() == ["c", "b", "a"]
    assert len(next_questions(votes, c, q, n=2)) == 2
    with pytest.raises(LabelKitError, match="quality 2 entries"): next_questions(votes, c, q[:2])
    with pytest.raises(LabelKitError, match="n=0"): next_questions(votes, c, q, n=0)


@pytest.mark.parametrize("soft", [True, False])
def test_what_is_trained(soft):
    dls = data()
    votes,gold = answers(dls)
    votes[1] = -1
    gold[1] = -1
    learn = learner(dls, AnnotatorQuality(votes, gold, soft=soft))
    s = look(learn).record
    p = GoldVote(gold).fit(votes, 3).predict_proba(votes)
    known = gold >= 0
    p[known] = torch.eye(3)[gold[known]]
    p[1] = torch.eye(3)[dls.given[1]]
    want = p if soft else torch.eye(3)[p.argmax(1)]
    assert torch.allclose(s.targets, want[s.ids], atol=1e-6)
    book = fit(learn).annotator_quality.ledger.frame().set_index("id")
    assert book.reason[0] == "gold label" and book.reason[1] == "nobody was asked"
    assert not book.accepted[1] and book.answers[1] == 0
    assert book.risk[0] == 0 and (book.risk[book.reason == "consensus"] > 0).all()


def test_what_is_too_risky_counts_nothing():
    dls = data()
    votes,gold = answers(dls)
    learn = fit(learner(dls, AnnotatorQuality(votes, gold, max_risk=.2)))
    cb = learn.annotator_quality
    book = cb.ledger.frame().set_index("id")
    risky = torch.tensor((book.reason == "consensus too risky").to_numpy())
    assert 0 < risky.sum() < len(book)
    assert torch.equal(cb.table.weights == 0, risky)
    assert cb.annotators().answers.tolist() == (votes >= 0).sum(0).tolist()
    assert cb.explore().votes.shape == votes.shape


def test_bad_input():
    dls = data()
    votes,gold = answers(dls)
    for cb,said in (
        (lambda: AnnotatorQuality(votes), "votes and gold belong together"),
        (lambda: AnnotatorQuality(votes, gold, pool="mean"), "pool='mean'"),
        (lambda: AnnotatorQuality(votes, gold, max_risk=2), "max_risk=2"),
        (lambda: AnnotatorQuality(votes[:5], gold), "votes has 5 rows for 24 samples"),
        (lambda: AnnotatorQuality(votes, gold[:5]), "gold has shape"),
        (lambda: AnnotatorQuality(votes, gold*0-1), "gold knows no sample"),
        (lambda: AnnotatorQuality(votes, gold.clamp_min(0)+3), "gold goes from"),
        (lambda: AnnotatorQuality(votes+1, gold), "pass classes"),
        (lambda: AnnotatorQuality(votes.float()+.5, gold), "whole numbers"),
        (lambda: AnnotatorQuality(votes, ["x"]*24), "gold"),
    ):
        with pytest.raises(LabelKitError, match=said): fit(learner(dls, cb()))
    with pytest.raises(LabelKitError, match="annotator 1 was asked about none"):
        gold_quality([[0, -1]], [0], smoothing=0)
    cb = AnnotatorQuality(votes, gold)
    with pytest.raises(LabelKitError, match="nobody was measured yet"): cb.annotators()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_weights_of_any_precision(dtype):
    votes = torch.tensor([[0, 1], [-1, 2]])
    sure = torch.tensor([[.75, .5, .5], [1., .25, .5]])
    for pool in (weighted_consensus, posterior_consensus):
        torch.testing.assert_close(pool(votes, sure.to(dtype)), pool(votes, sure))


def test_tables_of_what_was_found():
    "Consensus and risk come from anywhere, and a site that nobody named is one as well"
    consensus = pd.DataFrame([[.9, .1], [.5, .5], [.6, .4]])
    risk = bayes_risk(consensus)
    torch.testing.assert_close(risk, torch.tensor([.1, .5, .4], dtype=torch.double))
    asked = next_questions([[0, -1], [-1, 1], [-1, -1]], consensus.to_numpy(), [.7, .6], n=2)
    assert asked["sample"].tolist() == [1, 2] and asked.annotator.tolist() == [0, 0]
    sites = risk_by_site(risk.tolist(), pd.Series(["a", None, "a"], index=[7, 8, 9]))
    assert sites.samples.tolist() == [1, 2] and sites.index.isna().tolist() == [True, False]
