"""Builds the site: docs/_site/index.html opens from the disk and asks the network for nothing.

    python scripts/site_pages.py [--stale] [--jobs N]

The pages are the executed notebooks (those the tests left are used, the missing ones are run), the
pages of docs/, and the reference, written from the source. All of it is laid out in
docs/_build/src, where Sphinx reads it.
"""
import argparse, json, os, re, shutil, subprocess, sys, time
from pathlib import Path

from notebooks import NBS, ROOT, execute_missing, fresh, notebooks, source
from vendor import vendor

DOCS = ROOT/"docs"
SRC = DOCS/"_build"/"src"
SITE = DOCS/"_site"
DIRECTIVE = re.compile(r"^\s*#\s*\|\s*(.*?)\s*$")


def directives(
    text:str # a code cell's text
)->list[str]:
    "nbdev's directives at its top: `#| export` gives `export`"
    out = []
    for line in text.splitlines():
        if not (m := DIRECTIVE.match(line)): break
        out.append(m.group(1))
    return out


def prepare(
    nb:dict # executed notebook
)->dict: # the same as a page
    "Leave out what is hidden, strip the directives, mark what is exported"
    cells = []
    for c in nb["cells"]:
        c = dict(c, metadata=dict(c["metadata"]))
        if c["cell_type"] == "markdown":
            c["source"] = source(c).replace("](../CONTRIBUTING.md)", "](contributing.md)")
            c["source"] = c["source"].replace("](../docs/", "](")  # pictures lie beside the pages
        if c["cell_type"] == "code":
            marks = directives(source(c))
            words = {w for m in marks for w in m.split()[:1]}
            if words & {"hide", "default_exp"} or not source(c).strip(): continue
            c["source"] = "\n".join(source(c).splitlines()[len(marks):]).strip("\n")
            tags = ["exported"] if words & {"export", "exports", "exporti"} else []
            if "echo: false" in marks: tags.append("remove-input")
            if "output: false" in marks: tags.append("remove-output")
            if any(m.startswith("code-fold") for m in marks): tags.append("hide-input")
            c["metadata"]["tags"] = tags
            c["outputs"] = [o for o in c["outputs"] if not _warning(o)]
        cells.append(c)
    return dict(nb, cells=cells)


def _warning(
    o:dict # an output
)->bool:
    "Is it another library's warning, with a path of this machine in it?"
    return o.get("name") == "stderr" and "site-packages" in "".join(o["text"])


def title(
    nb:dict # notebook
)->tuple[str,str]: # title, sentence
    "What a notebook is called and the sentence below its title"
    text = source(next((c for c in nb["cells"] if c["cell_type"] == "markdown"), {"source": ""}))
    head = re.search(r"^# +(.+)$", text, re.M)
    line = re.search(r"^> ?(.+)$", text, re.M)
    return (head.group(1).strip() if head else "Untitled"), (line.group(1).strip() if line else "")


def cards()->dict[str,object]:
    "The card of each technique by its notebook (`mix/mixup`)"
    try:
        import labelkit.all  # noqa: F401
        from labelkit.core.technique import registry
    except ImportError: return {}
    return {
        c.cls.__module__.removeprefix("labelkit.").replace(".", "/"): c for c in registry.values()
    }


def family_table(
    names:list[str],     # document names of a family's notebooks
    titles:dict,         # title and sentence of each
    known:dict           # cards by document name
)->str:
    "A table of a family's notebooks, with the card of each technique, and the menu below it"
    plain = lambda x: x.replace("|", "\\|")
    if any(n in known for n in names):
        rows = ["| Technique | What it does | Needs | Year |", "|---|---|---|---|"]
        for n in names:
            c = known.get(n)
            rows.append(
                f"| {{doc}}`{plain(titles[n][0])} </{n}>` | {plain(titles[n][1])} | "
                + (
                    f"{plain(', '.join(c.needs) or 'labels')} | [{c.year}]({c.paper}) |"
                    if c
                    else " | |"
                )
            )
    else:
        rows = ["| Lesson | |", "|---|---|"] + [
            f"| {{doc}}`{plain(titles[n][0])} </{n}>` | {plain(titles[n][1])} |" for n in names
        ]
    toc = ["", "```{toctree}", ":hidden:", "", *(f"{titles[n][0]} </{n}>" for n in names), "```"]
    return "\n".join(rows + toc) if names else "*Nothing here yet.*"


MENU = """
```{toctree}
:hidden:
:caption: Learn

how_it_works
which_when
scoreboard
augment/index
mix/index
pseudo/index
relabel/index
distill/index
represent/index
data/index
core/index
parts/index
storage/index
explore/index
evidence/index
lesson/index
```

```{toctree}
:hidden:
:caption: Look up

techniques
api/index
all
contributing
changelog
```
"""

FAMILIES = dict(
    augment="Augmentation",
    mix="Mixing",
    pseudo="Pseudo-labeling",
    relabel="Re-labeling",
    distill="Distillation",
    represent="Representations",
)


def scoreboard_html(
    page:str,          # document name of the page that shows it, for its links
    known:dict,        # cards by document name
    nbs:dict,          # pages by document name
    lack:str=None      # only what answers it
)->str:
    "What techniques claim, and whether it was seen, with links to their lessons"
    from labelkit.evidence.scoreboard import scoreboard
    up = "../"*page.count("/")
    links = {c.slug: f"{up}{n}.html" for n, c in known.items() if n in nbs}
    board = scoreboard(lack=lack)
    if not len(board): return "*Nothing here claims to answer it yet.*"
    return (f"{board.summary}\n\n" if lack is None else "") + board.html(links)


def lacks(
    known:dict, # cards by document name
    nbs:dict    # pages by document name
)->str:
    "Questions, and below each what answers it"
    from labelkit.core.claim import LACKS
    anchor = lambda question: re.sub(r"[^a-z0-9]+", "-", question.lower()).strip("-")
    out = [f"- [{q}](#{anchor(q)})" for q in LACKS.values()]
    for lack, question in LACKS.items():
        out += ["", f"## {question}", "", scoreboard_html("which_when", known, nbs, lack)]
    return "\n".join(out)


def atlas_table(
    known:dict, # cards by document name
    nbs:dict    # pages by document name
)->str:
    "The atlas as Markdown: a table for each family; what exists links to its page"
    from labelkit.atlas import atlas
    lines = list(atlas())
    pages = {c.name: n for n, c in known.items() if n in nbs}
    plain = lambda x: (
        str(x).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")
    )
    out = [
        f"{sum(o['exists'] for o in lines)} of {len(lines)} techniques are here (filled dots).",
        "",
    ]
    for fam in dict.fromkeys(o["family"] for o in lines):
        these = sorted(
            (o for o in lines if o["family"] == fam),
            key=lambda o: (not o["exists"], str(o["tier"]) or "9"),
        )
        out += [
            f"## {FAMILIES.get(fam, fam.capitalize())}",
            "",
            f"{sum(o['exists'] for o in these)} of {len(these)}",
            "",
            "| | Technique | Tier | What it is | Claim |",
            "|---|---|---|---|---|",
        ]
        for o in these:
            name = plain(o["technique"] or o["name"])
            if o["technique"] in pages:
                name = f"{{doc}}`{o['technique']} </{pages[o['technique']]}>`"
            if str(o["paper"]).startswith("https://"): name += f" ([{o['year']}]({o['paper']}))"
            out.append(
                f"| {'●' if o['exists'] else '○'} | {name} | {plain(o['tier'])} | "
                f"{plain(o['ships'])} | {o['claim']} |"
            )
        out.append("")
    return "\n".join(out)


def lay_out(
    nbs:dict[str,dict] # executed notebooks by document name
)->list[str]: # what is missing, in words
    "Write everything Sphinx reads into docs/_build/src"
    missing = []
    new = SRC.with_name("src.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    if "index" not in nbs:  # the home page stays, without its outputs
        nbs = nbs | {"index": json.loads((NBS/"index.ipynb").read_text(encoding="utf-8"))}
        missing.append("the outputs of the home page")
    titles = {n: title(nb) for n, nb in nbs.items()}
    nbs["index"] = dict(
        nbs["index"],
        cells=nbs["index"]["cells"]
        + [dict(cell_type="markdown", id="menu", metadata={}, source=MENU)],
    )
    for n, nb in nbs.items():
        (new/n).parent.mkdir(parents=True, exist_ok=True)
        (new/f"{n}.ipynb").write_text(json.dumps(prepare(nb), sort_keys=True), encoding="utf-8")
    import api
    api.write(new/"api", set(nbs))
    known = cards()
    pages = [
        p
        for p in DOCS.rglob("*")
        if p.suffix in (".md", ".svg") and not any(s[0] in "._" for s in p.relative_to(DOCS).parts)
    ]
    for p in pages:
        text = p.read_text(encoding="utf-8")
        def fill(m):
            places = m.group(1).split()  # folders, and single notebooks outside of them
            names = sorted(
                (n for n in nbs if n in places or n.split("/")[0] in places and "/" in n),
                key=lambda n: (n not in known, n),
            )
            return family_table(names, titles, known)
        text = re.sub(r"<!-- notebooks: ([\w ]+) -->", fill, text)
        page = p.relative_to(DOCS).with_suffix("").as_posix()
        text = text.replace("<!-- scoreboard -->", scoreboard_html(page, known, nbs))
        if "<!-- lacks -->" in text: text = text.replace("<!-- lacks -->", lacks(known, nbs))
        if "<!-- atlas -->" in text:
            try: text = text.replace("<!-- atlas -->", atlas_table(known, nbs))
            except Exception as e: missing.append(f"the atlas ({type(e).__name__}: {e})")
        (new/p.relative_to(DOCS)).parent.mkdir(parents=True, exist_ok=True)
        (new/p.relative_to(DOCS)).write_text(text, encoding="utf-8")
    for name in ("CHANGELOG.md", "CONTRIBUTING.md"): shutil.copy(ROOT/name, new/name.lower())
    sync(new, SRC)
    return missing


def sync(
    new:Path, # folder with the wanted files
    old:Path  # folder to become the same
):
    """Make `old` equal `new`; files that are equal keep their time, so Sphinx reads only what
    changed"""
    old.mkdir(parents=True, exist_ok=True)
    want = {p.relative_to(new) for p in new.rglob("*") if p.is_file()}
    for p in list(old.rglob("*")):
        if p.is_file() and p.relative_to(old) not in want: p.unlink()
    for p in want:
        if (old/p).exists() and (old/p).read_bytes() == (new/p).read_bytes(): continue
        (old/p).parent.mkdir(parents=True, exist_ok=True)
        os.replace(new/p, old/p)
    shutil.rmtree(new)


def sphinx(
    src:Path,     # folder with the pages
    dest:Path,    # folder of the site
    *args:str     # further arguments of sphinx-build
):
    "Run Sphinx; it ends the program when it fails"
    cmd = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-b",
        "html",
        "-c",
        str(DOCS),
        "-d",
        str(dest.parent / "_build" / "doctrees"),
        *args,
        str(src),
        str(dest),
    ]
    if code := subprocess.run(cmd).returncode: sys.exit(code)


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument(
        "--stale",
        action="store_true",
        help="accept executed notebooks of another state of the library",
    )
    ap.add_argument(
        "--jobs", type=int, default=min(os.cpu_count() or 1, 4), help="kernels at a time"
    )
    a = ap.parse_args()
    start = time.perf_counter()
    if why := vendor():
        print(
            f"Without npm's packages ({why}): widgets stay still and formulas stay source text on "
            "this build.",
            file=sys.stderr,
        )
    paths = notebooks()
    failed = execute_missing(paths, a.jobs, a.stale)
    for p, e in failed.items():
        print(f"{p.relative_to(ROOT)} fails and has no page:\n{e[-1500:]}", file=sys.stderr)
    nbs = {
        p.relative_to(NBS).with_suffix("").as_posix(): nb
        for p in paths
        if p not in failed and (nb := fresh(p, a.stale))
    }
    ran = time.perf_counter()
    for m in lay_out(nbs): print(f"Missing on this build: {m}", file=sys.stderr)
    sphinx(SRC, SITE)
    print(
        f"{SITE.relative_to(ROOT)}/index.html: {len(nbs)} notebooks; notebooks {ran - start:.0f} "
        f"s, pages {time.perf_counter() - ran:.0f} s"
    )
    sys.exit(bool(failed))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
