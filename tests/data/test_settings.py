import itertools
from inspect import signature

import numpy as np
import pandas as pd
import pytest
import torch
from torch import tensor

from labelkit.data.settings import (
    TrainingSet,
    add_noise,
    annotators,
    apply_settings,
    as_generator,
    bags,
    biased_transition,
    complementary_labels,
    instance_noise,
    keep_labeled,
    long_tail,
    long_tail_counts,
    noise_kinds,
    pair_noise,
    partial_labels,
    setting,
    settings,
    symmetric_noise,
    takes_settings,
    transition,
    unknown_classes,
    weak_labels,
)
from labelkit.data.loaders import from_arrays
from labelkit.data.sets import digits
from labelkit.errors import LabelKitError

C = 10
Y = torch.arange(2000) % C
X = torch.rand(2000, 1, 4, 4, generator=torch.Generator().manual_seed(0))

calls = dict(
    symmetric=lambda g: symmetric_noise(Y, 0.3, C, g),
    pair=lambda g: pair_noise(Y, 0.3, C, g),
    instance=lambda g: instance_noise(Y, 0.3, C, g, X),
    long_tail=lambda g: long_tail(Y, 10, C, g),
    keep_labeled=lambda g: keep_labeled(Y, 45, C, g),
    partial=lambda g: partial_labels(Y, 0.2, C, g),
    complementary=lambda g: complementary_labels(Y, C, g),
    biased=lambda g: complementary_labels(Y, C, g, biased_transition(C, generator=g)),
    bags=lambda g: bags(Y, 16, C, g)[0],
    annotators=lambda g: annotators(Y, 3, 0.2, C, g, 0.5),
    weak=lambda g: weak_labels(Y, [0.9, 0.7], 0.5, C, g),
)


@pytest.mark.parametrize("name", calls)
def test_a_seed_repeats_and_nothing_else_changes(name):
    state = torch.get_rng_state()
    before = Y.clone()
    a = calls[name](7)
    b = calls[name](torch.Generator().manual_seed(7))
    other = calls[name](8)
    if name != "biased": assert torch.equal(a, b)        # there one generator serves twice
    assert torch.equal(a, calls[name](7)) and not torch.equal(a, other)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(Y, before)


@pytest.mark.parametrize("rate", [0, .1, .3, .333, 1.])
@pytest.mark.parametrize("noise", [symmetric_noise, pair_noise])
def test_exact_number_of_wrong_labels(noise, rate):
    noisy = noise(Y, rate, C)
    assert noisy.dtype == torch.long and noisy.min() >= 0 and noisy.max() < C
    assert int((noisy != Y).sum()) == round(rate*len(Y))


def test_symmetric_noise_reaches_all_other_classes_evenly():
    m = transition(torch.zeros(9000, dtype=torch.long), symmetric_noise([0]*9000, .9, C), C)[0]
    assert m[0] == pytest.approx(.1, abs=1e-6) and (m[1:] - .1).abs().max() < .015


def test_two_classes(): assert symmetric_noise([0, 1, 1], 1., 2).tolist() == [1, 0, 0]


def test_pair_noise_follows_the_pairs():
    noisy = pair_noise(Y, 1., C, pairs=[9, 1, 2, 3, 4, 5, 6, 7, 8, 0])
    m = transition(Y, noisy, C)
    assert m[0, 9] == 1 and m[9, 0] == 1 and (m.diagonal()[1:9] == 1).all()


def test_instance_noise_depends_on_the_sample_only_through_it():
    noisy = instance_noise(Y, .3, C, x=X)
    assert abs(float((noisy != Y).float().mean()) - .3) < .04
    assert torch.equal(instance_noise(Y, 0, C, x=X), Y)
    # one picture for all: each class has its own fixed confusion
    same = X[:1].expand(len(X), 1, 4, 4)
    top = transition(Y, instance_noise(Y, .4, C, x=same*3), C).fill_diagonal_(0).max(1).values
    assert (top > .8/9).all()


def test_instance_noise_when_every_label_is_wrong():
    assert (instance_noise(Y, 1., C, x=X, spread=1e-3) == Y).float().mean() < .01


def test_noise_by_name():
    for name in noise_kinds: assert add_noise(Y, .2, C, 3, name, X).shape == Y.shape
    with pytest.raises(LabelKitError, match="symmetric, pair, instance"):
        add_noise(Y, .2, C, noise="white")


# counted by semilearn 0.3.2, make_imbalance_data: (largest class, classes, imbalance) and the sizes
@pytest.mark.parametrize("args,sizes", [
    ((1500, 10, 100), [1500, 899, 539, 323, 193, 116, 69, 41, 25, 15]),
    ((3000, 10, -100), [30, 50, 83, 139, 232, 387, 646, 1078, 1798, 3000]),
    ((500, 10, 150), [500, 286, 164, 94, 53, 30, 17, 10, 5, 3])])
def test_long_tail_counts(args, sizes): assert long_tail_counts(*args) == sizes


def test_long_tail_counts_of_a_hundred_classes():
    sizes = long_tail_counts(150, 100, 10)
    assert (
        sizes[:6] == [150, 146, 143, 139, 136, 133]
        and sizes[-4:] == [16, 15, 15, 15]
        and sizes[49:52] == [47, 46, 45]
    )


def test_long_tail_keeps_different_rows_in_order():
    kept = long_tail(Y, 100, C)
    assert torch.equal(kept, kept.unique()) and torch.bincount(
        Y[kept]
    ).tolist() == long_tail_counts(200, C, 100)
    assert torch.bincount(Y[long_tail(Y, -100, C)]).tolist() == long_tail_counts(200, C, -100)
    assert len(long_tail(Y, 1, C)) == len(Y)


def test_long_tail_fits_itself_to_what_is_there():
    y = torch.cat([torch.zeros(100), torch.ones(40), torch.full((30,), 2)]).long()
    sizes = torch.bincount(y[long_tail(y, 4, 3)])
    assert (
        (sizes <= tensor([100, 40, 30])).all()
        and sizes.tolist() == long_tail_counts(int(sizes[0]), 3, 4)
        and sizes[0] == 80
    )
    with pytest.raises(LabelKitError, match="class 1 has 40 samples"): long_tail(y, 4, 3, n_max=100)
    with pytest.raises(LabelKitError, match="without a sample"): long_tail(y, 1000, 3)


def test_keep_labeled():
    rows = keep_labeled(Y, 43, C)
    assert (
        torch.equal(rows, rows.unique())
        and len(rows) == 43
        and sorted(torch.bincount(Y[rows]).tolist()) == [4] * 7 + [5] * 3
    )
    assert len(keep_labeled(Y, 3, C, balanced=False)) == 3
    some = torch.where(torch.arange(len(Y)) < 200, Y, -1)
    assert keep_labeled(some, 40, C).max() < 200
    assert torch.equal(keep_labeled(Y, len(Y), C), torch.arange(len(Y)))


@pytest.mark.parametrize("n,fix", [(0, "from 1 to"), (5000, "from 1 to"), (9, "balanced=False"),
                                   (4.5, "whole number"), (True, "whole number")])
def test_keep_labeled_refuses(n, fix):
    with pytest.raises(LabelKitError, match=fix): keep_labeled(Y, n, C)


def test_keep_labeled_names_the_poor_class():
    y = torch.cat([Y, tensor([10, 10])])
    with pytest.raises(LabelKitError, match="class 10 has 2 labels"): keep_labeled(y, 110, 11)


def test_partial_labels_hold_the_truth():
    sets = partial_labels(Y, .2, C)
    assert (
        sets.dtype == torch.bool
        and sets.shape == (len(Y), C)
        and sets[torch.arange(len(Y)), Y].all()
    )
    assert abs(float(sets.sum(1).float().mean()) - (1 + .2*9)) < .1
    assert (partial_labels(Y, 0, C).sum(1) == 1).all() and partial_labels(Y, 1, C).all()


def test_complementary_labels_are_never_the_truth():
    t = biased_transition(C, generator=3)
    assert (
        torch.allclose(t.sum(1), torch.ones(C))
        and (t.diagonal() == 0).all()
        and ((t > 0).sum(1) == C - 1).all()
    )
    assert t[0].sort(descending=True).values[:3].sum() == pytest.approx(.75)
    for transitions in (None, t):
        assert (complementary_labels(Y, C, transition=transitions) != Y).all()
    assert (transition(Y, complementary_labels(Y, C), C)[0, 1:] - 1/9).abs().max() < .07


@pytest.mark.parametrize(
    "t,what",
    [
        (torch.eye(C), "zero diagonal"),
        (torch.ones(C, C), "distributions"),
        (torch.zeros(3, 3), "10 x 10"),
    ],
)
def test_complementary_labels_refuse_a_transition(t, what):
    with pytest.raises(LabelKitError, match=what): complementary_labels(Y, C, transition=t)


def test_bags():
    ids, shares = bags(Y[:50], 16, C)
    assert torch.bincount(ids).tolist() == [16, 16, 16, 2] and torch.allclose(
        shares.sum(1), torch.ones(4)
    )
    assert torch.allclose(shares[0], torch.bincount(Y[:50][ids == 0], minlength=C)/16)
    for size in (0, 51):
        with pytest.raises(LabelKitError, match="size"): bags(Y[:50], size)


def test_unknown_classes():
    y = tensor([0, 1, 2, 3, -1])
    assert unknown_classes(y, [3, 1], 4).tolist() == [-1, 1, -1, 0, -1]
    assert unknown_classes(y, 2, 4, unknown=2).tolist() == [0, 1, 2, 2, 2]
    assert unknown_classes(y, tensor([3, 1]), 4).tolist() == [-1, 1, -1, 0, -1]
    for known in ([1, 1], [4], [-1], [], 5):
        with pytest.raises(LabelKitError, match="known"): unknown_classes(y, known, 4)


def test_annotators():
    crowd = annotators(Y, 4, [0, .1, .5, 1.], C, coverage=.1)
    assert crowd.shape == (len(Y), 4) and (crowd >= 0).any(1).all()
    full = annotators(Y, 4, [0, .1, .5, 1.], C)
    wrong = (full != Y[:, None]).float().mean(0)
    assert wrong[0] == 0 and wrong[3] == 1 and (wrong[1:3] - tensor([.1, .5])).abs().max() < .04
    with pytest.raises(LabelKitError, match="one number or 4"): annotators(Y, 4, [.1], C)


def test_weak_labels():
    votes = weak_labels(Y, [1., .6], [1., .3], C)
    assert (votes[:, 0] == Y).all() and abs(float((votes[:, 1] >= 0).float().mean()) - .3) < .04
    with pytest.raises(LabelKitError, match="accuracies"): weak_labels(Y, .9)


@pytest.mark.parametrize("rate", [-.1, 1.1, 30, float("nan"), None, "a lot"])
@pytest.mark.parametrize(
    "f", [symmetric_noise, pair_noise, partial_labels, lambda y, r, c: instance_noise(y, r, c, x=X)]
)
def test_rates_outside_0_to_1(f, rate):
    with pytest.raises(LabelKitError, match="noise_rate"): f(Y, rate, C)


@pytest.mark.parametrize(
    "y,what",
    [
        ([0, 1, 7], "label 7 at position 2"),
        ([0, -1], "label -1 at position 1"),
        ([0.5, 1.0], "whole numbers"),
        ([[0, 1]], "vector"),
        ([], "empty"),
        ("cat", "vector"),
        ([True, False], "whole numbers"),
    ],
)
def test_labels_outside_the_classes(y, what):
    for f in (
        lambda: symmetric_noise(y, 0.1, 5),
        lambda: partial_labels(y, 0.1, 5),
        lambda: complementary_labels(y, 5),
    ):
        with pytest.raises(LabelKitError, match=what): f()


def test_other_wrong_input():
    with pytest.raises(LabelKitError, match="pass x="): instance_noise(Y, .1, C)
    with pytest.raises(LabelKitError, match="2 rows"): instance_noise(Y, .1, C, x=X[:2])
    with pytest.raises(LabelKitError, match="NaN"):
        instance_noise(Y[:2], .1, C, x=tensor([[1.], [float("nan")]]))
    with pytest.raises(LabelKitError, match="generator"): as_generator("seed")
    with pytest.raises(LabelKitError, match="imbalance"): long_tail(Y, .5, C)
    with pytest.raises(LabelKitError, match="pairs"): pair_noise(Y, .1, C, pairs=[0, 1])
    with pytest.raises(LabelKitError, match="same samples"): transition(Y, Y[:5], C)
    with pytest.raises(LabelKitError, match="shares"): biased_transition(3)


# Settings of a data set

def world(kind="single", y=Y, seed=0):
    g = torch.Generator().manual_seed(seed)
    valid = y[:100]
    return TrainingSet(X[:len(y)], y, X[:100], valid, kind, C, [str(i) for i in range(C)], g)


EACH = dict(
    known=dict(known=6),
    imbalance=dict(imbalance=5),
    noise_rate=dict(noise_rate=.25),
    labeled=dict(labeled=100),
    complementary=dict(complementary=True),
    bag_size=dict(bag_size=8),
)


def consequences(s, chosen):
    "What must be true of a training set in the settings `chosen`, whatever others there are"
    has = s.labeled
    if "labeled" in chosen: assert int(has.sum()) == 100
    if "known" in chosen:
        assert s.c == 6 and len(s.vocab) == 6 and int(s.y_valid.max()) == 5
        assert len(s.extra["x_unknown"]) == 40
        if "bag_size" not in chosen: assert int(s.given.max()) < 6 and (s.truth == 6).any()
        assert not has[s.truth == 6].any()
    if "imbalance" in chosen:
        sizes = torch.bincount(s.truth)[:s.c]
        assert abs(int(sizes[0]) - 5*int(sizes[-1])) <= 5 and (sizes.diff() <= 0).all()
    if "bag_size" in chosen:
        assert s.targets.shape == (len(s.y), s.c) and (s.given == -1).all()
        bag = s.extra["bags"]
        assert torch.equal(bag >= 0, has)
        for k in range(int(bag.max()) + 1):
            inside = bag == k
            assert (s.targets[inside] == s.extra["proportions"][k]).all()
            # the shares are of the labels, and those are the true ones where nothing else is set
            if not {"noise_rate", "complementary"} & set(chosen):
                share = torch.bincount(s.truth[inside], minlength=s.c)/inside.sum()
                assert torch.allclose(share, s.extra["proportions"][k])
        return
    wrong = s.given[has] != s.truth[has]
    if "complementary" in chosen: assert wrong.all()
    elif "noise_rate" in chosen:
        assert abs(float(wrong.float().mean()) - .25) < (.15 if "labeled" in chosen else .01)
    else: assert not wrong.any()


@pytest.mark.parametrize("a,b", [*itertools.combinations(EACH, 2)])
def test_any_two_settings_compose(a, b):
    chosen = EACH[a] | EACH[b]
    s = world()
    apply_settings(s, **chosen)
    consequences(s, chosen)
    # the order of the keywords is no matter, a seed is, and nothing that was passed is changed
    again = world()
    apply_settings(again, **dict(reversed(chosen.items())))
    for k in ("x", "y", "given", "x_valid", "y_valid"):
        assert torch.equal(getattr(s, k), getattr(again, k))
    assert torch.equal(Y, torch.arange(2000) % C)


def test_all_settings_compose():
    chosen = {k: v for o in EACH.values() for k,v in o.items()}
    s = world()
    apply_settings(s, **chosen)
    consequences(s, chosen)


def test_no_setting_changes_nothing():
    s = world()
    apply_settings(s)
    assert torch.equal(s.given, Y) and torch.equal(s.truth, Y) and s.labeled.all() and not s.extra
    off = world()
    apply_settings(off, **{k: f.keywords[k] for k,f in settings.items()})
    assert torch.equal(off.given, Y)
    assert torch.equal(s.rng.get_state(), torch.Generator().manual_seed(0).get_state())


def test_unlabeled_samples_stay_unlabeled():
    y = Y.clone()
    y[::3] = -1
    s = world(y=y[:1200])
    apply_settings(s, noise_rate=.5, labeled=200)
    assert s.truth is None and not s.labeled[::3].any() and int(s.labeled.sum()) == 200
    assert (s.given != y[:1200])[s.labeled].any()


@pytest.mark.parametrize("kind", ["soft", "multi", "regression"])
def test_other_targets_can_be_few(kind):
    y = torch.rand(200) if kind == "regression" else torch.eye(C)[Y[:200]]
    for labeled in (20, list(range(20)), torch.arange(200) < 20):
        s = world(kind, y)
        apply_settings(s, labeled=labeled)
        assert int(s.labeled.sum()) == 20 and torch.equal(s.given[s.labeled], y[s.labeled])
    for k in set(EACH) - {"labeled"}:
        said = f"{k}=.* is for class labels, not for kind='{kind}'"
        with pytest.raises(LabelKitError, match=said): apply_settings(world(kind, y), **EACH[k])


WHICH = [[3, 5], tensor([3, 5]), np.array([3, 5]), pd.Series([3, 5], index=[9, 4]), range(3, 6, 2)]


@pytest.mark.parametrize("labeled", WHICH, ids=lambda o: type(o).__name__)
def test_which_samples_are_labeled(labeled):
    s = world()
    apply_settings(s, labeled=labeled)
    assert s.labeled.nonzero().flatten().tolist() == [3, 5]


def test_how_many_in_numbers_of_numpy():
    s = world()
    apply_settings(s, labeled=np.int64(40))
    assert torch.bincount(s.given[s.labeled]).tolist() == [4]*C


@pytest.mark.parametrize(
    "chosen,said",
    [
        (dict(labeled=0), "labeled=0 is not between 1 and 2000"),
        (dict(labeled=True), "labeled=True is not between"),
        (dict(labeled=2001), "labeled=2001 is not between"),
        (dict(labeled=[0, 2000]), r"labeled names samples outside 0\.\.1999"),
        (dict(labeled=[]), "labeled names samples outside"),
        (dict(labeled=40.), "labeled=40.0 is no number of samples"),
        (dict(labeled=[True, False]), "one answer a sample"),
        (dict(noise_rate=1.5), "noise_rate=1.5"),
        (dict(noise="white"), "noise must be one of symmetric, pair, instance"),
        (dict(known=[1, 1]), "known"),
        (dict(known=11), "known"),
        (dict(imbalance=.5), "imbalance"),
        (dict(bag_size=0.5), "size|integer|whole"),
        (dict(complementary=torch.eye(C)), "zero diagonal"),
        (dict(known=6, noise_rate=.1, noise="instance"), "needs a label for every sample"),
        (dict(labels=40), "labels=40 is no setting of a data set: did you mean labeled"),
        (dict(something=1), "the settings are known, imbalance, noise_rate"),
    ],
)
def test_settings_that_are_refused(chosen, said):
    with pytest.raises(LabelKitError, match=said): apply_settings(world(), **chosen)


@pytest.mark.parametrize("chosen", [dict(known=6), dict(complementary=True)])
def test_what_needs_the_truth(chosen):
    y = Y.clone()
    y[0] = -1
    with pytest.raises(LabelKitError, match="needs the true class of every training sample"):
        apply_settings(world(y=y), **chosen)


def test_a_setting_of_ones_own():
    @setting("single", "regression")
    def late(s, until=None, gap=0):
        if until is not None: s.given = s.given.where(torch.arange(len(s.y)) < until - gap, -1)
    try:
        s = world()
        apply_settings(s, until=30, gap=10, noise_rate=.5)
        assert s.labeled.nonzero().flatten().tolist() == list(range(20))
        assert "until" in signature(takes_settings(lambda x, **settings: 0)).parameters
        dls = digits(until=50)
        assert len(dls.train_ds) == 50 and len(dls.recipe(1).train_ds) == 50
        with pytest.raises(LabelKitError, match="not for kind='multi'"):
            apply_settings(world("multi", torch.eye(C)[Y]), until=3)
    finally:
        for k in ("until", "gap"): settings.pop(k)


def test_columns_of_pandas_as_they_come():
    "A split keeps the numbers of its rows, which say nothing here; a sorted one is refused"
    y = pd.Series(Y.tolist(), index=range(50, 50+len(Y)))
    assert torch.equal(symmetric_noise(y, .3, C), symmetric_noise(Y, .3, C))
    assert torch.equal(bags(y, 4)[0], bags(Y, 4)[0])
    turned = pd.Series(Y.tolist(), index=range(len(Y)))[::-1]
    with pytest.raises(LabelKitError, match="another order than its index"):
        symmetric_noise(turned, .3, C)


def test_settings_in_every_container():
    x = torch.rand(12, 2)
    y = torch.arange(12) % 3
    make = lambda **k: from_arrays(x, y, x, y, **k)
    away = pd.DataFrame((1-torch.eye(3).numpy())/2)
    assert torch.equal(make(complementary=away).transition, torch.tensor(away.to_numpy()).float())
    named = from_arrays(x, ["abc"[i] for i in y], x, ["abc"[i] for i in y], known=["c", "a"])
    assert named.vocab == ["c", "a"]
    assert named.given.tolist() == [1, -1, 0]*4
    with pytest.raises(LabelKitError, match="known of sample 0 is 'z'"):
        from_arrays(x, ["abc"[i] for i in y], x, ["abc"[i] for i in y], known=["z"])
    for labeled in ("9", ["a", "b"]):
        with pytest.raises(LabelKitError, match="labeled="): make(labeled=labeled)
