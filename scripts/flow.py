"""Draws docs/flow.svg, the picture on the page "How labelkit works".

    python scripts/flow.py
"""
from pathlib import Path

from labelkit.lesson.drawing import Drawing, box


def flow()->Drawing:
    "From samples to what can be looked at"
    d = Drawing("""
        Labeled and unlabeled samples go into the record of a batch. Techniques of the four families
        edit the record. All inputs go through the network in one joint pass. Your own loss and the
        losses that techniques add are minimised together. A ledger notes what happened to each
        sample, and explorers show the losses and the ledger.
    """)
    d.row(box("labeled samples"), box("unlabeled samples"))
    d.row(
        box("record", "target", "targets, weights, ids, inputs", span=4),
        None,
        box("techniques", "view", "mix, relabel, pseudo, distill", span=3),
    )
    d.row(box("network", "model", "one joint pass", span=5), None)
    d.row(box("your loss", "loss"), box("added losses", "loss"), None)
    d.row(box("explorers", "data", "show it"), None, box("ledger", "store", "sample by sample"))
    d.arrow("labeled samples", "record").arrow("unlabeled samples", "record")
    d.arrow("techniques", "record", "edit").arrow("record", "network", "all inputs")
    d.arrow("network", "your loss", grad=True).arrow("network", "added losses", grad=True)
    d.arrow("techniques", "added losses", "add").arrow("techniques", "ledger", "note")
    return d.arrow("your loss", "explorers").arrow("ledger", "explorers", "read")


if __name__ == "__main__":
    path = Path(__file__).resolve().parent.parent/"docs"/"flow.svg"
    path.write_text(flow().svg() + "\n", encoding="utf-8")
