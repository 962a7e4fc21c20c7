"""Learning a table from bag counts: area under the ROC curve of LabelProportions beside its
baselines and the fully supervised ceiling.

The bank-marketing table of google-deepmind/llp_bp (27,126 training rows, 16 features, binary) is
not part of the project; LABELKIT_DATA names the folder that has `llp_marketing/`. Bags are random;
the validation file is not used, nothing is tuned here, and the values are those of the last epoch.

    LABELKIT_DATA=… python benchmarks/label_proportions.py
"""
import argparse
import os
import statistics
import time
from pathlib import Path

import pandas as pd
import torch
from fastai.basics import Learner, set_seed
from fastai.callback import schedule  # noqa: F401  adds fit_one_cycle
from sklearn.metrics import roc_auc_score

from timing import save, table, versions
from labelkit.data.loaders import from_arrays
from labelkit.models import mlp
from labelkit.relabel.label_proportions import LabelProportions
from labelkit.relabel.proportion_loss import ProportionLoss

METHODS = {
    "shares as soft labels": list,
    "ProportionLoss": lambda: [ProportionLoss()],
    "LabelProportions": lambda: [LabelProportions()],
    "LabelProportions, sim_lam=10": lambda: [LabelProportions(sim_lam=10.0)],
    "LabelProportions, official variant": lambda: [LabelProportions(variant="official")],
    "LabelProportions + ProportionLoss": lambda: [
        LabelProportions(),
        ProportionLoss(keep=0.5, weight=0.5),
    ],
    "every label known": list,
}


def read(folder):
    "Training and test rows as tensors"
    get = lambda n: torch.tensor(pd.read_csv(folder/n).to_numpy())
    return [
        (get(f"x_{s}.csv").float(), get(f"y_{s}.csv").long().flatten()) for s in ("train", "test")
    ]


def run(method, data, bag_size, seed, epochs, bs):
    "Area under the curve on the test rows, and seconds"
    (x,y),(xt,yt) = data
    start = time.process_time()
    dls = from_arrays(
        x,
        y,
        xt,
        yt,
        vocab=["no", "yes"],
        bs=bs,
        val_bs=4096,
        seed=seed,
        bag_size=None if method == "every label known" else bag_size,
    )
    set_seed(seed)
    mean = x.mean(0).tolist()
    std = x.std(0).clamp_min(1e-3).tolist()
    learn = Learner(
        dls, mlp(c=2, c_in=x.shape[1], width=64, stats=(mean, std)), cbs=METHODS[method]()
    )
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(epochs, 3e-3)
        p,t = learn.get_preds()
    return roc_auc_score(t.numpy(), p[:,1].numpy()),time.process_time()-start


def main(folder, n=8192, bag_sizes=(8, 32, 128), seeds=2, epochs=12, bs=256):
    "Print the table and write `benchmarks/results/label_proportions.json`"
    torch.set_num_threads(1)
    data = read(Path(folder)/"llp_marketing")
    data[0] = tuple(o[:n] for o in data[0])
    rows = []
    for bag_size in bag_sizes:
        for method in METHODS:
            runs = [run(method, data, bag_size, s, epochs, bs) for s in range(seeds)]
            auc,seconds = ([r[i] for r in runs] for i in (0, 1))
            rows.append(
                dict(
                    method=method,
                    bag_size=bag_size,
                    auc=statistics.mean(auc),
                    spread=statistics.pstdev(auc),
                    seconds=statistics.mean(seconds),
                )
            )
            print(
                method,
                bag_size,
                [round(o, 4) for o in auc],
                round(rows[-1]["seconds"], 1),
                flush=True,
            )
    show = [["method", *(f"bags of {b}" for b in bag_sizes)]]
    auc = {(r["method"], r["bag_size"]): r["auc"] for r in rows}
    show += [[m, *(f"{auc[m, b]:.3f}" for b in bag_sizes)] for m in METHODS]
    print(table(show))
    save(
        "label_proportions",
        dict(
            what="area under the ROC curve on the test rows of the bank-marketing table, last "
                 "epoch, mean over seeds",
            rows=rows,
            methods=list(METHODS),
            n=len(data[0][0]),
            seeds=seeds,
            epochs=epochs,
            bs=bs,
            versions=versions("labelkit", "torch", "fastai"),
        ),
    )


if __name__ == "__main__":
    p = argparse.ArgumentParser(description="Learning a table from bag counts")
    p.add_argument("--data", default=os.environ.get("LABELKIT_DATA"))
    p.add_argument("--n", type=int, default=8192, help="so many training rows")
    p.add_argument("--seeds", type=int, default=2)
    a = p.parse_args()
    if not a.data:
        raise SystemExit("set LABELKIT_DATA, or pass --data, the folder with llp_marketing/")
    main(a.data, a.n, seeds=a.seeds)
