"""Parts with a state: what they forget, what they keep, what they say after a checkpoint."""
import math

import pytest
import torch
from torch import tensor
from torch.nn import functional as F

from contract import data, with_dropout
from labelkit.data.views import RandAugment, Weak
from labelkit.errors import LabelKitError
from labelkit.parts.banks import Bank, Queue
from labelkit.parts.contrast import info_nce, nt_xent
from labelkit.parts.heads import Projector, ask_head, normalize_features
from labelkit.parts.running import RunningMean, WindowMean, align_distribution
from labelkit.parts.shares import sample_lam
from labelkit.parts.view_pair import ViewPair


def resumed(part, again):
    again.load_state_dict(part.state_dict())
    return again


def test_a_running_mean_by_hand():
    "Three quarters of it stay; with a half nobody would see which share stays"
    mean = RunningMean(tensor([1., 0.]), .75)
    mean.update(tensor([[0., 1.], [0., 1.], [1., 0.], [1., 0.]]))
    assert mean.value.tolist() == [.875, .125]
    mean.update(tensor([[0., 1.]]))
    assert mean.value.tolist() == [.65625, .34375]
    assert torch.equal(resumed(mean, RunningMean(torch.zeros(2), .75)).value, mean.value)


def test_a_window_forgets_the_first_batches():
    "The means are those of the last two, not of the first two for ever"
    mean = WindowMean((1,), size=2)
    for batch in ([[1.], [3.]], [[10.]], [[20.]], [[40.]]): mean.update(tensor(batch))
    assert mean.value.tolist() == [30.] and len(mean) == 2
    again = resumed(mean, WindowMean((1,), size=2))
    again.update(tensor([[60.]]))
    assert again.value.tolist() == [50.] and mean.value.tolist() == [30.]


def test_batches_count_once_whatever_their_size():
    mean = WindowMean((1,), size=9)
    mean.update(tensor([[0.]]*7))
    mean.update(tensor([[1.]]))
    assert mean.value.tolist() == [.5]


def test_alignment_by_hand():
    p = tensor([[.6, .3, .1]])
    mean = tensor([.5, .3, .2])
    want = tensor([[1.2, 1., .5]])/2.7
    torch.testing.assert_close(align_distribution(p, mean), want)
    target = tensor([.2, .3, .5])
    ratio = tensor([[.24, .3, .25]])
    torch.testing.assert_close(align_distribution(p, mean, target), ratio/ratio.sum())
    dense = p[:,:,None,None].expand(1, 3, 2, 2)
    got = align_distribution(dense, mean)
    torch.testing.assert_close(got, want[:,:,None,None].expand(1, 3, 2, 2))


def test_a_queue_keeps_the_latest():
    q = Queue(2, size=3)
    q.push(tensor([[1., 1.], [2., 2.]]))
    assert len(q) == 2
    q.push(tensor([[3., 3.], [4., 4.]]))
    assert q.rows[:,0].tolist() == [2., 3., 4.]
    assert torch.equal(resumed(q, Queue(2, size=3)).rows, q.rows)


def test_a_bank_answers_by_id_and_ignores_strangers():
    b = Bank(tensor([5, 2, 9]), 12, dict(f=1))
    b.write(tensor([9, 5]), f=tensor([[9.], [5.]]))
    b.write(tensor([5, 0]), f=tensor([[50.], [7.]]))
    assert b["f"].flatten().tolist() == [50., 0., 9.] and b.known.tolist() == [True, False, True]
    again = resumed(b, Bank(tensor([5, 2, 9]), 12, dict(f=1)))
    assert torch.equal(again["f"], b["f"]) and torch.equal(again.known, b.known)


def test_views_wait_for_the_data():
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(4, 5)
    pair = ViewPair(lambda x: x+1, None, None, rng)  # a table: no default view is looked for
    assert torch.equal(pair.weak(x), x+1)
    images = data()
    still = ViewPair(None, None, images, rng).still
    flat = torch.full((2,1,8,8), .25)
    flat[:,:,:,4:] = .75
    assert torch.equal(still.weak(flat), flat)
    for _ in range(20):
        out = still.strong(flat)
        # sharpness blends neighbours, and so the two columns at the edge
        for part in (out[:,:,:,:3], out[:,:,:,5:]):
            assert torch.equal(part, part[:,:,:1,:1].expand_as(part)), "a pixel has moved"


def test_easy_and_hard_and_several_inputs():
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(4, 5)
    pair = ViewPair(lambda x: x+1, lambda x: x+2, None, rng)
    assert torch.equal(pair.weak(x), x+1) and torch.equal(pair.strong((x,)), x+2)
    images = torch.rand(2, 1, 8, 8)
    more = (images, torch.rand(2, 3), torch.rand(2, 4))
    shown = ViewPair(Weak(pad=0, flip=False), None, data(), rng).weak(more)
    assert len(shown) == 3 and all(torch.equal(a, b) for a,b in zip(shown[1:], more[1:]))
    both = lambda x: tuple(o+1 for o in x)  # a function gets all of them
    assert torch.equal(ViewPair(both, None, None, rng).weak(more)[2], more[2]+1)


def test_the_still_pair_keeps_what_was_given():
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(2, 1, 8, 8)
    still = ViewPair(lambda x: x/2, lambda x: x/4, data(), rng).still
    assert torch.equal(still.weak(x), x/2) and torch.equal(still.strong(x), x/4)
    still = ViewPair(None, lambda x: x/4, data(), rng).still
    assert torch.equal(still.weak(x), x) and torch.equal(still.strong(x), x/4)


def test_a_view_used_again_looks_at_the_range_of_other_data():
    rng = torch.Generator().manual_seed(0)
    view = RandAugment()
    x = torch.rand(2, 1, 8, 8)
    ViewPair(view, None, None, rng).weak(x)
    again = ViewPair(view, None, None, rng)
    with pytest.raises(LabelKitError, match="x has values from"): again.weak(3*x + 1)


def test_info_nce_by_hand_and_without_symmetry():
    a = F.normalize(torch.randn(3, 4), dim=1)
    b = F.normalize(torch.randn(3, 4), dim=1)
    sim = a@b.T/.5
    want = -sum(math.log(sim[i,i].exp()/sim[i].exp().sum()) for i in range(3))/3
    assert info_nce(a, b, .5).item() == pytest.approx(want, rel=1e-5)
    assert info_nce(b, a, .5).item() != pytest.approx(want, rel=1e-3)
    assert info_nce(3*a, b, .5).item() == pytest.approx(want, rel=1e-5)  # length says nothing


def test_nt_xent_leaves_out_oneself():
    a = torch.randn(3, 4)
    b = torch.randn(3, 4)
    z = F.normalize(torch.cat([a, b]), dim=1)
    sim = (z@z.T/.5).exp()
    twin = [3, 4, 5, 0, 1, 2]
    want = -sum(math.log(sim[i,twin[i]]/(sim[i].sum()-sim[i,i])) for i in range(6))/6
    assert nt_xent(a, b, .5).item() == pytest.approx(want, rel=1e-5)
    for f in (info_nce, nt_xent):
        with pytest.raises(LabelKitError, match="temperature=-1 is not above 0"): f(a, b, -1)


def test_projections_have_length_one():
    z = Projector(6, 3)(torch.randn(5, 6))
    torch.testing.assert_close(z.norm(dim=1), torch.ones(5))
    with pytest.raises(LabelKitError, match="no linear layer"):
        normalize_features(torch.nn.Sequential(torch.nn.Flatten()))


def test_a_head_is_asked_as_in_evaluation():
    model = with_dropout()
    head = torch.nn.Sequential(torch.nn.Dropout(.5), torch.nn.Linear(model.n_features, 3))
    x = torch.rand(5, 1, 8, 8)
    said = ask_head(model, head, x, lambda o: o.softmax(1), bs=2)
    assert model.training and head.training and not said.requires_grad
    model.eval()
    torch.testing.assert_close(said, head[1](model.features(x)).softmax(1))


@pytest.mark.parametrize("alpha", [.2, 1., 8.])
def test_shares_are_spread_as_the_beta_distribution_says(alpha):
    "Mean ½ and variance 1/(4(2α+1)): a small α leaves most samples nearly whole"
    lam = sample_lam(alpha, 20_000, torch.Generator().manual_seed(0))
    assert float(lam.mean()) == pytest.approx(.5, abs=.01)
    assert float(lam.var()) == pytest.approx(1/(4*(2*alpha+1)), rel=.03)
    assert 0 <= lam.min() < .5 < lam.max() <= 1


def test_a_window_is_of_all_processes(monkeypatch):
    "Both running means take what was gathered, not what is here"
    doubled = lambda *rows: tuple(torch.cat([o, 3*o]) for o in rows)
    monkeypatch.setattr("labelkit.parts.running.gather_rows", doubled)
    for mean in (WindowMean((1,), size=2), RunningMean(torch.zeros(1), 0.)):
        mean.update(tensor([[1.], [3.]]))
        assert mean.value.tolist() == [4.]
