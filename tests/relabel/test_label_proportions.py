"""Bags: LLP-BP's published potentials and exact marginals, messages against enumeration, rounds,
the proportion loss, wrong input"""
import itertools, json

import pytest, torch
from fastai.basics import Callback, DataLoader, DataLoaders, Learner, accuracy, set_seed
from fastai.callback import schedule  # noqa: F401  adds lr_find
from fastai.callback.training import ShortEpochCallback
from torch.nn import functional as F

from places import REFERENCES
from labelkit.data.loaders import from_arrays, label_dls
from labelkit.data.sets import digits
from labelkit.errors import LabelKitError
from labelkit.models import mlp, small_cnn, with_features
from labelkit.mix.mixup import MixUp
from labelkit.relabel.confident_relabel import ConfidentRelabel
from labelkit.relabel.label_proportions import (
    LabelProportions,
    bag_messages,
    flat_inputs,
    infer_labels,
    llp_potentials,
    neighbor_pairs,
    pairwise_bp,
    propagate_labels,
)
from labelkit.relabel.proportion_loss import ProportionLoss, bag_means, proportion_loss

REFERENCE = json.loads((REFERENCES/"llp_bp.json").read_text())


def published():
    i = REFERENCE["inputs"]
    bag = torch.empty(i["n"], dtype=torch.long)
    for b,members in enumerate(i["bags"]): bag[members] = b
    sim = torch.tensor(i["sim_pairs"])
    return bag,torch.tensor(i["bag_label_sum"]).float()[:,None],sim[:,:2].long(),sim[:,2]

def count(bag, counts, pairs, sims, bag_lam, sim_lam, classes=None):
    """Exact marginals [n, C] (classes: each sample has one of them) or [n, 1], by adding up every
    labelling"""
    n = len(bag)
    if classes:
        x = F.one_hot(
            torch.tensor(list(itertools.product(range(classes), repeat=n))), classes
        ).double()
    else: x = torch.tensor(list(itertools.product([0.,1.], repeat=n))).double()[...,None]
    in_bag = torch.stack([x[:,bag == b].sum(1) for b in range(len(counts))], 1)
    e = -bag_lam*(in_bag-counts).square().sum((1,2))
    if len(pairs): e = e - sim_lam*((x[:,pairs[:,0]]-x[:,pairs[:,1]]).square().sum(2)*sims).sum(1)
    return torch.einsum("s,snc->nc", e.softmax(0), x).float()

def gen(seed=0): return torch.Generator().manual_seed(seed)

class Keep(Callback):
    order = 6
    def before_fit(self): self.seen = []
    def after_loss(self):
        if self.training and hasattr(self.learn, "supervision"):
            self.seen.append((self.learn.supervision.record, self.learn.loss.item()))

def fit(cbs, dls=None, epochs=1, seed=0, pct=1., extra=(), lr=3e-3):
    set_seed(seed)
    dls = dls or digits(bag_size=8)
    keep = Keep()
    learn = Learner(dls, small_cnn(dls, width=4), cbs=cbs, metrics=accuracy)
    with learn.no_bar(), learn.no_logging():
        learn.fit(
            epochs,
            lr,
            cbs=[keep, *extra, *([ShortEpochCallback(pct, short_valid=False)] if pct < 1 else [])],
        )
    return learn,keep.seen


class TestPropagation:
    def test_published_potentials(self):
        i = REFERENCE["inputs"]
        e = REFERENCE["expected"]
        tol = REFERENCE["tolerance"]
        unary,pairs,w = llp_potentials(*published(), i["bag_lambda"], i["sim_lambda"])
        assert unary[:,0].tolist() == pytest.approx(e["log_potential_unary_of_1"], abs=tol)
        want = {tuple(sorted(p)): v for p,v in zip(e["pair_vars"], e["pair_log_potential_11"])}
        got = {tuple(p): v for p,v in zip(pairs.tolist(), w.tolist())}
        assert got.keys() == want.keys() and all(
            got[k] == pytest.approx(want[k], abs=tol) for k in want
        )

    def test_published_marginals(self):
        """The reference is exact; messages run in circles here, so they come near, and the counting
        above hits"""
        i = REFERENCE["inputs"]
        want = REFERENCE["expected"]["exact_marginals_by_enumeration"]
        assert count(*published(), i["bag_lambda"], i["sim_lambda"])[
            :, 0
        ].tolist() == pytest.approx(want, abs=1e-4)
        near = pairwise_bp(*llp_potentials(*published(), i["bag_lambda"], i["sim_lambda"]))[:,0]
        assert near.tolist() == pytest.approx(want, abs=.08)

    def test_pairwise_on_a_tree_is_exact(self):
        bag = torch.tensor([0,0,1,1,2,2])
        counts = torch.tensor([[1.],[2.],[0.]])
        pairs = torch.tensor([[1,2],[3,4]])
        sims = torch.tensor([.7,.4])
        p = pairwise_bp(*llp_potentials(bag, counts, pairs, sims, 2., 3.), steps=200)
        assert torch.allclose(p, count(bag, counts, pairs, sims, 2., 3.), atol=1e-4)

    @pytest.mark.parametrize("lam", [.3, 2., 10.])
    def test_exact_bags_without_loops(self, lam):
        bag = torch.tensor([0,0,0,0,1,1,1,2,2])
        counts = torch.tensor([[1.],[2.],[1.]])
        pairs = torch.tensor([[0,4],[5,7]])
        sims = torch.tensor([.9,.3])
        two = torch.cat([torch.bincount(bag)[:,None]-counts, counts], 1)
        p = propagate_labels(bag, two, pairs, sims, lam, 1.5, steps=150)
        want = count(bag, counts, pairs, sims, lam, 1.5)[:,0]
        assert torch.allclose(p[:,1], want, atol=1e-4) and torch.allclose(p.sum(1), torch.ones(9))

    def test_three_classes_without_loops(self):
        """One bag and no neighbours: counts say the same of each; a neighbour outside tells them
        apart"""
        bag = torch.tensor([0,0,1])
        counts = torch.tensor([[1.,1.,0.],[0.,1.,0.]])
        pairs = torch.tensor([[0,2]])
        sims = torch.tensor([1.])
        p = propagate_labels(bag, counts, pairs, sims, 5., 2., steps=200)
        want = count(bag, counts, pairs, sims, 5., 2., classes=3)
        assert torch.allclose(p, want, atol=.02) and p[0].argmax() == 1 and p[1].argmax() == 0

    @pytest.mark.parametrize("n", [1, 2, 5])
    def test_bag_messages(self, n):
        h = torch.randn(3, n, generator=gen())*2
        c = torch.tensor([0., 1., .5*n])
        lam = 1.7
        x = torch.tensor(list(itertools.product([0.,1.], repeat=n)))
        out = bag_messages(h, c, lam)
        for b in range(3):
            logp = x@h[b] - lam*(x.sum(1)-c[b])**2
            for i in range(n):
                on = x[:,i] == 1
                assert out[b, i].item() == pytest.approx(
                    (logp[on].logsumexp(0) - logp[~on].logsumexp(0) - h[b, i]).item(), abs=1e-4
                )

    def test_empty_places_count_nothing(self):
        h = torch.randn(2, 3, generator=gen())
        wide = torch.cat([h, torch.full((2, 4), -1e9)], 1)
        assert torch.allclose(
            bag_messages(wide, torch.tensor([1.0, 2.0]), 3.0)[:, :3],
            bag_messages(h, torch.tensor([1.0, 2.0]), 3.0),
            atol=1e-5,
        )

    def test_strict_counts_hold(self):
        dls = digits(bag_size=8)
        counts = dls.proportions*torch.bincount(dls.bags)[:,None]
        p = propagate_labels(dls.bags, counts, *neighbor_pairs(dls.train_ds.arrays.x), steps=40)
        found = torch.zeros_like(counts).index_add_(0, dls.bags, p)
        assert (found-counts).abs().mean() < .01 and (p.argmax(1) == dls.truth).float().mean() > .97

    def test_official_chances_too_small_for_a_float(self):
        "All classes are all but impossible for a sample: their ratios are still a distribution"
        bag = torch.zeros(2, dtype=torch.long)
        none = torch.zeros(0, 2, dtype=torch.long),torch.zeros(0)
        p = propagate_labels(bag, torch.tensor([[-9., -9.5, -10.]]), *none, 10., variant="official")
        assert torch.allclose(p.sum(1), torch.ones(2)) and p[0,0] > .9

    def test_large_bags_stay_finite(self):
        bag = torch.zeros(200, dtype=torch.long)
        p = propagate_labels(
            bag,
            torch.tensor([[150.0, 30.0, 20.0]]),
            *neighbor_pairs(torch.randn(200, 3, generator=gen())),
            10.0,
            10.0,
            steps=20,
        )
        assert p.isfinite().all() and torch.allclose(p.sum(1), torch.ones(200), atol=1e-5)

    def test_nobody_to_ask(self):
        "No neighbours: everybody is the bag's share"
        none = torch.zeros(0, 2, dtype=torch.long),torch.zeros(0)
        p = propagate_labels(
            torch.tensor([0, 0, 0, 0, 1, 1]), torch.tensor([[3.0, 1.0], [0.0, 2.0]]), *none, 50.0
        )
        assert torch.allclose(p[:,1], torch.tensor([.25]*4+[1.]*2), atol=1e-3)


class TestNeighbours:
    def test_by_angle_each_once(self):
        x = torch.tensor([[1.,0.],[2.,.1],[0.,1.],[.1,3.]])
        pairs,sims = neighbor_pairs(x, 1)
        assert pairs.tolist() == [[0,1],[2,3]] and (sims > 0).all() and (sims < 1).all()

    def test_kernel(self):
        x = torch.tensor([[1.,0.],[2.,0.]])
        assert neighbor_pairs(x, 1, scale=1.0)[1].tolist() == pytest.approx(
            [torch.tensor(-1.0).exp().item()]
        )
        assert torch.allclose(neighbor_pairs(x*100, 1)[1], neighbor_pairs(x, 1)[1])

    @pytest.mark.parametrize("chunk", [3, 64])
    def test_pieces(self, chunk):
        x = torch.randn(50, 4, generator=gen())
        a = neighbor_pairs(x, 5, chunk=chunk)
        b = neighbor_pairs(x, 5, chunk=1000)
        assert torch.equal(a[0], b[0]) and len(a[0]) <= 250 and (a[0][:,0] < a[0][:,1]).all()

    def test_nobody_is_its_own_neighbour(self):
        "Not even where others are the same: the nearest of each copy is another copy"
        x = torch.rand(3, 4, generator=gen()).repeat_interleave(2, 0)
        pairs,sims = neighbor_pairs(x, 1, scale=1.)
        assert pairs.tolist() == [[0, 1], [2, 3], [4, 5]] and sims.tolist() == [1.]*3
        assert (neighbor_pairs(x, 9, chunk=2)[0].diff(dim=1) > 0).all()

    def test_inputs_side_by_side(self):
        out = flat_inputs(torch.tensor([[1, 2]]), torch.tensor([[[.5], [1.]]]), torch.ones(1, 1))
        assert out.tolist() == [[.5, 1., 1.]]
        with pytest.raises(LabelKitError, match="inputs hold torch.int64.*pass features="):
            flat_inputs(torch.tensor([[1, 2]]))

    def test_fewer_than_asked(self): assert len(neighbor_pairs(torch.rand(3, 2), 5)[0]) == 3


class TestInference:
    def problem(self):
        dls = digits(bag_size=8)
        return dls.train_ds.arrays.x.flatten(1),dls.bags,dls.proportions

    @pytest.mark.parametrize("variant,scale,lam", [("paper", None, 1.), ("official", 1., 10.)])
    def test_what_each_variant_takes(self, variant, scale, lam):
        x,bag,shares = self.problem()
        counts = shares*torch.bincount(bag)[:,None]
        more = dict(steps=5, variant=variant)
        want = propagate_labels(bag, counts, *neighbor_pairs(x, 3, scale), sim_lam=lam, **more)
        assert torch.equal(infer_labels(x, bag, shares, 3, variant, steps=5), want)
        own = propagate_labels(bag, counts, *neighbor_pairs(x, 3, scale), sim_lam=.5, **more)
        assert torch.equal(infer_labels(x, bag, shares, 3, variant, sim_lam=.5, steps=5), own)

    def test_counts_of_bags_of_unequal_size(self):
        "Without neighbours each member is its bag's share, also in bags of unequal size"
        bag = torch.tensor([1, 0, 0, 0, 1, 2])
        shares = torch.tensor([[1/3, 2/3], [.5, .5], [0., 1.]])
        x = torch.zeros(6, 2)
        x[torch.arange(6), torch.arange(6) % 2] = 1
        p = infer_labels(x, bag, shares, 1, sim_lam=0., bag_lam=50.)
        assert torch.allclose(p, shares[bag], atol=.01)


class TestLabelProportions:
    def test_targets_by_sample(self):
        learn,seen = fit(LabelProportions(steps=20), pct=.2)
        cb = learn.label_proportions
        for s,_ in seen:
            assert torch.equal(s.targets, cb.table.targets[cb.table.place[s.ids]]) and torch.equal(
                s.y, learn.dls.proportions[learn.dls.bags[s.ids]]
            )
        assert (cb.ledger.frame().suggested_label == cb.ledger.frame().true_label).mean() > .95

    def test_hard(self):
        _,seen = fit(LabelProportions(steps=20, hard=True), pct=.1)
        assert set(seen[0][0].targets.unique().tolist()) == {0., 1.}

    @pytest.mark.parametrize(
        "rounds,epochs,at", [(2, 4, [0, 2]), (3, 3, [0, 1, 2]), (1, 3, [0]), (4, 2, [0, 1])]
    )
    def test_rounds(self, rounds, epochs, at):
        learn,_ = fit(LabelProportions(rounds=rounds, steps=5), epochs=epochs, pct=.1)
        cb = learn.label_proportions
        assert cb.ledger.epochs == at and cb.schedule.done == len(at)

    def test_every_fit_has_its_rounds(self):
        learn,_ = fit(LabelProportions(rounds=2, steps=5), epochs=2, pct=.1)
        cb = learn.label_proportions
        with learn.no_bar(), learn.no_logging():
            learn.fit(3, 1e-3, cbs=ShortEpochCallback(.1, short_valid=False))
        assert cb.schedule.done == 4 and cb.ledger.epochs == [0, 1, 0, 1]

    def test_a_round_replaces_the_one_before(self, monkeypatch):
        "The second round knows nothing but its own inference"
        answers = [torch.eye(10)[torch.zeros(1258).long()], torch.eye(10)[torch.ones(1258).long()]]
        calls = []
        def infer(*args, **kwargs):
            calls.append(1)
            return answers[len(calls)-1]
        monkeypatch.setattr("labelkit.relabel.label_proportions.infer_labels", infer)
        _,seen = fit(LabelProportions(rounds=2), epochs=2, pct=.1)
        half = len(seen)//2
        assert all((s.targets[:,0] == 1).all() for s,_ in seen[:half])
        assert all((s.targets[:,1] == 1).all() for s,_ in seen[half:])

    @pytest.mark.parametrize("empty", [0, 3])
    def test_shares_belong_to_their_bag_when_one_is_empty(self, empty):
        """Four bags, one of which nobody is in; members of the others share one class, so that each
        has the label of its own bag"""
        bag = torch.tensor([k for k in range(4) if k != empty]).repeat_interleave(8)
        shares = torch.eye(4)
        x = torch.rand(24, 1, 8, 8, generator=gen())
        items = [(x[i], shares[b]) for i,b in enumerate(bag.tolist())]
        dls = label_dls(DataLoaders(DataLoader(items, bs=8, shuffle=True), DataLoader(items, bs=8)))
        dls.c = 4
        learn = Learner(
            dls, small_cnn(c=4, c_in=1, width=2), loss_func=torch.nn.CrossEntropyLoss(),
            cbs=LabelProportions(bags=(bag, shares), steps=20),
        )
        with learn.no_bar(), learn.no_logging(): learn.fit(1)
        cb = learn.label_proportions
        assert torch.equal(cb.table.targets[cb.table.place].argmax(1), bag)

    def test_samples_without_a_bag_keep_what_they_have(self):
        dls = digits(bag_size=8)
        bag = dls.bags.clone()
        bag[::5] = -1
        learn,seen = fit(LabelProportions(steps=5, bags=(bag, dls.proportions)), dls, pct=.1)
        for s,_ in seen:
            out = bag[s.ids] < 0
            assert torch.equal(s.targets[out], s.y[out]) and out.any()
            assert not torch.equal(s.targets[~out], s.y[~out])

    def test_tables_of_pandas(self):
        import pandas as pd
        dls = digits(bag_size=8)
        bags = (pd.Series(dls.bags.numpy()), pd.DataFrame(dls.proportions.numpy()))
        a,b = (fit(LabelProportions(steps=5, bags=o), digits(bag_size=8), pct=.05)[0]
               for o in (bags, None))
        assert torch.equal(*(o.label_proportions.table.targets for o in (a, b)))

    def test_later_rounds_use_the_network(self, monkeypatch):
        seen = []
        def spy(model, x):
            seen.append(model.training)
            return with_features(model, x)
        monkeypatch.setattr("labelkit.relabel.label_proportions.with_features", spy)
        fit(LabelProportions(rounds=1, steps=5), epochs=2, pct=.1)
        assert not seen
        fit(LabelProportions(rounds=2, steps=5), epochs=2, pct=.1)
        assert seen and not any(seen), "features are taken in evaluation mode"

    def test_first_features(self):
        learn, _ = fit(
            LabelProportions(
                rounds=1,
                steps=20,
                features=lambda x: x.flatten(1) * 0 + torch.rand(len(x), 64, generator=gen()),
            ),
            pct=0.1,
        )
        f = learn.label_proportions.ledger.frame()
        assert (f.suggested_label == f.true_label).mean() < .9

    def test_binary(self):
        x = torch.cat(
            [torch.randn(60, 3, generator=gen()) - 2, torch.randn(40, 3, generator=gen(1)) + 2]
        )
        y = (torch.arange(100) >= 60).long()
        dls = from_arrays(x, y, x, y, bag_size=5, bs=20)
        learn = Learner(
            dls,
            mlp(c=2, c_in=3, stats=([0.0] * 3, [1.0] * 3)),
            cbs=LabelProportions(),
            metrics=accuracy,
        )
        with learn.no_bar(), learn.no_logging(): learn.fit(3, 1e-2)
        assert learn.final_record[-1] > .9

    def test_beats_the_soft_labels(self):
        dls = lambda: digits(bag_size=32)
        a, b = (
            fit(cb, dls(), epochs=4, lr=1e-2)[0].final_record[-1]
            for cb in ([], LabelProportions(steps=40))
        )
        assert b > a + .1

    def test_not_in_a_search(self):
        learn,_ = fit(LabelProportions(rounds=0), pct=.05)
        cb = LabelProportions(steps=5)
        learn.add_cb(cb)
        with learn.no_bar(), learn.no_logging(): learn.lr_find(num_it=4, show_plot=False)
        assert cb.schedule.done == 0 and not cb.found

    def test_own_loaders_and_bags(self):
        g = gen()
        y = torch.randint(0, 2, (40,), generator=g)
        bag = torch.arange(40)//4
        shares = F.one_hot(y, 2).float().view(10, 4, 2).mean(1)
        items = [
            (
                torch.rand(1, 8, 8, generator=g) * 0.2
                + torch.linspace(0, 1, 64).view(1, 8, 8).flip(1) * v
                + (1 - v) * torch.linspace(0, 1, 64).view(1, 8, 8),
                shares[b],
            )
            for v, b in zip(y.tolist(), bag.tolist())
        ]
        dls = label_dls(DataLoaders(DataLoader(items, bs=8, shuffle=True), DataLoader(items, bs=8)))
        dls.c = 2
        learn = Learner(
            dls,
            small_cnn(c=2, c_in=1, width=4),
            loss_func=torch.nn.CrossEntropyLoss(),
            cbs=LabelProportions(bags=(bag, shares)),
        )
        with learn.no_bar(), learn.no_logging(): learn.fit(1)
        p = learn.label_proportions.table.targets
        assert (p.argmax(1) == y).float().mean() > .9

    def test_mixed_afterwards(self):
        _,seen = fit([LabelProportions(steps=10), MixUp()], pct=.1)
        assert torch.allclose(seen[0][0].targets.sum(1), torch.ones(64), atol=1e-4)

    def test_other_relabelers_still_want_class_numbers(self):
        with pytest.raises(LabelKitError, match="needs one class number for each sample"):
            fit(ConfidentRelabel())


class TestProportionLoss:
    def test_by_hand(self):
        p = torch.tensor([[.9,.1],[.2,.8],[.5,.5]])
        shares = torch.tensor([[.5,.5],[.5,.5],[1.,0.]])
        bag = torch.tensor([7,7,2])
        want = (
            2
            * (
                0.5 * torch.log(torch.tensor(0.5 / 0.55))
                + 0.5 * torch.log(torch.tensor(0.5 / 0.45))
            )
            + torch.log(torch.tensor(2.0))
        ) / 3
        assert proportion_loss(p.log(), shares, bag).item() == pytest.approx(want.item(), abs=1e-6)

    def test_means(self):
        m,n = bag_means(torch.tensor([[1.],[3.],[5.]]), torch.tensor([9,4,9]))
        assert m.tolist() == [[3.],[3.]] and n.tolist() == [1,2]

    def test_zero_when_the_means_agree(self):
        z = torch.randn(8, 4)
        bag = torch.arange(8)//4
        t = bag_means(z.softmax(1), bag)[0][bag]
        assert proportion_loss(z, t, bag).abs() < 1e-6
        assert proportion_loss(
            60 * torch.eye(4)[[0, 1, 2, 3]], torch.full((4, 4), 0.25), torch.zeros(4).long()
        ).isfinite()

    def test_sure_and_wrong_is_told_so(self):
        "The loss is that of 64 bits, and reaches the member that is least sure"
        z = torch.tensor([[90., 0., 3.], [95., 1., 0.]], requires_grad=True)
        shares = torch.tensor([[.5, .5, 0.]]*2)
        loss = proportion_loss(z, shares, torch.tensor([3, 3]))
        p = z.double().softmax(1).mean(0)
        assert loss.item() == pytest.approx((.5*(.5/p[:2]).log()).sum().item(), rel=1e-5)
        grad, = torch.autograd.grad(loss, z)
        want, = torch.autograd.grad((.5*(.5/z.double().softmax(1).mean(0)[:2]).log()).sum(), z)
        assert torch.allclose(grad, want.float(), atol=1e-5) and grad[0,1] < -.4

    def test_empty_and_unequal_bags(self):
        "A bag of three counts three times a bag of one; without samples there is no loss"
        z = torch.randn(4, 3, generator=gen())
        t = torch.eye(3)[[0, 0, 0, 1]]
        bag = torch.tensor([5, 5, 5, 2])
        three,one = (proportion_loss(z[o], t[o], bag[o]) for o in (bag == 5, bag == 2))
        assert torch.allclose(proportion_loss(z, t, bag), (3*three+one)/4)
        assert proportion_loss(z[:0], t[:0], bag[:0]) == 0

    def test_samples_without_a_bag_are_in_none(self):
        dls = digits(bag_size=8)
        bag = dls.bags.clone()
        bag[::3] = -1
        _,seen = fit(ProportionLoss(bags=(bag, dls.proportions)), dls, pct=.1)
        s,loss = seen[0]
        some = bag[s.ids] >= 0
        want = proportion_loss(s.pred[some], s.y[some], bag[s.ids][some])
        assert loss == pytest.approx(want.item(), abs=1e-6) and 0 < some.sum() < len(some)

    def test_in_a_fit(self):
        learn,seen = fit(ProportionLoss(), pct=.1)
        s,loss = seen[0]
        bag = learn.dls.bags[s.ids]
        assert bag.unique(return_counts=True)[1].tolist() == [8]*8
        assert (
            loss
            == pytest.approx(
                proportion_loss(s.pred, learn.dls.proportions[bag], bag).item(), abs=1e-6
            )
            and s.labeled_weight == 0
        )

    def test_keep(self):
        _,seen = fit(ProportionLoss(.5, soft_weight=.25), pct=.1)
        s,loss = seen[0]
        assert loss == pytest.approx(
            0.5 * s.losses["proportion_loss"][0].item()
            + 0.25 * F.cross_entropy(s.pred, s.y).item(),
            abs=1e-5,
        )

    def test_learns(self):
        a, b = (
            fit(cb, digits(bag_size=32), epochs=4, lr=1e-2)[0].final_record[-1]
            for cb in ([], ProportionLoss())
        )
        assert b > a


class TestRefused:
    @pytest.mark.parametrize("cls", [LabelProportions, ProportionLoss])
    def test_no_bags(self, cls):
        with pytest.raises(LabelKitError, match="dls has no bags: pass bag_size="):
            fit(cls(), digits())

    @pytest.mark.parametrize("cls", [LabelProportions, ProportionLoss])
    @pytest.mark.parametrize(
        "change,text",
        [
            (lambda b, s: (b[:5], s), r"\(5,\) bag numbers for 1258 samples"),
            (lambda b, s: (b, s[:3]), "pass a row for each bag"),
            (lambda b, s: (b, 2 * s), "shares of bag 0 are not a distribution"),
            (lambda b, s: (b, s[:, 0]), "pass a row for each bag"),
        ],
    )
    def test_bags(self, cls, change, text):
        dls = digits(bag_size=8)
        with pytest.raises(LabelKitError, match=text):
            fit(cls(bags=change(dls.bags, dls.proportions)), dls)

    @pytest.mark.parametrize(
        "kwargs",
        [
            dict(variant="map"),
            dict(rounds=-1),
            dict(n_neighbors=0),
            dict(bag_lam=-1),
            dict(sim_lam=-1),
            dict(damping=1.0),
            dict(steps=0),
        ],
    )
    def test_arguments(self, kwargs):
        (name,value), = kwargs.items()
        with pytest.raises(LabelKitError, match=f"{name}={value!r}"): LabelProportions(**kwargs)
