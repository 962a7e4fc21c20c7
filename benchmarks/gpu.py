"""What holds on a GPU, and how fast it is; under ten minutes.

Four parts, each in its own process: the contract's quick half on the device; every technique in
bf16 and in fp16 with a real gradient scaler; the long claims, which `labelkit prove --long` writes
to the package (CIFAR-10 is where LABELKIT_DATA says); and a step of FixMatch with WideResNet-28-2
on 64 and 448 images of 32x32, weights in channels-last, views on the device: steps a second plain,
in half precision and compiled, where the time goes (views, model, loss, plumbing), memory, and how
often a step waits for the device and where. Results go to benchmarks/results/gpu.json with the
card's name; where there is no GPU nothing is measured, and `--tiny` only shows that the script
runs.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --tiny --device cpu

A machine that has PyTorch, torchvision, scikit-learn, pandas, pytest … but neither fastai nor a
network gets the rest as wheels: fetch them here for that machine's Python (all but plum-dispatch
are plain Python), carry the folder along, and name it:

    pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \\
        --platform manylinux2014_x86_64 --platform any -d wheels \\
        fastai fastcore fastprogress fastdownload fasttransform plum-dispatch beartype mlxtend \\
        python-fasthtml starlette itsdangerous python-multipart apswutils execnb zarr numcodecs \\
        donfig google-crc32c cleanlab termcolor pytorch-metric-learning
    python benchmarks/gpu.py --wheels wheels

What it found. `torch.compile` takes the network as one graph, without a break, and does not compile
again while steps go on. By itself the compiled network has hardly fewer kernels, but shorter ones:
batch norm and activation are one. The compiled step was measured as the slower one while each step
waited for the device four times: twice for indices from the CPU, once in front of the backward pass
to ask whether the loss is a number, once for fastai's smooth loss. With the last alone it was
measured as the faster one. What bounds a step is the processor: fastai's optimisers step one weight
after the other, where a fused one of PyTorch's (in an `OptimWrapper`) sends off a few kernels, and
views are many small operations.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("step", "contract", "precision", "claims")
# bounds in seconds, so that all of it stays under ten minutes
LIMITS = dict(step=240, contract=240, precision=240, claims=420)


# ---- the contract's quick half

def contract(a):
    "pytest's counts for the quick half of the contract on the device"
    report = Path(tempfile.mkdtemp())/"contract.xml"
    chosen = ["-k", "fixmatch and (seed or neutral)"] if a.tiny else []
    several = ["-n", str(min(12, os.cpu_count()))] if a.device == "cuda" and _has("xdist") else []
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not full",
         "tests/test_contract.py", f"--junitxml={report}", *several, *chosen],
        cwd=ROOT, capture_output=True, text=True,
        env=os.environ | dict(CUBLAS_WORKSPACE_CONFIG=":4096:8"),  # deterministic products
    )
    if not report.exists(): return dict(error=(run.stdout+run.stderr)[-2000:])
    from xml.etree import ElementTree
    suite = ElementTree.parse(report).getroot().find("testsuite")
    count = lambda k: int(suite.get(k, 0))
    failed = [
        f"{case.get('name')}: {o.get('message', '')[:300]}"
        for case in suite.iter("testcase") for o in case if o.tag in ("failure", "error")
    ]
    bad = count("failures")+count("errors")
    return dict(passed=count("tests")-bad-count("skipped"), skipped=count("skipped"), failed=failed)


def _has(module):
    from importlib.util import find_spec
    return find_spec(module) is not None


# ---- half precision

def precision(a):
    "Every technique trains an epoch in bf16 and in fp16, with fastai's `MixedPrecision`"
    sys.path.insert(0, str(ROOT/"tests"))
    import torch
    from contract import SLUGS, build, fit, learner, loaders, weights
    from fastai.callback.fp16 import MixedPrecision

    slugs = ["fixmatch", "mixup"] if a.tiny else SLUGS
    out = []
    for slug in slugs:
        for mode in ("bf16", "fp16"):
            row = dict(technique=slug, mode=mode)
            try:
                dls = loaders(slug)
                half = MixedPrecision(amp_mode=mode)
                learn = learner([build(slug, active=True, dls=dls), half], slug=slug, dls=dls)
                learn.model.to(a.device)
                before = weights(learn)
                seen = Scales()
                fit(learn, cbs=[seen])
                after = weights(learn)
                row |= dict(
                    finite=all(bool(v.isfinite().all()) for v in after.values()),
                    moved=sum(not torch.equal(before[k], v.to(before[k])) for k,v in after.items()),
                    of=len(after),
                    steps=seen.steps, skipped=seen.skipped, scale=seen.scale,
                )
                row["ok"] = row["finite"] and row["moved"] > 0 and seen.steps > seen.skipped
            except Exception as e:
                row |= dict(ok=False, error=f"{type(e).__name__}: {e}"[:300])
            out.append(row)
    good = sum(o["ok"] for o in out)
    return dict(ok=good, of=len(out), wrong=[o for o in out if not o["ok"]],
                skipped_steps=sum(o.get("skipped", 0) for o in out),
                scaled=sum(o.get("scale", 1) > 1 for o in out))


def Scales():
    "Count steps, and those that the gradient scaler left out, and keep the last scale"
    from fastai.callback.core import Callback

    class Scales(Callback):
        order = 100
        steps = skipped = 0
        scale = 1.
        def after_batch(self):
            if not self.training: return
            self.steps += 1
            self.skipped += self.learn.mixed_precision.skipped
            scaler = self.learn.scaler
            self.scale = float(scaler.get_scale()) if scaler.is_enabled() else 1.
    return Scales()


# ---- the long claims

def claims(a):
    "What `labelkit prove` says of each long claim; results so far are kept when time is over"
    if a.tiny: return dict(left_out="they are long")
    from labelkit.core.technique import registry
    from labelkit.evidence.claims import prove
    import labelkit.all  # noqa: F401  (registers every technique)
    long = [k for k,card in registry.items() if any(c.long for c in card.claims)]
    jobs = max(1, (os.cpu_count() or 2)-2)
    return {k: [p.sentence() for p in prove(k, jobs=jobs, long=True)] for k in long}


# ---- a step of FixMatch

def step(a):
    "Steps a second, parts, memory and waits of FixMatch with WideResNet-28-2"
    out = dict(images="16 + 32 of 16x16, WRN-10-1" if a.tiny else "64 + 448 of 32x32, WRN-28-2")
    cases = {
        "fp32": dict(mode=None),
        "bf16": dict(mode="bf16"),
        "fp16": dict(mode="fp16"),
        "bf16, fused SGD": dict(mode="bf16", fused=True),
        "bf16, compiled": dict(mode="bf16", compiled=True),
        "bf16, compiled, fused SGD": dict(mode="bf16", compiled=True, fused=True),
    }
    if a.tiny: cases = {k: v for k,v in cases.items() if "compiled" not in v}
    steps = 3 if a.tiny else 20
    out["cases"] = {k: _tried(_timed, a, steps, **v) for k,v in cases.items()}
    alone = {"plain": False, "compiled": True}
    if a.tiny: alone.pop("compiled")
    out["model_alone"] = {k: _tried(_alone, a, steps, v) for k,v in alone.items()}
    out["parts"] = _parts(a, "bf16", steps)
    out["waits"] = _waits(a, "bf16", steps) if a.device == "cuda" else "only seen on a GPU"
    return out


def _tried(f, *args, **kwargs):
    began = time.monotonic()
    try: out = f(*args, **kwargs)
    except Exception as e: out = dict(error=f"{type(e).__name__}: {e}"[:500])
    return out | dict(seconds=round(time.monotonic()-began, 1))


def _learner(a, mode, compiled=False, fused=False):
    import torch
    from fastai.basics import Adam, Learner, OptimWrapper, set_seed
    from fastai.callback.all import MixedPrecision

    from labelkit.data.loaders import from_arrays
    from labelkit.models import wide_resnet
    from labelkit.pseudo.fixmatch import FixMatch

    set_seed(0)
    side, bs, ratio, n = (16, 16, 2, 400) if a.tiny else (32, 64, 7, 20_000)
    x = torch.randint(256, (n, 3, side, side)).byte()
    y = torch.randint(10, (n,))
    dls = from_arrays(x, y, x[:64], y[:64], labeled=n//10, bs=bs, ratio=ratio, device=a.device)
    net = wide_resnet(dls, depth=10, width=1) if a.tiny else wide_resnet(dls)
    net.to(a.device)
    if compiled: net = torch.compile(net)
    # fastai's own optimisers step one weight after the other
    sgd = partial(torch.optim.SGD, momentum=.9, nesterov=True, fused=True)
    opt_func = partial(OptimWrapper, opt=sgd) if fused else Adam
    cbs = [FixMatch(), *([MixedPrecision(amp_mode=mode)] if mode else [])]
    return Learner(dls, net, cbs=cbs, opt_func=opt_func)


def _run(learn, *cbs):
    with learn.no_bar(), learn.no_logging(): learn.fit(1, .03, cbs=list(cbs))


def _every(f, n):
    "A callback that calls `f(i)` before training batch `i` and ends the epoch before batch `n`"
    from fastai.basics import Callback
    from fastai.callback.core import CancelTrainException, CancelValidException

    class Every(Callback):
        order = -1000
        def before_batch(self):
            if not self.training: return
            f(self.iter)
            if self.iter >= n: raise CancelTrainException()
        def before_validate(self): raise CancelValidException()
    return Every()


def _sync(a):
    import torch
    if a.device == "cuda": torch.cuda.synchronize()


def _timed(a, steps, mode, compiled=False, fused=False, warmup=5):
    "Milliseconds of a step after the first few, in which algorithms are chosen and code compiled"
    import torch
    from torch._dynamo.utils import counters
    counters.clear()
    learn = _learner(a, mode, compiled, fused)
    at = {}

    def note(i):
        if i in (warmup, warmup+steps):
            _sync(a)
            at[i] = time.perf_counter()
    if a.device == "cuda": torch.cuda.reset_peak_memory_stats()
    _run(learn, _every(note, warmup+steps))
    ms = 1000*(at[warmup+steps]-at[warmup])/steps
    out = dict(ms=round(ms, 2), steps_per_second=round(1000/ms, 2))
    if a.device == "cuda": out["peak_gb"] = round(torch.cuda.max_memory_allocated()/2**30, 2)
    if compiled:
        # none where an earlier case has compiled the same
        if graphs := counters["stats"]["unique_graphs"]:
            out |= dict(graphs=graphs, graph_breaks=sum(counters["graph_break"].values()))
    return out


def _alone(a, steps, compiled, warmup=5):
    """The joint pass and its backward pass of the model by itself in bf16: milliseconds, and of a
    step under the profiler the kernels, by number and milliseconds, with the longest of them"""
    import torch
    from torch.profiler import ProfilerActivity, profile
    learn = _learner(a, "bf16", compiled)
    model = learn.model.train()
    rows = 16+2*32 if a.tiny else 64+2*448
    x = torch.rand(rows, 3, *[16 if a.tiny else 32]*2, device=a.device)

    def step():
        with torch.autocast(a.device, torch.bfloat16): out = model(x)
        out.float().logsumexp(1).mean().backward()
        model.zero_grad()
    for _ in range(warmup): step()
    _sync(a)
    began = time.perf_counter()
    for _ in range(steps): step()
    _sync(a)
    out = dict(ms=round(1000*(time.perf_counter()-began)/steps, 2))
    if a.device != "cuda": return out
    with profile(activities=[ProfilerActivity.CUDA]) as prof:
        step()
        _sync(a)
    kernels = prof.key_averages()
    longest = sorted(kernels, key=lambda o: -o.self_device_time_total)[:8]
    return out | dict(
        kernels=sum(o.count for o in kernels if o.self_device_time_total),
        kernel_ms=round(sum(o.self_device_time_total for o in kernels)/1000, 2),
        longest={o.key[:90]: round(o.self_device_time_total/1000, 3) for o in longest},
    )


def _parts(a, mode, steps, warmup=5):
    "Milliseconds of a step by kind of work, on the processor and on the device, as profiled"
    import torch
    from torch.profiler import ProfilerActivity, profile, record_function

    from labelkit.core.supervision import SupervisionCallback
    from labelkit.data import views
    from labelkit.storage.ledger import Ledger
    learn = _learner(a, mode)
    kinds = {
        "views": [(views.View, "__call__")],
        "model, forward": [(type(learn.model), "forward")],
        "model, backward": [(torch.Tensor, "backward")],
        "loss": [(SupervisionCallback, "after_loss"), (SupervisionCallback, "after_pred")],
        "ledger": [(Ledger, "record")],
        "optimiser": [(type(learn), "_step")],
    }
    put = []

    def wrap(kind, f):
        def named(*args, **kwargs):
            with record_function(f"kind: {kind}"): return f(*args, **kwargs)
        return named
    for kind, methods in kinds.items():
        for owner, name in methods:
            put.append((owner, name, getattr(owner, name)))
            setattr(owner, name, wrap(kind, put[-1][-1]))
    on = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if a.device == "cuda" else [])
    prof = profile(activities=on)

    at = []

    def switch(i):
        if i not in (warmup, warmup+steps): return
        _sync(a)
        if i == warmup: prof.__enter__()
        at.append(time.perf_counter())
        if i != warmup: prof.__exit__(None, None, None)
    try: _run(learn, _every(switch, warmup+steps))
    finally:
        for owner, name, f in put: setattr(owner, name, f)
    averages = prof.key_averages()
    # each kind comes twice: what the processor did, with the kernels it sent off, and a span on the
    # device's own clock, which counts its waiting too
    found = {o.key[6:]: o for o in averages if o.key.startswith("kind: ") and o.cpu_time_total}
    out = {
        k: dict(processor=o.cpu_time_total/1000/steps, device=o.device_time_total/1000/steps)
        for k,o in found.items()
    }
    whole = 1000*(at[1]-at[0])/steps
    kernels = sum(
        o.self_device_time_total for o in averages
        if o.device_type != torch.autograd.DeviceType.CPU and not o.key.startswith("kind: ")
    )
    # what is left: loaders, the record, fastai; on the device the backward pass as well, whose
    # kernels are sent off by a thread of its own
    rest = {d: sum(o[d] for o in out.values()) for d in ("processor", "device")}
    out["plumbing; backward pass on the device"] = dict(
        processor=whole - rest["processor"], device=kernels/1000/steps - rest["device"]
    )
    out = {k: {d: round(v, 3) for d,v in o.items()} for k,o in out.items()}
    return dict(whole_step_under_the_profiler=round(whole, 3), **out)


def _waits(a, mode, steps, warmup=5):
    "How often a step waits for the device, and the lines that make it wait"
    import warnings
    from collections import Counter

    import torch
    learn = _learner(a, mode)

    def switch(i):
        if i in (warmup, warmup+steps):
            torch.cuda.set_sync_debug_mode("warn" if i == warmup else "default")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try: _run(learn, _every(switch, warmup+steps))
        finally: torch.cuda.set_sync_debug_mode("default")
    at = Counter(
        f"{'/'.join(Path(w.filename).parts[-3:])}:{w.lineno}"
        for w in caught if "synchroniz" in str(w.message)
    )
    return dict(a_step=round(sum(at.values())/steps, 2),
                lines={k: round(v/steps, 2) for k,v in at.most_common(20)})


# ---- all of it

def unpack(folder):
    "The folder that holds the packages of all wheels in `folder`"
    to = tempfile.mkdtemp()
    wheels = sorted(Path(folder).glob("*.whl"))
    if not wheels: raise SystemExit(f"--wheels {folder}: no *.whl there")
    for wheel in wheels: zipfile.ZipFile(wheel).extractall(to)
    return to


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--device", default="cuda", help="cuda, or cpu to try the script")
    p.add_argument("--tiny", action="store_true", help="little of everything; writes no results")
    p.add_argument("--wheels", help="folder of plain Python wheels to use beside what is installed")
    p.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    p.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    p.add_argument("--out", help=argparse.SUPPRESS)
    a = p.parse_args(argv)
    if a.part:
        result = globals()[a.part](a)
        Path(a.out).write_text(json.dumps(result))
        return
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(
        [str(ROOT), *([unpack(a.wheels)] if a.wheels else []), os.environ.get("PYTHONPATH", "")]
    ))
    if a.device == "cpu": env |= dict(CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1")
    import torch
    if a.device == "cuda" and not torch.cuda.is_available():
        print("no GPU here, nothing is measured: --tiny --device cpu shows that the script runs")
        return
    result = dict(
        device=torch.cuda.get_device_name() if a.device == "cuda" else "none",
        versions=dict(torch=torch.__version__, cuda=torch.version.cuda),
        when=time.strftime("%Y-%m-%d"),
    )
    folder = Path(tempfile.mkdtemp())
    began = time.monotonic()
    for part in a.parts:
        out = folder/f"{part}.json"
        again = [sys.executable, __file__, "--part", part, "--out", str(out), "--device", a.device]
        start = time.monotonic()
        try:
            run = subprocess.run(
                [*again, *(["--tiny"] if a.tiny else [])], env=env, cwd=ROOT, capture_output=True,
                text=True, timeout=LIMITS[part],
            )
            said = (run.stdout+run.stderr)[-1500:]
        except subprocess.TimeoutExpired: said = f"stopped after {LIMITS[part]} s"
        result[part] = json.loads(out.read_text()) if out.exists() else dict(error=said)
        result[part]["minutes"] = round((time.monotonic()-start)/60, 2)
        print(part, json.dumps(result[part], indent=1), flush=True)
    result["minutes"] = round((time.monotonic()-began)/60, 2)
    real = a.device == "cuda" and not a.tiny
    path = ROOT/"benchmarks"/"results"/"gpu.json" if real else folder/"gpu.json"
    old = json.loads(path.read_text()) if path.exists() else {}
    if old.get("device") == result["device"]: result = old | result  # parts measured before
    path.write_text(json.dumps(result, indent=1)+"\n")
    print(f"{result['minutes']} minutes, written to {path}")


if __name__ == "__main__": main()
