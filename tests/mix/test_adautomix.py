"AdAutoMix: who trains whom, what the label is, and by hand"
import math, pickle

import pytest, torch
from fastai.basics import Callback, DataLoader, DataLoaders, Learner
from torch import nn
from torch.nn import functional as F

from contract import data, fit, learner, same, weights
from labelkit.errors import LabelKitError
from labelkit.explore.mix_explorer import mix_pair
from labelkit.models import small_cnn
from labelkit.core.losses import soft_target_loss
from labelkit.core.supervision import LabelCallback
from labelkit.core.teachers import Frozen
from labelkit.mix.adautomix import (
    AdAutoMix,
    MaskGenerator,
    draw_simplex,
    generator_layer,
    generator_loss,
    mix_by_masks,
)
from labelkit.mix.base import take_partner

tensor = torch.tensor
def hot(y, c=10): return F.one_hot(y, c).float()
def close(a, b, tol=1e-5): torch.testing.assert_close(a, b, atol=tol, rtol=1e-5)


class Watch(Callback):
    "Records, masks, and which loss reaches which network"
    order = 7
    def __init__(self):
        self.seen = []
        self.reached = []
    def after_loss(self):
        if not self.training: return
        cb = self.learn.adautomix
        s = self.learn.supervision.record
        self.seen.append((s, cb.plan.masks.detach(), cb.plan.partners))
        own = list(self.learn.model.parameters())
        gen = list(cb.generator.module.parameters())
        losses = {"labeled": soft_target_loss(self.learn.loss_func, s.pred, s.targets)} | {
            k: v for k, (v, _) in (s.losses | s.auxiliary_losses).items()
        }
        for name,value in losses.items():
            grads = torch.autograd.grad(value, own+gen, retain_graph=True, allow_unused=True)
            hit = [
                any(g is not None and g.abs().sum() > 0 for g in gs)
                for gs in (grads[: len(own)], grads[len(own) :])
            ]
            self.reached.append((name, *hit))


@pytest.mark.parametrize(
    "kwargs", [dict(), dict(variant="official"), dict(decoupled=0.2, n_mix=2), dict(decoupled=0.2)]
)
def test_neither_loss_trains_the_other_network(kwargs):
    learn = learner([AdAutoMix(**kwargs), watch := Watch()])
    fit(learn, 2)
    names = {name for name,*_ in watch.reached}
    assert {"labeled", "adautomix.clean", "adautomix.generator"} <= names and (
        "adautomix.decoupled" in names
    ) == ("decoupled" in kwargs)
    for name,own,gen in watch.reached:
        assert not (own and gen)
        if name != "adautomix.decoupled":
            assert (own, gen) == (
                (False, True) if name == "adautomix.generator" else (True, False)
            ), name
        else: assert not gen
    assert not any(
        p.requires_grad or p.grad is not None for p in learn.adautomix.teacher.model.parameters()
    )


def test_the_classifier_alone_is_stepped_by_its_optimiser_and_the_generator_by_its_own():
    learn = learner([cb := AdAutoMix(every=10**6)])  # one batch of training, then never again
    fit(learn)
    frozen = {k: v.clone() for k,v in cb.generator.module.state_dict().items()}
    fit(learn)
    cb.batches = 1
    assert cb.generator.opt.state_dict()["state"], "the generator was never stepped"
    learned = [id(p) for g in learn.opt.param_lists for p in g]
    assert not {id(p) for p in cb.generator.module.parameters()} & set(learned)
    # batch 0 was long ago
    assert all(torch.equal(v, frozen[k]) for k,v in cb.generator.module.state_dict().items())


@pytest.mark.parametrize(
    "kwargs", [dict(), dict(per_sample=True), dict(n_mix=2), dict(n_mix=4, per_sample=True)]
)
def test_targets_are_the_masks_means(kwargs):
    learn = learner([AdAutoMix(**kwargs), watch := Watch()])
    fit(learn, 2)
    for s,masks,partners in watch.seen:
        assert (
            len(masks) == kwargs.get("n_mix", 3)
            and partners[0] == 0
            and len(set(partners)) == len(partners)
        )
        close(masks.sum(0), torch.ones(16, 8, 8))
        close(
            s.targets,
            sum(
                m.mean((1, 2))[:, None] * take_partner(hot(s.y), p) for m, p in zip(masks, partners)
            ),
        )
        given = s.requests["adautomix.clean"]
        close(s.x, sum(m[:,None]*take_partner(given, p) for m,p in zip(masks, partners)))
    if kwargs.get("per_sample"): assert (masks.mean((2,3)).std(1) > .01).any()


def test_official_labels_follow_lambda():
    learn = learner([cb := AdAutoMix(variant="official"), watch := Watch()])
    fit(learn)
    s,masks,partners = watch.seen[-1]
    lam = s.own(cb).plan.shares
    share = float(lam[0,0])
    assert lam[0].unique().numel() == 1 and (s.targets[torch.arange(16), s.y] >= share-1e-5).all()


def test_no_gradient_where_none_belongs():
    "Neither the answers to the clean images nor the label's shares are trained by the generator"
    learn = learner([cb := AdAutoMix()])
    kept = []
    class Plans(Callback):
        order = 6
        def after_loss(self):
            if self.training: kept.append((cb.plan, self.learn.supervision.record))
    fit(learn, cbs=[Plans()])
    for plan,s in kept:
        assert plan.masks.requires_grad and not plan.logits.requires_grad
        assert not any(o.requires_grad for o in (plan.shares, s.targets, s.x))


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_who_is_trained_when(variant):
    "Every third batch is hostile; in between the generator rests, or helps (official)"
    learn = learner([cb := AdAutoMix(every=3, variant=variant, beta=1.)])
    rows = []
    class Losses(Callback):
        order = 7
        def after_loss(self):
            if not self.training: return
            s = self.learn.supervision.record
            plan = cb.plan
            (given,) = s.own(cb).inputs
            mixed = sum(m[:,None]*o for m,o in zip(plan.masks, plan.of(given)))
            ce = soft_target_loss(self.learn.loss_func, cb.teacher.model(mixed), s.targets)
            value = s.auxiliary_losses.get("adautomix.generator")
            rows.append((ce.item(), value and value[0].item()))
    fit(learn, 2, cbs=[Losses()])
    assert len(rows) == 8
    for i,(ce,value) in enumerate(rows):
        if i % 3 == 0: assert value == pytest.approx(-ce, rel=1e-4)
        elif variant == "official": assert value == pytest.approx(ce, rel=1e-4)
        else: assert value is None


def test_a_learning_rate_search_is_no_turn(tmp_path):
    learn = learner([cb := AdAutoMix()], path=tmp_path)
    fit(learn)
    turns = cb.batches
    with learn.no_bar(), learn.no_logging(): learn.lr_find(num_it=5, show_plot=False)
    assert cb.batches == turns == 4


def test_decay_follows_the_training_along_a_cosine():
    learn = learner([cb := AdAutoMix(ema_decay=(.2, .8))])
    seen = []
    class Decays(Callback):
        order = 1000
        def after_step(self): seen.append((self.learn.pct_train, cb.teacher.decay))
    fit(learn, 3, cbs=[Decays()])
    for pct,decay in seen:
        assert decay == pytest.approx(.2 + .6*(1-math.cos(math.pi*pct))/2)
    decays = [d for _,d in seen]
    assert decays == sorted(decays) and decays[0] < .25 and decays[-1] > .75
    assert decays[len(decays)//2] == pytest.approx(.5, abs=.08)


def test_clean_loss_by_hand():
    "Of the unmixed images, with the labels and weights from before the mix"
    class Weigh(LabelCallback):
        stage = "relabel"
        def before_forward(self, s): s.weigh((torch.arange(len(s.x)) % 3).float())
    learn = learner([Weigh(), AdAutoMix(clean=.5), watch := Watch()])
    fit(learn)
    for s,*_ in watch.seen:
        value,weight = s.losses["adautomix.clean"]
        w = (torch.arange(16) % 3).float()
        ce = F.cross_entropy(s.outputs["adautomix.clean"], s.y, reduction="none")
        close(value, (ce*w).sum()/w.sum())
        assert weight == .5


def test_generator_loss_by_hand_and_its_signs():
    z = tensor([[3.,0.],[0.,1.]])
    parts = tensor([[[1.,0.],[1.,0.]],[[0.,2.],[0.,2.]]])
    share = tensor([[.75,.75],[.25,.25]])
    # cosines 1 and 0, then 0 and 1: .75 and .25, on average .5
    close(generator_loss(z, parts, share, tensor(2.), .3), tensor(-.3*2 + .7*.5))
    close(generator_loss(z, parts, share, tensor(2.), .3, sign=-1.), tensor(-.3*2 - .7*.5))
    # by share, not evenly: cosines 1 and 0 in both samples
    z = tensor([[3.,0.],[5.,0.]])
    close(generator_loss(z, parts, share, tensor(0.), .3), tensor(.7*.25))
    z = torch.randn(4, 3, requires_grad=True)
    ce = F.cross_entropy(z, tensor([0,1,2,0]))
    (g,) = torch.autograd.grad(
        generator_loss(z, torch.randn(2, 4, 3), torch.full((2, 4), 0.5), ce, beta=1.0),
        z,
        retain_graph=True,
    )
    close(g, -torch.autograd.grad(ce, z)[0])  # alone, it goes uphill on the cross-entropy


def test_generator_masks():
    torch.manual_seed(0)
    net = MaskGenerator(5)
    f = torch.randn(3,4,5,6,3)
    lam = torch.rand(3,4)
    lam = lam/lam.sum(0)
    masks = net(f, lam, (12,6))
    assert masks.shape == (3,4,12,6) and masks.min() >= 0
    close(masks.sum(0), torch.ones(4,12,6))
    order = [2,0,1]
    close(net(f[order], lam[order], (12,6)), masks[order])  # the images' order is no information
    assert net(f, lam.roll(1, 0), (12,6))[0].mean() != masks[0].mean()
    x = torch.rand(4,2,12,6)
    mixed,share = mix_by_masks(x, [0,1,tensor([3,2,1,0])], masks)
    close(mixed, masks[0][:,None]*x + masks[1][:,None]*x.roll(-1, 0) + masks[2][:,None]*x.flip(0))
    close(share, masks.mean((2,3)))


def test_attention_is_paid_to_the_others():
    "By hand: each asks with its own query for the keys of the others, and reads its own values"
    torch.manual_seed(0)
    net = MaskGenerator(4)
    torch.nn.init.normal_(net.value.weight)
    f = torch.randn(3, 1, 4, 2, 2)
    lam = tensor([[.5],[.3],[.2]])
    with torch.no_grad():
        x = torch.cat([f[:,0], lam[...,None,None].expand(3, 1, 2, 2)], 1)
        q,k,v = (conv(x).flatten(2) for conv in (net.query, net.key, net.value))
        logits = []
        for i in range(3):
            others = sum(k[j] for j in range(3) if j != i)
            attention = (q[i].T @ others/q.shape[1]**.5).softmax(-1)
            logits.append((attention @ v[i].T)[:,0].view(2, 2) + lam[i].log())
        want = torch.stack(logits).softmax(0)[:,None]
        close(net(f, lam, (2,2)), want)


def test_where_the_generator_looks():
    net = Frozen(small_cnn(c=10, c_in=1, width=4))
    x = torch.rand(2,1,8,8)
    assert generator_layer(net, x) == ("body.1", 8)
    assert generator_layer(net, x, "body.0") == ("body.0", 4)
    assert generator_layer(net, x, net.model.body[2]) == ("body.2", 16)


def test_the_opponent_makes_it_harder():
    """Against a classifier that stands still, the generator's mixes come to cost more than at the
    start"""
    from labelkit.core.teachers import EMA
    learn = learner(dls=data(n=400, labeled=None, bs=64))
    fit(learn, 5)
    torch.manual_seed(0)
    model = EMA(learn.model).model
    net = MaskGenerator(8)
    x,y = (o[:64] for o in learn.dls.train.one_batch())
    with torch.no_grad():
        seen = model.body[:2](model.normalize(x))
        clean = model(x)
    f = torch.stack([seen, seen.roll(-1, 0)])
    lam = torch.full((2,64), .5)
    def losses():
        mixed,share = mix_by_masks(x, [0,1], net(f, lam, (8,8)))
        pred = model(mixed)
        share = share.detach()
        t = share[0][:,None]*hot(y) + share[1][:,None]*hot(y.roll(-1, 0))
        ce = soft_target_loss(nn.CrossEntropyLoss(), pred, t)
        return ce,generator_loss(pred, torch.stack([clean, clean.roll(-1, 0)]), share, ce, beta=1.)
    opt = torch.optim.Adam(net.parameters(), 5e-2)
    first = losses()[0].item()
    for _ in range(60):
        opt.zero_grad()
        losses()[1].backward()
        opt.step()
    assert losses()[0].item() > first + .02
    assert net(f, lam, (8,8))[0].std((1,2)).mean() > .05  # and not by one share for the whole image


def test_teacher_follows_and_state_is_kept():
    learn = learner([cb := AdAutoMix(ema_decay=(.5,.9))])
    before = {k: v.clone() for k,v in learn.model.state_dict().items()}
    fit(learn, 2)
    assert not same(cb.teacher.model.state_dict(), before) and not same(
        cb.teacher.model.state_dict(), weights(learn)
    )
    assert (
        cb.teacher.decay == pytest.approx(0.9, abs=0.05)
        and cb.batches == 8
        and cb.teacher.steps == 8
    )
    state = pickle.loads(pickle.dumps(cb.state_dict()))
    assert {"teacher", "batches", "generator", "rng"} == set(state)
    again = learner([other := AdAutoMix()])
    other.learn = again
    other.load_state_dict(state)
    assert other.batches == 8 and same(
        other.generator.module.state_dict(), cb.generator.module.state_dict()
    )


def test_explorer_shows_the_generators_mask():
    fit(learner([cb := AdAutoMix()]))
    e = cb.explore(pairs=2)
    assert e.state["technique"] == "AdAutoMix" and e.grid["mixed"] is None
    mixed,mask,share,plan = mix_pair(cb, torch.ones(1,8,8), torch.zeros(1,8,8), .7, None)
    close(mixed[0], mask)
    close(mask, plan.masks[0,0])
    assert share == pytest.approx(mask.mean().item())


def test_refused():
    for kwargs, word in (
        (dict(n_mix=1), "n_mix"),
        (dict(beta=2), "beta"),
        (dict(every=0), "every"),
        (dict(variant="x"), "variant"),
        (dict(ema_decay=(0.9, 2)), "ema_decay"),
    ):
        with pytest.raises(LabelKitError, match=word): AdAutoMix(**kwargs)
    for layer, word in (
        ("head", "no feature maps"),
        ("nothing", "has no layer 'nothing': choose from body.0"),
    ):
        with pytest.raises(LabelKitError, match=word): fit(learner([AdAutoMix(layer=layer)]))
    x = torch.rand(8,1,8,8)
    y = torch.rand(8,3)
    dls = DataLoaders.from_dsets(list(zip(x, y)), list(zip(x, y)), bs=4, dl_type=DataLoader)
    with pytest.raises(LabelKitError, match="'multi'"):
        fit(Learner(dls, small_cnn(c=3, c_in=1), loss_func=nn.BCEWithLogitsLoss(), cbs=AdAutoMix()))
    x = torch.rand(8,5)
    flat = DataLoaders.from_dsets(
        [(o, tensor(0)) for o in x], [(o, tensor(0)) for o in x], bs=4, dl_type=DataLoader
    )
    with pytest.raises(LabelKitError, match="works on images"):
        fit(Learner(flat, nn.Linear(5,2), loss_func=nn.CrossEntropyLoss(), cbs=AdAutoMix()))


@pytest.mark.parametrize("alpha", [.01, .2, 1., 1e3])
def test_shares_sum_to_one_though_every_draw_may_be_nothing(alpha):
    shares = draw_simplex(alpha, 3, 50_000, torch.Generator().manual_seed(0))
    assert (shares >= 0).all()
    torch.testing.assert_close(shares.sum(0), torch.ones(50_000), atol=1e-6, rtol=0)
