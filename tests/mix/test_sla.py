"SLA: published versions and numbers, the joint label, what is asked, and what is refused"
import json
from itertools import pairwise

import pytest
import torch
from fastai.basics import Learner, set_seed
from torch import tensor
from torch.nn import functional as F

from contract import fit, learner, model
from labelkit.data.loaders import from_arrays
from labelkit.core.supervision import LabelCallback
from labelkit.errors import LabelKitError
from labelkit.mix.mixup import MixUp
from labelkit.mix.sla import SLA, asked_together, joint_targets, self_distillation, together
from labelkit.mix.sla import VERSIONS, n_versions, versions_loss, versions_of
from mix.mixtools import Keep, NoStep, close, hot
from places import REFERENCES


def published():
    found = json.loads((REFERENCES/"sla.json").read_text())
    return {o["name"]: o for o in found}


class TestVersions:
    def test_published(self):
        want = published()["sla_rot_color_perm_order"]["expected"]
        x = torch.arange(12.).reshape(1, 3, 2, 2)
        first = lambda kind: versions_of(x, kind)[:, 0, :, 0, 0]
        six,colors,all_ = (first(o) for o in ("rotation+colors 6", "colors", "rotation+colors 24"))
        assert [len(six), len(colors), len(all_)] == want["M"]
        assert six.tolist() == want["rot_color_perm6_first_pixel_rgb"]
        assert colors.tolist() == want["color_perm_first_pixel_rgb"]
        assert all_[::6].tolist() == want["rot_color_perm24_first_pixel_rgb_rows_0_6_12_18"]
        joint = joint_targets(hot(tensor([2]), 3), 6).argmax(1)
        assert joint.tolist() == want["joint_labels_perm6"]

    @pytest.mark.parametrize("kind", VERSIONS)
    def test_all_differ_and_the_first_is_the_image(self, kind):
        x = torch.rand(2, 3, 5, 5)
        seen = versions_of(x, kind)
        assert torch.equal(seen[0], x)
        flat = sorted(seen.flatten(1).tolist())
        assert all(a != b for a,b in pairwise(flat))

    def test_what_it_cannot_make(self):
        with pytest.raises(LabelKitError, match="90°, and these are 4x6: make them square"):
            versions_of(torch.rand(1, 1, 4, 6), "rotation")
        with pytest.raises(LabelKitError, match="the images have 1 channels: use versions='rota"):
            versions_of(torch.rand(1, 1, 4, 4), "rotation+colors 6")
        # half turns need no square
        assert versions_of(torch.rand(1, 3, 4, 6), "rotation+colors 6").shape == (6, 1, 3, 4, 6)


class TestFormulas:
    def test_by_hand(self):
        "Two classes, two versions: class 1 is joint class 2 and 3"
        z = tensor([[[.5, 0., 2., -1.]], [[1., 0., 0., 1.]]])
        close(together(z), tensor([[.25, 1.5]]))
        t = joint_targets(tensor([[.3, .7]]), 2)
        assert t.shape == (2, 4)
        close(t, tensor([[.3, 0., .7, 0.], [0., .3, 0., .7]]))

    def test_as_the_authors_number_them(self):
        "Joint label y·n+t; version t is asked for the columns t, t+n, …"
        y = tensor([0, 3, 2])
        assert joint_targets(hot(y, 4), 3).argmax(1).view(3, 3).tolist() == [
            [int(o)*3 + t for o in y] for t in range(3)
        ]
        z = torch.randn(3, 5, 4*3)
        close(together(z), sum(z[t][:, t::3] for t in range(3))/3)

    def test_distillation(self):
        own,teacher = torch.randn(2, 6, 4)
        own.requires_grad_()
        teacher.requires_grad_()
        p = (teacher/2).softmax(1).detach()
        kl = (p*(p.log() - (own/2).log_softmax(1))).sum(1)
        w = tensor([1., 0., 2., 1., 1., 1.])
        loss = self_distillation(own, teacher, w, 2.)
        close(loss, 4*(kl*w).sum()/6)
        loss.backward()
        assert own.grad.abs().sum() > 0 and teacher.grad is None
        assert self_distillation(own, teacher, torch.zeros(6)).item() == 0


def one_batch(cb, *more):
    learn = learner([cb, *more, keep := Keep()])
    fit(learn, cbs=[NoStep()])
    return keep.seen[0],learn


class TestCallback:
    def test_losses_of_a_batch(self):
        s,learn = one_batch(SLA(temperature=2.))
        f = torch.cat([s.features(), s.features("sla")])
        z = learn.sla.joint_head(f)
        x = torch.cat([s.x, s.requests["sla"]]).unflatten(0, (4, -1))
        close(x, versions_of(s.x, "rotation"))
        labels = torch.cat([s.y*4 + t for t in range(4)])
        close(s.losses["sla"][0], F.cross_entropy(z, labels), 1e-5)
        want = self_distillation(s.pred, together(z.unflatten(0, (4, -1))), s.weights, 2.)
        close(s.losses["sla.distill"][0], want, 1e-5)

    @pytest.mark.parametrize("labels", ["joint", "same"])
    def test_samples_count_their_weight_in_every_version(self, labels):
        class Weigh(LabelCallback):
            stage = "relabel"
            def before_forward(self, s): s.weigh(torch.arange(len(s.x)).float())
        s,learn = one_batch(SLA(labels=labels, weight=2., distill=.5), Weigh())
        w = torch.arange(len(s.x)).float()
        n = 3 if labels == "same" else 4
        if labels == "same":
            z = s.outputs["sla"]
            y = s.y.repeat(3)
        else:
            z = learn.sla.joint_head(torch.cat([s.features(), s.features("sla")]))
            y = torch.cat([s.y*4 + t for t in range(4)])
            assert s.losses["sla.distill"][1] == .5
        each = F.cross_entropy(z, y, reduction="none").view(n, -1)
        close(s.losses["sla"][0], (each*w).sum()/(n*w.sum()), 1e-5)
        assert s.losses["sla"][1] == (2. if labels == "joint" else 2.*3/4)

    def test_the_baseline_is_the_mean_over_all_copies(self):
        s,learn = one_batch(SLA(labels="same"))
        pred = torch.cat([s.pred, s.outputs["sla"]])
        close(learn.loss_grad, F.cross_entropy(pred, s.y.repeat(4)), 1e-5)
        assert list(s.losses) == ["sla"] and learn.sla.joint_head is None

    def test_a_mix_is_rotated_shares_and_all(self):
        s,learn = one_batch(SLA(), MixUp())
        close(s.requests["sla"][:len(s.x)], s.x.rot90(1, (2, 3)))
        z = learn.sla.joint_head(torch.cat([s.features(), s.features("sla")]))
        want = F.cross_entropy(z, joint_targets(s.targets, 4))
        close(s.losses["sla"][0], want, 1e-5)
        assert (s.targets > 0).sum() > len(s.targets)

    def test_what_is_asked(self):
        learn = fit(learner([cb := SLA()]))
        x = torch.cat([o for o,_ in learn.dls.valid])
        y = torch.cat([o for _,o in learn.dls.valid])
        every = cb.logits(x)
        alone = cb.logits(x, every=False)
        assert every.shape == alone.shape == (len(x), 10) and not torch.equal(every, alone)
        assert not every.requires_grad
        learn.model.eval()
        features = map(learn.model.features, versions_of(x, "rotation"))
        z = torch.stack(list(map(cb.joint_head, features)))
        close(every, together(z), 1e-5)
        close(alone, z[0][:, ::4], 1e-5)
        right = (every.argmax(1) == y).float().mean()
        assert asked_together(learn) == pytest.approx(float(right))
        close(cb.teacher(x), every, 1e-5)

    def test_the_baseline_asks_all_copies_too(self):
        learn = fit(learner([cb := SLA(labels="same")]))
        x = torch.rand(3, 1, 8, 8)
        learn.model.eval()
        with torch.no_grad(): z = [learn.model(o) for o in versions_of(x, "rotation")]
        close(cb.logits(x), sum(z)/4, 1e-5)
        plain = fit(learner())
        assert 0 <= asked_together(plain) <= 1

    def test_refused(self):
        with pytest.raises(LabelKitError, match="no joint head yet"): SLA().logits(None)
        for k,said in dict(versions="flip", labels="some", distill=-1, temperature=0.).items():
            with pytest.raises(LabelKitError, match=f"{k}="): SLA(**{k: said})
        set_seed(0)
        x = torch.rand(24, 1, 8, 6)
        dls = from_arrays(x, torch.arange(24) % 10, x, torch.arange(24) % 10, bs=8)
        learn = Learner(dls, model(), cbs=SLA())
        with learn.no_bar(), pytest.raises(LabelKitError, match="8x6"): learn.fit(1)


def test_versions_are_counted():
    assert {k: n_versions(k) for k in VERSIONS} == {
        "rotation": 4, "colors": 6, "rotation+colors 6": 6, "rotation+colors 12": 12,
        "rotation+colors 24": 24,
    }


def test_a_version_counts_as_its_sample():
    z = torch.randn(6, 4)
    t = torch.randn(6, 4).softmax(1)
    w = torch.tensor([1., 0., 3.])
    each = -(t*z.log_softmax(1)).sum(1)
    want = (each*w.repeat(2)).sum()/w.repeat(2).sum()
    torch.testing.assert_close(versions_loss(z, t, w), want)
