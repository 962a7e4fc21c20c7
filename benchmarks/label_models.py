"""Label models beside their peers: majority vote and covariance model beside Snorkel's, Dawid–Skene
beside crowd-kit's, two of them beside a plain loop.

Votes are an integer matrix [samples, labeling functions] with -1 for abstaining; everybody gives
probabilities [samples, classes]. Dawid–Skene runs a fixed number of EM iterations on every side,
without a stopping rule. crowd-kit takes a table of the votes that are there, which is made
beforehand and not counted, and knows no abstaining as a symbol, so ours leaves it out as well.
Snorkel's label model begins at a random scale, which ours does not. The plain loop runs on fewer
samples and is scaled up. One thread, processor time, median over rounds that alternate. A peer that
is not installed is left out:

    pip install --no-deps snorkel crowd-kit munkres nltk
    python benchmarks/label_models.py
"""
import argparse
import itertools

import numpy as np
import torch

from timing import alternate, save, table, versions
from labelkit.data.settings import weak_labels
from labelkit.relabel.label_models import CovarianceLabelModel, DawidSkene, MajorityVote

ITERATIONS = 10


def plain_majority(votes, c):
    "Counting, one sample after the other"
    out = []
    for row in votes:
        counts = [0]*c
        for v in row:
            if v >= 0: counts[v] += 1
        most = max(counts)
        top = [k for k in range(c) if counts[k] == most]
        out.append([1/len(top) if k in top else 0. for k in range(c)])
    return np.array(out)


def plain_dawid_skene(votes, c, iterations=ITERATIONS):
    "EM as in the textbook, samples and voters in Python, classes in NumPy"
    n,m = votes.shape
    q = np.zeros((n, c))
    for i,j in itertools.product(range(n), range(m)):
        if votes[i,j] >= 0: q[i, votes[i,j]] += 1
    q = np.where(q.sum(1, keepdims=True) > 0, q/np.maximum(q.sum(1, keepdims=True), 1), 1/c)
    for _ in range(iterations):
        prior = q.mean(0)
        theta = np.zeros((m, c, c))
        for i,j in itertools.product(range(n), range(m)):
            if votes[i,j] >= 0: theta[j, :, votes[i,j]] += q[i]
        log = np.log(np.maximum(theta/theta.sum(2, keepdims=True), 1e-300))
        q = np.tile(np.log(prior), (n, 1))
        for i,j in itertools.product(range(n), range(m)):
            if votes[i,j] >= 0: q[i] += log[j, :, votes[i,j]]
        q = np.exp(q-q.max(1, keepdims=True))
        q /= q.sum(1, keepdims=True)
    return q


def snorkel_majority(votes, c):
    try: from snorkel.labeling.model import MajorityLabelVoter
    except ImportError: return None
    return lambda: MajorityLabelVoter(cardinality=c).predict_proba(votes)


def snorkel_label_model(votes, c):
    try: from snorkel.labeling.model import LabelModel
    except ImportError: return None
    def run():
        model = LabelModel(cardinality=c, verbose=False)
        model.fit(votes, n_epochs=100, progress_bar=False, seed=0)
        return model.predict_proba(votes)
    return run


def crowdkit_dawid_skene(votes, c):
    try:
        import pandas as pd
        from crowdkit.aggregation.classification.dawid_skene import DawidSkene as Peer
    except ImportError: return None
    i,j = np.nonzero(votes >= 0)
    frame = pd.DataFrame(dict(task=i, worker=j, label=votes[i,j]))
    def run():
        model = Peer(n_iter=ITERATIONS, tol=0.)
        model.fit(frame)
        return (
            model.probas_.reindex(range(len(votes)))
            .reindex(columns=range(c))
            .fillna(0.0)
            .to_numpy()
        )

    return run


def main(rounds=5, n=50_000, m=20, c=10, few=1_000):
    "Print the table and write `benchmarks/results/label_models.json`"
    torch.set_num_threads(1)
    y = torch.arange(n) % c
    votes = weak_labels(y, torch.linspace(.9, .4, m).tolist(), .5, c=c)
    array = votes.numpy()
    part = votes[:few].numpy()
    ds = DawidSkene(tol=0., max_iter=ITERATIONS, abstain=False)
    # crowd-kit makes one M and one E step more than it counts iterations; what it gives has to
    # agree all the same
    proba = lambda model, v: model.fit(v, c).predict_proba(v).numpy()
    sets = {
        "majority vote": (
            MajorityVote(),
            dict(snorkel=snorkel_majority(array, c)),
            lambda: plain_majority(part.tolist(), c),
        ),
        "Dawid–Skene": (
            ds,
            {"crowd-kit": crowdkit_dawid_skene(array, c)},
            lambda: plain_dawid_skene(part, c),
        ),
        "covariance": (CovarianceLabelModel(), dict(snorkel=snorkel_label_model(array, c)), None),
    }
    rows = [["label model", "labelkit ms", "peer", "peer ms", "labelkit / peer", "same answers"]]
    result = []
    voted = (array >= 0).any(1)  # crowd-kit does not know of samples without votes
    for name,(model,peers,plain) in sets.items():
        peers = {k: f for k,f in peers.items() if f is not None}
        pairs = {k: (proba(model, votes)[voted], f()[voted]) for k,f in peers.items()}
        if plain: pairs["loop"] = proba(model, votes[:few]),plain()
        same = {k: float((a.argmax(1) == b.argmax(1)).mean()) for k,(a,b) in pairs.items()}
        apart = {k: float(np.abs(a-b).max()) for k,(a,b) in pairs.items()}
        t = alternate(
            dict(labelkit=lambda: proba(model, votes))
            | peers
            | (dict(loop=plain) if plain else {}),
            rounds,
        )
        if plain: t["loop"] *= n/few
        for k in pairs:
            ours = t["labelkit"]
            cells = f"{1000*ours:.1f}",k,f"{1000*t[k]:.0f}",f"{ours/t[k]:.4f}",f"{same[k]:.4f}"
            rows += [[name, *cells]]
        result.append(
            dict(
                model=name,
                ms={k: v * 1000 for k, v in t.items()},
                ratio={k: t["labelkit"] / t[k] for k in t if k != "labelkit"},
                same_answers=same,
                largest_difference=apart,
            )
        )
    print(table(rows))
    save(
        "label_models",
        dict(
            what=f"{n} x {m} votes on {c} classes, half of them abstaining; ms of processor time, "
                 "one thread; ratio = labelkit / peer; "
            f"Dawid–Skene with {ITERATIONS} iterations; the loop on {few} samples, scaled up",
            rounds=rounds,
            rows=result,
            versions=versions("labelkit", "torch", "numpy", "scipy", "snorkel", "crowd-kit"),
        ),
    )
    return all(v <= 1 for r in result for v in r["ratio"].values())


if __name__ == "__main__":
    p = argparse.ArgumentParser(description="Label models beside Snorkel and crowd-kit")
    p.add_argument("--rounds", type=int, default=5)
    a = p.parse_args()
    raise SystemExit(0 if main(a.rounds) else "labelkit is slower than a peer")
