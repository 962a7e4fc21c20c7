"The study's measures: the authors' distance, calibration by hand, and the file that is shown"
import json

import pytest
import torch
from torch import tensor

from labelkit.errors import LabelKitError
from labelkit.pseudo.galaxy_study import (
    POOLS, calibration_error, distance_to_pool, frechet_distance, read_study, study_loaders,
)
from labelkit.pseudo.shift import blurred
from places import REFERENCES


class TestDistance:
    def test_reference(self):
        (ref,) = json.loads((REFERENCES/"galaxy_study.json").read_text())
        a,b = (torch.tensor(ref["inputs"][f"features_{o}"], dtype=torch.double) for o in "ab")
        want = ref["expected"]
        assert frechet_distance(a, b) == pytest.approx(want["distance"], abs=1e-5)
        assert float((a.mean(0)-b.mean(0)).square().sum()) == pytest.approx(want["mean_term"])

    def test_properties(self):
        a,b = torch.randn(2, 30, 6)
        assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
        assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))
        assert frechet_distance(a, a + 2) == pytest.approx(4*6, rel=1e-5)
        few = frechet_distance(a[:3], b[:3])  # singular covariances
        assert few > 0 and few < 1e3

    def test_errors(self):
        with pytest.raises(LabelKitError, match="at least two samples"):
            frechet_distance(torch.zeros(1, 3), torch.zeros(5, 3))
        with pytest.raises(LabelKitError, match="of one length"):
            frechet_distance(torch.zeros(5, 3), torch.zeros(5, 4))


def test_calibration():
    p = tensor([[.9, .1], [.9, .1], [.4, .6], [.4, .6]])
    y = tensor([0, 1, 1, 1])
    # two bins: .9 with one of two right, .6 with all right
    assert calibration_error(p, y) == pytest.approx((2*.4 + 2*.4)/4, abs=1e-6)
    assert calibration_error(p, y, bins=1) == pytest.approx(abs(.75-.75), abs=1e-6)
    assert calibration_error(tensor([[1., 0.]]), tensor([0])) == 0
    for wrong in ((p, y[:2]), (p[:, 0], y), (p[:0], y[:0])):
        with pytest.raises(LabelKitError, match="one prediction or more"): calibration_error(*wrong)
    with pytest.raises(LabelKitError, match="bins=0"): calibration_error(p, y, 0)


def test_pools():
    same,half,all_of_it = (study_loaders(40, o) for o in POOLS)
    x = same.train_ds.arrays.x
    u = same.given < 0
    assert torch.equal(half.given, same.given) and int((~u).sum()) == 40
    for dls,share in ((half, .5), (all_of_it, 1.)):
        other = dls.train_ds.arrays.x
        changed = (other != x).flatten(1).any(1)
        assert not changed[~u].any()
        assert changed[u].float().mean() == pytest.approx(share, abs=.01)
        assert torch.equal(other[changed], blurred(x[changed], 2))
    with pytest.raises(LabelKitError, match="pool='other' is not known"): study_loaders(40, "other")


def test_the_file_is_whole():
    runs = read_study()["runs"]
    cells = {(o["seed"], o["labels"], o["pool"]) for o in runs}
    assert len(cells) == len(runs)
    assert {o[2] for o in cells} == {"none", *POOLS}
    assert len({o[0] for o in cells}) >= 5
    for o in runs:
        assert 0 <= o["accuracy"] <= 1 and 0 <= o["calibration"] <= 1
        assert o["pool"] == "none" or o["distance"] > 0


def test_a_bin_holds_its_upper_edge():
    "Confidence ½ of two bins is in the lower one, with those below it"
    p = tensor([[.5, .5, 0.], [.4, .3, .3]])
    off = (.5-1) + (.4-0)
    assert calibration_error(p, tensor([0, 1]), 2) == pytest.approx(abs(off)/2, abs=1e-6)
    far = tensor([[.8, .2], [.3, .7]])  # too sure by .8 here, not sure enough by .3 there
    got = calibration_error(far, tensor([1, 1]), 4)
    assert got == pytest.approx((.8 + .3)/2, abs=1e-6)


def test_the_distance_to_the_pool():
    from labelkit.models import small_cnn
    same,other = (study_loaders(40, o) for o in ("same", "blurred"))
    net = small_cnn(same, width=4)
    assert distance_to_pool(net, other) != pytest.approx(distance_to_pool(net, same), rel=.05)
    assert distance_to_pool(net, same) > 0
