"""Do crafted shifts order candidates as an unseen target does? Writes what the lesson on crafted
shifts shows.

    python benchmarks/crafted_shifts.py [--seeds 5] [--out FILE]

Candidates are trained on white digits on black, and judged by the usual validation set, by crafted
shifts of it, and by digits in other colours. About four minutes of one core.
"""
import argparse, json
from pathlib import Path

from fastai.basics import Callback, CancelValidException, Learner, accuracy, set_seed
from fastai.callback.schedule import *

from labelkit.all import AdvStyle, CutMix, MixUp, RandAugment, RandomFieldAugmentation, WeakViews
from labelkit.augment.crafted_shifts import crafted_dls
from labelkit.augment.stage import styled_digits
from labelkit.core.fit import quiet
from labelkit.models import small_cnn

CANDIDATES = {
    "plain": list,
    "slow": list,
    "narrow": list,
    "shifts": lambda: [WeakViews()],
    "MixUp": lambda: [MixUp()],
    "CutMix": lambda: [CutMix()],
    "RandAugment 10": lambda: [RandAugment(magnitude=10)],
    "RandAugment 30": lambda: [RandAugment(magnitude=30)],
    "random fields": lambda: [RandomFieldAugmentation(color=.2)],
    "random colours": lambda: [RandomFieldAugmentation(warp=0., color=.8)],
    "MixStyle": lambda: [AdvStyle(style="mix")],
    "DSU": lambda: [AdvStyle(style="batch")],
    "AdvStyle": lambda: [AdvStyle()],
    "AdvStyle, pixels": lambda: [AdvStyle(layer="normalize")],
}

class Unwatched(Callback):
    "Train without looking at the validation set"
    def before_validate(self): raise CancelValidException()

def trained(name, seed):
    set_seed(seed)
    dls = styled_digits("source", labeled=1000, seed=seed)
    model = small_cnn(dls, width=8 if name == "narrow" else 16)
    learn = Learner(dls, model, cbs=CANDIDATES[name](), metrics=accuracy)
    with quiet(learn):
        learn.fit_one_cycle(12, 1e-3 if name == "slow" else 1e-2, cbs=Unwatched())
    return learn

def judged(learn, dl):
    with quiet(learn): return round(float(learn.validate(dl=dl)[1]), 4)

def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--seeds", type=int, default=5)
    p.add_argument("--first", type=int, default=0)
    p.add_argument("--out", default="labelkit/assets/studies/crafted_shifts.json")
    args = p.parse_args()
    source = styled_digits("source", labeled=1000)
    judges = dict(
        source=source.valid, crafted=crafted_dls(source).valid, target=styled_digits().valid
    )
    runs = []
    for seed in range(args.first, args.first+args.seeds):
        learns = [trained(name, seed) for name in CANDIDATES]
        run = {k: [judged(o, dl) for o in learns] for k,dl in judges.items()}
        runs.append(dict(seed=seed) | run)
        print(seed, run, flush=True)
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    found = dict(
        study="crafted_shifts", candidates=list(CANDIDATES), runs=runs,
        setting="1000 white digits on black, 14x14, 12 epochs, small_cnn; target: other colours",
    )
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__": main()
