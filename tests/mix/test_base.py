"What all mixes share: plans, shares of label and image, weights, kinds of targets, schedules"
import pickle

import pytest, torch
from fastai.basics import Callback, Learner
from fastai.callback.schedule import SchedCos
from fastai.losses import BCEWithLogitsLossFlat
from torch import nn, tensor
from torch.nn import functional as F

from contract import fit, learner, same, weights
from labelkit.core.supervision import LabelCallback
from labelkit.core.technique import registry
from labelkit.errors import LabelKitError
from labelkit.mix.adautomix import AdAutoMix, MaskPlan
from labelkit.mix.base import BlendPlan, Mix, Plan
from labelkit.mix.cutmix import CutMix
from labelkit.mix.intra_cluster_mixup import IntraClusterMixUp
from labelkit.mix.manifold_mixup import ManifoldMixUp
from labelkit.mix.mixup import MixUp
from labelkit.mix.resizemix import ResizeMix
from labelkit.mix.smmix import RegionPlan, SMMix
from labelkit.models import small_vit
from labelkit.data.loaders import label_dls
from mix.mixtools import Keep, NoStep, close, gen, own_loaders

KINDS = ("blend", "blend of three", "cut", "cut each", "paste", "paste each", "region", "masks")

def plan_of(kind, x, partners, g):
    "A plan of each class, with shares that are not symmetric"
    n = len(x)
    share = torch.rand(n, generator=g)
    shares = torch.stack([share, 1-share])
    if kind == "blend": return BlendPlan(partners[:2], shares)
    three = torch.rand(3, n, generator=g)
    if kind == "blend of three": return BlendPlan(partners, three/three.sum(0))
    if kind == "region":
        attention = torch.rand(n, 4, 3, generator=g)
        return RegionPlan(partners[:2], attention, 2, torch.rand(n, 5), x.shape[-2:])
    if kind == "masks":
        masks = torch.rand(3, n, *x.shape[-2:], generator=g).softmax(0)
        return MaskPlan(partners, masks)
    cls = CutMix if kind.startswith("cut") else ResizeMix
    return cls(per_sample=kind.endswith("each")).plan_for(x, partners[:2], shares, g)


def _rows_alone(x):
    "For each sample ones in its own row, zeros in the others'"
    return [torch.eye(len(x))[i].view(-1, *[1]*(x.ndim-1)) for i in range(len(x))]


class TestPlans:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("seed", range(12))
    def test_the_label_gets_what_is_shown(self, kind, seed):
        "A picture of whom is where: its means over the pixels are the targets of classes like ids"
        g = gen(seed)
        n = 1 + seed % 7
        x = torch.eye(n)[:,:,None,None].expand(n, n, 8, 9).clone()
        before = x.clone()
        # by places further on, or by number
        partners = [0, int(torch.randint(n, (1,), generator=g)), torch.randperm(n, generator=g)]
        if seed % 2: partners[1] = torch.randperm(n, generator=g)
        plan = plan_of(kind, x, partners, g)
        mixed = plan.apply(x)
        targets = plan.mix_targets(torch.eye(n))
        close(mixed.mean((2, 3)), targets, 1e-5)
        close(targets.sum(1), torch.ones(n))
        again,weights = plan.mix_weighted(torch.eye(n), torch.ones(n))
        close(again, targets)
        close(weights, torch.ones(n))
        assert torch.equal(x, before), "the images themselves were changed"
        assert plan.shares.shape == (len(plan.partners), n) and plan.shares.dtype == torch.float32
        # maps with a label a pixel go the same way, with and without a dimension for classes
        close(plan.apply_maps(x), mixed)
        close(plan.apply_maps(x[:,0]), mixed[:,0])

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("seed", range(3))
    def test_weights_by_their_own_samples(self, kind, seed):
        g = gen(seed)
        x = torch.rand(5, 1, 8, 9, generator=g)
        plan = plan_of(kind, x, [0, 2, tensor([4,2,0,1,3])], g)
        w = torch.rand(5, generator=g)*3
        w[1] = 0.
        t = torch.rand(5, 4, generator=g).softmax(1)
        targets,weights = plan.mix_weighted(t, w)
        counts = torch.stack([s*o for s,o in zip(plan.shares, plan.of(w))])
        close(weights, counts.sum(0), 1e-5)
        want = sum(c[:,None]*o for c,o in zip(counts, plan.of(t)))
        close(targets*weights[:,None], want, 1e-5)
        # of maps each pixel has the weight of whom it is from
        maps = torch.eye(5)[:,:,None,None].expand(5, 5, 8, 9)
        mixed,weights = plan.mix_weighted(maps, w, maps=True)
        close(mixed*weights[:,None,None,None], plan.apply(maps)*w[None,:,None,None], 1e-5)

    @pytest.mark.parametrize("kind", KINDS)
    def test_numbers_a_pixel_are_means_of_what_is_seen(self, kind):
        "Whatever the samples weigh; where only one is seen, its own numbers"
        g = gen(1)
        x = torch.rand(5, 1, 8, 9, generator=g)
        plan = plan_of(kind, x, [0, 2, tensor([4,2,0,1,3])], g)
        w = torch.rand(5, generator=g)*3 + .1
        here = plan.apply(torch.eye(5)[:,:,None,None].expand(5, 5, 8, 9))*w[None,:,None,None]
        for maps in (torch.randn(5, 2, 8, 9, generator=g), torch.randn(5, 8, 9, generator=g)):
            mixed,weights = plan.mix_weighted(maps, w, maps=True, classes=False)
            shown = torch.stack([plan.apply_maps(o*maps) for o in _rows_alone(maps)])
            own = here.movedim(1, 0).view(5, 5, *[1]*(maps.ndim-3), 8, 9)
            scale = w.view(-1, *[1]*maps.ndim)
            close(mixed, (shown*scale).sum(0)/own.sum(0), 1e-4)
            close(weights, plan.mix_weighted(torch.eye(5), w)[1])
        if kind.startswith(("cut", "paste", "region")):
            close(mixed, plan.apply_maps(maps), 1e-5)
        nobody,weights = plan.mix_weighted(maps, 0*w, maps=True, classes=False)
        close(nobody, plan.apply_maps(maps))
        assert not weights.any()

    def test_who_is_pruned_lends_pixels_and_no_label(self):
        plan = BlendPlan([0, 1], tensor([[.6,.6],[.4,.4]]))
        targets,weights = plan.mix_weighted(torch.eye(2), tensor([1.,0.]))
        close(targets, tensor([[1.,0.],[1.,0.]]))
        close(weights, tensor([.6,.4]))
        targets,weights = plan.mix_weighted(torch.eye(2), torch.zeros(2))
        close(targets, tensor([[.6,.4],[.4,.6]]))
        assert not weights.any()

    def test_another_size_is_refused(self):
        x = torch.rand(4, 1, 8, 8)
        plan = CutMix().plan_for(x, [0, 1], tensor([[.5],[.5]]).expand(2, 4), gen())
        with pytest.raises(LabelKitError, match="drawn for images of 8x8.*use MixUp"):
            plan.apply(torch.rand(4, 1, 16, 16))
        with pytest.raises(LabelKitError, match="drawn for images of 8x8"):
            plan.apply_maps(torch.rand(4, 4, 4))
        with pytest.raises(NotImplementedError): Plan([0, 1], torch.ones(2, 4)).apply(x)


class TestInputs:
    class Two(nn.Module):
        "An image and what else there is"
        def __init__(self, n):
            super().__init__()
            self.a = nn.Linear(16, 3)
            self.b = nn.Linear(n, 3)
        def forward(self, x, v): return self.a(x.flatten(1)) + self.b(v.flatten(1).float())

    def fit(self, cb, x, v, y=None):
        y = torch.arange(len(x)) % 3 if y is None else y
        n = v[0].numel()
        dls = own_loaders(x, v, y, bs=8, n_inp=2, c=3)
        learn = Learner(
            dls, self.Two(n), loss_func=nn.CrossEntropyLoss(), cbs=[cb, keep := Keep()]
        )
        return fit(learn, cbs=[NoStep()]),keep.seen[0]

    def test_every_input_is_mixed_by_the_same_share(self):
        number = torch.arange(16.)
        x = number[:,None,None,None].expand(16,1,4,4)
        v = number[:,None].expand(16,3)
        _,s = self.fit(cb := MixUp(per_sample=True), x.clone(), v.clone())
        close(s.inputs[0][:,0,0,0], s.inputs[1][:,0], 1e-5)
        plan = s.own(cb).plan
        close(s.inputs[1], plan.apply(v[:8]))
        assert not torch.equal(s.inputs[1], v[:8])

    def test_two_images_are_cut_alike(self):
        x = torch.rand(16,1,4,4)
        _,s = self.fit(CutMix(per_sample=True), x.clone(), x.clone())
        assert torch.equal(*s.inputs) and not torch.equal(s.x, x[:8])
        with pytest.raises(LabelKitError, match="drawn for images of 4x4"):
            self.fit(CutMix(), x, torch.rand(16,1,8,8))

    @pytest.mark.parametrize("cls", [MixUp, CutMix, ResizeMix])
    def test_whole_numbers_are_refused(self, cls):
        x = torch.rand(16,1,4,4)
        with pytest.raises(LabelKitError, match="averages inputs, and input 1 .* torch.int64"):
            self.fit(cls(), x, torch.randint(5, (16,1,4,4)))
        with pytest.raises(LabelKitError, match="input 0 of the model holds torch.uint8"):
            self.fit(cls(), (x*255).byte(), x)

    @pytest.mark.parametrize("cls", [SMMix, AdAutoMix])
    def test_who_asks_the_model_about_one_image(self, cls):
        x = torch.rand(4,1,8,8)
        s = type("S", (), dict(inputs=(x, x), kind="single", ids=None))
        with pytest.raises(LabelKitError, match="takes 2 inputs, and .* looks at one image"):
            cls().check(s)


TARGETS = dict(
    single=(nn.CrossEntropyLoss, lambda n: torch.arange(n) % 3),
    soft=(nn.CrossEntropyLoss, lambda n: torch.rand(n, 3).softmax(1)),
    multi=(nn.BCEWithLogitsLoss, lambda n: torch.rand(n, 3).round()),
    regression=(nn.MSELoss, lambda n: torch.randn(n, 3)),
    segmentation=(nn.CrossEntropyLoss, lambda n: torch.randint(3, (n, 8, 8))),
)
MIXES = [MixUp, CutMix, ResizeMix, ManifoldMixUp, IntraClusterMixUp, SMMix, AdAutoMix]

class TestTargets:
    def net(self, cls, kind):
        if cls is SMMix and kind != "segmentation":
            return small_vit(c=3, c_in=1, size=8, dim=16, depth=1)
        net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1))
        pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)]
        return net if kind == "segmentation" else nn.Sequential(net, nn.Sequential(*pool))

    @pytest.mark.parametrize("kind", TARGETS)
    @pytest.mark.parametrize("cls", MIXES)
    def test_each_kind_is_mixed_or_refused(self, cls, kind):
        loss,make = TARGETS[kind]
        torch.manual_seed(0)
        x = torch.rand(12,1,8,8)
        y = make(12)
        dls = label_dls(own_loaders(x, y, bs=6, c=3))
        more = dict(layers=["input"]) if cls is ManifoldMixUp else {}
        if cls is IntraClusterMixUp: more = dict(clusters=torch.zeros(12).long(), alpha=1.)
        cb = cls(**more)
        learn = Learner(dls, self.net(cls, kind), loss_func=loss(), cbs=[cb, keep := Keep()])
        works = cls not in (SMMix, AdAutoMix) or kind in ("single", "soft")
        if not works:
            with pytest.raises(LabelKitError): fit(learn)
            return
        fit(learn)
        for s in keep.seen:
            plan = s.own(cb).plan
            t = s.own(cb).targets
            if kind == "segmentation": want = plan.apply(t)
            else: want = sum(w[:,None]*o for w,o in zip(plan.shares, plan.of(t)))
            close(s.targets, want, 1e-5)
        assert torch.stack(learn.recorder.losses).isfinite().all()

    @pytest.mark.parametrize("cls", [CutMix, MixUp, ResizeMix])
    def test_pixels_to_ignore(self, cls):
        "By hand, from the labels of both images"
        torch.manual_seed(0)
        x = torch.rand(8,1,8,8)
        y = torch.randint(3, (8,8,8))
        y[:,:3] = -100
        y[::2,:,6:] = -100
        learn = Learner(
            own_loaders(x, y, bs=8, c=3),
            nn.Conv2d(1, 3, 3, padding=1),
            loss_func=nn.CrossEntropyLoss(),
            cbs=[cb := cls(), keep := Keep()],
        )
        loss = []
        class Loss(Callback):
            order = 7
            def after_loss(self): loss.append(self.learn.loss.item())
        fit(learn, cbs=[Loss(), NoStep()])
        s = keep.seen[0]
        plan = s.own(cb).plan
        z = s.pred
        if cls is MixUp:
            ce = [F.cross_entropy(z, o, reduction="none") for o in plan.of(y)]
            parts = [w[:,None,None]*c for w,c in zip(plan.shares, ce)]
            mass = sum(w[:,None,None]*(o >= 0) for w,o in zip(plan.shares, plan.of(y)))
            want = sum(parts).sum()/mass.sum()
        else: want = F.cross_entropy(z, plan.apply_maps(y.float()).long())
        assert loss[0] == pytest.approx(want.item(), rel=1e-5)

    @pytest.mark.parametrize("shape", [(1, 8, 8), (8, 8)])
    @pytest.mark.parametrize("loss", [BCEWithLogitsLossFlat, nn.MSELoss])
    def test_floats_with_a_value_for_each_pixel_are_cut_along(self, shape, loss):
        "Depth, a denoised picture, one yes or no a pixel"
        x = torch.rand(12,1,8,8)
        y = (x[:,0] > .5).float().view(12, *shape)
        class Net(nn.Conv2d):
            def forward(self, x): return super().forward(x).view(len(x), *shape)
        dls = own_loaders(x, y, bs=6, c=1)
        learn = Learner(dls, Net(1, 1, 1), loss_func=loss(), cbs=[CutMix(), keep := Keep()])
        fit(learn)
        for s in keep.seen: assert torch.equal(s.targets.view(s.x.shape), (s.x > .5).float())


class TestSchedule:
    def test_alpha_follows_the_training(self):
        class Alphas(Callback):
            order = 7
            def before_fit(self): self.seen = []
            def after_batch(self):
                if not self.training: return
                # the share of the training that was done when the batch was drawn
                cb = self.learn.mixup
                self.seen.append((cb.current_alpha, self.learn.pct_train))
        learn = fit(learner([MixUp(alpha=SchedCos(1., .1)), log := Alphas()]), 3)
        for alpha,pct in log.seen: assert alpha == pytest.approx(SchedCos(1., .1)(pct))
        alphas = [a for a,_ in log.seen]
        assert len(set(alphas)) == 12 and alphas == sorted(alphas, reverse=True)
        assert alphas[0] == pytest.approx(1., abs=.02)
        assert alphas[6] == pytest.approx(.55, abs=.15)
        assert pickle.loads(pickle.dumps(MixUp(alpha=SchedCos(1., .1)))).alpha(0.) == 1.
        assert learn.mixup.explore().state["technique"] == "MixUp"

    def test_zero_is_off_and_below_is_refused(self):
        off = fit(learner([MixUp(alpha=lambda pct: 0.)]))
        plain = fit(learner())
        assert same(weights(off), weights(plain))
        with pytest.raises(LabelKitError, match="alpha=-1.0"):
            fit(learner([MixUp(alpha=lambda pct: -1.)]))

    @pytest.mark.parametrize("kwargs", [dict(alpha=0.), dict(until=0.), dict(p=0.)])
    def test_nothing_to_do_is_no_supervision_at_all(self, kwargs):
        learn = fit(learner([cb := MixUp(**kwargs)]))
        assert cb.off and not hasattr(learn, "supervision")
        assert not MixUp().off

    def test_until(self):
        "Four batches an epoch, two epochs: the first five begin before .6 of the training is done"
        fit(learner([cb := MixUp(until=.6), keep := Keep()]), 2)
        assert [hasattr(s.own(cb), "plan") for s in keep.seen] == [True]*5 + [False]*3
        for s in keep.seen[5:]: assert not s.edited
        fit(learner([cb := MixUp(until=.5), keep := Keep()]), 2)
        assert [hasattr(s.own(cb), "plan") for s in keep.seen] == [True]*4 + [False]*4

    def test_share_of_the_batches(self):
        fit(learner([cb := MixUp(p=.25), keep := Keep()]), 20)
        mixed = sum(hasattr(s.own(cb), "plan") for s in keep.seen)
        assert len(keep.seen) == 80 and 10 <= mixed <= 30

    def test_the_plan_is_that_of_the_batch_at_hand(self):
        class Look(Callback):
            order = 7
            def before_fit(self): self.seen = []
            def after_loss(self):
                if self.training: self.seen.append((cb.plan, self.learn.supervision.record))
        fit(learner([cb := MixUp(), look := Look()]))
        assert all(plan is s.own(cb).plan for plan,s in look.seen)
        assert cb.plan is None and MixUp().plan is None


class TestDraws:
    def test_partners(self):
        "Never oneself, and everybody else alike"
        cb = MixUp()
        cb._rng = gen()
        s = type("S", (), dict(x=torch.zeros(5, 1)))
        shifts = torch.tensor([cb.draw_partners(s)[1] for _ in range(4000)])
        assert shifts.min() == 1 and shifts.max() == 4
        assert (shifts.bincount(minlength=5)[1:]/4000 - .25).abs().max() < .03
        s.x = s.x[:1]
        assert cb.draw_partners(s) == [0, 0]

    @pytest.mark.parametrize("cls", [MixUp, CutMix, ManifoldMixUp, AdAutoMix])
    def test_one_share_a_batch_or_one_a_sample(self, cls):
        for per_sample in (False, True):
            cb = cls(per_sample=per_sample)
            shares = cb.draw_shares(6)
            close(shares.sum(0), torch.ones(6))
            assert shares.shape == (3 if cls is AdAutoMix else 2, 6)
            assert len(shares[0].unique()) == (6 if per_sample else 1)

    def test_centres_of_boxes_are_everywhere(self):
        x = torch.zeros(4000, 1, 6, 4)
        cb = CutMix(per_sample=True)
        shares = torch.full((2, 4000), .5)
        boxes = cb.plan_for(x, [0, 1], shares, gen()).boxes
        # halves of the sides are 2 and 1 (int(6·√.5)//2, int(4·√.5)//2)
        tops = boxes[:,0].bincount(minlength=5)/4000
        assert (tops - torch.tensor([3, 1, 1, 1, 0])/6).abs().max() < .03


def test_every_mix_takes_the_common_arguments():
    for card in registry.values():
        if card.family == "mix" and issubclass(card.cls, Mix):
            cb = card.cls(decoupled=.1, until=.5, p=.5, per_sample=True)
            assert (cb.decoupled, cb.until, cb.p, cb.per_sample) == (.1, .5, .5, True), card.name
            told = repr(cb)
            assert told.startswith(card.name) and "until=0.5" in told and "alpha" not in told
            for word in ("decoupled", "until", "p"):
                with pytest.raises(LabelKitError, match=f"{word}=-1"): card.cls(**{word: -1})


class Weigh(LabelCallback):
    stage = "relabel"
    def before_forward(self, s): s.weigh((torch.arange(len(s.x)) % 2).float())

def test_weights_of_others_are_taken_along():
    fit(learner([Weigh(), cb := MixUp(), keep := Keep()]), cbs=[NoStep()])
    s = keep.seen[0]
    shares = s.own(cb).plan.shares
    w = (torch.arange(16) % 2).float()
    other = w.roll(-s.own(cb).plan.partners[1])
    close(s.weights, shares[0]*w + shares[1]*other)
