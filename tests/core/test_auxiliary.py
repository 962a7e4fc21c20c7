"A network beside the model: its precision"
from types import SimpleNamespace

import pytest
import torch
from fastai.optimizer import SGD
from torch import nn

from labelkit.core.auxiliary import Auxiliary


def beside(model, module):
    learn = SimpleNamespace(
        dls=SimpleNamespace(device="cpu"), model=model, opt_func=SGD, lr=.1
    )
    return Auxiliary(module, learn)


@pytest.mark.parametrize("kind", [torch.half, torch.float, torch.double])
def test_it_has_the_precision_of_the_model(kind):
    "Beside halves it keeps 32 bits; inputs of 32 and 64 bits come to it in its own"
    aux = beside(nn.Linear(2, 2).to(kind), nn.Linear(2, 3))
    mine = torch.double if kind == torch.double else torch.float
    assert {p.dtype for p in aux.module.parameters()} == {mine}
    for given in (torch.float, torch.double):
        x = torch.rand(4, 2, dtype=given)
        want = nn.functional.linear(x.to(mine), aux.module.weight, aux.module.bias)
        for z in (aux(x), aux.frozen(x)): assert z.dtype == mine and torch.equal(z, want)


def test_what_is_no_number_of_32_bits_goes_on_as_it_is():
    class Kinds(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(1))
        def forward(self, *args): return [getattr(o, "dtype", o) for o in args]
    aux = beside(nn.Linear(2, 2), Kinds())
    args = torch.ones(1, dtype=torch.half), torch.ones(1, dtype=torch.long), 3, (8, 8)
    assert aux(*args) == [torch.half, torch.long, 3, (8, 8)]
