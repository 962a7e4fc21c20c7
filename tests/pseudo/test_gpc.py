"GPC: marginal likelihoods by hand, moves that go both ways, and labeled samples that stay"
import math

import pytest
import torch
from torch import tensor
from torch.nn import functional as F

from contract import data, fit, learner
from labelkit.errors import LabelKitError
from labelkit.parts.contrast import nt_xent
from labelkit.pseudo.gpc import (
    GPC, cluster_accuracy, cluster_samples, estimated_number, found_classes, grow, half_of_five,
    log_marginal, log_split_ratio, main_directions, merge_clusters, more_centres, prototypes_of,
    seeded_k_means, split_clusters,
)
from mix.mixtools import Keep

close = torch.testing.assert_close


def rng(seed=0): return torch.Generator().manual_seed(seed)

def heaps(*at, n=60, spread=.1, seed=0):
    g = rng(seed)
    return torch.cat([tensor(o) + spread*torch.randn(n, len(o), generator=g) for o in at])


class TestMarginal:
    def test_is_the_product_of_predictions(self):
        "p(x₁, x₂) = p(x₁)·p(x₂ | x₁), where the second is a Student distribution after x₁"
        x = tensor([.3, -.4]).double()
        kappa = .5
        psi = .2
        nu = 2
        k = kappa+1
        v = nu+1
        mean = x[0]/k
        scale = psi + kappa/k*x[0]**2
        s = scale*(k+1)/k
        second = torch.distributions.StudentT(v, mean, (s/v)**.5).log_prob(x[1])
        first = torch.distributions.StudentT(nu, 0., (psi*(kappa+1)/kappa/nu)**.5).log_prob(x[0])
        got = log_marginal(x[:, None], tensor([0.]), kappa, psi)
        assert got == pytest.approx(float(first+second), abs=1e-5)

    def test_one_sample_in_one_dimension(self):
        got = log_marginal(tensor([[1.]]), tensor([0.]), 1., .5)
        want = math.log(math.gamma(1.5)/math.sqrt(math.pi)*2**-1.5)
        assert got == pytest.approx(want, abs=1e-6)

    def test_order_and_place_do_not_matter(self):
        x = torch.randn(9, 3, generator=rng())
        a = log_marginal(x, x.mean(0))
        assert a == pytest.approx(log_marginal(x.flip(0) + 5, x.mean(0) + 5), abs=1e-3)


class TestMoves:
    def test_two_heaps_are_split_and_stay(self):
        x = heaps([0., 0.], [3., 3.])
        zero = torch.zeros(len(x), dtype=torch.long)
        centres = split_clusters(x, x.mean(0, keepdim=True), zero, 0, rng())
        assert len(centres) == 2
        _,cluster = seeded_k_means(x, centres, torch.full((len(x),), -1))
        assert len(merge_clusters(x, centres, cluster, 0, rng())) == 2

    def test_a_merge_replaces_both_parents(self):
        x = heaps([0., 0.], n=100)
        two = x[:2]
        _,cluster = seeded_k_means(x, two, torch.full((100,), -1))
        centres = merge_clusters(x, two, cluster, 0, rng())
        assert len(centres) == 1
        close(centres[0], x.mean(0))

    def test_known_clusters_are_left_alone(self):
        x = heaps([0., 0.], [3., 3.])
        zero = torch.zeros(len(x), dtype=torch.long)
        centre = x.mean(0, keepdim=True)
        assert torch.equal(split_clusters(x, centre, zero, 1, rng()), centre)
        both = torch.cat([centre, centre])
        cluster = torch.arange(len(x)) % 2
        assert torch.equal(merge_clusters(x, both, cluster, 2, rng()), both)

    def test_a_new_cluster_may_join_a_known_one(self):
        x = heaps([0., 0.], [3., 3.])
        cluster = torch.arange(120) // 60
        cluster[30:60] = 2  # a part of the known heap that was taken for a new class
        centres = torch.stack([x[cluster == k].mean(0) for k in range(3)])
        left = merge_clusters(x, centres, cluster, 1, rng())
        assert len(left) == 2
        close(left[0], centres[0])

    def test_small_clusters_are_not_split(self):
        x = heaps([0., 0.], [3., 3.], n=5)
        zero = torch.zeros(10, dtype=torch.long)
        assert len(split_clusters(x, x.mean(0, keepdim=True), zero, 0, rng())) == 1

    def test_empty_clusters_go(self):
        x = heaps([0., 0.], [3., 3.])
        far = torch.cat([x[:1], x[-1:], tensor([[90., 90.]])])
        centres,cluster = grow(x, far, torch.full((len(x),), -1), 0, rng())
        assert len(centres) == 2 and set(cluster.tolist()) == {0, 1}

    def test_it_shrinks_to_what_is_there(self):
        x = heaps([0., 0.], [3., 0.], [0., 3.], [3., 3.])
        given = torch.full((len(x),), -1)
        given[:20] = 0
        known = x[:20].mean(0, keepdim=True)
        centres,cluster = grow(x, more_centres(x, known, 12, rng()), given, 1, rng(1))
        assert len(centres) == 4
        assert (cluster[:60] == 0).all()

    def test_a_move_that_explains_less_is_sometimes_made(self, monkeypatch):
        "With probability exp(ratio), so that the mixture does not stay in its first mistake"
        monkeypatch.setattr("labelkit.pseudo.gpc.log_split_ratio", lambda *a, **k: -1.)
        x = heaps([0., 0.], [3., 3.], n=10)
        zero = torch.zeros(len(x), dtype=torch.long)
        centre = x.mean(0, keepdim=True)
        split = [len(split_clusters(x, centre, zero, 0, rng(i))) == 2 for i in range(150)]
        assert sum(split)/150 == pytest.approx(math.exp(-1), abs=.12)

    @pytest.mark.parametrize("move", [split_clusters, merge_clusters])
    def test_the_prior_is_of_all_samples(self, move, monkeypatch):
        seen = []
        def spy(a, b, mean, **prior):
            seen.append((mean, prior))
            return 0.
        monkeypatch.setattr("labelkit.pseudo.gpc.log_split_ratio", spy)
        x = heaps([0., 0.], [3., 3.], [9., 0.], n=20)
        cluster = torch.arange(60)//20
        centres = torch.stack([x[cluster == k].mean(0) for k in range(3)])
        move(x, centres, cluster, 1, rng(), kappa=.5, scale=.25)
        assert seen and all(torch.equal(m, x.mean(0)) for m,_ in seen)
        assert all(o == dict(kappa=.5, scale=.25) for _,o in seen)

    def test_a_ratio_of_one_sample(self):
        assert math.isfinite(log_split_ratio(torch.zeros(1, 2), torch.ones(1, 2), torch.zeros(2)))


class TestOthers:
    def test_labeled_samples_stay(self):
        x = heaps([0., 0.], [5., 5.])
        given = torch.full((len(x),), -1)
        given[0] = 1  # it lies with the others, and is said not to
        _,cluster = seeded_k_means(x, tensor([[0., 0.], [5., 5.]]), given)
        assert cluster[0] == 1 and (cluster[1:60] == 0).all()

    def test_accuracy(self):
        y = tensor([0, 0, 1, 1, 2])
        assert cluster_accuracy(tensor([5, 5, 0, 0, 1]), y) == 1
        assert cluster_accuracy(torch.zeros(5, dtype=torch.long), y) == pytest.approx(.4)
        assert cluster_accuracy(torch.arange(5), y) == pytest.approx(.6)

    def test_prototypes(self):
        z = F.normalize(torch.randn(6, 4, generator=rng()), dim=1)
        cluster = tensor([0, 0, 0, 1, 1, 2])
        p,t = prototypes_of(z, cluster)
        close(p.norm(dim=1), torch.ones(3))
        assert t.mean().item() == pytest.approx(.2) and (t > 0).all()

    def test_the_number_that_sorts_the_labels_best(self):
        x = heaps([0., 0.], [3., 0.], [0., 3.], [3., 3.])
        labels = torch.full((len(x),), -1)
        labels[:240:3] = torch.arange(80) // 20
        assert estimated_number(x, labels, 8, rng()) == 4
        labels[120:] = -1  # of two heaps nobody knows
        assert 2 <= estimated_number(x, labels, 8, rng()) <= 8

    def test_known_classes_come_first_and_keep_their_samples(self):
        x = heaps([0., 0.], [3., 0.], [0., 3.])
        labels = torch.full((len(x),), -1)
        labels[60:70] = 7
        labels[120:130] = 2
        cluster = cluster_samples(x, labels, rng(), k=3, dims=2)
        assert (cluster[120:] == 0).all() and (cluster[60:120] == 1).all()
        assert (cluster[:60] == 2).all()
        found = cluster_samples(x, labels, rng(), k=0, start=4, dims=2)
        assert (found[120:130] == 0).all() and (found[60:70] == 1).all()

    @pytest.mark.parametrize("smallest,n", [(5, 1), (1, 2)])
    def test_a_small_part_is_no_cluster_of_its_own(self, smallest, n):
        x = torch.cat([heaps([0., 0.], n=30), heaps([9., 9.], n=3)])
        cluster = torch.zeros(33, dtype=torch.long)
        assert len(split_clusters(x, x.mean(0)[None], cluster, 0, rng(), smallest)) == n

    @pytest.mark.parametrize("known", [0, 1])
    def test_all_pieces_of_one_heap_are_merged(self, known):
        x = heaps([0., 0.])
        cluster = torch.arange(60) % 5
        centres = torch.stack([x[cluster == k].mean(0) for k in range(5)])
        assert len(merge_clusters(x, centres, cluster, known, rng())) == 1

    def test_numbers_of_clusters_have_no_gaps(self):
        "Centres are drawn at the far samples, which stay with their class, and are left empty"
        x = tensor([[-10., 0.], [10., 0.], *[[0., 0.]]*10, [4., 0.]])
        labels = torch.full((13,), -1)
        labels[:2] = 0
        found = cluster_samples(x, labels, rng(), k=4, dims=2)
        assert found.tolist() == [0]*12 + [1]

    def test_directions(self):
        x = torch.randn(50, 5, generator=rng())*tensor([5., 1., 1., 1., 3.])
        d = main_directions(x, 2)
        assert d.shape == (50, 2) and d.var(0)[0] > d.var(0)[1] > 5
        assert main_directions(x[:3], 8).shape == (3, 3)


def test_what_a_batch_is_told():
    fit(learner([cb := GPC(warmup=.5, rounds=1, start=3), keep := Keep()]), 2)
    first = keep.seen[0]
    last = keep.seen[-1]
    assert set(first.losses) == {"gpc.contrast"}
    assert set(last.losses) == {"gpc.contrast", "gpc.prototypes"}
    assert cb.centres.shape[1] == 64 and len(cb.centres) == len(cb.density)
    assert (cb.cluster[last.unlabeled_ids] >= 0).all()
    cb.projector.module.train()
    assert float(last.losses["gpc.contrast"][0]) > 0
    assert torch.isfinite(nt_xent(cb.centres, cb.centres))


def test_prototypes_by_hand():
    z = F.normalize(tensor([[1., 0.], [1., .5], [0., 1.], [0., 1.]]), dim=1)
    p,t = prototypes_of(z, tensor([0, 0, 1, 1]), .5, 3.)
    middle = z[:2].mean(0)
    close(p, F.normalize(torch.stack([middle, tensor([0., 1.])]), dim=1))
    assert t[0] > t[1] and t.mean().item() == pytest.approx(.5)  # the loose one is softer
    z = F.normalize(torch.randn(9, 4, generator=rng()), dim=1)
    cluster = tensor([0]*6 + [1]*3)
    _,t = prototypes_of(z, cluster, .2, 3.)
    away = tensor([float((z[cluster == k] - z[cluster == k].mean(0)).norm(dim=1).sum())
                   for k in (0, 1)])
    density = away/(tensor([6., 3.])*tensor([9., 6.]).log())
    # between two clusters a tenth of the way from each
    a,b = density
    density = torch.stack([.9*a + .1*b, .1*a + .9*b])
    close(t, .2*density/density.mean())


def test_no_cluster_is_so_close_that_its_temperature_vanishes():
    "One member, or members that are all alike, say nothing of how close the others would lie"
    z = F.normalize(torch.randn(32, 4, generator=rng()), dim=1)
    cluster = tensor([0]*10 + [1]*10 + [2]*10 + [3])
    _,t = prototypes_of(z[:31], cluster)
    assert t[3] == t[:3].max() and t.mean().item() == pytest.approx(.2)
    alike = torch.cat([z[:20], z[20:21].expand(10, -1), z[30:31]])
    _,t = prototypes_of(alike, cluster)
    assert t[2] == t.min() > .05
    # everybody alone: all temperatures are the same
    close(prototypes_of(z[:3], tensor([0, 1, 2]))[1], torch.full((3,), .2))


def test_directions_are_those_of_the_spread():
    "About the mean, the first the widest"
    x = torch.randn(200, 3, generator=rng())*tensor([1., 4., 2.]) + tensor([50., 0., 0.])
    d = main_directions(x, 2)
    want = torch.linalg.eigvalsh(x.T.cov()).flip(0)[:2]
    close(d.var(0), want)
    close(d.mean(0), torch.zeros(2), atol=1e-3, rtol=0)


def test_the_ratio_counts_the_ways_to_deal():
    "log Γ(n) of each half against that of all, beside what they say of the samples"
    a = torch.randn(3, 2)
    b = torch.randn(5, 2)
    value = lambda x: log_marginal(x, torch.zeros(2))
    want = value(a) + value(b) - value(torch.cat([a, b]))
    want += math.log(math.factorial(2)*math.factorial(4)/math.factorial(7))
    assert log_split_ratio(a, b, torch.zeros(2)) == pytest.approx(want, abs=1e-3)


def test_further_centres_are_drawn_by_the_distance_to_the_nearest():
    x = torch.cat([torch.zeros(50, 2), tensor([[9., 9.]])])
    centres = torch.cat([x[:1], tensor([[-9., -9.]])])
    assert torch.equal(more_centres(x, centres, 3, rng())[2], x[-1])


def test_the_contrast_with_prototypes_by_hand():
    class Kept(GPC):
        name = "gpc"
        def after_forward(self, s):
            super().after_forward(s)
            if "gpc.prototypes" not in s.losses: return
            a,b = (self.projector(s.features(f"gpc.{k}")).float() for k in "ab")
            close(s.losses["gpc.contrast"][0], nt_xent(a, b, self.temperature))
            target = self.cluster[s.unlabeled_ids]
            each = [F.cross_entropy(o@self.centres.T/self.density, target) for o in (a, b)]
            close(s.losses["gpc.prototypes"][0], sum(each)/2)
            found.append((s.losses["gpc.contrast"][1], s.losses["gpc.prototypes"][1]))
    found = []
    fit(learner([cb := Kept(
        warmup=0., rounds=2, start=3, temperature=.4, weight=2., contrast=.5, prototypes=.25
    )]), 2)
    assert set(found) == {(1., .5)} and cb.schedule.done == 2
    assert cb.density.mean().item() == pytest.approx(.4)


def test_the_number_may_be_given_and_the_directions_too(monkeypatch):
    seen = []
    def spy(z, dims):
        seen.append(dims)
        return main_directions(z, dims)
    monkeypatch.setattr("labelkit.pseudo.gpc.main_directions", spy)
    learn = fit(learner([cb := GPC(k=12, dims=5, warmup=0., rounds=1)]))
    assert seen == [5] and 10 <= len(cb.centres) <= 12
    n = len(learn.dls.given[learn.dls.given >= 0].unique())
    assert n <= len(cb.centres)


def test_found_classes_are_those_without_a_label():
    "Whoever has a labeled class is not looked at"
    x = data(n=160)
    dls = data(labeled=x.truth < 3)
    learn = fit(learner([cb := GPC(warmup=0., rounds=1, start=4)], dls=dls))
    truth = dls.truth
    cb.clusters = lambda: (torch.arange(160), truth.where(truth >= 3, truth.max()), None)
    assert found_classes(learn) == 1
    cb.clusters = lambda: (torch.arange(160), truth.where(truth < 3, 3), None)
    assert found_classes(learn) < .3


def test_labeled_samples_keep_their_class_and_new_ones_come_after():
    x = data(n=160)
    labeled = x.truth < 3
    dls = data(labeled=labeled & (torch.rand(160, generator=rng()) < .6))
    learn = fit(learner([GPC(warmup=0., rounds=1, start=4)], dls=dls))
    ids,cluster,z = learn.gpc.clusters()
    given = dls.given[ids]
    assert torch.equal(cluster[given >= 0], given[given >= 0])
    assert sorted(ids.tolist()) == list(range(160)) and z.shape == (160, 64)
    learn.gpc.k = 10
    assert int(learn.gpc.clusters()[1].max()) <= 9


def test_half_of_five():
    dls = half_of_five()
    has = dls.given >= 0
    assert set(dls.given[has].tolist()) == set(range(5))
    share = has.sum()/(dls.truth < 5).sum()
    assert .45 < share < .55 and set(dls.truth[~has].tolist()) == set(range(10))


def test_refused():
    for k,v in dict(k=-1, start=0, dims=0, contrast=-1, temperature=0, rounds=0, warmup=2).items():
        with pytest.raises(LabelKitError, match=f"{k}={v}"): GPC(**{k: v})
    with pytest.raises(LabelKitError, match="needs unlabeled samples"):
        fit(learner([GPC()], dls=data(labeled=None)))
