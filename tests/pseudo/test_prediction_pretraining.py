"Pre-training on predictions: what each phase learns from, and from which weights"
import pytest
import torch
from fastai.basics import Callback

from contract import data, fit, learner
from labelkit.data.samples import predict_unlabeled
from labelkit.errors import LabelKitError
from labelkit.parts.phases import weights_of
from labelkit.pseudo.prediction_pretraining import PredictionPretraining


class Epochs(Callback):
    "Of the first batch of each epoch: the losses, the labeled one's factor, the weights before it"
    order = 6
    def before_fit(self):
        self.losses = []
        self.factors = []
        self.weights = []
    def before_train(self): self.now = None
    def after_loss(self):
        if not self.training or self.iter: return
        s = self.learn.supervision.record
        self.losses.append(list(s.losses))
        self.factors.append(s.labeled_weight)
        self.weights.append(weights_of(self.learn)["head.weight"])


def run(epochs=4, **kwargs):
    cb = PredictionPretraining(**kwargs)
    spy = Epochs()
    learn = fit(learner([cb, spy]), epochs)
    return cb,spy,learn


def test_three_phases():
    cb,spy,learn = run(first=.25, pretrain=.5)
    name = ["prediction_pretraining"]
    assert spy.losses == [[], name, name, []]
    assert spy.factors == [1, 0, 0, 1]
    assert torch.equal(spy.weights[1], spy.weights[0])      # fresh
    assert not torch.equal(spy.weights[2], spy.weights[0])
    assert cb.ledger.epochs == [1]
    assert ((cb.pseudo_label >= 0) == (learn.dls.given < 0)).all()


def test_self_training_is_the_same_with_both_losses():
    _,spy,_ = run(first=.25, together=True)
    assert spy.losses == [[]] + [["prediction_pretraining"]]*3 and spy.factors == [1]*4
    assert torch.equal(spy.weights[1], spy.weights[0])


def test_the_predictions_alone_teach_in_the_second_phase():
    "Other labels change nothing there"
    found = []
    for shift in (0, 1):
        dls = data()
        cb = PredictionPretraining(first=0., pretrain=1.)
        learn = learner([cb], dls=dls)
        y = dls.train_ds.arrays.y
        y[y >= 0] = (y[y >= 0] + shift) % 10
        fit(learn)
        found.append(weights_of(learn))
    assert all(torch.equal(found[0][k], found[1][k]) for k in found[0])


def test_each_sample_is_told_what_was_said_of_it():
    "By the first network, in evaluation mode"
    class Kept(PredictionPretraining):
        name = "prediction_pretraining"
        def relabel(self):
            self.first_said = predict_unlabeled(self.learn)
            super().relabel()
    fit(learner([cb := Kept(first=.9, pretrain=.1)]), 10)
    ids,logits = cb.first_said
    assert torch.equal(cb.pseudo_label[ids], logits.argmax(1))
    assert len(cb.pseudo_label[ids].unique()) > 2


def test_errors():
    with pytest.raises(LabelKitError, match="first=0.6 and pretrain=0.5 are more than"):
        PredictionPretraining(first=.6, pretrain=.5)
    with pytest.raises(LabelKitError, match="first=2"): PredictionPretraining(first=2)
