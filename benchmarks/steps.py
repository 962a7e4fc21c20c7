"""What a step costs with each registered technique, over the same step without it.

The arguments, data and models are those of the contract tests (tests/contract.py), in batches of 32
labeled and, where it uses them, 64 unlabeled digits. What a technique does once (a teacher, folds,
a store) is outside the measurement. Processor time, one thread, the median of seven alternations.
Writes benchmarks/results/steps.json.
"""
import statistics
import sys
import time
from pathlib import Path

import torch

torch.set_num_threads(1)
sys.path.insert(0, str(Path(__file__).resolve().parents[1]/"tests"))
from contract import MODEL, SLUGS, build, loaders, model
from fastai.basics import Callback, Learner, set_seed
from fastai.callback.all import *
from timing import save, versions

from labelkit.core.technique import registry


class Clock(Callback):
    "Processor time from the first event of a training step to the last"
    order = -1000
    def before_batch(self):
        if self.training: self.start = time.process_time()
class Stop(Callback):
    order = 1000
    def __init__(self, clock):
        self.clock = clock
        self.seconds = []
    def after_batch(self):
        if self.training: self.seconds.append(time.process_time()-self.clock.start)


def learner(slug, cbs):
    set_seed(0)
    dls = loaders(slug, bs=32, ratio=2)
    clock = Clock()
    stop = Stop(clock)
    learn = Learner(dls, MODEL.get(slug, model)(0), cbs=[clock, stop, *cbs])
    def epoch():
        stop.seconds.clear()
        with learn.no_bar(), learn.no_logging(): learn.fit(6, 1e-3)
        return statistics.median(stop.seconds)
    return epoch


def measure(slug, rounds=7):
    plain = learner(slug, [])
    own = learner(slug, [build(slug, active=True)])
    plain(), own()
    pairs = [(plain(), own()) if i % 2 else (own(), plain())[::-1] for i in range(rounds)]
    a,b = (statistics.median(o) for o in zip(*pairs))
    return dict(technique=registry[slug].name, plain_ms=1000*a, ms=1000*b, ratio=b/a)


if __name__ == "__main__":
    rows = []
    for slug in sys.argv[1:] or SLUGS:
        rows.append(measure(slug))
        print(
            "{technique:26s} {ms:7.2f} ms, plain {plain_ms:6.2f} ms, ratio {ratio:.2f}".format(
                **rows[-1]
            ),
            flush=True,
        )
    if len(sys.argv) == 1: save("steps", dict(rows=rows, versions=versions("torch", "fastai")))
