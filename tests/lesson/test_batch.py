"""`look`: the record of the next batch, and a learner that does not know it was looked at"""
import copy
import random

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from fastai.basics import Callback, CancelFitException, Learner, accuracy
from fastai.callback.progress import ProgressCallback  # noqa: F401
from torch import nn

from labelkit.data.loaders import from_arrays
from labelkit.data.sets import digits
from labelkit.distill.knowledge_distillation import KnowledgeDistillation
from labelkit.errors import LabelKitError
from labelkit.lesson import look, plain_batches
from labelkit.mix.adautomix import AdAutoMix
from labelkit.mix.mixup import MixUp
from labelkit.models import small_cnn
from labelkit.pseudo.fixmatch import FixMatch
from labelkit.pseudo.flexmatch import FlexMatch
from labelkit.pseudo.mean_teacher import MeanTeacher
from labelkit.relabel.confident_relabel import ConfidentRelabel


def learner(cbs, dls=None, **kwargs):
    dls = dls or digits(labeled=40, seed=1)
    torch.manual_seed(0)
    return Learner(dls, small_cnn(dls), cbs=cbs, metrics=accuracy, **kwargs)


class First(Callback):
    "The first batch that a fit trains on"
    order = 1000
    record = None
    def after_loss(self):
        if self.training and self.record is None:
            self.record = self.learn.supervision.record
            self.loss = float(self.learn.loss_grad)


def fitted(learn, epochs=1):
    first = First()
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, 1e-2, cbs=first)
    return first,[p.detach().clone() for p in learn.model.parameters()]


def teacher():
    torch.manual_seed(1)
    return small_cnn(c=10, c_in=1)


TECHNIQUES = {
    "MixUp": lambda: MixUp(),
    "FixMatch": lambda: FixMatch(threshold=.1),
    "FlexMatch": lambda: FlexMatch(threshold=.15),
    "MeanTeacher": lambda: MeanTeacher(),
    "both": lambda: [MixUp(), FixMatch(threshold=.1)],
    "distillation": lambda: KnowledgeDistillation(teacher()),
}

@pytest.mark.parametrize("name", TECHNIQUES)
@pytest.mark.parametrize("before", [0, 1], ids=["new", "fitted"])
def test_the_next_fit_is_the_same(name, before):
    "The batch is the one that the next fit begins with, and that fit ends with the same weights"
    results = []
    for looks in (0, 2):
        learn = learner(TECHNIQUES[name]())
        if before: fitted(learn)
        seen = [look(learn) for _ in range(looks)]
        first,weights = fitted(learn)
        for o in seen:
            torch.testing.assert_close(o.record.x, first.record.x, rtol=0, atol=0)
            assert torch.equal(o.record.targets, first.record.targets)
            assert float(o.loss) == first.loss
        results.append(weights)
    assert all(torch.equal(a, b) for a,b in zip(*results))


def state(learn):
    "Everything of a learner that could have changed"
    values = {k: v for k,v in vars(learn).items() if k not in ("model", "opt")}
    cbs = [(cb, dict(vars(cb))) for cb in learn.cbs]
    rngs = random.getstate(),np.random.get_state()[1].tolist(),torch.get_rng_state().tolist()
    loaders = [(dict(vars(dl)), dl.rng.getstate()) for dl in learn.dls.loaders]
    weights = {k: v.clone() for k,v in learn.model.state_dict().items()}
    opt = None if learn.opt is None else copy.deepcopy(learn.opt.state_dict())
    return values,cbs,rngs,loaders,weights,opt

@pytest.mark.parametrize("before", [0, 1], ids=["new", "fitted"])
def test_nothing_of_the_learner_changes(before):
    learn = learner([FixMatch(threshold=.1), MixUp()])
    if before: fitted(learn)
    model = learn.model
    ledger = learn.fixmatch.ledger
    old = state(learn)
    frame = ledger.frame() if before else None
    look(learn)
    new = state(learn)
    assert learn.model is model and learn.fixmatch.ledger is ledger
    assert [o[0] for o in old[1]] == [o[0] for o in new[1]]
    for (_,a),(_,b) in zip(old[1], new[1]):
        assert a.keys() == b.keys()
        assert all(a[k] is b[k] for k in a)
    assert old[0].keys() == new[0].keys() and all(old[0][k] is new[0][k] for k in old[0])
    assert old[2] == new[2]
    for (a,r),(b,s) in zip(old[3], new[3]): assert r == s and all(a[k] is b[k] for k in a)
    assert all(torch.equal(v, new[4][k]) for k,v in old[4].items())
    assert str(old[5]) == str(new[5])
    if before: assert frame.equals(ledger.frame())


def test_callbacks_for_this_batch_alone():
    learn = learner([])
    mine = FixMatch(threshold=.1)
    seen = look(learn, mine)
    assert set(seen.requests) == {"fixmatch.weak", "fixmatch.strong"}
    assert mine.ledger is None and not learn.cbs.filter(lambda o: o is mine)
    assert seen.state["fixmatch"].ledger.summary().shape[0] == 1
    assert not hasattr(learn, "supervision")
    assert torch.equal(seen.given, look(learn).given)


def test_without_a_technique():
    seen = look(learner([]))
    assert not seen.changed.any() and not seen.record.edited
    assert set(seen.losses) == {"labeled"}
    torch.testing.assert_close(seen.losses["labeled"][0].detach(), seen.loss)
    assert "as given" in seen._repr_html_()


def test_losses_add_up_and_have_their_graph():
    seen = look(learner([FixMatch(threshold=.1, weight=.5), MixUp()]))
    total = sum(float(v)*w for v,w in seen.losses.values())
    assert total == pytest.approx(float(seen.loss), rel=1e-5)
    assert seen.losses["fixmatch"][1] == .5
    grads = torch.autograd.grad(seen.losses["fixmatch"][0], list(seen.model.parameters()))
    assert all(g.isfinite().all() for g in grads) and any(g.abs().sum() for g in grads)


def test_relabeling_is_seen_in_the_weights():
    dls = digits(noise_rate=.3, seed=1)
    probs = torch.full((dls.n_ids, 10), .01).scatter(1, dls.truth[:, None], .91)
    seen = look(learner(ConfidentRelabel(pred_probs=probs), dls))
    assert (seen.record.weights == 0).any()
    assert "are 0, mean" in seen._repr_html_()
    rows = {o.get_text() for o in seen.show(n=64).axes[0].figure.findobj(plt.Text)}
    assert any(o.endswith("×0") for o in rows)


def test_words_of_targets_and_class_names_are_text():
    x = torch.rand(32, 1, 8, 8)
    y = torch.arange(32) % 2
    dls = from_arrays(x, y, x, y, vocab=["<b>cats</b>", "$dogs$"], bs=8)
    seen = look(learner(MixUp(alpha=1., per_sample=True), dls))
    assert seen.words(torch.tensor([.6, .4])) == "60 % <b>cats</b> + 40 % $dogs$"
    assert seen.words(torch.tensor([0., 1.])) == "$dogs$"
    assert "<b>cats" not in seen._repr_html_()
    fig = seen.show(n=3)
    fig.canvas.draw()
    assert len(fig.axes) == 6


def test_views_stand_below_each_other():
    seen = look(learner(FixMatch(threshold=.1, augment_labeled=False)))
    fig = seen.show(n=4)
    labels = [ax.get_ylabel() for ax in fig.axes[::4]]
    assert labels == ["trained on", "fixmatch.weak", "fixmatch.strong"]
    assert len(look(learner(FixMatch(threshold=.1))).show(n=4).axes) == 16


def test_tables_of_numbers_have_a_record_and_no_pictures():
    x = torch.rand(32, 3)
    y = (x.sum(1) > 1.5).long()
    dls = from_arrays(x, y, x, y, bs=8)
    learn = Learner(dls, nn.Linear(3, 2), cbs=MixUp())
    seen = look(learn)
    assert "8 of 3" in seen._repr_html_()
    with pytest.raises(LabelKitError, match="is no picture"): seen.show()


def test_several_labels_and_regression():
    x = torch.rand(32, 1, 8, 8)
    for y,kind in ((torch.rand(32, 3).round(), "multi"), (torch.rand(32, 2), "regression")):
        dls = from_arrays(x, y, x, y, kind=kind, bs=8)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, y.shape[1]))
        seen = look(Learner(dls, model, cbs=MixUp(alpha=1., per_sample=True)))
        assert seen.changed.any()
        assert "changed" in seen._repr_html_()
        seen.show(n=2)


def test_a_fit_that_never_begins():
    class Ends(Callback):
        def before_batch(self): raise CancelFitException()
    learn = learner(Ends())
    with pytest.raises(LabelKitError, match="no batch was trained"): look(learn)


def test_an_error_leaves_the_learner_as_it_was():
    learn = learner(FixMatch(strong=lambda x: x[:3]))
    old = state(learn)
    with pytest.raises(Exception): look(learn)  # noqa: B017, PT011
    assert all(torch.equal(v, learn.model.state_dict()[k]) for k,v in old[4].items())
    assert old[2] == state(learn)[2] and not hasattr(learn, "supervision")


def test_plain_batches():
    dls = digits(labeled=40)
    got = list(plain_batches(dls, 7, ids=True))
    assert len(got) == 7
    for x,y,u,ids,u_ids in got:
        assert type(x) is type(y) is type(u) is torch.Tensor
        assert torch.equal(y, dls.given[ids]) and (dls.given[u_ids] < 0).all()
        assert torch.equal(u, dls.unlabeled.dataset.arrays.inputs(u_ids))
    x,y,u = next(plain_batches(digits(), 1))
    assert u is None and len(x) == len(y) == 64


def test_a_trained_network_beside_the_model_is_copied():
    learn = learner(AdAutoMix())
    fitted(learn)
    net = learn.adautomix.generator.module
    before = [p.detach().clone() for p in net.parameters()]
    seen = look(learn)
    copy = seen.state["adautomix"].generator.module
    assert copy is not net and learn.adautomix.generator.module is net
    for old,now,other in zip(before, net.parameters(), copy.parameters()):
        assert torch.equal(old, now) and torch.equal(old, other) and now is not other


def test_the_lines_say_what_can_be_seen():
    from labelkit.lesson.batch import _weights_row
    assert _weights_row(torch.ones(4)) == "1 each"
    assert _weights_row(torch.tensor([.5, .25])) == "mean 0.38"
    assert _weights_row(torch.tensor([0., 1.])) == "1 of 2 are 0, mean 0.50"

    # a share that was moved by less than its words say is not the example; the next one is
    seen = look(learner(MixUp(alpha=1., per_sample=True)))
    given = seen.given_targets.clone()
    seen.record.targets = given.clone()
    seen.record.targets[0] = seen.record.targets[0]*.999 + .0001
    seen.record.targets[1] = given[1].roll(1)
    text = seen._repr_html_()
    assert f"2 of {len(given)} changed, the first from {seen.words(given[1])} to" in text
    seen.record.targets[1] = given[1]
    assert f"1 of {len(given)} changed<" in seen._repr_html_()
