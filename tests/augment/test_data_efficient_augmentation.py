"The official coreset, greedy choices by hand, weights, and what is refused"
import pytest
import torch
from torch import tensor
from torch.nn import functional as F

from augment.augmenttools import close, published
from contract import fit, learner
from labelkit.augment.data_efficient_augmentation import (
    DataEfficientAugmentation,
    best_of_each,
    coreset,
    facility_location,
    gradient_proxy,
)
from labelkit.core.supervision import LabelCallback
from labelkit.errors import LabelKitError
from mix.mixtools import Keep

OFFICIAL = published("data_efficient_augmentation_coreset")


class TestOfficial:
    def setup_method(self):
        self.logits = tensor(OFFICIAL["inputs"]["probs"]).log()
        self.y = tensor(OFFICIAL["inputs"]["labels"])
        self.want = OFFICIAL["expected"]

    def test_proxy(self):
        close(gradient_proxy(self.logits, self.y), self.want["gradient_proxy"], 1e-5)

    @pytest.mark.parametrize("n", [6, 3])
    def test_subset_and_weights(self, n):
        places,weights = coreset(gradient_proxy(self.logits, self.y), self.y, n/9)
        assert places.tolist() == self.want[f"subset_B{n}"]
        close(weights, self.want[f"weights_B{n}"])


class TestFacilityLocation:
    def test_by_hand(self):
        "Of 0, 1, 2 and 10 the middle one is nearest to all; then the far one"
        chosen,whose = facility_location(tensor([[0.], [1.], [2.], [10.]]), 2)
        assert chosen.tolist() == [1, 3]
        assert whose.tolist() == [0, 0, 0, 1]

    def test_greedy_is_the_best_first_step(self):
        x = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
        s = (-torch.cdist(x, x)/3).exp()
        chosen,_ = facility_location(x, 1)
        assert int(chosen[0]) == int(s.sum(0).argmax())

    def test_each_step_is_the_best_one(self):
        "Nobody else beside those that were chosen before would be worth more"
        x = torch.randn(15, 3, generator=torch.Generator().manual_seed(0))
        s = (-torch.cdist(x, x)/3).exp()
        chosen,whose = facility_location(x, 6)
        for i in range(6):
            before = chosen[:i].tolist()
            worth = torch.stack([s[:, [*before, j]].amax(1).sum() for j in range(15)])
            close(worth[chosen[i]], worth.max(), 1e-4)
        assert torch.equal(whose, s[:, chosen].argmax(1))

    def test_all_of_them(self):
        x = torch.randn(5, 2)
        chosen,_ = facility_location(x, 5)
        assert sorted(chosen.tolist()) == list(range(5))

    def test_equal_points_are_chosen_once(self):
        assert sorted(facility_location(torch.zeros(4, 2), 4)[0].tolist()) == [0, 1, 2, 3]

    @pytest.mark.parametrize("k", [0, 6])
    def test_refused(self, k):
        with pytest.raises(LabelKitError, match=f"k={k}"): facility_location(torch.rand(5, 2), k)


class TestCoreset:
    def test_one_of_each_class_at_least_and_none_of_a_missing_one(self):
        y = tensor([0, 0, 0, 2])
        places,weights = coreset(torch.randn(4, 3), y, .1)
        assert y[places].tolist() == [0, 2]
        close(weights.mean(), 1.)

    def test_weights_count_what_is_stood_for(self):
        proxies = tensor([[0.], [.1], [.2], [9.]])
        _,weights = coreset(proxies, torch.zeros(4).long(), .5)
        close(weights, [1.5, .5])


class Halves(LabelCallback):
    "Samples of odd ids count twice"
    stage = "relabel"
    def before_forward(self, s): s.weigh(s.ids.remainder(2).add(1).float())


class TestCallback:
    @pytest.mark.parametrize("choose", ["coreset", "random", "loss"])
    def test_equal_counts(self, choose):
        cb = DataEfficientAugmentation(share=.25, choose=choose, rounds=2)
        learn = learner([cb])
        fit(learn, 2)
        y = learn.dls.given[learn.dls.given >= 0]
        want = sum(max(1, round(.25*int(n))) for n in torch.bincount(y) if n)
        assert int((cb.chosen > 0).sum()) == want
        assert cb.when.done == 2

    def test_what_a_batch_is_told(self):
        "The chosen once more, in the strong view, with their own labels, weights and a fair share"
        name = "data_efficient_augmentation"
        halves = Halves()
        fit(learner([cb := DataEfficientAugmentation(share=.5, weighted=True), halves,
                     keep := Keep()]))
        assert len(set(cb.chosen.tolist())) > 2
        for s in keep.seen:
            at = (cb.chosen[s.ids] > 0).nonzero().flatten()
            loss,factor = s.losses[name]
            w = cb.chosen[s.ids][at]*s.ids[at].remainder(2).add(1)
            each = F.cross_entropy(s.outputs[name], s.y[at], reduction="none")
            close(loss.detach(), ((each*w).sum()/w.sum()).detach(), 1e-4)
            # as one mean over samples and copies, by what each of them counts
            plain = s.ids.remainder(2).add(1).sum()
            assert factor == pytest.approx(float(w.sum()/(plain + w.sum())))
            assert s.labeled_weight == pytest.approx(1 - factor)

    def test_copies_of_samples_that_count_nothing(self):
        "Take nothing from the others"
        class Nobody(LabelCallback):
            stage = "relabel"
            def before_forward(self, s): s.weigh((self.learn.data_efficient_augmentation.chosen[
                s.ids] == 0).float())
        fit(learner([DataEfficientAugmentation(share=.5), Nobody(), keep := Keep()]))
        for s in keep.seen:
            assert s.losses["data_efficient_augmentation"][1] == 0 and s.labeled_weight == 1

    def test_copies_are_the_chosen_images_in_the_strong_view(self):
        name = "data_efficient_augmentation"
        cb = DataEfficientAugmentation(share=.5, strong=lambda x, generator: 1-x)
        fit(learner([cb, keep := Keep()]))
        for s in keep.seen: close(s.requests[name], 1 - s.x[cb.chosen[s.ids] > 0])

    def test_who_is_chosen_has_a_label(self):
        "By id, though the labeled ones are not the first; one class each, the given one"
        learn = fit(learner([cb := DataEfficientAugmentation(share=.01)]))
        ids = cb.chosen.nonzero().flatten()
        assert sorted(learn.dls.given[ids].tolist()) == list(range(10))
        assert cb.chosen[ids].tolist() == [1.]*10

    def test_loss_takes_the_worst(self):
        cb = DataEfficientAugmentation(share=.5, choose="loss")
        logits = torch.randn(8, 2)
        y = tensor([0, 1]*4)
        places,_ = cb.choice(logits, y)
        ce = F.cross_entropy(logits, y, reduction="none")
        for c in (0, 1):
            inside = ce[places[y[places] == c]]
            assert inside.min() >= ce[y == c].sort().values[2]

    def test_no_one_is_chosen_before_the_warmup_is_over(self):
        cb = DataEfficientAugmentation(warmup=.5)
        learn = learner([cb])
        fit(learn, 2)
        first,second = learn.supervision.parts["data_efficient_augmentation"]
        assert first != first and second > 0  # NaN where there was no such loss

    def test_refused(self):
        with pytest.raises(LabelKitError, match="choose='best'"):
            DataEfficientAugmentation(choose="best")


def test_best_of_each_class():
    places,weights = best_of_each(tensor([1., 5., 2., 0., 9.]), tensor([0, 0, 1, 1, 1]), .5)
    assert places.tolist() == [1, 4, 2] and weights.tolist() == [1.]*3
