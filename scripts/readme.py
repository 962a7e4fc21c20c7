"""Writes README.md from nbs/index.ipynb: its text and its code, without outputs.

    python scripts/readme.py [--check]
"""
import json, re, sys

from notebooks import NBS, ROOT, source
from site_pages import directives


def readme(
    nb:dict # the index notebook
)->str:
    "Its cells as Markdown; hidden ones are left out and links point into nbs/"
    out = []
    for c in nb["cells"]:
        text = source(c)
        if c["cell_type"] == "code":
            marks = directives(text)
            if any(m.split()[0] in ("hide", "default_exp") for m in marks if m) or not text.strip():
                continue
            body = "\n".join(text.splitlines()[len(marks):]).strip()
            out.append(f"```python\n{body}\n```")
        else:
            out.append(
                re.sub(r"\]\((?!\w+:|/|#)([^)]+\.ipynb)\)", r"](nbs/\1)", text.strip()).replace(
                    "](../CONTRIBUTING.md)", "](CONTRIBUTING.md)"
                )
            )
    return re.sub(r"```\n\n```python\n", "\n", "\n\n".join(out)) + "\n"


def main():
    text = readme(json.loads((NBS/"index.ipynb").read_text(encoding="utf-8")))
    path = ROOT/"README.md"
    if "--check" in sys.argv:
        sys.exit(
            0
            if path.read_text(encoding="utf-8") == text
            else "README.md is not what nbs/index.ipynb says: make export"
        )
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__": main()
