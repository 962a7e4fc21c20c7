"Heads beside the classifier: asked in one pass, asked afterwards, and refused before training"
import pytest
import torch
from torch import nn

from contract import fit, learner
from labelkit.errors import LabelKitError
from labelkit.data.sets import mnist_5k
from labelkit.pseudo.open_set import OpenSet, in_one_pass, known_auroc, known_scores


def test_one_pass_for_all_parts():
    "Batch norm sees them together"
    parts = [torch.randn(3, 4), torch.randn(2, 4)]
    net = nn.BatchNorm1d(4)
    a,b = in_one_pass(net, parts)
    torch.testing.assert_close(torch.cat([a, b]), nn.BatchNorm1d(4)(torch.cat(parts)))
    (a,c),(b,d) = in_one_pass(lambda x: (x, x.double()*2), parts)
    assert torch.equal(a, parts[0]) and torch.equal(b, parts[1])
    assert c.dtype == torch.float and torch.equal(d, 2*parts[1])


class Sure(OpenSet):
    "A head that is never trained"
    def make_heads(self, d, c): return nn.Linear(d, c)
    def known(self, said): return said.softmax(1).amax(1)
    def believe(self, g): return g.confidence > .5


def test_scores():
    with pytest.raises(LabelKitError, match="Sure has no heads yet"):
        Sure().inlier_score(torch.rand(2, 1, 8, 8))
    learn = fit(learner([cb := Sure()]))
    x = torch.rand(5, 1, 8, 8)
    score = cb.inlier_score(x)
    f = learn.model.eval().features(x)
    torch.testing.assert_close(score, cb.experts(f).softmax(1).amax(1).detach())
    assert list(cb.auxiliaries) == ["experts"]


def test_how_well_strangers_are_known():
    "By pairs, one by one: who is above counts 1, equal ones ½; the outside may go first"
    dls = mnist_5k(labeled=40, known=4, ratio=2, valid=300)
    class Ink(Sure):
        name = "ink"
        def inlier_score(self, x): return x.flatten(1).mean(1).mul(20).round()  # many are equal
    learn = learner([Ink()], dls=dls)
    a,b = (known_scores(learn, x) for x in (dls.valid_ds.arrays.x, dls.x_unknown))
    assert len(a) != len(b) > 0
    pairs = [1. if i > o else .5 if i == o else 0. for i in a.tolist() for o in b.tolist()]
    assert known_auroc(learn) == pytest.approx(sum(pairs)/len(pairs), abs=1e-9)
    assert .5 in pairs and abs(known_auroc(learn) - .5) > .01
