"""Building a soft-label store: killed and resumed to the same bytes, damage repaired, other data,
teachers and settings refused"""
import json, os, random, shutil, subprocess, sys, tempfile, textwrap
from pathlib import Path

import pytest, torch
from fastai.basics import DataLoader, DataLoaders

from stores import build, content, images, model
from places import told
from labelkit.data.loaders import from_arrays, label_dls
from labelkit.errors import LabelKitError
from labelkit.storage.builder import build_store
from labelkit.storage.soft_labels import LabelStore
from labelkit.storage.stored_views import CropViews


class TestData:
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

    def test_bytes(self, tmp_path):
        x = (images()*255).byte()
        a = build(tmp_path/"a", x)
        b = build(tmp_path/"b", x.float()/255)
        assert torch.equal(a.read([1,2]).values, b.read([1,2]).values)


    def test_ids_of_items(self, tmp_path):
        "Loaders that leave some out, sort, or repeat: an answer belongs to its item"
        x = images(30)
        items = [(o, torch.tensor(i % 10)) for i,o in enumerate(x)]
        order = [*range(29, -1, -1)]
        train = DataLoader(items, bs=4, get_idxs=lambda: order)
        dls = label_dls(DataLoaders(train, DataLoader(items, bs=4)))
        got = build(tmp_path/"s", dls).read([3, 17])
        assert torch.equal(got.values, build(tmp_path/"t", x).read([3, 17]).values)

    def test_ids_with_gaps_in_any_order(self, tmp_path):
        "The labeled samples of a data set keep the numbers that they have among all of them"
        x = images(60)
        y = torch.where(torch.arange(60) % 3 == 1, torch.arange(60) % 10, -1)
        dls = from_arrays(x, y, x[:9], torch.arange(9), vocab=range(10))
        store = build(tmp_path/"s", dls, dtype="float32", chunk=7)
        assert sorted(store.ids.tolist()) == [*range(1, 60, 3)]
        ids = torch.tensor([58, 1, 31, 4])
        got = store.read(ids, torch.tensor([2, 0, 1, 2]))
        with torch.no_grad(): want = model().eval()(store.views.make(x[ids], got.params))
        torch.testing.assert_close(got.values, want.softmax(1).topk(4).values)
        with pytest.raises(LabelKitError, match="sample 2 is not in the store"): store.read([1, 2])

    def test_several_inputs(self, tmp_path):
        items = [(torch.rand(3), torch.rand(2), torch.tensor(i % 2)) for i in range(6)]
        own = DataLoaders(DataLoader(items, bs=2, n_inp=2), DataLoader(items, bs=2, n_inp=2))
        with pytest.raises(LabelKitError, match="data has 2 inputs"):
            build(tmp_path/"s", label_dls(own), lambda x: x, views=None, n_views=1)

    def test_arrays_of_other_programs(self, tmp_path):
        "Precision is the teacher's business, not the store's"
        x = images(20)
        a = build(tmp_path/"a", x)
        for name, other in (("half", x.half()), ("double", x.double()), ("brain", x.bfloat16())):
            got = build(tmp_path/name, other).read(torch.arange(20)).values
            torch.testing.assert_close(got, a.read(torch.arange(20)).values, rtol=.02, atol=.02)


class TestRandomNumbers:
    def test_no_two_views_are_one(self, tmp_path):
        "Not of a sample, not of two samples, not of two chunks, not of two seeds"
        params = lambda store: torch.cat([store.read(range(120), v).params for v in range(3)])
        a = params(build(tmp_path/"a"))
        b = params(build(tmp_path/"b", seed=1))
        assert len(torch.cat([a, b]).unique(dim=0)) == 720

    def test_global_random_numbers_stay(self, tmp_path):
        net = model()
        state = torch.get_rng_state(),random.getstate()
        build(tmp_path/"s", teacher=net)
        assert torch.equal(torch.get_rng_state(), state[0]) and random.getstate() == state[1]


class TestTeachers:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_answers_of_any_precision(self, tmp_path, dtype):
        net = model().eval()
        store = build(tmp_path/"s", teacher=lambda x: net(x).to(dtype), dtype="float32")
        want = build(tmp_path/"t", teacher=lambda x: net(x), dtype="float32")
        ids = torch.arange(120)
        torch.testing.assert_close(
            store.read(ids).dense("zeros").max(1).values,
            want.read(ids).dense("zeros").max(1).values,
            rtol=.02,
            atol=.02,
        )

    def test_maps_of_half_precision(self, tmp_path):
        maps = lambda x: torch.cat([x, 1-x], 1).half()
        teacher = lambda x: maps(x).float().mean((2, 3))
        store = build(tmp_path/"s", None, teacher, None, n_views=1, k=2, maps=1, map_fn=maps)
        got = store.read([5], maps=True)
        want = maps(images()[[5]]).max(1)
        assert torch.equal(got.map_values[:, 0], want.values.float())
        assert torch.equal(got.map_classes[:, 0], want.indices)


class TestFormat:
    """What is on the disk: whoever reads stores of yesterday, or reads them with another program,
    finds these arrays"""
    def test_arrays(self, tmp_path):
        build(tmp_path/"s", images(50), k=4, n_views=3, chunk=32)
        meta = lambda name: json.loads((tmp_path/"s"/name/"zarr.json").read_text())
        found = {p.parent.name: meta(p.parent.name) for p in (tmp_path/"s").glob("*/zarr.json")}
        shapes = {k: (v["shape"], v["data_type"]) for k, v in found.items()}
        assert shapes == dict(
            values=([50, 3, 4], "float16"),
            classes=([50, 3, 4], "uint8"),
            params=([50, 3, 5], "float32"),
            sums=([50, 2], "float32"),
            ids=([50], "int64"),
            checks=([2, 4], "uint64"),
        )
        for name, v in found.items():
            assert [c["name"] for c in v["codecs"]] == ["bytes"], "compressed: cannot be mapped"
            rows = v["chunk_grid"]["configuration"]["chunk_shape"][0]
            assert rows == dict(ids=50, checks=1).get(name, 32)
        size = (tmp_path/"s/values/c/1/0/0").stat().st_size
        assert size == 32*3*4*2, "the last chunk is as long as the others"

    def test_description(self, tmp_path):
        build(tmp_path/"s", images(50))
        about = json.loads((tmp_path/"s/zarr.json").read_text())["attributes"]["labelkit"]
        want = dict(format=1, samples=50, shape=[1, 8, 8], classes=10, k=4, views=3)
        assert {k: about[k] for k in want} == want
        assert about["recipe"] == dict(
            name="CropViews", scale=[.3, 1.], ratio=[3/4, 4/3], flip=True, size=None
        )
        assert list(about["columns"]) == ["values", "classes", "sums", "params"]

    def test_by_hand(self, tmp_path):
        "A chunk of zeros: what it means does not depend on who wrote it"
        store = build(tmp_path/"s", images(50))
        for name, dtype in (("values", "<f2"), ("classes", "u1")):
            part = tmp_path/"s"/name/"c/0/0/0"
            a = bytearray(part.read_bytes())
            width = 2 if dtype == "<f2" else 1
            at = (7*3 + 2)*4*width  # sample 7, view 2
            a[at:at+width] = b"\x00\x38" if name == "values" else b"\x09"
            part.write_bytes(a)
        got = LabelStore(store.path).read([7], 2)
        assert got.values[0, 0] == .5 and got.classes[0, 0] == 9


class TestFolders:
    @pytest.mark.parametrize(
        "name", [".DS_Store", "._values", "Thumbs.db", "desktop.ini", ".nfs0001", "x.partial"]
    )
    def test_what_other_computers_leave_in_a_new_folder(self, tmp_path, name):
        (tmp_path/"s").mkdir()
        (tmp_path/"s"/name).touch()
        assert len(build(tmp_path/"s")) == 120
        (tmp_path/"s"/name).touch()
        assert len(build(tmp_path/"s")) == 120

    def test_a_finished_store_where_nothing_may_be_written(self):
        "Checked and returned, and read, by somebody who may not write there"
        script = textwrap.dedent("""
            import os, sys
            import pandas, torch, zarr, zarr.storage
            from stores import build, images
            from labelkit.storage.soft_labels import LabelStore
            if os.getuid() == 0: os.setuid(65534)
            assert not os.access(sys.argv[1], os.W_OK)
            a = LabelStore(sys.argv[1]).verify().read(torch.arange(120)).values
            b = build(sys.argv[1]).read(torch.arange(120)).values
            print(torch.equal(a, b))
            try: build(sys.argv[2])
            except ValueError as e: print("cannot be written" in str(e))""")
        with tempfile.TemporaryDirectory() as d:
            d = Path(d)
            d.chmod(0o755)
            build(d/"in/s")
            for p in sorted(d.rglob("*"), reverse=True): p.chmod(0o555 if p.is_dir() else 0o444)
            p = subprocess.run(
                [sys.executable, "-c", script, str(d/"in/s"), str(d/"in/new")],
                env=os.environ
                | dict(OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join(o for o in sys.path if o)),
                capture_output=True,
                text=True,
                cwd="/",
            )
            for p2 in d.rglob("*"):
                if p2.is_dir(): p2.chmod(0o755)
            assert p.stdout.split() == ["True", "True"], p.stderr


class TestResume:
    def test_a_break_anywhere(self, tmp_path):
        "A teacher that fails at its n-th question, for every n that matters"
        build(tmp_path/"whole")
        whole = content(tmp_path/"whole")
        for stop in (1, 2, 8, 13, 24):
            net = model()
            asked = [0]
            def fail(module, args):
                asked[0] += 1
                if asked[0] > stop: raise KeyboardInterrupt
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
                    build_store(folder/"killed", x, net, CropViews(scale=(.3, 1.)), n_views=3, k=4,
                                chunk=8, bs=4, progress=False)
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

    def test_killed_before_the_ids_were_written(self, tmp_path):
        import zarr
        build(tmp_path/"whole")
        shutil.copytree(tmp_path/"whole", tmp_path/"s")
        group = zarr.open_group(tmp_path/"s", mode="a")
        group["ids"][:] = -1
        group["checks"][2] = 0
        build(tmp_path/"s")
        assert content(tmp_path/"s") == content(tmp_path/"whole")

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
        ids=told,
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
            (dict(map_fn=lambda x: x), "map_fn has no effect without maps="),
        ],
        ids=told,
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
        with pytest.raises(LabelKitError, match="data"):
            build_store(tmp_path/"t", [1,2], model())
