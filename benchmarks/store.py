"""Reading the soft labels of 256 random samples from a store of 100,000 samples with 10 views each,
beside plain NumPy files.

Every side gives the same: values, classes and view parameters of one random view a sample, as
tensors. The peers are one `np.memmap` for each array (the fastest that NumPy has, without resuming,
checks or a description) and a compressed `.npz`, which has to be read as a whole. Warm: the files
are in the system's cache, processor time, median of turns that alternate. Cold: the files are
dropped from the cache, a new object opens them and reads its first batch; wall time, median.

    python benchmarks/store.py
"""
import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from timing import alternate, save, table, versions
from labelkit.storage.builder import build_store
from labelkit.storage.soft_labels import LabelStore
from labelkit.storage.stored_views import CropViews

K = 10
CLASSES = 100
BATCH = 256


def make(folder, n, views):
    "The store, and the same arrays in plain files"
    x = torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    w = torch.randn(16, CLASSES, generator=torch.Generator().manual_seed(1))
    start = time.perf_counter()
    store = build_store(
        folder / "store",
        x,
        lambda x: x.flatten(1) @ w,
        CropViews(),
        n_views=views,
        k=K,
        bs=4096,
        progress=False,
    )
    seconds = time.perf_counter()-start
    arrays = {k:np.asarray(store._ready()._group[k]) for k in ("values", "classes", "params")}
    for k,a in arrays.items():
        m = np.memmap(folder/f"{k}.raw", a.dtype, "w+", shape=a.shape)
        m[:] = a
        m.flush()
    np.savez_compressed(folder/"labels.npz", **arrays)
    return {k:(a.dtype, a.shape) for k,a in arrays.items()}, seconds


def tensors(arrays, rows, view):
    "One view of each row, in the types that training needs"
    return [
        torch.from_numpy(arrays[k][rows, view].astype(t))
        for k, t in (("values", np.float32), ("classes", np.int64), ("params", np.float32))
    ]


def openers(folder, shapes):
    "name -> function that opens the files and gives a reader of (rows, views)"
    def labelkit(in_memory):
        store = LabelStore(folder/"store", in_memory)
        def read(rows, view):
            got = store.read(rows, view)
            return [got.values, got.classes, got.params]
        return read
    def memmap():
        maps = {k:np.memmap(folder/f"{k}.raw", d, "r", shape=s) for k,(d,s) in shapes.items()}
        return lambda rows,view: tensors(maps, rows, view)
    def npz():
        with np.load(folder/"labels.npz", allow_pickle=False) as f:
            arrays = {k:f[k] for k in shapes}
        return lambda rows,view: tensors(arrays, rows, view)

    return {
        "labelkit, in memory": lambda: labelkit(True),
        "labelkit, mapped": lambda: labelkit(False),
        "numpy memmap": memmap,
        "numpy npz": npz,
    }


def forget(folder):
    "Drop the files from the system's cache"
    os.sync()
    for p in folder.rglob("*"):
        if p.is_file():
            fd = os.open(p, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def main(n=100_000, views=10, rounds=7, cold_rounds=5):
    "Print the table and write `benchmarks/results/store.json`"
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)
        shapes, seconds = make(folder, n, views)
        size = {
            p.name: sum(
                f.stat().st_size for f in ([p] if p.is_file() else p.rglob("*")) if f.is_file()
            )
            / 2**20
            for p in sorted(folder.iterdir())
        }
        g = torch.Generator().manual_seed(2)
        draws = [
            (
                torch.randint(n, (BATCH,), generator=g).numpy(),
                torch.randint(views, (BATCH,), generator=g).numpy(),
            )
            for _ in range(64)
        ]
        ways = openers(folder, shapes)
        readers = {k:f() for k,f in ways.items()}
        want = readers["numpy memmap"](*draws[0])
        for r in readers.values(): assert all(torch.equal(a, b) for a,b in zip(r(*draws[0]), want))

        def turn(read): return lambda: [read(*d) for d in draws]

        warm = {
            k: v * 1e3 / len(draws)
            for k, v in alternate({k: turn(r) for k, r in readers.items()}, rounds).items()
        }
        del readers
        cold = {k:[] for k in ways}
        for _ in range(cold_rounds):
            for k,opening in ways.items():
                forget(folder)
                start = time.perf_counter()
                opening()(*draws[0])
                cold[k].append((time.perf_counter()-start)*1e3)
    cold = {k:statistics.median(v) for k,v in cold.items()}
    rows = [["256 random samples", "warm ms", "cold ms, with opening"]] + [
        [k, f"{warm[k]:.3f}", f"{cold[k]:.1f}"] for k in ways
    ]
    print(table(rows))
    save(
        "store",
        dict(
            what=f"ms for {BATCH} random samples, one random view each, from {n:,} samples x "
                 f"{views} views, {K} of {CLASSES} classes",
            samples=n,
            views=views,
            rounds=rounds,
            target="warm under 5 ms a batch, in memory and mapped",
            build_seconds=round(seconds, 1),
            megabytes={k: round(v, 1) for k, v in size.items()},
            warm_ms=warm,
            cold_ms=cold,
            versions=versions("labelkit", "torch", "numpy", "zarr"),
        ),
    )
    return max(warm["labelkit, in memory"], warm["labelkit, mapped"])


if __name__ == "__main__":
    p = argparse.ArgumentParser(
        description="Soft labels of 256 random samples: labelkit's store beside plain NumPy files"
    )
    p.add_argument("--rounds", type=int, default=7)
    p.add_argument("--samples", type=int, default=100_000)
    a = p.parse_args()
    raise SystemExit(0 if main(a.samples, rounds=a.rounds) < 5 else "a batch takes more than 5 ms")
