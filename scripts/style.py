"""What ruff has no rule for: one assignment a line, and short lines of JavaScript and CSS.

    python scripts/style.py [FILE ...]     without arguments, all of them

`a, b = 1, 2` hides which value goes where. A swap and the unpacking of one value are fine:
`a, b = b, a` and `x, y = batch`. Scripts and style sheets are formatted by Prettier
(`.prettierrc.json`), which leaves long texts and comments as they are.
"""
import ast, json, subprocess, sys
from pathlib import Path

from notebooks import ROOT, source


def code_cells(
    path:Path # module or notebook
)->list[str]: # Python source; a module is one cell
    "The code of a file; cells with magics, which are not Python, are left out"
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb": return [text]
    cells = (source(c) for c in json.loads(text)["cells"] if c["cell_type"] == "code")
    return [c for c in cells if not any(x.lstrip().startswith(("%", "!")) for x in c.splitlines())]


def is_packed(
    node:ast.AST # any node
)->bool:
    "Does it give several values to several names at once, where a line each would do?"
    if not isinstance(node, ast.Assign): return False
    target = node.targets[0]
    pair = (ast.Tuple, ast.List)
    if not (isinstance(target, pair) and isinstance(node.value, pair)): return False
    set_here = {ast.unparse(o) for o in target.elts}
    used = {ast.unparse(o) for o in ast.walk(node.value) if isinstance(o, ast.expr)}
    return len(target.elts) > 1 and not set_here & used


def packed(
    code:str # Python source
)->list[ast.Assign]:
    "Every packed assignment in `code`"
    return [n for n in ast.walk(ast.parse(code)) if is_packed(n)]


def packed_in(
    path:Path # module or notebook
)->list[str]: # a sentence each
    "Where `path` has packed assignments"
    unit = "code cell {}, line" if path.suffix == ".ipynb" else "line"
    return [
        f"{path}: {unit.format(i)} {node.lineno}: one assignment a line: {ast.unparse(node)[:80]}"
        for i, code in enumerate(code_cells(path))
        for node in packed(code)
    ]


def long_lines(
    path:Path,        # script or style sheet
    longest:int=100,  # characters
)->list[str]: # a sentence each
    "Where `path` has lines of more characters"
    lines = path.read_text(encoding="utf-8").splitlines()
    return [
        f"{path}: line {i}: {len(line)} characters, at most {longest}"
        for i, line in enumerate(lines, 1)
        if len(line) > longest
    ]


def files()->list[Path]:
    "What git knows or would take"
    kinds = ["*.py", "*.ipynb", "*.js", "*.css"]
    cmd = ["git", "ls-files", "-co", "--exclude-standard", "--", *kinds]
    said = subprocess.run(cmd, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [p for line in said.splitlines() if (p := ROOT/line).exists()]


def main():
    found = []
    for path in map(Path, sys.argv[1:]) if sys.argv[1:] else files():
        found += (long_lines if path.suffix in (".js", ".css") else packed_in)(path)
    if found: sys.exit("\n".join(found))


if __name__ == "__main__": main()
