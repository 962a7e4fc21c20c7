"SelfMix: crops, boxes, and labels that stay what they are"
import pytest
import torch
from torch import tensor
from torch.nn import functional as F

from contract import fit, learner
from labelkit.core.supervision import LabelCallback
from labelkit.errors import LabelKitError
from labelkit.mix.mixup import MixUp
from labelkit.mix.selfmix import SelfMix, SelfPlan, crop_images, random_crops
from mix.mixtools import Keep, NoStep, close, gen


class TestCrops:
    def test_inside_and_of_the_size_that_was_asked_for(self):
        crops = random_crops(5000, (.2, .6), gen())
        area = crops[:,2]*crops[:,3]
        assert .199 <= area.min() < .21 and .59 < area.max() <= .601
        assert crops[:,:2].min() >= 0 and (crops[:,:2] + crops[:,2:]).max() <= 1 + 1e-6
        ratio = crops[:,2]/crops[:,3]
        assert ratio.max() < 4/3 + 1e-5 and ratio.min() > 3/4 - 1e-5
        assert torch.equal(random_crops(3, (1., 1.), gen())[:,:2].round(), torch.zeros(3, 2))

    def test_of_no_area_they_are_places(self):
        crops = random_crops(4, (0., 0.), gen())
        assert not crops[:,2:].any() and (crops >= 0).all() and (crops <= 1).all()

    def test_by_hand(self):
        "The upper left half of a ramp: places 0, 1/2, 1, … between pixels, edges kept"
        x = torch.arange(4.).view(1, 1, 1, 4).expand(1, 1, 4, 4)
        out = crop_images(x, tensor([[0., 0., .5, .5]]))
        close(out[0, 0, 0], tensor([0., .25, .75, 1.25]))
        out = crop_images(x, tensor([[0., .5, .5, .5]]))
        close(out[0, 0, 0], tensor([1.75, 2.25, 2.75, 3.]))

    def test_whole_and_halves(self):
        x = torch.rand(3, 2, 6, 10)
        close(crop_images(x, tensor([[0., 0., 1., 1.]]*3)), x)
        # a crop of even halves is the interpolation of that half
        left = crop_images(x, tensor([[0., 0., 1., .5]]*3))
        want = F.interpolate(x[..., :6], scale_factor=(1, 2), mode="bilinear")[..., :10]
        close(left[..., :9], want[..., :9], 1e-5)


def test_plan():
    x = torch.rand(4, 3, 8, 8)
    crops = torch.stack([random_crops(4, (.3, 1.), gen(i)) for i in range(2)])
    each = tensor([[0, 0, 2, 2], [1, 1, 8, 8], [3, 3, 3, 3], [0, 4, 8, 8]])
    for boxes in (tensor([[1, 2, 5, 8]]), each):
        kept = 1 - (boxes[:,2:]-boxes[:,:2]).prod(1)/64
        plan = SelfPlan(crops, boxes, kept, x)
        out = plan.apply(x)
        first,second = (crop_images(x, o) for o in crops)
        for i,(t,l,b,r) in enumerate(boxes.expand(4, 4).tolist()):
            want = first[i].clone()
            want[:, t:b, l:r] = second[i][:, t:b, l:r]
            assert torch.equal(out[i], want)
        assert plan.shares.tolist() == [[1.]*4, [0.]*4]
        close(plan.kept, kept.expand(4))
        targets = torch.rand(4, 5)
        assert plan.mix_targets(targets) is targets


class Weigh(LabelCallback):
    stage = "relabel"
    def before_forward(self, s): s.weigh(torch.arange(len(s.x)).float())


def test_labels_and_weights_stay():
    learn = learner([Weigh(), SelfMix(per_sample=True), keep := Keep()])
    fit(learn, cbs=[NoStep()])
    s = keep.seen[0]
    close(s.targets.argmax(1), s.y)
    assert (s.targets.amax(1) == 1).all()
    close(s.weights, torch.arange(len(s.x)).float())
    want = (F.cross_entropy(s.pred, s.y, reduction="none")*s.weights).sum()/s.weights.sum()
    close(learn.loss_grad.detach(), want.detach(), 1e-5)


def test_without_a_box_it_is_the_crop():
    cb = SelfMix(paste=False)
    x = torch.rand(5, 1, 8, 8)
    plan = cb.plan_for(x, [0, 0], torch.full((2, 5), .5), gen())
    close(plan.apply(x), crop_images(x, plan.crops[0]))
    assert plan.kept.eq(1).all()


def test_beside_mixup_the_mix_is_of_its_pictures():
    learn = learner([SelfMix(), MixUp(), keep := Keep()])
    fit(learn, cbs=[NoStep()])
    s = keep.seen[0]
    close(s.targets.sum(1), torch.ones(len(s.y)))
    assert (s.targets > 0).sum() > len(s.y)


def test_refused():
    with pytest.raises(LabelKitError, match="scale="): SelfMix(scale=(.8, .3))
    with pytest.raises(LabelKitError, match="scale="): SelfMix(scale=.5)
    with pytest.raises(LabelKitError, match="alpha=-1"): SelfMix(-1)


def test_two_crops_and_a_box_for_each_if_it_is_asked_for():
    x = torch.rand(6, 1, 32, 32)
    shares = torch.stack([torch.linspace(.2, .7, 6), torch.linspace(.8, .3, 6)])
    for per_sample in (True, False):
        plan = SelfMix(per_sample=per_sample).plan_for(x, [0, 0], shares, gen())
        assert not torch.equal(plan.crops[0], plan.crops[1])
        assert len(plan.crops.flatten(0, 1).unique(dim=0)) == 12  # each sample has its own two
        assert (len(plan.kept.unique()) > 1) is per_sample


def test_the_share_outside_the_box_is_of_the_first_crop():
    "A small λ pastes a large box"
    x = torch.rand(2, 1, 32, 32)
    shares = torch.tensor([[.1, .1], [.9, .9]])
    kept = [float(SelfMix().plan_for(x, [0, 0], shares, gen(i)).keep.float().mean())
            for i in range(40)]
    assert sum(kept)/40 < .6
