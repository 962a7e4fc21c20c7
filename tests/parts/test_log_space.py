"""Sums of probabilities as logarithms: equal to 64 bits, and a gradient where 32 bits see none"""
import pytest
import torch

from labelkit.parts.log_space import log_group_means, log_others


@pytest.mark.parametrize("scale", [.1, 1., 10., 100., 1e4])
@pytest.mark.parametrize("c", [2, 3, 10])
def test_others_against_64_bits(scale, c):
    g = torch.Generator().manual_seed(c)
    z = torch.randn(50, c, generator=g)*scale
    others = ~torch.eye(c, dtype=torch.bool)
    want = torch.stack([z.double()[:,o].logsumexp(1) for o in others], 1)
    torch.testing.assert_close(log_others(z).double(), want, rtol=1e-5, atol=1e-5)


def test_others_gradient():
    "That of a log-sum-exp without the class: the softmax of the others"
    z = torch.tensor([[90., 1., 0., 1.], [0., 0., 0., 0.]], requires_grad=True)
    for j in range(4):
        grad, = torch.autograd.grad(log_others(z)[:,j].sum(), z)
        want = z.detach().index_fill(1, torch.tensor(j), -torch.inf).softmax(1)
        torch.testing.assert_close(grad, want, rtol=1e-4, atol=1e-6)


def test_others_where_two_are_equal_and_where_all_but_one_are_impossible():
    z = torch.tensor([[5., 5., -torch.inf], [0., -torch.inf, -torch.inf]])
    out = log_others(z)
    assert out[0].tolist() == pytest.approx([5., 5., 5.693147])
    assert out[1].tolist() == [-torch.inf, 0., 0.]


def test_group_means_against_plain_loops():
    g = torch.Generator().manual_seed(0)
    logs = torch.randn(12, 3, generator=g)*5
    group = torch.tensor([0, 2, 2, 1, 0, 2, 1, 1, 1, 2, 0, 2])
    size = torch.bincount(group)
    out = log_group_means(logs, group, size)
    for k in range(3):
        torch.testing.assert_close(out[k], logs[group == k].exp().mean(0).log())


def test_group_means_of_what_32_bits_cannot_hold():
    logs = torch.tensor([[-300.], [-301.]], requires_grad=True)
    out = log_group_means(logs, torch.tensor([0, 0]), torch.tensor([2]))
    want = torch.tensor([-300., -301.]).logsumexp(0) - torch.tensor(2.).log()
    assert out.item() == pytest.approx(want.item())
    grad, = torch.autograd.grad(out.sum(), logs)
    torch.testing.assert_close(grad[:,0], torch.tensor([-300., -301.]).softmax(0))


def test_no_groups():
    none = torch.zeros(0).long()
    assert log_group_means(torch.zeros(0, 3), none, none).shape == (0, 3)
