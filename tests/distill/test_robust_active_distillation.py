"""Robust active distillation: the game against a solver, the draw against its probabilities, and
a budget that is kept exactly"""
import itertools
from functools import partial

import numpy as np, pytest, torch
from fastai.basics import Callback, Learner, accuracy, set_seed
from fastai.callback.training import ShortEpochCallback
from scipy.optimize import linprog
from torch import tensor
from torch.nn import functional as F

from contract import build, learner
from labelkit.core.checkpoint import Checkpoint
from labelkit.data.sets import digits
from labelkit.errors import LabelKitError
from labelkit.lesson.batch import look
from labelkit.models import small_cnn
from labelkit.data.samples import Samples
from labelkit.distill.base import soft_kl
from labelkit.distill.robust_active_distillation import (
    RobustActiveDistillation,
    inclusion_probabilities,
    n_questions,
    rad_value,
    rad_weights,
    sample_without_replacement,
    student_gain,
)

net = partial(small_cnn, c=10, c_in=1, width=4)


def test_what_a_budget_allows():
    assert n_questions(.1, 405) == 40 and n_questions(7, 400) == 7 and n_questions(1., 9) == 9
    with pytest.raises(LabelKitError, match="budget=10 is more than the 9"): n_questions(10, 9)


class Asked:
    "A teacher that remembers what it was asked"
    def __init__(self, seed=11, c=10):
        torch.manual_seed(seed)
        self.model = net(c=c).eval().requires_grad_(False)
        self.x = []
    def __call__(self, x):
        self.x.append(x.clone())
        return self.model(x)
    @property
    def n(self): return sum(map(len, self.x))

def fit(cb, epochs=6, cbs=(), dls=None, seed=0, **kwargs):
    set_seed(seed)
    learn = Learner(dls or digits(labeled=40, ratio=2), net(), cbs=[cb], metrics=accuracy)
    with learn.no_bar(), learn.no_logging():
        learn.fit(epochs, 3e-3, cbs=[ShortEpochCallback(.15), *cbs], **kwargs)
    return learn

def solved(gains, r):
    "The value of the game by linear programming over all choices of the opponent"
    n = len(gains)
    rows = [
        [*(-g * (i not in w) for i, g in enumerate(gains)), 1.0]
        for w in itertools.combinations(range(n), r)
    ]
    return -linprog(
        [0.0] * n + [-1.0], A_ub=rows, b_ub=[0.0] * len(rows), A_eq=[[1.0] * n + [0.0]], b_eq=[1.0]
    ).fun


# The game

@pytest.mark.parametrize(
    "wrong,by_hand",
    [
        (0, [1, 0, 0]),
        (1 / 3, [1 / 3, 2 / 3, 0]),
        (2 / 3, [1 / 7, 2 / 7, 4 / 7]),
        (1, [1 / 7, 2 / 7, 4 / 7]),
    ],
)
def test_weights_by_hand(wrong, by_hand):
    gains = tensor([1., .5, .25])
    order = [2, 0, 1]
    torch.testing.assert_close(
        rad_weights(gains, wrong), tensor(by_hand).double(), atol=1e-7, rtol=0
    )
    torch.testing.assert_close(
        rad_weights(gains[order], wrong), tensor(by_hand).double()[order], atol=1e-7, rtol=0
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("r", [0, 1, 3, 6])
def test_the_weights_solve_the_game(seed, r):
    g = torch.rand(8, generator=torch.Generator().manual_seed(seed)) + .01
    w = rad_weights(g, r/8)
    assert w.sum().item() == pytest.approx(1) and (w >= 0).all()
    assert rad_value(g, w, r/8) == pytest.approx(solved(g.tolist(), r), abs=1e-6)
    assert rad_value(g, w, r/8) >= rad_value(g, torch.full((8,), 1/8), r/8) - 1e-9
    assert rad_value(g, w, r/8) >= rad_value(g, g/g.sum(), r/8) - 1e-9

def test_value_by_hand():
    # .5·1 is lost
    assert rad_value(tensor([1., .5, .25]), tensor([.5, .5, 0.]), 1/3) == pytest.approx(.25)
    assert rad_value(tensor([1., .5, .25]), tensor([1/3, 2/3, 0.]), 1/3) == pytest.approx(1/3)

def test_equal_gains_are_asked_about_equally():
    torch.testing.assert_close(rad_weights(torch.ones(5), .4), torch.full((5,), .2).double())

def test_at_least_widens_the_set():
    g = tensor([1., .5, .25, .1])
    assert [(int((rad_weights(g, 0., k) > 0).sum())) for k in (1, 2, 3, 4)] == [1, 2, 3, 4]

def test_gains_of_zero():
    w = rad_weights(tensor([0., .8, 0., .9]), .25)
    assert w.isfinite().all() and w[[0, 2]].sum() == 0
    assert rad_weights(torch.zeros(4), .5).isfinite().all()

def test_gain_by_hand():
    torch.testing.assert_close(
        student_gain(tensor([[0.7, 0.2, 0.1], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])),
        tensor([0.5, 1.0, 0.0]),
    )


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda: rad_weights(tensor([0.1, -0.2])), r"gains\[1\]=-0.2"),
        (lambda: rad_weights(tensor([0.1, float("nan")])), r"gains\[1\]=nan"),
        (lambda: rad_weights(torch.ones(2, 2)), r"gains have shape \(2, 2\)"),
        (lambda: rad_weights(torch.ones(0)), "pass one for each sample"),
        (lambda: rad_weights(torch.ones(3), 1.5), "wrong_rate=1.5"),
        (lambda: rad_weights(torch.ones(3), 0.2, 4), "at_least=4 is not a number between 1 and 3"),
        (lambda: inclusion_probabilities(tensor([1.0, -1.0]), 1), r"weights\[1\]=-1"),
        (
            lambda: inclusion_probabilities(tensor([1.0, 0.0]), 2),
            "k=2 samples cannot be drawn from 1",
        ),
        (lambda: sample_without_replacement(torch.ones(3), -1), "k=-1"),
    ],
)
def test_bad_games(call, message):
    with pytest.raises(LabelKitError, match=message): call()


# The draw

@pytest.mark.parametrize(
    "weights,k,by_hand",
    [
        ([1, 1, 1], 2, [2 / 3] * 3),
        ([3, 1, 1, 0], 2, [1, 0.5, 0.5, 0]),
        ([8, 4, 1, 1], 3, [1, 1, 0.5, 0.5]),
        ([1, 2], 2, [1, 1]),
        ([1, 2, 0], 0, [0, 0, 0]),
        ([4, 2, 2], 1, [0.5, 0.25, 0.25]),
    ],
)
def test_inclusion_by_hand(weights, k, by_hand):
    torch.testing.assert_close(
        inclusion_probabilities(tensor(weights).float(), k), tensor(by_hand).double()
    )


@pytest.mark.parametrize("seed", range(5))
def test_inclusion_sums_to_k(seed):
    w = torch.rand(50, generator=torch.Generator().manual_seed(seed))**4
    for k in (1, 7, 30, 49, 50):
        p = inclusion_probabilities(w, k)
        assert p.sum().item() == pytest.approx(k) and p.max() <= 1
        below = p < 1
        if below.sum() > 1:
            torch.testing.assert_close((p/w)[below], (p/w)[below][:1].expand(int(below.sum())))

def test_each_place_is_drawn_as_often_as_it_should():
    w = tensor([5., 1., 2., .5, 0., 1.5])
    rng = torch.Generator().manual_seed(0)
    draws = [sample_without_replacement(w, 3, rng) for _ in range(4000)]
    assert all(len(d.unique()) == 3 for d in draws)
    torch.testing.assert_close(
        torch.cat(draws).bincount(minlength=6) / 4000,
        inclusion_probabilities(w, 3).float(),
        atol=0.03,
        rtol=0,
    )


def test_a_draw_repeats_with_its_generator():
    a, b = (
        sample_without_replacement(
            torch.rand(9, generator=torch.Generator().manual_seed(1)),
            4,
            torch.Generator().manual_seed(5),
        )
        for _ in range(2)
    )
    assert torch.equal(a, b)
    state = torch.get_rng_state()
    sample_without_replacement(torch.ones(9), 4, torch.Generator())
    assert torch.equal(state, torch.get_rng_state())


# Inputs of a few

def test_inputs_come_in_the_order_asked_for():
    dls = digits(labeled=40)
    samples = Samples(dls.unlabeled)
    (xs,) = samples.inputs()
    ids = samples.ids
    pick = torch.randperm(len(ids), generator=torch.Generator().manual_seed(3))[:50]
    state = dls.unlabeled.rng.getstate()
    assert (
        torch.equal(samples.inputs(samples.places(ids[pick]))[0], xs[pick])
        and dls.unlabeled.rng.getstate() == state
    )
    assert len(samples.inputs(samples.places(ids[:0]))[0]) == 0
    with pytest.raises(LabelKitError, match="not among the"): samples.places(tensor([10**6]))


# The callback

@pytest.mark.parametrize(
    "policy", ["rad", "random", "margin", "entropy", lambda cb, probs, k: torch.arange(k)]
)
def test_the_budget_is_kept_exactly(policy):
    teacher = Asked()
    learn = fit(RobustActiveDistillation(teacher, budget=50, policy=policy, rounds=3, bs=16))
    cb = learn.robust_active_distillation
    assert teacher.n == cb.n_asked == 50 and max(map(len, teacher.x)) <= 16
    asked = torch.cat(teacher.x)
    assert len(asked.flatten(1).unique(dim=0)) == 50                                # none twice
    assert (learn.dls.given[cb.queried >= 0] == -1).all()  # no labeled one
    assert cb.queried[cb.queried >= 0].unique().tolist() == [1, 2, 4] and cb.ledger.epochs == [
        1,
        2,
        4,
    ]
    ids = (cb.queried >= 0).nonzero().flatten()
    samples = Samples(learn.dls.unlabeled)
    torch.testing.assert_close(
        cb.answers[ids],
        teacher.model(samples.inputs(samples.places(ids))[0]).log_softmax(1),
        atol=1e-5,
        rtol=1e-4,
    )
    f = cb.ledger.frame()
    assert sorted(f.id) == ids.tolist() and f.reason.unique().tolist() == [
        policy if isinstance(policy, str) else "own policy"
    ]
    assert f.gain.between(0, 1).all() and (f.epoch.values == cb.queried[f.id.values].numpy()).all()

def test_a_share_as_budget_and_a_second_fit_asks_nothing_more():
    teacher = Asked()
    learn = fit(RobustActiveDistillation(teacher, budget=.05, rounds=2), epochs=2)
    assert teacher.n == round(.05*1218)
    with learn.no_bar(), learn.no_logging(): learn.fit(3)
    assert teacher.n == round(.05*1218)

def test_an_interrupted_round_is_made_up_for():
    teacher = Asked()
    class Stop(Callback):
        order = 1000
        def after_batch(self):
            if self.training and self.epoch == 2: raise KeyboardInterrupt
    cb = RobustActiveDistillation(teacher, budget=40, rounds=4, warmup=0.)
    with pytest.raises(KeyboardInterrupt): fit(cb, 8, cbs=[Stop()])
    assert teacher.n == 20
    learn = cb.learn
    with learn.no_bar(), learn.no_logging(): learn.fit(4)
    assert teacher.n == cb.n_asked == 40

def test_a_resumed_fit_asks_nothing_again(tmp_path):
    class Die(Callback):
        order = 1000
        def after_batch(self):
            if self.training and self.epoch == 3 and self.iter == 1: raise KeyboardInterrupt
    whole = fit(RobustActiveDistillation(Asked(), budget=40), 5).robust_active_distillation
    with pytest.raises(KeyboardInterrupt):
        fit(
            RobustActiveDistillation(Asked(), budget=40),
            5,
            cbs=[Checkpoint(tmp_path / "a.pt"), Die()],
        )
    teacher = Asked()
    again = fit(
        RobustActiveDistillation(teacher, budget=40), 5, cbs=[Checkpoint(tmp_path / "a.pt")], seed=5
    ).robust_active_distillation
    assert torch.equal(whole.queried, again.queried) and torch.equal(whole.answers, again.answers)
    assert teacher.n == int((whole.queried >= 3).sum()) < 40
    assert whole.ledger.frame().equals(again.ledger.frame())

def test_the_loss_is_that_of_the_kept_answers():
    checks = []
    class Check(Callback):
        order = 6
        def after_loss(self):
            if not self.training: return
            s = self.learn.supervision.record
            cb = self.learn.robust_active_distillation
            ids = s.unlabeled_ids[cb.queried[s.unlabeled_ids] >= 0]
            assert (len(ids) > 0) == ("robust_active_distillation" in s.outputs)
            loss = .7*F.cross_entropy(s.pred, s.y)
            if len(ids):
                loss = (
                    loss
                    + 0.5
                    * 4
                    * soft_kl(s.outputs["robust_active_distillation"], cb.answers[ids], 2.0).mean()
                )
            checks.append((self.learn.loss.item(), loss.item(), len(ids)))

    fit(
        RobustActiveDistillation(
            Asked(), budget=60, temperature=2.0, soft_weight=0.5, hard_weight=0.7
        ),
        3,
        cbs=[Check()],
    )
    a,b,n = zip(*checks)
    assert a == pytest.approx(b, rel=1e-4) and n[0] == 0 and max(n) > 0

def test_the_whole_pool_may_be_asked_about():
    teacher = Asked()
    fit(RobustActiveDistillation(teacher, budget=1., rounds=2, warmup=0.), 2)
    assert teacher.n == 1218

def test_no_question_in_a_learning_rate_search_or_without_weight():
    import fastai.callback.schedule  # noqa: F401
    teacher = Asked()
    set_seed(0)
    learn = Learner(digits(labeled=40), net(), cbs=RobustActiveDistillation(teacher, warmup=0.))
    with learn.no_bar(), learn.no_logging(): learn.lr_find(show_plot=False, num_it=10)
    fit(RobustActiveDistillation(teacher, warmup=0., soft_weight=0.), 1)
    assert teacher.n == 0

@pytest.mark.parametrize(
    "kwargs,message",
    [
        (dict(budget=0), "budget=0 is not"),
        (dict(budget=1.5), "budget=1.5"),
        (dict(policy="best"), "policy='best' is not known: use one of 'rad'"),
        (dict(wrong_rate=2), "wrong_rate=2"),
        (dict(rounds=0), "rounds=0"),
        (dict(temperature=0), "temperature=0"),
        (dict(bs=0), "bs=0"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(LabelKitError, match=message): RobustActiveDistillation(net(), **kwargs)

@pytest.mark.parametrize(
    "teacher,kwargs,message",
    [
        (net(), dict(budget=5000), "budget=5000 is more than the 1218 unlabeled"),
        (net(c=7), {}, r"answers with shape \(64, 7\) to 64 samples of 10 classes"),
        (lambda x: torch.full((len(x), 10), np.nan), {}, "NaN or infinite logits"),
        (net(), dict(policy=lambda cb, probs, k: torch.zeros(k).long()), "give k different places"),
    ],
)
def test_found_at_the_first_round(teacher, kwargs, message):
    with pytest.raises(LabelKitError, match=message):
        fit(RobustActiveDistillation(teacher, warmup=0., **kwargs), 1)

def test_needs_unlabeled_samples():
    with pytest.raises(LabelKitError, match="needs unlabeled samples"):
        fit(RobustActiveDistillation(net()), 1, dls=digits())


def test_only_samples_with_an_answer_are_shown_to_the_student():
    "It is about unlabeled samples anyway: `unlabeled=True` shows no others"
    slug = "robust_active_distillation"
    b = look(learner([build(slug, active=True, unlabeled=True)]))
    assert list(b.record.requests) == [slug]
