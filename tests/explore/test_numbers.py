"Numbers as a page and a results file hold them"
import json
import math

import numpy as np
import torch

from labelkit.explore.numbers import rounded


def test_by_hand():
    assert rounded(1234.5678) == 1235 and rounded(.0123456) == .01235
    assert rounded(2/3, 2) == .67 and rounded(1.0) == 1 and isinstance(rounded(1.0), int)
    assert rounded(1.25) == 1.25 and rounded(1.04) == 1.04
    assert rounded(np.int64(123456)) == 123456 and rounded(True) is True
    assert rounded("a") == "a" and rounded(None) is None


def test_what_is_no_number_is_a_gap():
    assert [rounded(o) for o in (math.nan, math.inf, -math.inf)] == [None]*3


def test_inside_of_others():
    said = dict(a=[1.23456, (math.inf, 2.)], b=np.array([[.1, math.nan]]), c=torch.tensor(.5))
    got = rounded(said, 3)
    assert got == dict(a=[1.23, [None, 2]], b=[[.1, None]], c=.5)
    assert json.loads(json.dumps(got, allow_nan=False)) == got
