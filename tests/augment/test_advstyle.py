"The official disturbance and its reversed gradient; who learns what, single samples, refusals"
from functools import partial

import pytest
import torch
from torch import tensor
from torch.nn import functional as F

from augment.augmenttools import close, published
from contract import data, fit, learner
from labelkit.augment.advstyle import (
    AdvStyle, as_maps, at_random, restyle, spread, style_of, towards_another,
)
from labelkit.core.record import Supervision
from labelkit.errors import LabelKitError

OFFICIAL = published("advstyle_forward_and_reversed_gradient")


def official():
    torch.manual_seed(0)
    i = OFFICIAL["inputs"]
    noise = [tensor(i[k]).view(4, 2) for k in ("noise_mean", "noise_std")]
    return torch.randn(4, 2, 3, 3), noise, OFFICIAL["expected"]


class TestOfficial:
    def test_where_intensities_begin(self):
        x,_,want = official()
        mean,std = (spread(o) for o in style_of(x))
        close(mean, want["initial_intensity_mean"], 1e-4)
        close(std, want["initial_intensity_std"], 1e-4)

    def test_output_and_gradient(self):
        x,noise,want = official()
        s = [spread(o).requires_grad_() for o in style_of(x)]
        y = restyle(x, *(e*o for e,o in zip(noise, s)))
        close(y.sum(), want["y_sum"], 1e-3)
        close(y[0, 0].flatten(), want["y_row0"], 1e-4)
        up = torch.arange(1., 73).view(4, 2, 3, 3)/36
        grads = torch.autograd.grad(-(y*up).sum(), s)  # reversed: a step against it raises the loss
        close(grads[0], want["grad_mean"], 1e-3)
        close(grads[1], want["grad_std"], 1e-3)


class TestFunctions:
    def test_nothing_is_moved_by_nothing(self):
        x = torch.randn(3, 2, 4, 4)
        close(restyle(x, torch.zeros(3, 2), torch.zeros(3, 2)), x, 1e-5)

    def test_by_hand(self):
        x = tensor([[[[0., 2.]]]])
        mean,std = style_of(x, 0.)
        close(mean, [[1.]])
        close(std, [[2**.5]])
        close(restyle(x, tensor([[1.]]), std)[0, 0, 0], [0., 4.], 1e-4)

    def test_one_sample_and_one_place_are_finite(self):
        stats = style_of(torch.randn(1, 3, 1, 1))
        assert all(torch.equal(spread(o), torch.zeros(3)) for o in stats)
        assert restyle(torch.randn(1, 3, 1, 1), *stats).isfinite().all()


class TestCallback:
    def test_intensities_are_learned_apart(self):
        learn = learner([cb := AdvStyle()])
        fit(learn)
        mine = {id(p) for p in cb.intensity.module.parameters()}
        assert not mine & {id(p) for p in learn.model.parameters()}
        assert not mine & {id(p) for p in learn.opt.all_params().itemgot(0)}

    def test_an_ascent_raises_the_loss(self):
        learn = learner([cb := AdvStyle(ascents=40, style_lr=.1)], dls=data(n=160, bs=64))
        cb.learn = learn
        learn.create_opt()
        cb._ensure_ready()
        x,y = learn.dls.train.one_batch()[:2]
        s = Supervision(x, y, 10)
        start = [p.detach().abs().sum() for p in cb.intensity.module.parameters()]
        module = learn.model.get_submodule(cb._layer)
        before = {k: v.clone() for k,v in learn.model.state_dict().items()}
        for _ in range(40): cb._ascend(s, module)
        end = [p.detach().abs().sum() for p in cb.intensity.module.parameters()]
        assert sum(end) > sum(start)
        assert all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items())
        assert not module._forward_hooks

    def ready(self, **kwargs):
        "A learner before its first step, a batch of it, and maps to disturb"
        learn = learner([cb := AdvStyle(**kwargs)], dls=data(n=160, bs=64))
        cb.learn = learn
        learn.create_opt()
        cb._ensure_ready()
        x,y = learn.dls.train.one_batch()[:2]
        module = learn.model.get_submodule(cb._layer)
        return cb, learn, Supervision(x, y, 10), module, module(torch.rand(64, 1, 8, 8)).detach()

    def test_an_ascent_goes_uphill(self):
        "By the same dice the batch costs more than before"
        cb,learn,s,module,_ = self.ready(style_lr=1.)
        learn.model.eval()
        def cost():
            cb.rng.manual_seed(0)
            disturb = partial(cb._disturb, len(s.x), "adversarial")
            handle = module.register_forward_hook(disturb)
            with torch.no_grad(): losses = [F.cross_entropy(learn.model(s.x), s.y) for _ in "abc"]
            handle.remove()
            return float(sum(losses))
        before = cost()
        for _ in range(40): cb._ascend(s, module)
        assert cost() > 1.05*before

    def test_a_third_is_clean_and_a_third_climbs_before_it_is_shown(self):
        kinds = []
        climbs = []
        class Counted(AdvStyle):
            name = "advstyle"
            def _disturb(self, n, kind, *args):
                if kind != "climb": kinds.append(kind)
                return super()._disturb(n, kind, *args)
            def _ascend(self, *args):
                climbs.append(1)
                return super()._ascend(*args)
        learn = learner([cb := Counted(ascents=2, style_lr=.03)])
        fit(learn, 24)
        n = 24*len(learn.dls.train)
        counts = [kinds.count(o) for o in ("batch", "adversarial")] + [n-len(kinds)]
        assert min(counts) > n/6 and sum(counts) == n
        assert len(climbs) == 2*counts[1] and cb.intensity.lr == .03

    def test_the_model_does_not_teach_the_intensities(self):
        cb,_,_,module,maps = self.ready()
        climb,shown = (cb._disturb(64, k, module, (), maps) for k in ("climb", "adversarial"))
        assert climb.requires_grad and not shown.requires_grad

    def gradient(self, cb, kind, module, maps):
        cb.rng.manual_seed(0)
        x = maps.clone().requires_grad_()
        out = cb._disturb(len(x), kind, module, (), x)
        return torch.autograd.grad(out.square().sum(), x)[0]

    def test_the_spread_of_the_batch_has_a_gradient(self):
        "As in both published codes; also where all samples are the same"
        cb,_,_,module,maps = self.ready()
        maps[:, 0] = 0.
        x = maps.clone().requires_grad_()
        mean = x.mean((2, 3), keepdim=True)
        std = (x.var((2, 3), keepdim=True) + 1e-6).sqrt()
        a,b = torch.randn(2, 64, 4, 1, 1, generator=torch.Generator().manual_seed(0))
        wide = lambda o: (o.var(0, keepdim=True) + 1e-6).sqrt()
        y = (x-mean)/std*(std + b*wide(std)) + mean + a*wide(mean)
        (want,) = torch.autograd.grad(y.square().sum(), x)
        close(self.gradient(cb, "batch", module, maps), want, 1e-3)

    def test_mixed_styles_are_constants(self):
        "As in the published code: the gradient of x̄·σ' + μ' is that of x, times σ'/σ"
        cb,_,_,module,maps = self.ready(style="mix")
        cb.rng.manual_seed(0)
        out = cb._disturb(64, "mix", module, (), maps)
        _,std = style_of(maps)
        cb.rng.manual_seed(0)
        _,more = towards_another(style_of(maps), cb.rng)
        want = 2*out*(1 + more/std)[:, :, None, None]
        close(self.gradient(cb, "mix", module, maps), want, 1e-3)

    def test_mixed_styles_lie_between_those_of_the_batch(self):
        cb,_,_,module,maps = self.ready(style="mix")
        found = style_of(cb._disturb(64, "mix", module, (), maps))
        for new,old in zip(found, style_of(maps)):
            assert (new <= old.amax(0) + 1e-3).all() and (new >= old.amin(0) - 1e-3).all()
            assert (new - old).abs().max() > 1e-3

    def test_rows_behind_the_labeled_ones_keep_their_style(self):
        cb,_,_,module,maps = self.ready()
        out = cb._disturb(16, "batch", module, (), maps)
        assert torch.equal(out[16:], maps[16:]) and not torch.equal(out[:16], maps[:16])

    @pytest.mark.parametrize("style", ["batch", "mix"])
    def test_baselines_have_no_network(self, style):
        learn = learner([cb := AdvStyle(style=style)])
        fit(learn)
        assert not cb.auxiliaries

    def test_refused(self):
        with pytest.raises(LabelKitError, match="style='pink'"): AdvStyle(style="pink")
        with pytest.raises(LabelKitError, match="no layer 'nose'"):
            fit(learner([AdvStyle(layer="nose")]))
        with pytest.raises(LabelKitError, match="maps \\[B, C, H, W\\]"):
            fit(learner([AdvStyle(layer="head")]))

    def test_a_layer_with_another_output(self):
        with pytest.raises(LabelKitError, match="'body' gives tuple"): as_maps((1, 2), "body")


def test_labeled_rows_alone_are_disturbed():
    "The first four of a pass: they keep their patterns and change their style"
    cb = AdvStyle(style="batch")
    cb._layer = "body"
    out = torch.randn(6, 2, 4, 4)
    new = cb._disturb(4, "batch", None, None, out)
    assert torch.equal(new[4:], out[4:]) and not torch.allclose(new[:4], out[:4], atol=1e-2)
    pattern = lambda x: F.normalize(x - x.mean((2, 3), keepdim=True), dim=(2, 3))
    close(pattern(new[:4]).abs(), pattern(out[:4]).abs(), 1e-3)


class TestMoves:
    def test_towards_another_is_on_the_way_to_one(self):
        stats = tensor([[0.], [10.]]), tensor([[1.], [3.]])
        g = torch.Generator().manual_seed(0)
        seen = [[o+by for o,by in zip(stats, towards_another(stats, g))] for _ in range(50)]
        mean = torch.stack([o[0] for o in seen])
        std = torch.stack([o[1] for o in seen])
        assert mean.min() >= 0 and mean.max() <= 10 and ((mean > .5) & (mean < 9.5)).any()
        close((std-1)/2, mean/10, 1e-5)  # both by the same share

    def test_the_way_to_another_is_mostly_nearly_nothing_or_all(self):
        "Beta(.1, .1), of two different styles: four shares in five are within .05 of an end"
        n = 4000
        stats = torch.arange(2.).repeat(n//2)[:, None], torch.zeros(n, 1)
        by = towards_another(stats, torch.Generator().manual_seed(0))[0].abs()
        share = by[by > 0]
        assert ((share < .05) | (share > .95)).float().mean() > .7

    def test_at_random_is_as_wide_as_told(self):
        stats = torch.zeros(4000, 2), torch.zeros(4000, 2)
        scales = tensor([1., 0.]), tensor([0., 3.])
        mean,std = at_random(stats, scales, torch.Generator().manual_seed(0))
        close(mean.std(0), [1., 0.], .05)
        close(std.std(0), [0., 3.], .15)
