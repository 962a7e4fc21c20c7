"FeatureTransformation: values of the official code, the score by its formula, what is enqueued"
import pytest
import torch
from torch import tensor
from torch.nn import functional as F

from contract import fit, learner
from labelkit.errors import LabelKitError
from labelkit.lesson.batch import look
from labelkit.represent.feature_transformation import (
    FeatureTransformation, extrapolated, interpolated
)
from labelkit.represent.moco import MoCo, first_is_right, queue_logits
from represent.test_simclr import published


def close(a, b): torch.testing.assert_close(a, tensor(b), atol=1e-5, rtol=0)


def test_published():
    o = published("ft_positive_extrapolation_and_logits")
    i = o["inputs"]
    want = o["expected"]
    q,k,queue = (tensor(i[n]) for n in ("q", "k", "queue"))
    q2,k2 = extrapolated(q, k, 1 + i["beta_pos"])
    close(q2, want["q_mixed"])
    close(k2, want["k_mixed"])
    close((q*k).sum(1), want["pos_score_before"])
    close((q2*k2).sum(1), want["pos_score_after"])
    mixed = interpolated(queue, tensor(i["queue_permutation"]), i["beta_neg"])
    close(mixed, want["queue_mixed"])
    logits = queue_logits(q2, k2, mixed, i["T"])
    close(logits, want["logits_no_renorm"])
    assert float(first_is_right(logits)) == pytest.approx(want["loss_no_renorm"], abs=1e-5)


@pytest.mark.parametrize("lam", [1., 1.2, 2.])
def test_the_score_never_rises(lam):
    q,k = (F.normalize(torch.randn(50, 6), dim=1) for _ in range(2))
    s = (q*k).sum(1)
    a,b = extrapolated(q, k, lam)
    c = 2*lam*(1-lam)
    torch.testing.assert_close((a*b).sum(1), c + (1-c)*s)
    assert ((a*b).sum(1) <= s + 1e-5).all()


def test_the_queue_keeps_the_keys():
    a,b = (look(learner([cls()])).state[k].queue for cls,k in (
        (MoCo, "moco"), (FeatureTransformation, "feature_transformation")
    ))
    torch.testing.assert_close(b.rows[:, :-1].norm(dim=1), torch.ones(48))
    assert a.rows.shape == b.rows.shape


def test_neither_is_moco():
    "Both off: only the random numbers of the views differ"
    cb = FeatureTransformation(positive=0, negative=0)
    cb.keep(temperature=.2)
    q,k,queue = (F.normalize(torch.randn(3, 4), dim=1) for _ in range(3))
    same = torch.zeros(3, 3, dtype=torch.bool)
    assert torch.equal(cb.logits(q, k, queue, same), queue_logits(q, k, queue, .2, same))


def test_a_mix_with_an_own_key_is_left_out():
    cb = FeatureTransformation(positive=0)
    q,k = (F.normalize(torch.randn(2, 4), dim=1) for _ in range(2))
    queue = F.normalize(torch.randn(6, 4), dim=1)
    same = torch.zeros(2, 6, dtype=torch.bool)
    same[0, 3] = True
    out = cb.logits(q, k, queue, same)[:, 1:]
    assert out[1].isfinite().all()
    assert out[0, 3] == -torch.inf and 1 <= (~out[0].isfinite()).sum() <= 2


def test_trains_and_refuses():
    fit(learner([FeatureTransformation()]))
    for k in ("positive", "negative"):
        with pytest.raises(LabelKitError, match=f"{k}="): FeatureTransformation(**{k: -1})


def logits_of(q, k, queue, same=None, **settings):
    cb = FeatureTransformation(temperature=.5, **settings)
    if same is None: same = torch.zeros(len(q), len(queue), dtype=torch.bool)
    return cb.logits(q, k, queue, same)


def test_each_share_has_its_own_distribution():
    "A huge α makes a share ½: pairs move apart by λ = 1½, the queue is a mean of two"
    q,k,queue = (F.normalize(torch.randn(n, 4), dim=1) for n in (3, 3, 7))
    s = (q*k).sum(1)
    out = logits_of(q, k, queue, positive=1e8, negative=0)
    torch.testing.assert_close(out[:, 0], (-1.5 + 2.5*s)/.5, atol=1e-3, rtol=0)
    out = logits_of(q, k, queue, positive=0, negative=1e8)
    plain = q@queue.T/.5
    torch.testing.assert_close(out[:, 0], s/.5)
    torch.testing.assert_close(out[:, 1:].sum(1), plain.sum(1), atol=1e-3, rtol=0)
    means = (plain[:, :, None] + plain[:, None])/2  # of every two
    off = (out[:, 1:, None, None] - means[:, None]).abs().amax(0)
    assert off.flatten(1).amin(1).max() < 1e-3
    assert (out[:, 1:] - plain).abs().max() > .1


def test_nothing_of_an_own_key_remains():
    "No number that counts depends on it, whoever it was mixed with"
    for _ in range(8):
        q,k,queue = (F.normalize(torch.randn(n, 4), dim=1) for n in (2, 2, 6))
        queue.requires_grad_()
        same = torch.zeros(2, 6, dtype=torch.bool)
        same[0, 3] = True
        out = logits_of(q, k, queue, same)[0]
        (grad,) = torch.autograd.grad(out[out.isfinite()].sum(), queue)
        assert (grad[3] == 0).all() and grad.abs().sum() > 0
