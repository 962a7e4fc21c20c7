"""LabelBudget: what a budget buys, the front, the two stages"""
import pytest
import torch
from fastai.basics import Callback, CancelFitException, Learner
from torch import nn

from labelkit.data.loaders import from_arrays
from labelkit.data.samples import Samples
from labelkit.errors import LabelKitError
from labelkit.lesson.batch import look
from labelkit.models import mlp
from labelkit.relabel.label_budget import (
    LabelBudget,
    affordable,
    check_good,
    pareto_front,
    purchase,
    said_of,
    spend,
    worth_asking,
)


@pytest.mark.parametrize("args, want", [
    ((600, 50, 1/3, 398), (398, 4)),   # two are left over, too little for a fifth good one
    ((600, 50, 0., 398), (398, 0)),    # none, also where cheap ones run out
    ((600, 50, 1., 398), (0, 12)),
    ((600, 50, 1., 10), (10, 10)),     # good ones run out: the rest goes for cheap ones
    ((700, 50, .1, 398), (398, 6)),    # cheap ones run out
    ((49, 50, 1., 398), (49, 0)),
    ((0, 50, .5, 398), (0, 0)),
    ((1., .5, .5, 9), (0, 2)),         # good labels may be the cheaper ones
    ((100, 10, .3, 0), (0, 0)),
])
def test_what_a_budget_buys(args, want):
    budget,price,_,n = args
    cheap,good = purchase(*args)
    assert cheap + price*good <= budget and max(cheap, good) <= n
    if args != (1., .5, .5, 9): assert (cheap, good) == want

@pytest.mark.parametrize("share, for_sale, want", [
    (1., 3, (398, 3, 548)),    # 12 would be paid for, 3 are there: 450 are left for cheap ones
    (.5, 3, (398, 3, 548)),
    (.1, 5, (398, 4, 598)),    # cheap ones run out, and what they leave buys good ones
    (.1, 1, (398, 1, 448)),
    (1., 0, (398, 0, 398)),
])
def test_money_for_which_there_is_no_good_label(share, for_sale, want):
    assert affordable(600, 50, share, 398, for_sale) == want

def test_prices_that_are_none():
    with pytest.raises(LabelKitError, match="price=0"): purchase(10, 0, .5, 3)
    with pytest.raises(LabelKitError, match="share=2"): purchase(10, 1, 2, 3)

def test_front():
    assert pareto_front([1, 2, 3, 4], [.5, .7, .6, .9]).tolist() == [True, True, False, True]
    # equals do not beat each other
    assert pareto_front([1, 1], [.5, .5]).tolist() == [True, True]
    assert pareto_front([1, 1, 2], [.5, .6, .6]).tolist() == [False, True, False]
    assert pareto_front([3.], [.1]).tolist() == [True]

def test_who_is_asked():
    p = torch.tensor([[.9, .1], [.5, .5], [.3, .7]])
    assert worth_asking(p, 2, "unsure").tolist() == [1, 2]
    assert worth_asking(p, 2, "sure").tolist() == [0, 2]
    rows = worth_asking(p, 2, rng=torch.Generator().manual_seed(0))
    assert len(rows.unique()) == 2

def test_spend_leaves_the_random_numbers_alone():
    x = torch.randn(20, 3)
    y = (x[:, 0] > 0).long()
    state = torch.get_rng_state()
    a = spend(x, 1-y, y, x, y, 0, 20, steps=60)
    b = spend(x, 1-y, y, x, y, 20, 0, steps=60)
    assert a > .9 and b < .1  # cheap labels that are all wrong teach just that
    assert torch.equal(state, torch.get_rng_state())
    assert a == spend(x, 1-y, y, x, y, 0, 20, steps=60)


def data(n=24, c=3):
    x = torch.randn(2*n, 4, generator=torch.Generator().manual_seed(0))
    y = torch.arange(2*n) % c
    return from_arrays(x[:n], y[:n], x[n:], y[n:], bs=n)

def learner(dls, cb):
    torch.manual_seed(0)
    return Learner(dls, mlp(dls), cbs=cb, loss_func=nn.CrossEntropyLoss())

def fit(learn, n):
    with learn.no_bar(), learn.no_logging(): learn.fit(n, 1e-3)

def test_two_stages():
    dls = data()
    good = (dls.given + 1) % 3
    cb = LabelBudget(good, budget=20, price=4, share=.4)
    learn = learner(dls, cb)
    s = look(learn).record
    assert s.weights.sum() == 12 and torch.equal(s.targets.argmax(1), s.y)
    fit(learn, 4)
    assert cb.bought == dict(cheap=12, good=2) and cb.cost == 20 and cb.stages == 2
    assert (cb.table.weights > 0).sum() == 2
    told = cb.ledger.frame()
    bought = told[told.reason == "good label"]
    assert len(bought) == 2
    ids = torch.tensor(bought.id.to_numpy())
    assert bought.suggested_label.tolist() == good[ids].tolist()

def test_what_is_bought_by_id():
    "Labeled samples that are not the first: good labels, cheap ones, and what counts"
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    y = torch.arange(60) % 3
    y[::3] = -1
    dls = from_arrays(x, y, x, torch.arange(60) % 3, bs=20)
    good = torch.arange(60) % 3
    good = (good + 1) % 3
    good[::3] = -1
    cb = LabelBudget(good, budget=40, price=2, share=.5, stage=.5)
    learn = learner(dls, cb)
    fit(learn, 1)
    first = cb.table.weights.clone()
    fit(learn, 2)
    ids = ((cb.table.weights > 0) & (y >= 0)).nonzero().flatten()
    assert cb.stages == 2 and len(ids) == cb.bought["good"] == 10
    rows = cb.table.place[ids]
    assert torch.equal(cb.table.targets[rows].argmax(1), good[ids]) and (good[ids] >= 0).all()
    assert first[y >= 0].sum() == 20

def test_stages_by_epoch():
    class Kept(LabelBudget):
        name = "label_budget"
        def before_steps(self):
            super().before_steps()
            seen.append((self.stages, any("grad_avg" in o for o in self.learn.opt.state.values())))
    for stage,n,want in ((.5, 3, [1, 1, 2]), (.3, 4, [1, 2, 2, 2]), (0., 2, [2, 2])):
        seen = []
        fit(learner(data(), Kept(data().given, budget=20, price=4, share=.4, stage=stage)), n)
        assert [o[0] for o in seen] == want
        # with the good labels the optimiser begins anew
        begins = want.index(2)
        assert not seen[begins][1] and (begins < 2 or seen[begins-1][1])

@pytest.mark.parametrize("start, stage", [(1, 1), (2, 2), (3, 2)])
def test_a_fit_that_begins_later(start, stage):
    "In the first stage it buys cheap labels, in the second good ones at once"
    cb = LabelBudget(data().given, budget=20, price=4, share=.4)
    learn = learner(data(), cb)
    class Stop(Callback):
        def after_epoch(self):
            if self.epoch == start: raise CancelFitException
    with learn.no_bar(), learn.no_logging(): learn.fit(4, 1e-3, start_epoch=start, cbs=Stop())
    assert cb.stages == stage
    assert (cb.table.weights > 0).sum() == cb.bought[["cheap", "good"][stage-1]] > 0

def test_cheap_labels_are_the_given_ones():
    dls = data()
    given = (dls.given + 2) % 3
    dls.train_ds.arrays.y.copy_(given)
    cb = LabelBudget(dls.given, budget=12, price=4, share=0.)
    fit(learner(dls, cb), 1)
    ids = (cb.table.weights > 0).nonzero().flatten()
    assert len(ids) == 12
    assert torch.equal(cb.table.targets[cb.table.place[ids]].argmax(1), given[ids])

def test_the_good_labels_come_last():
    "Cheap ones are all wrong, and the good ones are learned after them"
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()
    assert spend(x, 1-y, y, x, y, 40, 40, steps=150) > .8
    assert spend(x, y, 1-y, x, y, 40, 40, steps=150) < .2

def test_the_second_stage_begins_where_it_should():
    cb = LabelBudget(data().given, budget=20, price=4, share=.4, stage=1.)
    fit(learner(data(), cb), 2)
    assert cb.stages == 1  # never: all of the training is the first stage

def test_bought_samples_are_drawn():
    "Not the first ones, which are all of one class here"
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    x = x[x[:, 0].argsort()]
    y = (x[:, 0] > 0).long()
    assert spend(x, y, y, x, y, 12, 0, steps=150) > .7
    assert spend(x, y, y, x, y, 0, 12, steps=150) > .7

@pytest.mark.parametrize("share, kind", [(0., "cheap"), (1., "good")])
def test_one_kind_alone(share, kind):
    dls = data()
    cb = LabelBudget(dls.given, budget=12, price=4, share=share, stage=0. if share == 0 else .5)
    fit(learner(dls, cb), 2)
    other = dict(cheap="good", good="cheap")[kind]
    assert cb.bought[other] == 0 and (cb.table.weights > 0).sum() == cb.bought[kind] > 0

def test_what_is_not_for_sale_is_not_bought():
    dls = data()
    good = torch.full((24,), -1)
    good[3] = 2
    cb = LabelBudget(good, budget=12, price=4, share=1.)
    fit(learner(dls, cb), 2)
    assert (cb.table.weights > 0).nonzero().flatten().tolist() == [3]
    assert cb.bought == dict(cheap=8, good=1) and cb.cost == 12

@pytest.mark.parametrize("which", ["unsure", "sure"])
def test_the_network_says_whom_to_ask(which):
    dls = data()
    cb = LabelBudget(dls.given, budget=32, price=4, share=.5, which=which, stage=.5)
    learn = learner(dls, cb)
    fit(learn, 1)
    cb.stages = 1  # the network as it is now is asked
    cb.bought["good"] = 3
    rows,labels = cb._better()
    x = dls.train_ds.arrays.x
    with torch.no_grad(): sure = learn.model.eval()(x).softmax(1).amax(1)
    want = sure.argsort(descending=which == "sure")[:3]
    assert set(cb.ids[rows].tolist()) == set(want.tolist())
    assert torch.equal(labels, dls.given[cb.ids[rows]])

def test_said_of_places_in_their_order():
    dls = data()
    learn = learner(dls, [])
    at = torch.tensor([7, 2, 19])
    with torch.no_grad(): want = learn.model.eval()(dls.train_ds.arrays.x[at]).softmax(1)
    torch.testing.assert_close(said_of(learn, Samples(dls), at), want)

def test_the_network_is_asked_about_those_for_sale():
    "Where a third of the loader's samples has no label, and every other label is for sale"
    n = torch.arange(24)
    dls = data()
    dls.train_ds.arrays.y[::3] = -1
    good = (n % 3).where(n % 2 == 0, -1)
    cb = LabelBudget(good, budget=20, price=4, share=.6, which="unsure")
    learn = learner(dls, cb)
    cb._ensure_ready()
    rows,labels = cb._better()
    own = ((n % 3 > 0) & (n % 2 == 0)).nonzero().flatten()
    with torch.no_grad(): sure = learn.model.eval()(dls.train_ds.arrays.x[own]).softmax(1).amax(1)
    want = own[sure.argsort()[:3]]
    assert cb.ids[rows].tolist() == want.tolist() and torch.equal(labels, good[want])

def test_errors():
    dls = data()
    with pytest.raises(LabelKitError, match="buys no label"):
        fit(learner(dls, LabelBudget(dls.given, budget=.5)), 1)
    with pytest.raises(LabelKitError, match="good has 2 entries"):
        fit(learner(dls, LabelBudget([1, 2], budget=5)), 1)
    with pytest.raises(LabelKitError, match="of 3 classes"):
        fit(learner(dls, LabelBudget(dls.given + 1, budget=5)), 1)
    with pytest.raises(LabelKitError, match="which='best'"): LabelBudget(which="best")


@pytest.mark.parametrize("good,said", [
    ([], "good has 0 entries"), ([0, -7], "good goes from -7 to 0"),
    ([.5, 1.], "good has 2 entries of type torch.float64"),
])
def test_what_are_no_good_labels(good, said):
    with pytest.raises(LabelKitError, match=said): check_good(good, 2, 3)
