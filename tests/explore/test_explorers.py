"""The explorers in Python: grids, states, errors, sizes, and that the page is told what Python
says."""
import json, shutil, subprocess, sys

import numpy as np
import pytest
import torch
from fastai.basics import DataLoader, DataLoaders, Learner

from labelkit.data.loaders import from_arrays
from labelkit.data.sets import digits
from labelkit.errors import LabelKitError
from labelkit.storage.ledger import Ledger
from labelkit.explore.explorer import Explorer, esm, fixed, pack, static_text, to_uint8
from labelkit.explore.mix_explorer import (
    MixExplorer,
    beta_density,
    default_mixes,
    mix_grid,
    mix_pair,
    mixed_share,
)
from labelkit.explore.threshold_explorer import ThresholdExplorer, above
from labelkit.mix.adautomix import AdAutoMix
from labelkit.mix.base import BlendPlan, Mix
from labelkit.mix.cutmix import CutMix
from labelkit.mix.intra_cluster_mixup import IntraClusterMixUp
from labelkit.mix.manifold_mixup import ManifoldMixUp
from labelkit.mix.mixup import MixUp
from labelkit.mix.resizemix import ResizeMix
from labelkit.mix.smmix import SMMix
from labelkit.models import small_cnn, small_vit


class Grid(Explorer):
    _js = "function build(ui) { return state => {}; }"
    refreshable = True
    def compute(self, seed):
        return dict(
            axes=dict(name=["a", "b"], n=[1, 2, 4]),
            arrays=dict(v=pack(np.full((2, 3), seed, dtype=np.int32))),
            data={},
        )


@pytest.fixture
def images(): return torch.rand(12, 1, 8, 8), torch.arange(12) % 4


@pytest.fixture
def ledger():
    truth = torch.randint(0, 3, (200,))
    led = Ledger(200, truth=truth, vocab=["cat", "dog", "<b>ant</b>"])
    for epoch in range(5):
        conf = torch.rand(200)*(.5+.1*epoch)
        led.record(
            torch.arange(200),
            torch.where(torch.rand(200) < conf, truth, (truth + 1) % 3),
            conf,
            conf >= 0.4,
            epoch,
            class_threshold=torch.tensor([0.3, 0.4, 0.5]),
        )
    return led


@pytest.mark.parametrize(
    "dtype, want",
    [
        (torch.uint8, "uint8"),
        (torch.bool, "uint8"),
        (torch.int64, "int32"),
        (torch.float64, "float32"),
    ],
)
def test_pack_keeps_values(dtype, want):
    a = torch.tensor([[0, 1], [1, 0], [1, 1]]).to(dtype)
    p = pack(a)
    assert p["shape"] == [3, 2] and p["dtype"] == want
    assert np.array_equal(np.frombuffer(p["data"], want).reshape(3, 2), a.numpy().astype(want))


@pytest.mark.parametrize("bad", [[], [[1], [2, 3]], ["a"], [float("nan")]])
def test_pack_refuses(bad):
    with pytest.raises(LabelKitError): pack(bad)


def test_to_uint8_and_fixed():
    assert to_uint8([-1, .5, 2]).tolist() == [0, 128, 255]
    assert [fixed(x, 1) for x in (43.75, 31.25, 0, 100)] == [
        "43.8",
        "31.3",
        "0.0",
        "100.0",
    ] and fixed(62.5) == "63"


def test_state_is_completed_snapped_and_refused():
    g = Grid(state=dict(n=3.2))
    assert g.state == dict(name="a", n=4)
    assert g.select(name="b").state == dict(name="b", n=4) and g.index("n") == 2
    assert Grid(opening=dict(n=2)).state["n"] == 2
    for bad in (dict(n=5), dict(n=float("nan")), dict(name="c"), dict(name=1), dict(other=1)):
        before = dict(g.state)
        with pytest.raises(LabelKitError): g.state = bad
        assert g.state == before
    assert Grid(state=g.state).state == g.state and eval(repr(g), dict(Grid=Grid)).state == g.state


def test_keys_differ_and_link_names_them():
    a = Grid()
    b = Grid()
    assert a.key != b.key
    assert Grid(key="my key", state=dict(name="b")).link("p.html") == "p.html#my%20key=name:b,n:1"


def test_kernel_answers():
    g = Grid(state=dict(n=2))
    sent = []
    g.send = lambda content, buffers=None: sent.append(content)
    g._answer(g, {"kind": "ping"}, [])
    g._answer(g, {"kind": "other"}, [])
    g._answer(g, "nonsense", [])
    assert sent == [{"kind": "pong"}] and g.seed == 1 and g.state["n"] == 2
    assert np.frombuffer(g.arrays["v"]["data"], np.int32).tolist() == [1]*6


def test_too_heavy_is_refused():
    class Heavy(Explorer):
        def compute(self, seed):
            return dict(
                axes=dict(i=[0]), arrays=dict(a=pack(np.zeros(10**6, dtype=np.uint8))), data={}
            )

    with pytest.raises(LabelKitError, match="max_saved"): Heavy()


@pytest.mark.parametrize(
    "js",
    [
        "distill_explorer.js",
        "mix_explorer.js",
        "threshold_explorer.js",
        "training_explorer.js",
        "views_explorer.js",
        "votes_explorer.js",
        "function build(ui) { return s => {}; }",
    ],
)
def test_module_is_one_valid_module(js, tmp_path):
    text = esm(js)
    assert (
        text.count("export default") == 1
        and "import " not in text.replace("@import", "")
        and "innerHTML" not in text
    )
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    if not shutil.which("node"): pytest.skip("no node to parse the module")
    (tmp_path/"m.mjs").write_text(text, encoding="utf-8")
    subprocess.run(["node", "--check", str(tmp_path/"m.mjs")], check=True)


def test_sheet_asks_for_nothing_outside():
    css = static_text("explorer.css")
    assert "url(" not in css and "@import" not in css and css.count("{") == css.count("}")


def test_importing_the_library_does_not_import_widgets():
    code = (
        "import sys, labelkit.all; "
        "print([m for m in ('anywidget', 'ipywidgets') if m in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        ).stdout.strip()
        == "[]"
    )


def test_mix_grid_is_what_the_mixes_give(images):
    x, _ = images
    g = mix_grid(x, [(0, 1), (2, 3)], default_mixes, [0., .3, .5, 1.], draws=2, seed=4)
    assert np.abs(g["mask_mean"][g["table"][..., 0]]-g["share"]).max() < 1e-6
    g_ = torch.Generator().manual_seed(4001)
    mixed, mask, kept, _ = mix_pair(CutMix(), x[2], x[3], .3, g_)
    assert np.array_equal(g["masks"][g["table"][1, 1, 1, 1, 0]], to_uint8(mask)) and np.isclose(
        g["share"][1, 1, 1, 1], kept
    )
    assert torch.equal(mixed, torch.where(mask > 0, x[2], x[3]))
    assert g["mixed"] is None and len(g["masks"]) < g["table"][..., 0].size


def test_a_mix_that_is_no_blend_keeps_its_pictures(images):
    x, y = images
    class FlipPlan(BlendPlan):
        def mix(self, x): return super().mix(x).flip(-1)
    class Flip(Mix):
        note = "flipped"
        def plan_for(self, x, partners, shares, rng): return FlipPlan(partners, shares)
    e = MixExplorer(x, y, mixes={"flip": Flip()}, pairs=2, draws=1)
    assert e.data["notes"] == ["flipped"]
    assert "mixed" in e.arrays and e.grid["table"][..., 1].min() >= 0
    assert e.arrays["mixed"]["shape"][0] == 42 # a picture of each pair for each of 21 λ
    at = e.grid["table"][0, 1, 0, 5, 1]
    want = torch.lerp(e.shown[0][3], e.shown[0][2], .25).flip(-1)
    assert np.array_equal(e.grid["mixed"][at], to_uint8(want))


def test_a_shrunken_partner_is_told_by_its_box(images):
    x, y = images
    e = MixExplorer(x, y, technique="ResizeMix", pairs=2)
    g = e.grid
    t = list(e.mixes).index("ResizeMix")
    assert (
        g["mixed"] is None
        and (g["table"][t, ..., 2] >= 0).all()
        and (g["table"][:t, ..., 2] < 0).all()
    )
    for i in np.ndindex(*g["share"].shape[1:]):
        m, _, q = g["table"][(t, *i)]
        top, left, bottom, right = g["boxes"][q]
        outside = np.ones(g["masks"].shape[1:], dtype=bool)
        outside[top:bottom, left:right] = False
        assert np.array_equal(g["masks"][m] > 0, outside) and np.isclose(
            g["share"][(t, *i)], outside.mean()
        )
    assert len(e.select(lam=.3).plot().axes) == 4


@pytest.mark.parametrize(
    "cls", [MixUp, CutMix, ResizeMix, ManifoldMixUp, IntraClusterMixUp, SMMix, AdAutoMix]
)
def test_every_mix_opens_on_its_own_plan(cls):
    "Also with a learner that was not trained yet, and nothing of the training is disturbed"
    cb = cls(alpha=.3) if cls is not ResizeMix else cls()
    if cls in (SMMix, AdAutoMix):
        with pytest.raises(LabelKitError, match="give it to a Learner"): cb.explore()
    net = small_vit if cls is SMMix else small_cnn
    dls = digits(labeled=40)
    learn = Learner(dls, net(dls), cbs=cb)
    before = cb.rng.get_state()
    e = cb.explore(pairs=2)
    assert e.state["technique"] == cls.__name__ and torch.equal(cb.rng.get_state(), before)
    assert e.state["alpha"] == cb.alpha and e.data["notes"][0] == cls.note
    assert e.saved_size < Explorer.max_saved and learn.model.training
    at = np.array(e.axes["lam"])
    share = e.grid["share"][0]
    # more of A with a larger λ, all of B at 0 where pixels are no obstacle
    assert (np.diff(share.mean((0, 1))) > -1e-6).all()
    if cls in (MixUp, ManifoldMixUp, IntraClusterMixUp): assert np.allclose(share, at)


def test_large_pictures_are_shown_small_and_asked_about_large():
    torch.manual_seed(0)
    x = torch.rand(12, 3, 64, 64)
    y = torch.arange(12) % 3
    dls = from_arrays(x, y, x, y, bs=6)
    cb = SMMix()
    Learner(dls, small_vit(dls, dim=16, depth=1), cbs=cb)
    e = cb.explore()
    assert e.data["shape"] == [3, 32, 32] and len(e.plot().axes) == 4
    means = e.grid["mask_mean"][e.grid["table"][0, ..., 0]]
    assert np.abs(means - e.grid["share"][0]).max() < 1e-6


def test_a_model_is_not_asked_about_other_pictures():
    "It was made for what its loaders give: no digits in their place"
    x = torch.randn(12, 1, 8, 8)
    y = torch.arange(12) % 3
    items = list(zip(x, y))
    dls = DataLoaders(DataLoader(items, bs=6), DataLoader(items, bs=6))
    dls.c = 3
    for cb,net in ((CutMix(), small_cnn), (AdAutoMix(), small_cnn)):
        Learner(dls, net(dls), loss_func=torch.nn.CrossEntropyLoss(), cbs=cb)
        if cb.asks_model:
            with pytest.raises(LabelKitError, match="normalise inside the model"): cb.explore()
        else: assert cb.explore(pairs=2).state["technique"] == "CutMix"


def test_mix_explorer_state_words_and_size(images):
    x, y = images
    e = MixExplorer(x, y, vocab=list("abcd"), technique="CutMix", alpha=.3, key="m")
    assert e.state["alpha"] == .3 and e.state["technique"] == "CutMix" and .3 in e.axes["alpha"]
    assert all(a != b for a, b in e.shown[2])
    assert (
        e.select(technique="MixUp", lam=0.25)
        .readout()
        .startswith("MixUp: λ drawn 0.25, true share 0.250. Target: 25.0 % “")
    )
    first = e.arrays["images"]["data"]
    assert (
        e.other_samples().seed == 1
        and e.arrays["images"]["data"] != first
        and e.state["lam"] == 0.25
    )
    json.dumps(e.data)
    color = MixExplorer(torch.rand(20, 3, 96, 64), torch.arange(20) % 10)
    assert color.data["shape"] == [3, 32, 21] and color.saved_size < 300_000
    assert MixExplorer(x, torch.eye(12)[:, :4], alpha=0).state["alpha"] == 1.
    assert len(e.plot().axes) == 4


class Crop(Mix):
    "No mix: its pictures are smaller"
    def plan_for(self, x, partners, shares, rng):
        plan = BlendPlan(partners, shares)
        plan.mix = lambda x: x[..., :4]
        return plan


@pytest.mark.parametrize(
    "change, word",
    [
        (dict(images=torch.rand(12, 8, 8)), "shape"),
        (dict(images=torch.rand(12, 1, 8, 8) * 2), "in [0,1]"),
        (dict(images=torch.rand(1, 1, 8, 8)), "two"),
        (dict(images=torch.full((12, 1, 8, 8), float("nan"))), "in [0,1]"),
        (dict(labels=torch.zeros(3)), "labels"),
        (dict(vocab=["a"]), "vocab"),
        (dict(technique="mixup"), "MixUp"),
        (dict(mixes={}), "mixes"),
        (dict(pairs=0), "pairs"),
        (dict(alpha=-1), "alpha"),
        (dict(state=dict(lam=2)), "lam"),
        (dict(mixes={"m": Crop()}), "mixes['m']"),
        (dict(mixes={"m": max}), "mixes['m'] is a builtin_function_or_method: pass a `Mix`"),
    ],
)
def test_mix_explorer_refuses(images, change, word):
    with pytest.raises(LabelKitError) as e:
        MixExplorer(**(dict(images=images[0], labels=images[1]) | change))
    assert word in str(e.value)


def test_beta():
    assert (
        np.allclose(beta_density(1.0), 1)
        and abs(beta_density(4.0).mean() - 1) < 1e-3
        and np.isfinite(beta_density(0.01)).all()
    )
    draws = torch.distributions.Beta(.4, .4).sample((20000,))
    assert abs(mixed_share(.4)-((draws > .1) & (draws < .9)).float().mean().item()) < .02


def test_threshold_explorer_counts(ledger):
    e = ThresholdExplorer(ledger, threshold=.4)
    h = ledger.history()
    assert e.state == dict(threshold=0.4, epoch=4, view="counts") and e.data["classes"] == [
        "cat",
        "dog",
        "<b>ant</b>",
    ]
    for epoch in h["epochs"]:
        e.select(epoch=epoch)
        n = int(h["accepted"][epoch])
        right = int(h["accepted_correct"][epoch])
        assert e.readout() == (
            f"Epoch {epoch}, threshold 0.4: {n} of 200 accepted ({fixed(100 * (n / 200))} %), "
            f"{fixed(100 * ((n - right) / n), 1)} % of them wrong."
        )
    assert e.select(threshold=.99).readout() == "Epoch 4, threshold 0.99: none of 200 accepted."
    assert above([[1, 2, 3]]).tolist() == [[6, 5, 3]] and e.plot().axes
    trained = np.frombuffer(e.arrays["trained"]["data"], np.int32).reshape(-1, 2)
    assert trained.T.tolist() == [h["accepted"].tolist(), h["accepted_correct"].tolist()]
    assert (trained[:, 1] < trained[:, 0]).any()


def test_without_truth_nothing_is_said_about_right_and_wrong():
    led = Ledger(10)
    led.record(
        torch.arange(10),
        torch.zeros(10).long(),
        torch.linspace(0, 0.99, 10),
        torch.arange(10) > 5,
        0,
    )
    e = ThresholdExplorer(led, threshold=.5)
    assert (
        e.data["truth"] is False
        and e.readout() == "Epoch 0, threshold 0.5: 5 of 10 accepted (50 %)."
        and e.plot().axes
    )


def test_long_runs_are_thinned(ledger):
    h = ledger.history()
    long = {
        k: np.tile(h[k], (60,) + (1,) * (np.ndim(h[k]) - 1))
        for k in ("correct", "wrong", "unknown", "accepted", "accepted_correct", "class_threshold")
    }
    e = ThresholdExplorer(long | dict(epochs=list(range(300)), bins=h["bins"]))
    assert (
        len(e.axes["epoch"]) == 100
        and e.axes["epoch"][0] == 0
        and e.axes["epoch"][-1] == 299
        and e.saved_size < 300_000
    )


@pytest.mark.parametrize(
    "change, word",
    [
        (dict(bins=None), "bins"),
        (dict(correct=np.zeros((5, 3))), "correct"),
        (dict(epochs=[]), "epoch"),
        (dict(accepted=np.zeros(2)), "accepted"),
        (dict(bins=np.zeros(101)), "rising"),
    ],
)
def test_threshold_explorer_refuses(ledger, change, word):
    with pytest.raises(LabelKitError) as e: ThresholdExplorer(ledger.history() | change)
    assert word in str(e.value)
    with pytest.raises(LabelKitError, match="vocab"): ThresholdExplorer(ledger, vocab=["one"])
    with pytest.raises(LabelKitError, match="threshold"): ThresholdExplorer(ledger, threshold=2)
