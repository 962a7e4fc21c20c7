"Heads beside the classifier: asked in one pass, asked afterwards, and refused before training"
import pytest
import torch
from torch import nn

from contract import fit, learner
from labelkit.errors import LabelKitError
from labelkit.pseudo.open_set import OpenSet, in_one_pass


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
