"Views by policy and magnitude: whose pictures, how far the pixels move, and what is refused"
import numpy as np
import pytest
import torch

from contract import data, learner
from labelkit.augment.randaugment import RandAugment
from labelkit.data.samples import Samples
from labelkit.errors import LabelKitError
from labelkit.explore.views_explorer import ViewsExplorer, default_policies, one_operation


def brighter(m): return lambda x: (x + m/30).clamp(0, 1)


def test_change_is_the_mean_over_pixels():
    e = ViewsExplorer(data(), {"still": lambda m: lambda x: x, "brighter": brighter}, (0, 3, 30), 5)
    assert e.state == dict(policy="still", magnitude=3) and "differ by 0" in e.readout()
    x = torch.as_tensor(np.frombuffer(e.arrays["images"]["data"], np.uint8).copy())
    x = x.view(5, 1, 8, 8)/255
    want = ((x + .1).clamp(0, 1) - x).abs().mean()
    got = e.change[1, 1]
    assert float(got) == pytest.approx(float(want), abs=3e-3) and e.change[1, 0] == 0
    e.select(policy="brighter", magnitude=30)
    assert f"{100*float((1-x).mean()):.0f}"[:1] in e.readout() and e.plot().axes


def test_pictures_have_their_own_names():
    dls = data()
    e = ViewsExplorer(dls, {"still": lambda m: lambda x: x}, (0, 30), 6)
    samples = Samples(dls.train)
    (x,) = samples.inputs()
    y = samples.labels()
    shown = np.frombuffer(e.arrays["images"]["data"], np.uint8).reshape(6, 64)
    for picture,name in zip(shown, e.data["names"]):
        off = (x.flatten(1)*255 - torch.tensor(picture.astype(float))).abs().amax(1)
        assert off.min() < 1 and name == str(int(y[off.argmin()]))
    other = ViewsExplorer(dls, {"still": lambda m: lambda x: x}, (0, 30), 6).other_samples()
    assert other.data["names"] != e.data["names"] or other.seed == 1


def test_policies_by_themselves():
    dls = data()
    policies = default_policies(dls)
    assert list(policies) == ["1 operation", "2 operations", "3 operations", "the strong view"]
    x = dls.valid.one_batch()[0][:4]
    flips = one_operation(dls, ["invert", "translate_x"])
    assert list(flips) == ["invert", "translate x"]
    made = flips["invert"](30)(x, torch.Generator().manual_seed(0))
    torch.testing.assert_close(made, 1-x, atol=1e-4, rtol=0)


def test_of_a_technique():
    learner([cb := RandAugment()])
    with pytest.raises(LabelKitError, match="belongs to no learner yet"):
        ViewsExplorer.from_technique(RandAugment())
    cb.learn = learner()
    assert ViewsExplorer.from_technique(cb, magnitudes=(0, 30), n=2).axes["magnitude"] == [0, 30]


def test_refused():
    still = {"still": lambda m: lambda x: x}
    for bad in ((5,), (5, 5), (9, 3)):
        with pytest.raises(LabelKitError, match="two rising numbers"):
            ViewsExplorer(data(), still, bad)
    with pytest.raises(LabelKitError, match="keeps the shape"):
        ViewsExplorer(data(), {"half": lambda m: lambda x: x[..., :4]})
    dls = data()
    dls.train_ds.arrays.x.mul_(3)
    with pytest.raises(LabelKitError, match=r"pass loaders of pictures"): ViewsExplorer(dls, still)
