"""IntraClusterMixUp: clusters, partners that share them, labels shared with the image, and a
resumed fit with the same clusters"""
import pickle

import pandas as pd, pytest, torch
from fastai.basics import Callback, DataLoader, DataLoaders, Learner, set_seed
from fastai.callback.training import ShortEpochCallback

from labelkit.data.loaders import label_dls

from labelkit.data.sets import digits
from labelkit.errors import LabelKitError
from labelkit.models import small_cnn
from labelkit.mix.intra_cluster_mixup import (
    check_clusters,
    IntraClusterMixUp,
    cluster_partner,
    find_clusters,
    k_means,
)
from labelkit.relabel.complementary_labels import ComplementaryLabels, scl_loss

def gen(seed=0): return torch.Generator().manual_seed(seed)

class Keep(Callback):
    order = 6
    def before_fit(self): self.seen = []
    def after_pred(self):
        s = self.learn.supervision.record
        if self.training: self.seen.append((s, s.x.clone()))

def fit(cbs, dls=None, seed=0, pct=.1, **kwargs):
    set_seed(seed)
    dls = dls or digits(complementary=True, bs=32)
    learn = Learner(
        dls, small_cnn(c=10, c_in=1, width=4), cbs=cbs, loss_func=torch.nn.CrossEntropyLoss()
    )
    keep = Keep()
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3, cbs=[keep, ShortEpochCallback(pct, short_valid=False)])
    return learn,keep.seen


class TestKMeans:
    @pytest.mark.parametrize("seed", range(4))
    def test_separate_blobs(self, seed):
        centers = 8*torch.eye(4, 6)
        x = torch.randn(200, 6, generator=gen(seed))*.5 + centers.repeat_interleave(50, 0)
        c = k_means(x, 4, gen(seed)).view(4, 50)
        assert all(row.unique().numel() == 1 for row in c) and c[:,0].unique().numel() == 4

    def test_seeded(self):
        x = torch.rand(100, 1, 4, 4, generator=gen())
        assert torch.equal(k_means(x, 7, gen(1)), k_means(x, 7, gen(1)))

    def test_a_cluster_each_and_equal_points(self):
        x = torch.rand(6, 3, generator=gen())
        assert k_means(x, 6, gen()).sort().values.tolist() == list(range(6))
        assert k_means(torch.ones(5, 2), 3, gen()).max() < 3


class TestPartner:
    @pytest.mark.parametrize("seed", range(5))
    def test_rings(self, seed):
        c = torch.randint(-1, 6, (40,), generator=gen(seed))
        j = cluster_partner(c, gen(seed))
        i = torch.arange(40)
        assert torch.equal(c[j], c) and torch.equal(j.sort().values, i)
        assert ((j == i)[c < 0]).all()
        for k in range(6):
            m = c == k
            assert (j == i)[m].all() if m.sum() == 1 else not (j == i)[m].any()

    def test_random_within_the_cluster(self):
        c = torch.zeros(5, dtype=torch.long)
        g = gen()
        counts = torch.zeros(5, 5)
        for _ in range(2000): counts[torch.arange(5), cluster_partner(c, g)] += 1
        assert (
            counts.diagonal().sum() == 0
            and (counts[~torch.eye(5, dtype=torch.bool)] / 2000 - 0.25).abs().max() < 0.05
        )

    def test_one_sample(self): assert cluster_partner(torch.tensor([3]), gen()).tolist() == [0]


class TestCallback:
    def test_labels_of_one_cluster(self):
        dls = digits(complementary=True, bs=32)
        learn,seen = fit(IntraClusterMixUp(alpha=1., n_clusters=10), dls)
        cluster = learn.intra_cluster_mixup.cluster
        for s,_ in seen:
            lam = s.own(learn.intra_cluster_mixup).plan.shares[0]
            named = [set(dls.given[s.ids][cluster[s.ids] == cluster[i]].tolist()) for i in s.ids]
            assert all(
                set(t.nonzero().flatten().tolist()) <= n for t, n in zip(s.targets, named)
            ) and lam.unique().numel() == 1
            assert torch.allclose(s.targets.sum(1), torch.ones(len(s.targets)))

    def test_clusters_by_id(self):
        "Own clusters: pairs (0, 1), (2, 3), …; whoever's mate is not in the batch stays as it is"
        dls = digits(complementary=True, bs=200)
        own = torch.arange(dls.n_ids)//2
        learn,seen = fit(IntraClusterMixUp(alpha=100., clusters=own), dls)
        s,x = seen[0]
        mate = torch.isin(s.ids ^ 1, s.ids)
        raw = dls.train_ds.arrays.x[s.ids]
        assert mate.any() and not mate.all()
        assert torch.equal(x[~mate], raw[~mate]) and torch.equal(
            s.targets[~mate].argmax(1), s.y[~mate]
        )
        lam = s.own(learn.intra_cluster_mixup).plan.shares[0,0]
        want = lam*raw[mate] + (1-lam)*dls.train_ds.arrays.x[s.ids[mate] ^ 1]
        assert torch.allclose(x[mate], want, atol=1e-6)

    def test_labels_only(self):
        dls = digits(complementary=True, bs=64)
        _,seen = fit(IntraClusterMixUp(alpha=4., n_clusters=3, labels_only=True), dls)
        s,x = seen[0]
        assert torch.equal(x, dls.train_ds.arrays.x[s.ids]) and (s.targets.gt(0).sum(1) == 2).any()

    def test_features(self):
        "k-means on one number: its two clusters are the bright and the dark"
        dls = digits(bs=64)
        learn, _ = fit(
            IntraClusterMixUp(
                n_clusters=2, features=lambda x: x.mean((1, 2, 3))[:, None].round(decimals=1) * 100
            ),
            dls,
        )
        bright = (dls.train_ds.arrays.x.mean((1,2,3))).round(decimals=1)
        c = learn.intra_cluster_mixup.cluster
        assert all(c[bright == v].unique().numel() == 1 for v in bright.unique())

    def test_unlabeled_samples_have_none(self):
        dls = digits(labeled=40)
        learn,_ = fit(IntraClusterMixUp(n_clusters=3), dls)
        c = learn.intra_cluster_mixup.cluster
        assert torch.equal(c >= 0, dls.given >= 0)

    def test_with_complementary_labels(self):
        learn,seen = fit([ComplementaryLabels("scl-nl"), IntraClusterMixUp(alpha=4., n_clusters=5)])
        s,_ = seen[-1]
        assert (
            torch.allclose(s.losses["complementary_labels"][0], scl_loss(s.pred, s.targets))
            and (s.targets > 0).sum(1).max() == 2
        )

    def test_the_state_has_the_clusters(self):
        a,_ = fit(IntraClusterMixUp(n_clusters=4))
        b,_ = fit(IntraClusterMixUp(n_clusters=4), seed=8)
        state = pickle.loads(pickle.dumps(a.intra_cluster_mixup.state_dict()))
        assert not torch.equal(a.intra_cluster_mixup.cluster, b.intra_cluster_mixup.cluster)
        b.intra_cluster_mixup.load_state_dict(state)
        assert torch.equal(a.intra_cluster_mixup.cluster, b.intra_cluster_mixup.cluster)

    def test_own_loaders(self):
        g = gen()
        items = [
            (torch.rand(1, 8, 8, generator=g) * 0.1 + (i % 2), torch.tensor(i % 10))
            for i in range(40)
        ]
        dls = label_dls(
            DataLoaders(DataLoader(items, bs=10, shuffle=True), DataLoader(items, bs=10))
        )
        dls.c = 10
        learn,_ = fit(IntraClusterMixUp(n_clusters=2), dls, pct=1.)
        c = learn.intra_cluster_mixup.cluster
        assert c[::2].unique().numel() == c[1::2].unique().numel() == 1 and c[0] != c[1]


class TestRefused:
    def test_a_sample_that_is_no_number(self):
        dls = digits(bs=64)
        dls.train_ds.arrays.x[7] = float("nan")
        with pytest.raises(LabelKitError, match=r"inputs of samples \[7\] are not finite"):
            find_clusters(dls, 3, gen())

    @pytest.mark.parametrize(
        "kwargs,text",
        [
            (
                dict(n_clusters=5000),
                "n_clusters=5000 and there are 1258 samples: pass a number from 1 to 1258",
            ),
            (dict(clusters=torch.zeros(4)), r"clusters has shape \(4,\): pass \[1258\]"),
        ],
    )
    def test_in_the_fit(self, kwargs, text):
        with pytest.raises(LabelKitError, match=text): fit(IntraClusterMixUp(**kwargs))

    @pytest.mark.parametrize("kwargs", [dict(n_clusters=0), dict(alpha=-1.), dict(p=2)])
    def test_arguments(self, kwargs):
        (name,value), = kwargs.items()
        with pytest.raises(LabelKitError, match=f"{name}={value!r}"): IntraClusterMixUp(**kwargs)


def test_clusters_in_every_container():
    dls = digits(labeled=20)
    n = dls.n_ids
    want = torch.arange(n) % 4
    for clusters in (want.tolist(), pd.Series(want.numpy(), index=range(9, 9+n)), want.double()):
        assert torch.equal(check_clusters(clusters, dls), want)
    gaps = want.double().numpy()
    gaps[3] = float("nan")
    assert int(check_clusters(gaps, dls)[3]) == -1
    with pytest.raises(LabelKitError, match="clusters of row 0 is 'a'"):
        check_clusters(["a"]*n, dls)
    with pytest.raises(LabelKitError, match="holds fractions"): check_clusters(want/3, dls)
