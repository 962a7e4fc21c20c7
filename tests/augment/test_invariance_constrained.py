"The chain and the dual variable of the official code, the counts, and what is refused"
import pytest
import torch
from torch import tensor
from torch.nn import functional as F

from augment.augmenttools import close, published
from contract import fit, learner, model
from labelkit.augment.invariance_constrained import InvarianceConstrained, metropolis, next_dual
from labelkit.core.technique import find
from labelkit.errors import LabelKitError
from labelkit.lesson.batch import look
from mix.mixtools import Keep


class TestMetropolis:
    def test_official_chain(self):
        e = published("invariance_constrained_chain_and_dual")
        losses = tensor(e["inputs"]["proposal_losses"])
        at,accepted = metropolis(losses, tensor(e["inputs"]["uniforms"]))
        want = e["expected"]
        assert accepted.int().tolist() == want["accepted"]
        assert at.tolist() == want["final_state_step"]
        close(losses.gather(0, at[None])[0], want["final_loss"])

    def test_one_proposal_is_kept(self):
        at,accepted = metropolis(torch.rand(1, 4), torch.rand(0, 4))
        assert at.tolist() == [0]*4 and accepted.shape == (0, 4)

    def test_zero_is_left_and_never_entered_from_zero(self):
        at,_ = metropolis(tensor([[0., 0., 1.], [1e-9, 0., 0.]]), torch.full((1, 3), .999))
        assert at.tolist() == [1, 0, 0]


class TestDual:
    def test_official_steps(self):
        e = published("invariance_constrained_chain_and_dual")
        i = e["inputs"]
        made = [
            float(next_dual(tensor(i["dual"]), tensor(o), i["margin"], i["dual_lr"]))
            for o in i["mean_aug_loss"]
        ]
        close(made, e["expected"]["dual_next"], 1e-6)
        z = i["dual_at_zero_lr_1"]
        last = next_dual(tensor(z["dual"]), tensor(z["loss"]), z["margin"], z["lr"])
        assert float(last) == e["expected"]["dual_clamped"]


class TestCallback:
    def test_trace_and_counts(self):
        cb = InvarianceConstrained(level=.1, rounds=2)
        learn = fit(learner([cb]), 2)
        steps = 2*len(learn.dls.train)
        assert cb.trace.shape == (2, 3)
        assert cb.counts[0].sum() == 2*cb.counts[1].sum() == steps*16*2*2
        # the dual variable is the sum of all its steps, while the loss is above the level
        loss = cb.trace[:, 2].sum()*len(learn.dls.train)
        close(cb.dual, cb.rate/steps*(loss - steps*cb.level), 1e-3)

    def test_what_was_kept_is_counted(self, monkeypatch):
        "Of each sample two proposals, operation 0 and 1, and the second one is kept"
        class Kept(InvarianceConstrained):
            name = "invariance_constrained"
            def setup(self):
                super().setup()
                both = torch.arange(2).repeat_interleave(16)[None]
                self._ops.draw = lambda n, rng: (both, torch.zeros(1, 32))
        second = lambda *_: (torch.arange(16, 32), torch.ones(1, 16).bool())
        monkeypatch.setattr("labelkit.augment.invariance_constrained.kept_proposals", second)
        fit(learner([cb := Kept(ops=["rotate", "brightness"])]))
        assert cb.counts.tolist() == [[64., 64.], [0., 64.]]

    def test_uniform_accepts_all_and_a_fixed_weight_stays(self):
        cb = InvarianceConstrained(steps=1, gamma=2., rate=0.)
        fit(learner([cb]))
        assert float(cb.dual) == 2 and torch.equal(cb.counts[0], cb.counts[1])

    def test_a_level_that_is_never_broken_leaves_the_weight_at_zero(self):
        cb = InvarianceConstrained(level=100.)
        fit(learner([cb]))
        assert float(cb.dual) == 0

    def test_the_dual_variable_is_the_weight(self):
        fit(learner([InvarianceConstrained(level=.1, rate=40., gamma=.5), keep := Keep()]))
        weights = [float(s.losses["invariance_constrained"][1]) for s in keep.seen]
        assert weights[0] == .5 and all(b > a for a,b in zip(weights, weights[1:]))

    def test_a_copy_stands_beside_its_own_label(self):
        "With transforms of no strength the kept copies are the pictures, in their order"
        cb = InvarianceConstrained(steps=3, magnitude=0, ops=["rotate", "brightness"])
        fit(learner([cb, keep := Keep()]))
        for s in keep.seen:
            close(s.requests["invariance_constrained"], s.x, 1e-4)

    def test_what_the_chain_is_told(self, monkeypatch):
        "Each sample's own cross-entropy, in evaluation mode: without strength that of the picture"
        seen = []
        def spy(losses, dice):
            seen.append(losses)
            return metropolis(losses, dice)
        monkeypatch.setattr("labelkit.augment.invariance_constrained.metropolis", spy)
        b = look(learner([InvarianceConstrained(steps=3, magnitude=0, ops=["rotate"])]))
        net = model(3).eval()
        want = F.cross_entropy(net(b.record.x), b.record.y, reduction="none")
        close(seen[0], want.expand(3, -1), 1e-3)

    def test_the_chain_prefers_what_costs(self):
        "In the mean over many batches a kept transform costs more than a proposed one"
        costs = {1: 0., 20: 0.}
        for steps in costs:
            cb = InvarianceConstrained(steps=steps, gamma=0., rate=0.)
            fit(learner([cb]), 12)
            costs[steps] = float(cb.trace[:, 2].sum())
        assert costs[20] > costs[1]

    def test_policies(self):
        cb = InvarianceConstrained()
        learn = learner([cb])
        fit(learn)
        x = learn.dls.valid.one_batch()[0][:4]
        for make in cb.policies().values():
            assert make(30)(x, torch.Generator()).shape == x.shape

    def test_the_explorer_shows_its_own_policies(self):
        cb = InvarianceConstrained()
        fit(learner([cb]))
        e = cb.explore(magnitudes=(0, 30), n=2)
        assert list(e.policies) == ["all alike", "as often as kept"]
        other = cb.explore(magnitudes=(0, 30), n=2, policies={"still": lambda m: lambda x: x})
        assert list(other.policies) == ["still"]

    @pytest.mark.parametrize("wrong", [dict(steps=0), dict(level=-1.), dict(magnitude=31)])
    def test_refused(self, wrong):
        with pytest.raises(LabelKitError, match=next(iter(wrong))): InvarianceConstrained(**wrong)

    def test_found_by_its_name(self):
        assert find("InvarianceConstrained").cls is InvarianceConstrained
