"""coupled loss, schedules, ResizeMix, Manifold Mixup, SMMix: against published numbers, by hand,
and on real learne"""
import json
import pickle

import pytest, torch
import fastai.callback.progress  # noqa: F401 gives learners no_bar
from fastai.basics import Callback, CancelFitException, DataLoader, DataLoaders, Learner, set_seed
from fastai.callback.schedule import SchedCos
from torch import nn
from torch.nn import functional as F

from contract import data, fit, learner, same, weights
from places import REFERENCES
from labelkit.errors import LabelKitError
from labelkit.models import body_layers, small_cnn, small_vit
from labelkit.core.supervision import LabelCallback
from labelkit.core.technique import registry
from labelkit.mix.base import Mix, decoupled_terms, take_partner
from labelkit.mix.cutmix import CutMix
from labelkit.mix.decoupled import decoupled_loss
from labelkit.mix.manifold_mixup import ManifoldMixUp
from labelkit.mix.mixup import MixUp
from labelkit.mix.resizemix import ResizeMix, resize_boxes, resizemix
from labelkit.mix.smmix import SMMix, attended_regions, mixed_consistency_loss, region_tokens, smmix
from labelkit.pseudo.fixmatch import FixMatch

REFERENCE = {e["name"]: e for e in json.loads((REFERENCES/"mixing_kinds.json").read_text())}
tensor = torch.tensor
def hot(y, c): return F.one_hot(y, c).float()
def close(a, b, tol=1e-6): torch.testing.assert_close(a, b, atol=tol, rtol=1e-5)


class Keep(Callback):
    "The records of all training batches"
    order = 7
    def __init__(self): self.seen = []
    def after_loss(self):
        if self.training: self.seen.append(self.learn.supervision.record)


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
        z,a,b,c = torch.randn(9, 6),*(torch.randint(6, (9,)) for _ in range(3))
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
                s.weigh((torch.arange(len(s.x)) % 2).float())
        fit(learner([Prune(), cb := MixUp(decoupled=.3), keep := Keep()]))
        for s in keep.seen:
            plan = s.own(cb).plan
            own = .9*hot(s.y, 10) + .01
            w = (torch.arange(16) % 2).float()
            other = take_partner(w, plan.partners[1])
            terms = decoupled_terms(s.pred, own, take_partner(own, plan.partners[1]))
            mass = (plan.shares[0]*w + plan.shares[1]*other).sum()
            # who is pruned has no term, on either side
            want = (terms[:,0]*w + terms[:,1]*other).sum()/mass
            close(s.losses["mixup.decoupled"][0], want, 1e-5)

    def test_refused(self):
        x = torch.rand(8,1,8,8)
        y = torch.rand(8,3)
        dls = DataLoaders.from_dsets(list(zip(x, y)), list(zip(x, y)), bs=4, dl_type=DataLoader)
        for loss in (nn.BCEWithLogitsLoss(), nn.MSELoss()):
            with pytest.raises(LabelKitError, match="decoupled=0.1 is for one label"):
                fit(Learner(dls, small_cnn(c=3, c_in=1), loss_func=loss, cbs=MixUp(decoupled=.1)))
        with pytest.raises(LabelKitError, match="decoupled=-1"): CutMix(decoupled=-1)


class TestSchedule:
    def test_alpha_follows_the_training(self):
        class Alphas(Callback):
            order = 7
            def before_fit(self): self.seen = []
            def after_batch(self):
                if self.training: self.seen.append(self.learn.mixup.current_alpha)
        learn = fit(learner([MixUp(alpha=SchedCos(1., .1)), log := Alphas()]), 3)
        assert (
            log.seen[0] == pytest.approx(1.0, abs=0.02)
            and log.seen[-1] == pytest.approx(0.1, abs=0.02)
            and log.seen == sorted(log.seen, reverse=True)
        )
        assert pickle.loads(pickle.dumps(MixUp(alpha=SchedCos(1., .1)))).alpha(0.) == 1.
        assert learn.mixup.explore().state["technique"] == "MixUp"

    def test_zero_is_off_and_below_is_refused(self):
        off = fit(learner([MixUp(alpha=lambda pct: 0.)]))
        plain = fit(learner())
        assert same(weights(off), weights(plain))
        with pytest.raises(LabelKitError, match="alpha=-1.0"):
            fit(learner([MixUp(alpha=lambda pct: -1.)]))


class TestResizeMix:
    def test_published(self):
        e = REFERENCE["resizemix_box_and_lam"]
        for i,o in zip(e["inputs"], e["expected"]):
            boxes, lam = resize_boxes(
                (i["W"], i["H"]), tensor([i["tau"]]), tensor([[i["cx"], i["cy"]]])
            )
            assert (
                boxes[0].tolist() == o["bbox"]
                and (boxes[0, 2:] - boxes[0, :2]).tolist() == o["small"]
            )
            assert lam.item() == pytest.approx(o["lam"], abs=1e-7)

    @pytest.mark.parametrize("same_size", [True, False])
    @pytest.mark.parametrize("partner", [2, tensor([3,0,4,1,2])])
    def test_pixels(self, same_size, partner):
        g = torch.Generator().manual_seed(0)
        x = torch.rand(5, 3, 17, 22, generator=g)
        tau = torch.full((5,), .37) if same_size else tensor([.1,.37,.55,.8,1.])
        boxes, kept = resize_boxes(
            (17, 22),
            tau,
            torch.stack(
                [torch.randint(17, (5,), generator=g), torch.randint(22, (5,), generator=g)], 1
            ),
        )
        before = x.clone()
        mixed = resizemix(x, partner, boxes)
        assert torch.equal(x, before)
        other = x.roll(-2, 0) if isinstance(partner, int) else x[partner]
        for i,(t,l,b,r) in enumerate(boxes.tolist()):
            assert 0 <= t < b <= 17 and 0 <= l < r <= 22
            want = x[i].clone()
            want[:, t:b, l:r] = other[i][:, torch.arange(b - t) * 17 // (b - t)][
                ..., torch.arange(r - l) * 22 // (r - l)
            ]
            assert torch.equal(mixed[i], want) and kept[i].item() == pytest.approx(
                1 - (b - t) * (r - l) / (17 * 22), abs=1e-6
            )
        assert torch.equal(
            resizemix(x.to(memory_format=torch.channels_last), partner, boxes), mixed
        )

    def test_segmentation_goes_along(self):
        img = torch.rand(12,1,8,8)
        pairs = [(o, (o[0]>.5).long()) for o in img]
        dls = DataLoaders.from_dsets(pairs, pairs, bs=6, dl_type=DataLoader)
        for per_sample in (False, True):
            set_seed(0)
            learn = Learner(
                dls,
                nn.Conv2d(1, 2, 1),
                loss_func=nn.CrossEntropyLoss(),
                cbs=[ResizeMix(per_sample=per_sample), keep := Keep()],
            )
            fit(learn)
            for s in keep.seen: assert torch.equal(s.targets.argmax(1), (s.x[:,0]>.5).long())

    def test_share_is_what_is_shown(self):
        fit(learner([cb := ResizeMix(per_sample=True), keep := Keep()]))
        s = keep.seen[-1]
        plan = s.own(cb).plan
        boxes = plan.shrunk_into
        lam = plan.shares[0]
        area = (boxes[:,2:]-boxes[:,:2]).prod(1)/64
        close(lam, 1-area.float())
        assert (
            s.targets[torch.arange(16), s.y] >= lam - 1e-6
        ).all() and lam.unique().numel() > 3

    @pytest.mark.parametrize(
        "kwargs, word",
        [
            (dict(scope=(0.8, 0.1)), "begins above"),
            (dict(scope=(0, 2)), "scope=2"),
            (dict(p=2), "p=2"),
        ],
    )
    def test_refused(self, kwargs, word):
        with pytest.raises(LabelKitError, match=word): ResizeMix(**kwargs)


class TestManifold:
    def mixed_at(self, layer, *others, **kwargs):
        "What the layer gives in a training batch, and what it would give plainly"
        got = {}
        class Look(LabelCallback):
            stage = "after mix"
            def before_forward(self, s):
                s.hook(
                    self.learn.model.get_submodule(layer),
                    lambda m, a, o: got.update(out=o.detach().clone(), args=a),
                )

            def after_forward(self, s): got.update(s=s)
        learn = learner([*others, ManifoldMixUp(layers=[layer], **kwargs), Look()])
        fit(learn, cbs=[Stop()])
        return got,learn

    def test_only_labeled_rows_are_mixed(self):
        got,learn = self.mixed_at("body.1", FixMatch(threshold=0.))
        s = got["s"]
        lam = s.own(learn.manifold_mixup).plan.shares[0,0]
        torch.manual_seed(0)
        with torch.no_grad(): plain = learn.model.body[1].train()(got["args"][0])
        assert len(plain) > len(s.x)
        close(got["out"][len(s.x):], plain[len(s.x):], 1e-5)
        shift = next(
            k
            for k in range(1, len(s.x))
            if torch.allclose(
                s.targets, torch.lerp(hot(s.y, 10).roll(-k, 0), hot(s.y, 10), lam), atol=1e-6
            )
        )
        want = torch.lerp(plain[:len(s.x)].roll(-shift, 0), plain[:len(s.x)], lam)
        close(got["out"][:len(s.x)], want, 1e-5)

    def test_layers_by_itself_by_name_by_module(self):
        learn = learner([ManifoldMixUp(), keep := Layers()])
        fit(learn, 4)
        assert keep.seen == {"input", *body_layers(learn.model)}
        learn = learner()
        learn.add_cb(ManifoldMixUp(layers=[learn.model.body[2]]))
        fit(learn, cbs=[keep := Layers()])
        assert keep.seen == {"body.2"}
        assert body_layers(
            nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        ) == ["1", "2"]

    @pytest.mark.parametrize("event", ["before_batch", "after_pred", "after_loss"])
    def test_no_hook_is_left_behind(self, event):
        from contract import Raise
        learn = learner([ManifoldMixUp(layers=["body.0"])])
        with pytest.raises(KeyboardInterrupt): fit(learn, cbs=[Raise(event, KeyboardInterrupt)])
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in learn.model.modules())

    def test_refused(self):
        class Two(nn.Module):
            def __init__(self):
                super().__init__()
                self.rnn = nn.GRU(8, 4, batch_first=True)
                self.unused = nn.Linear(2,2)
                self.head = nn.Linear(4, 10)
            def forward(self, x): return self.head(self.rnn(x[:,0])[0][:,-1])

        for layers, word in (
            (["rnn"], "gives a tuple"),
            (["unused"], "did not run"),
            (["nothing"], "no layer 'nothing': choose from input, rnn, unused"),
            ([nn.Linear(1, 1)], "has no layer"),
        ):
            with pytest.raises(LabelKitError, match=word):
                fit(
                    Learner(
                        data(),
                        Two(),
                        loss_func=nn.CrossEntropyLoss(),
                        cbs=ManifoldMixUp(layers=layers),
                    )
                )
        with pytest.raises(LabelKitError, match="leaves nothing to mix"): ManifoldMixUp(layers=[])


class Stop(Callback):
    order = 1000
    def after_pred(self):
        if self.training: raise CancelFitException


class Layers(Callback):
    order = 7
    def before_fit(self): self.seen = set()
    def after_pred(self):
        if self.training:
            s = self.learn.supervision.record
            self.seen.add(s.own(self.learn.manifold_mixup).layer)


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

    def test_losses_by_hand(self):
        learn = learner([cb := SMMix(switch=1.), keep := Keep()], slug="smmix")
        logits = []
        original = cb.unmixed
        cb.unmixed = lambda x: logits.append(original(x)) or logits[-1]
        tokens = []
        learn.model.norm.register_forward_hook(
            lambda m, a, o: tokens.append(o.detach()) if m.training else None
        )
        fit(learn, cbs=[NoStep()])
        s = keep.seen[-1]
        lam = float(s.own(cb).plan.shares[0,0])
        (z,maps) = logits[-1]
        k = round((16*(1-lam))**.5)
        least,_ = attended_regions(maps, k)
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
        z,maps = cb.unmixed(torch.rand(4,1,8,8))
        assert (
            learn.model.training
            and not learn.model.norm.training
            and not z.requires_grad
            and maps.shape == (4, 4, 4)
        )
        assert all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items())

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
        dls = DataLoaders.from_dsets(list(zip(x, y)), list(zip(x, y)), bs=4, dl_type=DataLoader)
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


class NoStep(Callback):
    "Stops after the first batch, before weights move"
    order = 1000
    def after_loss(self):
        if self.training: raise CancelFitException


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


def test_every_mix_takes_the_common_arguments():
    for card in registry.values():
        if card.family == "mix" and issubclass(card.cls, Mix):
            cb = card.cls(decoupled=.1, until=.5, p=.5)
            assert (cb.decoupled, cb.until, cb.p) == (.1, .5, .5), card.name
