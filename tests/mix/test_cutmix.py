"CutMix: the authors' boxes, one or many, at centres that are everywhere"
import json

import pytest, torch
from torch import tensor

from mix.mixtools import close, gen
from labelkit.parts.shares import sample_lam
from labelkit.mix.cutmix import CutMix, cut_box, cut_boxes, cutmix, draw_boxes
from places import REFERENCES


def test_published_boxes_one_by_one():
    cases = json.loads((REFERENCES/"mix.json").read_text())
    e = next(o for o in cases if o["name"] == "cutmix_bbox_and_area_corrected_lam")
    for i,o in zip(e["inputs"], e["expected"]):
        # the authors call the image's second-last side W: it is our number of rows
        box,kept = cut_box((i["W"], i["H"]), i["lam"], (i["cx"], i["cy"]))
        assert list(box) == o["bbox"] and kept == pytest.approx(o["lam"], abs=1e-7)


def test_one_is_what_many_are():
    lam = torch.rand(40, generator=gen(1))
    center = torch.stack([torch.randint(o, (40,), generator=gen(o)) for o in (28, 9)], 1)
    boxes,kept = cut_boxes((28, 9), lam, center)
    for k in range(40):
        box,share = cut_box((28, 9), lam[k].item(), center[k].tolist())
        assert boxes[k].tolist() == list(box)
        assert kept[k].item() == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize("n", [1, 3000])
def test_centres_are_everywhere_in_an_image_that_is_not_square(n):
    "Boxes of λ = .75 have half sides 3 and 1 of (12, 4): their middles, where no edge cuts them"
    g = gen()
    lam = torch.full((n,), .75)
    drawn = [draw_boxes((12, 4), lam, g) for _ in range(3000//n)]
    boxes = torch.cat([b for b,_ in drawn])
    kept = torch.cat([k for _,k in drawn])
    close(kept, 1 - (boxes[:,2:]-boxes[:,:2]).prod(1)/48)
    # rows 0..11 and columns 0..3, each as likely as the next
    bottoms = boxes[:,2].bincount(minlength=13)/3000
    want = tensor([0, 0, 0] + [1]*9 + [3])/12
    assert (bottoms - want).abs().max() < .03
    lefts = boxes[:,1].bincount(minlength=4)/3000
    assert (lefts - tensor([2, 1, 1, 0])/4).abs().max() < .03


def test_pixels_of_the_partner():
    x = torch.arange(4*36.).view(4, 1, 6, 6)
    for partner in (1, tensor([1,2,3,0])):
        mixed = cutmix(x, partner, tensor([[1,2,3,6]]))
        want = x.clone()
        want[:,:,1:3,2:6] = x.roll(-1, 0)[:,:,1:3,2:6]
        assert torch.equal(mixed, want)


def test_one_box_a_batch_or_one_a_sample():
    x = torch.rand(9, 1, 8, 8)
    shares = tensor([[.5],[.5]]).expand(2, 9)
    for per_sample in (False, True):
        plan = CutMix(per_sample=per_sample).plan_for(x, [0, 1], shares, gen())
        assert len(plan.boxes) == (9 if per_sample else 1)


def test_no_alpha_no_mix():
    assert torch.equal(sample_lam(0, 3, gen()), torch.ones(3))
    x = torch.rand(3, 1, 8, 8)
    plan = CutMix().plan_for(x, [0, 1], tensor([[1.]*3, [0.]*3]), gen())
    assert torch.equal(plan.apply(x), x) and torch.equal(plan.shares[0], torch.ones(3))
