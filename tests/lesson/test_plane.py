"""Points in the plane, and copies of a model on the way"""
import matplotlib.pyplot as plt
import pytest
import torch
from fastai.basics import Learner
from matplotlib.colors import to_hex
from torch import nn

from labelkit.core.fit import quiet, trained
from labelkit.data.sets import digits, moons
from labelkit.errors import LabelKitError
from labelkit.lesson import Snapshots, draw_plane
from labelkit.lesson.plane import DARK
from labelkit.models import mlp, small_cnn


@pytest.fixture(autouse=True)
def no_figures():
    yield
    plt.close("all")


@pytest.mark.parametrize("labeled", [6, None])
def test_every_point_is_drawn(labeled):
    dls = moons(labeled=labeled, n=100)
    model = mlp(dls).train()
    ax = draw_plane(dls, model, title="a")
    points = [o for o in ax.collections if hasattr(o, "get_sizes") and len(o.get_offsets()) > 1]
    assert sum(len(o.get_offsets()) for o in points if len(o.get_sizes())) == 100
    assert model.training
    assert ax.get_title() == "a"


def test_other_data_are_refused():
    with pytest.raises(LabelKitError, match="pass points, as `moons`"):
        draw_plane(digits(), small_cnn(digits()))


def test_snapshots_are_copies():
    dls = moons(n=60)
    learn = Learner(dls, mlp(dls), cbs=Snapshots(1, 3))
    with quiet(learn): learn.fit(3, 1e-2)
    models = learn.snapshots.models
    assert list(models) == [1, 3]
    a,b = (next(m.parameters()) for m in models.values())
    assert not torch.equal(a, b)
    assert torch.equal(b, next(learn.model.parameters()))
    assert len(learn.snapshots.draw(columns=2).axes) == 2


def test_quiet_puts_the_bar_back_after_an_error(capsys):
    dls = moons(n=60)
    learn = Learner(dls, mlp(dls))
    bars = [type(o).__name__ for o in learn.cbs]
    def fails():
        with quiet(learn) as mine:
            assert mine is learn
            learn.fit(1)
            raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError): fails()
    assert sorted(bars) == sorted(type(o).__name__ for o in learn.cbs)
    assert capsys.readouterr().out == ""


def test_trained_gives_a_model_for_evaluation():
    dls = moons(labeled=None)
    model = trained(dls, mlp, epochs=10, lr=1e-2)
    assert not model.training
    x,y = dls.valid.one_batch()
    assert (model(x).argmax(1) == y).float().mean() > .8


class Says(nn.Module):
    "Class 1 in evaluation mode, and class 0 in training"
    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.ones(1))
    def forward(self, x):
        z = torch.tensor([9., 0.] if self.training else [0., 9.])
        return self.one*z.expand(len(x), 2)


def test_points_and_plane_have_the_colour_of_what_is_said():
    dls = moons(labeled=6, n=100)
    model = Says().train()
    ax = draw_plane(dls, model)
    points = [o for o in ax.collections if hasattr(o, "get_sizes") and len(o.get_sizes())]
    rest = max(points, key=lambda o: len(o.get_offsets()))
    colours = {to_hex(c) for c in rest.get_facecolors()}
    assert colours == {DARK[1]} and model.training
    known = min(points, key=lambda o: len(o.get_offsets()))
    assert {to_hex(c) for c in known.get_facecolors()} == set(DARK[:2])


def test_snapshots_are_for_evaluation():
    dls = moons(n=60)
    learn = Learner(dls, mlp(dls), cbs=Snapshots(2))
    with quiet(learn): learn.fit(2, 1e-2)
    assert not learn.snapshots.models[2].training
