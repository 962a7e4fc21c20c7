"""The soft-label store: exact views, official fills, killed and resumed builds, damage, refusals, and
other ways to reach it"""
import json, os, pickle, random, subprocess, sys, textwrap
from copy import deepcopy
from pathlib import Path

import numpy as np, pytest, torch
from fastai.basics import DataLoader, DataLoaders
from torch import nn

from places import REFERENCES
from labelkit.data.loaders import label_dls
from labelkit.errors import LabelKitError
from labelkit.models import small_cnn
from labelkit.storage.builder import Samples, build_store
from labelkit.storage.soft_labels import LabelStore, densify
from labelkit.storage.stored_views import (
    AugmentViews,
    CropViews,
    StoredViews,
    crop_resize,
    random_boxes,
)
from labelkit.data.views import view_ops

REFERENCE = {e["name"]: e for e in json.loads((REFERENCES/"store.json").read_text())}
gen = lambda seed=0: torch.Generator().manual_seed(seed)


def images(n=120, c=1, size=8, seed=0): return torch.rand(n, c, size, size, generator=gen(seed))
def model(seed=0, c=10):
    torch.manual_seed(seed)
    return small_cnn(c=c, c_in=1, width=4)
def build(path, x=None, teacher=None, views="crop", **kwargs):
    args = dict(n_views=3, k=4, chunk=32, bs=20, progress=False) | kwargs
    return build_store(
        path,
        images() if x is None else x,
        teacher or model(),
        CropViews(scale=(0.3, 1.0)) if views == "crop" else views,
        **args,
    )


def content(path):
    "Every file of a store, byte by byte"
    return {
        str(p.relative_to(path)): p.read_bytes()
        for p in sorted(Path(path).rglob("*"))
        if p.is_file()
    }


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


class TestViews:
    def test_boxes(self):
        b = random_boxes(5000, 20, 40, gen(), (.1, .25), (.5, 2.))
        side = b[:,2:]-b[:,:2]
        assert (b >= 0).all() and (b <= 1+1e-6).all()
        area = side.prod(1)
        ratio = side[:,0]*40/(side[:,1]*20)
        assert area.min() > .1-1e-5 and area.max() < .25+1e-5 and abs(area.mean()-.175) < .01
        assert ratio.min() > .5-1e-4 and ratio.max() < 2+1e-4
        assert b[:,0].std() > .1 and b[:,1].std() > .1

    def test_crop_is_where_the_box_is(self):
        x = torch.arange(16.).view(1,1,4,4)
        right_top = crop_resize(x, torch.tensor([[.5,0.,1.,.5]]), size=(2,2))
        assert right_top[0,0].tolist() == [[2.,3.],[6.,7.]]
        assert crop_resize(x, torch.tensor([[0.5, 0.0, 1.0, 0.5]]), torch.ones(1), (2, 2))[
            0, 0
        ].tolist() == [[3.0, 2.0], [7.0, 6.0]]

    @pytest.mark.parametrize("channels", [1, 3])
    def test_made_again_in_any_batch(self, channels):
        x = images(60, channels, 16)
        views = AugmentViews(
            n=3, ops=tuple(view_ops), cutout=0.3, random_magnitude=True, magnitude=30
        )
        p = views.draw(60, x.shape[1:], gen(3))
        whole = views.make(x, p)
        assert whole.shape == x.shape and not torch.equal(whole, x)
        order = torch.randperm(60, generator=gen(4))
        assert torch.equal(views.make(x[order], p[order]), whole[order])
        one_by_one = torch.cat([views.make(x[i:i+1], p[i:i+1]) for i in range(60)])
        assert torch.equal(one_by_one, whole)
        again = StoredViews.from_spec(json.loads(json.dumps(views.spec)))
        assert torch.equal(again.make(x, torch.from_numpy(p.numpy().astype(np.float32))), whole)

    def test_half_are_flipped(self):
        flips = CropViews().draw(2000, (1,8,8), gen())[:,4]
        assert (
            0.45 < flips.mean() < 0.55
            and not CropViews(flip=False).draw(99, (1, 8, 8), gen())[:, 4].any()
        )

    def test_wrong(self):
        with pytest.raises(LabelKitError, match="scale=.* goes down"): CropViews(scale=(1., .5))
        with pytest.raises(LabelKitError, match="scale=0.5 is not a pair"): CropViews(scale=.5)
        with pytest.raises(LabelKitError, match="takes images in \\[0, 1\\]"):
            AugmentViews().make(images(2)*255, AugmentViews().draw(2, (1,8,8), gen()))
        with pytest.raises(LabelKitError, match="class of your own: import it"):
            StoredViews.from_spec(dict(name="Mine"))


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

    def test_users_own_loaders(self, tmp_path):
        items = [(o, torch.tensor(i % 10)) for i,o in enumerate(images(30))]
        dls = label_dls(DataLoaders(DataLoader(items, bs=4, shuffle=True), DataLoader(items, bs=4)))
        net = model()
        state = torch.get_rng_state(),random.getstate()
        store = build(tmp_path/"s", dls, net)
        assert torch.equal(state[0], torch.get_rng_state()) and state[1] == random.getstate()
        assert torch.equal(
            store.read(torch.arange(30)).values,
            build(tmp_path / "t", images(30)).read(torch.arange(30)).values,
        )
        assert torch.equal(Samples(dls)(torch.tensor([4,2])), images(30)[[4,2]])

    def test_bytes(self, tmp_path):
        x = (images()*255).byte()
        a = build(tmp_path/"a", x)
        b = build(tmp_path/"b", x.float()/255)
        assert torch.equal(a.read([1,2]).values, b.read([1,2]).values)


class TestResume:
    def test_a_break_anywhere(self, tmp_path):
        "A teacher that fails at its n-th question, for every n that matters"
        build(tmp_path/"whole")
        whole = content(tmp_path/"whole")
        for stop in (1, 2, 8, 13, 24):
            net = model()
            asked = [0]
            def fail(module, args):
                asked[0] += 1  # noqa: B023
                if asked[0] > stop: raise KeyboardInterrupt  # noqa: B023
            handle = net.register_forward_pre_hook(fail)
            with pytest.raises(KeyboardInterrupt): build(tmp_path/f"s{stop}", teacher=net)
            handle.remove()
            if asked[0] > 4:
                with pytest.raises(LabelKitError, match="not finished, . of 4 chunks are missing"):
                    LabelStore(tmp_path/f"s{stop}").read([0])
            build(tmp_path/f"s{stop}", teacher=net)
            assert content(tmp_path/f"s{stop}") == whole

    def test_kill_9_at_random_points(self, tmp_path):
        """A process that starts the build six times in children of its own and kills them, so that
        the imports are paid once"""
        torch.save(model().state_dict(), tmp_path/"t.pt")
        script = textwrap.dedent("""
            import os, random, signal, sys, time, torch
            from pathlib import Path
            from labelkit.models import small_cnn
            from labelkit.storage.builder import build_store
            from labelkit.storage.stored_views import CropViews
            folder,rng = Path(sys.argv[1]),random.Random(5)
            net = small_cnn(c=10, c_in=1, width=4)
            net.load_state_dict(torch.load(folder/"t.pt", weights_only=True))
            net.register_forward_hook(lambda *_: time.sleep(.004))
            x = torch.rand(120, 1, 8, 8, generator=torch.Generator().manual_seed(0))
            for _ in range(6):
                child = os.fork()
                if not child:
                    build_store(folder/"killed", x, net, CropViews(scale=(.3, 1.)), n_views=3, k=4, chunk=8, bs=4, progress=False)
                    os._exit(0)
                time.sleep(rng.uniform(.05, .6))
                os.kill(child, signal.SIGKILL)
                killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
                print(len(list((folder/"killed/checks/c").glob("*/0"))), killed, flush=True)""")
        build(tmp_path/"whole", chunk=8, bs=4)
        p = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)],
            env=os.environ | dict(OMP_NUM_THREADS="1"),
            capture_output=True,
            text=True,
        )
        assert p.returncode == 0, p.stderr
        done = [(int(n), killed == "True") for n,killed in map(str.split, p.stdout.splitlines())]
        assert any(killed and n < 15 for n, killed in done), (
            f"the build was never interrupted: {done}"
        )
        assert [n for n,_ in done] == sorted(n for n,_ in done), "what was finished was lost"
        build(tmp_path/"killed", chunk=8, bs=4)
        assert content(tmp_path/"killed") == content(tmp_path/"whole")

    def test_a_bar_for_every_batch(self, tmp_path, capsys):
        build(tmp_path/"s", progress=True)
        assert "8/8" in capsys.readouterr().out
        build(tmp_path/"s", progress=True)
        assert "8/8" not in capsys.readouterr().out

    def test_a_finished_store_is_not_asked_again(self, tmp_path):
        build(tmp_path/"s")
        net = model()
        asked = []
        net.register_forward_hook(lambda *_: asked.append(1))
        build(tmp_path/"s", teacher=net)
        assert len(asked) == 2  # only what it can do, on two samples


class TestDamage:
    @pytest.mark.parametrize("name", ["values", "classes", "params"])
    @pytest.mark.parametrize("how", ["edited", "truncated", "missing"])
    def test_is_named_and_repaired(self, tmp_path, name, how):
        store = build(tmp_path/"s")
        whole = content(tmp_path/"s")
        file = next((tmp_path/"s"/name/"c"/"2").rglob("0/0"))
        raw = file.read_bytes()
        if how == "missing": file.unlink()
        else:
            file.write_bytes(
                raw[:50] if how == "truncated" else raw[:50] + bytes([raw[50] ^ 4]) + raw[51:]
            )
        match = rf"chunk 2 of '{name}' \(samples 64..95"
        with pytest.raises(LabelKitError, match=match): store.verify()
        with pytest.raises(LabelKitError, match=match): build(tmp_path/"s")
        if how != "edited":
            for memory in (True, False):
                with pytest.raises(LabelKitError, match=match):
                    LabelStore(tmp_path/"s", memory).read([70])
        build(tmp_path/"s", repair=True).verify()
        assert content(tmp_path/"s") == whole

    def test_behind_a_url(self, tmp_path):
        import fsspec
        url = f"memory://{tmp_path.name}/d"
        store = build(url)
        fs = fsspec.filesystem("memory")
        key = f"/{tmp_path.name}/d/values/c/1/0/0"
        raw = bytearray(fs.cat(key))
        raw[3] ^= 1
        fs.pipe(key, bytes(raw))
        with pytest.raises(LabelKitError, match="chunk 1 of 'values'"): store.verify()
        fs.pipe(key, bytes(raw[:7]))
        with pytest.raises(LabelKitError, match="chunk 1 of 'values'"): LabelStore(url).read([40])

    def test_descriptions(self, tmp_path):
        build(tmp_path/"s")
        (tmp_path/"s/zarr.json").write_text("{")
        with pytest.raises(LabelKitError, match="zarr.json is missing or damaged"):
            LabelStore(tmp_path/"s").read([0])
        with pytest.raises(LabelKitError, match="zarr.json is missing or damaged"):
            build(tmp_path/"s")


class TestRefusals:
    @pytest.mark.parametrize(
        "change,match",
        [
            (
                dict(x=images(121)),
                "made for other data: number of samples is 120 there and 121 here",
            ),
            (dict(x=images(120, 1, 6)), "made for other data: shape"),
            (dict(x=images(seed=1)), "made for other data: sample 0 is not the one"),
            (dict(teacher=model(1)), "asked another teacher: weights"),
            (
                dict(teacher=model(c=9)),
                "asked another teacher: number of classes is 10 there and 9",
            ),
            (dict(k=5), "k is 4 there and 5 here"),
            (dict(n_views=2), "n_views is 3 there and 2"),
            (dict(seed=1), "seed is 0 there and 1"),
            (dict(dtype="float32"), "dtype is 'float16' there"),
            (dict(views=CropViews(scale=(0.4, 1.0))), "was made otherwise: views"),
        ],
        ids=str,
    )
    def test_another(self, tmp_path, change, match):
        build(tmp_path/"s")
        with pytest.raises(LabelKitError, match=match): build(tmp_path/"s", **change)

    def test_another_function(self, tmp_path):
        net = model().eval()
        other = model(1).eval()
        build(tmp_path/"s", teacher=lambda x: net(x)*9)
        build(tmp_path/"s", teacher=lambda x: net(x)*9)
        with pytest.raises(LabelKitError, match="asked another teacher: its answers"):
            build(tmp_path/"s", teacher=lambda x: other(x)*9)

    def test_reading(self, tmp_path):
        store = build(tmp_path/"s")
        for bad in ([120], [-1], [0, 10**9]):
            with pytest.raises(LabelKitError, match="is not in the store"): store.read(bad)
        for bad in (3, -1, torch.tensor([0,3])):
            with pytest.raises(LabelKitError, match="is outside 0..2"): store.read([0,1], bad)
        with pytest.raises(LabelKitError, match="has no label maps"): store.read([0], maps=True)
        assert len(store.read([])) == 0

    def test_places(self, tmp_path):
        (tmp_path/"mine").mkdir()
        (tmp_path/"mine/photo.jpg").write_text("x")
        with pytest.raises(LabelKitError, match="holds something else"): build(tmp_path/"mine")
        assert (tmp_path/"mine/photo.jpg").read_text() == "x"
        import zarr
        zarr.create_group(str(tmp_path/"other"))
        with pytest.raises(LabelKitError, match="not of labelkit"): build(tmp_path/"other")
        with pytest.raises(LabelKitError, match="holds something else|cannot be written"):
            build(tmp_path/"mine/photo.jpg")
        with pytest.raises(LabelKitError, match="holds no readable store"):
            LabelStore(tmp_path/"mine").read([0])
        with pytest.raises(LabelKitError, match="nosuch"): LabelStore("nosuch://bucket/x").read([0])

    @pytest.mark.parametrize(
        "kwargs,match",
        [
            (dict(k=0), "k=0"),
            (dict(n_views=2.5), "n_views=2.5 is not a whole number"),
            (dict(n_views=0), "n_views=0"),
            (dict(dtype="int8"), "dtype='int8'"),
            (dict(views=None), "n_views=3 without views"),
            (dict(maps=2), "maps=2 needs map_fn"),
        ],
        ids=str,
    )
    def test_arguments(self, tmp_path, kwargs, match):
        with pytest.raises(LabelKitError, match=match): build(tmp_path/"s", **kwargs)

    def test_a_teacher_that_breaks_down(self, tmp_path):
        x = images()
        x[50] = float("nan")
        with pytest.raises(
            LabelKitError, match="NaN or infinite logits about one of the samples 32..51"
        ):
            build(tmp_path/"s", x)
        with pytest.raises(LabelKitError, match="data is list"):
            build_store(tmp_path/"t", [1,2], model())
