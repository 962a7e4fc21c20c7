"""Draws the README's picture, docs/forty_labels.svg, from the results of FlexMatch's claim.

    python scripts/picture.py            # writes it
    python scripts/picture.py --check    # writes nothing; ends with 1 when the file is another

What thousands of unlabeled pictures are worth when forty have a label: accuracy after every epoch,
mean of the seeds, and each seed as a pale line.
"""
import argparse, json, sys
from html import escape

from notebooks import ROOT

FILE = ROOT/"docs"/"forty_labels.svg"
CLAIM = ROOT/"labelkit"/"assets"/"claims"/"flexmatch.json"
ROWS = {"weak views": "#8a8a8a", "FixMatch": "#3d8bd9", "FlexMatch": "#12936f"}
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 300, 52, 130, 34, 40

STYLE = """<style>
text { font: 13px system-ui, sans-serif; fill: #57606a }
.title { font-weight: 600 }
@media (prefers-color-scheme: dark) { text { fill: #b6bec8 } }
</style>"""


def picture()->str:
    "The SVG"
    claim = json.loads(CLAIM.read_text(encoding="utf-8"))["claims"]["short"]
    curves = {n: [r["curve"] for r in claim["runs"] if r["row"] == n] for n in ROWS}
    epochs = len(next(iter(curves.values()))[0])
    x = lambda i: LEFT + (WIDTH - LEFT - RIGHT)*i/(epochs - 1)
    y = lambda v: HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM)*v
    line = lambda c: "M" + "L".join(f"{x(i):.1f} {y(v):.1f}" for i,v in enumerate(c))
    out = [
        f"<path d='M{LEFT} {y(v):.1f}H{WIDTH - RIGHT}' stroke='#8a8a8a' opacity='.25'/>"
        f"<text x='{LEFT - 8}' y='{y(v) + 4:.1f}' text-anchor='end'>{100*v:.0f} %</text>"
        for v in (0, .25, .5, .75, 1)
    ]
    said = []
    lowest = HEIGHT
    for name,color in ROWS.items():  # from the lowest to the highest
        pale = "".join(f"<path d='{line(c)}' opacity='.22'/>" for c in curves[name])
        mean = [sum(v)/len(v) for v in zip(*curves[name])]
        lowest = min(y(mean[-1]) + 4, lowest - 17)  # names do not stand on each other
        out.append(
            f"<g fill='none' stroke='{color}'>{pale}<path d='{line(mean)}' stroke-width='2.6'/></g>"
            f"<text x='{WIDTH - RIGHT + 8}' y='{lowest:.1f}' style='fill:{color}'>"
            f"{escape(name)} {100*mean[-1]:.0f} %</text>"
        )
        said.append(f"{name} {100*mean[-1]:.0f} %")
    n = len(curves["FlexMatch"])
    title = f"Forty labels, 3,960 pictures without: accuracy by epoch, {n} seeds"
    middle = (LEFT + WIDTH - RIGHT)/2
    out += [
        f"<text class='title' x='{LEFT}' y='18'>{title}</text>",
        f"<text x='{middle:.0f}' y='{HEIGHT - 8}' text-anchor='middle'>epoch, 1 to {epochs}</text>",
    ]
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}' role='img' "
        f"aria-label='{escape(title)}. At the end: {', '.join(said)}.'>\n{STYLE}\n"
        + "\n".join(out) + "\n</svg>\n"
    )


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--check", action="store_true")
    a = ap.parse_args()
    new = picture()
    if a.check: sys.exit(FILE.read_text(encoding="utf-8") != new and f"{FILE.name} is stale")
    FILE.write_text(new, encoding="utf-8")


if __name__ == "__main__": main()
