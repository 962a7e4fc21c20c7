"""Runs the notebooks and keeps the executed copies: the tests run them, the site shows them, each
is run once.

    python scripts/notebooks.py [--jobs N] [--rerun] [NOTEBOOK ...]

An executed copy lies in docs/_build/executed under the notebook's own path. Its metadata says which
cells and which library made it; it counts as fresh only while both are unchanged.
"""
import argparse, hashlib, json, os, re, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT/"nbs"
EXECUTED = ROOT/"docs"/"_build"/"executed"
# kernels from a process that has fastai loaded (scripts/warm.py); 0 starts each anew
WARM = os.environ.get("LABELKIT_WARM_KERNELS", "1") != "0"
# a page shows .691 and not .6909999847412109, which is what a 32-bit number is in 64 bits
DIGITS = "--PlainTextFormatter.float_precision=%.5g"
TIMEOUT = int(os.environ.get("LABELKIT_NOTEBOOK_TIMEOUT", 600))  # seconds for one notebook


def notebooks(
    nbs:Path=NBS # folder to look in
)->list[Path]: # sorted; folders and files that begin with `_` or `.` are left out
    "All notebooks of the project"
    return sorted(
        p for p in nbs.rglob("*.ipynb") if not any(s[0] in "._" for s in p.relative_to(nbs).parts)
    )


def source(
    cell:dict # a notebook's cell as JSON
)->str:
    "The text of `cell`"
    return "".join(cell["source"])


def _digest(*parts)->str: return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def cells_hash(
    nb:dict # notebook as JSON
)->str:
    "Changes when a cell's kind or text changes"
    return _digest(*(f"{c['cell_type']} {source(c)}" for c in nb["cells"]))


@cache
def library_hash()->str:
    "Changes when the package, Python, or a library that computes results changes"
    lib = ROOT/"labelkit"
    files = sorted(p for p in lib.rglob("*") if p.is_file() and p.suffix != ".pyc")
    done = [f"{p.relative_to(lib)} {hashlib.sha256(p.read_bytes()).hexdigest()}" for p in files]
    return _digest(sys.version, *(version(n) for n in ("torch", "fastai", "numpy")), *done)


def executed_path(
    path:Path # notebook inside nbs/
)->Path:
    "Where the executed copy of `path` lies"
    return EXECUTED/path.resolve().relative_to(NBS)


def fresh(
    path:Path,       # notebook inside nbs/
    stale:bool=False # accept a copy made by another state of the library?
)->dict|None: # the executed notebook as JSON
    "The executed copy of `path`, if its cells (and the library) are still the same"
    try: nb = json.loads(executed_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError): return None
    made = nb["metadata"].get("labelkit", {})
    same = made.get("cells") == cells_hash(json.loads(path.read_text(encoding="utf-8")))
    return nb if same and (stale or made.get("library") == library_hash()) else None


def execute(
    path:Path # notebook inside nbs/
)->dict: # the executed notebook as JSON
    """Run `path` in a new kernel and keep the executed copy with its widgets' state. A cell's error
    is raised"""
    import nbformat
    from jupyter_client import AsyncKernelManager
    from nbclient import NotebookClient
    from traitlets.config import Config
    from warm import manager
    nb = nbformat.read(path, 4)
    start = time.perf_counter()
    keys = dict(
        cells=cells_hash(json.loads(path.read_text(encoding="utf-8"))), library=library_hash()
    )
    # sockets in a folder of our own: a kernel nobody else reaches
    with tempfile.TemporaryDirectory() as tmp:
        client = NotebookClient(
            nb,
            timeout=TIMEOUT,
            startup_timeout=300,
            kernel_name="python3",
            kernel_manager_class=manager() if WARM else AsyncKernelManager,
            store_widget_state=True,
            extra_arguments=[DIGITS],
            config=Config({"KernelManager": {"transport": "ipc", "ip": f"{tmp}/kernel"}}),
            resources={"metadata": {"path": str(path.parent)}},
        )
        # figures belong into the notebook
        env = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"}
        client.execute(env=env)
    nb.metadata["labelkit"] = dict(keys, seconds=round(time.perf_counter() - start, 1))
    out = executed_path(path)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f"{out.name}.{os.getpid()}.part")
    part.write_text(nbformat.writes(nb), encoding="utf-8")
    os.replace(part, out)
    return json.loads(out.read_text(encoding="utf-8"))


def execute_missing(
    paths:list[Path], # notebooks
    jobs:int=1,       # how many kernels at a time
    stale:bool=False, # accept copies made by another state of the library?
    rerun:bool=False, # run them all?
)->dict[Path,str]: # the error of each notebook that failed
    "Make the executed copies that are missing"
    todo = [p for p in paths if rerun or not fresh(p, stale)]
    failed = {}
    def one(p):
        try:
            print(
                f"  {p.relative_to(NBS)}: {execute(p)['metadata']['labelkit']['seconds']} s",
                flush=True,
            )
        except Exception as e:  # a failed notebook must not hide the others
            failed[p] = re.sub(r"\x1b\[[0-9;]*m", "", str(e))
            print(f"  {p.relative_to(NBS)}: failed", flush=True)
    with ThreadPoolExecutor(max(jobs, 1)) as pool: list(pool.map(one, todo))
    return failed


def outputs(
    nb:dict # executed notebook as JSON
)->list[tuple[int,dict]]: # (number of the cell, output)
    "Every output of every code cell"
    return [(i, o) for i, c in enumerate(nb["cells"]) for o in c.get("outputs", [])]


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("notebooks", nargs="*", type=Path)
    ap.add_argument("--jobs", type=int, default=1, help="kernels at a time")
    ap.add_argument("--rerun", action="store_true", help="run those with a fresh copy too")
    a = ap.parse_args()
    failed = execute_missing(
        [p.resolve() for p in a.notebooks] or notebooks(), a.jobs, rerun=a.rerun
    )
    for p, e in failed.items(): print(f"\n{p}\n{e}", file=sys.stderr)
    sys.exit(bool(failed))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
