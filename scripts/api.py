"""Writes the reference pages: one a module, each public name with its parameters, types, defaults
and what they mean.

The words come from the source: the docstring, and fastcore's docments (the comment behind each
parameter).
"""
import importlib, inspect, pkgutil, re
from pathlib import Path

from fastcore.docments import docments

SKIP = {"labelkit.all"}
OURS = "labelkit"


def modules()->list:
    "Every module of labelkit that has public names of its own"
    import labelkit

    names = [
        m.name
        for m in pkgutil.walk_packages(labelkit.__path__, "labelkit.")
        if not m.ispkg and m.name not in SKIP
    ]
    mods = [importlib.import_module(n) for n in sorted(names) if "tutorials" not in n]
    return [m for m in mods if getattr(m, "__all__", None)]


def type_name(
    a # annotation
)->str:
    "An annotation as it is written in code"
    if a in (None, inspect.Parameter.empty): return ""
    if isinstance(a, str): return a
    if isinstance(a, type) and not hasattr(a, "__args__"): return a.__name__
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Za-z_])", "", str(a))  # without the names of modules


def value(
    v,            # default of a parameter, or a constant
    width:int=60  # longer ones are cut
)->str:
    "A short, stable text for `v`"
    if callable(v): text = getattr(v, "__name__", type(v).__name__)
    else:
        text = " ".join(repr(v).split())
        if " at 0x" in text: text = f"{type(v).__name__}(…)"
    return text if len(text) <= width else text[:width-1] + "…"


def cell(
    text # text of a table's cell
)->str:
    "`text` so that it stays inside one cell"
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")


def code(text)->str: return f"`{cell(text).replace('&lt;', '<')}`" if text else ""


def described(
    f # function or class
)->dict:
    "fastcore's docments of `f`; empty where it takes its parameters from another library"
    owner = f.__init__ if inspect.isclass(f) else f
    if not (getattr(owner, "__module__", None) or "labelkit").startswith(OURS): return {}
    try: doc = docments(f, full=True, returns=True)
    except Exception: return {}  # builtins and C functions have no source to read
    return {k: p for k, p in doc.items() if k not in ("self", "cls")}


def commented(doc:dict)->bool: return any(p.get("docment") for p in doc.values())


def signature(
    f # function or class
)->str:
    "Names and defaults as in a call; types too, unless a table below shows them"
    doc = described(f)
    if inspect.isclass(f) and not doc: return ""
    try: sig = inspect.signature(f)
    except (TypeError, ValueError): return "()"
    types = not commented(doc)
    out = []
    star = False
    for p in sig.parameters.values():
        if p.name == "self": continue
        if p.kind == p.VAR_POSITIONAL:
            out.append(f"*{p.name}")
            star = True
            continue
        if p.kind == p.VAR_KEYWORD:
            out.append(f"**{p.name}")
            continue
        if p.kind == p.KEYWORD_ONLY and not star:
            out.append("*")
            star = True
        kind = type_name(p.annotation) if types else ""
        default = "" if p.default is p.empty else f"={value(p.default, 30)}"
        out.append(p.name + (f": {kind}" if kind else "") + default)
    returns = (
        type_name(doc.get("return", {}).get("anno")) if types and not inspect.isclass(f) else ""
    )
    return f"({', '.join(out)})" + (f" -> {returns}" if returns else "")


def parameters(
    f # function or class
)->str:
    "A table of the parameters and of what is returned, where the source says what they mean"
    doc = described(f)
    rows = []
    if not commented(doc): return ""
    for name, p in doc.items():
        kind = type_name(p.get("anno"))
        text = cell(p.get("docment") or "")
        if name == "return":
            if (kind or text) and not inspect.isclass(f):
                rows.append(f"| *returns* | {code(kind)} | | {text} |")
        elif text or name not in ("args", "kwargs"):
            d = p.get("default", inspect.Parameter.empty)
            rows.append(
                f"| {code(name)} | {code(kind)} | "
                f"{'' if d is inspect.Parameter.empty else code(value(d))} | {text} |"
            )
    return (
        "\n".join(["| Parameter | Type | Default | Meaning |", "|---|---|---|---|", *rows]) + "\n"
    )


def block(
    kind:str,      # directive of Sphinx's Python domain
    head:str,      # name and signature
    body:str,      # Markdown inside
    depth:int=0    # how deep the block is nested
)->str:
    "A directive around `body`"
    fence = ":" * (6 - depth)
    return f"{fence}{{py:{kind}}} {head}\n\n{body.strip()}\n{fence}\n"


def doc(obj)->str:
    return inspect.cleandoc(obj.__doc__) if isinstance(getattr(obj, "__doc__", None), str) else ""


def methods(
    cls:type # a class
)->str:
    "Blocks of the public methods and properties that `cls` defines itself"
    out = []
    for name, m in vars(cls).items():
        if name.startswith("_"): continue
        if isinstance(m, property): out.append(block("property", name, doc(m), 1))
        elif isinstance(m, (classmethod, staticmethod)):
            out.append(
                block(
                    "classmethod" if isinstance(m, classmethod) else "staticmethod",
                    name + signature(getattr(cls, name)),
                    doc(m.__func__) + "\n\n" + parameters(m.__func__),
                    1,
                )
            )
        elif inspect.isfunction(m) and doc(m):
            out.append(block("method", name + signature(m), doc(m) + "\n\n" + parameters(m), 1))
    return "\n".join(out)


def entry(
    name:str, # public name
    obj       # what it names
)->str:
    "The block of one public name"
    if inspect.isclass(obj):
        return block(
            "class", name + signature(obj), "\n\n".join([doc(obj), parameters(obj), methods(obj)])
        )
    if inspect.isfunction(obj) or inspect.ismethod(obj):
        return block("function", name + signature(obj), doc(obj) + "\n\n" + parameters(obj))
    return block("data", name, f"{code(value(obj, 300))}")


def page(
    mod # a module
)->str:
    "The Markdown of a module's page"
    short = mod.__name__.removeprefix("labelkit.")
    own = [(n, getattr(mod, n)) for n in mod.__all__ if hasattr(mod, n)]
    lesson = f"The lesson: {{doc}}`/{short.replace('.', '/')}`"
    head = f"# {short}\n\n```{{py:module}} {mod.__name__}\n```\n\n{doc(mod)}\n\n{lesson}\n\n"
    return head + "\n".join(entry(n, o) for n, o in own)


def write(
    dest:Path,   # folder of the pages
    lessons:set  # document names of the notebooks' pages
)->list[str]: # the document names that were written
    "Write every page into `dest`, with an index"
    dest.mkdir(parents=True, exist_ok=True)
    names = []
    rows = []
    for mod in modules():
        short = mod.__name__.removeprefix("labelkit.")
        text = page(mod)
        if short.replace(".", "/") not in lessons:
            text = text.replace(f"The lesson: {{doc}}`/{short.replace('.', '/')}`\n\n", "")
        (dest/f"{short}.md").write_text(text, encoding="utf-8")
        public = ", ".join(
            f"{{py:obj}}`~{mod.__name__}.{n}`" for n in mod.__all__ if hasattr(mod, n)
        )
        rows.append(f"| {{doc}}`{short} <{short}>` | {public} |")
        names.append(short)
    index = [
        "# Reference",
        "",
        "Every public name by module. `from labelkit.all import *` brings all of them.",
        "",
        "| Module | Names |",
        "|---|---|",
        *rows,
        "",
        "```{toctree}",
        ":hidden:",
        "",
        *names,
        "```",
        "",
    ]
    (dest/"index.md").write_text("\n".join(index), encoding="utf-8")
    return names
