"Boxes, crops and augmented views that are made again from their numbers, in any batch"
import json

import numpy as np, pytest, torch

from stores import gen, images
from labelkit.data.views import view_ops
from labelkit.errors import LabelKitError
from labelkit.storage.stored_views import (
    AugmentViews,
    CropViews,
    StoredViews,
    crop_resize,
    random_boxes,
)


class TestViews:
    def test_boxes(self):
        b = random_boxes(5000, 20, 40, gen(), (.1, .25), (.5, 2.))
        side = b[:,2:]-b[:,:2]
        assert (b >= 0).all() and (b <= 1+1e-6).all()
        area = side.prod(1)
        ratio = side[:,0]*40/(side[:,1]*20)
        assert area.min() > .1-1e-5 and area.max() < .25+1e-5 and abs(area.mean()-.175) < .01
        assert ratio.min() > .5-1e-4 and ratio.max() < 2+1e-4
        assert b[:,0].std() > .1 and b[:,1].std() > .1

    def test_crop_is_where_the_box_is(self):
        x = torch.arange(16.).view(1,1,4,4)
        right_top = crop_resize(x, torch.tensor([[.5,0.,1.,.5]]), size=(2,2))
        assert right_top[0,0].tolist() == [[2.,3.],[6.,7.]]
        assert crop_resize(x, torch.tensor([[0.5, 0.0, 1.0, 0.5]]), torch.ones(1), (2, 2))[
            0, 0
        ].tolist() == [[3.0, 2.0], [7.0, 6.0]]

    @pytest.mark.parametrize("channels", [1, 3])
    def test_made_again_in_any_batch(self, channels):
        x = images(60, channels, 16)
        views = AugmentViews(
            n=3, ops=tuple(view_ops), cutout=0.3, random_magnitude=True, magnitude=30
        )
        p = views.draw(60, x.shape[1:], gen(3))
        whole = views.make(x, p)
        assert whole.shape == x.shape and not torch.equal(whole, x)
        order = torch.randperm(60, generator=gen(4))
        assert torch.equal(views.make(x[order], p[order]), whole[order])
        one_by_one = torch.cat([views.make(x[i:i+1], p[i:i+1]) for i in range(60)])
        assert torch.equal(one_by_one, whole)
        again = StoredViews.from_spec(json.loads(json.dumps(views.spec)))
        assert torch.equal(again.make(x, torch.from_numpy(p.numpy().astype(np.float32))), whole)

    @pytest.mark.parametrize("views", [CropViews(), AugmentViews(n=3, cutout=.5)], ids=str)
    def test_numbers_depend_on_the_generator_alone(self, views):
        state = torch.get_rng_state()
        a = views.draw(50, (1, 8, 8), gen(7))
        assert torch.equal(torch.get_rng_state(), state)
        torch.rand(3)
        assert torch.equal(views.draw(50, (1, 8, 8), gen(7)), a)
        assert a.shape == (50, views.width) and a.dtype == torch.float32
        other = views.draw(50, (1, 8, 8), gen(8))
        assert not (a == other).all(0).any(), "a number that is never drawn"

    def test_half_are_flipped(self):
        flips = CropViews().draw(2000, (1,8,8), gen())[:,4]
        assert (
            0.45 < flips.mean() < 0.55
            and not CropViews(flip=False).draw(99, (1, 8, 8), gen())[:, 4].any()
        )

    def test_wrong(self):
        with pytest.raises(LabelKitError, match="scale=.* goes down"): CropViews(scale=(1., .5))
        with pytest.raises(LabelKitError, match="scale=0.5 is not a pair"): CropViews(scale=.5)
        with pytest.raises(LabelKitError, match="takes images in \\[0, 1\\]"):
            AugmentViews().make(images(2)*255, AugmentViews().draw(2, (1,8,8), gen()))
        with pytest.raises(LabelKitError, match="class of your own: import it"):
            StoredViews.from_spec(dict(name="Mine"))
