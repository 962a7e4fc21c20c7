"ActiveOutliers: votes, weights, whom to ask, and what each member is told"
import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import tensor
from torch.nn import functional as F

from contract import data, fit, learner
from labelkit.data.samples import Samples
from labelkit.errors import LabelKitError
from labelkit.lesson.batch import look
from labelkit.models import small_cnn
from labelkit.pseudo.active_outliers import (
    answers_of,
    ensemble_losses,
    ActiveOutliers, Answers, most_disputed, sureness, variation_ratio,
)
from mix.mixtools import Keep

close = torch.testing.assert_close


class TestFunctions:
    def test_votes(self):
        p = F.one_hot(tensor([[0, 2], [0, 1], [1, 1], [0, 0]]), 3).float()
        close(variation_ratio(p), tensor([.25, .5]))

    def test_the_most_frequent_vote_and_not_the_mean(self):
        "Two members say class 0, just so; the third is sure of class 1, which the mean says too"
        p = tensor([[[.55, .45]], [[.55, .45]], [[0., 1.]]])
        assert int(p.mean(0).argmax()) == 1
        close(variation_ratio(p), tensor([1/3]))

    def test_sureness(self):
        p = tensor([[1., 0., 0.], [1/3]*3, [.5, .5, 0.]])
        close(sureness(p), tensor([1., 0., 1-math.log(2)/math.log(3)]), atol=1e-6, rtol=0)

    def test_the_most_disputed_and_chance_between_equals(self):
        ratio = tensor([0., .5, .2, .5, 0.])
        free = tensor([True, True, True, False, True])
        g = torch.Generator().manual_seed(0)
        assert most_disputed(ratio, free, 2, g).tolist() == [1, 2]
        found = {most_disputed(torch.zeros(5), free, 1, g).item() for _ in range(40)}
        assert found == {0, 1, 2, 4}
        assert len(most_disputed(ratio, ~free, 9, g)) == 1
        assert len(most_disputed(ratio, free & ~free, 9, g)) == 0


def six_known(cb, *more):
    make = lambda seed: small_cnn(c=6, c_in=1, width=4)
    return learner([cb, *more], dls=data(labeled=24, known=6), make=make)


def test_answers_are_asked_for_in_rounds():
    learn = six_known(cb := ActiveOutliers(members=2, questions=10, rounds=3))
    fit(learn, 3)
    asked = cb.answers.label >= 0
    assert int(asked.sum()) == 30 and not (asked & (learn.dls.given >= 0)).any()
    assert torch.equal(cb.answers.label[asked], learn.dls.truth[asked])
    assert (cb.answers.label[asked] == 6).any()
    few = six_known(cb := ActiveOutliers(members=1, questions=500, rounds=2))
    fit(few, 2)
    assert int((cb.answers.label >= 0).sum()) == int((few.dls.given < 0).sum())


def test_an_oracle_is_asked():
    seen = []
    def oracle(ids):
        seen.append(ids.tolist())
        return torch.full((len(ids),), 99)
    fit(six_known(cb := ActiveOutliers(members=1, questions=7, rounds=1, oracle=oracle)))
    assert len(seen) == 1 and len(seen[0]) == 7
    assert (cb.answers.label[seen[0]] == 6).all()


def test_without_truth_and_oracle_it_says_so():
    dls = data()
    dls.truth = None
    with pytest.raises(LabelKitError, match="oracle is missing"):
        fit(learner([ActiveOutliers(members=1)], dls=dls))


def test_what_a_batch_is_told():
    learn = six_known(cb := ActiveOutliers(members=1, questions=40, rounds=1), keep := Keep())
    fit(learn)
    s = keep.seen[0]
    assert set(s.losses) == {"active_outliers", "active_outliers.inside"}
    assert not s.auxiliary_losses and len(cb.ensemble.module) == 1
    # forty answers beside 24 labels; cross-entropy with K classes and the additional term are that
    # with K+1
    inside,factor = s.losses["active_outliers.inside"]
    assert factor == s.labeled_weight == pytest.approx(24/64) and inside > 0
    f = cb.ledger.frame()
    f = f[f.epoch >= 0]
    assert f.accepted.equals(f.suggested_label < 6)


def test_the_weight_is_that_of_pseudo_labels_alone():
    g = torch.Generator().manual_seed(0)
    every = [[torch.randn(n, 4, generator=g) for n in (5, 6, 6, 3)] for _ in range(2)]
    known = F.one_hot(torch.arange(5) % 3, 3).float()
    answers = torch.tensor([0, 3, 1])
    (a,one,_),(b,three,_) = (
        ensemble_losses(every, known, answers, .25, weight) for weight in (1., 3.)
    )
    close(a[0], b[0])
    given = [.25*F.cross_entropy(o[3], answers) for o in every]
    for r,r3,answered in zip(one, three, given): close(r3-answered, 3*(r-answered))


def test_the_weak_view_learns_nothing():
    "Neither its best class nor how sure that is has a gradient"
    every = [[torch.randn(5, 4, requires_grad=True) for _ in range(3)] for _ in range(2)]
    known = F.one_hot(torch.arange(5) % 3, 3).float()
    given,rest,_ = ensemble_losses(every, known, None, 0.)
    sum(given + rest).backward()
    for labeled,weak,strong in every:
        assert weak.grad is None and labeled.grad.any() and strong.grad.any()


def test_the_first_round_asks_at_random(monkeypatch):
    def spy(self, k, rng, each=None):
        seen.append(each)
        return ask(self, k, rng, each)
    seen = []
    ask = Answers.ask
    monkeypatch.setattr(Answers, "ask", spy)
    learn = six_known(cb := ActiveOutliers(members=2, questions=5, rounds=2))
    fit(learn, 2)
    assert seen == [None, cb.ensemble.each]


def test_each_member_learns_and_the_first_is_the_model():
    learn = six_known(cb := ActiveOutliers(members=3, questions=10), keep := Keep())
    fit(learn)
    assert len(cb.ensemble.module) == 3
    assert set(keep.seen[0].auxiliary_losses) == {"active_outliers.members"}
    x = learn.dls.x_unknown[:6].float()
    each = cb.ensemble.each(x)
    assert each.shape == (3, 6, 7)
    close(each.sum(2), torch.ones(3, 6))
    close(cb.predict(x), each.mean(0))
    learn.model.eval()
    z = learn.model(x)
    close(each[0, :, :6]/each[0, :, :6].sum(1, keepdim=True), z.softmax(1), atol=1e-5, rtol=1e-4)
    assert (each[0]-each[1]).abs().max() > 1e-4


def test_every_term_by_hand():
    "Two networks: labels and answers alike, and the mean of both labels the strong view"
    learn = six_known(cb := ActiveOutliers(members=2, questions=70))
    b = look(learn)
    s = b.record
    answers = s.own(cb).answers
    o = b.state["active_outliers"]
    stranger,net = o.ensemble.module
    names = [f"active_outliers.{k}" for k in ("weak", "strong", "asked")]
    views = [s.requests[k] for k in names]
    own = [s.pred, *(s.outputs[k] for k in names)]
    first = [torch.cat([z, stranger(s.features(k))], 1) for z,k in zip(own, (None, *names))]
    sizes = [len(s.x), *map(len, views)]
    other = net(torch.cat([s.x, *views])).split(sizes)
    mean = (first[1].softmax(1) + other[1].softmax(1))/2
    assert (answers == 6).any() and len(answers) == len(s.y)
    share = 70/94
    assert s.labeled_weight == pytest.approx(1-share)
    def rest(z):
        pseudo = F.cross_entropy(z[2], mean.argmax(1), reduction="none")*sureness(mean)
        return pseudo.mean() + share*F.cross_entropy(z[3], answers)
    close(s.losses["active_outliers"][0], rest(first))
    inside,factor = s.losses["active_outliers.inside"]
    beyond = F.cross_entropy(first[0], s.y) - F.cross_entropy(s.pred, s.y)
    close(inside, beyond, atol=1e-5, rtol=1e-4)
    assert factor == s.labeled_weight
    want = (1-share)*F.cross_entropy(other[0], s.y) + rest(other)
    close(s.auxiliary_losses["active_outliers.members"][0], want)
    assert not torch.equal(net.model.head.weight, b.model.head.weight)


@pytest.mark.parametrize("ask", ["variation", "random"])
def test_the_second_round_asks_where_they_disagree(ask, monkeypatch):
    seen = []
    def oracle(ids):
        seen.append(ids)
        return torch.zeros(len(ids))
    cb = ActiveOutliers(members=2, questions=10, rounds=2, ask=ask, oracle=oracle)
    learn = six_known(cb)
    ids = Samples(learn.dls.unlabeled).ids
    def judged(probs):
        assert ask == "variation" and probs.shape == (2, len(ids), 7)
        return (ids % 7).float()
    monkeypatch.setattr("labelkit.pseudo.active_outliers.variation_ratio", judged)
    fit(learn, 2)
    free = (learn.dls.given < 0).nonzero().flatten()
    left = free[~torch.isin(free, seen[0])]
    most = (left % 7).sort(descending=True).values[:10].sum()
    assert len(seen) == 2 and not torch.isin(seen[1], seen[0]).any()
    assert bool((seen[1] % 7).sum() == most) is (ask == "variation")


def test_answers_are_drawn_with_their_inputs():
    learn = six_known(ActiveOutliers())
    answers = Answers(learn)
    rng = torch.Generator().manual_seed(0)
    assert answers.share == 0 and answers.draw(4, rng) == (None, None)
    answers.ask(8, rng)
    assert answers.share == pytest.approx(8/32)
    x,y = answers.draw(50, rng)
    pool = Samples(learn.dls.unlabeled)
    asked = pool.ids[answers.label[pool.ids] >= 0]
    assert len(asked) == 8 and set(y.tolist()) == set(answers.label[asked].tolist())
    (all_of_them,) = pool.inputs(pool.places(asked))
    for one,label in zip(x, y):
        at = (all_of_them == one).flatten(1).all(1)
        assert at.sum() == 1 and answers.label[asked[at]] == label


def test_refused():
    for k,v in dict(members=0, questions=0, rounds=-1, ask="margin").items():
        with pytest.raises(LabelKitError, match=f"{k}="): ActiveOutliers(**{k: v})
    with pytest.raises(LabelKitError, match="has no members yet"): ActiveOutliers().predict(None)
    with pytest.raises(LabelKitError, match="needs unlabeled samples"):
        fit(learner([ActiveOutliers()], dls=data(labeled=None)))


def test_answers_in_every_container():
    ids = torch.tensor([4, 2])
    for said in ([1, None], np.array([1, np.nan]), pd.Series([1, -1], index=[7, 8])):
        assert answers_of(lambda ids: said, ids).tolist() == [1, -1]
    for said in (None, [1], [.5, 1.], ["a", "b"]):
        with pytest.raises(LabelKitError, match="the oracle's answer"):
            answers_of(lambda ids: said, ids)
