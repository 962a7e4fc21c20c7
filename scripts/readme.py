"""The README is the home page's notebook: its text and its code, without outputs."""
import re

from notebooks import source
from site_pages import directives


def readme(
    nb:dict # the index notebook
)->str:
    "Its cells as Markdown; what only shows an output is left out and links point into nbs/"
    out = []
    for c in nb["cells"]:
        text = source(c)
        if c["cell_type"] == "code":
            marks = directives(text)
            words = {m.split()[0].rstrip(":") for m in marks if m}
            if words & {"hide", "default_exp", "echo"} or not text.strip(): continue
            body = "\n".join(text.splitlines()[len(marks):]).strip()
            out.append(f"```python\n{body}\n```")
        else:
            out.append(
                re.sub(r"\]\((?!\w+:|/|#)([^)]+\.ipynb)\)", r"](nbs/\1)", text.strip()).replace(
                    "](../CONTRIBUTING.md)", "](CONTRIBUTING.md)"
                ).replace("](../docs/", "](docs/")
            )
    return re.sub(r"```\n\n```python\n", "\n", "\n\n".join(out)) + "\n"

