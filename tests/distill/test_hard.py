"""HARD: the augmentor looks for disagreement, and nobody is trained by another's loss."""
import pytest
import torch
from fastai.basics import Callback
from torch import nn, tensor

from contract import data, fit, learner, model
from labelkit.core.auxiliary import frozen_call
from labelkit.distill.base import soft_kl
from labelkit.distill.hard import HARD, SpatialAugmentor, augmentor_loss
from labelkit.errors import LabelKitError
from labelkit.lesson.batch import look


def test_each_loss_trains_its_own():
    seen = {}
    cb = HARD(model(9))
    class Watch(Callback):
        order = 6
        def after_loss(self):
            if not self.training or seen: return
            s = self.learn.supervision.record
            for name,(v,_) in (s.losses | s.auxiliary_losses).items():
                nets = (self.learn.model, cb.augmentor.module, cb.teacher.model)
                params = [[p for p in m.parameters() if p.requires_grad] for m in nets]
                grads = [
                    torch.autograd.grad(v, p, retain_graph=True, allow_unused=True) if p else ()
                    for p in params
                ]
                seen[name] = [
                    sum(float(g.abs().sum()) for g in gs if g is not None) for gs in grads
                ]

    teacher = {k: v.clone() for k,v in cb.teacher.model.state_dict().items()}
    learn = learner([cb, Watch()])
    start = SpatialAugmentor().raw.detach().clone()
    fit(learn)
    assert seen["hard.augmentor"][0] == 0 < seen["hard.augmentor"][1]
    assert (
        seen["hard"][0] > 0 == seen["hard"][1]
        and seen["hard.views"][0] > 0 == seen["hard.views"][1]
    )
    assert all(torch.equal(v, teacher[k]) for k, v in cb.teacher.model.state_dict().items()), (
        "the teacher was trained"
    )
    assert not torch.equal(start, cb.augmentor.module.raw.cpu()), "the augmentor did not learn"


def test_extra_passes_leave_batch_norm_alone():
    "Running statistics are those of the joint pass: as many updates as batches"
    learn = fit(learner([HARD(model(9))], dls=data(labeled=None)))
    tracked = {
        int(m.num_batches_tracked) for m in learn.model.modules() if isinstance(m, nn.BatchNorm2d)
    }
    assert tracked == {len(learn.dls.train)}


def test_frozen_call_counts_nothing():
    net = model().train()
    frozen_call(net, torch.rand(4,1,8,8))
    assert all(
        int(m.num_batches_tracked) == 0 for m in net.modules() if isinstance(m, nn.BatchNorm2d)
    )


def test_augmentor_loss_by_sign():
    t = tensor([[3.,0.]])
    same = tensor([[3.,0.]])
    undecided = tensor([[0.,0.]])
    assert augmentor_loss(t, same, same) == 0
    assert augmentor_loss(t, same, undecided) < 0 < augmentor_loss(t, undecided, undecided)
    assert augmentor_loss(t, undecided, undecided, stay=0.) == 0


@pytest.mark.parametrize(
    "knob,limits", [("shift down", (1.0, 0.0, 0.0, 0.0)), ("shift sideways", (0.0, 1.0, 0.0, 0.0))]
)
def test_a_shift_moves_where_it_says(knob, limits):
    x = torch.zeros(1,1,9,9)
    x[0,0,4,4] = 1
    i = SpatialAugmentor.knobs.index(knob)
    noise = torch.zeros(1,4)
    noise[0,i] = 4/9  # half of limit·half the side: 0.5·4.5·4/9 = one pixel
    moved = SpatialAugmentor(limits, start=.5)(x, noise)
    want = torch.zeros(9,9)
    want[(5,4) if knob == "shift down" else (4,5)] = 1
    torch.testing.assert_close(moved[0,0], want, atol=1e-5, rtol=0)


def test_scale_and_turn():
    x = torch.rand(2,1,8,8)
    for i in (2, 3):
        noise = torch.zeros(2,4)
        noise[:,i] = 1
        assert not torch.allclose(SpatialAugmentor()(x, noise), x, atol=1e-3)
    aug = SpatialAugmentor(limits=(0.,0.,torch.pi,0.), start=.5)
    quarter = aug(x, tensor([[0.,0.,1.,0.]]*2))  # half of π
    assert min(float((quarter-x.rot90(k, (2,3))).abs().max()) for k in (-1, 1)) < 1e-4


def test_bad_input():
    with pytest.raises(LabelKitError, match="gradient through the teacher"):
        HARD([model(1), model(2)])
    rows = data(labeled=None)
    rows.train_ds.arrays.x = rows.train_ds.arrays.x.flatten(1)
    learn = learner([HARD(nn.Linear(64, 10))], dls=rows)
    learn.model = nn.Linear(64, 10)
    with pytest.raises(LabelKitError, match="HARD works on images"): fit(learn)


def test_a_turn_is_one_of_pixels():
    "Three to the right of the centre becomes three above or below, whatever the sides are"
    aug = SpatialAugmentor(limits=(0., 0., torch.pi, 0.), start=.5)
    for h,w in ((9, 17), (17, 9), (9, 9)):
        x = torch.zeros(1, 1, h, w)
        x[0, 0, h//2, w//2+3] = 1
        (at,) = (aug(x, tensor([[0., 0., 1., 0.]]))[0, 0] > .5).nonzero().tolist()
        assert abs(at[0]-h//2) == 3 and at[1] == w//2


def test_views_of_the_unlabeled_samples_too():
    b = look(learner([cb := HARD(model(9), unlabeled=True, stay=.5)]))
    s = b.record
    x = torch.cat([s.x, s.unlabeled])
    views = s.own(cb).views.detach()
    assert views.shape == x.shape
    seen = s.outputs["hard.views"]
    said = cb.teacher(x)
    of_views = cb.teacher(views)
    student = torch.cat([s.pred, s.outputs["hard.unlabeled"]])
    close = torch.testing.assert_close
    close(s.losses["hard"][0], soft_kl(student, said).mean())
    close(s.losses["hard.views"][0], soft_kl(seen, of_views).mean())
    stays = soft_kl(of_views, said).mean()
    # the student's own answer to the views, normalised by themselves
    asked = frozen_call(b.model.train(), views)
    close(s.auxiliary_losses["hard.augmentor"][0], .5*stays - soft_kl(asked, of_views).mean())
