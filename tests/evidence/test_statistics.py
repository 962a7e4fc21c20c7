"The interval of a mean, and differences within a seed"
import math

import pytest
from scipy import stats

from labelkit.evidence.statistics import paired, t_interval


@pytest.mark.parametrize("level", [.5, .95, .99])
def test_interval_is_students(level):
    v = [.1, .4, .35, .2]
    ref = stats.ttest_1samp(v, 0).confidence_interval(level)
    assert t_interval(v, level) == pytest.approx((.2625, ref.low, ref.high))


def test_interval_by_hand():
    # s = 1 and t(.975, 2) = 4.3027, so the half width is 4.3027/sqrt(3)
    assert t_interval([1, 2, 3]) == pytest.approx((2, 2 - 2.48414, 2 + 2.48414), abs=1e-5)
    assert t_interval([1., 1.]) == (1., 1., 1.)


def test_interval_of_few():
    mean,low,high = t_interval([1.])
    assert mean == 1 and math.isnan(low) and math.isnan(high)
    assert all(map(math.isnan, t_interval([])))


def test_pairs_are_by_seed_and_signed():
    values = {3: .9, 1: .5, 7: .4}
    assert paired(values, {1: .75, 2: 0., 3: .5}) == {3: pytest.approx(.4), 1: pytest.approx(-.25)}
