"""A second network: drawn anew, hooked like the model, with random numbers of its own"""
import pytest
import torch
from fastai.basics import CrossEntropyLossFlat, Learner
from torch import nn

from labelkit.core.auxiliary import Auxiliary
from labelkit.core.record import Supervision
from labelkit.data.loaders import from_arrays
from labelkit.models import small_cnn
from labelkit.parts.peer import Peer, fresh_copy, predict_together


class Net(nn.Module):
    "Two inputs, dropout, batch norm"
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(.5))
        self.head = nn.Linear(8, 4)
    def forward(self, a, b): return self.head(self.body(a+b))


@pytest.fixture
def learn():
    x = torch.rand(8, 3)
    dls = from_arrays(x, torch.arange(8) % 4, x, torch.arange(8) % 4, bs=4)
    torch.manual_seed(0)
    return Learner(dls, Net(), loss_func=CrossEntropyLossFlat())

def gen(seed=0): return torch.Generator().manual_seed(seed)
def record(n=6):
    g = gen(7)
    x = torch.rand(n, 3, generator=g),torch.rand(n, 3, generator=g)
    return Supervision(x, torch.arange(n) % 4, 4)


def test_fresh_copy():
    m = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.MultiheadAttention(4, 2)).eval()
    m[1].running_mean += 1
    before = {k: v.clone() for k,v in m.state_dict().items()}
    new = fresh_copy(m)
    assert all(torch.equal(v, before[k]) for k,v in m.state_dict().items()) and new.training
    assert not torch.equal(new[0].weight, m[0].weight) and new[1].running_mean.sum() == 0
    assert not torch.equal(new[2].in_proj_weight, m[2].in_proj_weight)


def test_what_cannot_be_drawn_anew_stays():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(2))
    assert fresh_copy(Own()).w.tolist() == [1., 1.]


def test_it_is_an_auxiliary_of_another_draw(learn):
    peer = Peer(learn, gen())
    assert isinstance(peer, Auxiliary) and not torch.equal(
        peer.module.head.weight, learn.model.head.weight
    )
    twin = Net()
    assert Peer(learn, gen(), lambda: twin).module is twin


def test_asked_in_training_mode_with_a_gradient_of_its_own(learn):
    peer = Peer(learn, gen())
    s = record()
    out = peer.ask(s, learn.model)
    out.square().sum().backward()
    assert out.shape == (6, 4) and out.dtype == torch.float
    assert peer.module.head.weight.grad.abs().sum() > 0 and learn.model.head.weight.grad is None
    assert peer.module.body[1].num_batches_tracked == 1
    assert learn.model.body[1].num_batches_tracked == 0


def test_its_dropout_draws_from_the_techniques_numbers(learn):
    "The same numbers give the same answer, other ones another, and the global ones do not move"
    peer = Peer(learn, gen(1))
    s = record()
    state = torch.get_rng_state()
    a = peer.ask(s, learn.model)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    b = peer.ask(s, learn.model)
    peer.rng = gen(1)
    assert torch.equal(peer.ask(s, learn.model), a) and not torch.equal(a, b)


def test_hooks_of_the_model_reach_its_layers_and_are_gone(learn):
    peer = Peer(learn, gen())
    s = record()
    seen = []
    cut = lambda m, args: (args[0]*0,)
    s.hook(learn.model.head, cut, before=True)
    s.hook(learn.model.body[0], lambda m, args, out: seen.append(m))
    s.hook(nn.Linear(1, 1), lambda m, args, out: 1/0)  # of somebody else
    out = peer.ask(s, learn.model)
    assert torch.equal(out, peer.module.head.bias.expand(6, 4)) and seen == [peer.module.body[0]]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in peer.module.modules())
    s.hooks[0] = (learn.model.head, lambda m, args: 1/0, True)
    with pytest.raises(ZeroDivisionError): peer.ask(s, learn.model)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in peer.module.modules())


def test_both_in_evaluation_mode(learn):
    peer = Peer(learn, gen())
    s = record()
    learn.model.body[2].eval()
    mine,its = peer.evaluate(s, learn.model)
    assert not mine.requires_grad and not its.requires_grad
    assert learn.model.training and not learn.model.body[2].training and peer.module.training
    assert learn.model.body[1].num_batches_tracked == 0
    learn.model.eval()
    assert torch.equal(mine, learn.model(*s.inputs))


def test_together():
    a,b = (small_cnn(c=3, c_in=1, width=2).eval() for _ in range(2))
    x = torch.rand(5, 1, 8, 8)
    want = (a(x).softmax(1) + b(x).softmax(1))/2
    torch.testing.assert_close(predict_together([a, b], x, bs=2), want.detach())
    torch.testing.assert_close(predict_together([a], x), a(x).softmax(1).detach())
