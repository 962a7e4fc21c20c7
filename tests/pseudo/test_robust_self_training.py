"Robust self-training: the ramp is the supremum, the distance is exact for a linear model"
import pytest
import torch
from torch import nn, tensor

from contract import fit, learner
from labelkit.errors import LabelKitError
from labelkit.lesson.batch import look
from labelkit.pseudo.robust_self_training import (
    RobustSelfTraining, gaussians, input_distance, ramp_loss,
)

close = torch.testing.assert_close


class TestFormulas:
    def test_distance_to_the_nearest_boundary_of_a_linear_model(self):
        torch.manual_seed(0)
        net = nn.Linear(5, 3).double()
        x = torch.randn(40, 5, dtype=torch.double, requires_grad=True)
        z = net(x)
        d = input_distance(z, x)
        first,second = z.topk(2).indices.T
        w = net.weight[first] - net.weight[second]
        close(d, (w*x).sum(1).add(net.bias[first]-net.bias[second])/w.norm(dim=1))
        # that far along the slope both classes are level
        on = x - d[:, None]*w/w.norm(dim=1, keepdim=True)
        close(net(on).gather(1, first[:, None]), net(on).gather(1, second[:, None]))

    def test_no_distance(self):
        x = torch.randn(4, 2, requires_grad=True)
        z = x@torch.randn(2, 3)
        for wrong in (z[:, :1], z[:, 0], z[:2], z[..., None]):
            with pytest.raises(LabelKitError, match="logits has shape"): input_distance(wrong, x)
        for wrong in (z.detach(), torch.randn(4, 3, requires_grad=True)):
            with pytest.raises(LabelKitError, match="no gradient towards x"):
                input_distance(wrong, x)

    def test_the_ramp_is_what_an_adversary_gains(self):
        d = torch.linspace(-2, 6, 81)
        gamma = .4
        # moved by r along the slope, in steps; a mistake from the distance on
        r = torch.linspace(0, 8, 8001)
        gain = ((r[None] >= d[:, None]).float() - gamma*r).amax(1).clamp_min(0)
        close(ramp_loss(d, gamma), gain.mean(), atol=1e-3, rtol=0)

    def test_each_sample_has_its_own_slope(self):
        net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        x = torch.randn(6, 4, requires_grad=True)
        alone = [input_distance(net(o), o) for o in (x[[i]] for i in range(6))]
        close(input_distance(net(x), x), torch.cat(alone))

    def test_the_slope_is_a_constant(self):
        "The weights learn from the lead alone: twice of them are twice the lead at the same slope"
        net = nn.Linear(4, 2, bias=False)
        x = torch.randn(5, 4, requires_grad=True)
        d = input_distance(net(x), x)
        (g,) = torch.autograd.grad(d.sum(), net.weight)
        close((g*net.weight).sum(), d.sum())

    def test_edges(self):
        assert ramp_loss(tensor([0.]), .3) == 1 and ramp_loss(tensor([9.]), .3) == 0
        assert ramp_loss(tensor([-3., 3.]), 0.) == 1
        x = torch.zeros(2, 4, requires_grad=True)
        flat = nn.Linear(4, 3)
        with torch.no_grad(): flat.weight.zero_()
        assert input_distance(flat(x), x).isfinite().all()  # no slope at all


def test_what_reaches_the_network():
    o = look(learner([RobustSelfTraining(warmup=0.)]))
    value,weight = o.losses["robust_self_training"]
    assert weight == 10 and 0 <= value <= 1
    params = list(o.model.parameters())
    grads = torch.autograd.grad(value, params, allow_unused=True)
    assert any(g is not None and g.abs().sum() > 0 for g in grads)


def test_it_waits_for_the_labels():
    cb = RobustSelfTraining(warmup=.5)
    learn = fit(learner([cb]), 4)
    assert [v == v for v in learn.supervision.parts["robust_self_training"]] == [False]*2 + [True]*2


def test_gaussians():
    dls = gaussians(1, n=400, alpha=2.)
    x = dls.train_ds.arrays.x
    y = dls.train_ds.arrays.y
    assert (y >= 0).sum() == 10 and len(x) == 410 and x.shape[1] == 200
    again = gaussians(1, n=400, alpha=2.)
    assert torch.equal(x, again.train_ds.arrays.x)
    assert not torch.equal(x, gaussians(2, n=400, alpha=2.).train_ds.arrays.x)


def test_errors():
    with pytest.raises(LabelKitError, match="gamma=-1"): RobustSelfTraining(gamma=-1)
    with pytest.raises(LabelKitError, match="warmup=2"): RobustSelfTraining(warmup=2)
