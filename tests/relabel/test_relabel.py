"""ReLabel: pooling against torchvision and the published code, where a planted object is found,
teachers' maps, and wrong input"""
import json

import pytest, torch
from fastai.basics import Learner
from torch import nn

from contract import fit, model
from places import REFERENCES
from small import Records
from labelkit.data.loaders import from_arrays
from labelkit.errors import LabelKitError
from labelkit.models import small_cnn, small_vit, wide_resnet
from labelkit.storage.builder import build_store
from labelkit.storage.stored_views import random_boxes
from labelkit.relabel.relabel import (
    ReLabel,
    align_weights,
    label_map_store,
    label_maps,
    pool_maps,
    pool_top_maps,
)

REFERENCE = {e["name"]: e for e in json.loads((REFERENCES / "store.json").read_text())}[
    "relabel_label_pooling"
]
gen = lambda seed=0: torch.Generator().manual_seed(seed)


class TestPooling:
    def test_published_code_and_the_right_geometry(self):
        maps = torch.tensor(REFERENCE["inputs"]["label_maps"])
        top_left = torch.tensor(REFERENCE["inputs"]["crop_top_left_h_w"])
        top,left,h,w = top_left.unbind(1)
        box = torch.stack([left, top, left+w, top+h], 1)
        want = {k: torch.tensor(v) for k,v in REFERENCE["expected"].items()}
        tol = dict(rtol=REFERENCE["tolerance"], atol=REFERENCE["tolerance"])
        torch.testing.assert_close(
            pool_maps(maps, box, "official"), want["pooled_logits_official"], **tol
        )
        torch.testing.assert_close(
            pool_maps(maps, box, "official").softmax(1), want["official_code"], **tol
        )
        torch.testing.assert_close(
            pool_maps(maps, box).softmax(1), want["geometrically_correct_xyxy"], **tol
        )

    @pytest.mark.parametrize("size", [(5, 5), (15, 15), (4, 9), (1, 3)])
    def test_torchvision(self, size):
        ops = pytest.importorskip("torchvision.ops")
        h,w = size
        maps = torch.randn(200, 3, h, w, generator=gen())
        box = random_boxes(200, h, w, gen(1), (.01, 1.), (.3, 3.))
        rois = torch.cat([torch.arange(200.)[:,None], box*torch.tensor([w, h, w, h])-.5], 1)
        want = ops.roi_align(maps, rois, 1, 1., -1, aligned=False)[:,:,0,0]
        torch.testing.assert_close(pool_maps(maps, box), want, rtol=1e-4, atol=1e-4)

    def test_weights_sum_to_one_and_the_whole_is_the_mean(self):
        box = random_boxes(500, 1, 1, gen(), (.01, 1.))
        torch.testing.assert_close(align_weights(box[:,0], box[:,2], 7).sum(1), torch.ones(500))
        m = torch.randn(2, 3, 6, 6, generator=gen())
        torch.testing.assert_close(
            pool_maps(m, torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(2, -1)), m.mean((2, 3))
        )

    @pytest.mark.parametrize("k", [1, 4, 10])
    def test_of_the_best_classes(self, k):
        "With all classes it is exact; with few, each place keeps the right sum"
        m = torch.randn(8, 10, 5, 5, generator=gen())*4
        box = random_boxes(8, 5, 5, gen(1))
        v,i = m.topk(k, 1)
        rest = m.scatter(1, i, -torch.inf).logsumexp(1, keepdim=True) - torch.log(
            torch.tensor(max(1.0, 10.0 - k))
        )
        rest = rest.nan_to_num(neginf=0.)
        got = pool_top_maps(torch.cat([v, rest], 1), i, box, 10)
        dense = rest.expand(-1,10,-1,-1).scatter(1, i, v)
        torch.testing.assert_close(got, pool_maps(dense, box), rtol=1e-4, atol=1e-4)
        if k == 10: torch.testing.assert_close(got, pool_maps(m, box), rtol=1e-4, atol=1e-4)
        official = pool_top_maps(torch.cat([v, rest], 1), i, box, 10, "official")
        torch.testing.assert_close(
            official,
            pool_maps(torch.zeros_like(m).scatter(1, i, v), box, "official"),
            rtol=1e-4,
            atol=1e-4,
        )

    @pytest.mark.parametrize("row,col", [(0,0), (0,3), (3,0), (3,3), (1,2)])
    def test_a_planted_object(self, row, col):
        "Only boxes that hold it give its label; transposed coordinates would fail off the diagonal"
        m = torch.zeros(1,2,4,4)
        m[:,0] = 5.
        m[:,0,row,col] = 0.
        m[:,1,row,col] = 5.
        for r in range(4):
            for c in range(4):
                p = pool_maps(m, torch.tensor([[c/4, r/4, (c+1)/4, (r+1)/4]])).softmax(1)[0,1]
                assert (p > .9) == ((r, c) == (row, col))


class Ends(nn.Module):
    "A network in the manner of torchvision's: adaptive pooling, flatten, dropout, linear"
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        )
        self.tail = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, 10)
        )

    def forward(self, x): return self.tail(self.body(x))


class TestMaps:
    @pytest.mark.parametrize(
        "make",
        [model, Ends, lambda: wide_resnet(depth=10, width=1, c=10, c_in=1)],
        ids=["small_cnn", "torchvision style", "wide_resnet"],
    )
    def test_their_mean_is_what_the_teacher_says(self, make):
        torch.manual_seed(0)
        net = make()
        x = torch.rand(5,1,12,12, generator=gen())
        maps = label_maps(net, x)
        assert maps.shape[:2] == (5, 10) and maps.shape[2] > 1 and not maps.requires_grad
        with torch.no_grad():
            torch.testing.assert_close(maps.mean((2,3)), net.eval()(x), rtol=1e-4, atol=1e-5)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())

    def test_others_say_what_to_pass(self):
        with pytest.raises(LabelKitError, match="pass map_fn"):
            label_maps(small_vit(c=10, c_in=1, size=8).eval(), torch.rand(2,1,8,8))
        with pytest.raises(LabelKitError, match="is not a single model: pass map_fn"):
            label_maps([model(), model(1)], torch.rand(2,1,8,8))


def quadrants(n=96, seed=0):
    "Pictures with a bright quadrant, which is the class"
    y = torch.randint(4, (n,), generator=gen(seed))
    x = torch.rand(n, 1, 8, 8, generator=gen(seed+1))*.1
    for i,k in enumerate(y.tolist()): x[i, 0, 4*(k//2):4*(k//2)+4, 4*(k%2):4*(k%2)+4] += .8
    return x,y

def brightness_maps(x):
    "A teacher that calls a place 1 where it is bright and 0 elsewhere"
    m = nn.functional.avg_pool2d(x, 2)[:,0]
    return torch.stack([4-8*m, 8*m-4, torch.full_like(m, -9.), torch.full_like(m, -9.)], 1)

@pytest.fixture
def bright(tmp_path):
    x,y = quadrants()
    dls = from_arrays(x, y, x, y, bs=32, seed=1)
    return dls, label_map_store(
        tmp_path / "s",
        dls,
        lambda x: brightness_maps(x).mean((2, 3)),
        4,
        brightness_maps,
        progress=False,
    )


class TestCallback:
    def test_a_crop_is_called_what_it_shows(self, bright):
        """Crops of a picture's bright quadrant are called bright, the others not: image and map are
        cut by the same box"""
        dls,store = bright
        learn = Learner(
            dls, small_cnn(dls, width=4), cbs=[ReLabel(store, scale=(0.05, 0.12)), r := Records()]
        )
        fit(learn, 3)
        light = torch.cat([s.x.mean((1,2,3)) for s in r.seen])
        said = torch.cat([s.targets[:,1] for s in r.seen])
        assert (said[light > .75] > .6).all() and (said[light < .2] < .4).all()
        assert (light > .75).sum() > 5 and (light < .2).sum() > 50
        learn = Learner(
            dls,
            small_cnn(dls, width=4),
            cbs=[ReLabel(store, scale=(0.05, 0.12), variant="official"), r := Records()],
        )
        fit(learn, 3)
        light = torch.cat([s.x.mean((1,2,3)) for s in r.seen])
        said = torch.cat([s.targets[:,1] for s in r.seen])
        assert (said[light > .75] < .4).any(), "the exchanged coordinates do not show"

    def test_labels_and_validation_stay(self, bright):
        dls,store = bright
        learn = Learner(dls, small_cnn(dls, width=4), cbs=[ReLabel(store), r := Records()])
        fit(learn, 1)
        for s in r.seen: assert torch.equal(s.y, dls.given[s.ids]) and s.x.shape[2:] == (8,8)

    def test_crops_of_another_size_and_share(self, bright):
        dls,store = bright
        learn = Learner(
            dls, small_cnn(dls, width=4), cbs=[ReLabel(store, size=(6, 4), p=0.5), r := Records()]
        )
        fit(learn, 8)
        sizes = [tuple(s.x.shape[2:]) for s in r.seen]
        assert set(sizes) == {(6,4), (8,8)} and .2 < sizes.count((6,4))/len(sizes) < .8

    def test_flips_follow_the_data(self, bright):
        dls,store = bright
        for hints, flip, want in (
            ({}, None, True),
            (dict(flip=False), None, False),
            (dict(flip=False), True, True),
        ):
            dls.view_hints = hints
            learn = Learner(dls, small_cnn(dls, width=4), cbs=ReLabel(store, flip=flip))
            fit(learn)
            assert learn.relabel._crops.flip is want

    def test_wrong_input(self, bright, tmp_path):
        dls,store = bright
        x,y = quadrants()
        def refused(match, cb, dls=dls):
            with pytest.raises(LabelKitError, match=match):
                fit(Learner(dls, small_cnn(dls, width=4), cbs=cb))
        refused("was made for other data", ReLabel(store), from_arrays(x.flip(3), y, x, y))
        refused(
            "knows 4 classes and the data 5",
            ReLabel(store),
            from_arrays(x, y, x, y, vocab=range(5)),
        )
        refused(
            "of shape \\[1, 8, 8\\], these have \\[1, 4, 4\\]",
            ReLabel(store),
            from_arrays(x[..., :4, :4], y, x[..., :4, :4], y),
        )
        refused(
            "of kind 'multi', and ReLabel works on single, soft",
            ReLabel(store),
            from_arrays(
                x,
                nn.functional.one_hot(y, 4).float(),
                x,
                nn.functional.one_hot(y, 4).float(),
                kind="multi",
            ),
        )
        plain = build_store(
            tmp_path / "plain", dls, lambda x: brightness_maps(x).mean((2, 3)), progress=False
        )
        refused("has no label maps: make one with `label_map_store`", ReLabel(plain))
        refused("does not exist", ReLabel(tmp_path/"none"))
        with pytest.raises(LabelKitError, match="store is missing: make one with `label_map_store"):
            ReLabel()
        with pytest.raises(LabelKitError, match="variant='mine'"): ReLabel(store, variant="mine")
        with pytest.raises(LabelKitError, match="p=2"): ReLabel(store, p=2)
        with pytest.raises(LabelKitError, match="scale="): ReLabel(store, scale=(0., 1.))
        with pytest.raises(LabelKitError, match="map_fn gave"):
            label_map_store(
                tmp_path / "bad",
                dls,
                lambda x: x.flatten(1)[:, :4],
                map_fn=lambda x: x,
                progress=False,
            )
