"A teacher in the model's place, and the model back again whatever happens"
import pytest

from contract import fit, learner
from labelkit.core.supervision import LabelCallback
from labelkit.core.teachers import EMA
from labelkit.errors import LabelKitError
from labelkit.parts.in_place import teacher_in_place


class Behind(LabelCallback):
    teacher = None
    def setup(self): self.teacher = EMA(self.learn.model)


def test_there_and_back():
    learn = learner([cb := Behind()])
    with pytest.raises(LabelKitError, match="Behind has no teacher yet"):
        teacher_in_place(cb).__enter__()
    fit(learn)
    student = learn.model
    with teacher_in_place(cb) as inside:
        assert inside is learn and learn.model is cb.teacher.model
    assert learn.model is student
    with pytest.raises(KeyError), teacher_in_place(cb): raise KeyError
    assert learn.model is student and not cb.teacher.model.training
