"""Wrong labels by people: accuracy on clean test labels after training on CIFAR-10N's worst
annotator (40 % of the labels wrong), last epoch.

CIFAR-10 and the labels of CIFAR-10N (Wei et al. 2022, https://arxiv.org/abs/2110.12088) are not
part of the project; LABELKIT_DATA names the folder that has `cifar10/` with the images as sheets of
100x100 tiles and `labels.npz`. A few thousand images and a small network: a check on real mistakes,
which resemble each other as the classes do, and not a number to set beside papers. In eight epochs
little is learned by heart, and the labels as given do best.

    LABELKIT_DATA=… python benchmarks/human_noise.py
"""
import argparse
import os
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from fastai.basics import Learner, accuracy, set_seed
from fastai.callback import schedule  # noqa: F401  adds fit_one_cycle
from PIL import Image

from timing import save, table, versions
from labelkit.data.loaders import from_arrays
from labelkit.models import small_cnn
from labelkit.relabel.co_teaching import CoTeaching
from labelkit.relabel.confident_relabel import ConfidentRelabel
from labelkit.relabel.nested_dropout import NestedDropout

METHODS = {
    "as given": list,
    "NestedDropout": lambda: [NestedDropout(sigma=30.)],
    "CoTeaching": lambda: [CoTeaching(noise_rate=.4, ramp=.3)],
    "ConfidentRelabel": lambda: [ConfidentRelabel(folds=3, epochs=4)],
}


def read(folder, n, n_test):
    "The first `n` training images with human and true labels, and the first `n_test` test images"
    sheet = lambda f, k: torch.from_numpy(
        np.asarray(Image.open(folder / f))
        .reshape(100, 32, 100, 32, 3)
        .transpose(0, 2, 4, 1, 3)
        .reshape(10000, 3, 32, 32)[:k]
        .copy()
    )
    labels = np.load(folder/"labels.npz")
    get = lambda k, m: torch.as_tensor(labels[k][:m]).long()
    return (
        sheet("train_0.webp", n),
        get("worse_label", n),
        get("y_train", n),
        sheet("test.webp", n_test),
        get("y_test", n_test),
    )


def run(method, data, seed, epochs, width):
    x,given,_,x_test,y_test = data
    set_seed(seed)
    dls = from_arrays(x, given, x_test, y_test, bs=64, seed=seed, device="cpu")
    learn = Learner(dls, small_cnn(dls, width=width), metrics=accuracy, cbs=METHODS[method]())
    start = time.process_time()
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, 5e-3)
    return learn.final_record[-1],time.process_time() - start


def main(folder, n, n_test, seeds, epochs, width, methods):
    data = read(Path(folder)/"cifar10", n, n_test)
    noise = (data[1] != data[2]).float().mean().item()
    rows = []
    for method in methods:
        acc,seconds = zip(*(run(method, data, s, epochs, width) for s in range(seeds)))
        rows.append(
            dict(
                method=method,
                accuracy=statistics.mean(acc),
                spread=statistics.pstdev(acc),
                seconds=statistics.mean(seconds),
            )
        )
        print(method, [round(o, 4) for o in acc], round(rows[-1]["seconds"], 1), flush=True)
    print(f"{noise:.3f} of {n} human labels are wrong")
    print(
        table(
            [["method", "accuracy", "seconds"]]
            + [[r["method"], f"{r['accuracy']:.3f}", f"{r['seconds']:.0f}"] for r in rows]
        )
    )
    save(
        "human_noise",
        dict(
            what="accuracy on clean CIFAR-10 test labels after training on CIFAR-10N worse_label, "
                 "last epoch, mean over seeds",
            rows=rows,
            noise=noise,
            n=n,
            n_test=n_test,
            seeds=seeds,
            epochs=epochs,
            width=width,
            versions=versions("labelkit", "torch", "fastai"),
        ),
    )


if __name__ == "__main__":
    p = argparse.ArgumentParser(description="Wrong labels by people")
    p.add_argument("--data", default=os.environ.get("LABELKIT_DATA"))
    p.add_argument("--n", type=int, default=3000, help="so many training images")
    p.add_argument("--n-test", type=int, default=2000)
    p.add_argument("--seeds", type=int, default=1)
    p.add_argument("--epochs", type=int, default=8)
    p.add_argument("--width", type=int, default=16)
    p.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    a = p.parse_args()
    if not a.data: raise SystemExit("set LABELKIT_DATA, or pass --data, the folder with cifar10/")
    main(a.data, a.n, a.n_test, a.seeds, a.epochs, a.width, a.methods)
