"MoCHi: values of an unofficial implementation, mixes by hand, what is no negative"
from types import SimpleNamespace

import pytest
import torch
from torch import tensor
from torch.nn import functional as F

from contract import fit, learner
from labelkit.errors import LabelKitError
from labelkit.represent.mochi import MoCHi, hardest, mixed_negatives
from labelkit.represent.moco import first_is_right, queue_logits
from represent.test_simclr import published

unit = lambda *shape: F.normalize(torch.randn(*shape), dim=-1)


def test_published():
    o = published("mochi_infonce_with_synthetics")
    i = o["inputs"]
    want = o["expected"]
    q,k,queue = (tensor(i[n]) for n in ("q", "k", "queue"))
    logits = queue_logits(q, k, queue, i["T"])
    torch.testing.assert_close(logits[:, 1:], tensor(want["neg_logits"]))
    assert float(first_is_right(logits)) == pytest.approx(want["loss_moco"], abs=1e-5)
    at = hardest(logits[:, 1:], i["n_hard"]).sort(1).values
    assert at.tolist() == want["hard_idx_sorted"]
    hard = queue[at]
    one,two = tensor(i["type1_pairs_into_hard_set"]).T[:, None]
    # theirs is α·first + (1−α)·second, and β·query + (1−β)·negative
    pairs = mixed_negatives(q, hard, one, two, 1-tensor([i["alpha"]]))
    own = mixed_negatives(q, hard, tensor([i["type2_idx_into_hard_set"]]), None, tensor([i["u"]])/2)
    score = lambda h: torch.einsum("bd,bsd->bs", q, h)/i["T"]
    torch.testing.assert_close(score(pairs), tensor(want["type1_logits"]), atol=1e-5, rtol=0)
    torch.testing.assert_close(score(own), tensor(want["type2_logits"]), atol=1e-5, rtol=0)
    loss = first_is_right(torch.cat([logits, score(pairs), score(own)], 1))
    assert float(loss) == pytest.approx(want["loss_mochi"], abs=1e-5)


class TestMixes:
    def test_by_hand(self):
        made = mixed_negatives(
            tensor([[1., 0.]]), tensor([[[0., 1.]]]), tensor([[0]]), None, tensor([[.25]])
        )
        torch.testing.assert_close(made[0, 0], F.normalize(tensor([.25, .75]), dim=0))

    def test_no_gradient(self):
        q = unit(2, 4).requires_grad_()
        made = mixed_negatives(
            q, unit(2, 3, 4), torch.zeros(2, 5).long(), None, torch.rand(2, 5)
        )
        assert made.shape == (2, 5, 4) and not made.requires_grad

    def test_own_keys_are_never_hard(self):
        scores = tensor([[.3, -torch.inf, .5], [.1, .2, .3]])
        assert hardest(scores, 3).tolist() == [[2, 0], [2, 1]]
        assert hardest(torch.full((2, 3), -torch.inf), 3).shape == (2, 0)


class Kept(MoCHi):
    name = "mochi"
    def logits(self, *args):
        self.shapes.append(super().logits(*args).shape[1])
        return super().logits(*args)
    def setup(self):
        super().setup()
        self.shapes = []


class TestCallback:
    def test_columns(self):
        learn = fit(learner([Kept(warmup=0., pairs=3, own=2)]))
        assert learn.mochi.shapes == [1, 1+48+5, 1+96+5, 1+144+5]

    def test_warmup(self):
        learn = fit(learner([Kept(warmup=.5, pairs=3, own=2)]))
        assert learn.mochi.shapes == [1, 1+48, 1+96+5, 1+144+5]

    def test_nothing_to_mix_is_moco(self):
        learn = fit(learner([Kept(warmup=0., pairs=0, own=0)]))
        assert learn.mochi.shapes == [1, 49, 97, 145]

    def test_refused(self):
        for k,v in dict(hardest=0, pairs=-1, own=-1, warmup=2.).items():
            with pytest.raises(LabelKitError, match=f"{k}="): MoCHi(**{k: v})


def made_of(hard, q, k, queue, **settings):
    "The columns that are added to MoCo's, of a callback that stands alone"
    cb = MoCHi(hardest=hard, warmup=0., temperature=.5, **settings)
    cb.learn = SimpleNamespace(pct_train=0.)
    same = torch.zeros(len(q), len(queue), dtype=torch.bool)
    return cb.logits(q, k, queue, same)[:, 1+len(queue):]


def test_of_one_hard_negative():
    "Pairs are the negative itself; the query has the smaller share, and the key none"
    q = F.normalize(tensor([[1., .2, 0.], [.1, 0., 1.]]), dim=1)
    k = F.normalize(q + tensor([[0., .1, 0.]]), dim=1)  # nearer than any negative
    queue = F.normalize(tensor([[0., 1., 0.], [.5, 1., .5], [-1., 0., 0.]]), dim=1)
    far = q@queue.T
    at = far.argmax(1)
    out = made_of(1, q, k, queue, pairs=2, own=200)
    torch.testing.assert_close(out[:, :2], (far.amax(1)/.5)[:, None].expand(2, 2))
    half = F.normalize(q + queue[at], dim=1)
    low = far.amax(1)/.5
    high = (q*half).sum(1)/.5
    assert (out[:, 2:] >= low[:, None] - 1e-5).all()
    assert (out[:, 2:] <= high[:, None] + 1e-5).all()
    away = made_of(1, q, -q, queue, pairs=0, own=200)  # wherever the key lies
    assert (away >= low[:, None] - 1e-5).all() and (away <= high[:, None] + 1e-5).all()
    assert (out[:, 2:].amax(1) > high - .1).all() and (out[:, 2:].amin(1) < low + .1).all()
