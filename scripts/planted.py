"""Would the tests notice? Plant one known defect at a time in a copy of the project, and see which
test fails.

    python scripts/planted.py            # all, a few minutes
    python scripts/planted.py swapped    # those whose name contains a word

Each defect is one that was found in somebody's published code. The copy is made anew in a temporary
folder; this checkout stays as it is.
"""
import os, shutil, subprocess, sys, tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# name, file, what stands there, what is planted, tests that should notice
DEFECTS = [
    (
        "a consistency loss without gradient",
        "labelkit/pseudo/base.py",
        'return (F.cross_entropy(logits, target, reduction="none")*mask).mean()',
        'return (F.cross_entropy(logits.detach(), target, reduction="none")*mask).mean()',
        "tests/test_contract.py -k fixmatch",
    ),
    (
        "label shares swapped",
        "labelkit/mix/base.py",
        "if len(parts) == 2: return blend(*parts, shares[0])",
        "if len(parts) == 2: return blend(*parts[::-1], shares[0])",
        "tests/mix/test_shares.py tests/core/test_losses.py",
    ),
    (
        "a teacher that is trained",
        "labelkit/core/teachers.py",
        "if self.model.training: self.eval()",
        "self.model.train()",
        "tests/core/test_teachers.py tests/distill/test_base.py",
    ),
    (
        "validation loss changed",
        "labelkit/core/supervision.py",
        "run_valid = False\n    record = _ids",
        "run_valid = True\n    record = _ids",
        "tests/test_contract.py -k cutmix",
    ),
    (
        "a mean over the wrong axis",
        "labelkit/distill/base.py",
        'return F.kl_div(q, p, reduction="none").sum(1)',
        'return F.kl_div(q, p, reduction="none").sum(0)',
        "tests/distill/test_base.py",
    ),
    (
        "sharpening ignored",
        "labelkit/pseudo/base.py",
        "return (logits/temperature).softmax(1)",
        "return logits.softmax(1)",
        "tests/pseudo/test_base.py tests/pseudo/test_inpl_uda.py",
    ),
    (
        "state lost on resume",
        "labelkit/pseudo/flexmatch.py",
        "self.selected = torch.full(",
        "self._selected_of = torch.full(",
        "tests/test_contract.py tests/pseudo/test_flexmatch.py -k flexmatch",
    ),
    (
        "a mask drawn from unseeded randomness",
        "labelkit/mix/cutmix.py",
        "at = torch.rand(len(lam), 2, generator=rng)",
        "at = torch.rand(len(lam), 2)",
        "tests/test_contract.py -k cutmix",
    ),
]


def plant(file, old, new, tests):
    "The first lines that pytest says of a copy with the defect; empty when every test passed"
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(tmp)/"main"
        shutil.copytree(
            ROOT,
            copy,
            ignore=shutil.ignore_patterns(
                ".git", ".venv", "_build", "_site", "__pycache__", ".pytest_cache"
            ),
        )
        path = copy/file
        text = path.read_text(encoding="utf-8")
        if text.count(old) < 1: return f"NOT PLANTED: {file} has no {old!r}"
        path.write_text(text.replace(old, new, 1), encoding="utf-8")
        env = os.environ | dict(PYTHONPATH=str(copy), OMP_NUM_THREADS="1", MPLBACKEND="agg")
        run = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-n",
                "0",
                "-p",
                "no:warnings",
                "--no-header",
                *tests.split(),
            ],
            cwd=copy,
            env=env,
            capture_output=True,
            text=True,
        )
        where = subprocess.run(
            [sys.executable, "-c", "import labelkit; print(labelkit.__file__)"],
            cwd=copy,
            env=env,
            capture_output=True,
            text=True,
        ).stdout
        if str(copy) not in where: return f"NOT PLANTED: the tests would import {where}"
        return "\n".join(x for x in run.stdout.splitlines() if x.startswith(("FAILED", "ERROR")))


if __name__ == "__main__":
    words = sys.argv[1:]
    missed = []
    for name,*rest in DEFECTS:
        if words and not any(w in name for w in words): continue
        said = plant(*rest)
        caught = bool(said) and not said.startswith("NOT PLANTED")
        if not caught: missed.append(name)
        lines = said.splitlines()
        print(
            f"{'caught' if caught else 'MISSED'}: {name}",
            *(f"    {x[:150]}" for x in lines[:3]),
            *([f"    and {len(lines) - 3} more"] if len(lines) > 3 else []),
            sep="\n",
            flush=True,
        )
    sys.exit(bool(missed))
