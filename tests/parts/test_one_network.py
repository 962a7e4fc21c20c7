"A single model passes, and nothing else"
import pytest
from torch import nn

from labelkit.core.teachers import as_teacher
from labelkit.errors import LabelKitError
from labelkit.parts.one_network import one_network


def test_what_passes():
    net = nn.Linear(2, 3)
    assert one_network(net, "").model.out_features == 3
    known = as_teacher(net)
    assert one_network(known, "") is known


@pytest.mark.parametrize("teacher", [[nn.Linear(2, 3)]*2, lambda x: x])
def test_what_does_not(teacher):
    with pytest.raises(LabelKitError, match="its maps are read, pass one model or Learner"):
        one_network(teacher, "its maps are read")
