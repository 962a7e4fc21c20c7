"""A fit of 2,000 steps: do its last hundred take the time and the memory of its first?

FixMatch, FlexMatch and CutMix at once, with the ledger, after a hundred steps of warming up. One
thread. Writes benchmarks/results/long_fit.json.
"""
import gc
import time

import torch

torch.set_num_threads(1)
from fastai.basics import Callback, CancelFitException, Learner, set_seed
from fastai.callback.all import *
from timing import save, versions

from labelkit.all import CutMix, FixMatch, FlexMatch, digits, small_cnn


def resident():
    "Memory of this process in MB"
    with open("/proc/self/statm") as f: return int(f.read().split()[1])*4096/1e6


class Clock(Callback):
    "Processor time of every step and memory after it, until `n` are done"
    order = 1000
    def __init__(self, n):
        self.n = n
        self.seconds = []
        self.memory = []
    def before_batch(self):
        if self.training: self.start = time.process_time()
    def after_batch(self):
        if not self.training: return
        self.seconds.append(time.process_time()-self.start)
        self.memory.append(resident())
        if len(self.seconds) == self.n: raise CancelFitException()


def main(steps=2000, skip=100):
    set_seed(0)
    clock = Clock(steps+skip)
    learn = Learner(
        digits(labeled=40),
        small_cnn(c=10, c_in=1, width=16),
        cbs=[FixMatch(threshold=0.8), FlexMatch(threshold=0.8), CutMix(), clock],
    )
    with learn.no_bar(), learn.no_logging(): learn.fit(10_000, 1e-3)
    gc.collect()
    parts = {"first hundred": slice(skip, skip+100), "last hundred": slice(-100, None)}
    median = lambda v: sorted(v)[len(v)//2]
    return [
        dict(part=k, ms=1000 * median(clock.seconds[s]), mb=max(clock.memory[s]))
        for k, s in parts.items()
    ]


if __name__ == "__main__":
    rows = main()
    for r in rows: print(f"{r['part']:14s} {r['ms']:.2f} ms a step (median), {r['mb']:.0f} MB")
    print(f"ratio {rows[1]['ms']/rows[0]['ms']:.3f}, {rows[1]['mb']-rows[0]['mb']:+.1f} MB")
    save("long_fit", dict(rows=rows, versions=versions("torch", "fastai")))
