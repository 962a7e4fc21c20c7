"Operations one by one: drawn, applied, and nothing where there is none"
import torch

from contract import data, fit, learner
from labelkit.augment.invariance_constrained import InvarianceConstrained
from labelkit.augment.madaug import MADAug
from labelkit.augment.operations import Operations


def made(**kwargs): return Operations(data(), **kwargs)


def test_strength_zero_and_none_change_nothing():
    ops = made(ops=["rotate", "brightness", "posterize"], rounds=2)
    x = (torch.rand(6, 1, 8, 8)*255).round()/255
    g = torch.Generator().manual_seed(0)
    op,strength = ops.draw(6, g)
    assert op.shape == strength.shape == (2, 6) and int(op.max()) < len(ops) == 3
    torch.testing.assert_close(ops(x, op, torch.zeros(2, 6), g), x, atol=1e-5, rtol=0)
    torch.testing.assert_close(ops(x, torch.full((2, 6), 3), strength, g), x, atol=1e-5, rtol=0)


def test_values_lie_on_the_line():
    ops = made(ops=dict(rotate=20.), magnitude=15)
    x = torch.rand(50, 1, 8, 8)
    ops(x, torch.zeros(1, 50).long(), torch.full((1, 50), .5), torch.Generator().manual_seed(0))
    assert sorted(set(ops._drawn.what[1].flatten().tolist())) == [-5., 5.]


def test_one_seed_one_view():
    ops = made()
    x = torch.rand(6, 1, 8, 8)
    op,strength = ops.draw(6, torch.Generator().manual_seed(0))
    a,b = (ops(x, op, strength, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(a, b)


def test_a_policy_with_one_operation():
    ops = made(ops=["rotate", "brightness"])
    x = torch.rand(4, 1, 8, 8)
    half = torch.full((60, 1, 8, 8), .5)
    shown = ops.policy(torch.tensor([0., 1.]))(30)(half, torch.Generator().manual_seed(0))
    assert torch.equal(shown, shown[:, :, :1, :1].expand_as(shown))  # none is turned
    assert set((shown[:, 0, 0, 0] > .5).tolist()) == {True, False}  # lighter and darker
    y = ops.policy(torch.tensor([0., 1.]))(30)(x, torch.Generator().manual_seed(0))
    ratio = (y/x).flatten(1)
    assert all(float(r[r < 1/.9].std()) < .5 for r in ratio)
    assert not torch.equal(x, y)


def test_no_magnitude_changes_nothing():
    "0 is within the limits of those who use them"
    ops = made(ops=["rotate", "brightness"], magnitude=0)
    x = torch.rand(6, 1, 8, 8)
    g = torch.Generator().manual_seed(0)
    torch.testing.assert_close(ops(x, *ops.draw(6, g), g), x, atol=1e-5, rtol=0)
    for technique in (MADAug, InvarianceConstrained): fit(learner([technique(magnitude=0)]))
