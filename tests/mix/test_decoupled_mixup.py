"DecoupledMixUp: labeled pairs as the base's terms, pairs with unlabeled images by hand"
import pytest
import torch
from torch.nn import functional as F

from contract import data, fit, learner, same, weights
from labelkit.core.supervision import LabelCallback
from labelkit.errors import LabelKitError
from labelkit.mix.base import blend, decoupled_terms
from labelkit.mix.decoupled_mixup import DecoupledMixUp
from labelkit.mix.mixup import MixUp
from mix.mixtools import Keep, NoStep, close


def one_batch(*cbs, **kwargs):
    learn = learner([cb := DecoupledMixUp(**kwargs), *cbs, keep := Keep()])
    fit(learn, cbs=[NoStep()])
    return keep.seen[0],cb,learn


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_labeled_pairs(kind):
    s,cb,learn = one_batch(kind=kind, decoupled=.3, per_sample=True)
    plan = s.own(cb).plan
    own,partner = plan.of(s.y)
    seen = (plan.shares > 1e-3).all(0)
    terms = (decoupled_terms(s.pred, own, partner).sum(1)*seen).mean()
    close(s.losses["decoupled_mixup.decoupled"][0], terms, 1e-5)
    mixed = (plan.shares*torch.stack([
        F.cross_entropy(s.pred, o, reduction="none") for o in (own, partner)
    ])).sum(0).mean()
    close(learn.loss_grad, mixed + .3*terms, 1e-4)


class Weigh(LabelCallback):
    stage = "relabel"
    def before_forward(self, s): s.weigh((torch.arange(len(s.x)) % 3).float())


@pytest.mark.parametrize("weigh", [False, True])
@pytest.mark.parametrize("threshold", [0., .12, 1.])
def test_pairs_with_unlabeled_images(threshold, weigh):
    more = [Weigh()] if weigh else []
    s,cb,_ = one_batch(*more, unlabeled=.7, threshold=threshold, decoupled=.2)
    mine = s.own(cb)
    x = mine.inputs[0]
    pairs = s.requests["decoupled_mixup.pairs"]
    close(pairs, blend(x[mine.who], s.unlabeled, mine.lam), 1e-6)
    confidence,guess = s.outputs["decoupled_mixup.guess"].softmax(1).max(1)
    z = s.outputs["decoupled_mixup.pairs"]
    y = s.y[mine.who]
    lam = mine.lam
    ce = lambda t: F.cross_entropy(z, t, reduction="none")
    seen = (lam > 1e-3) & (lam < 1-1e-3)
    each = lam*ce(y) + (1-lam)*ce(guess) + .2*seen*decoupled_terms(z, y, guess)[:,0]
    w = (torch.arange(len(s.y)) % 3).float() if weigh else torch.ones(len(s.y))
    value,weight = s.losses["decoupled_mixup.pairs"]
    close(value, (each*(confidence >= threshold)*w[mine.who]).mean(), 1e-5)
    assert weight == .7 and value.requires_grad
    if threshold == 1.: assert value.item() == 0


def test_cutmix_pairs_share_by_what_was_pasted():
    s,cb,_ = one_batch(kind="cutmix", unlabeled=1., threshold=0., per_sample=True)
    mine = s.own(cb)
    pairs = s.requests["decoupled_mixup.pairs"]
    x = mine.inputs[0][mine.who]
    differ = x != s.unlabeled
    from_x = ((pairs == x) & differ).flatten(1).sum(1)
    from_u = ((pairs == s.unlabeled) & differ).flatten(1).sum(1)
    assert (from_x + from_u == differ.flatten(1).sum(1)).all()
    # all of the image where λ is 1
    assert (from_u[mine.lam == 1] == 0).all() and (mine.lam < 1).any()


def test_without_terms_it_is_mixup():
    class Named(DecoupledMixUp): pass
    a = fit(learner([MixUp()]))
    Named.__name__ = "MixUp"  # the name seeds the random numbers
    b = fit(learner([Named(decoupled=0.)]))
    assert same(weights(a), weights(b))


def test_unlabeled_samples_are_needed_only_where_they_are_used():
    assert DecoupledMixUp().needs == () and DecoupledMixUp(unlabeled=1.).needs == ("unlabeled",)
    fit(learner([DecoupledMixUp()], dls=data(labeled=None)))
    with pytest.raises(LabelKitError, match="needs unlabeled samples"):
        fit(learner([DecoupledMixUp(unlabeled=1.)], dls=data(labeled=None)))


def test_refused():
    for k,v in dict(kind="blur", unlabeled=-1, threshold=1.2, decoupled=-1).items():
        with pytest.raises(LabelKitError, match=f"{k}="): DecoupledMixUp(**{k: v})
    assert DecoupledMixUp(until=0.).off and not DecoupledMixUp().off
