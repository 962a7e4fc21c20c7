"Fields: their variance, their smoothness, the global limit; what they do, and what is refused"
from math import inf, pi

import pytest
import torch
from torch import tensor
from torch.nn import functional as F

from augment.augmenttools import close
from contract import fit, learner
from labelkit.augment.random_field_augmentation import (
    RandomField,
    RandomFieldAugmentation,
    field_colors,
    field_grid,
    gaussian_fields,
    spectrum,
    torn,
)
from labelkit.core.supervision import LabelCallback
from labelkit.errors import LabelKitError
from mix.mixtools import Keep


def dice(*shape): return torch.randn(*shape, 8, 8, generator=torch.Generator().manual_seed(0))


class TestFields:
    @pytest.mark.parametrize("gamma", [0., 2., 6., inf])
    def test_variance_is_one(self, gamma):
        f = gaussian_fields(dice(6000), gamma, 12, 20)
        assert f.shape == (6000, 12, 20)
        close(f.mean(), 0., .05)
        close(f.var(), 1., .05)

    def test_spectrum_by_hand(self):
        p = spectrum(2.)
        close(p[0, 1]/p[0, 0], .5)
        close(p[1, 1]/p[0, 0], 1/3)
        close(p.sum(), 1.)

    def test_smoother_with_gamma(self):
        made = [gaussian_fields(dice(50), g, 16, 16) for g in (2., 4., 6.)]
        rough = [float(f.diff(dim=2).std()) for f in made]
        assert rough[0] > rough[1] > rough[2]

    def test_the_limit_is_one_number(self):
        d = dice(5)
        f = gaussian_fields(d, inf, 9, 9)
        close(f, d[:, :1, :1].expand(5, 9, 9))


class TestWarp:
    def test_nothing_moves(self):
        x = torch.rand(2, 1, 5, 7)
        y = F.grid_sample(x, field_grid(torch.zeros(2, 4, 5, 7)), align_corners=False)
        close(y, x)

    def test_a_shift_is_a_share_of_the_side(self):
        fields = torch.zeros(1, 4, 4, 4)
        fields[:, 3] = .25  # everything comes from a pixel further right
        x = torch.arange(16.).view(1, 1, 4, 4)
        y = F.grid_sample(x, field_grid(fields), padding_mode="border", align_corners=False)
        close(y[0, 0, :, :3], x[0, 0, :, 1:])

    def test_scale_and_turn(self):
        fields = torch.zeros(1, 4, 4, 4)
        fields[:, 0] = pi
        x = torch.rand(1, 1, 4, 4)
        y = F.grid_sample(x, field_grid(fields), align_corners=False)
        close(y, x.flip(2, 3), 1e-4)

    def test_a_turn_is_one_of_pixels_where_the_sides_differ(self):
        "A quarter turn of a wide picture: its middle is a square, and turned as a square is"
        fields = torch.zeros(1, 4, 4, 10)
        fields[:, 0] = pi/2
        x = torch.rand(1, 1, 4, 10)
        y = F.grid_sample(x, field_grid(fields), align_corners=False)
        close(y[..., 3:7], x[..., 3:7].rot90(1, (2, 3)), 1e-4)
        close(y[..., :3], 0*y[..., :3], 1e-4)
        close(y[..., 7:], 0*y[..., 7:], 1e-4)
        assert float(torn(field_grid(fields))) == 0

    def test_torn(self):
        fields = torch.zeros(2, 4, 8, 8)
        assert torn(field_grid(fields)).tolist() == [0., 0.]
        fields[1, 3, :, 4:] = -.5  # the right half comes from further left than the left one
        assert float(torn(field_grid(fields))[1]) == pytest.approx(1/7)


class TestColors:
    def test_by_hand(self):
        x = torch.full((1, 1, 2, 2), .25)
        fields = torch.zeros(1, 4, 2, 2)
        fields[0, 0, 0] = tensor(2.).log()
        close(field_colors(x, fields)[0, 0, :, 0], [.5, .25])

    def test_contrast_is_about_the_mean(self):
        fields = torch.zeros(1, 4, 1, 2)
        fields[:, 1] = tensor(2.).log()
        close(field_colors(tensor([[[[.4, .6]]]]), fields)[0, 0, 0], [.3, .7])

    def test_no_saturation_is_grey(self):
        fields = torch.zeros(1, 4, 3, 3)
        fields[:, 2] = -inf
        y = field_colors(torch.rand(1, 3, 3, 3)*.8, fields)
        close(y[:, 0], y[:, 1], 1e-3)

    def test_hue_keeps_brightness(self):
        x = .3 + .2*torch.rand(1, 3, 3, 3)
        fields = torch.zeros(1, 4, 3, 3)
        fields[:, 3] = .5
        grey = lambda x: (x*tensor([.299, .587, .114])[:, None, None]).sum(1)
        y = field_colors(x, fields)
        assert not torch.allclose(x, y, atol=1e-2)
        close(grey(y), grey(x), 1e-3)


class TestView:
    def test_nothing_at_zero(self):
        x = torch.rand(3, 3, 10, 12)
        close(RandomField(0., 0.)(x, torch.Generator()), x, 1e-4)

    def test_one_picture_and_one_pixel(self):
        for x in (torch.rand(1, 1, 1, 1), torch.rand(1, 3, 2, 5), torch.rand(0, 1, 8, 8)):
            y = RandomField()(x, torch.Generator().manual_seed(0))
            assert y.shape == x.shape and y.isfinite().all()

    def test_refused(self):
        with pytest.raises(LabelKitError, match="2 channels"):
            RandomField()(torch.rand(1, 2, 8, 8), torch.Generator())
        with pytest.raises(LabelKitError, match="gamma=-1"): RandomFieldAugmentation(gamma=-1)


def test_policies_keep_the_shape():
    cb = RandomFieldAugmentation()
    learn = learner([cb])
    fit(learn)
    x = learn.dls.valid.one_batch()[0][:3]
    assert len(cb.policies()) == 2
    for make in cb.policies().values(): assert make(30)(x, torch.Generator()).shape == x.shape


def test_place_and_colour_have_dice_and_strengths_of_their_own():
    flat = torch.full((3, 1, 8, 8), .5)
    seed = lambda: torch.Generator().manual_seed(3)
    d = torch.randn(3, 8, 8, 8, generator=seed())
    fields = gaussian_fields(d, 6., 8, 8)
    close(RandomField(.3, .2)(flat, seed()), field_colors(flat, .2*fields[:, 4:]))
    x = torch.rand(3, 1, 8, 8)
    want = F.grid_sample(
        x, field_grid(.1*fields[:, :4]), padding_mode="border", align_corners=False
    )
    close(RandomField(.1, 0.)(x, seed()), want)


@pytest.mark.parametrize("weak", [True, False])
def test_the_weak_view_comes_first_if_it_is_wanted(weak):
    cb = RandomFieldAugmentation(warp=0., color=0., weak=weak)
    moved = [not torch.allclose(s.x, s.inputs_given, atol=1e-3) for s in seen_by(cb)]
    assert any(moved) is weak


def seen_by(cb):
    "The records of an epoch, with the inputs as they were given"
    class Given(LabelCallback):
        stage = "relabel"
        def before_forward(self, s): s.inputs_given = s.x
    fit(learner([Given(), cb, keep := Keep()]))
    return keep.seen
