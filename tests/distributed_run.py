"""Train each technique for a few steps, in as many processes as were started, and save what it
knows. Run by test_processes.py.

The samples of a step are the same for every number of processes, views change nothing and the
network has no batch statistics, so what comes out may differ by rounding only.
"""
import os
import sys

import torch
from fastai.basics import SGD, Learner, set_seed
from fastai.callback.all import *
from fastai.distributed import *
from torch import nn

from contract import data
from labelkit.processes import gather_rows, n_processes, shard
from labelkit.core.technique import registry

KNOBS = dict(
    fixmatch=dict(threshold=0.12),
    flexmatch=dict(threshold=0.12),
    simmatchv2=dict(threshold=0.11),
    mean_teacher=dict(weight=1., ramp=.5),
    future_self_training=dict(threshold=0.12),
)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, 1),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 16),
        nn.ReLU(),
        nn.Linear(16, 10),
    )


def flat(state, prefix=""):
    "Tensors of a nested state by their path"
    out = {}
    items = (
        state.items()
        if isinstance(state, dict)
        else enumerate(state)
        if isinstance(state, (list, tuple))
        else ()
    )
    for k,v in items:
        if isinstance(v, torch.Tensor): out[f"{prefix}{k}"] = v
        else: out |= flat(v, f"{prefix}{k}.")
    return out


def train(slug):
    still = lambda x: x
    n = n_processes()
    set_seed(0)
    dls = shard(data(n=200, labeled=64, bs=16//n, ratio=2, device="cpu"))
    cb = registry[slug].cls(weak=still, strong=still, **KNOBS[slug])
    learn = Learner(dls, network(), cbs=cb, opt_func=SGD, lr=.01)
    with learn.no_bar(), learn.no_logging():
        if n == 1: learn.fit(2)
        else:
            with learn.distrib_ctx(sync_bn=False, cpu=True): learn.fit(2)
    return dict(
        model=learn.model.state_dict(),
        technique={k: v for k, v in flat(cb.state_dict()).items() if k != "rng"},
    )


if __name__ == "__main__":
    out = sys.argv[1]
    slugs = sys.argv[2].split(",")
    if "RANK" in os.environ: torch.distributed.init_process_group("gloo")
    results = {slug: train(slug) for slug in slugs}
    # one row in the first process, three in the second
    rank = int(os.environ.get("RANK", 0))
    rows = torch.arange(1 + 2*rank) + 10*rank
    results["rows"] = gather_rows(rows, rows > 0, rows.float()[:,None])
    torch.save(results, f"{out}.{torch.distributed.get_rank() if n_processes() > 1 else 'one'}")
