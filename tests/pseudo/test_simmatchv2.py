"""SimMatchV2: the authors' numbers, values worked by hand, the banks, the teacher."""
import json
from types import SimpleNamespace

import pytest
import torch
from fastai.basics import Callback
from torch import nn, tensor
from torch.nn import functional as F

from contract import data, fit, learner, model, same, weights
from labelkit.errors import LabelKitError
from labelkit.models import head_of
from labelkit.parts.banks import Bank
from labelkit.parts.heads import normalize_features
from labelkit.parts.running import align_distribution
from labelkit.pseudo.simmatchv2 import (
    SimMatchV2,
    decay_for,
    edge_edge_loss,
    edge_losses,
    edges,
    node_edge_loss,
    propagated_labels,
)


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def by_inverse(f, p, bank, labels, k, t, alpha):
    "The paper's formula, one sample at a time in 64 bits"
    out = []
    for x,y in zip(f.double(), p.double()):
        near = (bank.double()@x).topk(min(k, len(bank))).indices
        nodes = torch.cat([x[None], bank.double()[near]])
        Y = torch.cat([y[None], labels.double()[near]])
        A = (nodes@nodes.T/t).fill_diagonal_(-torch.inf).softmax(1)
        out.append(((1-alpha)*torch.linalg.inv(torch.eye(len(A)).double()-alpha*A)@Y)[0])
    return torch.stack(out).float()


def test_reference(root):
    (ref,) = [
        o
        for o in json.loads((root / "tests/reference/pseudo.json").read_text())
        if o["name"] == "simmatchv2_graph_consistency"
    ]
    i = ref["inputs"]
    want = ref["expected"]
    tol = ref["tolerance_abs"]
    weak, strong, logits, l_bank, u_bank, u_labels = (
        tensor(i[k])
        for k in (
            "feat_weak (L2-normalised)",
            "feat_strong",
            "logits_weak",
            "l_bank",
            "u_bank",
            "u_labels",
        )
    )
    close = lambda a,b: torch.testing.assert_close(a, tensor(b), atol=tol, rtol=0)
    mean = torch.full((3,), 1/3)
    raw = logits.softmax(1)
    probs = align_distribution(raw, mean)
    close(probs, want["prob_ku_after_DA"])
    close((i["da_m"]*mean + (1-i["da_m"])*raw.mean(0))[None], want["da_after"])
    close(
        propagated_labels(
            weak,
            probs,
            l_bank,
            F.one_hot(tensor(i["l_labels"])).float(),
            i["topn"],
            i["t"],
            i["alpha"],
        ),
        want["pseudo_label"],
    )
    e = edges(strong, u_bank, i["t"])
    close(edge_edge_loss(e, edges(weak, u_bank, i["t"])), want["loss_ee"])
    close(node_edge_loss(e, u_labels, probs), want["loss_ne"])


@pytest.mark.parametrize("n,k", [(12, 5), (12, 12), (12, 100), (1, 3)])
@pytest.mark.parametrize("alpha", [0., .1, .8])
@pytest.mark.parametrize("t", [.01, .1, 1.])
def test_propagation_is_the_inverse(n, k, alpha, t):
    f = unit(7, 4)
    bank = unit(n, 4, seed=1)
    p = torch.rand(7, 3).softmax(1)
    labels = F.one_hot(torch.arange(n) % 3, 3).float()
    torch.testing.assert_close(
        propagated_labels(f, p, bank, labels, k, t, alpha),
        by_inverse(f, p, bank, labels, k, t, alpha),
        atol=2e-5,
        rtol=1e-4,
    )


@pytest.mark.parametrize("n", [1, 64, 150])
@pytest.mark.parametrize("k", [3, 20])
def test_propagation_of_many_samples_is_that_of_each(n, k):
    f = unit(n, 4)
    bank = unit(20, 4, seed=1)
    p = torch.rand(n, 3).softmax(1)
    labels = F.one_hot(torch.arange(20) % 3, 3).float()
    got = propagated_labels(f, p, bank, labels, k, .1, .3)
    each = [propagated_labels(f[i:i+1], p[i:i+1], bank, labels, k, .1, .3) for i in range(n)]
    torch.testing.assert_close(got, torch.cat([p[:0], *each]))


@pytest.mark.parametrize("k", [3, 8])
@pytest.mark.parametrize("t", [.01, .1])
def test_rows_that_hold_nothing_are_left_out(k, t):
    f = unit(5, 4)
    bank = unit(8, 4, seed=1)
    p = torch.rand(5, 3).softmax(1)
    labels = F.one_hot(torch.arange(8) % 3, 3).float()
    known = torch.arange(8) % 2 == 0
    holes = bank*known[:,None],labels*known[:,None]
    torch.testing.assert_close(
        propagated_labels(f, p, *holes, k, t, 0.3, known),
        propagated_labels(f, p, bank[known], labels[known], k, t, 0.3),
        atol=1e-5,
        rtol=1e-4,
    )
    torch.testing.assert_close(
        propagated_labels(
            f, p, torch.zeros(8, 4), torch.zeros(8, 3), k, t, 0.3, torch.zeros(8, dtype=torch.bool)
        ),
        p,
    )
    e = edges(f, holes[0], t, known)
    torch.testing.assert_close(e[:,known], edges(f, bank[known], t))
    assert (e[:,~known].exp() == 0).all()


def test_the_weak_view_teaches_the_edges_of_every_strong_view():
    weak = unit(3, 4).requires_grad_()
    strong = unit(6, 4, seed=1).requires_grad_()
    bank = unit(5, 4, seed=2)
    labels = torch.rand(5, 3).softmax(1)
    target = torch.rand(3, 3).softmax(1)
    known = tensor([True, True, False, True, True])
    agree,arrive = edge_losses(strong, weak.detach(), target, bank, labels, known, .2)
    far = [F.softmax(o@bank[known].T/.2, 1) for o in (strong, weak)]
    want = -(far[1].repeat(2, 1)*far[0].log()).sum(1).mean()
    torch.testing.assert_close(agree, want)
    arrived = (far[0]@labels[known]).log()
    torch.testing.assert_close(arrive, -(target.repeat(2, 1)*arrived).sum(1).mean())
    agree.backward()
    (grad,) = torch.autograd.grad(want, strong)
    torch.testing.assert_close(strong.grad, grad)
    nobody = edge_losses(strong, weak.detach(), target, bank, labels, torch.zeros(5).bool())
    assert [o.item() for o in nobody] == [0., 0.]


def test_the_bank_keeps_by_id():
    widths = dict(features=2, labels=2)
    b = Bank(tensor([1, 3, 4, 8]), 10, widths, size=2)
    assert b.size == 2 and b.place[[1, 4]].tolist() == [0, 1]                # every second one
    b.write(tensor([3, 4]), features=tensor([[9.,9.],[0.,1.]]), labels=torch.eye(2))
    assert (
        b.known.tolist() == [False, True]
        and b["features"].tolist() == [[0, 0], [0, 1]]
        and b["labels"][1].tolist() == [0, 1]
    )
    again = Bank(tensor([1, 3, 4, 8]), 10, widths, size=2)
    again.load_state_dict(b.state_dict())
    assert torch.equal(again["features"], b["features"]) and torch.equal(again.known, b.known)


def test_the_teacher_remembers_a_share_of_the_training():
    assert decay_for(2000) == pytest.approx(.99) and decay_for(10**6) == .999 and decay_for(3) == 0
    learn = fit(learner([cb := SimMatchV2()]), 3)
    decay = decay_for(3*len(learn.dls.train))
    assert cb.teacher.decay == cb.teacher_projector.decay == decay
    fit(learner([cb := SimMatchV2(ema_decay=.999)]))
    assert cb.teacher.decay == .999


def test_the_share_is_of_the_fit_that_runs():
    "Not of a learning-rate search before it, nor of an earlier fit"
    learn = learner([cb := SimMatchV2()])
    with learn.no_bar(), learn.no_logging(): learn.lr_find(num_it=60, show_plot=False)
    n = len(learn.dls.train)
    for epochs in (6, 12):
        fit(learn, epochs)
        assert cb.teacher.decay == cb.teacher_projector.decay == decay_for(epochs*n)
    assert decay_for(6*n) != decay_for(12*n)


def test_banks_and_teacher_in_a_fit():
    cb = SimMatchV2(ema_decay=.75)
    history = []

    class Weights(Callback):
        order = 1000
        def before_train(self):
            history.append(
                [
                    head_of(self.learn.model).weight.detach().clone(),
                    cb.projector.module.layers[1].weight.detach().clone(),
                ]
            )

        def after_batch(self):
            if self.training:
                history.append(
                    [
                        head_of(self.learn.model).weight.detach().clone(),
                        cb.projector.module.layers[1].weight.detach().clone(),
                    ]
                )

    learn = fit(learner([cb, Weights()]))
    mean = history[0]
    for i,w in enumerate(history[1:]):
        mean = [torch.lerp(b, a, min(.75, 1-1/(i+2))) for a,b in zip(mean, w)]
    torch.testing.assert_close(cb.teacher.model.head.weight, mean[0])
    torch.testing.assert_close(cb.teacher_projector.model.layers[1].weight, mean[1])
    assert not torch.equal(history[0][1], history[-1][1]), "the projector is not trained"
    given = learn.dls.given
    assert cb.graph.labeled.known.all()
    assert torch.equal(cb.graph.labeled["labels"].argmax(1), given[given >= 0])
    torch.testing.assert_close(
        cb.graph.unlabeled["features"][cb.graph.unlabeled.known].norm(dim=1),
        torch.ones(int(cb.graph.unlabeled.known.sum())),
    )
    torch.testing.assert_close(cb.graph.mean.value.sum(), tensor(1.))
    assert len(cb.graph.unlabeled["features"]) == (given == -1).sum()


def test_the_bank_of_labeled_samples_holds_their_own_features():
    "What the teacher said of the last batch's labeled rows, at their ids, and of no other rows"
    seen = {}
    class Seen(SimMatchV2):
        name = "simmatchv2"
        def predict(self, s):
            logits = super().predict(s)
            weak = s.own(self).weak
            told = self.teacher_projector(self.teacher(weak, features=True)[1])
            seen.update(ids=s.ids, told=told[:len(s.ids)], rest=told[len(s.ids):])
            return logits
    fit(learner([cb := Seen()]))
    bank = cb.graph.labeled
    held = bank["features"][bank.place[seen["ids"]]]
    torch.testing.assert_close(held, seen["told"])
    assert torch.cdist(held, seen["rest"]).min() > 1e-3


def test_losses_of_a_step():
    "The node loss has the propagated label and the aligned confidence; several views are averaged"
    cb = SimMatchV2(threshold=.12, views=2, node_weight=10.)
    seen = []

    class Check(Callback):
        order = 6
        def before_batch(self):
            if not self.training: return
            mean = cb.graph.mean.value.clone()
            self.before = SimpleNamespace(mean=mean, l=cb.graph.labeled.state_dict())

        def after_pred(self):
            if not self.training: return
            s = self.learn.supervision.record
            n = len(self.learn.supervision.record.x)
            logits,f = cb.teacher(s.own(cb).weak, features=True)
            f = cb.teacher_projector(f)
            p = align_distribution(logits[n:].softmax(1), self.before.mean)
            l = {k: v[:-1] for k,v in self.before.l["rows"].items()}
            l["known"] = self.before.l["seen"][:-1]
            target = (
                by_inverse(
                    f[n:], p, l["features"][l["known"]], l["labels"][l["known"]], 128, 0.1, 0.1
                )
                if l["known"].any()
                else p
            )
            ce = torch.stack(
                [
                    F.cross_entropy(z, target, reduction="none") * (p.amax(1) >= 0.12)
                    for z in s.outputs["simmatchv2.strong"].chunk(2)
                ]
            ).mean()
            seen.append((s.losses["simmatchv2"][0].item(), 10*ce.item()))
    fit(learner([cb, Check()]), 2)
    a,b = zip(*seen)
    assert a == pytest.approx(b, rel=1e-4) and a[-1] > 0


def test_nothing_is_learned_in_a_search():
    learn = learner([cb := SimMatchV2()])
    with learn.no_bar(), learn.no_logging(): learn.lr_find(num_it=6, show_plot=False)
    assert (
        not cb.graph.labeled.known.any()
        and not cb.graph.unlabeled.known.any()
        and cb.teacher.steps == 0
        and torch.equal(cb.graph.mean.value, torch.full((10,), 0.1))
    )


def test_a_bank_smaller_than_the_data():
    learn = fit(learner([cb := SimMatchV2(bank=20, k=3, dim=8)]), 2)
    assert cb.graph.unlabeled["features"].shape == (20, 8) and all(
        torch.isfinite(v).all() for v in weights(learn).values()
    )
    assert not same(weights(learn), weights(fit(learner([SimMatchV2(k=3, dim=8)]), 2)))


def test_feature_normalisation_is_in_front_of_the_head():
    net = model()
    x = torch.rand(4, 1, 8, 8)
    head = net.head
    want = head(F.layer_norm(net.embed(net.normalize(x)), (head.in_features,)))
    torch.testing.assert_close(normalize_features(net)(x), want)
    assert head_of(net) is head
    with pytest.raises(LabelKitError, match="no linear layer"):
        normalize_features(nn.Sequential(nn.Flatten()))


def test_several_labels_are_refused():
    from fastai.basics import Learner
    dls = data()
    learn = Learner(dls, model(), loss_func=nn.BCEWithLogitsLoss(), cbs=[SimMatchV2()])
    for dl in (dls.train, dls.valid):
        dl.dataset.arrays.y = F.one_hot(dl.dataset.arrays.y.clamp_min(0), 10).float()
    with pytest.raises(LabelKitError, match="kind 'multi', and SimMatchV2"): fit(learn)


@pytest.mark.parametrize(
    "kwargs,said",
    [
        (dict(alpha=1.0), "alpha=1.0"),
        (dict(threshold=70), "threshold=70"),
        (dict(temperature=0), "temperature=0"),
        (dict(k=0), "k=0"),
        (dict(bank=0), "bank=0"),
        (dict(views=0), "views=0"),
        (dict(edge_weight=-1), "edge_weight=-1"),
        (dict(weight=-1), "weight=-1"),
    ],
)
def test_bad_input(kwargs, said):
    with pytest.raises(LabelKitError, match=said): SimMatchV2(**kwargs)
