"The stage of the mixes' claims"
import pytest
from fastai.basics import Learner, accuracy

from labelkit.core.fit import quiet
from labelkit.data.sets import digits
from labelkit.mix.stage import few_photographs, seldom_validated
from labelkit.models import small_cnn


@pytest.mark.parametrize("epochs,validated", [(3, 1), (10, 1), (12, 2)])
def test_it_validates_after_every_tenth_epoch_and_the_last(epochs, validated):
    dls = digits(labeled=20)
    learn = Learner(dls, small_cnn(dls, width=2), metrics=accuracy)
    with quiet(learn): seldom_validated(learn, epochs, 1e-3)
    values = learn.recorder.values
    assert len(values) == epochs
    assert [len(v) for v in values].count(3) == validated and len(values[-1]) == 3


def test_nothing_augments_the_photographs():
    assert few_photographs["data"].keywords == dict(n=1000, n_valid=5000, size=16)
