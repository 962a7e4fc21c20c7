"""Reading a soft-label store: official fills, memory, maps and URLs, and paths in each of their
spellings"""
import json, pickle
from copy import deepcopy
from pathlib import Path

import pytest, torch
from torch import nn

from places import REFERENCES
from stores import build, gen, images, model
from labelkit.errors import LabelKitError
from labelkit.storage.soft_labels import LabelStore, densify

REFERENCE = {e["name"]: e for e in json.loads((REFERENCES/"store.json").read_text())}


class TestDensify:
    def test_fkd(self):
        e = REFERENCE["fkd_quantize_and_recover"]
        p = torch.tensor(e["inputs"]["p"])
        v,i = p.topk(5)
        torch.testing.assert_close(v, torch.tensor(e["expected"]["k5_value"]))
        assert i.tolist() == [[int(o) for o in row] for row in e["expected"]["k5_index"]]
        torch.testing.assert_close(
            densify(v, i, 8), torch.tensor(e["expected"]["marginal_smoothing_k5"])
        )
        torch.testing.assert_close(
            densify(v, i, 8, "renorm"), torch.tensor(e["expected"]["marginal_renorm"])
        )
        torch.testing.assert_close(densify(*p.topk(1), 8), torch.tensor(e["expected"]["smoothing"]))

    def test_ml_dr(self):
        e = REFERENCE["ml_dr_densify"]
        v = torch.tensor([e["inputs"]["values"]])
        i = torch.tensor([e["inputs"]["ids"]])
        torch.testing.assert_close(densify(v, i, 8)[0], torch.tensor(e["expected"]["smooth"]))
        torch.testing.assert_close(
            densify(v, i, 8, "official")[0], torch.tensor(e["expected"]["zeros"])
        )

    @pytest.mark.parametrize("fill", ["smooth", "renorm"])
    @pytest.mark.parametrize("k", [1, 5, 10])
    def test_sums_to_one_after_rounding(self, fill, k):
        v,i = (torch.randn(200, 10, generator=gen())*4).softmax(1).topk(k)
        torch.testing.assert_close(
            densify(v.half(), i, 10, fill).sum(1), torch.ones(200), rtol=1e-6, atol=1e-6
        )

    def test_unknown(self):
        with pytest.raises(LabelKitError, match="fill='mean' is none of smooth"):
            densify(torch.ones(1,1), torch.zeros(1,1).long(), 3, "mean")


class TestRead:
    def test_what_the_teacher_said(self, tmp_path):
        x = images()
        teacher = model()
        store = build(tmp_path/"s", x, teacher, dtype="float32")
        ids = torch.tensor([7,119,0,7,64])
        view = torch.tensor([0,2,1,1,2])
        got = store.read(ids, view)
        with torch.no_grad(): p = teacher.eval()(store.views.make(x[ids], got.params)).softmax(1)
        torch.testing.assert_close(p.topk(4).values, got.values)
        assert torch.equal(p.topk(4).indices, got.classes)
        assert not torch.equal(got.params[0], got.params[3]), "two views of a sample are the same"

    def test_memory_maps_and_urls_agree(self, tmp_path):
        build(tmp_path/"s")
        build(f"memory://{tmp_path.name}/s")
        stores = [
            LabelStore(tmp_path / "s", True),
            LabelStore(tmp_path / "s", False),
            LabelStore(f"file://{tmp_path}/s"),
            LabelStore(f"memory://{tmp_path.name}/s", False, cache=3000),
            LabelStore(f"memory://{tmp_path.name}/s", True),
        ]
        ids = torch.randint(120, (300,), generator=gen())
        view = torch.randint(3, (300,), generator=gen(1))
        for s in stores:
            got = s.read(ids, view)
            want = stores[0].read(ids, view)
            assert all(
                torch.equal(getattr(got, k), getattr(want, k))
                for k in ("values", "classes", "params")
            )

    def test_samples_themselves(self, tmp_path):
        store = build(tmp_path/"s", views=None, n_views=1)
        assert store.views is None and store.read([0]).params is None
        with torch.no_grad(): p = model().eval()(images()).softmax(1)
        torch.testing.assert_close(
            store.read(torch.arange(120)).dense().max(1).values,
            p.max(1).values,
            rtol=1e-3,
            atol=1e-3,
        )

    def test_more_classes_than_a_byte(self, tmp_path):
        store = build(tmp_path/"s", teacher=model(c=300))
        assert (
            store.read([1]).classes.max() < 300 and store.meta["columns"]["classes"][1] == "uint16"
        )

    def test_label_maps(self, tmp_path):
        w = torch.randn(5, 1, generator=gen())
        maps = lambda x: torch.einsum("cd,bdhw->bchw", w, x[...,::2,::2])*3
        store = build(
            tmp_path / "s",
            teacher=lambda x: maps(x).mean((2, 3)),
            maps=2,
            map_fn=maps,
            views=None,
            n_views=1,
        )
        got = store.read([3,9], maps=True)
        want = maps(images()[[3,9]])
        v,i = want.topk(2, 1)
        torch.testing.assert_close(got.map_values[:,:2], v, rtol=1e-3, atol=1e-3)
        assert torch.equal(got.map_classes, i)
        p = torch.cat([got.map_values[:,:2], got.map_values[:,2:].expand(-1,3,-1,-1)], 1).softmax(1)
        # the rest has its mass
        torch.testing.assert_close(p[:,:2], want.softmax(1).gather(1, i), rtol=1e-2, atol=1e-3)

    def test_copies_and_pickles_carry_no_data(self, tmp_path):
        store = build(tmp_path/"s")
        store.read([0])
        raw = pickle.dumps(store)
        assert len(raw) < 300
        for s in (pickle.loads(raw), deepcopy(store)):
            assert torch.equal(s.read([5]).values, store.read([5]).values)

    def test_text_is_not_html(self, tmp_path):
        class Teacher(nn.Module):
            def forward(self, x): return x.flatten(1)[:,:4]
        Teacher.__name__ = "<b>x</b>"
        store = build(tmp_path/"s", teacher=Teacher())
        assert (
            "<b>x</b>" not in store._repr_html_()
            and "&lt;b&gt;x" in store._repr_html_()
            and "120 of shape 1×8×8" in repr(store)
        )
        assert "does not exist" in repr(LabelStore(tmp_path/"none"))

    def test_reading(self, tmp_path):
        store = build(tmp_path/"s")
        for bad in ([120], [-1], [0, 10**9]):
            with pytest.raises(LabelKitError, match="is not in the store"): store.read(bad)
        for bad in (3, -1, torch.tensor([0,3])):
            with pytest.raises(LabelKitError, match="is outside 0..2"): store.read([0,1], bad)
        with pytest.raises(LabelKitError, match="has no label maps"): store.read([0], maps=True)
        assert len(store.read([])) == 0


def answers(store, n=120): return store.read(torch.arange(n)).values

class TestPlaces:
    @pytest.mark.parametrize("name", ["my store", "#1", "100%25", "a?b", "café", "run::7", "a'b"])
    def test_names_of_folders(self, tmp_path, name):
        build(tmp_path/name)
        for path in (tmp_path/name, str(tmp_path/name), (tmp_path/name).as_uri()):
            assert torch.equal(answers(LabelStore(path)), answers(LabelStore(tmp_path/name, False)))
        assert [p.name for p in tmp_path.iterdir()] == [name]

    def test_home_and_relative(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path/"home"))
        (tmp_path/"work").mkdir()
        monkeypatch.chdir(tmp_path/"work")
        build("~/s")
        store = build("rel/s")
        assert (tmp_path/"home/s/zarr.json").exists() and answers(LabelStore("~/s")).any()
        assert [p.name for p in (tmp_path/"work").iterdir()] == ["rel"]
        again = pickle.loads(pickle.dumps(store))
        monkeypatch.chdir(tmp_path)  # as a worker process that begins elsewhere
        assert torch.equal(answers(again), answers(LabelStore(tmp_path/"work/rel/s")))

    def test_urls(self, tmp_path):
        url = f"memory://{tmp_path.name}/a b/s"
        build(url)
        assert LabelStore(url).path == url and answers(LabelStore(url)).any()
        assert answers(LabelStore(url+"/")).any()

    @pytest.mark.parametrize(
        "path,said",
        [
            (Path("memory://x/s"), "was made a Path"),
            ("C:\\stores\\s", "is a path of Windows"),
            (3, "is no path"),
            (None, "is no path"),
            ("nosuch://x/s", "nosuch"),
        ],
        ids=str,
    )
    def test_what_is_no_place(self, path, said):
        for f in (lambda: LabelStore(path).read([0]), lambda: build(path)):
            with pytest.raises(LabelKitError, match=said): f()
