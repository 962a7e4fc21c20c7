"""The table of targets, and ConfidentRelabel: cleanlab's numbers, what it does to a fit and what it
leaves alone, users' own loaders, and wrong input"""
import json, pickle, random

import numpy as np, pytest, torch
from fastai.basics import Callback, DataLoader, DataLoaders, Learner, accuracy
from fastai.callback import schedule  # noqa: F401  adds lr_find
from torch import nn
from torch.utils.data import TensorDataset

from places import REFERENCES
from small import Records, quadrants
from labelkit.core.checkpoint import Checkpoint
from labelkit.core.record import Supervision
from labelkit.data.loaders import from_arrays, label_dls
from labelkit.data.samples import given_labels
from labelkit.errors import LabelKitError
from labelkit.models import small_cnn
from labelkit.mix.cutmix import CutMix
from labelkit.pseudo.fixmatch import FixMatch
from labelkit.relabel.base import Relabel, TargetTable
from labelkit.relabel.confident_relabel import (
    ConfidentRelabel,
    confident_learning,
    new_weights,
    rank_flags,
)

reference = json.loads((REFERENCES/"relabel.json").read_text())[0]
quick = dict(folds=2, epochs=1)


def data(n=120, noise_rate=.25, **kwargs): return quadrants(n, noise_rate=noise_rate, **kwargs)


def probs_for(dls, sure=.9):
    "Out-of-fold probabilities of a model that knows the truth"
    c = dls.c
    return torch.full((dls.n_ids, c), (1-sure)/(c-1)).scatter_(1, dls.truth[:,None], sure)


def make(cbs, dls=None, seed=0, metrics=accuracy, **kwargs):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    dls = data(**kwargs) if dls is None else dls
    return Learner(
        dls, small_cnn(dls, width=4), cbs=cbs, metrics=metrics, loss_func=nn.CrossEntropyLoss()
    )


def fit(learn, epochs=2, **kwargs):
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, 3e-3, **kwargs)
    return learn

def weights(learn): return [p.detach().clone() for p in learn.model.state_dict().values()]
def same(a, b):
    return (
        all(torch.equal(p, q) for p, q in zip(weights(a), weights(b)))
        and a.recorder.losses == b.recorder.losses
    )


def batch(ids, y=None, c=3):
    ids = torch.tensor(ids)
    return Supervision(torch.rand(len(ids), 1), ids % c if y is None else y, c, ids=ids)


class TestTable:
    def test_what_it_does_not_name_stays(self):
        t = TargetTable(10)
        t.set_targets(torch.tensor([7, 4]), torch.tensor([[.5, 0., .5], [0., 1., 0.]]))
        t.set_weights(torch.tensor([2]), torch.tensor([.25]))
        t.apply(s := batch([2, 7, 1, 4]))
        want = torch.tensor([[0., 0., 1.], [.5, 0., .5], [0., 1., 0.], [0., 1., 0.]])
        assert torch.equal(s.targets, want) and s.weights.tolist() == [.25, 1., 1., 1.]
        assert s.edited and torch.equal(s.y, torch.tensor([2, 1, 1, 1]))

    def test_each_round_says_everything_again(self):
        t = TargetTable(10)
        t.set_targets(torch.tensor([7, 4]), torch.eye(3)[[0, 0]])
        t.set_weights(torch.tensor([7, 4]), torch.tensor([0., 2.]))
        t.set_targets(torch.tensor([4]), torch.eye(3)[[2]])
        t.set_weights(torch.tensor([1]), torch.tensor([.5]))
        t.apply(s := batch([7, 4, 1]))
        assert s.targets.argmax(1).tolist() == [1, 2, 1] and s.weights.tolist() == [1., 1., .5]
        t.set_targets(torch.tensor([]).long(), torch.zeros(0, 3))
        t.set_weights(torch.tensor([]).long(), torch.zeros(0))
        t.apply(s := batch([7, 4, 1]))
        assert not s.edited and s.targets.argmax(1).tolist() == [1, 1, 1]

    def test_empty_touches_nothing(self):
        TargetTable(3).apply(s := batch([0, 1]))
        assert not s.edited and s._targets is None

    def test_weights_multiply_what_others_gave(self):
        t = TargetTable(3)
        t.set_weights(torch.tensor([1]), torch.tensor([.5]))
        s = batch([0, 1])
        s.weigh(torch.tensor([3., 4.]))
        t.apply(s)
        assert s.weights.tolist() == [3., 2.]

    @pytest.mark.parametrize("weights", [[.5], []])
    def test_saved_and_taken_over(self, weights):
        t = TargetTable(5)
        t.set_targets(torch.tensor([3]), torch.eye(3)[[0]])
        t.set_weights(torch.tensor([1]*len(weights)).long(), torch.tensor(weights))
        again = TargetTable(5)
        again.load_state_dict(t.state_dict())
        t.set_targets(torch.tensor([4]), torch.eye(3)[[1]])  # what was saved is a copy
        again.apply(s := batch([1, 3, 4]))
        assert s.targets.argmax(1).tolist() == [1, 0, 1]
        assert s.weights.tolist() == [*(weights or [1.]), 1., 1.]

    def test_maps_of_targets(self):
        "Targets [B, C, H, W], as of segmentation"
        t = TargetTable(4)
        new = torch.rand(1, 3, 2, 2).softmax(1)
        t.set_targets(torch.tensor([2]), new)
        y = torch.randint(3, (2, 2, 2))
        s = Supervision(torch.rand(2, 1, 2, 2), y, 3, "segmentation", ids=torch.tensor([2, 0]))
        t.apply(s)
        assert torch.equal(s.targets[0], new[0])
        assert torch.equal(s.targets[1].argmax(0), y[1])

    def test_other_classes(self):
        t = TargetTable(4)
        t.set_targets(torch.tensor([2]), torch.eye(4)[[0]])
        with pytest.raises(LabelKitError, match="have 4 classes and the data 3: make them agree"):
            t.apply(batch([0]))


class Turns(Relabel):
    "A round a fit: corrects what it is told to"
    wanted = ()
    @property
    def due(self): return self.learn.epoch == 0
    def find(self):
        ids = torch.tensor(self.wanted, dtype=torch.long)
        self.table.set_targets(ids, nn.functional.one_hot((self.dls.given[ids]+1) % 4, 4))
        self.table.set_weights(ids[:1], torch.tensor([.5]*len(ids[:1])))


class TestRounds:
    def test_what_an_earlier_round_corrected_is_set_back(self):
        dls = data(noise_rate=0.)
        cb = Turns()
        rec = Records()
        learn = make([cb, rec], dls)
        for wanted in ([5, 9], [9], []):
            cb.wanted = wanted
            fit(learn, 1)
            new = dls.given.clone()
            new[wanted] = (new[wanted]+1) % 4
            weight = torch.ones(len(new))
            weight[wanted[:1]] = .5
            for s in rec.seen:
                assert torch.equal(s.targets.argmax(1), new[s.ids])
                assert torch.equal(s.weights, weight[s.ids])


class TestStatistics:
    @pytest.mark.parametrize("labels, shape, said", [
        ([], (0, 3), r"labels has shape \(0,\)"), ([0, 0], (2, 1), r"probs \(2, 1\)"),
        ([0, 1], (3, 2), r"labels has shape \(2,\) and probs \(3, 2\)"), ([0, 1], (2,), "probs"),
        ([0, 3], (2, 3), "go from 0 to 3"), ([-1, 0], (2, 2), "go from -1 to 0"),
        ([0., 1.], (2, 2), "torch.float32"),
    ])
    def test_what_does_not_fit(self, labels, shape, said):
        with pytest.raises(LabelKitError, match=said):
            confident_learning(torch.tensor(labels), torch.full(shape, .5))

    def test_a_rule_that_cleanlab_does_not_know(self):
        with pytest.raises(LabelKitError, match="filter_by='worst' is not known"):
            confident_learning(torch.tensor([0, 1]), torch.full((2, 2), .5), "worst")

    def test_reference(self):
        e = reference["expected"]
        tol = reference["tolerance"]
        y = torch.tensor(reference["inputs"]["labels"])
        p = torch.tensor(reference["inputs"]["pred_probs"], dtype=torch.double)
        f = confident_learning(y, p)
        assert torch.allclose(
            f["thresholds"].double(), torch.tensor(e["thresholds"]).double(), atol=tol
        )
        assert f["counts"].tolist() == e["uncalibrated"]
        assert torch.allclose(f["joint"], torch.tensor(e["joint"]), atol=tol)
        assert torch.allclose(f["trust"], torch.tensor(e["noise_matrix"]).diagonal(), atol=tol)
        off = confident_learning(y, p, "confident_learning")["flagged"].nonzero().flatten().tolist()
        assert off == e["off_diagonal_indices"] and len(off) == e["num_label_issues"]

    def test_by_hand(self):
        # t0 = (.9+.8+.1)/3 = .6, t1 = (.45+.8+.15)/3 = .467; sample 3 reaches neither
        p0 = torch.tensor([.9, .8, .1, .55, .2, .85])
        f = confident_learning(torch.tensor([0, 0, 0, 1, 1, 1]), torch.stack([p0, 1-p0], 1))
        assert f["thresholds"].tolist() == pytest.approx([.6, 1.4/3], abs=1e-6)
        assert f["counts"].tolist() == [[2, 1], [1, 1]]
        assert f["flagged"].nonzero().flatten().tolist() == [2, 5]
        assert f["suggested_label"].tolist()[2] == 1 and f["confidence"][2] == pytest.approx(.9)
        assert f["label_quality"].tolist() == pytest.approx([.9, .8, .1, .45, .8, .15])

    def test_a_class_nobody_is_labeled_as(self):
        p = torch.tensor([[.8, .1, .1], [.7, .2, .1], [.1, .8, .1], [.2, .7, .1], [.1, .85, .05]])
        f = confident_learning(torch.tensor([0, 0, 1, 1, 0]), p)
        assert f["flagged"].tolist() == [False]*4 + [True] and f["trust"].shape == (3,)


class TestRanking:
    def found(self):
        # sample: 0 fine; 1 both say the other; 2 neither reaches; 3 both reach; 4 the given reaches
        return dict(
            thresholds=torch.tensor([.6, .4]),
            label_quality=torch.tensor([.9, .1, .35, .65, .62]),
            confidence=torch.tensor([.1, .9, .45, .35, .38]),
            suggested_label=torch.tensor([1, 1, 0, 1, 1]),
            flagged=torch.tensor([False, True, True, True, True]),
            trust=torch.tensor([.5, .8]),
        )
    labels = torch.tensor([0, 0, 1, 0, 0])

    def test_by_hand(self):
        f = self.found()
        f["thresholds"] = torch.tensor([.6, .35])
        r = rank_flags(self.labels, f)
        assert r["reason"].tolist() == [0, 1, 4, 2, 2]
        assert rank_flags(self.labels, self.found())["reason"].tolist() == [0, 1, 3, 4, 4]
        assert r["severity"].tolist() == [0, 3, 1, 2, 2]
        assert r["label"].tolist() == [0, 1, 0, 1, 1]
        assert r["sureness"].tolist() == pytest.approx([.9, .9, .45, .35, .38])

    @pytest.mark.parametrize("k,touched", [(0, []), (1, [1]), (2, [1, 4]), (3, [1, 3, 4]),
                                           (4, [1, 2, 3, 4]), (5, [1, 2, 3, 4])])
    def test_the_worst_first(self, k, touched):
        "By severity, and then by the lead of the other class: 4 is behind by .24, 3 by .3"
        f = self.found()
        f["thresholds"] = torch.tensor([.6, .35])
        assert rank_flags(self.labels, f, k/5)["touched"].nonzero().flatten().tolist() == touched

    def test_weights(self):
        f = self.found()
        touched = torch.tensor([False, True, False, True, False])
        for how,want in (
            ("none", [1, 0, 1, 0, 1]),
            ("quality", [1, .1, 1, .65, 1]),
            ("class", [2, 0, 1.25, 0, 2]),
        ):
            assert new_weights(self.labels, f, touched, how).tolist() == pytest.approx(want)
        assert new_weights(self.labels, f, touched & False, "class").tolist() == [1.]*5


class TestActions:
    @pytest.fixture
    def dls(self): return data()

    def run(self, dls, **kwargs):
        rec = Records()
        learn = make([ConfidentRelabel(pred_probs=probs_for(dls), **kwargs), rec], dls)
        return fit(learn, 1),rec.seen

    def test_prune(self, dls):
        learn,seen = self.run(dls)
        wrong = dls.given != dls.truth
        for s in seen:
            assert torch.equal(s.weights, (~wrong[s.ids]).float()) and torch.equal(
                s.y, dls.given[s.ids]
            )

    @pytest.mark.parametrize("soft", [False, True])
    def test_relabel(self, dls, soft):
        learn,seen = self.run(dls, action="relabel", soft=soft)
        wrong = dls.given != dls.truth
        hot = nn.functional.one_hot(dls.truth, dls.c).float()
        target = torch.where(wrong[:,None] & soft, probs_for(dls), hot)
        for s in seen: assert torch.allclose(s.targets, target[s.ids]) and (s.weights == 1).all()

    def test_reweight_by_quality(self, dls):
        learn,seen = self.run(dls, action="reweight")
        quality = torch.where(dls.given != dls.truth, .1/3, 1.)
        for s in seen: assert torch.allclose(s.weights, quality[s.ids])

    def test_reweight_by_class(self, dls):
        learn,seen = self.run(dls, action="reweight", weighting="class")
        f = confident_learning(dls.given, probs_for(dls))
        w = torch.where(dls.given != dls.truth, 0., 1/f["trust"][dls.given])
        for s in seen: assert torch.allclose(s.weights, w[s.ids])

    def test_share_takes_the_worst(self, dls):
        p = probs_for(dls)
        wrong = (dls.given != dls.truth).nonzero().flatten()
        worst = wrong[:3]
        p[worst] = torch.full((3, 4), .01/3).scatter_(1, dls.truth[worst,None], .99)
        learn = fit(make(ConfidentRelabel(pred_probs=p, share=3/120), dls), 1)
        book = learn.confident_relabel.issues()
        assert sorted(book.id[book.touched]) == worst.tolist() and len(book) == len(wrong)
        assert (
            learn.confident_relabel.table.weights == 0
        ).nonzero().flatten().tolist() == worst.tolist()

    def test_issues(self, dls):
        dls.vocab = ["<b>", "cat", "dog", "it's"]
        learn,_ = self.run(dls)
        f = learn.confident_relabel.issues()
        wrong = (dls.given != dls.truth).nonzero().flatten().tolist()
        assert (
            sorted(f.id) == wrong
            and (f.suggested_label == f.true_label).all()
            and set(f.severity) == {"high"}
        )
        row = f.iloc[0]
        assert row.reason.startswith(
            f"given {row.given_label} is predicted with 0.03, below its class threshold 0."
        )
        assert f"; {row.suggested_label} with 0.90, reaching its class threshold 0." in row.reason
        assert row.given_label == dls.vocab[
            dls.given[row.id]
        ] and row.label_quality == pytest.approx(0.1 / 3)
        book = learn.confident_relabel.ledger
        assert book.summary().accuracy.tolist() == [1.0] and book.summary().mask_rate.iloc[
            0
        ] == pytest.approx(len(wrong) / 120)
        assert set(book.frame().reason) == {
            "not flagged",
            "another class reaches its threshold, the given one does not",
        }

    def test_ledger_file(self, dls, tmp_path):
        learn,_ = self.run(dls)
        from labelkit.storage.ledger import read_ledger
        learn.confident_relabel.ledger.to_parquet(tmp_path/"l.parquet")
        assert {"label_quality", "severity", "flagged"} <= set(read_ledger(tmp_path/"l.parquet"))


class TestFit:
    def test_neutral(self):
        assert same(fit(make(ConfidentRelabel(**ConfidentRelabel.card.neutral))), fit(make([])))

    def test_cross_validation_leaves_no_trace(self):
        "With a share too small for one sample it looks at all labels and touches none"
        ours = fit(make(ConfidentRelabel(share=.001, **quick)))
        assert ours.confident_relabel.found and same(ours, fit(make([])))

    def test_two_runs_are_one(self):
        a,b = (fit(make(ConfidentRelabel(**quick))) for _ in range(2))
        assert same(a, b) and a.confident_relabel.issues().equals(b.confident_relabel.issues())

    def test_only_once(self, monkeypatch):
        calls = []
        monkeypatch.setattr(
            "labelkit.relabel.confident_relabel.cross_validated",
            lambda learn, samples, *_: calls.append(1) or probs_for(learn.dls)[samples.ids],
        )
        learn = make(ConfidentRelabel())
        learn.validate()
        learn.get_preds()
        assert not calls
        with learn.no_bar(), learn.no_logging(): learn.lr_find(show_plot=False, num_it=8)
        assert not calls and not learn.confident_relabel.found
        fit(fit(learn))
        assert len(calls) == 1

    def test_validation_is_untouched(self):
        learn = fit(make(ConfidentRelabel(**quick)))
        with learn.no_bar(), learn.no_logging(): loss = list(learn.validate())
        learn.remove_cb(ConfidentRelabel)
        with learn.no_bar(), learn.no_logging(): assert list(learn.validate()) == loss

    @pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt])
    def test_interrupted_cross_validation(self, stop):
        learn = make(ConfidentRelabel(model_fn=lambda: (_ for _ in ()).throw(stop("now"))))
        rng = torch.get_rng_state()
        with pytest.raises(stop): fit(learn)
        assert (
            torch.equal(torch.get_rng_state(), rng)
            and "one_batch" not in learn.__dict__
            and not learn.confident_relabel.found
        )
        learn.confident_relabel.model_fn = None
        fit(learn, 1)

    def test_resumed(self, tmp_path, monkeypatch):
        class Stop(Callback):
            def before_epoch(self):
                if self.epoch == 2: raise KeyboardInterrupt
        ours = lambda *cbs: make([ConfidentRelabel(action="relabel", **quick), *cbs])
        whole = fit(ours(Checkpoint(tmp_path/"a.pt")), 3)
        with pytest.raises(KeyboardInterrupt): fit(ours(Checkpoint(tmp_path/"b.pt"), Stop()), 3)
        monkeypatch.setattr(
            "labelkit.relabel.confident_relabel.cross_validated",
            lambda *_: pytest.fail("judged again"),
        )
        resumed = fit(ours(Checkpoint(tmp_path/"b.pt")), 3)
        assert same(whole, resumed)
        assert whole.confident_relabel.issues().equals(resumed.confident_relabel.issues())

    def test_beside_others(self):
        dls = data(n=160, labeled=80, ratio=1)
        rec = Records()
        learn = make(
            [ConfidentRelabel(action="relabel", **quick), FixMatch(threshold=0.3), CutMix(), rec],
            dls,
        )
        fit(learn)
        assert all(
            torch.allclose(s.targets.sum(1), torch.ones(len(s.targets)), atol=1e-5)
            for s in rec.seen
        )
        assert (learn.confident_relabel.table.place[dls.given < 0] == -1).all()
        book = learn.confident_relabel.ledger.frame()
        assert (dls.given[book.id.to_numpy()] >= 0).all() and len(book) == 80

    def test_pickle_and_export(self, tmp_path):
        learn = fit(
            make(ConfidentRelabel(model_fn=lambda: small_cnn(c=4, c_in=1, width=4), **quick)), 1
        )
        cb = pickle.loads(pickle.dumps(learn.confident_relabel))
        assert cb.folds == 2 and cb.model_fn is None and not cb.found
        with pytest.raises(LabelKitError, match="model_fn of ConfidentRelabel were left out"):
            fit(make(cb), 1)
        learn.export(tmp_path/"m.pkl")

    def test_bar(self, capsys):
        learn = make(ConfidentRelabel(**quick))
        learn.fit(1)
        assert "cross-validation" in capsys.readouterr().out



class TestOwnLoaders:
    def plain(self, n=60):
        d = data(n)
        x = d.train_ds.arrays.x
        y = d.given
        dls = DataLoaders(
            DataLoader(TensorDataset(x, y), bs=8, shuffle=True, num_workers=0),
            DataLoader(TensorDataset(x, y), bs=8, num_workers=0),
        )
        dls.c = 4
        for dl in dls.loaders: dl.rng = random.Random(0)
        return dls,d

    def test_tensors(self):
        dls,d = self.plain()
        learn = fit(
            make(ConfidentRelabel(action="relabel", pred_probs=probs_for(d)), label_dls(dls)), 1
        )
        assert (
            sorted(learn.confident_relabel.issues().id)
            == (d.given != d.truth).nonzero().flatten().tolist()
        )

    def test_order_does_not_move(self):
        a, b = (
            fit(make(cb, label_dls(self.plain()[0])))
            for cb in (ConfidentRelabel(share=0.001, **quick), [])
        )
        assert same(a, b)

    def test_folder_of_images(self, tmp_path):
        from fastai.vision.data import ImageDataLoaders
        from fastai.vision.augment import aug_transforms
        from PIL import Image
        for i in range(24):
            folder = tmp_path/("valid" if i > 19 else "train")/("dog" if i%2 else "cat")
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (10*i, 255*(i%2), 0)).save(folder/f"{i}.png")
        def loaders():
            random.seed(0)
            np.random.seed(0)
            torch.manual_seed(0)
            return label_dls(
                ImageDataLoaders.from_folder(
                    tmp_path,
                    train="train",
                    valid="valid",
                    bs=4,
                    num_workers=0,
                    batch_tfms=aug_transforms(size=8),
                )
            )

        a, b = (
            fit(make(cb, loaders(), metrics=None), 1)
            for cb in (ConfidentRelabel(share=0.001, **quick), [])
        )
        assert same(a, b)
        learn = make(
            ConfidentRelabel(folds=2, epochs=20, action="relabel"), loaders(), metrics=None
        )
        items = learn.dls.train_ds.items
        assert [learn.dls.vocab[i] for i in given_labels(learn.dls)[1]] == [
            o.parent.name for o in items
        ]
        fit(learn, 1)
        book = learn.confident_relabel.ledger.frame()
        assert len(book) == 20 and [learn.dls.vocab[i] for i in book.given_label] == [
            items[i].parent.name for i in book.id
        ]

    def test_tables(self):
        "fastai's tabular learner: categories and numbers, and targets as a column"
        import pandas as pd
        from fastai.tabular.all import (
            CategoryBlock, Categorify, Normalize, TabularDataLoaders, tabular_learner,
        )
        rng = np.random.default_rng(0)
        df = pd.DataFrame(dict(a=rng.random(90), k=list("xy")*45, label=["p", "q"]*45))
        wrong = [14, 33, 60]
        df.loc[wrong, "label"] = ["q", "p", "q"]
        dls = label_dls(TabularDataLoaders.from_df(
            df, procs=[Categorify, Normalize], cat_names=["k"], cont_names=["a"], y_names="label",
            y_block=CategoryBlock(), bs=8, valid_idx=list(range(80, 90)), device="cpu",
        ))
        torch.manual_seed(0)
        cbs = [ConfidentRelabel("relabel", folds=2, epochs=15, lr=.05), rec := Records()]
        learn = fit(tabular_learner(dls, layers=[8], cbs=cbs), 1)
        issues = learn.confident_relabel.issues()
        assert sorted(issues.id) == wrong and issues.suggested_label.tolist().count("p") == 2
        right = torch.arange(80) % 2
        assert all(torch.equal(s.targets.argmax(1), right[s.ids]) for s in rec.seen)

    def test_texts(self):
        "fastai sorts texts by length, and has a vocabulary of words before that of classes"
        import pandas as pd
        from fastai.text.data import TextDataLoaders
        words = ["good", "bad"]
        rng = np.random.default_rng(0)
        text = lambda i: " ".join([words[i % 2]]*3 + ["word"]*int(rng.integers(1, 30)))
        df = pd.DataFrame(dict(text=[text(i) for i in range(100)], label=["pos", "neg"]*50))
        df.loc[[3, 30, 41], "label"] = ["pos", "neg", "pos"]
        dls = label_dls(TextDataLoaders.from_df(
            df, text_col="text", label_col="label", bs=8, valid_idx=list(range(80, 100)), seed=1,
            num_workers=0,
        ))
        class Bag(nn.Module):
            def __init__(self):
                super().__init__()
                self.embed = nn.Embedding(len(dls.vocab[0]), 8, padding_idx=1)
                self.head = nn.Linear(8, 2)
            def forward(self, x): return self.head(self.embed(x).sum(1))
        torch.manual_seed(0)
        learn = Learner(
            dls, Bag(), loss_func=nn.CrossEntropyLoss(),
            cbs=[ConfidentRelabel("relabel", folds=2, epochs=20, lr=.05), rec := Records()],
        )
        fit(learn, 1)
        # fastai's data set has an order of its own
        word = list(dls.vocab[0]).index("good")
        good = torch.tensor([word in x.tolist() for x,_ in dls.train_ds])
        right = torch.where(good, *map(list(dls.vocab[1]).index, ("pos", "neg")))
        given = given_labels(dls)[1]
        issues = learn.confident_relabel.issues()
        assert sorted(issues.id) == (given != right).nonzero().flatten().tolist()
        assert len(issues) > 1 and set(issues.given_label) == {"neg", "pos"}
        assert all(torch.equal(s.targets.argmax(1), right[s.ids]) for s in rec.seen)


class TestRefused:
    def fails(self, cb, dls, text):
        with pytest.raises(LabelKitError, match=text): fit(make(cb, dls), 1)

    def test_too_few_of_a_class(self):
        self.fails(
            ConfidentRelabel(folds=3),
            data(labeled=8, ratio=1),
            "folds=3, and class 0 has only 2 labeled samples",
        )

    @pytest.mark.parametrize(
        "change,text",
        [
            (lambda p: p[:-1], r"pred_probs has shape \(119, 4\): pass \[120, 4\]"),
            (lambda p: p[:, :3], r"shape \(120, 3\)"),
            (lambda p: p[:, 0], "shape"),
            (
                lambda p: p.index_fill(0, torch.tensor(7), float("nan")),
                "pred_probs of sample 7 is not finite",
            ),
            (lambda p: p * 2, "pred_probs of sample 0 is not a distribution"),
            (
                lambda p: torch.stack([p[:, 0] * 0 - 1, p[:, 0] * 0 + 2, *p.T[2:] * 0], 1),
                "not a distribution",
            ),
        ],
    )
    def test_pred_probs(self, change, text):
        dls = data()
        self.fails(ConfidentRelabel(pred_probs=change(probs_for(dls))), dls, text)

    def test_pred_probs_as_numpy(self):
        dls = data()
        fit(make(ConfidentRelabel(pred_probs=probs_for(dls).numpy()), dls), 1)

    @pytest.mark.parametrize(
        "kwargs",
        [
            dict(action="delete"),
            dict(weighting="loss"),
            dict(filter_by="all"),
            dict(share=2),
            dict(folds=1),
            dict(epochs=0),
            dict(lr=-1),
        ],
    )
    def test_arguments(self, kwargs):
        (name,value), = kwargs.items()
        with pytest.raises(LabelKitError, match=f"{name}={value!r}"): ConfidentRelabel(**kwargs)

    def test_targets(self):
        x = torch.rand(8, 1, 4, 4)
        for y in (torch.eye(8)[:,:3], torch.rand(8), torch.full((8, 3), 1/3)):
            kind = "soft" if y.ndim == 2 and y[0,0] not in (0, 1) else None
            dls = from_arrays(x, y, x, y, kind=kind)
            learn = Learner(
                dls,
                nn.Sequential(nn.Flatten(), nn.Linear(16, max(dls.c, 1))),
                cbs=ConfidentRelabel(**quick),
            )
            with pytest.raises(LabelKitError, match="needs one class number for each sample"):
                fit(learn, 1)

    def test_no_ids(self):
        dls,_ = TestOwnLoaders().plain()
        self.fails(ConfidentRelabel(**quick), dls, "dls has no ids: call `label_dls\\(dls\\)` once")

    def test_torch_loader(self):
        "PyTorch's own loader draws an order nobody can follow"
        d = data(60)
        mk = lambda: torch.utils.data.DataLoader(
            TensorDataset(d.train_ds.arrays.x, d.given), batch_size=8
        )
        dls = DataLoaders(mk(), mk())
        dls.c = 4
        learn = Learner(
            dls,
            small_cnn(c=4, c_in=1, width=4),
            loss_func=nn.CrossEntropyLoss(),
            cbs=ConfidentRelabel(pred_probs=probs_for(d)),
        )
        with pytest.raises(LabelKitError, match="dls has no ids: call `label_dls"): fit(learn, 1)

    def test_issues_before_a_fit(self):
        with pytest.raises(LabelKitError, match="call fit first"):
            make(ConfidentRelabel()).confident_relabel.issues()

    def test_diverging(self):
        self.fails(
            ConfidentRelabel(lr=1e30, folds=2, epochs=3), data(), "diverge: use a smaller one"
        )
