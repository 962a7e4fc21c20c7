"""The losses of a training in an explorer, and an explorer for every technique."""
import math

import pytest, torch
from contract import SLUGS, build, fit, learner, loaders, registry
from labelkit.errors import LabelKitError
from labelkit.storage.ledger import Ledger
from labelkit.core.supervision import LabelCallback
from labelkit.explore.explorer import Explorer
from labelkit.explore.training_explorer import TrainingExplorer, series, share_of_first
from labelkit.parts.rounds import Rounds
from labelkit.pseudo.self_training import SelfTraining

NAN = float("nan")
# What a technique needs to be shown, and what it says without.
NEEDS_LOG = dict.fromkeys(
    ["confident_relabel", "judge_ensemble", "label_critic"],
    "has no label log, and decisions need one",
)


@pytest.mark.parametrize("slug", SLUGS)
def test_every_technique_can_be_explored(slug, tmp_path):
    cb = build(slug, active=True)
    if not cb.explorer.endswith("MixExplorer"):  # mixes can be looked at before any training
        with pytest.raises(LabelKitError): cb.explore()
    learn = learner([cb], slug=slug)
    fit(learn)
    if slug in NEEDS_LOG:
        with pytest.raises(LabelKitError, match=NEEDS_LOG[slug]): cb.explore()
        e = cb.explore(log=tmp_path/"labels.db")
    else: e = cb.explore()
    assert isinstance(e, Explorer) and 1000 < e.saved_size <= Explorer.max_saved
    assert type(e).__name__ == type(cb).explorer.split(":")[1]
    if isinstance(e, TrainingExplorer):
        assert (
            set(e.parts) == set(learn.supervision.parts)
            and "labeled" in e.readout()
            and e.metrics["accuracy"] != [None]
        )


def test_words_by_hand():
    e = TrainingExplorer(
        {"labeled": [2.0, 1.0, 0.5], "late": [NAN, None, 12.5]},
        dict(valid_loss=[3.0, 2.0, 1.0], accuracy=[0.1, 0.5, None]),
        [0.0, 0.5, 1.0],
        [None, 0.25, 1.0],
    )
    assert e.state == dict(loss="all", scale="linear", epoch=2, metric="accuracy")
    assert (
        e.readout() == "Epoch 2: labeled 0.500, late 12.500; 100 % accepted, 100.0 % of them right."
    )
    assert (
        e.select(epoch=1, scale="share of its first value").readout()
        == "Epoch 1, of the first value: labeled 50.0 %; accuracy 0.500; 50 % accepted, 25.0 % of "
           "them right."
    )
    assert (
        e.select(epoch=0, loss="late", metric="valid_loss", scale="linear").readout()
        == "Epoch 0: no such loss; valid_loss 3.000; 0 % accepted."
    )
    assert len(e.plot().axes) == 3
    assert (
        TrainingExplorer({"a": [1e-7, 3e9]}).readout() == "Epoch 1: a 3.00e+09."
        and len(TrainingExplorer({"a": [1.0]}).plot().axes) == 1
    )


def test_series_and_shares():
    assert series("parts", {"a": torch.tensor([1., NAN])}) == {"a": [1., None]}
    assert share_of_first([None, 0.0, 4.0, 2.0]) == [None, 0.0, 1.0, 0.5] and share_of_first(
        [0.0, None]
    ) == [None, None]


@pytest.mark.parametrize(
    "args, word",
    [
        (({},), "parts holds no epoch"),
        (({"a": []},), "parts holds no epoch"),
        (([1.0],), "parts is a list"),
        (({"a": [1.0], "b": [1.0, 2.0]},), "parts['b'] has 2 values for 1 epochs"),
        (({"a": [float("inf")]},), "parts['a'] holds inf"),
        (({"a": ["x"]},), "parts['a'] holds 'x'"),
        (({"a": 1.0},), "parts['a'] is 1.0"),
        (({"a": [[1.0, 2.0]]},), "parts['a'] holds [1.0, 2.0]"),
        (({"all": [1.0]},), "parts['all']"),
        (({"a": [1.0]}, {"m": [1.0, 2.0]}), "metrics['m']"),
        (({"a": [1.0]}, None, [2.0]), "accepted holds 2"),
        (({"a": [1.0]}, None, None, None, 0), "max_epochs"),
    ],
)
def test_refused(args, word):
    with pytest.raises(LabelKitError) as e: TrainingExplorer(*args)
    assert word in str(e.value)


def test_long_trainings_are_thinned():
    e = TrainingExplorer({f"loss {i}": list(range(2000)) for i in range(12)}, {"m": [.5]*2000})
    assert len(e.axes["epoch"]) == 100 and e.axes["epoch"][-1] == 1999 and e.saved_size < 300_000
    assert e.readout().startswith("Epoch 1999: loss 0 1999.000, ")


class Late(LabelCallback):
    "A loss from the second epoch on, and not in the last"
    def after_forward(self, s):
        if self.learn.epoch == 1: s.add_loss("late", s.pred.mean()*0 + 2)


def test_a_loss_that_comes_and_goes_is_shown_in_its_epoch():
    cb = Late()
    learn = fit(learner([cb]), 3)
    p = learn.supervision.parts
    assert (
        {len(v) for v in p.values()} == {3}
        and [math.isnan(v) for v in p["late"]] == [True, False, True]
        and p["late"][1] == 2
    )
    e = cb.explore()
    assert (
        e.parts["late"] == [None, 2.0, None]
        and e.readout().startswith("Epoch 2: labeled ")
        and "late" not in e.readout()
    )
    assert "late 2.000" in e.select(epoch=1).readout()


def test_a_search_leaves_no_epochs():
    cb = Late()
    learn = learner([cb])
    with learn.no_bar(), learn.no_logging(): learn.lr_find(num_it=10, show_plot=False)
    assert learn.supervision.parts == {}
    with pytest.raises(LabelKitError, match="train with it first"): cb.explore()
    fit(learn)
    assert len(learn.supervision.parts["labeled"]) == 1


def test_a_second_fit_goes_on():
    cb = build("fixmatch", active=True)
    learn = fit(fit(learner([cb]), 2), 3)
    e = TrainingExplorer.from_technique(cb)
    assert (
        len(e.axes["epoch"]) == 5
        and e.metrics["accuracy"][:2] == [None, None]
        and e.metrics["accuracy"][2:] == [r[-1] for r in learn.recorder.values]
    )
    s = cb.ledger.summary()
    assert (
        e.pseudo["accepted"][:2] == [None, None]
        and e.pseudo["accepted"][2:] == s.mask_rate.tolist()[-3:] == [1.0] * 3
    )
    assert e.pseudo["accuracy"][2:] == pytest.approx(s.accuracy.tolist()[-3:])


def test_what_the_ledger_says_is_of_the_last_fit():
    "Its round was in the second epoch; that of the fit before, in the third, is gone"
    learn = learner([cb := SelfTraining(threshold=0.)])
    cb._ensure_ready()
    for warmup in (.67, .34):
        cb.schedule = Rounds(1, warmup)
        fit(learn, 3)
    told = TrainingExplorer.from_technique(cb).pseudo["accepted"]
    assert [o is not None for o in told] == [False]*4 + [True, False]


def test_without_truth_and_without_validation():
    dls = loaders("fixmatch")
    dls.truth = None
    cb = build("fixmatch", active=True)
    learn = learner([cb], dls=dls)
    learn.remove_cb(learn.recorder)
    cb_learn = fit(learn)
    assert isinstance(cb.ledger, Ledger)
    e = TrainingExplorer.from_technique(cb_learn.fixmatch)
    assert (
        not e.metrics
        and "accuracy" not in e.pseudo
        and "right" not in e.readout()
        and "metric" not in e.axes
    )


def test_techniques_of_their_own_have_the_losses():
    assert LabelCallback.explorer.endswith(":TrainingExplorer") and all(
        c.cls.explorer for c in registry.values()
    )
