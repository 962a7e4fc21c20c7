"WAD: the authors' numbers, who is moved, and what counts how much"
import json

import pytest
import torch
from torch import tensor
from torch.nn import functional as F

from contract import data, fit, learner
from labelkit.data.samples import predict_samples
from labelkit.errors import LabelKitError
from labelkit.parts.pretrain import pretrain
from labelkit.pseudo.wad import (
    WAD, class_similarities, labels_by_features, nearest_class, share_to_move, smallest_losses,
)
from mix.mixtools import Keep
from places import REFERENCES

close = torch.testing.assert_close
REF = {o["name"]: o for o in json.loads((REFERENCES/"wad.json").read_text())}


def test_weights_and_shares_are_the_authors():
    ref = REF["wad_weight_and_alpha_decay"]
    i = ref["inputs"]
    want = ref["expected"]
    _,weights = nearest_class(tensor(i["group_similarities"]))
    close(weights, tensor(want["weights"]), atol=1e-5, rtol=0)
    shares = [share_to_move(k, i["alpha"], i["split"]) for k in i["i"]]
    assert shares == pytest.approx(want["alpha_i"])


def test_moved_samples_are_the_authors():
    ref = REF["wad_small_loss_selection"]
    i = ref["inputs"]
    want = ref["expected"]
    label,_ = nearest_class(tensor(i["class_similarities"]))
    at = {k: n for n,k in enumerate(i["teacher_index"])}
    order = tensor([at[k] for k in i["predict_index_order"]])
    logits = tensor(i["classifier_logits_in_teacher_order"])[order]
    k = int(i["alpha"]*i["n_unlabeled"])
    chosen = smallest_losses(logits, label[order], k)
    assert [i["predict_index_order"][o] for o in chosen] == want["selected_indices"]
    assert label[order][chosen].tolist() == want["selected_labels"]


class TestFunctions:
    def test_similarities(self):
        labeled = tensor([[2., 0.], [0., 1.], [0., 3.]])
        s = class_similarities(tensor([[1., 1.], [0., 0.]]), labeled, tensor([0, 1, 1]), 3)
        close(s[0], tensor([.5**.5, .5**.5, -1.]))
        assert s.isfinite().all() and s[1, 2] == -1

    def test_of_a_class_the_mean_of_directions(self):
        "Long features do not count more"
        labeled = tensor([[100., 0.], [0., 1.]])
        s = class_similarities(tensor([[1., 1.]]), labeled, tensor([0, 0]), 2)
        close(s[0], tensor([1., -1.]))

    def test_nobody_and_everybody(self):
        z = torch.randn(4, 3)
        assert len(smallest_losses(z, tensor([0, 1, 2, 0]), 0)) == 0
        assert sorted(smallest_losses(z, tensor([0, 1, 2, 0]), 9).tolist()) == [0, 1, 2, 3]


def pixels(x): return x.flatten(1)


def test_features_belong_to_their_samples_in_any_order(monkeypatch):
    learn = learner()
    ids,label,lead = labels_by_features(learn, pixels)
    monkeypatch.setattr(
        "labelkit.pseudo.wad.predict_samples",
        lambda *args, **kwargs: tuple(o.flip(0) for o in predict_samples(*args, **kwargs)),
    )
    turned = labels_by_features(learn, pixels)
    for a,b in zip((ids, label, lead), turned): close(a, b.flip(0))


def test_labels_and_weights_are_fixed_before_the_first_step():
    learn = fit(learner([cb := WAD(encoder=pixels)]), 2)
    x = learn.dls.train_ds.arrays.x.flatten(1)
    given = learn.dls.given
    rest = (given < 0).nonzero().flatten()
    s = class_similarities(x[rest], x[given >= 0], given[given >= 0], 10)
    label,lead = nearest_class(s)
    assert torch.equal(cb.pseudo_label[rest], label)
    close(cb.lead[rest], lead)
    assert cb.representation is None
    assert not cb.moved[given >= 0].any()
    f = cb.ledger.frame()
    assert set(f[f.epoch >= 0].id) == set(rest.tolist())


def test_what_a_batch_is_told():
    learn = fit(learner([cb := WAD(encoder=pixels, rounds=2, alpha=1.), keep := Keep()]), 2)
    first = keep.seen[0]
    last = keep.seen[-1]
    each = F.cross_entropy(
        first.outputs["wad"].detach(), cb.pseudo_label[first.unlabeled_ids], reduction="none"
    )
    close(first.losses["wad"][0], (cb.lead[first.unlabeled_ids]*each).mean())
    assert "wad.moved" not in first.losses and first.labeled_weight == 1
    # a quarter of all are moved at half time
    assert int(cb.moved.sum()) == 96//4
    moved = cb.moved[last.unlabeled_ids]
    each = F.cross_entropy(
        last.outputs["wad"].detach(), cb.pseudo_label[last.unlabeled_ids], reduction="none"
    )
    m = int(moved.sum())
    value,share = last.losses["wad.moved"]
    close(value, each[moved].mean())
    assert share == pytest.approx(m/(16 + m)) == pytest.approx(1 - last.labeled_weight)
    rest = (cb.lead[last.unlabeled_ids]*each)[~moved].mean()
    close(last.losses["wad"][0], rest)
    assert learn.wad.schedule.done == 1


def test_who_is_moved_stays_and_is_not_counted_again():
    "In each round a share of those that are left"
    class Kept(WAD):
        name = "wad"
        def relabel(self):
            before = self.moved.clone()
            super().relabel()
            found.append((before, self.moved.clone()))
    found = []
    fit(learner([cb := Kept(encoder=pixels, rounds=4, alpha=1.)]), 4)
    left = 96
    for i,(before,after) in enumerate(found, 1):
        assert (after | ~before).all()
        new = int((after & ~before).sum())
        assert new == int(share_to_move(i, 1., 4)*left) > 0
        left -= new
    assert len(found) == 3 and cb.schedule.done == 3


def test_every_fit_begins_with_its_first_round():
    "Also when the fit before had fewer epochs than rounds"
    class Kept(WAD):
        name = "wad"
        def relabel(self):
            left = int((~self.moved).sum()) - 64  # that many have a label
            super().relabel()
            found.append((left, left - int((~self.moved).sum()) + 64))
    found = []
    learn = learner([Kept(encoder=pixels, rounds=4, alpha=.5)])
    for n in (4, 3, 4):
        found.clear()
        fit(learn, n)
        want = [int(share_to_move(i, .5, 4)*left) for i,(left,_) in enumerate(found, 1)]
        assert [moved for _,moved in found] == want
        assert len(found) == min(n-1, 3) and want[0] > 0


@pytest.mark.parametrize("noise", [True, False])
def test_the_view_that_was_asked_for(noise):
    views = dict(weak=lambda x: x, strong=lambda x: 1-x)
    fit(learner([WAD(encoder=pixels, noise=noise, **views), keep := Keep()]))
    for s in keep.seen:
        assert torch.equal(s.requests["wad"], 1-s.unlabeled if noise else s.unlabeled)


def test_the_temperature_of_the_contrast(monkeypatch):
    seen = {}
    def spy(*args, **kwargs):
        seen.update(kwargs)
        return pretrain(*args, **kwargs)
    monkeypatch.setattr("labelkit.pseudo.wad.pretrain", spy)
    fit(learner([WAD(pretraining=3, temperature=.7)]))
    assert seen["temperature"] == .7 and seen["steps"] == 3


def test_the_representation_begins_with_weights_of_its_own(monkeypatch):
    "Those of the model may have seen labels"
    seen = []
    def spy(net, *args, **kwargs):
        seen.append(next(net.parameters()).detach().clone())
        return pretrain(net, *args, **kwargs)
    monkeypatch.setattr("labelkit.pseudo.wad.pretrain", spy)
    learn = learner([WAD(pretraining=1)])
    first = next(learn.model.parameters()).detach().clone()
    fit(learn)
    assert len(seen) == 1 and not torch.equal(seen[0], first)


def test_without_weights_every_label_counts_one():
    fit(learner([cb := WAD(encoder=pixels, weighted=False), keep := Keep()]))
    s = keep.seen[0]
    moved = cb.moved[s.unlabeled_ids]
    each = F.cross_entropy(s.outputs["wad"], cb.pseudo_label[s.unlabeled_ids], reduction="none")
    close(s.losses["wad"][0], each[~moved].mean())


def test_the_representation_is_trained_and_kept():
    fit(learner([cb := WAD(pretraining=2)]))
    assert cb.representation(torch.rand(2, 1, 8, 8)).shape == (2, 64)
    assert not any(p.requires_grad for p in cb.representation.parameters())
    assert "representation" in cb.state_dict()


def test_refused():
    for k,v in dict(pretraining=0, temperature=0, alpha=-1, rounds=0).items():
        with pytest.raises(LabelKitError, match=f"{k}={v}"): WAD(**{k: v})
    with pytest.raises(LabelKitError, match="needs unlabeled samples"):
        fit(learner([WAD()], dls=data(labeled=None)))
