"""What FixMatch is worth when its unlabeled images come from elsewhere, after Radio Galaxy Zoo.

Every cell is trained with five seeds: label counts × pools of unlabeled digits, and the labels
alone in weak views. Accuracy, calibration error, and the Fréchet distance of the pool to the
labeled digits in the features of the network that knows the labels alone. The notebook
nbs/pseudo/galaxy_study.ipynb shows what it writes.

    python benchmarks/galaxy_study.py [--out FILE]
"""
import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch

torch.set_num_threads(1)
from fastai.basics import Learner, accuracy, no_random, set_seed
from fastai.callback.all import *

from labelkit.core.fit import quiet
from labelkit.core.teachers import evaluating
from labelkit.models import small_cnn
from labelkit.pseudo.base import WeakViews
from labelkit.pseudo.fixmatch import FixMatch
from labelkit.pseudo.galaxy_study import POOLS, calibration_error, distance_to_pool, study_loaders

LABELS = (10, 100, 500)
SEEDS = range(5)
STEPS = 180
WIDTH = 8
OUT = Path(__file__).parent.parent/"labelkit"/"assets"/"studies"/"galaxy_study.json"


def trained_with(labels, pool, seed, cbs):
    "A learner after its training, and what it is worth"
    with no_random(seed):
        dls = study_loaders(labels, pool, seed)
        set_seed(seed, reproducible=True)
        learn = Learner(dls, small_cnn(dls, width=WIDTH), metrics=accuracy, cbs=cbs)
        epochs = max(STEPS//len(dls.train), 1)
        with quiet(learn): learn.fit_one_cycle(epochs, 2e-2)
    x,y = (torch.cat(o) for o in zip(*dls.valid))
    with evaluating(learn.model): probs = learn.model(x).softmax(1)
    right = float((probs.argmax(1) == y).float().mean())
    steps = epochs*len(dls.train)
    return learn,dict(accuracy=right, calibration=calibration_error(probs, y), steps=steps)


def short(run):
    "`run` with numbers as a file needs them"
    return {k: round(v, 5) if isinstance(v, float) else v for k,v in run.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT)
    out = parser.parse_args().out
    done = json.loads(out.read_text())["runs"] if out.exists() else []
    known = {(o["seed"], o["labels"], o["pool"]) for o in done}
    begin = time.time()
    for seed in SEEDS:
        for labels in LABELS:
            if all((seed, labels, o) in known for o in ("none", *POOLS)): continue
            alone,found = trained_with(labels, "same", seed, WeakViews())
            runs = [dict(seed=seed, labels=labels, pool="none", **found)]
            for pool in POOLS:
                far = distance_to_pool(alone.model, study_loaders(labels, pool, seed))
                _,found = trained_with(labels, pool, seed, FixMatch())
                runs.append(dict(seed=seed, labels=labels, pool=pool, distance=far, **found))
            done = [o for o in done if (o["seed"], o["labels"]) != (seed, labels)] + runs
            how = f"small_cnn(width={WIDTH}), about {STEPS} steps"
            said = dict(run=how, runs=list(map(short, done)))
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(said, indent=1) + "\n")
            print(f"{time.time()-begin:.0f} s: seed {seed}, {labels} labels", flush=True)


if __name__ == "__main__": main()
