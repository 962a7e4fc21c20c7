"ResizeMix: published boxes, pixels by nearest interpolation, sides as drawn"
import pytest, torch
from fastai.basics import Learner, set_seed
from torch import nn, tensor

from contract import fit, learner
from labelkit.errors import LabelKitError
from labelkit.mix.resizemix import ResizeMix, resize_boxes, resizemix
from mix.mixtools import REFERENCE, Keep, close, gen, own_loaders


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
        dls = own_loaders(*zip(*pairs), bs=6)
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

    def test_sides_are_drawn_evenly(self):
        cb = ResizeMix(scope=(.2, .6), per_sample=True)
        cb._rng = gen()
        shares = cb.draw_shares(20_000)
        close(shares.sum(0), torch.ones(20_000, dtype=torch.float64))
        tau = shares[1].sqrt()
        assert .2 <= tau.min() < .201 and .599 < tau.max() <= .6
        for at in (.3, .4, .5): assert abs((tau < at).float().mean() - (at-.2)/.4) < .01
        assert ResizeMix().draw_shares(5).unique(dim=1).shape == (2, 1)

    def test_a_plan_for_any_share(self):
        "The side is √(1−λ) of the image's, and the share is what its area leaves"
        x = torch.rand(3, 1, 20, 10)
        for lam in (0., .36, .75, 1.):
            shares = tensor([[lam],[1-lam]], dtype=torch.float64).expand(2, 3)
            plan = ResizeMix().plan_for(x, [0, 1], shares, gen())
            sizes = plan.shrunk_into[:,2:] - plan.shrunk_into[:,:2]
            h,w = (max(1, round((1-lam)**.5*side)) for side in (20, 10))
            assert sizes.tolist() == [[h, w]]*3
            close(plan.shares[0], torch.full((3,), 1-h*w/200))
            mask = plan.apply(torch.stack([torch.ones(1,20,10), torch.zeros(1,20,10)]*2)[:3])
            close(mask[0].mean(), plan.shares[0,0])

    @pytest.mark.parametrize(
        "kwargs, word",
        [
            (dict(scope=(0.8, 0.1)), "begins above"),
            (dict(scope=(0, 2)), "scope=2"),
            (dict(scope=.5), "scope=0.5 is no pair"),
            (dict(p=2), "p=2"),
        ],
    )
    def test_refused(self, kwargs, word):
        with pytest.raises(LabelKitError, match=word): ResizeMix(**kwargs)
