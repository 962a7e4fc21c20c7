"Digits in styles nobody has trained on"
import pytest
import torch

from labelkit.augment.stage import painted, style_colors, styled_digits
from labelkit.errors import LabelKitError


def test_painted_by_hand():
    x = torch.tensor([0., .25, 1.]).view(1, 1, 1, 3)
    y = painted(x, torch.tensor([[1., 0., .5]]), torch.tensor([[0., 1., .5]]))
    want = torch.tensor([[0., .25, 1.], [1., .75, 0.], [.5, .5, .5]])
    torch.testing.assert_close(y[0, :, 0], want)


def test_the_source_is_white_on_black_and_the_rest_is_not():
    dls = styled_digits("colored", labeled=20, valid=100)
    x = dls.train.one_batch()[0]
    assert x.shape[1] == 3 and torch.equal(x[:, 0], x[:, 2])
    v = dls.valid.one_batch()[0]
    assert not torch.equal(v[:, 0], v[:, 2])
    again = styled_digits("colored", labeled=20, valid=100, seed=1).valid.one_batch()[0]
    assert torch.equal(v, again)  # every seed is judged by the same pictures


def test_colors_differ_in_brightness():
    ink,ground = style_colors("colored", 200)
    assert ((ink.mean(1) - ground.mean(1)).abs() > .1).all()


def test_refused():
    with pytest.raises(LabelKitError, match="style='pink'"): styled_digits("pink")
