"MoCo: the loss by hand, the queue and the slow copy"
import math

import pytest
import torch
from torch import tensor

from contract import data, fit, learner
from labelkit.errors import LabelKitError
from labelkit.lesson.batch import look
from labelkit.models import with_features
from labelkit.parts.contrast import info_nce
from labelkit.represent.base import all_ids
from labelkit.represent.moco import MoCo, first_is_right, queue_logits

unit = lambda *shape: torch.nn.functional.normalize(torch.randn(*shape), dim=-1)


class TestLoss:
    def test_by_hand(self):
        q,k = tensor([[[1., 0.]], [[.6, .8]]])
        queue = tensor([[0., 1.], [.8, .6]])
        out = queue_logits(q, k, queue, .5)
        torch.testing.assert_close(out, tensor([[1.2, 0., 1.6]]))
        total = math.exp(1.2) + 1 + math.exp(1.6)
        assert float(first_is_right(out)) == pytest.approx(-math.log(math.exp(1.2)/total))

    def test_own_keys_are_left_out(self):
        q,k = unit(2, 3, 5)
        queue = unit(4, 5)
        same = torch.zeros(3, 4, dtype=torch.bool)
        same[1, 2] = True
        out = queue_logits(q, k, queue, .2, same)
        assert out[1, 3] == -torch.inf and out.isfinite().sum() == 14
        alone = queue_logits(q[1:2], k[1:2], queue[[0, 1, 3]], .2)
        torch.testing.assert_close(first_is_right(out[1:2]), first_is_right(alone))

    def test_all_left_out(self):
        q = unit(2, 5).requires_grad_()
        loss = first_is_right(queue_logits(q, unit(2, 5), unit(1, 5), .2, torch.ones(2, 1).bool()))
        loss.backward()
        assert loss == 0 and q.grad.isfinite().all()

    def test_of_one_query_as_info_nce(self):
        q,k = unit(2, 1, 5)
        queue = unit(7, 5)
        torch.testing.assert_close(
            first_is_right(queue_logits(q, k, queue, .1)), info_nce(q, k, .1, queue)
        )


class TestCallback:
    def test_what_joins_the_queue(self):
        b = look(learner([MoCo(dim=8, size=40)]))
        queue = b.state["moco"].queue
        assert queue.rows.shape == (40, 9)  # of 48 the oldest have gone
        ids = torch.cat([b.record.ids, b.record.unlabeled_ids])[-40:]
        assert queue.rows[:, -1].tolist() == ids.tolist()
        torch.testing.assert_close(queue.rows[:, :-1].norm(dim=1), torch.ones(40))
        assert not queue.rows.requires_grad

    def test_one_view_has_a_gradient(self):
        b = look(learner([MoCo()]))
        assert list(b.record.requests) == ["moco.one"]

    def test_the_copy_follows(self):
        learn = fit(learner([cb := MoCo(ema_decay=0.)]))
        for a,b in zip(cb.teacher.model.parameters(), learn.model.parameters()):
            torch.testing.assert_close(a, b)
        for a,b in zip(
            cb.slow_projector.model.parameters(), cb.projector.module.parameters()
        ): torch.testing.assert_close(a, b)
        assert cb.teacher.steps == 4

    def test_a_search_leaves_the_queue(self):
        learn = learner([cb := MoCo()])
        with learn.no_bar(), learn.no_logging(): learn.lr_find(num_it=4, show_plot=False)
        assert len(cb.queue) == 0

    def test_the_copy_has_its_own_pace(self):
        "The share that stays at a step is that of network and projector alike"
        fit(learner([cb := MoCo(ema_decay=.9)]))
        moved = lambda a, b: any((p-q).abs().max() > 1e-6 for p,q in zip(a, b))
        for slow,net in (
            (cb.teacher, cb.learn.model), (cb.slow_projector, cb.projector.module)
        ): assert moved(slow.model.parameters(), net.parameters())

    def test_keys_are_of_the_other_view_as_in_training(self):
        "At the first batch the copy is the network itself, and its batch norm measures the batch"
        seen = {}
        class Kept(MoCo):
            name = "moco"
            def before_forward(self, s):
                super().before_forward(s)
                seen.update(s.own(self).views)
        b = look(learner([Kept(dim=8)]))
        project = b.state["moco"].projector.module
        keys = lambda x: project(with_features(b.model, x)[1])
        b.model.train()
        rows = b.state["moco"].queue.rows[:, :-1]
        torch.testing.assert_close(rows, keys(seen["two"]).detach(), atol=1e-4, rtol=0)
        assert (rows - keys(seen["one"])).abs().max() > .01

    def test_samples_without_ids_are_nobodys_own(self):
        "All are −1, and negatives of each other all the same"
        seen = []
        class Kept(MoCo):
            name = "moco"
            def logits(self, q, k, negatives, same):
                seen.append(same)
                return super().logits(q, k, negatives, same)
            def before_forward(self, s):
                s.ids = s.unlabeled_ids = None
                super().before_forward(s)
        fit(learner([Kept()]))
        assert seen[1].shape == (48, 48) and not any(o.any() for o in seen)

    def test_own_keys_are_those_of_the_same_id(self):
        class Kept(MoCo):
            name = "moco"
            def logits(self, q, k, negatives, same):
                assert torch.equal(negatives, self.queue.rows[:, :-1])
                seen.append((same, self.queue.rows[:, -1].long()))
                return super().logits(q, k, negatives, same)
            def contrast(self, s):
                loss = super().contrast(s)
                same,kept = seen[-1]
                assert torch.equal(same, all_ids(s)[:, None] == kept)
                return loss
        seen = []
        fit(learner([Kept()]), 2)
        assert seen[-1][0].any(1).all() and seen[-1][0].shape[1] > 160  # all have been seen before

    def test_all_labeled(self):
        learn = fit(learner([MoCo()], dls=data(labeled=None)))
        assert learn.supervision.parts["moco"][0] > 0

    def test_refused(self):
        for k,v in dict(size=0, ema_decay=2.).items():
            with pytest.raises(LabelKitError, match=f"{k}="): MoCo(**{k: v})
