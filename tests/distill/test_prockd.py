"""ProC-KD: assignments and running means by hand, a teacher of other classes, and a student that is
kept as it was made"""
import math

import pytest, torch
from fastai.basics import Callback
from torch import nn, tensor
from torch.nn import functional as F

from distill.distilltools import Keep, fit, net
from labelkit.distill.prockd import (
    ProCKD,
    assigned,
    assignment_loss,
    enriched,
    follow,
    local_features,
)
from labelkit.errors import LabelKitError
from labelkit.models import small_cnn

@pytest.fixture
def teacher():
    torch.manual_seed(11)
    return small_cnn(c=3, c_in=1, width=8)


def test_places_keep_their_features():
    maps = torch.randn(2, 5, 3, 4)
    f = local_features(maps)
    assert f.shape == (2, 12, 5)
    assert torch.equal(f[1, 4*2+3], maps[1, :, 2, 3])


def test_assignment_by_hand():
    p = tensor([[1.,0.],[0.,1.]])
    f = tensor([[[3.,0.],[0.,.1]]])
    torch.testing.assert_close(
        assigned(f, p, 1/math.log(4)), tensor([[[.8,.2],[.2,.8]]])
    )
    assert torch.equal(assigned(10*f, p), assigned(f, p))  # direction alone counts
    loss = assignment_loss(f[:, :1], f[:, 1:], p, 1/math.log(4))
    assert loss.item() == pytest.approx(-.2*math.log(.8) - .8*math.log(.2), abs=1e-5)


def test_the_teachers_own_features_have_the_smallest_loss():
    g = torch.Generator().manual_seed(0)
    t,s = (torch.randn(2, 6, 5, generator=g) for _ in range(2))
    p = F.normalize(torch.randn(4, 5, generator=g), dim=1)
    target = assigned(t, p)
    entropy = -(target*target.log()).sum(2).mean()
    assert assignment_loss(t, t, p).item() == pytest.approx(entropy.item(), abs=1e-4)
    assert assignment_loss(s, t, p) > entropy


def test_prototypes_follow_their_own_features():
    p = tensor([[1.,0.],[0.,1.]])
    f = tensor([[[2.,0.],[3.,4.]]])  # the second is .6, .8: nearer to the second prototype
    torch.testing.assert_close(
        follow(p, f, 0.), torch.stack([p[0], tensor([.6,.8])])
    )
    assert torch.equal(follow(p, f, 1.), p)
    lonely = tensor([[1.,0.],[0.,1.],[-1.,0.]])
    assert torch.equal(follow(lonely, f, 0.)[2], lonely[2])


def test_enriched_by_hand():
    p = tensor([[1.,0.],[0.,1.]])
    f = tensor([[[3.,0.]]])
    torch.testing.assert_close(enriched(f, p, 1/math.log(4)), tensor([[[5.4,.6]]]))


def test_other_classes_other_width_and_the_formula(teacher):
    cb = ProCKD(teacher, unlabeled=True, weight=.5, task_weight=2.)
    fit(cb, keep := Keep())
    s,loss = keep.seen
    assert set(s.losses) == {"prockd", "prockd.task"}
    task,assign = (s.losses[k][0].item() for k in ("prockd.task", "prockd"))
    expected = F.cross_entropy(s.pred, s.y).item() + .5*assign + 2*task
    assert loss == pytest.approx(expected, abs=1e-4)
    assert cb.prototypes.shape == (100, 32)
    torch.testing.assert_close(cb.prototypes.norm(dim=1), torch.ones(100))


def test_prototypes_move_with_the_batches(teacher):
    seen = []
    class Watch(Callback):
        order = 90
        def before_batch(self):
            if self.training: seen.append(self.learn.prockd.prototypes.clone())
    fit(ProCKD(teacher), Watch())
    assert not torch.equal(seen[0], seen[1])
    assert (seen[0]*seen[1]).sum(1).min() > .9


def test_features_are_matched_instead(teacher):
    fit(ProCKD(teacher, match="features"), keep := Keep())
    s,_ = keep.seen
    assert set(s.losses) == {"prockd"}


def test_the_student_stays_as_it_was_made(teacher):
    learn = fit(ProCKD(teacher))
    assert list(learn.model.state_dict()) == list(net().state_dict())
    assert all(not m._forward_hooks for m in learn.model.modules())


def test_the_teacher_is_not_trained(teacher):
    before = {k: v.clone() for k,v in teacher.state_dict().items()}
    cb = ProCKD(teacher)
    fit(cb)
    assert all(torch.equal(v, cb.teacher.model.state_dict()[k]) for k,v in before.items())


@pytest.mark.parametrize(
    "kwargs,message",
    [
        (dict(n_prototypes=1), "n_prototypes=1"), (dict(decay=1.1), "decay=1.1"),
        (dict(match="logits"), "match='logits' is not known"),
    ],
)
def test_bad_arguments(kwargs, message, teacher):
    with pytest.raises(LabelKitError, match=message): ProCKD(teacher, **kwargs)


def test_teachers_without_a_map(teacher):
    with pytest.raises(LabelKitError, match="pass one model"): ProCKD([teacher, teacher])
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(LabelKitError, match="no layer whose mean over the places"):
        fit(ProCKD(flat))
