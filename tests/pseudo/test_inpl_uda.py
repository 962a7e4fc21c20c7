"""InPL and UDA, and that each is a selection, a target and a loss of pseudo.base."""
import json, math
from types import SimpleNamespace

import pytest
import torch
from fastai.basics import Callback
from torch import tensor
from torch.nn import functional as F

from contract import fit, learner, same, weights
from labelkit.errors import LabelKitError
from labelkit.mix.cutmix import CutMix
from labelkit.parts.running import align_distribution
from labelkit.pseudo.base import (
    Guess,
    above_threshold,
    below_energy,
    consistency_loss,
    energy_score,
    hard_target,
    kl_consistency,
    quantile_of,
    sharpen,
)
from labelkit.pseudo.fixmatch import FixMatch
from labelkit.pseudo.flexmatch import FlexMatch
from labelkit.pseudo.inpl import InPL, energy_level, margin_logits
from labelkit.pseudo.uda import UDA, tsa_keep, tsa_threshold
from pseudo.classmaps import dense


def reference(root, name):
    (ref,) = [
        o
        for o in json.loads((root / "tests/reference/pseudo.json").read_text())
        if o["name"].startswith(name)
    ]
    return ref["inputs"],ref["expected"],ref["tolerance_abs"]


# The parts

def test_parts_by_hand():
    z = tensor([[0.,0.], [math.log(3),0.]])
    torch.testing.assert_close(energy_score(z), -tensor([2.,4.]).log())
    assert below_energy(z, -math.log(3)).tolist() == [False, True]
    # strictly below
    assert below_energy(z, float(energy_score(z)[1])).tolist() == [False, False]
    p = tensor([[.8,.2], [.75,.25]])
    assert above_threshold(p, 0.75).tolist() == [True, True] and above_threshold(
        p, 0.75, strict=True
    ).tolist() == [True, False]
    kl = .75*math.log(1.5) + .25*math.log(.5)
    assert kl_consistency(
        torch.zeros(2, 2), tensor([[0.75, 0.25], [1.0, 0.0]]), tensor([True, False])
    ).item() == pytest.approx(kl / 2, rel=1e-5)
    # a class without mass is no NaN
    assert kl_consistency(
        torch.zeros(1, 2), tensor([[1.0, 0.0]]), tensor([1.0])
    ).item() == pytest.approx(math.log(2))
    torch.testing.assert_close(
        align_distribution(tensor([[0.6, 0.4]]), tensor([0.75, 0.25])), tensor([[1 / 3, 2 / 3]])
    )


def test_divergence_and_cross_entropy_have_one_gradient():
    z = torch.randn(6, 4, requires_grad=True)
    t = torch.rand(6, 4).softmax(1)
    mask = tensor([1,0,1,1,0,1.])
    a,b = (torch.autograd.grad(f(z, t, mask), z)[0] for f in (kl_consistency, consistency_loss))
    torch.testing.assert_close(a, b)


# slug -> the technique, and its loss composed of the parts, from logits of both views and the
# technique as it was before the batch
COMPOSED = {
    "fixmatch": (
        FixMatch(threshold=0.16),
        lambda w, s, cb: consistency_loss(s, hard_target(w), above_threshold(w.softmax(1), 0.16)),
    ),
    "flexmatch": (
        FlexMatch(threshold=0.15, warmup=False),
        lambda w, s, cb: consistency_loss(
            s, hard_target(w), above_threshold(w.softmax(1), cb["class_threshold"][w.argmax(1)])
        ),
    ),
    "inpl": (
        InPL(-2.4),
        lambda w, s, cb: consistency_loss(s, hard_target(w), below_energy(w, -2.4)),
    ),
    "inpl.margin": (
        InPL(-2.4, margin=0.5, ema_decay=0.5),
        lambda w, s, cb: consistency_loss(
            margin_logits(s, cb["mean"], 0.5), hard_target(w), below_energy(w, -2.4)
        ),
    ),
    "uda": (
        UDA(threshold=0.16),
        lambda w, s, cb: kl_consistency(
            s, sharpen(w, 0.4), above_threshold(w.softmax(1), 0.16, strict=True)
        ),
    ),
}

@pytest.mark.parametrize("name", COMPOSED)
def test_a_technique_is_selection_target_and_loss(name):
    cb,composed = COMPOSED[name]
    seen = []

    class Check(Callback):
        order = 6
        def before_batch(self):
            self.state = {k: getattr(v, "value", v) for k,v in vars(cb).items()}
        def after_pred(self):
            if not self.training: return
            s = self.learn.supervision.record
            w = s.outputs[f"{cb.name}.weak"].detach()
            z = s.outputs[f"{cb.name}.strong"]
            seen.append((s.losses[cb.name][0].item(), composed(w, z, self.state).item()))
    learn = fit(learner([cb, Check()]), 3)
    a,b = zip(*seen)
    assert a == pytest.approx(b, rel=1e-6) and max(a) > 0
    accepted = cb.ledger.columns["accepted"][learn.dls.given == -1]
    assert accepted.any() and not accepted.all()


# InPL

def test_inpl_reference(root):
    i,want,tol = reference(root, "inpl_energy")
    weak = tensor(i["logits_weak"])
    strong = tensor(i["logits_strong"])
    cb = InPL(energy_threshold=i["e_cutoff"])
    g = Guess(weak, None)
    target = cb.teach(g)
    mask = cb.believe(g)
    torch.testing.assert_close(energy_score(weak), tensor(want["energy"]), atol=tol, rtol=0)
    assert (
        mask.float().tolist() == want["mask"] and target.argmax(1).tolist() == want["pseudo_label"]
    )
    assert cb.consistency(strong, target, mask).item() == pytest.approx(want["unsup_loss"], abs=tol)


def test_margin_by_hand():
    z = torch.zeros(1, 2)
    q = tensor([.75,.25])
    torch.testing.assert_close(margin_logits(z, q, 1.).softmax(1), q[None])
    assert margin_logits(z, q, .5).softmax(1)[0,0].item() == pytest.approx(3**.5/(1+3**.5))
    loss = lambda c: consistency_loss(
        margin_logits(z, q, 1.0), F.one_hot(tensor([c]), 2).float(), tensor([1.0])
    ).item()
    # the rare class has more to win
    assert loss(1) == pytest.approx(math.log(4)) and loss(0) == pytest.approx(math.log(4/3))


def test_the_mean_prediction_follows_only_with_a_margin():
    learn = fit(learner([cb := InPL(0., margin=.5, ema_decay=.5)]), 2)
    mean = cb.mean.value
    assert mean.sum().item() == pytest.approx(1, abs=1e-5) and (mean - .1).abs().max() > 1e-3
    fit(learner([plain := InPL(0.)]), 2)
    assert torch.equal(plain.mean.value, torch.full((10,), .1))
    assert not same(weights(learn), weights(fit(learner([InPL(0.)]), 2)))


def test_the_ledger_has_the_energy():
    fit(learner([cb := InPL(-2.4)]), 2)
    f = cb.ledger.frame()
    assert (f.accepted == (f.energy < -2.4)).all() and f.accepted.any() and not f.accepted.all()
    assert cb.explore() is not None


class TestQuantile:
    def test_as_torch_where_torch_can(self, monkeypatch):
        "The same number bit for bit, and beyond the limit the same by its own interpolation"
        v = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(0))
        shares = (0., .05, .3, .95, 1.)
        want = [v.flatten().quantile(q) for q in shares]
        assert [quantile_of(v, q) for q in shares] == want
        monkeypatch.setattr("labelkit.pseudo.base._most", 5)
        torch.testing.assert_close([quantile_of(v, q) for q in shares], want)
        assert quantile_of(tensor([0., 1., 2., 3., 4., 5.]), .5).item() == 2.5

    def test_maps_of_big_pictures(self):
        "17 million pixels are more than torch's quantile takes"
        z = torch.arange(17_000_000.).view(1, 1, 4250, 4000)
        got = energy_level(z, .95)
        assert got.shape == (1,) and got.item() == pytest.approx(-.05*16_999_999, abs=1.)


def test_the_threshold_follows_the_labeled_energies():
    z = tensor([[3., 0.], [1., 0.], [5., 5.]])

    class Check(Callback):
        order = 6
        def before_fit(self): self.seen = []
        def after_pred(self):
            if not self.training: return
            s = self.learn.supervision.record
            self.seen.append(energy_score(s.pred.detach()).quantile(.95))
    fit(learner([cb := InPL(), check := Check()]), 2)
    assert cb.cut.item() == pytest.approx(torch.stack(check.seen[-50:]).mean().item(), rel=1e-5)
    f = cb.ledger.frame()
    assert f.accepted.any() and not f.accepted.all()
    cb.level.means = energy_score(z)[:1]
    assert cb.believe(Guess(z, None)).tolist() == [False, False, True]


def test_thresholds_by_name():
    assert InPL("paper").cut == -9.5 and InPL(-3).cut == -3
    assert "energy" not in repr(InPL())


# UDA

def test_tsa_reference(root):
    i,want,tol = reference(root, "uda_tsa")
    for schedule,values in want.items():
        assert [
            tsa_threshold(n / i["total_iter"], i["num_classes"], schedule) for n in i["cur_iter"]
        ] == pytest.approx(values, abs=tol)


def test_annealing_by_hand():
    z = tensor([[math.log(3),0.], [0.,0.], [0.,math.log(3)]])
    y = tensor([0,0,0])
    keep = tsa_keep(z, F.one_hot(y, 2).float(), .6)                           # ¾, ½, ¼
    assert keep.tolist() == [False, True, True]
    # a mixed target has ½ of everything
    assert tsa_keep(z, tensor([[.5,.5]]*3), .5).all()


class Labeled(Callback):
    "The labeled loss, and what it should be with the labels that are kept"
    order = 6
    def before_fit(self): self.values = []
    def after_loss(self):
        if not self.training: return
        s = self.learn.supervision.record
        eta = self.learn.pct_train*.9 + .1
        p = s.pred.softmax(1)[torch.arange(len(s.y)), s.y]
        ce = F.cross_entropy(s.pred, s.y, reduction="none")
        keep = p <= eta
        want = (ce*keep).sum()/keep.sum().clamp_min(1)
        self.values.append(
            ((self.learn.loss_grad - s.losses["uda"][0]).item(), want.item(), keep.sum().item())
        )


def test_annealing_divides_by_what_is_kept():
    fit(learner([UDA(tsa="linear"), seen := Labeled()]), 3)
    a,b,kept = zip(*seen.values)
    assert a == pytest.approx(b, rel=1e-4, abs=1e-5) and min(kept) < 16


def test_all_labels_learned_is_no_division_by_zero():
    cb = UDA(tsa="exp")
    s = SimpleNamespace(pred=20*torch.eye(10), targets=torch.eye(10))
    assert not tsa_keep(s.pred, s.targets, tsa_threshold(0, 10, cb.tsa)).any()
    from labelkit.core.losses import soft_target_loss

    assert (
        soft_target_loss(torch.nn.CrossEntropyLoss(), s.pred, s.targets, torch.zeros(10)).item()
        == 0
    )


def test_annealing_beside_a_mix_and_without():
    runs = [
        fit(learner(cbs), 2)
        for cbs in ([UDA()], [UDA(tsa="log")], [UDA(tsa="exp")], [UDA(tsa="exp"), CutMix()])
    ]
    assert all(torch.isfinite(v).all() for r in runs for v in weights(r).values())
    assert not any(same(weights(a), weights(b)) for i,a in enumerate(runs) for b in runs[:i])


def test_temperature_is_used():
    runs = [weights(fit(learner([UDA(threshold=0., temperature=t)]))) for t in (.4, 1.)]
    assert not same(*runs)


@pytest.mark.parametrize(
    "make,said",
    [
        (lambda: InPL("low"), "energy_threshold='low'"),
        (lambda: InPL(margin=-1), "margin=-1"),
        (lambda: InPL(ema_decay=2), "ema_decay=2"),
        (lambda: UDA(temperature=0), "temperature=0"),
        (lambda: UDA(threshold=80), "threshold=80"),
        (lambda: UDA(tsa="cosine"), "tsa='cosine'.*'exp'"),
    ],
)
def test_bad_input(make, said):
    with pytest.raises(LabelKitError, match=said): make()


# class maps

class Watch(Callback):
    "What `look` says of each batch's record, after the losses"
    order = 6
    def __init__(self, look):
        self.look = look
        self.seen = []
    def after_pred(self):
        if self.training: self.seen.append(self.look(self.learn.supervision.record))


def test_inpl_of_pixels():
    "Each pixel has its energy; the margin is of the classes, the same for all pixels"
    cb = InPL(-1.5, margin=.5, ema_decay=.5)
    mean = torch.full((4,), .25)

    def look(s):
        nonlocal mean
        weak = s.outputs["inpl.weak"].detach()
        pixels = lambda t: t.movedim(1, -1).reshape(-1, 4)
        z = pixels(s.outputs["inpl.strong"].detach()) + .5*mean.log()
        each = F.cross_entropy(z, pixels(weak).argmax(1), reduction="none")
        energy = -weak.logsumexp(1)
        torch.testing.assert_close(s.losses["inpl"][0], (each*(energy.flatten() < -1.5)).mean())
        mean = .5*mean + .5*pixels(weak).softmax(1).mean(0)
        torch.testing.assert_close(cb.mean.value, mean)
        column = cb.ledger.columns["energy"][s.unlabeled_ids]
        torch.testing.assert_close(column, energy.flatten(1).mean(1))
    dense(cb, watch := Watch(look))
    assert len(watch.seen) > 1


def test_annealing_leaves_out_pixels():
    "The labeled loss is the mean over those that are not yet learned"
    cb = UDA(tsa="linear")

    def look(s):
        p = s.pred.detach().softmax(1)
        right = p.gather(1, s.y[:, None])[:, 0]
        kept = right <= .25 + .75*cb.learn.pct_train
        each = F.cross_entropy(s.pred.detach(), s.y, reduction="none")
        ours = s.loss_of(cb.learn.loss_func, s.pred, s.targets, s.weights)
        torch.testing.assert_close(ours.detach(), each[kept].mean())
        return kept.float().mean().item()
    dense(cb, watch := Watch(look))
    assert 0 < watch.seen[0] < 1
