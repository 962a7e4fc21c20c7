"What the supervision does to the learner's events, and when it looks at the loss."
import pytest
import torch
from fastai.callback.core import Callback
from fastai.learner import Learner

from labelkit.core import supervision
from labelkit.core.supervision import LabelCallback
from labelkit.errors import LabelKitError
from labelkit.pseudo.fixmatch import FixMatch
from tests.contract import data, fit, learner, weights


class Nothing(LabelCallback):
    pass


class Own(Callback):
    "Answers events in a way of its own"
    def __init__(self): self.heard = []
    def __call__(self, event_name): self.heard.append(event_name)


class Asks(Callback):
    "Lets another object answer"
    _default = "other"
    def __init__(self):
        self.heard = []
        self.other = type("Other", (), {"after_loss": lambda s: self.heard.append("after_loss")})()
    training = True


def heard(*more):
    "What callbacks of several kinds hear in an epoch, and the learner"
    own = Own()
    asks = Asks()
    given = []
    function = Callback(after_backward=lambda self: given.append("after_backward"))
    learn = learner([own, asks, function, *more])
    fit(learn)
    return (own.heard, asks.heard, given), learn


def test_every_callback_hears_what_it_hears_without_us():
    alone,_ = heard()
    together,learn = heard(Nothing())
    steps = alone[0].count("before_step")
    assert steps and together == alone
    assert alone[1] == ["after_loss"]*alone[0].count("after_loss")
    assert alone[2] == ["after_backward"]*steps
    assert not {"one_batch", "_call_one"} & set(vars(learn))


def test_nobody_is_asked_who_has_nothing_to_do(monkeypatch):
    asked = []
    usual = Callback.__call__

    def ask(self, event_name):
        if self.learn.training: asked.append((type(self).__name__, event_name))
        return usual(self, event_name)
    monkeypatch.setattr(Callback, "__call__", ask)
    fit(learner([Nothing()]))
    batch = {e for _,e in asked if e in supervision._EACH_BATCH}
    assert "before_batch" in batch and "before_backward" not in batch


@pytest.mark.parametrize("later", [False, True])
def test_a_loss_that_is_no_number_moves_no_weights(monkeypatch, later):
    "As on a GPU, whose answer is read when the backward pass is under way"
    monkeypatch.setattr(supervision, "_comes_later", lambda t: later)
    backwards = []
    usual = Learner._backward
    monkeypatch.setattr(Learner, "_backward", lambda s: (backwards.append(1), usual(s)))
    dls = data()
    bad = int(dls.unlabeled.dataset.rows[0])
    dls.unlabeled.dataset.arrays.x[bad] = float("nan")
    # the view lets it pass, as one does that has seen good images before
    learn = learner([FixMatch(weak=lambda x: x, strong=lambda x: x)], dls=dls)
    before = []

    class Keep(Callback):
        def before_batch(self): before.append(weights(learn))
    with pytest.raises(LabelKitError, match=rf"inputs of samples \[{bad}\] are not finite"):
        fit(learn, 3, cbs=[Keep()])
    params = dict(learn.model.named_parameters())
    assert all(torch.equal(p, before[-1][k]) for k,p in params.items())
    assert all(p.grad is None or not p.grad.any() for p in params.values())
    assert learn.supervision._finite is None
    assert len(backwards) == len(before) - (not later)
