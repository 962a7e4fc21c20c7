"""A wheel is built from this checkout, installed into an empty folder, and imported from there."""
import ast, json, shutil, subprocess, sys, zipfile
from configparser import ConfigParser
from email.parser import HeaderParser
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from notebooks import NBS, notebooks
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from style import code_cells

IGNORED = shutil.ignore_patterns(
    ".*",
    "__pycache__",
    "*.egg-info",
    "build",
    "dist",
    "_site",
    "_build",
    "vendor",
    "demo",
    "runs",
    "models",
)


def python(*args, cwd, **kwargs):
    res = subprocess.run(
        [sys.executable, *map(str, args)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=600,
        **kwargs,
    )
    assert res.returncode == 0, (
        f"{' '.join(map(str, args))}\n{res.stdout[-3000:]}\n{res.stderr[-3000:]}"
    )
    return res.stdout


@pytest.fixture(scope="module")
def settings(root):
    cfg = ConfigParser(delimiters=["="], interpolation=None)
    cfg.read(root/"settings.ini", encoding="utf-8")
    return cfg["DEFAULT"]


@pytest.fixture(scope="module")
def wheel(root, tmp_path_factory):
    "The wheel, built from a copy so that the checkout stays as it is"
    work = tmp_path_factory.mktemp("wheel")
    shutil.copytree(root, work/"src", ignore=IGNORED)
    python("-m", "build", "--wheel", "--no-isolation", "--outdir", work/"dist", ".", cwd=work/"src")
    found, = (work/"dist").glob("*.whl")
    return found


@pytest.fixture(scope="module")
def target(wheel, tmp_path_factory):
    "A folder that holds the installed wheel and nothing else"
    to = tmp_path_factory.mktemp("target")
    try: import pip  # noqa: F401
    # an environment made by uv has no pip
    except ImportError: zipfile.ZipFile(wheel).extractall(to)
    else:
        python(
            "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", to, wheel, cwd=to
        )
    return to


def test_wheel_carries_everything(wheel, root):
    names = set(zipfile.ZipFile(wheel).namelist())
    lib = root/"labelkit"
    wanted = {f"labelkit/{p.relative_to(lib).as_posix()}" for p in lib.rglob("*.py")}
    wanted.add("labelkit/py.typed")
    wanted |= {
        f"labelkit/{p.relative_to(lib).as_posix()}"
        for d in ("static", "assets")
        for p in (lib / d).rglob("*")
        if p.is_file()
    }
    wanted |= {f"labelkit/tutorials/{p.relative_to(NBS).as_posix()}" for p in notebooks()}
    assert not wanted - names
    others = [n for n in names if n.split("/")[0] != "labelkit" and ".dist-info/" not in n]
    assert not others, "only labelkit is installed"


def test_metadata_comes_from_settings(wheel, settings):
    z = zipfile.ZipFile(wheel)
    info = next(n.rsplit("/", 1)[0] for n in z.namelist() if n.endswith(".dist-info/METADATA"))
    meta = HeaderParser().parsestr(z.read(f"{info}/METADATA").decode())
    assert (meta["Name"], meta["Version"]) == (settings["lib_name"], settings["version"])
    assert meta["Requires-Python"] == ">=" + settings["min_python"]
    plain = [r for r in meta.get_all("Requires-Dist") if "extra ==" not in r]
    assert len(plain) == len(settings["requirements"].split()) and not [
        r for r in plain if "==" in r
    ], "ranges, no pins, for users"
    assert any(
        "extra ==" in r and r.startswith("nbdev==2.4.14") for r in meta.get_all("Requires-Dist")
    )
    assert settings["console_scripts"].replace(" ", "") in z.read(
        f"{info}/entry_points.txt"
    ).decode().replace(" ", "")
    assert any(n.startswith(f"{info}/") and n.endswith("LICENSE") for n in z.namelist())


def test_version_is_written_once(root, settings):
    assert f'__version__ = "{settings["version"]}"' in (root/"labelkit"/"__init__.py").read_text()


def test_every_module_imports_from_the_wheel(target, tmp_path):
    code = """
import importlib, json, pkgutil, sys
sys.path.insert(0, sys.argv[1])
import labelkit
names = ["labelkit"] + [m.name for m in pkgutil.walk_packages(labelkit.__path__, "labelkit.")]
mods = [importlib.import_module(n) for n in names]
print(json.dumps({n: getattr(m, "__file__", None) for n, m in zip(names, mods)}))
"""
    files = json.loads(python("-P", "-c", code, target, cwd=tmp_path).splitlines()[-1])
    assert {
        f"labelkit.{f}" for f in ("core", "mix", "pseudo", "relabel", "distill", "explore")
    } <= set(files)
    assert not {n: f for n, f in files.items() if not f or not Path(f).is_relative_to(target)}, (
        "imported from elsewhere"
    )


def test_settings_are_ranges_and_pins_agree(root, settings):
    "Each development requirement of settings.ini accepts the version that constraints.txt takes"
    lines = [
        x.strip()
        for x in (root / "constraints.txt").read_text().splitlines()
        if x.strip() and x[0] != "#"
    ]
    pins = {Requirement(x).name.lower(): Requirement(x).specifier for x in lines}
    assert all(next(iter(s)).operator == "==" for n, s in pins.items() if not n.startswith("torch"))
    for r in map(
        Requirement, (settings["requirements"] + " " + settings["dev_requirements"]).split()
    ):
        pin = pins.get(r.name.lower())
        if pin is None or r.name.startswith("torch"): continue
        assert r.specifier.contains(next(iter(pin)).version), f"{r} does not accept {pin}"


def installed(requirements):
    "Names of all distributions that come along with `requirements`"
    names = set()
    todo = [Requirement(r) for r in requirements]
    while todo:
        name = canonicalize_name(todo.pop().name)
        if name in names: continue
        names.add(name)
        needed = map(Requirement, requires(name) or [])
        todo += [r for r in needed if r.marker is None or r.marker.evaluate(dict(extra=""))]
    return names


def test_a_plain_install_brings_what_the_lessons_import(settings):
    "No extra, no second command"
    there = installed(settings["requirements"].split())
    of = packages_distributions()
    missing = {}
    for path in notebooks():
        nodes = [n for cell in code_cells(path) for n in ast.walk(ast.parse(cell))]
        names = [a.name for n in nodes if isinstance(n, ast.Import) for a in n.names]
        names += [n.module for n in nodes if isinstance(n, ast.ImportFrom) and not n.level]
        for top in {n.split(".")[0] for n in names} - {"labelkit", *sys.stdlib_module_names}:
            if not {canonicalize_name(d) for d in of.get(top, [top])} & there:
                missing.setdefault(top, []).append(path.name)
    assert not missing
    # fastai's `distrib_ctx`, which the lesson on processes uses, imports it when it is called
    assert "accelerate" in there
