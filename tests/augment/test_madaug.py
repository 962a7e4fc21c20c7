"The curriculum, the mix of views, the step in thought, what the policy learns, and refusals"
from math import tanh

import pytest
import torch
from torch import nn, tensor
from torch.nn import functional as F

from augment.augmenttools import close
from contract import data, fit, learner, model
from labelkit.augment.madaug import (
    MADAug, Policy, augmented_share, drawn_operations, each_alone, look_ahead, mixed_views,
    policy_loss,
)
from labelkit.augment.operations import Operations
from labelkit.errors import LabelKitError
from labelkit.models import head_of


class TestCurriculum:
    def test_published_formula(self):
        "min(tanh(e/40)+.01, 1) of 240 epochs is a ramp of a sixth"
        for e in (0, 1, 20, 40, 120, 239):
            close(augmented_share(e/240, 40/240), min(tanh(e/40)+.01, 1))

    def test_no_ramp(self): assert augmented_share(0., 0.) == 1


class TestMix:
    def test_by_hand_and_straight_through(self):
        views = tensor([1., 3.]).view(2, 1, 1, 1, 1)
        w = tensor([[.25, .75]], requires_grad=True)
        m = tensor([[.2, .4]], requires_grad=True)
        y = mixed_views(views, w, m)
        close(y, [[[[2.5]]]])
        y.sum().backward()
        close(w.grad, [[1., 3.]])  # what each view would add
        close(m.grad, [[.25, .75]])  # its weight, straight through


class TestLookAhead:
    def test_by_hand(self):
        "Loss (wx−t)² with w=1: from x=2, t=0 the step is w − .1·2·2·2 = .2; then (.2·1 − 1)²"
        net = nn.Linear(1, 1, bias=False)
        nn.init.ones_(net.weight)
        mse = lambda z, t: ((z-t)**2).sum()
        x = tensor([[2.]], requires_grad=True)
        args = tensor([[0.]]), tensor([[1.]]), tensor([[1.]])
        loss = look_ahead(net, mse, x, *args, .1)
        close(loss, .64)
        # w' = 1 − .2·x²; d/dx (w'−1)² = 2(w'−1)·(−.4x) = 2·(−.8)·(−.8)
        close(torch.autograd.grad(loss, x)[0], [[1.28]])
        close(net.weight, [[1.]])

    def test_against_a_step_that_is_taken(self):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
        x,x2 = torch.randn(2, 6, 4)
        t,t2 = torch.randint(3, (2, 6))
        said = look_ahead(net, F.cross_entropy, x, t, x2, t2, .3)
        opt = torch.optim.SGD(net.parameters(), .3)
        F.cross_entropy(net(x), t).backward()
        opt.step()
        close(said, F.cross_entropy(net(x2), t2), 1e-5)


class TestPolicy:
    def test_begins_alike(self):
        w,m = Policy(8, 5)(torch.randn(3, 8))
        close(w, torch.full((3, 5), .2))
        close(m, torch.full((3, 5), .5))

    def test_an_operation_that_ruins_the_other_half_becomes_rarer(self):
        "Two views of x, the picture and its negative; a step on the negative is the wrong way"
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        policy = Policy(4, 2)
        opt = torch.optim.Adam(policy.parameters(), .1)
        x = torch.randn(32, 1, 2, 2)
        t = F.one_hot((x.sum((1, 2, 3)) > 0).long(), 2).float()
        ce = lambda z, t: -(t*z.log_softmax(1)).sum(1).mean()
        for _ in range(20):
            w,m = policy(x[:16].flatten(1))
            mixed = mixed_views(torch.stack([x[:16], -x[:16]]), w, m)
            look_ahead(net, ce, mixed, t[:16], x[16:], t[16:], .5).backward()
            opt.step()
            opt.zero_grad()
        assert policy(x.flatten(1))[0].mean(0)[0] > .7


class TestCallback:
    def test_policy_moves_apart_from_the_model(self):
        learn = learner([cb := MADAug(every=2)])
        fit(learn)
        assert any(float(p.detach().abs().sum()) for p in cb.policy.module.layers[1].parameters())
        mine = {id(p) for p in cb.policy.module.parameters()}
        assert not mine & {id(p) for p in learn.opt.all_params().itemgot(0)}
        assert cb.seen == len(learn.dls.train)

    def test_share_of_augmented_pictures(self):
        learn = learner([cb := MADAug(ramp=0.)])
        fit(learn)
        x = torch.rand(64, 1, 8, 8)
        f = learn.model.features(x).detach()
        torch.testing.assert_close(cb.augment(x, f, 0.), x, atol=1e-5, rtol=0)
        changed = (cb.augment(x, f, .5) - x).abs().flatten(1).amax(1) > 1e-3
        assert 8 < int(changed.sum()) < 40

    def decided(self, ops, op, strength, **kwargs):
        "A callback whose policy always wants operation number `op`, so strong"
        learn = learner([cb := MADAug(ops=ops, n=1, every=100, policy_lr=.02, **kwargs)])
        fit(learn)
        with torch.no_grad():
            cb.policy.module.layers[1].weight.zero_()
            bias = torch.full((2, len(ops)), -40.)
            bias[0, op] = 40.
            bias[1] = 40. if strength else -40.
            cb.policy.module.layers[1].bias.copy_(bias.flatten())
        x = torch.rand(32, 1, 8, 8)
        return cb, x, learn.model.features(x).detach()

    def test_the_policy_decides(self):
        cb,x,f = self.decided(["brightness", "invert"], 1, 1)
        close(cb.augment(x, f), 1-x, 1e-4)
        assert cb.policy.lr == .02
        cb,x,f = self.decided(["brightness", "invert"], 0, 0)
        close(cb.augment(x, f), x, 1e-4)
        cb,x,f = self.decided(["brightness", "invert"], 0, 1)
        assert (cb.augment(x, f) - x).abs().flatten(1).amax(1).min() > .05

    def test_every_picture_after_every_operation(self):
        cb,x,_ = self.decided(["identity", "invert"], 0, 1)
        views = each_alone(cb._ops, x, torch.full((32, 2), .5), cb.rng)
        close(views[0], x, 1e-4)
        close(views[1], 1-x, 1e-4)

    def test_one_half_is_augmented_and_the_other_judges(self, monkeypatch):
        seen = []
        def spy(model, loss_of, *args):
            seen.append(args)
            return look_ahead(model, loss_of, *args)
        monkeypatch.setattr("labelkit.augment.madaug.look_ahead", spy)
        given = []
        class First(MADAug):
            name = "madaug"
            def before_forward(self, s):
                given.append((s.x, s.targets, float(self.learn.opt.hypers[-1]["lr"])))
                super().before_forward(s)
        fit(learner([First(every=3)]))
        assert len(given) == 4 and len(seen) == 2  # of four batches the first and the fourth
        for (x,t,lr),args in zip((given[0], given[3]), seen):
            close(args[1], t[:8])
            close(args[2], x[8:])
            close(args[3], t[8:])
            assert args[4] == lr and args[0].shape == x[:8].shape and args[0].requires_grad

    def test_temperature_makes_them_alike(self):
        for t in (.5, 4.):
            p = Policy(6, 3, t)
            with torch.no_grad(): p.layers[1].bias.copy_(tensor([1., 2., 3., 0., 0., 0.]))
            close(p(torch.zeros(1, 6))[0][0], (tensor([1., 2., 3.])/t).softmax(0))

    def test_more_pictures_are_augmented_later(self):
        changed = []
        class Seen(MADAug):
            name = "madaug"
            def augment(self, x, *args, **kwargs):
                out = super().augment(x, *args, **kwargs)
                changed.append(float(((out-x).abs().flatten(1).amax(1) > 1e-3).float().mean()))
                return out
        fit(learner([Seen(ramp=1.)]), 6)
        assert sum(changed[:4]) < 1 < sum(changed[-4:])

    def test_refused(self):
        for wrong in (dict(n=0), dict(every=0), dict(temperature=0.)):
            with pytest.raises(LabelKitError, match=next(iter(wrong))): MADAug(**wrong)


class TestOperations:
    def test_drawn(self):
        w = tensor([[0., 1., 0.]]*400)
        m = tensor([[.1, .2, .3]]*400)
        op,strength = drawn_operations(w, m, 2, .25, torch.Generator().manual_seed(0))
        assert op.shape == strength.shape == (2, 400)
        on = op[0] != 3
        # what has no weight is not drawn, also where nothing else is left
        assert set(op[0, on].tolist()) == {1} and (op[:, ~on] == 3).all() and (op[1] == 3).all()
        assert .15 < on.float().mean() < .35
        close(strength[0], torch.full((400,), .2))

    def test_no_operation_twice(self):
        """First k by its weight, then another one by what is left: second is 1 with chance
        .6·.3/.4 + .1·.3/.9"""
        w = tensor([[.6, .3, .1]]).expand(20_000, 3)
        op,_ = drawn_operations(w, w, 2, 1., torch.Generator().manual_seed(0))
        assert (op[0] != op[1]).all()
        shares = [o.bincount(minlength=3)/20_000 for o in op]
        close(shares[0], tensor([.6, .3, .1]), .02)
        close(shares[1][1], tensor(.6*.3/.4 + .1*.3/.9), .02)
        with pytest.raises(LabelKitError, match="n=4"):
            drawn_operations(w, w, 4, 1., torch.Generator())

    def test_each_alone(self):
        "The first operation leaves a picture, the second inverts it"
        ops = Operations(data(), ops=dict(identity=0., invert=0.), rounds=2)
        x = torch.rand(3, 1, 8, 8)
        views = each_alone(ops, x, torch.ones(3, 2), torch.Generator())
        close(views, torch.stack([x, 1-x]), 1e-2)

    def test_loss_of_the_policy(self):
        "It is the loss after a step on the mix, and reaches the policy alone"
        net = model(4)
        ops = Operations(data(), ops=dict(identity=0., invert=0.))
        policy = Policy(head_of(net).in_features, 2)
        x = torch.rand(8, 1, 8, 8)
        t = torch.eye(10)[torch.arange(8)]
        features = torch.rand(8, head_of(net).in_features)
        args = net, policy, ops, features, x, t
        loss = policy_loss(*args, .1, torch.Generator())
        loss.backward()
        assert policy.layers[1].weight.grad.abs().sum() > 0
        still = policy_loss(*args, 0., torch.Generator())
        want = F.cross_entropy(net.eval()(x[4:]), t[4:])
        close(still, want, 1e-5)

    def test_it_learns_at_temperature_one(self):
        "The temperature is for drawing; and samples that count nothing have no say"
        net = model(4)
        ops = Operations(data(), ops=dict(identity=0., invert=0.))
        x = torch.rand(8, 1, 8, 8)
        t = torch.eye(10)[torch.arange(8)]
        w = tensor([1., 0., 2., 1.]*2)[:, None]
        features = torch.rand(8, head_of(net).in_features)
        def loss(temperature, targets):
            policy = Policy(features.shape[1], 2, temperature)
            with torch.no_grad(): policy.layers[1].bias.copy_(tensor([2., 0., 0., 0.]))
            return policy_loss(net, policy, ops, features, x, targets, .1, torch.Generator())
        close(loss(1., t), loss(4., t), 1e-6)
        other = t.clone()
        other[[1, 5]] = t[[2, 2]]
        close(loss(1., t*w), loss(1., other*w), 1e-6)
        assert (loss(1., t) - loss(1., other)).detach().abs() > 1e-3
        assert (loss(1., t) - loss(1., t*w)).detach().abs() > 1e-4
