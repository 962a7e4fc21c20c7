"""Which techniques are tested whole in this run; the others get the quick half of the contract.

Those that changed, by themselves or by what they import, and a share of the rest that another
commit chooses anew. Without git, without a parent commit, or where the tests themselves changed:
all.
"""
import ast
import os
import subprocess
from functools import cache
from pathlib import Path

SHARES = 8  # so many commits, on average, until each technique was tested whole
# a change here is a change of every technique's test
EVERYTHING = {"settings.ini", "constraints.txt", "tests/contract.py", "tests/test_contract.py"}
# looks at what techniques did; they call it only to show themselves
ABOVE = (
    "labelkit.explore", "labelkit.evidence", "labelkit.lesson", "labelkit.all", "labelkit.atlas",
)


def git(
    root:Path, # of the project
    *args:str
)->list[str]|None: # lines; None where git has no answer
    "What git says"
    try: run = subprocess.run(["git", *args], cwd=root, capture_output=True, text=True, check=False)
    except OSError: return None
    return run.stdout.splitlines() if run.returncode == 0 else None


def base_of(
    root:Path # of the project
)->str|None: # a commit
    "Where this work began: LABELKIT_BASE, or where it left its upstream, or the parent commit"
    if given := os.environ.get("LABELKIT_BASE"): return given
    head = git(root, "rev-parse", "HEAD")
    forked = git(root, "merge-base", "HEAD", "@{upstream}")
    found = forked if forked and forked != head else git(root, "rev-parse", "--verify", "HEAD^")
    return found[0] if found else None


def changed_files(
    root:Path, # of the project
    base:str   # commit
)->set[str]|None: # paths inside the project
    "What differs from `base` in the working tree, new files included"
    tracked = git(root, "diff", "--name-only", base)
    new = git(root, "ls-files", "-o", "--exclude-standard")
    return None if tracked is None or new is None else {*tracked, *new}


def module_name(
    path:Path # relative to the project
)->str:
    "`labelkit/mix/mixup.py` and `nbs/mix/mixup.ipynb` are both `labelkit.mix.mixup`"
    parts = ("labelkit", *path.with_suffix("").parts[1:])
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(
    tree:ast.Module, # a module
    name:str         # its name, against which relative imports are read
)->set[str]: # names of modules, and of what is taken from them
    "What a module imports of labelkit, also inside of functions"
    found = set()
    for n in ast.walk(tree):
        if isinstance(n, ast.Import): found |= {a.name for a in n.names}
        if isinstance(n, ast.ImportFrom):
            here = name.split(".")[:-n.level] if n.level else []
            source = ".".join([*here, *([n.module] if n.module else [])])
            found |= {source, *(f"{source}.{a.name}" for a in n.names)}
    return {f for f in found if f.startswith("labelkit.") and not f.startswith(ABOVE)}


@cache
def graph(
    root:Path # of the project
)->tuple[dict[str,set[str]],dict[str,str]]: # imports by module; module by slug
    "The package's modules, read and not run"
    trees = {
        module_name(p.relative_to(root)): ast.parse(p.read_text(encoding="utf-8"))
        for p in sorted((root/"labelkit").rglob("*.py"))
    }
    known = {m: imports(tree, m) & set(trees) for m, tree in trees.items()}
    registers = lambda d: isinstance(d, ast.Call) and getattr(d.func, "id", "") == "technique"
    slugs = {
        m.rsplit(".", 1)[-1]: m
        for m, tree in trees.items()
        for n in tree.body
        if isinstance(n, ast.ClassDef) and any(map(registers, n.decorator_list))
    }
    return known, slugs


def reach(
    modules:dict[str,set[str]], # imports by module
    start:set[str]              # modules
)->set[str]:
    "`start` and everything that it imports"
    found = set()
    todo = list(start)
    while todo:
        m = todo.pop()
        if m in found: continue
        found.add(m)
        todo += modules.get(m, ())
    return found


def contract_imports(
    root:Path,            # of the project
    slugs:dict[str,str]   # module by slug
)->set[str]: # modules
    "What the contract itself uses of the library; not the techniques that it sets beside others"
    out = set()
    for name in ("contract", "test_contract"):
        path = root/"tests"/f"{name}.py"
        if path.exists(): out |= imports(ast.parse(path.read_text(encoding="utf-8")), name)
    return out - set(slugs.values())


def choose(
    root:Path,            # of the project
    everything:bool=False # ask for all?
)->dict[str,str]: # slug -> why it is tested whole
    "The techniques of this run"
    modules, slugs = graph(root)
    every = lambda why: dict.fromkeys(sorted(slugs), why)
    if everything: return every("all were asked for")
    base = base_of(root)
    if base is None: return every("git knows no commit before this one")
    files = changed_files(root, base)
    if files is None: return every(f"git knows no commit {base}")
    if files & EVERYTHING: return every(f"{min(files & EVERYTHING)} changed")
    changed = {module_name(Path(f)) for f in files if f.startswith("labelkit/")}
    lessons = {module_name(Path(f)) for f in files if f.startswith("nbs/")}
    shared = contract_imports(root, slugs)
    head = git(root, "rev-parse", "HEAD")[0]
    out = {}
    for i, (slug, module) in enumerate(sorted(slugs.items())):
        touched = reach(modules, {module, *shared}) & changed
        if touched or module in lessons: out[slug] = f"changed since {base[:8]}"
        elif i % SHARES == int(head, 16) % SHARES: out[slug] = f"the share of {head[:8]}"
    return out


def told(
    chosen:dict[str,str], # slug -> why
    total:int             # techniques
)->str:
    "What was tested whole, for the end of a run"
    reasons = {}
    for slug, why in chosen.items(): reasons.setdefault(why, []).append(slug)
    if len(chosen) == total: return f"whole for all {total} techniques"
    said = "; ".join(f"{', '.join(names)} ({why})" for why, names in reasons.items())
    return f"whole for {len(chosen)} of {total} techniques: {said}; ALL=1 tests all of them whole"
