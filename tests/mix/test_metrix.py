"""Metrix: the official code's values, gradients where two embeddings meet, and mixes that are what
they say."""
import json
from types import SimpleNamespace

import pytest
import torch
from fastai.basics import Callback, Learner
from torch import tensor
from torch.nn import functional as F

from contract import data, fit, learner
from labelkit.errors import LabelKitError
from labelkit.mix.metrix import (
    Metrix,
    Mixes,
    RecallAt1,
    contrastive_loss,
    draw_triples,
    mean_nonzero,
    metrix_loss,
    middle_layer,
    recall_at_1,
    unseen_digits,
    utilization,
)
from labelkit.models import small_cnn
from mix.mixtools import Keep, own_loaders


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


def test_pairs_by_their_weight():
    "At λ = ½: near .1 and .2 that count 1 and 3; far .15 and .05; the others nothing"
    d = tensor([.2, .4, .6, .1])
    w = tensor([1., 3., 0., 0.])
    want = (1*.1 + 3*.2)/4 + (1*.15 + 3*.05)/4
    assert metrix_loss(d, tensor(.5), weights=w) == pytest.approx(want)
    mixes = Mixes(tensor([0, 1]), tensor([0, 2]), tensor([3, 3]), tensor([.5]))
    assert mixes.counts(tensor([2., 3., 5., 7.])).tolist() == [2*7., 3*5*7.]


def test_who_counts_nothing_takes_no_part():
    y = tensor([0,0,0,1,1,2])
    w = tensor([1.,1.,0.,1.,0.,1.])
    for i in range(20):
        anchors,positives,negatives = draw_triples(y, torch.Generator().manual_seed(i), w)
        assert anchors.tolist() == [0, 1] and positives.tolist() == [1, 0]
        assert set(negatives.tolist()) <= {3, 5}


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
    cb = Metrix(level=level, neg_margin=1.2)
    kept = {}
    class Keep(Callback):
        order = 6
        def after_loss(self):
            if not self.training or kept: return
            s = self.learn.supervision.record
            mine = s.own(cb).mixes
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
                want=metrix_loss(d, lam, neg_margin=1.2),
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
                if self.training: self.learn.supervision.record.own(cb).mixes.lam.fill_(alpha_lam)
        class Keep(Callback):
            order = 6
            def after_loss(self):
                if self.training and not kept:
                    s = self.learn.supervision.record
                    rows = getattr(s.own(cb).mixes, which)
                    kept.update(a=s.features("metrix").detach(), b=s.features().detach()[rows])

        dls = data(labeled=None)
        learn = learner([cb, Fix(), Keep()], dls=dls)
        for m in learn.model.modules():
            if isinstance(m, torch.nn.BatchNorm2d):
                m.momentum = 0.
                m.track_running_stats = False
        fit(learn)
        torch.testing.assert_close(kept["a"], kept["b"], atol=1e-4, rtol=1e-3)


def test_the_layer_is_mixed_at_its_first_run_alone():
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Linear(64, 64)
            self.head = torch.nn.Linear(64, 10)
        def forward(self, x): return self.head(self.inner(self.inner(x.flatten(1))))
    net = Twice()
    cb = Metrix(level="feature", layer="inner")
    outs = []
    net.inner.register_forward_hook(lambda m, args, out: outs.append((args[0], out)))
    kept = []
    class Look(Callback):
        order = 7
        def after_pred(self):
            if self.training and not kept:
                s = self.learn.supervision.record
                with torch.no_grad(): plain = net.head(outs[1][1])[s.rows("metrix")]
                kept.append((s, s.own(cb).mixes, s.outputs["metrix"], plain))
    learn = learner([cb, Look()], dls=data(labeled=None))
    learn.model = net
    fit(learn)
    s,mine,given,plain = kept[0]
    (_,first),(entered,_) = outs[:2]
    mixed = mine.lam*first[mine.positive] + (1-mine.lam)*first[mine.negative]
    torch.testing.assert_close(entered[s.rows("metrix")], mixed, atol=1e-5, rtol=1e-4)
    # what the second run gives goes on as it is
    torch.testing.assert_close(given, plain, atol=1e-5, rtol=1e-4)


def test_every_input_is_mixed():
    "An image and a vector that say the same number"
    number = torch.arange(16.)
    x = number[:,None,None,None].expand(16,1,4,4).clone()
    v = number[:,None].expand(16,3).clone()
    dls = own_loaders(x, v, torch.arange(16) % 3, bs=16, n_inp=2, c=3)
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = torch.nn.Linear(19, 3)
        def forward(self, x, v): return self.head(torch.cat([x.flatten(1), v], 1))
    for level in ("input", "embedding"):
        cb = Metrix(level=level)
        keep = Keep()
        fit(Learner(dls, Two(), loss_func=torch.nn.CrossEntropyLoss(), cbs=[cb, keep]))
        s = keep.seen[0]
        if level == "embedding": continue
        a,b = s.requests["metrix"]
        torch.testing.assert_close(a[:,0,0,0], b[:,0])
        mine = s.own(cb).mixes
        want = mine.lam*number[mine.positive] + (1-mine.lam)*number[mine.negative]
        torch.testing.assert_close(b[:,0], want)


def test_a_sample_is_not_its_own_neighbour():
    z = F.normalize(torch.randn(6, 4), dim=1)
    assert recall_at_1(z, torch.arange(6)) == 0
    # by hand: the nearest to 0 and to 1 are each other, of different classes; to 2 it is 1
    z = tensor([[1.,0.],[.9,.1],[.5,.5]])
    assert recall_at_1(z, tensor([0,1,1])) == pytest.approx(1/3)
    with pytest.raises(LabelKitError, match="two samples or more"): recall_at_1(z[:1], tensor([0]))
    with pytest.raises(LabelKitError, match="3 rows and labels 2"): recall_at_1(z, tensor([0, 1]))


def test_the_middle_of_the_body():
    net = small_cnn(c=10, c_in=1)
    assert middle_layer(net) == "body.1" and middle_layer(net, net.body[2]) == "body.2"
    wide = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(6)))
    assert middle_layer(wide) == "2"
    with pytest.raises(LabelKitError, match="finds no middle layer"): middle_layer(wide[:2])


def test_utilization_asks_for_the_queries_neighbours():
    q = tensor([[1.,0.]])
    x = tensor([[1.,0.],[0.,1.],[0.,-1.]])
    assert utilization(q, x) == pytest.approx(0.) and utilization(x, q) == pytest.approx(4/3)


def test_what_is_mixed_with_the_negative():
    "The positive in about half of the batches, the anchor itself in the others"
    cb = Metrix()
    keep = Keep()
    fit(learner([cb, keep], dls=data(labeled=None)), 4)
    own = [torch.equal(s.own(cb).mixes.positive, s.own(cb).mixes.anchor) for s in keep.seen]
    assert len(own) == 40 and 10 <= sum(own) <= 30
    for s in keep.seen:
        mine = s.own(cb).mixes
        assert (s.y[mine.anchor] == s.y[mine.positive]).all()
        assert (s.y[mine.anchor] != s.y[mine.negative]).all()


def test_retrieval_measures():
    z = F.normalize(torch.randn(6, 4), dim=1)
    assert recall_at_1(torch.cat([z, z]), torch.arange(6).repeat(2)) == 1
    assert utilization(z, z) == pytest.approx(0, abs=1e-6)


def test_bad_input():
    with pytest.raises(LabelKitError, match="embedding='logits'"): Metrix(embedding="logits")
    with pytest.raises(LabelKitError, match="weight=-1"): Metrix(weight=-1)
    with pytest.raises(LabelKitError, match="SmallCNN has no layer 'nothing'"):
        fit(learner([Metrix(level="feature", layer="nothing")]))


def test_digits_to_find_are_of_classes_that_were_not_trained():
    dls = unseen_digits(60, seed=1)
    known,unseen = (ds.arrays.y[ds.rows] for ds in (dls.train_ds, dls.valid_ds))
    assert len(known) == 60 and known.max() <= 4
    assert len(unseen) == 2500 and unseen.min() >= 5
    assert not torch.equal(known, unseen_digits(60, seed=2).train_ds.arrays.y)


def test_the_metric_is_recall_over_the_whole_set():
    g = torch.Generator().manual_seed(0)
    z = torch.randn(30, 4, generator=g)
    y = torch.arange(30) % 3
    metric = RecallAt1()
    metric.reset()
    for i in range(0, 30, 7):
        metric.accumulate(SimpleNamespace(pred=z[i:i+7], y=y[i:i+7]))
    assert metric.value == recall_at_1(z, y)
