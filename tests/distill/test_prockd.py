"""ProC-KD: assignments and running means by hand, a teacher of other classes, and a student that is
kept as it was made"""
import math

import pytest, torch
from fastai.basics import Callback
from torch import nn, tensor
from torch.nn import functional as F

from contract import learner
from distill.distilltools import Keep, fit, net
from labelkit.core.supervision import LabelCallback
from labelkit.distill.prockd import (
    ProCKD,
    assigned,
    assignment_loss,
    enriched,
    first_prototypes,
    follow,
    local_features,
    map_of,
)
from labelkit.errors import LabelKitError
from labelkit.lesson.batch import look
from labelkit.models import layer_outputs, small_cnn

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


@pytest.mark.parametrize("match", ["prototypes", "features"])
def test_every_term_by_hand(teacher, match):
    "The student's places against the teacher's, labeled and unlabeled; the task on labeled ones"
    b = look(learner([cb := ProCKD(
        teacher, unlabeled=True, weight=.5, task_weight=2., temperature=.3, match=match
    )]))
    s = b.record
    o = b.state["prockd"]
    own = s.own(cb)
    maps = torch.cat([own.map[s.rows()], own.map[s.rows("prockd.unlabeled")]])
    with layer_outputs(cb.teacher.model, [o.there]) as kept:
        cb.teacher(torch.cat([s.x, s.unlabeled]))
    theirs = kept[o.there]
    mine = F.adaptive_avg_pool2d(o.bridge(maps), theirs.shape[2:])
    value,weight = s.losses["prockd"]
    first = next(b.model.parameters())
    assert torch.autograd.grad(value, first, retain_graph=True)[0].abs().sum() > 0
    assert weight == .5
    if match == "features":
        torch.testing.assert_close(value, F.mse_loss(mine, theirs))
        return
    mine = local_features(mine)
    p = o.prototypes
    torch.testing.assert_close(value, assignment_loss(mine, local_features(theirs), p, .3))
    full = enriched(mine[:len(s.x)], p, .3).mean(1)
    task,factor = s.losses["prockd.task"]
    torch.testing.assert_close(task, F.cross_entropy(o.task_head(full), s.y))
    assert factor == 2.


def test_shares_of_a_place_sum_to_one():
    g = torch.Generator().manual_seed(0)
    share = assigned(torch.randn(2, 5, 4, generator=g), torch.randn(3, 4, generator=g))
    torch.testing.assert_close(share.sum(2), torch.ones(2, 5))


def test_first_prototypes_have_moved_to_the_middle_of_their_own():
    g = torch.Generator().manual_seed(0)
    f = torch.randn(1, 300, 3, generator=g)
    p = first_prototypes(f, 4, torch.Generator().manual_seed(1))
    drawn = torch.randint(300, (4,), generator=torch.Generator().manual_seed(1))
    fit_of = lambda p: (F.normalize(f[0], dim=1)@p.T).amax(1).mean()
    assert fit_of(p) > fit_of(F.normalize(f[0][drawn], dim=1)) + .02
    torch.testing.assert_close(follow(p, f, 0.), p, atol=.1, rtol=0)


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


def test_labels_that_count_nothing_are_not_learned_by_the_task_either(teacher):
    class Half(LabelCallback):
        stage = "relabel"
        def before_forward(self, s): s.weigh((torch.arange(len(s.x)) % 2).float())
    b = look(learner([cb := ProCKD(teacher), Half()]))
    s = b.record
    o = b.state["prockd"]
    theirs = map_of(cb.teacher, o.there, s.x)
    mine = F.adaptive_avg_pool2d(o.bridge(s.own(cb).map), theirs.shape[2:])
    said = o.task_head(enriched(local_features(mine), o.prototypes).mean(1))
    torch.testing.assert_close(s.losses["prockd.task"][0], F.cross_entropy(said[1::2], s.y[1::2]))
