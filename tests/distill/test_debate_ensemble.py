"""The debate: drawn arguments against the probabilities they are drawn by, the judges against
scikit-learn, and a weak judge that a debate helps"""
import math

import numpy as np, pytest, torch
from fastai.basics import Learner, set_seed
from sklearn.linear_model import LogisticRegression
from torch import tensor
from torch.nn import functional as F

from distill.distilltools import Keep, fit, net
from labelkit.core.teachers import as_teacher
from labelkit.data.sets import digits, table
from labelkit.distill.debate_ensemble import (
    DebateEnsemble,
    arguments,
    judge,
    swap_half,
    train_judges,
)
from labelkit.errors import LabelKitError
from labelkit.models import mlp

@pytest.fixture
def strong():
    torch.manual_seed(11)
    return net()


def rng(seed=0): return torch.Generator().manual_seed(seed)


def test_the_best_two_are_argued_for_and_nothing_else():
    p = tensor([[.1,.6,.3],[.2,.3,.5]])
    e = arguments(p.log(), 2)
    assert e.shape == (2, 2, 3)
    torch.testing.assert_close(e[0], tensor([[0.,.6,.3],[0.,.3,.5]]))
    assert torch.equal(e[0], e[1])


@pytest.mark.parametrize("best,answers", [(0, 0), (1, 1), (2, 2), (7, 3)])
def test_as_many_answers_as_asked_for(best, answers):
    e = arguments(torch.randn(5, 3, generator=rng()), 4, best, 1., rng())
    assert ((e > 0).sum(2) == answers).all()


def test_answers_are_drawn_by_the_models_own_probabilities():
    "the first by p, the second by p among the rest"
    p = tensor([.5,.3,.2])
    e = arguments(p.log().expand(20_000, 3), 1, 2, 1., rng())[0]
    left_out = (e == 0).float().mean(0)
    expected = [sum(p[a]*p[b]/(1-p[a]) for a,b in ((i, j), (j, i))) for i,j in ((1,2),(0,2),(0,1))]
    torch.testing.assert_close(left_out, torch.stack(expected), atol=.015, rtol=0)


def test_judges_are_logistic_regression():
    g = rng(1)
    y = torch.arange(60) % 3
    x = torch.randn(60, 4, generator=g) + F.one_hot(y, 4).float()
    e = arguments(torch.randn(60, 3, generator=g), 2, 2, 1., g)
    judges = train_judges(x, e, y, torch.ones(2, 4), steps=1500, decay=1e-2)
    found = judge(x, e, judges)
    theirs = []
    for i in range(2):
        both = torch.cat([x, e[i]], 1).numpy()
        model = LogisticRegression(C=1/(2*1e-2*60), max_iter=2000, tol=1e-8).fit(both, y)
        theirs.append(model.predict_proba(both))
    np.testing.assert_allclose(found, np.mean(theirs, 0), atol=2e-3)


def test_a_judge_does_not_see_what_is_hidden_from_it():
    y = torch.arange(30) % 2
    x = torch.stack([y.float(), torch.rand(30, generator=rng())], 1)
    e = torch.zeros(2, 30, 2)
    w,_,_ = train_judges(x, e, y, tensor([[1.,0.],[0.,1.]]))
    assert (w[0,1] == 0).all() and (w[1,0] == 0).all() and w[0,0].abs().max() > 1


def test_swap_half():
    y = torch.zeros(10_000).long()
    swapped = swap_half(y, tensor([1,0]), rng())
    assert abs(swapped.float().mean()-.5) < .02
    assert torch.equal(swap_half(y, tensor([0,1]), rng()), y)


def test_a_debate_helps_where_the_strong_model_knows_the_pair():
    dls = digits(labeled=60, ratio=4)
    partner = tensor([6,7,5,8,9,2,0,1,3,4])
    v = dls.valid_ds.arrays
    def torn(x):
        "says a digit or its partner, as if by the toss of a coin"
        truth = known.get(tuple(x.shape), torch.zeros(len(x)).long())  # the first two, as a trial
        pair = (F.one_hot(truth, 10) + F.one_hot(partner[truth], 10)).float()
        return 8*pair + torch.rand(len(x), 10, generator=rng())
    t = dls.train_ds.arrays
    labeled = (dls.given >= 0).nonzero().flatten()
    known = {(len(labeled), 1, 8, 8): t.y[labeled], tuple(v.x.shape): v.y}
    right = {}
    for best in (0, 2):
        set_seed(0)
        cb = DebateEnsemble(torn, best=best)
        Learner(dls, net(), cbs=cb)
        cb.setup()
        right[best] = float((cb.verdict((v.x,), torn(v.x)).argmax(1) == v.y).float().mean())
    assert right[2] > right[0] + .05


def test_the_loss_of_training_is_the_judges_mean(strong):
    cb = DebateEnsemble(strong, spread=0., judges=3, unlabeled=True)
    learn = fit(cb, keep := Keep())
    s,loss = keep.seen
    both = torch.cat([s.x, s.unlabeled])
    said = torch.cat([s.pred, s.outputs["debate_ensemble.unlabeled"]])
    target = cb.verdict((both,), as_teacher(strong)(both))
    torch.testing.assert_close(target.sum(1), torch.ones(len(both)))
    expected = (target*(target.log() - said.log_softmax(1))).sum(1).mean()
    assert loss == pytest.approx(expected.item(), abs=1e-4)
    assert learn.debate_ensemble is cb


def test_judges_learn_the_given_labels_and_hear_as_loudly_as_asked_for(strong, monkeypatch):
    "Labels of which half are wrong: the judges repeat those, and not the truth"
    seen = {}
    def spy(x, e, y, sees, **kwargs):
        seen.update(e=e, y=y)
        return train_judges(x, e, y, sees, **kwargs)
    monkeypatch.setattr("labelkit.distill.debate_ensemble.train_judges", spy)
    dls = digits(labeled=40, noise_rate=.5, ratio=2)
    cb = DebateEnsemble(strong, trust=3., judges=2, best=1, spread=0.)
    fit(cb, dls=dls)
    given = dls.given[dls.given >= 0]
    assert seen["y"].tolist() == given.tolist()
    assert seen["y"].tolist() != dls.truth[dls.given >= 0].tolist()
    x = dls.train_ds.arrays.x[dls.given >= 0]
    best = as_teacher(strong)(x).softmax(1).amax(1)
    torch.testing.assert_close(seen["e"].amax(2), (3*best).expand(2, -1))
    assert not any(o.requires_grad for o in cb.bench)


def test_the_verdict_is_a_mean_of_probabilities():
    w = torch.zeros(2, 1, 2)
    b = tensor([[[4., 0.]], [[-2., 0.]]])
    said = judge(torch.zeros(1, 1), torch.zeros(2, 1, 2), [w, torch.zeros(2, 2, 2), b])
    torch.testing.assert_close(said, b.softmax(2).mean(0))


@pytest.mark.parametrize("sees,entries", [(.5, 32), (.01, 1), (1., 64)])
def test_every_judge_sees_its_share(strong, sees, entries):
    cb = DebateEnsemble(strong, sees=sees)
    fit(cb)
    assert ((cb.bench[0] != 0).any(2).sum(1) <= entries).all()
    if sees == .5: assert not torch.equal(*((cb.bench[0][i] != 0).any(1) for i in (0, 1)))


def test_a_table():
    dls = table(labeled=20)
    learn = fit(DebateEnsemble(mlp(dls, width=8), unlabeled=True), dls=dls, model=mlp(dls, width=8))
    assert math.isfinite(learn.recorder.losses[-1])


@pytest.mark.parametrize(
    "kwargs,message",
    [
        (dict(judges=0), "judges=0"), (dict(best=-1), "best=-1"), (dict(sees=0.), "sees=0.0"),
        (dict(spread=-.1), "spread=-0.1"), (dict(judges=2.5), "judges=2.5 is not a whole number"),
    ],
)
def test_bad_arguments(kwargs, message, strong):
    with pytest.raises(LabelKitError, match=message): DebateEnsemble(strong, **kwargs)


def test_samples_of_another_size(strong):
    cb = DebateEnsemble(strong)
    fit(cb)
    with pytest.raises(LabelKitError, match="inputs of 64 numbers and now get 16"):
        cb.verdict((torch.zeros(2, 1, 4, 4),), torch.zeros(2, 10))
