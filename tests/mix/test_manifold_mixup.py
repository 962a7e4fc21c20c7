"Manifold Mixup: where it mixes, whom, and once"
import pytest, torch
from fastai.basics import Callback, CancelFitException, Learner
from torch import nn
from torch.nn import functional as F

from contract import Raise, data, fit, learner
from labelkit.core.supervision import LabelCallback
from labelkit.errors import LabelKitError
from labelkit.mix.manifold_mixup import ManifoldMixUp
from labelkit.models import body_layers
from labelkit.pseudo.fixmatch import FixMatch
from mix.mixtools import Keep, close, hot, own_loaders


class TestManifold:
    def mixed_at(self, layer, *others, **kwargs):
        "What the layer gives in a training batch, and what it would give plainly"
        got = {}
        class Look(LabelCallback):
            stage = "after mix"
            def before_forward(self, s):
                s.hook(
                    self.learn.model.get_submodule(layer),
                    lambda m, a, o: got.update(out=o.detach().clone(), args=a),
                )

            def after_forward(self, s): got.update(s=s)
        learn = learner([*others, ManifoldMixUp(layers=[layer], **kwargs), Look()])
        fit(learn, cbs=[Stop()])
        return got,learn

    def test_only_labeled_rows_are_mixed(self):
        got,learn = self.mixed_at("body.1", FixMatch(threshold=0.))
        s = got["s"]
        lam = s.own(learn.manifold_mixup).plan.shares[0,0]
        torch.manual_seed(0)
        with torch.no_grad(): plain = learn.model.body[1].train()(got["args"][0])
        assert len(plain) > len(s.x)
        close(got["out"][len(s.x):], plain[len(s.x):], 1e-5)
        shift = next(
            k
            for k in range(1, len(s.x))
            if torch.allclose(
                s.targets, torch.lerp(hot(s.y, 10).roll(-k, 0), hot(s.y, 10), lam), atol=1e-6
            )
        )
        want = torch.lerp(plain[:len(s.x)].roll(-shift, 0), plain[:len(s.x)], lam)
        close(got["out"][:len(s.x)], want, 1e-5)

    def test_layers_by_itself_by_name_by_module(self):
        learn = learner([ManifoldMixUp(), keep := Layers()])
        fit(learn, 4)
        assert keep.seen == {"input", *body_layers(learn.model)}
        learn = learner()
        learn.add_cb(ManifoldMixUp(layers=[learn.model.body[2]]))
        fit(learn, cbs=[keep := Layers()])
        assert keep.seen == {"body.2"}
        assert body_layers(
            nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        ) == ["1", "2"]

    def test_a_layer_that_runs_twice_is_mixed_once(self):
        class Twice(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = nn.Linear(64, 64)
                self.head = nn.Linear(64, 10)
            def forward(self, x): return self.head(self.inner(self.inner(x.flatten(1))))
        outs = []
        net = Twice()
        net.inner.register_forward_hook(lambda m, args, out: outs.append((args[0], out)))
        cb = ManifoldMixUp(layers=["inner"])
        learn = Learner(data(), net, loss_func=nn.CrossEntropyLoss(), cbs=cb)
        class Shares(Callback):
            order = 7
            def after_pred(self):
                if self.training: outs.extend([cb.plan, self.pred])
        fit(learn, cbs=[Shares(), Stop()])
        # the plain hook is older than ours, and sees what the layer itself gives
        (_,first),(second_in,second),plan,pred = outs[:4]
        close(second_in, plan.apply(first), 1e-5)
        assert float(plan.shares[0,0]) not in (0., 1.)
        close(pred, F.linear(second, net.head.weight, net.head.bias), 1e-5)

    def test_the_layers_before_learn(self):
        "The gradient goes on below the layer that is mixed, by the partners' paths as well"
        cb = ManifoldMixUp(layers=["body.2"])
        got = {}
        class Gradients(Callback):
            order = 7
            def after_loss(self):
                if not self.training or got: return
                weight = self.learn.model.body[0][0].weight
                (grad,) = torch.autograd.grad(self.learn.loss_grad, weight, retain_graph=True)
                got.update(grad=grad)
        fit(learner([cb]), cbs=[Gradients()])
        assert got["grad"].abs().sum() > 0

    def test_tokens_are_mixed_behind_their_embedding(self):
        x = torch.randint(0, 9, (12, 5))
        y = torch.arange(12) % 3
        dls = own_loaders(x, y, bs=6, c=3)
        def fit_with(**kwargs):
            net = nn.Sequential(nn.EmbeddingBag(9, 8), nn.ReLU(), nn.Linear(8, 3))
            cbs = [ManifoldMixUp(**kwargs), keep := Keep()]
            learn = Learner(dls, net, loss_func=nn.CrossEntropyLoss(), cbs=cbs)
            return fit(learn, 10).manifold_mixup,keep.seen
        cb,seen = fit_with()
        assert all(s.own(cb).layer in ("0", "1") and not s.x.is_floating_point() for s in seen)
        assert any((s.targets.max(1).values < .999).any() for s in seen)
        with pytest.raises(LabelKitError, match="averages inputs, and input 0 .* torch.int64"):
            fit_with(layers=["input", "0"])

    def test_a_layer_before_the_inputs_meet(self):
        dls = own_loaders(torch.rand(8,4), torch.rand(8,3), torch.arange(8) % 2, n_inp=2, c=2)
        class Two(nn.Module):
            def __init__(self):
                super().__init__()
                self.a = nn.Linear(4, 5)
                self.both = nn.Linear(8, 6)
                self.head = nn.Linear(6, 2)
            def forward(self, x, v): return self.head(self.both(torch.cat([self.a(x), v], 1)))
        def fit_with(**kwargs):
            cb = ManifoldMixUp(**kwargs)
            return fit(Learner(dls, Two(), loss_func=nn.CrossEntropyLoss(), cbs=cb))
        with pytest.raises(LabelKitError, match="takes 2 inputs.*pass layers="): fit_with()
        fit_with(layers=["both", "input"])

    @pytest.mark.parametrize("event", ["before_batch", "after_pred", "after_loss"])
    def test_no_hook_is_left_behind(self, event):
        learn = learner([ManifoldMixUp(layers=["body.0"])])
        with pytest.raises(KeyboardInterrupt): fit(learn, cbs=[Raise(event, KeyboardInterrupt)])
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in learn.model.modules())

    def test_refused(self):
        class Two(nn.Module):
            def __init__(self):
                super().__init__()
                self.rnn = nn.GRU(8, 4, batch_first=True)
                self.unused = nn.Linear(2,2)
                self.head = nn.Linear(4, 10)
            def forward(self, x): return self.head(self.rnn(x[:,0])[0][:,-1])

        for layers, word in (
            (["rnn"], "gives a tuple"),
            (["unused"], "did not run"),
            (["nothing"], "no layer 'nothing': choose from input, rnn, unused"),
            ([nn.Linear(1, 1)], "has no layer"),
        ):
            with pytest.raises(LabelKitError, match=word):
                fit(
                    Learner(
                        data(),
                        Two(),
                        loss_func=nn.CrossEntropyLoss(),
                        cbs=ManifoldMixUp(layers=layers),
                    )
                )
        with pytest.raises(LabelKitError, match="leaves nothing to mix"): ManifoldMixUp(layers=[])


class Stop(Callback):
    order = 1000
    def after_pred(self):
        if self.training: raise CancelFitException


class Layers(Callback):
    order = 7
    def before_fit(self): self.seen = set()
    def after_pred(self):
        if self.training:
            s = self.learn.supervision.record
            self.seen.add(s.own(self.learn.manifold_mixup).layer)
