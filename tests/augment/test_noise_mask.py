"The official mask and means, the policy gradient by hand, what is learned, and what is refused"
import pytest
import torch
from torch import tensor
from torch.distributions import Beta
from torch.nn import functional as F

from augment.augmenttools import close, published
from contract import fit, learner
from labelkit.augment.noise_mask import (
    NoiseMask, beta_logs, drawn_cells, grown_mask, policy_loss,
)
from labelkit.errors import LabelKitError
from labelkit.lesson.batch import look
from mix.mixtools import Keep
from labelkit.parts.running import RunningMean

OFFICIAL = published("noise_mask_pipeline")


class TestOfficial:
    def test_mask(self):
        i = OFFICIAL["inputs"]
        want = OFFICIAL["expected"]
        cells = tensor([i["mask_2x2"]])
        sharp = grown_mask(cells, *i["size"], 1e-3, 3)[0, 0]
        close(sharp[0], want["upsampled_row0"])
        soft = grown_mask(cells, *i["size"], i["sigma"], i["kernel"])[0, 0]
        close(soft[0], want["blurred_row0"])
        close(soft[3], want["blurred_row3"])

    def test_running_mean(self):
        i = OFFICIAL["inputs"]
        raw = tensor(i["raw_alpha_output"])
        base = tensor(i["base_alpha"])
        logs = beta_logs(base, raw, 1-i["decay"])
        close(logs, OFFICIAL["expected"]["new_log_alpha"])
        m = i["base_momentum"]
        mean = RunningMean(base[0], m)
        mean.update(raw)
        close(mean.value[None], OFFICIAL["expected"]["next_base_alpha"])


class TestPolicyLoss:
    def test_by_hand(self):
        "Losses 1 and 3: advantages −1 and 1"
        logs = tensor([-2., -.5], requires_grad=True)
        value = policy_loss(logs, tensor([1., 3.]))
        close(value, (2. - .5)/2)
        value.backward()
        close(logs.grad, [-.5, .5])  # a step against it makes the first likelier

    def test_one_sample_teaches_nothing(self):
        logs = tensor([-2.], requires_grad=True)
        policy_loss(logs, tensor([5.])).backward()
        close(logs.grad, [0.])

    def test_weights(self):
        "Losses 1, 3, 9 that count 3, 1, 0: the mean is 1.5"
        logs = tensor([-2., -.5, -1.], requires_grad=True)
        policy_loss(logs, tensor([1., 3., 9.]), tensor([3., 1., 0.])).backward()
        close(logs.grad, [.75*-.5, .25*1.5, 0.])

    def test_it_is_the_gradient_of_the_expected_loss(self):
        "Loss 1 − m for a mask m ~ Beta(a, 1): dE/da = −1/(a+1)²"
        a = tensor(2., requires_grad=True)
        torch.manual_seed(0)
        d = Beta(a, tensor(1.))
        m = d.sample((400_000,))
        policy_loss(d.log_prob(m), 1-m).backward()
        close(a.grad, -1/9, .01)

    def test_the_losses_get_no_gradient(self):
        losses = torch.rand(3, requires_grad=True)
        assert not policy_loss(torch.rand(3), losses).requires_grad


class TestCallback:
    def test_masks_are_shares(self):
        learn = learner([cb := NoiseMask(until=1.)])
        fit(learn)
        x = learn.dls.valid.one_batch()[0][:5]
        mask,logs,_ = cb.draw(x)
        assert mask.shape == (5, 1, 8, 8) and mask.min() > 0 and mask.max() < 1
        assert logs.shape == (5,) and logs.requires_grad

    def test_the_policy_learns_and_the_model_does_not_see_it(self):
        learn = learner([cb := NoiseMask(until=1.)])
        fit(learn)
        state = cb.policy.module.state_dict()
        assert any(float(v.abs().sum()) for v in cb.base.state_dict().values())
        mine = {id(p) for p in cb.policy.module.parameters()}
        assert not mine & {id(p) for p in learn.opt.all_params().itemgot(0)}
        assert all(v.isfinite().all() for v in state.values())

    def test_clean_at_the_end(self):
        learn = learner([NoiseMask(until=.5)])
        fit(learn, 2)
        first,second = learn.supervision.parts["noise_mask"]
        assert first == first and second != second  # NaN: no mask, no policy gradient

    def test_clean_after_a_share_of_the_batches(self):
        "Of the four batches of one epoch two begin before half of the training is over"
        fit(learner([cb := NoiseMask(until=.5), keep := Keep()]))
        assert [s.own(cb).masked for s in keep.seen] == [True, True, False, False]

    def test_share_zero_is_uniform_noise(self):
        learn = learner([cb := NoiseMask(share=0.)])
        fit(learn)
        assert not cb.base.value.any()
        logs = beta_logs(cb.base.value, torch.randn(3, 2, 7, 7), 0.)
        assert not logs.any()  # Beta(1, 1)

    def test_what_a_batch_is_told(self):
        "The sum of the cells' logarithms, each picture's loss, and a mean that follows the policy"
        b = look(learner([cb := NoiseMask(until=1.)]))
        own = b.record.own(cb)
        ce = F.cross_entropy(b.record.pred, b.record.y, reduction="none")
        value,_ = b.losses["noise_mask"]
        close(value.detach(), policy_loss(own.log_probs, ce).detach(), 1e-4)
        close(b.state["noise_mask"].base.value, .01*own.raw.mean(0))
        (grad,) = torch.autograd.grad(value, b.record.pred, allow_unused=True, retain_graph=True)
        assert grad is None

    def test_a_pictures_logarithm_is_the_sum_over_its_own_cells(self):
        logs = torch.rand(3, 2, 4, 4)
        cells,said = drawn_cells(logs, torch.Generator().manual_seed(0))
        a,b = logs.exp().unbind(1)
        want = [Beta(a[i], b[i]).log_prob(cells[i]).sum() for i in range(3)]
        close(said, torch.stack(want), 1e-4)

    def test_the_blur_is_a_share_of_the_side(self):
        fit(learner([cb := NoiseMask(sigma=.25)]))
        cells = torch.rand(3, 7, 7)
        close(cb._grown(cells, torch.rand(3, 1, 8, 8)), grown_mask(cells, 8, 8, 2., 5))

    @pytest.mark.parametrize("size", [(5, 9), (9, 5), (2, 7), (1, 4)])
    def test_a_blur_as_wide_as_the_picture(self, size):
        "What is not there to be reflected is not reflected; equal cells stay what they are"
        mask = grown_mask(torch.full((2, 3, 3), .3), *size, 2.*min(size))
        close(mask, torch.full((2, 1, *size), .3))

    def test_policies_of_the_explorer(self):
        "Uniform noise does not ask the policy"
        fit(learner([cb := NoiseMask(share=1.)]))
        with torch.no_grad():
            for p in cb.policy.module.parameters(): p.zero_()
            cb.policy.module.body[-1].bias.copy_(tensor([6., 0.]))  # masks of nearly 1
        x = torch.ones(40, 1, 8, 8)
        shown = {k: make(30)(x) for k,make in cb.policies().items()}
        assert shown["the policy"].mean() > .95 and .3 < shown["uniform noise"].mean() < .7

    def test_refused(self):
        for wrong in (dict(grid=0), dict(share=2.), dict(sigma=0.)):
            with pytest.raises(LabelKitError, match=next(iter(wrong))): NoiseMask(**wrong)
