"""CoTeaching and NestedDropout: values of the official code, who learns from whose choice, and that
both networks are cut and mixed alike."""
import json

import pytest
import torch
from fastai.basics import Callback, Learner
from torch import nn, tensor
from torch.nn import functional as F

from contract import data, fit, learner, model, same, weights
from labelkit.data.loaders import from_arrays
from labelkit.errors import LabelKitError
from labelkit.models import head_of
from labelkit.core.supervision import LabelCallback
from labelkit.core.teachers import evaluating
from labelkit.mix.cutmix import CutMix
from labelkit.relabel.co_teaching import CoTeaching, forget_rate, small_loss
from labelkit.relabel.nested_dropout import NestedDropout, channel_probs, first_channels


@pytest.fixture
def ref(root):
    return {o["name"]: o for o in json.loads((root/"tests/reference/co_teaching.json").read_text())}


def test_selection_and_losses_of_the_official_code(ref):
    o = ref["co_teaching"]
    a,b,t = (tensor(o["inputs"][k]) for k in ("y_1", "y_2", "t"))
    l1,l2 = (F.cross_entropy(z, t, reduction="none") for z in (a, b))
    by1,by2 = (small_loss(v, o["inputs"]["forget_rate"]) for v in (l1, l2))
    want = o["expected"]
    assert (
        sorted(want["selected_by_net1"]) == by1.nonzero().flatten().tolist()
        and sorted(want["selected_by_net2"]) == by2.nonzero().flatten().tolist()
    )
    assert by1.sum() == want["num_remember"]
    mean1 = l1[by2].mean()
    mean2 = l2[by1].mean()
    assert mean1.item() == pytest.approx(
        want["loss_1_mean_ce"], abs=1e-6
    ) and mean2.item() == pytest.approx(want["loss_2_mean_ce"], abs=1e-6)
    assert mean1.item()/want["num_remember"] == pytest.approx(want["loss_1_official"], abs=1e-6)


def test_ramp_of_the_official_code(ref):
    o = ref["forget_rate_schedule"]
    rate = o["inputs"]["forget_rate"]
    n = o["inputs"]["num_gradual"]
    assert [forget_rate(e, rate, n, "official") for e in range(12)] == pytest.approx(
        o["expected"]["first12"]
    )
    assert forget_rate(199, rate, n, "official") == pytest.approx(o["expected"]["last"])
    # numpy.linspace(0, .4, 1) is [0]
    assert [forget_rate(e, .4, 1, "official") for e in (0, 1, 2)] == [0., .4, .4]
    assert forget_rate(0, .4, 0) == forget_rate(0, .4, 0, "official") == .4
    assert [forget_rate(e, .4, 4) for e in range(6)] == pytest.approx([0., .1, .2, .3, .4, .4])


def test_channels_of_the_official_code(ref):
    o = ref["nested_dropout_distribution"]
    assert channel_probs(o["inputs"]["N"], o["inputs"]["std"]).tolist() == pytest.approx(
        o["expected"], abs=1e-6
    )


class Keep(Callback):
    "What each batch was taught"
    order = 6
    def __init__(self): self.seen = []
    def after_loss(self):
        if not self.training: return
        s = self.learn.supervision.record
        self.seen.append(
            (s, self.learn.loss.item(), {k: v.item() for k, (v, _) in s.auxiliary_losses.items()})
        )


def test_each_learns_from_the_others_choice():
    keep = Keep()
    twin = model(seed=5)
    learn = learner(
        [CoTeaching(noise_rate=0.4, ramp=0, peer_fn=lambda: twin), keep],
        dls=data(noise_rate=0.3, labeled=None),
    )
    peers = []
    handle = twin.register_forward_hook(lambda m,a,out: peers.append(out.detach()))
    fit(learn)
    handle.remove()
    for (s,loss,aux),its in zip(keep.seen, peers):
        l1,l2 = (F.cross_entropy(z.detach(), s.y, reduction="none") for z in (s.pred, its))
        n = int(.6*len(s.y))
        mine = l2.argsort()[:n]
        other = l1.argsort()[:n]
        assert loss == pytest.approx(l1[mine].mean().item(), abs=1e-5)
        assert aux["co_teaching.peer"] == pytest.approx(l2[other].mean().item(), abs=1e-5)
    assert any(set((s.weights > 0).nonzero().flatten().tolist()) for s, *_ in keep.seen) and len(
        peers
    ) == len(keep.seen)


def test_official_variant_divides_again():
    losses = {}
    for v in ("paper", "official"):
        fit(
            learner(
                [CoTeaching(noise_rate=0.5, ramp=0, variant=v), k := Keep()], dls=data(labeled=None)
            )
        )
        losses[v] = k.seen[0][1]
        s = k.seen[0][0]
        # 16 samples, of which 8 are kept; of both networks
        share = 1. if v == "paper" else 1/8
        assert float(s.labeled_weight) == pytest.approx(share)
        assert float(s.auxiliary_losses["co_teaching.peer"][1]) == pytest.approx(share)
    assert losses["official"] == pytest.approx(losses["paper"]/8, rel=1e-4)


def test_networks_begin_apart_and_the_peer_learns():
    cb = CoTeaching(noise_rate=.2)
    learn = learner([cb])
    before = weights(learn)
    cb.learn = learn
    cb._ensure_ready()
    start = {k: v.clone() for k,v in cb.peer.module.state_dict().items()}
    assert not torch.equal(start["head.weight"], before["head.weight"])
    fit(learn)
    assert not same(start, cb.peer.module.state_dict())


def test_mixed_targets_are_ranked_by_share():
    fit(learner([CoTeaching(noise_rate=.5, ramp=0), CutMix(), k := Keep()], dls=data(labeled=None)))
    s,loss,_ = next(o for o in k.seen if (o[0].targets.amax(1) < .99).any())  # a mixed one
    assert ((s.weights == 0) | (s.weights > 0)).all() and (s.weights == 0).sum() == 8
    soft = F.cross_entropy(s.pred.detach(), s.targets, reduction="none")
    assert loss == pytest.approx((soft*s.weights).sum().item()/s.weights.sum().item(), abs=1e-5)


class Reach(LabelCallback):
    "Cut what the head sees, and count on how many networks it was done"
    stage = "views"
    def __init__(self):
        super().__init__()
        self.calls = []
    def before_forward(self, s):
        def cut(module, args):
            self.calls.append(module)
            return (args[0]*0,)
        s.hook(head_of(self.learn.model), cut, before=True)

def test_hooks_reach_both_networks_in_one_step_and_are_gone():
    learn = learner([CoTeaching(noise_rate=.2), r := Reach()])
    fit(learn)
    n = len(learn.dls.train)
    assert len(r.calls) == 2*n and len(set(map(id, r.calls))) == 2
    assert not any(
        m._forward_pre_hooks
        for net in (learn.model, learn.co_teaching.peer.module)
        for m in net.modules()
    )


def test_ranking_in_evaluation_mode_does_not_see_the_cut():
    asked = []
    class Look(CoTeaching):
        name = "co_teaching"
        def setup(self):
            super().setup()
            self._ask = self.peer.evaluate
            self.peer.evaluate = self.look
        def look(self, s, model):
            both = (model, self.peer.module)
            before = [b.clone() for net in both for b in net.buffers()]
            out = self._ask(s, model)
            after = [b for net in both for b in net.buffers()]
            assert all(torch.equal(a, b) for a,b in zip(before, after))
            assert all(net.training for net in both) and not any(o.requires_grad for o in out)
            asked.append(out[0])
            return out
    fit(learner([Look(noise_rate=.4, ramp=0, ranking="eval"), Reach()]))
    # with a cut, all logits were the head's bias
    assert asked and all(len(o.unique(dim=0)) > 1 for o in asked)


def test_evaluating_brings_each_mode_back():
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 2))
    net[1].eval()
    modes = []
    def fail():
        modes.extend(m.training for m in net.modules())
        assert not net(torch.rand(1, 2)).requires_grad
        raise KeyError
    with pytest.raises(KeyError), evaluating(net): fail()
    assert not any(modes)
    assert [m.training for m in net] == [True, False, True] and net.training


def test_dropped_samples_are_in_the_ledger():
    dls = data(n=160, labeled=None, noise_rate=.3)
    learn = fit(learner([CoTeaching(noise_rate=.5, ramp=0), k := Keep()], dls=dls))
    f = learn.co_teaching.ledger.frame()
    kept = f.set_index("id").accepted
    for s,*_ in k.seen: assert (kept[s.ids.tolist()].to_numpy() == (s.weights > 0).numpy()).all()
    assert set(f.reason) == {"small loss", "left out: large loss"} and len(f) > 100
    assert ((f.reason == "small loss") == f.accepted).all() and 0 < f.accepted.mean() < 1


def test_predict_averages_both():
    learn = fit(learner([cb := CoTeaching(noise_rate=.2)]))
    x = learn.dls.valid.one_batch()[0]
    alone = cb.predict(x, both=False)
    both = cb.predict(x)
    with evaluating(learn.model, cb.peer.module):
        a = learn.model(x).softmax(1)
        b = cb.peer.module(x).softmax(1)
    torch.testing.assert_close(alone, a)
    torch.testing.assert_close(both, (a+b)/2)
    assert learn.model.head.weight.requires_grad


def test_share_of_the_training_as_ramp():
    rates = []
    class Rates(Callback):
        order = 6
        def before_batch(self):
            if self.training and self.iter == 0: rates.append(self.learn.co_teaching.rate)
    fit(learner([CoTeaching(noise_rate=.4, ramp=.5), Rates()]), 4)
    assert rates == pytest.approx([0., .2, .4, .4])


def test_nothing_flows_between_the_networks():
    "A peer that is as sure as can be moves no weight of the model, and the other way round"
    keep = Keep()
    grads = []
    class Grads(Callback):
        order = 1000
        def after_backward(self):
            s = self.learn.supervision.record
            loss = F.cross_entropy(s.pred, s.y, reduction="none")[s.weights > 0].mean()
            grads.append(self.learn.model.head.bias.grad.clone())
            p = s.pred.detach().softmax(1) - F.one_hot(s.y, 10)
            grads.append(p[s.weights > 0].mean(0))
            assert loss.item() == pytest.approx(self.learn.loss.item(), abs=1e-5)
    fit(learner([CoTeaching(noise_rate=.4, ramp=0), keep, Grads()], dls=data(labeled=None)))
    for mine,by_hand in zip(grads[::2], grads[1::2]): torch.testing.assert_close(mine, by_hand)


def test_rate_never_falls_and_is_reached_in_time():
    for variant,at in (("paper", 10), ("official", 9)):
        rates = [forget_rate(e, .3, 10, variant) for e in range(20)]
        assert rates[0] == 0 and all(b >= a for a,b in zip(rates, rates[1:]))
        assert rates[at] == pytest.approx(.3) == rates[-1] and rates[at-1] < .3
        steps = [b-a for a,b in zip(rates[:at], rates[1:at+1])]
        assert steps == pytest.approx([.3/at]*at)


# Nested dropout

def test_first_channels():
    x = torch.rand(3, 5)
    assert (
        torch.equal(first_channels(x, 5), x)
        and (first_channels(x, 2)[:, 2:] == 0).all()
        and torch.equal(first_channels(x, 2)[:, :2], x[:, :2])
    )
    assert channel_probs(7, 3.).sum() == pytest.approx(1)


def test_the_head_sees_the_first_channels_only():
    seen = []
    class Grad(Callback):
        order = 1000
        def after_backward(self):
            k = self.learn.supervision.record.own(self.learn.nested_dropout).k
            seen.append((k, self.learn.model.head.weight.grad.abs().sum(0)))

    fit(learner([NestedDropout(sigma=4.), Grad()]), 2)
    assert (
        all((g[k:] == 0).all() and (g[:k] > 0).any() for k, g in seen)
        and len({k for k, _ in seen}) > 1
    )


def test_drawn_by_their_chances():
    "How often each number of channels is kept, in three hundred draws"
    seen = []
    class Look(Callback):
        order = 6
        def after_pred(self):
            if self.training:
                cb = self.learn.nested_dropout
                seen.append(self.learn.supervision.record.own(cb).k)
    fit(learner([NestedDropout(sigma=2.), Look()], dls=data(labeled=None, bs=8)), 15)
    p = channel_probs(16, 2.)
    share = torch.bincount(tensor(seen), minlength=17)[1:17]/len(seen)
    assert len(seen) == 300 and (share-p).abs().max() < .08 and min(seen) == 1


def test_both_networks_are_cut_at_the_same_channel():
    shapes = []
    class Look(CoTeaching):
        name = "co_teaching"
        def after_forward(self, s):
            k = s.own(self.learn.nested_dropout).k
            h = self.peer.module.head.register_forward_hook(
                lambda m, args, out: shapes.append((k, args[0]))
            )
            try: super().after_forward(s)
            finally: h.remove()
    fit(learner([Look(noise_rate=.2), NestedDropout(sigma=4.)]))
    assert shapes and all((x[:,k:] == 0).all() and (x[:,:k] != 0).any() for k,x in shapes)


def test_all_channels_is_the_model_itself():
    learn = fit(learner([cb := NestedDropout()]))
    x,y = learn.dls.valid.one_batch()
    with evaluating(learn.model): whole = learn.model(x)
    torch.testing.assert_close(cb.logits(x, learn.model.n_features), whole)
    curve = cb.by_channels(x, y)
    assert len(curve) == learn.model.n_features and curve[-1].item() == pytest.approx(
        (whole.argmax(1) == y).float().mean().item()
    )
    assert curve[2].item() == pytest.approx((cb.logits(x, 3).argmax(1) == y).float().mean().item())
    for k in (0, learn.model.n_features+1):
        with pytest.raises(LabelKitError, match=f"k={k} is not between 1 and"): cb.logits(x, k)


def test_what_is_refused():
    for bad in (dict(noise_rate=1.5), dict(ramp=-1), dict(variant="x"), dict(ranking="x")):
        with pytest.raises(LabelKitError, match=next(iter(bad))): CoTeaching(**bad)
    with pytest.raises(LabelKitError, match="sigma"): NestedDropout(sigma=-1)
    with pytest.raises(LabelKitError, match="no second network"):
        CoTeaching().predict(torch.rand(2,1,8,8))
    several = from_arrays(
        torch.rand(8, 1, 8, 8), torch.eye(8), torch.rand(8, 1, 8, 8), torch.eye(8), bs=4
    )
    with pytest.raises(LabelKitError, match="kind 'multi'"):
        fit(Learner(several, model(), cbs=[CoTeaching()]))
