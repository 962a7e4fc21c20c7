"The decoupled terms: published numbers, gradients, weights, and what a mix adds"
import pytest, torch
from fastai.basics import Learner
from torch import nn, tensor
from torch.nn import functional as F

from contract import fit, learner
from labelkit.core.supervision import LabelCallback
from labelkit.errors import LabelKitError
from labelkit.mix.base import Mix, decoupled_mean, decoupled_terms, take_partner
from labelkit.mix.cutmix import CutMix
from labelkit.mix.decoupled import decoupled_loss
from labelkit.mix.manifold_mixup import ManifoldMixUp
from labelkit.mix.mixup import MixUp
from labelkit.mix.resizemix import ResizeMix
from labelkit.models import small_cnn
from mix.mixtools import REFERENCE, Keep, close, hot, own_loaders


class TestDecoupled:
    def test_published(self):
        e = REFERENCE["decoupled_mixup_loss"]
        i = e["inputs"]
        x = e["expected"]
        z = tensor(i["logits"])
        a = tensor(i["y_a"])
        b = tensor(i["y_b"])
        close(decoupled_terms(z, a, b), tensor([x["dm_term_a"], x["dm_term_b"]]).T)
        for eta,key in zip((0., *i["eta"]), ("mixup_ce", "decoupled_eta_0_1", "decoupled_eta_1")):
            for ya,yb in ((a, b), (hot(a, 5), hot(b, 5)), (a, hot(b, 5))):
                assert decoupled_loss(z, ya, yb, i["lam"], eta).item() == pytest.approx(
                    x[key], abs=e["tolerance"] * 5
                )

    def test_the_weight_is_the_pairs(self):
        """Exchanging the two sides, or renaming the classes, changes nothing: not so where η
        follows the class number"""
        z = torch.randn(20, 6)
        a = torch.randint(6, (20,))
        b = torch.randint(6, (20,))
        loss = decoupled_loss(z, a, b, .3, 1.)
        close(decoupled_loss(z, b, a, .7, 1.), loss)
        order = torch.randperm(6)
        close(decoupled_loss(z[:,order], order.argsort()[a], order.argsort()[b], .3, 1.), loss)

    def test_gradient_is_right_and_finite(self):
        z = torch.randn(4, 5, dtype=torch.float32)*30
        z[0,0] = 200.
        a = tensor([0,0,1,2])
        b = tensor([1,0,2,3])
        for ya,yb in ((a, b), (hot(a, 5), hot(b, 5))):
            z.grad = None
            z.requires_grad_()
            decoupled_terms(z, ya, yb).sum().backward()
            assert z.grad.isfinite().all() and z.grad[0].abs().sum() > 0 and not z.grad[1].any()
        two = torch.randn(3, 2, requires_grad=True)
        decoupled_terms(two, tensor([0,1,0]), tensor([1,0,0])).sum().backward()
        # of two classes, none is left to compete with
        assert two.grad.isfinite().all() and two.grad.abs().max() < 1e-6

    def test_soft_terms_are_an_expectation(self):
        z = torch.randn(7, 4)
        a = torch.rand(7, 4).softmax(1)
        b = torch.rand(7, 4).mul(4).softmax(1)
        want = sum(
            a[:, i, None]
            * b[:, j, None]
            * decoupled_terms(z, torch.full((7,), i), torch.full((7,), j))
            for i in range(4)
            for j in range(4)
        )
        close(decoupled_terms(z, a, b), want, 1e-5)

    def test_three_labels(self):
        z = torch.randn(9, 6)
        a,b,c = (torch.randint(6, (9,)) for _ in range(3))
        got = decoupled_terms(z, a, b, c)
        for r in range(9):
            three = {int(o[r]) for o in (a, b, c)}
            for k,own in enumerate((a, b, c)):
                keep = [j for j in range(6) if j not in three or j == own[r]]
                want = (
                    F.cross_entropy(z[r, keep][None], tensor([keep.index(int(own[r]))]))
                    if len(three) == 3
                    else tensor(0.0)
                )
                close(got[r,k], want, 1e-5)
        with pytest.raises(LabelKitError, match="3 soft targets"):
            decoupled_terms(z, *(hot(o, 6) for o in (a, b, c)))

    def test_weights_trust_and_shares_at_the_ends(self):
        z = torch.randn(6, 5)
        a = torch.randint(5, (6,))
        b = torch.randint(5, (6,))
        w = tensor([1.,0.,2.,0.,1.,1.])
        rows = torch.stack([decoupled_loss(z[i:i+1], a[i:i+1], b[i:i+1], .4, .5) for i in range(6)])
        close(decoupled_loss(z, a, b, .4, .5, weights=w), (rows*w).sum()/w.sum())
        # nothing of b is in the picture
        close(decoupled_loss(z, a, b, tensor([1.]*6), 3.), F.cross_entropy(z, a))
        dm = decoupled_terms(z, a, b)
        plain = decoupled_loss(z, a, b, .4, 0.)
        close(decoupled_loss(z, a, b, .4, .5, trust_b=0.), plain + .5*dm[:,0].mean())
        close(decoupled_loss(z, a, b, .4, .5, trust_a=torch.zeros(6)), plain + .5*dm[:,1].mean())

    def test_each_term_has_the_weight_of_its_own_sample(self):
        z = torch.randn(1, 5)
        a = tensor([1])
        b = tensor([3])
        dm = decoupled_terms(z, a, b)[0]
        shares = tensor([[.8],[.2]])
        got = decoupled_mean(z, [a, b], shares, tensor([[3.],[.5]]))
        close(got, (3*dm[0] + .5*dm[1])/(.8*3 + .2*.5))
        # a label that counts nothing says nothing about the other's competitors
        assert decoupled_mean(z, [a, b], shares, tensor([[3.],[0.]])) == 0
        # three in a mix, and one that is not seen: no terms at all
        three = decoupled_mean(z, [a, b, b-1], tensor([[.5],[.5],[5e-4]]), torch.ones(3,1))
        assert three == 0

    @pytest.mark.parametrize("cls", [MixUp, CutMix, ResizeMix, ManifoldMixUp])
    def test_a_mix_adds_the_functions_terms(self, cls):
        learn = fit(learner([cls(per_sample=True, decoupled=.5), keep := Keep()]))
        cb = next(o for o in learn.cbs if isinstance(o, Mix))
        s = keep.seen[-1]
        value,eta = s.losses[f"{cb.name}.decoupled"]
        plan = s.own(cb).plan
        lam = plan.shares[0]
        assert eta == .5
        seen = ((lam > 1e-3) & (lam < 1-1e-3)).float()
        close(value, (decoupled_terms(s.pred, *plan.of(s.y)).sum(1)*seen).mean())

    def test_soft_labels_and_weights_of_others(self):
        class Prune(LabelCallback):
            stage = "relabel"
            def before_forward(self, s):
                s.targets = .9*s.targets + .01
                s.weigh((torch.arange(len(s.x)) % 3).float())
        fit(learner([Prune(), cb := MixUp(decoupled=.3), keep := Keep()]))
        for s in keep.seen:
            plan = s.own(cb).plan
            own = .9*hot(s.y, 10) + .01
            w = (torch.arange(16) % 3).float()
            other = take_partner(w, plan.partners[1])
            terms = decoupled_terms(s.pred, own, take_partner(own, plan.partners[1]))
            mass = (plan.shares[0]*w + plan.shares[1]*other).sum()
            # who is pruned has no term, and says nothing about the other's competitors either
            both = (w > 0) & (other > 0)
            want = ((terms[:,0]*w + terms[:,1]*other)*both).sum()/mass
            close(s.losses["mixup.decoupled"][0], want, 1e-5)

    def test_refused(self):
        x = torch.rand(8,1,8,8)
        y = torch.rand(8,3)
        dls = own_loaders(x, y)
        for loss in (nn.BCEWithLogitsLoss(), nn.MSELoss()):
            with pytest.raises(LabelKitError, match="decoupled=0.1 is for one label"):
                fit(Learner(dls, small_cnn(c=3, c_in=1), loss_func=loss, cbs=MixUp(decoupled=.1)))
        with pytest.raises(LabelKitError, match="decoupled=-1"): CutMix(decoupled=-1)


def test_labels_of_every_type_of_whole_numbers():
    z = torch.randn(4, 3)
    a = torch.tensor([0, 1, 2, 0])
    b = torch.tensor([1, 2, 0, 0])
    want = decoupled_terms(z, a, b)
    for kind in (torch.uint8, torch.int32, torch.int8):
        assert torch.equal(decoupled_terms(z, a.to(kind), b.to(kind)), want)
        small = decoupled_loss(z, a.to(kind), b.to(kind), .3, eta=.1)
        assert torch.equal(small, decoupled_loss(z, a, b, .3, eta=.1))
