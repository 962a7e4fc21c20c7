"""IOMatch: a value of the official code, the sum of the shares, which samples teach which head, and
where the gradients go."""
import json, pickle

import pytest
import torch
from fastai.basics import Callback, Learner
from torch import tensor

from contract import data, fit, learner, model
from labelkit.data.loaders import from_arrays
from labelkit.errors import LabelKitError
from labelkit.core.record import Supervision
from labelkit.pseudo.base import Guess
from labelkit.pseudo.iomatch import IOMatch, one_vs_all_loss, open_targets
from labelkit.pseudo.open_set import known_auroc, known_scores


def test_one_vs_all_reference(root):
    (ref,) = json.loads((root/"tests/reference/iomatch.json").read_text())
    logits = tensor(ref["inputs"]["logits_mb [B,2K]"])
    labels = tensor(ref["inputs"]["labels"])
    loss = one_vs_all_loss(logits.view(len(logits), 2, -1), torch.eye(3)[labels])
    assert loss.item() == pytest.approx(ref["expected"], abs=ref["tolerance_abs"])


def test_weights_leave_a_sample_out():
    logits = torch.randn(4, 2, 3)
    t = torch.eye(3)[[0,1,2,0]]
    assert torch.allclose(
        one_vs_all_loss(logits, t, tensor([1.0, 1.0, 0.0, 1.0])),
        one_vs_all_loss(logits[[0, 1, 3]], t[[0, 1, 3]]),
    )


def test_open_targets_are_distributions():
    q = open_targets(torch.randn(50, 6).softmax(1), 5*torch.randn(50, 2, 6))
    assert q.shape == (50, 7) and (q >= 0).all()
    torch.testing.assert_close(q.sum(1), torch.ones(50))
    certain = open_targets(
        torch.eye(3), torch.stack([torch.full((3, 3), -50.0), torch.full((3, 3), 50.0)], 1)
    )
    torch.testing.assert_close(certain, torch.cat([torch.eye(3), torch.zeros(3,1)], 1))


def test_who_teaches_whom():
    cb = IOMatch(threshold=.9)
    p = tensor([[.95,.05], [.95,.05], [.6,.4]])
    g = Guess(p.log(), s := Supervision(torch.zeros(1, 2), tensor([0]), c=2))
    s.own(cb).q = tensor([[.8,.05,.15], [.3,.02,.68], [.5,.3,.2]])
    # sure and known; sure and unknown; unsure
    assert cb.believe(g).tolist() == [True, False, False]
    torch.testing.assert_close(cb.teach(g), p)


def opened(n=120, **kwargs):
    base = data(n=n, labeled=None)
    a = base.train_ds.arrays
    return from_arrays(
        a.x,
        base.truth,
        base.valid_ds.arrays.x,
        base.valid_ds.arrays.y,
        labeled=24,
        known=6,
        bs=8,
        ratio=3,
        view_hints=dict(flip=False),
        **kwargs,
    )


def six():
    from labelkit.models import small_cnn
    torch.manual_seed(0)
    return small_cnn(c=6, c_in=1, width=4)


def test_heads_and_features_learn_but_the_classifier_is_not_taught_by_the_open_loss():
    seen = []

    class Keep(Callback):
        order = 6
        def after_loss(self):
            if not self.training: return
            losses = self.learn.supervision.record.losses
            cb = self.learn.iomatch
            where = [
                next(self.learn.model.parameters()),
                self.learn.model.head.weight,
                cb.experts.module.projector[0].weight,
            ]
            for k in ("iomatch.open", "iomatch.binary"):
                grads = torch.autograd.grad(
                    losses[k][0], where, retain_graph=True, allow_unused=True
                )
                seen.extend([[0.0 if g is None else float(g.abs().max()) for g in grads]])

    cb = IOMatch(warmup=0, open_threshold=0.)
    learn = Learner(opened(), six(), cbs=[cb, Keep()])
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 3e-3)
    assert all(g[0] > 0 and g[1] == 0 and g[2] > 0 for g in seen)


def test_the_open_head_waits():
    learn = Learner(opened(), six(), cbs=IOMatch())
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 3e-3)
    assert "iomatch.open" not in learn.supervision.parts
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 3e-3)
    assert "iomatch.open" in learn.supervision.parts


def test_asking_changes_nothing():
    learn = Learner(dls := opened(), six(), cbs=IOMatch())
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 3e-3)
    learn.model.train()
    learn.model.head.eval()
    before = {k: v.clone() for k,v in learn.model.state_dict().items()}
    state = torch.get_rng_state()
    p = learn.iomatch.predict_open(dls.x_unknown)
    assert p.shape == (len(dls.x_unknown), 7) and not p.requires_grad
    torch.testing.assert_close(p.sum(1), torch.ones(len(p)))
    torch.testing.assert_close(learn.iomatch.inlier_score(dls.x_unknown), p[:,:-1].sum(1))
    assert (
        learn.model.training
        and not learn.model.head.training
        and torch.equal(state, torch.get_rng_state())
    )
    assert all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items())


def test_how_well_strangers_are_known():
    learn = Learner(dls := opened(), six())
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 3e-3)
    scores = known_scores(learn, dls.x_unknown)
    learn.model.eval()
    with torch.no_grad(): p = learn.model(next(iter(learn.dls.test_dl(dls.x_unknown)))[0])
    torch.testing.assert_close(scores[:len(p)], p.softmax(1).amax(1).as_subclass(torch.Tensor))
    assert len(scores) == len(dls.x_unknown) and 0 < known_auroc(learn) < 1
    learn.add_cb(cb := IOMatch())
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 3e-3)
    torch.testing.assert_close(known_scores(learn, dls.x_unknown), cb.inlier_score(dls.x_unknown))


def test_alignment_evens_out_and_is_kept():
    learn = fit(learner([cb := IOMatch(threshold=0.)]))
    assert 0 < len(cb.means) <= 128
    p = tensor([[.8]+[.2/9]*9])
    assert len(cb.state_dict()["means"]["means"]) == len(cb.means)
    cb.means.means = p.clone()

    def refined(cb):
        g = Guess(p.log(), s := Supervision(torch.zeros(1, 10), tensor([0]), c=10))
        s.own(cb).binary = torch.zeros(1, 2, 10)
        cb.refine(g)
        return g.probs
    torch.testing.assert_close(refined(cb), torch.full((1,10), .1), atol=1e-4, rtol=0)
    torch.testing.assert_close(refined(IOMatch(align=False)), p)
    assert learn.model.head.out_features == 10


def test_unknown_samples_are_marked_in_the_ledger():
    learn = Learner(opened(n=160), six(), cbs=IOMatch())
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 3e-3)
    f = learn.iomatch.ledger.frame()
    assert set(f.reason) <= {"in a known class", "in none of the known classes"}
    assert not (f.accepted & (f.reason == "in none of the known classes")).any()
    assert (f.true_label == 6).any()


def test_what_is_refused():
    for bad in (
        dict(threshold=2),
        dict(open_threshold=-0.1),
        dict(open_weight=-1),
        dict(binary_weight="1"),
        dict(warmup=-1),
    ):
        with pytest.raises(LabelKitError, match=next(iter(bad))): IOMatch(**bad)
    with pytest.raises(LabelKitError, match="no heads yet"):
        IOMatch().predict_open(torch.rand(2,1,8,8))
    learn = fit(learner([IOMatch()]))
    again = pickle.loads(pickle.dumps(learn.iomatch.experts))
    cb = IOMatch()
    cb.experts = again
    with pytest.raises(LabelKitError, match="left out of a pickle"):
        cb.predict_open(torch.rand(2,1,8,8))
    y = torch.eye(10)[torch.arange(40) % 10]
    y[20:] = float("nan")
    dls = from_arrays(
        torch.rand(40, 1, 8, 8), y, torch.rand(8, 1, 8, 8), torch.eye(10)[:8], bs=4, kind="soft"
    )
    with pytest.raises(LabelKitError, match="kind 'soft'"):
        fit(Learner(dls, model(), cbs=[IOMatch()]))

def test_a_batch_in_which_nothing_counts_has_no_gradient():
    z = torch.randn(3, 2, 4, requires_grad=True)
    loss = 2**16*one_vs_all_loss(z, torch.eye(4)[:3], torch.zeros(3))
    assert loss == 0 and not torch.autograd.grad(loss, z)[0].any()
