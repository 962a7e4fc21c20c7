"""Two random pairs of techniques together, others in every run.

    LABELKIT_PAIRS_SEED=7 pytest tests/test_pairs.py     the pairs of a seed (by default the day's)
    LABELKIT_PAIRS=all pytest tests/test_pairs.py        every pair
"""
import datetime
import os
import random
from itertools import combinations

import pytest
import torch

from contract import MODEL, SLUGS, build, cannot_compose, fit, learner, pair_loaders, weights
from labelkit.core.supervision import LabelCallback

SEED = int(os.environ.get("LABELKIT_PAIRS_SEED", datetime.date.today().toordinal()))
ALL = list(combinations(SLUGS, 2))
FIT = [p for p in ALL if not cannot_compose(*p)]
PAIRS = ALL if os.environ.get("LABELKIT_PAIRS") == "all" else random.Random(SEED).sample(FIT, 2)


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_compose(pair):
    reason = cannot_compose(*pair)
    if reason: pytest.skip(reason)
    cbs = [build(slug, active=True) for slug in pair]
    learn = learner(cbs, slug=next((o for o in pair if o in MODEL), None), dls=pair_loaders(*pair))
    before = weights(learn)
    fit(learn)
    after = weights(learn)
    assert all(torch.isfinite(v).all() for v in after.values()) and any(
        not torch.equal(before[k], after[k]) for k in before
    )
    assert learn.xb == (None,) and "one_batch" not in learn.__dict__
    for m in learn.model.modules():
        assert not m._forward_hooks and not m._forward_pre_hooks, "a hook was left behind"
    with learn.no_bar(), learn.no_logging():
        loss = list(learn.validate())
        learn.remove_cbs([cb for cb in list(learn.cbs) if isinstance(cb, LabelCallback)])
        assert list(learn.validate()) == loss


def test_pairs_that_cannot_are_said():
    "Every pair that is left out has a reason in words, and most pairs are not left out"
    reasons = {p: r for p in ALL if (r := cannot_compose(*p))}
    assert all(len(r) > 20 for r in reasons.values())
    assert len(reasons) < len(ALL)/2, f"{len(reasons)} of {len(ALL)} pairs cannot compose"
