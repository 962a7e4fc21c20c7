"""Metrix: the official code's values, gradients where two embeddings meet, and mixes that are what
they say."""
import json

import pytest
import torch
from fastai.basics import Callback
from torch import tensor
from torch.nn import functional as F

from contract import data, fit, learner
from labelkit.errors import LabelKitError
from labelkit.mix.metrix import (
    Metrix,
    contrastive_loss,
    draw_triples,
    mean_nonzero,
    metrix_loss,
    recall_at_1,
    utilization,
)


def test_reference(root):
    (ref,) = json.loads((root/"tests/reference/metrix.json").read_text())
    d = tensor(ref["inputs"]["dist_matrix"]).diagonal()
    lam = ref["inputs"]["lam"]
    pos = tensor(ref["expected"]["pos"])
    neg = tensor(ref["expected"]["neg"])
    torch.testing.assert_close(lam*d.relu(), pos, atol=1e-6, rtol=0)
    torch.testing.assert_close((1-lam)*(.5-d).relu(), neg, atol=1e-6, rtol=0)
    assert metrix_loss(d, lam).item() == pytest.approx(
        (pos.mean() + neg[neg > 0].mean()).item(), abs=1e-6
    )


def test_pure_shares_are_pure_pairs():
    d = tensor([.2, .4])
    assert metrix_loss(d, tensor(1.)) == pytest.approx(.3)
    assert metrix_loss(d, tensor(0.)) == pytest.approx(.2)


def test_gradient_where_embeddings_coincide():
    z = torch.ones(4, 3, requires_grad=True)
    contrastive_loss(z, tensor([0,0,1,1])).backward()
    assert z.grad.isfinite().all()


def test_mean_nonzero():
    assert mean_nonzero(tensor([0.,2.,4.])) == 3 and mean_nonzero(torch.zeros(3)) == 0


def test_triples_have_what_they_need():
    y = tensor([0,0,1,2,2,2])
    a,p,n = draw_triples(y, torch.Generator().manual_seed(0))
    assert (
        a.tolist() == [0, 1, 3, 4, 5]
        and (y[a] == y[p]).all()
        and (a != p).all()
        and (y[a] != y[n]).all()
    )
    drawn = {draw_triples(y, torch.Generator().manual_seed(i))[1][3].item() for i in range(30)}
    assert drawn == {3, 5}, "positives are not drawn at random"


@pytest.mark.parametrize("level", ["input", "feature", "embedding"])
def test_mixes_are_what_they_say(level):
    "Recompute the loss of the first batch from the model's own pieces"
    cb = Metrix(level=level)
    kept = {}
    class Keep(Callback):
        order = 6
        def after_loss(self):
            if not self.training or kept: return
            s = self.learn.supervision.record
            mine = s.own(cb)
            pos = mine.positive
            neg = mine.negative
            lam = mine.lam
            model = self.learn.model
            z = F.normalize(s.features(), dim=1)
            if level == "input":
                torch.testing.assert_close(s.requests["metrix"][0], lam*s.x[pos] + (1-lam)*s.x[neg])
                mixed = F.normalize(s.features("metrix"), dim=1)
            elif level == "feature": mixed = F.normalize(s.features("metrix"), dim=1)
            else: mixed = F.normalize(lam*z[pos] + (1-lam)*z[neg], dim=1)
            d = (z[mine.anchor] - mixed).norm(dim=1)
            kept.update(
                have=s.losses["metrix"][0],
                want=metrix_loss(d, lam),
                hooks=len(model.body._forward_hooks) + len(model.body[1]._forward_hooks),
            )

    fit(learner([cb, Keep()], dls=data(labeled=None)))
    torch.testing.assert_close(kept["have"], kept["want"], atol=1e-5, rtol=1e-4)
    assert kept["hooks"] == 0


def test_features_are_mixed_inside():
    "With λ=1 the mixed rows are the positives' own; with λ=0 the negatives'"
    for alpha_lam,which in ((1., "positive"), (0., "negative")):
        cb = Metrix(level="feature")
        kept = {}
        class Fix(Callback):
            order = 5.5
            def before_batch(self):
                if self.training: self.learn.supervision.record.own(cb).lam.fill_(alpha_lam)
        class Keep(Callback):
            order = 6
            def after_loss(self):
                if self.training and not kept:
                    s = self.learn.supervision.record
                    rows = getattr(s.own(cb), which)
                    kept.update(a=s.features("metrix").detach(), b=s.features().detach()[rows])

        dls = data(labeled=None)
        learn = learner([cb, Fix(), Keep()], dls=dls)
        for m in learn.model.modules():
            if isinstance(m, torch.nn.BatchNorm2d):
                m.momentum = 0.
                m.track_running_stats = False
        fit(learn)
        torch.testing.assert_close(kept["a"], kept["b"], atol=1e-4, rtol=1e-3)


def test_retrieval_measures():
    z = F.normalize(torch.randn(6, 4), dim=1)
    assert recall_at_1(torch.cat([z, z]), torch.arange(6).repeat(2)) == 1
    assert utilization(z, z) == pytest.approx(0, abs=1e-6)


def test_bad_input():
    with pytest.raises(LabelKitError, match="embedding='logits'"): Metrix(embedding="logits")
    with pytest.raises(LabelKitError, match="weight=-1"): Metrix(weight=-1)
    with pytest.raises(LabelKitError, match="SmallCNN has no layer 'nothing'"):
        fit(learner([Metrix(level="feature", layer="nothing")]))
