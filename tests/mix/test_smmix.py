"SMMix: published regions, its losses by hand, and a pass that leaves no trace"
import pytest, torch
from fastai.basics import Learner
from torch import nn, tensor
from torch.nn import functional as F

from contract import fit, learner
from labelkit.core.supervision import LabelCallback
from labelkit.errors import LabelKitError
from labelkit.mix.smmix import (
    RegionPlan,
    SMMix,
    attended_regions,
    mixed_consistency_loss,
    region_tokens,
    smmix,
    unmixed,
)
from labelkit.models import small_vit
from mix.mixtools import REFERENCE, Keep, NoStep, close, hot, own_loaders


class TestSMMix:
    def test_published(self):
        e = REFERENCE["smmix_regions"]
        x = torch.stack([torch.zeros(16), torch.arange(16.)]).view(2,1,4,4)
        mixed, pasted = smmix(
            x, 1, *attended_regions(torch.arange(16.0).view(1, 4, 4).expand(2, 4, 4), 2), 2, (4, 4)
        )
        assert (
            mixed[0, 0].tolist() == e["expected"]["img0"]
            and pasted[0].int().tolist() == e["expected"]["source_mask0"]
        )
        assert 1-pasted[0].float().mean().item() == e["expected"]["lam"]

    @pytest.mark.parametrize("k", [1, 2, 3])
    def test_regions_by_search(self, k):
        att = torch.rand(6, 3, 5, generator=torch.Generator().manual_seed(k))
        least,most = attended_regions(att, k)
        for a,(r,c),(R,C) in zip(att, least.tolist(), most.tolist()):
            sums = {(i,j): a[i:i+k,j:j+k].sum().item() for i in range(4-k) for j in range(6-k)}
            assert sums[r, c] == pytest.approx(min(sums.values())) and sums[R, C] == pytest.approx(
                max(sums.values())
            )
        x = torch.rand(6, 2, 12, 10)
        # patches of 4×2 pixels
        mixed,pasted = smmix(x, tensor([1,2,3,4,5,0]), least, most, k, (3,5))
        for i in range(6):
            (r,c) = least[i].tolist()
            (R,C) = most[(i+1)%6].tolist()
            want = x[i].clone()
            want[:,4*r:4*(r+k),2*c:2*(c+k)] = x[(i+1)%6][:,4*R:4*(R+k),2*C:2*(C+k)]
            assert torch.equal(mixed[i], want) and pasted[i].sum() == k*k

    def test_the_plan_takes_where_is_much_and_puts_where_is_little(self):
        attention = torch.ones(3, 4, 4)
        attention[0,0,0] = 9.
        attention[1,3,3] = 9.
        attention[2,0,3] = 9.
        attention[0,2,1] = attention[1,1,0] = attention[2,2,2] = 0.
        x = torch.arange(3*64.).view(3, 1, 8, 8)
        plan = RegionPlan([0, tensor([2,0,1])], attention, 1, torch.rand(3, 2), (8, 8))
        assert [o.nonzero().tolist() for o in plan.pasted] == [[[2,1]], [[1,0]], [[2,2]]]
        mixed = plan.apply(x)
        assert torch.equal(mixed[0,0,4:6,2:4], x[2,0,0:2,6:8])
        assert torch.equal(mixed[1,0,2:4,0:2], x[0,0,0:2,0:2])
        assert torch.equal(mixed[2,0,4:6,4:6], x[1,0,6:8,6:8])
        assert (mixed != x).sum() == 12
        close(plan.shares, tensor([[15/16], [1/16]]).expand(2, 3))

    def test_losses_by_hand(self):
        learn = learner([cb := SMMix(switch=1.), keep := Keep()], slug="smmix")
        tokens = []
        learn.model.norm.register_forward_hook(
            lambda m, a, o: tokens.append(o.detach()) if m.training else None
        )
        fit(learn, cbs=[NoStep()])
        s = keep.seen[-1]
        lam = float(s.own(cb).plan.shares[0,0])
        plan = s.own(cb).plan
        z = plan.logits
        k = round((16*(1-lam))**.5)
        least = plan.least
        region = torch.zeros(16, 4, 4)
        for m,(r,c) in zip(region, least.tolist()): m[r:r+k,c:c+k] = 1
        shift = next(
            i
            for i in range(1, 16)
            if torch.allclose(
                s.targets,
                torch.lerp(hot(s.y, 10).roll(-i, 0), hot(s.y, 10), lam),
                atol=1e-6,
            )
        )
        head = cb.token_head.module
        t = tokens[-1][:16,1:]
        inside, outside = (
            (t * m.flatten(1)[..., None]).sum(1) / m.sum((1, 2))[:, None]
            for m in (region, 1 - region)
        )
        fine = (
            F.cross_entropy(head(outside), s.y) + F.cross_entropy(head(inside), s.y.roll(-shift))
        ) / 2
        close(s.losses["smmix.fine"][0].detach(), fine.detach(), 1e-4)
        p = torch.lerp(z.roll(-shift, 0), z, lam).softmax(1)
        close(
            s.losses["smmix.consistency"][0].detach(),
            (p * (p.log() - s.pred.log_softmax(1))).sum(1).mean().detach(),
            1e-5,
        )

    def test_the_unmixed_pass_leaves_no_trace(self):
        learn = learner([cb := SMMix(switch=1.)], slug="smmix")
        fit(learn)
        learn.model.train()
        learn.model.norm.eval()  # somebody keeps a part in evaluation mode
        before = {k: v.clone() for k,v in learn.model.state_dict().items()}
        z,maps = unmixed(learn.model, torch.rand(4,1,8,8), cb.attention)
        assert (
            learn.model.training
            and not learn.model.norm.training
            and not z.requires_grad
            and maps.shape == (4, 4, 4)
        )
        assert all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items())

    def test_switch_and_sides(self):
        def drawn(**kwargs):
            learn = learner([cb := SMMix(**kwargs), keep := Keep()], slug="smmix")
            fit(learn, 6)
            return [s.own(cb).plan for s in keep.seen]
        assert not any(isinstance(o, RegionPlan) for o in drawn(switch=0.))
        plans = drawn(switch=1., sides=(.5, 1.))
        assert {o.k for o in plans} == {2, 3, 4}
        for o in plans: close(o.shares[1], torch.full((16,), o.k**2/16))
        both = [isinstance(o, RegionPlan) for o in drawn()]
        assert any(both) and not all(both)

    def test_unequal_weights_reach_the_regions(self):
        "A pruned sample teaches neither the region that it kept nor the one that it gave away"
        class Prune(LabelCallback):
            stage = "relabel"
            def before_forward(self, s): s.weigh((torch.arange(len(s.x)) % 3).float())
        learn = learner([Prune(), cb := SMMix(switch=1.), keep := Keep()], slug="smmix")
        fit(learn, cbs=[NoStep()])
        s = keep.seen[0]
        mine = s.own(cb)
        w = (torch.arange(16) % 3).float()
        shift = mine.plan.partners[1]
        parts = []
        told = ((~mine.plan.pasted, s.y, w), (mine.plan.pasted, s.y.roll(-shift), w.roll(-shift)))
        for region,y,weight in told:
            z = cb.token_head(region_tokens(mine.tokens, region))
            parts.append((F.cross_entropy(z, y, reduction="none")*weight).sum()/weight.sum())
        close(s.losses["smmix.fine"][0], sum(parts)/2, 1e-5)

    def test_no_gradient_to_the_unmixed_answers(self):
        learn = learner([cb := SMMix(switch=1.), keep := Keep()], slug="smmix")
        fit(learn, cbs=[NoStep()])
        s = keep.seen[0]
        assert not s.own(cb).plan.logits.requires_grad
        own,other = torch.randn(2, 4, 3, requires_grad=True)
        z = torch.randn(4, 3, requires_grad=True)
        loss = mixed_consistency_loss(z, own, other, tensor([.3]))
        grads = torch.autograd.grad(loss, [z, own, other], allow_unused=True)
        assert grads[0].abs().sum() > 0 and grads[1] is None and grads[2] is None

    def test_consistency_is_not_symmetric(self):
        "KL of the mixed answers from the answer to the mix, not the other way round"
        z = tensor([[0., 0.]])
        own = tensor([[4., 0.]])
        other = tensor([[0., 2.]])
        p = (.75*own + .25*other).softmax(1)
        want = (p*(p.log() - z.log_softmax(1))).sum()
        close(mixed_consistency_loss(z, own, other, tensor([.75])), want)
        assert abs(want - (z.softmax(1)*(z.log_softmax(1) - p.log())).sum()) > 1e-3

    def test_small_pieces(self):
        t = torch.arange(12.).view(1,6,2)
        assert region_tokens(t, tensor([[[True, True, False], [False, False, True]]])).tolist() == [
            [(0 + 2 + 10) / 3, (1 + 3 + 11) / 3]
        ]
        z = torch.randn(5,4, requires_grad=True)
        loss = mixed_consistency_loss(
            z, w := torch.randn(5, 4, requires_grad=True), w.roll(1, 0), tensor([0.4])
        )
        loss.backward()
        assert loss >= 0 and w.grad is None and z.grad.abs().sum() > 0

    def test_refused(self):
        with pytest.raises(
            LabelKitError,
            match="SmallCNN gives none: use a model whose forward takes attention=, such as "
                  "small_vit",
        ):
            fit(learner([SMMix()]))
        x = torch.rand(8,1,8,8)
        y = torch.randint(2, (8,3)).float()
        dls = own_loaders(x, y)
        with pytest.raises(LabelKitError, match="'multi'"):
            fit(
                Learner(
                    dls,
                    small_vit(c=3, c_in=1, size=8, dim=16, depth=1),
                    loss_func=nn.BCEWithLogitsLoss(),
                    cbs=SMMix(),
                )
            )
        for kwargs in (dict(switch=2), dict(fine=-1), dict(sides=(.2,3))):
            with pytest.raises(LabelKitError, match=next(iter(kwargs))): SMMix(**kwargs)
        with pytest.raises(LabelKitError, match="give it to a Learner"): SMMix().explore()


@pytest.mark.parametrize("attention", [True, "received"])
def test_attention_maps_of_the_transformer(attention):
    torch.manual_seed(0)
    vit = small_vit(c=3, c_in=1, size=(8,12), dim=16, depth=2, heads=2).eval()
    x = torch.rand(3,1,8,12)
    kept = []
    vit.blocks[-1].qkv.register_forward_hook(lambda m,a,o: kept.append(o))
    with torch.no_grad(): logits,maps = vit(x, attention=attention)
    q,k,_ = kept[0].view(3, 25, 3, 2, 8).permute(2, 0, 3, 1, 4)
    full = (q @ k.mT * 8**-.5).softmax(-1)
    want = full[:,:,0,1:] if attention is True else full[:,:,1:,1:].mean(2)
    close(maps.flatten(2), want, 1e-5)
    with torch.no_grad(): close(logits, vit(x), 1e-5)
