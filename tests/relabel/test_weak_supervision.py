"""Label models against official values and by hand, labeling functions made from labels,
WeakSupervision on data with and without labels, and its explorer"""
import itertools, json, pickle, random, shutil, subprocess
from functools import partial

import numpy as np, pandas as pd, pytest, torch
from fastai.basics import Callback, DataLoader, DataLoaders, Learner, accuracy
from torch import nn

from places import REFERENCES
from small import Records, quadrants as data
from labelkit.data.settings import annotators, weak_labels
from labelkit.data.loaders import from_arrays, label_dls
from labelkit.data.sets import digits
from labelkit.errors import LabelKitError
from labelkit.models import small_cnn
from labelkit.explore.explorer import Explorer, esm
from labelkit.explore.votes_explorer import VotesExplorer, disputed
from labelkit.relabel.auto_lfs import (
    Components,
    affinity_lfs,
    auto_lfs,
    choose_lfs,
    snuba_lfs,
    stump_lfs,
    tune_beta,
)
from labelkit.relabel.label_models import (
    CovarianceLabelModel,
    DawidSkene,
    LabelingFunction,
    MajorityVote,
    apply_lfs,
    labeling_function,
    lf_analysis,
    vote_counts,
)
from labelkit.core.checkpoint import Checkpoint
from labelkit.relabel.weak_supervision import (
    WeakSupervision,
    cast_votes,
    samples_by_id,
    weak_loss,
)

REFERENCE = {e["name"]: e for e in json.loads((REFERENCES/"weak_supervision.json").read_text())}
MODELS = [MajorityVote, DawidSkene, CovarianceLabelModel]


def brute_dawid_skene(votes, c, iterations):
    "EM with plain loops: what the tensor code has to give"
    n,m = votes.shape
    q = np.zeros((n, c))
    for i,j in itertools.product(range(n), range(m)):
        if votes[i,j] >= 0: q[i, votes[i,j]] += 1
    q = np.where(q.sum(1, keepdims=True) > 0, q/np.maximum(q.sum(1, keepdims=True), 1), 1/c)
    for _ in range(iterations):
        prior = q.mean(0)
        theta = np.zeros((m, c, c+1))
        for i,j in itertools.product(range(n), range(m)): theta[j, :, votes[i,j] % (c+1)] += q[i]
        theta /= theta.sum(2, keepdims=True)
        q = np.stack(
            [
                prior * np.prod([theta[j, :, votes[i, j] % (c + 1)] for j in range(m)], 0)
                for i in range(n)
            ]
        )
        q /= q.sum(1, keepdims=True)
    return q


class TestLabelModels:
    def test_majority_reference(self):
        e = REFERENCE["snorkel_majority_vote"]
        p = (
            MajorityVote()
            .fit(e["inputs"]["L"], e["inputs"]["cardinality"])
            .predict_proba(e["inputs"]["L"])
        )
        assert torch.allclose(p, torch.tensor(e["expected"]["proba"]), atol=e["tolerance"])

    def test_dawid_skene_reference(self):
        e = REFERENCE["dawid_skene"]
        p = DawidSkene().fit(e["inputs"]["L_small"]).predict_proba(e["inputs"]["L_small"])
        assert torch.allclose(p, torch.tensor(e["expected"]["small_proba"]), atol=e["tolerance"])

    @pytest.mark.parametrize("name", ["three_classes", "prior_and_start", "two_classes"])
    def test_snorkel_reference(self, name):
        e = REFERENCE[f"snorkel_{name}"]
        i = e["inputs"]
        model = CovarianceLabelModel(prior=i["class_balance"], start=i["start"]).fit(
            i["L"], i["cardinality"]
        )
        assert torch.allclose(
            model.mu.float(), torch.tensor(e["expected"]["mu"]), atol=e["tolerance"]
        )
        assert torch.allclose(
            model.predict_proba(i["L"]), torch.tensor(e["expected"]["proba"]), atol=e["tolerance"]
        )
        assert len(model.losses) == 100 and model.losses[-1] < model.losses[0]

    @pytest.mark.parametrize("c", [2, 10])
    def test_dawid_skene_is_plain_em(self, c):
        votes = weak_labels(torch.arange(60) % c, [.9, .7, .6, .5], .7, c=c)
        got = DawidSkene(max_iter=5, tol=0.).fit(votes, c)
        assert np.allclose(
            got.predict_proba(votes).numpy(), brute_dawid_skene(votes.numpy(), c, 5), atol=1e-6
        )
        assert all(b >= a - 1e-6 for a,b in itertools.pairwise(got.log_likelihood))

    def test_abstaining_says_nothing_when_it_is_told_so(self):
        """A voter who always says the truth, and is silent on class 1 alone: silence is a hint only
        if it may be one"""
        y = torch.arange(400) % 2
        votes = torch.cat([torch.where(y == 0, 0, -1)[:,None], weak_labels(y, [.7]*4, 1., c=2)], 1)
        hits = {
            a: (DawidSkene(abstain=a).fit(votes).predict_proba(votes).argmax(1) == y).float().mean()
            for a in (True, False)
        }
        assert (
            hits[True] == 1
            and hits[False] < 1
            and DawidSkene(abstain=False).fit(votes).confusion.shape == (5, 2, 2)
        )

    @pytest.mark.parametrize("cls", MODELS)
    @pytest.mark.parametrize("c", [2, 10])
    def test_one_interface(self, cls, c):
        y = torch.arange(500) % c
        votes = weak_labels(y, [.9, .8, .7, .6], .8, c=c)
        before = votes.clone()
        p = (model := cls().fit(votes, c)).predict_proba(votes)
        assert torch.equal(votes, before)
        assert (
            p.dtype == torch.float
            and p.shape == (500, c)
            and torch.allclose(p.sum(1), torch.ones(500), atol=1e-5)
            and p.isfinite().all()
        )
        assert (p.argmax(1) == y).float().mean() > (.75 if c > 2 else .7)
        assert model.accuracies(votes).argmax() == 0
        again = cls()
        again.load_state_dict(pickle.loads(pickle.dumps(model.state_dict())))
        assert torch.equal(again.predict_proba(votes), p) and torch.equal(
            cls().fit(votes, c).predict_proba(votes), p
        )
        assert model.predict_proba(votes[:1]).shape == (1, c)

    @pytest.mark.parametrize("cls", MODELS)
    def test_degenerate(self, cls):
        y = torch.arange(90) % 3
        silent = torch.full((9, 3), -1)
        assert torch.allclose(
            cls().fit(silent, 3).predict_proba(silent), torch.full((9, 3), 1 / 3), atol=1e-5
        )
        truth = torch.stack([y]*3, 1)
        assert (cls().fit(truth).predict_proba(truth).argmax(1) == y).all()
        if cls is CovarianceLabelModel:
            with pytest.raises(LabelKitError, match="at least 3"): cls().fit(y[:,None])
            return
        alone = cls().fit(y[:,None]).predict_proba(y[:,None])
        assert torch.allclose(alone, torch.eye(3)[y], atol=1e-5)

    def test_a_voter_who_is_always_wrong_is_understood(self):
        y = torch.arange(400) % 2
        votes = torch.cat([weak_labels(y, [.8]*3, 1., c=2), 1-y[:,None]], 1)
        model = DawidSkene().fit(votes)
        assert (
            model.predict_proba(votes).argmax(1) == y
        ).float().mean() > 0.97 and model.accuracies(votes)[3] < 0.02

    def test_prior(self):
        silent = torch.tensor([[-1, -1, -1], [0, 1, -1]])
        assert torch.allclose(
            MajorityVote(prior=[0.8, 0.2]).fit(silent).predict_proba(silent),
            torch.tensor([[0.8, 0.2], [0.5, 0.5]]),
        )
        model = DawidSkene(prior=[.9, .1]).fit(weak_labels(torch.arange(50) % 2, [.8]*3, c=2))
        assert model.class_prior.tolist() == pytest.approx([.9, .1])

    def test_other_processes_types(self):
        votes = np.array([[0, 1, -1], [1, 1, 0]])
        assert torch.equal(
            MajorityVote().fit(votes).predict_proba(votes),
            MajorityVote().fit(votes.tolist()).predict_proba(votes.astype(np.int8)),
        )

    @pytest.mark.parametrize(
        "call, word",
        [
            (lambda: MajorityVote().predict_proba([[0]]), "call fit"),
            (lambda: MajorityVote().fit([[0, 1]]).predict_proba([[0]]), "1 columns"),
            (lambda: DawidSkene().fit([[-2, 0]]), "from -2"),
            (lambda: DawidSkene().fit([[3, 0]], 3), "from 0 to 3"),
            (lambda: DawidSkene().fit([0, 1]), "shape"),
            (lambda: DawidSkene().fit([[-1]]), "pass c"),
            (lambda: DawidSkene().fit(torch.zeros(0, 2).long()), "shape"),
            (lambda: DawidSkene(tol=-1), "tol"),
            (lambda: DawidSkene(prior=[0.5, 0.5]).fit([[2]], 3), "prior has 2"),
            (lambda: MajorityVote(prior=[0.0, 1.0]), "prior"),
            (lambda: CovarianceLabelModel(precision=2), "precision"),
        ],
    )
    def test_refuses(self, call, word):
        with pytest.raises(LabelKitError) as e: call()
        assert word in str(e.value)


class TestFunctions:
    def test_votes_are_gathered_by_batch(self):
        calls = []
        @labeling_function
        def first(x):
            calls.append(len(x))
            return x[:,0].long()
        @labeling_function(name="none")
        def _(x): return torch.full((len(x),), -1)
        x = torch.arange(10.)[:,None]
        votes = apply_lfs([first, _, lambda x: [2]*len(x)], x, bs=4)
        assert calls == [4, 4, 2] and (first.name, _.name) == ("first", "none")
        assert votes.tolist() == [[i, -1, 2] for i in range(10)]

    @pytest.mark.parametrize(
        "fn, word",
        [
            (lambda x: x, "type"),
            (lambda x: x[0].long(), "shape"),
            (lambda x: torch.full((len(x),), -5), "voted -5"),
            (lambda x: None, "returned nothing"),
            (lambda x: [1, None, 0], "type torch.float64"),
            (lambda x: ["spam"]*len(x), "votes of row 0 is 'spam'"),
            (lambda x: pd.Series([1, 0, 1], index=[2, 0, 1]), "another order"),
            (lambda x: [[1], [0, 1], []], "cannot be read as numbers"),
            (lambda x: 1, "shape"),
        ],
    )
    def test_a_bad_function_is_named(self, fn, word):
        with pytest.raises(LabelKitError, match=f"'mine'.*{word}"):
            apply_lfs([LabelingFunction(fn, "mine")], torch.rand(3))

    def test_answers_in_every_container(self):
        x = torch.rand(3)
        for answer in (
            [1, -1, 0],
            (1, -1, 0),
            np.array([1, -1, 0], np.int8),
            pd.Series([1, -1, 0], index=[5, 9, 7]),
            torch.tensor([1, -1, 0], dtype=torch.int8),
            [torch.tensor(1), torch.tensor(-1), torch.tensor(0)],
        ):
            assert apply_lfs([lambda x: answer], x).flatten().tolist() == [1, -1, 0]
        assert apply_lfs([lambda x: x > .5], x).flatten().tolist() == (x > .5).long().tolist()

    def test_an_error_inside_a_function_says_which(self):
        @labeling_function
        def mine(x): return x.no_such_thing
        with pytest.raises(AttributeError) as e: apply_lfs([mine], torch.rand(3))
        assert "in the labeling function 'mine'" in e.value.__notes__

    def test_samples_in_a_table(self):
        texts = pd.DataFrame(dict(text=["win money", "hello", "money now"]), index=[4, 2, 9])
        spam = lambda t: [1 if "money" in o else -1 for o in t.text]
        assert apply_lfs([spam], texts, bs=2).flatten().tolist() == [1, -1, 1]

    def test_tables_of_votes(self):
        "Tensor, array, list and table are one; what is missing abstains"
        votes = [[0, 1, -1], [1, 1, 0], [2, -1, 2], [0, 0, 0]]
        gaps = pd.DataFrame(votes, columns=["a", "b", "c"]).replace(-1, None).astype(float)
        want = DawidSkene().fit(votes).predict_proba(votes)
        for other in (
            torch.tensor(votes),
            torch.tensor(votes).float(),
            np.array(votes),
            pd.DataFrame(votes),
            gaps,
            gaps.astype("Int64"),
            pd.DataFrame(votes, index=["w", "x", "y", "z"]),
        ):
            assert torch.equal(DawidSkene().fit(other).predict_proba(other), want)
            assert lf_analysis(other).coverage.tolist() == lf_analysis(votes).coverage.tolist()
        assert lf_analysis(gaps).index.tolist() == ["a", "b", "c"]
        assert lf_analysis(gaps, names="xyz").index.tolist() == ["x", "y", "z"]
        known = pd.Series([0, None, 2, 0], index=[9, 8, 7, 6])
        assert lf_analysis(gaps, known).equals(lf_analysis(gaps, [0, -1, 2, 0]))

    @pytest.mark.parametrize(
        "votes, word",
        [
            (pd.DataFrame(dict(a=["spam"])), "votes of row 0 is 'spam'"),
            (pd.DataFrame(dict(a=[.5])), "pass whole numbers"),
            (pd.DataFrame(dict(a=[0, 1]), index=[1, 0]), "another order"),
            ([[0, 1], [1]], "cannot be read"),
            (None, "votes has shape ()"),
        ],
    )
    def test_what_is_no_table_of_votes(self, votes, word):
        for f in (MajorityVote().fit, lf_analysis):
            with pytest.raises(LabelKitError) as e: f(votes)
            assert word in str(e.value)

    def test_labels_in_every_container(self, data):
        x,y,rest,_ = data
        want = apply_lfs(auto_lfs(x, y, rest), rest)
        column = pd.Series(y.numpy(), index=range(500, 600))
        for a, b, c in ((x.numpy(), y.tolist(), rest.numpy()), (x, column, None)):
            if c is None: assert len(auto_lfs(a, b)) == len(auto_lfs(x, y))
            else: assert torch.equal(apply_lfs(auto_lfs(a, b, c), rest), want)
        with pytest.raises(LabelKitError, match="y of row 0 is 'cat'"):
            auto_lfs(x[:2], ["cat", "dog"])

    def test_analysis_against_plain_loops(self):
        y = torch.arange(200) % 4
        votes = weak_labels(y, [.9, .5, .7], [.5, .9, .2])
        t = lf_analysis(votes, y, c=4)
        v = votes.tolist()
        for j in range(3):
            mine = [i for i in range(200) if v[i][j] >= 0]
            others = lambda i: [o for k,o in enumerate(v[i]) if k != j and o >= 0]
            assert t.coverage.iloc[j] == pytest.approx(len(mine)/200)
            assert t.overlap.iloc[j] == pytest.approx(sum(bool(others(i)) for i in mine)/200)
            assert t.conflict.iloc[j] == pytest.approx(
                sum(any(o != v[i][j] for o in others(i)) for i in mine) / 200
            )
            assert t.accuracy.iloc[j] == pytest.approx(np.mean([v[i][j] == y[i] for i in mine]))
        assert np.isnan(
            lf_analysis([[-1, 0]], [0]).accuracy.iloc[0]
        ) and "accuracy" not in lf_analysis(votes)
        assert vote_counts(torch.tensor([[0, 0, -1]]), 2).tolist() == [[2., 0.]]

    def test_beta_by_brute_force(self):
        g = torch.Generator().manual_seed(0)
        probs = (torch.randn(5, 40, 3, generator=g)*2).softmax(2)
        y = torch.randint(3, (40,), generator=g)
        beta,votes,f1 = tune_beta(probs, y)
        for k in range(5):
            all_ = [
                2
                * sum(int(p.argmax()) == t for p, t in zip(probs[k], y) if p.max() >= b)
                / (sum(bool(p.max() >= b) for p in probs[k]) + 40)
                for b in torch.tensor([i / 20 for i in range(1, 20)])
            ]
            assert float(f1[k]) == pytest.approx(max(float(o) for o in all_), abs=1e-6)
            assert ((votes[k] >= 0) == (probs[k].amax(1) >= beta[k])).all()

    def test_choice_prefers_what_is_not_settled(self):
        votes = torch.tensor([[0, 0, -1], [0, 0, -1], [-1, -1, 0]])
        assert choose_lfs(votes, torch.zeros(3).long(), 5) == [0, 2, 1]

    @pytest.fixture
    def data(self):
        dls = digits(labeled=100)
        known = dls.given >= 0
        return (
            dls.train_ds.arrays.x[known],
            dls.given[known],
            dls.train_ds.arrays.x[~known],
            dls.truth[~known],
        )

    @pytest.mark.parametrize("make, least", [(snuba_lfs, .7), (stump_lfs, .4), (affinity_lfs, .7)])
    def test_functions_know_something_and_repeat(self, data, make, least):
        x,y,rest,truth = data
        votes = apply_lfs(lfs := make(x, y, rest), rest)
        assert lf_analysis(votes, truth).accuracy.mean() > least
        assert torch.equal(votes, apply_lfs(make(x, y, rest), rest, bs=100)) and len(
            {f.name for f in lfs}
        ) == len(lfs)
        assert torch.equal(pickle.loads(pickle.dumps(lfs[0]))(rest[:9]), lfs[0](rest[:9]))
        assert make(x, y, rest, features=lambda o: o.flatten(1)[:, 20:40])[0](rest[:3]).shape == (
            3,
        )

    def test_neighbours_leave_themselves_out(self, data):
        """A function judged on itself would always be right: k-NN must not know the sample it votes
        on while it is chosen"""
        x,y,rest,_ = data
        shuffled = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(0))]
        lfs = snuba_lfs(x, shuffled, rest, kinds=("knn",), n_lfs=5)
        assert float(lfs[0].fn.beta) > 0 and (apply_lfs(lfs, rest) >= 0).any()
        from labelkit.relabel.auto_lfs import _knn
        f = Components(x)(x)[None]
        loo = _knn(f, f, shuffled, 10, 1, same=True)[0].argmax(1)
        assert (loo == shuffled).float().mean() < 0.3 and (
            _knn(f, f, shuffled, 10, 1)[0].argmax(1) == shuffled
        ).all()

    @pytest.mark.parametrize("kind", ["knn", "softmax"])
    def test_candidates_are_not_judged_by_what_they_learned(self, data, kind, monkeypatch):
        "With labels drawn at random no candidate looks better than chance; with true ones they do"
        from labelkit.relabel import auto_lfs as module
        x,y,rest,_ = data
        judged = []
        def choose(votes, y, n):
            judged.append((votes == y).sum()/(votes >= 0).sum())
            return choose_lfs(votes, y, n)
        monkeypatch.setattr(module, "choose_lfs", choose)
        for labels in (y, y[torch.randperm(len(y), generator=torch.Generator().manual_seed(3))]):
            snuba_lfs(x, labels, rest, kinds=(kind,))
        assert judged[0] > .5 and judged[1] < .2  # ten classes

    def test_few_samples(self):
        x = torch.rand(4, 1, 4, 4)
        votes = apply_lfs(auto_lfs(x, torch.tensor([0, 0, 1, 1]), c=3), torch.rand(7, 1, 4, 4))
        assert votes.shape[0] == 7 and votes.max() < 3

    @pytest.mark.parametrize(
        "kwargs, word",
        [
            (dict(y=torch.zeros(4)), "class number"),
            (dict(y=torch.tensor([0, -1, 1, 1])), "class number"),
            (dict(c=1), "outside the 1"),
            (dict(features=lambda x: x), "features gave shape"),
            (dict(components=0), "components"),
        ],
    )
    def test_refuses(self, kwargs, word):
        with pytest.raises(LabelKitError, match=word):
            auto_lfs(**(dict(x=torch.rand(4, 1, 4, 4), y=torch.tensor([0, 0, 1, 1])) | kwargs))


def make(cbs, dls, seed=0):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return Learner(
        dls,
        small_cnn(dls, c=4, c_in=1, width=4),
        cbs=cbs,
        metrics=accuracy,
        loss_func=nn.CrossEntropyLoss(),
    )


def fit(learn, epochs=2):
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, 3e-3)
    return learn

quadrant = lambda k, x: torch.where(
    x[:, 0, 2 * (k // 2) : 2 * (k // 2) + 2, 2 * (k % 2) : 2 * (k % 2) + 2].mean((1, 2)) > 0.5,
    k,
    -1,
)
rules = [partial(quadrant, k) for k in range(4)]


class TestCallback:
    def test_loss_by_hand_and_without_votes(self):
        logits = torch.tensor([[2., 0.], [0., 1.]], requires_grad=True)
        p = torch.tensor([[1., 0.], [.5, .5]])
        want = (
            torch.log1p(torch.exp(torch.tensor(-2.0))) * 0.5
            + (torch.log1p(torch.exp(torch.tensor(1.0))) - 0.5) * 0.25
        ) / 0.75
        assert torch.allclose(weak_loss(logits, p, torch.tensor([.5, .25])), want)
        nothing = weak_loss(logits, p, torch.zeros(2))
        nothing.backward()
        assert nothing == 0 and not logits.grad.any()

    def test_rules_are_learned_and_uncovered_samples_count_nothing(self):
        dls = data(labeled=8)
        learn = fit(make([WeakSupervision(lfs=rules[:3]), r := Records()], dls), 4)
        cb = learn.weak_supervision
        assert (
            torch.equal(cb.voted, apply_lfs(rules[:3], dls.train_ds.arrays.x))
            and len(cb.lf_names) == 3
        )
        assert (
            torch.equal(cb.weak_weight > 0, (cb.voted >= 0).any(1)) and (cb.weak_weight == 0).any()
        )
        assert torch.equal(cb.weak_label, DawidSkene().fit(cb.voted, 4).predict_proba(cb.voted))
        s = r.seen[0]
        assert torch.equal(s.targets.argmax(1), s.y) and not s.edited
        value,_ = s.losses["weak_supervision"]
        assert torch.allclose(
            value,
            weak_loss(
                s.outputs["weak_supervision"],
                cb.weak_label[s.unlabeled_ids],
                cb.weak_weight[s.unlabeled_ids],
            ),
        )
        book = cb.ledger.frame()
        assert len(book) == 120 and (book.accepted.to_numpy() == (cb.weak_weight > 0).numpy()).all()

    @pytest.mark.parametrize("noise_rate", [0., .5])
    def test_functions_are_made_from_the_labeled_training_samples_as_labeled(self, noise_rate):
        "Given labels, not true ones; of training, not of validation; the rest as unlabeled"
        dls = data(labeled=24, noise_rate=noise_rate)
        asked = []
        def spy(x, y, unlabeled, c, seed):
            asked.append((x, y, unlabeled, c))
            return rules
        fit(make([WeakSupervision(lfs=spy)], dls), 1)
        (x,y,rest,c), = asked
        known = dls.given >= 0
        assert torch.equal(x, dls.train_ds.arrays.x[known]) and torch.equal(y, dls.given[known])
        assert torch.equal(rest, dls.train_ds.arrays.x[~known]) and c == 4
        assert (y != dls.truth[known]).any() == (noise_rate > 0)

    def test_own_loaders_hand_over_unlabeled_rows_of_the_training_set_too(self):
        base = data()
        x = base.train_ds.arrays.x
        y = base.truth.clone()
        y[:40:2] = -1
        asked = []
        votes,_ = cast_votes(
            label_dls(DataLoaders(*[DataLoader([(x[i], y[i]) for i in range(40)], bs=8)]*2)),
            lambda *a, seed: asked.append(a) or rules,
            (y[:40] >= 0).nonzero().flatten(), y[:40][y[:40] >= 0], 4, torch.Generator(),
        )
        known,given,rest,_ = asked[0]
        assert torch.equal(known, x[1:40:2]) and torch.equal(given, y[1:40:2])
        assert torch.equal(rest, x[:40:2]) and torch.equal(votes, apply_lfs(rules, x[:40]))

    def test_tables_of_pandas_and_lists(self):
        import pandas as pd
        votes = torch.stack([data().truth]*2, 1)
        votes[3] = torch.tensor([-1, 2])
        table = pd.DataFrame(votes.numpy(), columns=["ann", "bob"]).astype(float)
        table.iloc[3, 0] = float("nan")
        runs = [
            fit(make([WeakSupervision(votes=o)], data(labeled=8)), 1).weak_supervision
            for o in (votes, table, votes.tolist(), votes.numpy().astype("int8"))
        ]
        for cb in runs[1:]:
            assert torch.equal(cb.voted, votes) and torch.equal(cb.weak_label, runs[0].weak_label)
        assert [o.lf_names for o in runs[:2]] == [["LF 0", "LF 1"], ["ann", "bob"]]
        p = pd.DataFrame(torch.eye(4)[votes[:,1].clamp_min(0)].numpy())
        cb = fit(make([WeakSupervision(votes=p)], data(labeled=8)), 1).weak_supervision
        assert torch.equal(cb.weak_label, torch.tensor(p.to_numpy()))

    def test_two_inputs(self):
        "Functions look at one input; votes do not mind how many there are"
        y = torch.arange(24) % 4
        items = [(torch.rand(3), torch.rand(2), y[i]) for i in range(24)]
        def own():
            train = DataLoader(items[:12], bs=4)
            train.n_inp = 2
            dls = DataLoaders(train, DataLoader(items, bs=4))
            dls.test_dl = lambda o,**kw: DataLoader([i[:2] for i in o], bs=4)
            dls = label_dls(dls, unlabeled=items[12:], ratio=1)
            dls.c = 4
            return dls
        class Two(nn.Module):
            def __init__(self):
                super().__init__()
                self.head = nn.Linear(5, 4)
            def forward(self, a, b): return self.head(torch.cat([a, b], 1))
        mk = lambda cb: Learner(own(), Two(), cbs=cb, loss_func=nn.CrossEntropyLoss())
        cb = fit(mk(WeakSupervision(votes=y[:,None].expand(-1, 3))), 1).weak_supervision
        assert torch.equal(cb.weak_label.argmax(1), y)
        with pytest.raises(LabelKitError, match="samples have 2 inputs.*votes="):
            fit(mk(WeakSupervision(lfs=rules)), 1)

    def test_the_label_model_given_is_not_touched(self):
        given = CovarianceLabelModel()
        learn = make([WeakSupervision(lfs=rules, label_model=given)], data(labeled=8))
        cb = fit(learn, 1).weak_supervision
        assert given.mu is None and cb.fitted.mu is not None and type(cb.fitted) is type(given)

    def test_resumed_without_voting_again(self, tmp_path):
        calls = []
        def counted(x):
            calls.append(1)
            return rules[0](x)
        def ours(): return make([WeakSupervision(lfs=[counted, *rules[1:]])], data(labeled=8))
        whole = ours()
        with whole.no_bar(), whole.no_logging(): whole.fit(3, 3e-3, cbs=Checkpoint(tmp_path/"a.pt"))
        class Stop(Callback):
            def before_epoch(self):
                if self.epoch == 2: raise KeyboardInterrupt
        learn = ours()
        with pytest.raises(KeyboardInterrupt), learn.no_bar(), learn.no_logging():
            learn.fit(3, 3e-3, cbs=[Checkpoint(tmp_path/"b.pt"), Stop()])
        n = len(calls)
        again = ours()
        with again.no_bar(), again.no_logging(): again.fit(3, 3e-3, cbs=Checkpoint(tmp_path/"b.pt"))
        assert len(calls) == n
        cb = again.weak_supervision
        assert torch.equal(cb.fitted.confusion, whole.weak_supervision.fitted.confusion)
        assert all(
            torch.equal(a, b)
            for a,b in zip(whole.model.state_dict().values(), again.model.state_dict().values())
        )

    def test_the_given_labels_are_replaced_on_demand(self):
        truth = data().truth
        people = annotators(truth, 5, [.6, .4, .2, .2, .1], c=4)
        people[:10] = -1
        base = data()
        dls = from_arrays(
            base.train_ds.arrays.x,
            people[:, 0].clamp_min(0),
            base.valid_ds.arrays.x,
            base.valid_ds.arrays.y,
            bs=16,
        )
        learn = fit(make([WeakSupervision(votes=people, keep_given=False), r := Records()], dls))
        cb = learn.weak_supervision
        for s in r.seen:
            voted = s.ids >= 10
            assert torch.allclose(s.targets[voted], cb.weak_label[s.ids[voted]]) and torch.equal(
                s.targets[~voted].argmax(1), s.y[~voted]
            )
            assert not s.outputs
        assert (
            (cb.weak_label[10:].argmax(1) == truth[10:]).float().mean()
            > 0.8
            > 0.5
            > (people[10:, 0] == truth[10:]).float().mean()
        )

    def test_probabilities_enter_by_the_same_door(self):
        dls = data(labeled=8)
        p = torch.eye(4)[dls.truth]*.7 + .075
        p[3] = 0
        cb = fit(make([WeakSupervision(votes=p)], dls)).weak_supervision
        assert (
            torch.allclose(cb.weak_label[4:], p[4:])
            and cb.weak_weight[3] == 0
            and cb.weak_label[3].tolist() == [0.25] * 4
        )
        with pytest.raises(LabelKitError, match="no votes to show"): cb.explore()

    def test_users_own_loaders(self):
        base = data()
        x = base.train_ds.arrays.x
        y = base.truth
        items = [(x[i], y[i]) for i in range(24)]
        own = DataLoaders(DataLoader(items, bs=8, shuffle=True), DataLoader(items, bs=8))
        own.c = 4
        own.test_dl = lambda items,**kw: DataLoader(items, bs=8)
        dls = label_dls(own, unlabeled=[(x[i],) for i in range(24, 100)])
        ids,samples = samples_by_id(dls)
        assert ids.tolist() == list(range(100)) and torch.allclose(samples, x[:100])
        learn = fit(make([WeakSupervision(lfs=rules), r := Records()], dls))
        assert torch.equal(learn.weak_supervision.voted, apply_lfs(rules, x[:100]))
        u = r.seen[0]
        assert torch.allclose(u.unlabeled, x[u.unlabeled_ids])

    def test_a_pickled_callback_does_not_forget_silently(self):
        own = [lambda x: torch.zeros(len(x)).long()]
        learn = fit(make([WeakSupervision(lfs=own)], data(labeled=8)))
        cb = pickle.loads(pickle.dumps(learn.weak_supervision))
        assert cb.voted is None and cb.lfs is None
        with pytest.raises(LabelKitError, match="left out when"): fit(make([cb], data(labeled=8)))

    @pytest.mark.parametrize(
        "kwargs, word",
        [
            (dict(votes=torch.zeros(3, 2).long()), "3 rows for 120"),
            (dict(votes=torch.ones(120, 4)), "sample 0 are no distribution"),
            (dict(votes=torch.ones(120, 3) / 3), r"must be \[120, 4\]"),
            (dict(votes=torch.full((120, 2), 7)), "from 7 to 7"),
            (dict(lfs=[lambda x: x]), "LF|lambda"),
            (dict(lfs=rules[:2], label_model=CovarianceLabelModel()), "at least 3"),
        ],
    )
    def test_refuses(self, kwargs, word):
        with pytest.raises(LabelKitError, match=word):
            fit(make([WeakSupervision(**kwargs)], data(labeled=8)))

    def test_refuses_at_once(self):
        with pytest.raises(LabelKitError, match="lfs=3"): WeakSupervision(lfs=3)
        with pytest.raises(LabelKitError, match="weight"): WeakSupervision(weight=-1)
        with pytest.raises(LabelKitError, match="needs unlabeled"):
            fit(make([WeakSupervision()], data()))


class TestExplorer:
    def test_what_is_shown_is_what_the_models_say(self):
        y = torch.arange(80) % 3
        votes = weak_labels(y, [.9, .7, .6, .5], .7, c=3)
        ds = DawidSkene().fit(votes, 3)
        e = VotesExplorer(
            votes,
            dict(ds=ds, mine=torch.full((80, 3), 1 / 3)),
            y,
            vocab=["a", "b", "<i>c</i>"],
            images=torch.rand(80, 3, 80, 40),
            samples=10,
            key="v",
        )
        rows = e.shown["rows"]
        packed = lambda k, dtype: np.frombuffer(e.arrays[k]["data"], dtype).reshape(
            e.arrays[k]["shape"]
        )
        assert np.array_equal(packed("votes", np.int32), votes[rows].numpy()) and np.allclose(
            packed("probs", np.float32)[0], ds.predict_proba(votes)[rows]
        )
        assert np.allclose(
            packed("estimated", np.float32)[0], ds.accuracies(votes), atol=1e-6
        ) and packed("images", np.uint8).shape == (10, 3, 27, 14)
        assert np.allclose(packed("real", np.float32), lf_analysis(votes, y).accuracy)
        i = int(rows[0])
        assert (
            e.readout().startswith(f"Sample {i}: {int((votes[i] >= 0).sum())} of 4 functions vote")
            and e.saved_size < Explorer.max_saved
        )
        first = e.axes["sample"]
        assert e.other_samples().axes["sample"] != first and len(e.plot().axes) == 2
        json.dumps(e.data)

    def test_without_truth_and_from_the_technique(self):
        e = VotesExplorer([[0, 1, -1], [-1, -1, -1]])
        assert e.axes["colour"] == ["with the label model"] and e.readout().endswith("50.0 %.")
        learn = fit(make([WeakSupervision(lfs=rules)], data(labeled=8)), 1)
        shown = learn.weak_supervision.explore(key="w")
        assert (
            list(shown.axes["model"]) == ["DawidSkene", "MajorityVote"]
            and shown.data["truth"]
            and "images" in shown.arrays
        )
        with pytest.raises(LabelKitError, match="no labels yet"): WeakSupervision().explore()

    def test_disputed_first(self):
        assert disputed(
            torch.tensor([[-1, -1, -1], [0, 1, 1], [0, 0, 0], [0, 1, 2]]), 3, 9
        ).tolist() == [3, 1, 2, 0]

    @pytest.mark.parametrize(
        "change, word",
        [
            (dict(models={}), "models is empty"),
            (dict(models=dict(a=torch.rand(2))), "models['a']"),
            (dict(y=[1]), "y has 1"),
            (dict(names=["a"]), "names"),
            (dict(vocab=["a"]), "from 0 to 1"),
            (dict(images=torch.rand(2, 4, 4)), "images"),
            (dict(ids=[1]), "ids"),
            (dict(samples=0), "samples"),
            (dict(models=dict(a=torch.rand(2, 3)), vocab=["a", "b"]), "make them agree"),
        ],
    )
    def test_refuses(self, change, word):
        with pytest.raises(LabelKitError) as e:
            VotesExplorer(**(dict(votes=[[0, 1], [1, 1]]) | change))
        assert word in str(e.value)

    def test_module_is_valid(self, tmp_path):
        text = esm("votes_explorer.js")
        assert "innerHTML" not in text and "http" not in text.replace(
            "http://www.w3.org/2000/svg", ""
        )
        if not shutil.which("node"): pytest.skip("no node to parse the module")
        (tmp_path/"m.mjs").write_text(text, encoding="utf-8")
        subprocess.run(["node", "--check", str(tmp_path/"m.mjs")], check=True)
