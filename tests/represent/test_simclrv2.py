"SimCLRv2: published values, three stages, the copy and the projector's first layer"
import pytest
import torch
from torch import nn, tensor
from torch.nn import functional as F

from contract import data, fit, learner, model
from labelkit.errors import LabelKitError
from labelkit.lesson.batch import look
from labelkit.models import head_of
from labelkit.represent.simclrv2 import (
    SimCLRv2, both_answers, distillation, hidden_layer, stage_of,
)
from represent.test_simclr import published


def test_published():
    o = published("simclrv2_distill")
    student,teacher = (tensor(o["inputs"][f"logits_{k}"]) for k in ("student", "teacher"))
    for name,want in o["expected"].items():
        loss = distillation(student, teacher, float(name.removeprefix("T=")))
        assert float(loss) == pytest.approx(want, abs=1e-4)


def test_the_teacher_learns_nothing():
    student,teacher = torch.randn(2, 3, 4, requires_grad=True).unbind()
    both = [o.detach().requires_grad_() for o in (student, teacher)]
    distillation(*both, 2.).backward()
    assert both[0].grad.abs().sum() > 0 and both[1].grad is None


def test_stages():
    said = lambda n, a, b: [stage_of(e/n, a, b) for e in range(n)]
    assert said(8, .5, .25) == [0]*4 + [1]*2 + [2]*2
    assert said(10, .7, .1) == [0]*7 + [1] + [2]*2
    assert said(4, 0, 0) == [2]*4 and said(4, 1, 0) == [0]*4 and said(4, 0, 1) == [1]*4


def test_hidden_layer():
    net = model()
    d = net.n_features
    head = net.head
    assert hidden_layer(net) is net and head_of(net) is head
    assert [type(o) for o in net.head] == [nn.Linear, nn.ReLU, nn.Linear]
    assert net(torch.rand(2, 1, 8, 8)).shape == (2, 10) and net.head[0].in_features == d
    with pytest.raises(LabelKitError, match="no linear layer"): hidden_layer(nn.Conv2d(1, 1, 1))


class Watched(SimCLRv2):
    name = "simclrv2"
    def before_steps(self):
        super().before_steps()
        if self.learn.epoch == 0: self.seen = []
        copy = next(self.teacher.model.parameters()).clone()
        now = next(self.learn.model.parameters()).clone()
        self.seen.append((self.phase, copy, now))


class TestCallback:
    def test_losses_by_stage(self):
        learn = fit(learner([SimCLRv2(pretrain=.5, finetune=.25)]), 4)
        parts = {k: torch.tensor(v).isfinite().tolist() for k,v in learn.supervision.parts.items()}
        assert parts == {
            "labeled": [True]*4,
            "simclrv2": [True, True, False, False],
            "simclrv2.distill": [False, False, False, True],
        }

    def test_the_copy_is_taken_once(self):
        learn = fit(learner([cb := Watched(pretrain=.25, finetune=.25)]), 4)
        phases,copies,now = zip(*cb.seen)
        assert phases == (0, 1, 2, 2)
        assert torch.equal(copies[2], now[2]) and torch.equal(copies[3], now[2])
        assert not torch.equal(copies[3], now[3])
        assert not any(p.requires_grad for p in cb.teacher.model.parameters())
        assert learn.simclrv2 is cb

    def test_a_second_fit_begins_anew(self):
        learn = fit(learner([cb := Watched(pretrain=.5, finetune=.25)]), 4)
        fit(learn, 4)
        assert [o[0] for o in cb.seen] == [0, 0, 1, 2]

    def test_distils_on_all_images(self):
        b = look(learner([SimCLRv2(pretrain=0, finetune=0, distill_temperature=.5)]))
        s = b.record
        cb = b.state["simclrv2"]
        student = torch.cat([s.pred, s.outputs["simclrv2.weak"]])
        x = torch.cat([s.x, s.requests["simclrv2.weak"]])
        want = distillation(student, cb.teacher(x), .5)
        torch.testing.assert_close(b.losses["simclrv2.distill"][0], want)
        assert len(x) == 48 and s.labeled_weight == 0
        torch.testing.assert_close(b.loss, want.detach())

    @pytest.mark.parametrize("finetune", [0, 1])
    def test_later_stages_show_the_weak_view(self, finetune):
        cb = SimCLRv2(pretrain=0, finetune=finetune, weak=lambda x: x + 7)
        s = look(learner([cb])).record
        assert s.x.min() >= 7
        assert all(o.min() >= 7 for o in s.requests.values()) and len(s.requests) == 1-finetune

    def test_a_search_is_of_the_first_stage(self):
        seen = []
        class Kept(SimCLRv2):
            name = "simclrv2"
            def before_forward(self, s):
                super().before_forward(s)
                seen.append(self.phase)
        learn = learner([Kept()])
        with learn.no_bar(), learn.no_logging(): learn.lr_find(num_it=6, show_plot=False)
        assert set(seen) == {0}

    def test_fine_tuning_is_plain(self):
        b = look(learner([SimCLRv2(pretrain=0, finetune=1)]))
        s = b.record
        assert not s.requests and s.labeled_weight == 1
        torch.testing.assert_close(b.loss, F.cross_entropy(s.pred, s.y).detach())

    def test_without_unlabeled_images(self):
        cb = SimCLRv2(pretrain=.5, finetune=.25)
        learn = fit(learner([cb], dls=data(labeled=None)), 4)
        assert learn.supervision.parts["simclrv2.distill"][-1] > 0

    def test_refused(self):
        for k,v in dict(pretrain=2., finetune=-1, distill_temperature=0).items():
            with pytest.raises(LabelKitError, match=f"{k}="): SimCLRv2(**{k: v})
        with pytest.raises(LabelKitError, match="view 3"): SimCLRv2(weak=3)


def test_both_are_asked_about_the_same_samples():
    from labelkit.core.record import Supervision
    s = Supervision(torch.rand(2, 3), torch.tensor([0, 1]), c=3)
    s.pred = 2*s.x
    teacher = lambda x: 5*x
    a,b = both_answers(s, teacher, "more")
    assert torch.equal(a, 2*s.x) and torch.equal(b, 5*s.x)
    more = torch.rand(4, 3)
    s.outputs = {"more": 2*more}
    a,b = both_answers(s, teacher, "more", more)
    assert torch.equal(a/2, torch.cat([s.x, more])) and torch.equal(b, 5*torch.cat([s.x, more]))
