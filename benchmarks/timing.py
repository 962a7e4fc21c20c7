"""Fair timing of a few functions in one process: they take turns, and the median of their processor
time counts."""
import gc
import json
import platform
import statistics
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

RESULTS = Path(__file__).parent/"results"


def alternate(
    fns:dict,        # name -> function without arguments
    rounds:int=7,    # how often each takes its turn
    number:int=1,    # calls in one turn
    warmup:int=1,    # turns that are not counted
)->dict: # name -> median seconds of processor time for one call
    """Let the functions take turns for some rounds, in an order that rotates, without garbage
    collection inside a turn"""
    names = list(fns)
    times = {k:[] for k in fns}
    for r in range(-warmup, rounds):
        k = r % len(names)
        for name in names[k:]+names[:k]:
            gc.collect()
            gc.disable()
            start = time.process_time()
            for _ in range(number): fns[name]()
            spent = (time.process_time()-start)/number
            gc.enable()
            if r >= 0: times[name].append(spent)
    return {k:statistics.median(v) for k,v in times.items()}


def versions(*packages:str)->dict:
    "Versions of Python and of the packages that are installed, and the kind of processor"
    out = dict(python=platform.python_version(), machine=platform.machine())
    for p in packages:
        try: out[p] = version(p)
        except PackageNotFoundError: out[p] = None
    return out


def table(rows:list)->str:
    "Rows (the first is the header) in aligned columns"
    rows = [[str(c) for c in r] for r in rows]
    width = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(r, width)))
        for r in rows
    )


def save(name:str, result:dict)->Path:
    "Write `result` to `benchmarks/results/<name>.json`"
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS/f"{name}.json"
    path.write_text(json.dumps(result, indent=1)+"\n")
    return path
