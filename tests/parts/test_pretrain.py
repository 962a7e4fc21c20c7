"A network is trained without labels: in place, but for its head, and the same every time"
import pytest
import torch

from contract import data, same
from labelkit.data.samples import Samples
from labelkit.errors import LabelKitError
from labelkit.models import small_cnn
from labelkit.parts.pretrain import Embedding, pretrain


def trained(steps=3, bs=32, samples=None):
    torch.manual_seed(0)
    model = small_cnn(c=10, c_in=1, width=4)
    samples = samples or Samples(data().unlabeled)
    seen = []
    rng = torch.Generator().manual_seed(0)
    shaken = lambda x: x + .1*torch.randn(x.shape, generator=rng)
    net = pretrain(model, samples, shaken, rng, steps=steps, bs=bs, step=seen.append)
    assert seen == [steps]*steps
    return net


def test_all_but_the_head_moves_and_the_result_is_quiet():
    torch.manual_seed(0)
    before = small_cnn(c=10, c_in=1, width=4).state_dict()
    net = trained()
    after = net.model.state_dict()
    assert torch.equal(before["head.weight"], after["head.weight"])
    kernels = [k for k,v in before.items() if v.ndim == 4 and k.startswith("body")]
    assert kernels and not any(torch.equal(before[k], after[k]) for k in kernels)
    assert not any(m.training for m in net.modules())
    assert all(p.grad is None for p in net.parameters())
    f = net(torch.rand(5, 1, 8, 8))
    torch.testing.assert_close(f.norm(dim=1), torch.ones(5))


def test_one_seed_one_result_and_any_number_of_samples():
    assert same(trained().state_dict(), trained().state_dict())
    few = Samples(torch.rand(3, 1, 8, 8))
    assert all(v.isfinite().all() for v in trained(5, samples=few).state_dict().values())


def test_what_is_no_number_is_named():
    x = torch.rand(6, 1, 8, 8)
    x[4] = torch.nan
    with pytest.raises(LabelKitError, match=r"samples \[4\] are not finite"):
        trained(samples=Samples(x))


def test_an_embedding_does_not_ask_the_head():
    net = Embedding(small_cnn(c=10, c_in=1, width=4), dim=7)
    net(torch.rand(2, 1, 8, 8)).sum().backward()
    assert net.model.head.weight.grad is None
    assert net(torch.rand(2, 1, 8, 8)).shape == (2, 7)
