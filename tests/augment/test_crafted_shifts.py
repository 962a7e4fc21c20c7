"Ranks and choices by hand, categories that keep shape and labels, folds, and what is refused"
import json

import pytest
import torch
from torch import tensor

from augment.augmenttools import close
from contract import data
from labelkit.augment.crafted_shifts import (
    CATEGORIES,
    Study,
    category_folds,
    category_view,
    crafted_dls,
    crafted_shifts,
    edge_map,
    lost_by_choice,
    rank_correlation,
    study,
)
from labelkit.errors import LabelKitError


def gen(seed=0): return torch.Generator().manual_seed(seed)


class TestOrder:
    def test_ties_share_a_rank(self):
        # ranks 1, 2½, 2½, 4 and 1, 2, 3, 4: covariance 4.5 over the root of 4.5 times 5
        a = tensor([1., 2., 2., 5.])
        close(rank_correlation(a, tensor([1., 2., 3., 4.])), (4.5/5)**.5)

    def test_ends(self):
        a = torch.rand(7, generator=gen())
        close(rank_correlation(a, a.exp()), 1.)
        close(rank_correlation(a, -a), -1.)

    def test_lost(self):
        assert lost_by_choice(tensor([1., 2.]), tensor([.5, .5])) == 0
        close(lost_by_choice(tensor([1., 2.]), tensor([.9, .6])), .3)

    def test_refused(self):
        one = tensor([1.])
        for a,b in ((one, one), (torch.rand(3), torch.rand(2))):
            with pytest.raises(LabelKitError, match="two or more"): rank_correlation(a, b)
        with pytest.raises(LabelKitError, match="no order"):
            rank_correlation(torch.ones(3), torch.rand(3))


class TestViews:
    @pytest.mark.parametrize("name", CATEGORIES)
    def test_strength_0_changes_nothing(self, name):
        "Not even the tones, of which two operations have no strength"
        x = .2 + .5*torch.rand(30, 3, 14, 14, generator=gen())
        assert torch.equal(category_view(name, 0.)(x, gen(1)), x)

    @pytest.mark.parametrize("name", CATEGORIES)
    @pytest.mark.parametrize("c", [1, 3])
    def test_shape_range_and_seed(self, name, c):
        x = torch.rand(9, c, 14, 14, generator=gen())
        a,b = (category_view(name)(x, gen(2)) for _ in range(2))
        assert torch.equal(a, b) and a.shape == x.shape
        assert a.min() >= 0 and a.max() <= 1 + 1e-5
        assert not torch.equal(a, x)

    @pytest.mark.parametrize("name", ["geometry", "light", "blur", "noise", "holes", "edges"])
    def test_no_strength_changes_nothing(self, name):
        x = torch.rand(5, 1, 14, 14)
        close(category_view(name, 0.)(x, gen()), x, 1e-4)

    def test_blur_keeps_flat_pictures_and_the_mean(self):
        flat = torch.full((3, 2, 10, 10), .3)
        close(category_view("blur")(flat, gen()), flat, 1e-5)

    def test_part_of_a_picture_becomes_its_edges(self):
        x = torch.rand(6, 3, 12, 12, generator=gen())
        share = torch.rand(6, generator=gen(4))[:, None, None, None]
        close(category_view("edges")(x, gen(4)), (1-share)*x + share*edge_map(x))

    def test_refused(self):
        with pytest.raises(LabelKitError, match="'fog'"): category_view("fog")
        with pytest.raises(LabelKitError, match="strength"): category_view("blur", 2.)


class TestEdges:
    def ramp(self, *columns):
        "A picture whose brightness is made of columns"
        return tensor(columns).expand(1, 1, 9, len(columns))

    def test_the_steepest_column(self):
        found = edge_map(self.ramp(0., 0., 0., 0., .5, 1., 1., 1., 1.))[0, 0]
        assert torch.equal(found, (torch.arange(9) == 4).float().expand(9, 9))

    def test_turned_pictures_have_turned_edges(self):
        x = torch.rand(2, 1, 11, 11, generator=gen())
        assert torch.equal(edge_map(x).transpose(2, 3), edge_map(x.transpose(2, 3)))

    def test_weak_ridges_stay_where_they_touch_strong_ones(self):
        dark = [0.]*8
        # steps of 1, of .3, between a half and a quarter of it, and of .1, below a quarter
        alone = self.ramp(*dark, .5, 1., *[1.]*7, .85, *[.7]*7, .65, *[.6]*7)
        assert edge_map(alone)[0, 0].any(0).nonzero().flatten().tolist() == [8]
        # the same step, weaker from row to row
        fading = self.ramp(*dark, .5, *[1.]*8)*torch.linspace(1, .35, 9)[:, None]
        assert edge_map(fading)[0, 0, :, 8].all()

    def test_flat_pictures_have_none(self):
        assert edge_map(torch.full((2, 3, 7, 7), .4)).sum() == 0

    def test_each_picture_by_itself(self):
        x = torch.rand(5, 3, 10, 10, generator=gen())
        close(edge_map(x), torch.cat([edge_map(o) for o in x.split(1)]))

class TestSets:
    def test_every_picture_once_in_each(self):
        x = torch.rand(4, 1, 8, 8)
        y = tensor([3, 1, 4, 1])
        made,labels,kind = crafted_shifts(x, y, ["blur", "noise"])
        assert made.shape == (8, 1, 8, 8)
        assert labels.tolist() == y.tolist()*2 and kind.tolist() == [0]*4 + [1]*4

    def test_loaders(self):
        dls = data(labeled=None)
        crafted = crafted_dls(dls, ["light", "holes"])
        assert len(crafted.valid_ds) == 2*len(dls.valid_ds)
        assert len(crafted.train_ds) == len(dls.train_ds) and crafted.vocab == dls.vocab

    def test_the_validation_set_is_shifted_and_the_training_set_is_not(self):
        dls = data(labeled=None)
        crafted = crafted_dls(dls, ["noise"])
        own,made = (torch.cat([b[0] for b in o.valid]) for o in (dls, crafted))
        assert (made - own).abs().flatten(1).amax(1).min() > 1e-3
        assert torch.equal(crafted.train_ds.arrays.x, dls.train_ds.arrays.x)

    def test_each_picture_gets_its_own_share_of_the_strength(self):
        x = torch.full((200, 1, 8, 8), .5)
        much = crafted_shifts(x, torch.zeros(200).long(), ["noise"], .4)[0].flatten(1).std(1)
        assert much.min() < .02 and much.max() > .15 and .07 < much.mean() < .13

    @pytest.mark.parametrize("k", [2, 3, 7])
    def test_folds_share_nothing(self, k):
        folds = category_folds(k)
        assert len(folds) == k and sorted(sum(folds, [])) == sorted(CATEGORIES)

    def test_too_many_folds(self):
        with pytest.raises(LabelKitError, match="k=8"): category_folds(8)


class TestStudy:
    def test_by_hand(self, tmp_path):
        run = dict(source=[.9, .8, .7], crafted=[.5, .6, .4], target=[.3, .5, .2])
        found = dict(candidates=["a", "b", "c"], runs=[run, run])
        path = tmp_path/"study.json"
        path.write_text(json.dumps(found))
        s = study(path)
        close(s.agreement("source"), [.5, .5])
        close(s.agreement("crafted"), [1., 1.])
        close(s.lost("source"), [.2, .2])
        assert "difference" in repr(s) and "lost" in s._repr_html_()

    def test_of_the_package(self):
        s = study()
        assert isinstance(s, Study) and len(s.found["runs"]) == 5
        assert s.runs("target").shape == (5, len(s.found["candidates"]))
