"One step of a small network: down its loss, and nothing else moves"
import torch
from torch import nn

from contract import learner
from labelkit.core.auxiliary import Auxiliary
from labelkit.parts.inner_step import step_alone


def test_down_and_alone():
    learn = learner()
    learn.create_opt()
    line = Auxiliary(nn.Linear(1, 1, bias=False), learn, lr=.1)
    before = {k: v.clone() for k,v in learn.model.state_dict().items()}
    x = torch.rand(8, 1, 8, 8)
    def loss(): return learn.model.eval()(line(x[..., None])[..., 0])[:, 0].mean()
    (slope,) = torch.autograd.grad(loss(), line.module.weight)
    weight = line.module.weight.item()
    step_alone(line, learn, loss())
    assert (line.module.weight.item() - weight)*slope.item() < 0
    assert all(p.grad is None for p in [*learn.model.parameters(), *line.module.parameters()])
    assert all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items())
