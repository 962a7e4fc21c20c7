"""Which technique when: every setting of the page, on digits, five seeds each, the value after the
last epoch.

    python benchmarks/which_when.py                  # all settings, about 15 minutes on one core
    python benchmarks/which_when.py noisy bags       # these only; the others stay as they are

Writes benchmarks/results/which_when.json, from which the site makes its page. Each row is trained
with the same data, initial weights and order of batches as the setting's first row; differences are
paired by seed.
"""
import json
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch

torch.set_num_threads(1)
from fastai.basics import Learner, Metric, accuracy, set_seed
from fastai.callback.all import *

from labelkit.all import *
from labelkit.evidence.runs import train_row
from labelkit.mix.metrix import contrastive_loss, recall_at_1
from timing import RESULTS, save, versions

net = partial(small_cnn, width=16)
still = lambda x: x


def teacher(seed, **kwargs):
    "A network trained on all digits"
    with torch.random.fork_rng(devices=[]):
        dls = digits(seed=seed, **kwargs)
        set_seed(seed)
        learn = Learner(dls, small_cnn(dls), metrics=accuracy)
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(8, 1e-2)
    return learn


def ten_views(dls, answers):
    "A store of the teacher's answers to ten views of each labeled sample"
    path = Path(tempfile.mkdtemp())/"store"
    return reinforce(
        path,
        dls.train_ds.arrays.x,
        answers,
        AugmentViews(scale=(0.5, 1.0), flip=False),
        n_views=10,
        progress=False,
    )


def few_labels():
    return dict(
        title="Few labels",
        what="40 labeled digits, 1,218 without a label",
        data=digits(labeled=40),
        epochs=15,
        lr=1e-2,
        rows={
            "labels only": [],
            "weak views": WeakViews(),
            "MixUp": MixUp(),
            "CutMix": CutMix(),
            "ResizeMix": ResizeMix(),
            "ManifoldMixUp": ManifoldMixUp(),
            "AdAutoMix": AdAutoMix(),
            "FixMatch": FixMatch(threshold=0.8),
            "FlexMatch": FlexMatch(threshold=0.8),
            "UDA": UDA(),
            "InPL": InPL(),
            "MeanTeacher": MeanTeacher(),
            "SelfTraining": SelfTraining(select="topk", k=0.6, per_class=True),
            "SimMatchV2": SimMatchV2(),
            "FutureSelfTraining": FutureSelfTraining(threshold=0.8),
        },
    )


def noisy():
    return dict(
        title="Noisy labels",
        what="1,258 digits, 40 % of the labels wrong",
        data=digits(noise_rate=0.4),
        epochs=15,
        lr=1e-2,
        rows={
            "plain": [],
            "MixUp": MixUp(),
            "ConfidentRelabel": ConfidentRelabel(),
            "CoTeaching": CoTeaching(noise_rate=0.4),
            "NestedDropout": NestedDropout(),
            "CoTeaching and NestedDropout": [CoTeaching(noise_rate=0.4), NestedDropout()],
        },
    )


def long_tail():
    data = digits(imbalance=30, bs=32)
    weak = default_views(data)[0]
    return dict(
        title="Long tail",
        what="the most frequent digit has 30 times as many labels as the rarest; validation has "
             "all equally",
        data=data,
        epochs=12,
        lr=1e-2,
        rows={
            "plain": [],
            "weak views": WeakViews(),
            "MixUp": MixUp(),
            "MDCS, one balanced expert": MDCS(exponents=(1.0,), weak=still, strong=weak),
            "MDCS": MDCS(weak=still, strong=weak),
        },
    )


def long_tail_unlabeled():
    return dict(
        title="Long tail, few labels",
        what="100 labels in a long tail of 20, the rest without a label in the same tail; "
             "validation has all equally",
        data=digits(labeled=100, imbalance=20),
        epochs=15,
        lr=1e-2,
        rows={
            "labels only": [],
            "weak views": WeakViews(),
            "FixMatch": FixMatch(threshold=0.8),
            "FlexMatch": FlexMatch(threshold=0.8),
            "InPL": InPL(),
        },
    )


def unknown():
    return dict(
        title="Unknown classes",
        what="36 labels of the digits 0 to 5; 7 to 9 and 6 are among the unlabeled; accuracy on "
             "the known ones",
        data=digits(labeled=36, known=6),
        epochs=15,
        lr=1e-2,
        rows={
            "labels only": [],
            "weak views": WeakViews(),
            "FixMatch": FixMatch(threshold=0.8),
            "IOMatch": IOMatch(threshold=0.8),
        },
    )


def in_bags():
    return dict(
        title="Bags",
        what="no label at all, but the class shares of every bag of 8",
        data=digits(bag_size=8, bs=64),
        epochs=15,
        lr=1e-2,
        rows={
            "shares as soft labels": [],
            "ProportionLoss": ProportionLoss(),
            "LabelProportions": LabelProportions(),
        },
    )


def weak():
    return dict(
        title="Weak labels",
        what="100 labels, and what labeling functions made from them say of the others",
        data=digits(labeled=100),
        epochs=6,
        lr=1e-2,
        rows={
            "labels only": [],
            "WeakSupervision, majority vote": WeakSupervision(label_model=MajorityVote()),
            "WeakSupervision, Dawid–Skene": WeakSupervision(),
            "WeakSupervision, covariance": WeakSupervision(label_model=CovarianceLabelModel()),
            "FixMatch": FixMatch(threshold=0.8),
        },
    )


def complementary():
    return dict(
        title="Complementary labels",
        what="every label says one digit that the image is not",
        data=digits(complementary=True),
        epochs=15,
        lr=5e-3,
        rows={
            "read as ordinary labels": [],
            "ComplementaryLabels": ComplementaryLabels(),
            "and MixUp": [MixUp(alpha=0.2), ComplementaryLabels()],
            "and IntraClusterMixUp": [IntraClusterMixUp(), ComplementaryLabels()],
        },
    )


def a_teacher():
    answers = teacher(0)
    return dict(
        title="A teacher",
        what="a small student with 40 labels, the other digits without, and a network trained on "
             "all of them",
        data=digits(labeled=40),
        epochs=15,
        lr=1e-2,
        model=partial(small_cnn, width=4),
        rows={
            "labels only": [],
            "KnowledgeDistillation, labeled samples": KnowledgeDistillation(answers),
            "KnowledgeDistillation": KnowledgeDistillation(answers, unlabeled=True),
            "MEALv2, two teachers": MEALv2([answers, teacher(1)], unlabeled=True),
            "RobustActiveDistillation, 300 questions": RobustActiveDistillation(
                answers, budget=300
            ),
            "random questions": RobustActiveDistillation(answers, budget=300, policy="random"),
            "HARD, labeled samples": HARD(answers),
            "DatasetReinforcement, labeled samples": lambda dls: DatasetReinforcement(
                ten_views(dls, answers)
            ),
        },
    )


def a_weak_teacher():
    ask = lambda **kwargs: lambda dls: WeakToStrong(train_weak(dls), unlabeled=True, **kwargs)
    return dict(
        title="A weak teacher",
        what="a larger student learns from a smaller network's answers about unlabeled digits; "
             "that network had the 40 labels, the student has none",
        data=digits(labeled=40),
        epochs=15,
        lr=1e-2,
        rows={
            "as the weak one answers": ask(confidence=0.0),
            "WeakToStrong": ask(),
            "the student on the 40 labels": [],
        },
    )


def train_weak(dls):
    "A network of four channels, trained on the forty labels"
    return train_row(
        dict(data=dls, cbs=[], model=partial(small_cnn, width=4), epochs=15, lr=1e-2), 0
    )[0]


def all_labels():
    return dict(
        title="All labels",
        what="1,258 labeled digits",
        data=digits(),
        epochs=8,
        lr=1e-2,
        rows={
            "plain": [],
            "MixUp": MixUp(),
            "MixUp, decoupled": MixUp(decoupled=0.1),
            "CutMix": CutMix(),
            "CutMix, decoupled": CutMix(decoupled=0.1),
            "ResizeMix": ResizeMix(),
            "ManifoldMixUp": ManifoldMixUp(),
            "AdAutoMix": AdAutoMix(),
        },
    )


def transformer():
    return dict(
        title="A transformer",
        what="1,258 labeled digits and a small vision transformer",
        data=digits(),
        epochs=8,
        lr=3e-3,
        model=small_vit,
        rows={"plain": [], "MixUp": MixUp(), "CutMix": CutMix(), "SMMix": SMMix()},
    )


class Recall(Metric):
    "Recall@1 of the model's outputs over the whole validation set"
    name = "recall_at_1"
    def reset(self):
        self.z = []
        self.y = []
    def accumulate(self, learn):
        self.z.append(learn.pred.detach())
        self.y.append(learn.y)
    @property
    def value(self): return recall_at_1(torch.cat(self.z), torch.cat(self.y))


def metric():
    base = digits()
    (xt, yt), (xv, yv) = (
        (ds.arrays.x[ds.rows], ds.arrays.y[ds.rows]) for ds in (base.train_ds, base.valid_ds)
    )
    unseen = torch.cat([xt[yt>4], xv[yv>4]]),torch.cat([yt[yt>4], yv[yv>4]])
    data = lambda seed: from_arrays(xt[yt<5], yt[yt<5], *unseen, vocab=range(10), bs=50, seed=seed)
    loss = partial(contrastive_loss, neg_margin=1.)
    rows = {
        "contrastive loss": [],
        **{
            f"Metrix, {o}": Metrix(level=o, neg_margin=1.0)
            for o in ("input", "feature", "embedding")
        },
    }
    return dict(
        title="Retrieval",
        what="an embedding of the digits 0 to 4; share of the digits 5 to 9 whose nearest "
             "neighbour is of their class",
        data=data,
        epochs=8,
        lr=1e-2,
        model=lambda dls: small_cnn(c=16, c_in=1, width=8),
        metric=Recall(),
        rows={k: dict(cbs=cb, loss_func=loss) for k, cb in rows.items()},
    )


SETTINGS = dict(
    all_labels=all_labels,
    transformer=transformer,
    metric=metric,
    few_labels=few_labels,
    noisy=noisy,
    long_tail=long_tail,
    long_tail_unlabeled=long_tail_unlabeled,
    unknown=unknown,
    bags=in_bags,
    weak=weak,
    complementary=complementary,
    teacher=a_teacher,
    weak_teacher=a_weak_teacher,
)


def run(name, seeds=5):
    "A setting's table as plain values"
    s = SETTINGS[name]()
    result = compare(
        s["rows"],
        s["data"],
        seeds=seeds,
        epochs=s["epochs"],
        lr=s["lr"],
        model=s.get("model", net),
        metric=s.get("metric", accuracy),
        progress=False,
    )
    t = result.table()
    number = lambda v: None if v != v else round(float(v), 4)
    rows = [
        dict(
            row=k,
            **{
                c: number(t.loc[k, c])
                for c in ("mean", "spread", "difference", "low", "high", "seconds")
            },
            values=[number(v) for v in result.values(k).values()],
        )
        for k in t.index
    ]
    return dict(
        title=s["title"],
        what=s["what"],
        epochs=s["epochs"],
        lr=s["lr"],
        seeds=seeds,
        config=result.config["rows"],
        rows=rows,
    )


if __name__ == "__main__":
    path = RESULTS/"which_when.json"
    done = json.loads(path.read_text())["settings"] if path.exists() else {}
    for name in sys.argv[1:] or SETTINGS:
        done[name] = run(name)
        save(
            "which_when",
            dict(
                settings={k: done[k] for k in SETTINGS if k in done},
                versions=versions("torch", "fastai"),
            ),
        )
        print(f"\n{done[name]['title']}: {done[name]['what']}")
        for r in done[name]["rows"]:
            gain = (
                ""
                if r["difference"] is None
                else f"{r['difference']:+.3f} ({r['low']:+.3f} to {r['high']:+.3f})"
            )
            print(
                f"  {r['row']:42s} {r['mean']:.3f} ± {r['spread']:.3f}  {gain}  {r['seconds']:.1f} "
                "s",
                flush=True,
            )
