"Pictures of every mode, type and container as a person should see them"
import numpy as np, pandas as pd, pytest, torch
from PIL import Image

from labelkit.errors import LabelKitError
from labelkit.explore.pictures import as_picture, thumbnails

RAMP = np.linspace(0, 1, 48).repeat(20).reshape(48, 20).T.copy()  # [20, 48], dark to bright
BYTES = (RAMP*255).round().astype(np.uint8)
GREY = Image.fromarray(BYTES)
COLOURS = np.stack([RAMP, RAMP[:, ::-1], np.full_like(RAMP, .5)], -1)
RGB = Image.fromarray((COLOURS*255).round().astype(np.uint8))


def near(im, want, eps=.02):
    x = as_picture(im)
    want = torch.as_tensor(np.ascontiguousarray(want)).float()
    want = want[None] if want.ndim == 2 else want.permute(2, 0, 1)
    assert x.dtype == torch.float32 and x.min() >= 0 and x.max() <= 1
    torch.testing.assert_close(x, want.expand_as(x), rtol=0, atol=eps)


class TestModes:
    @pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "PA", "HSV"])
    def test_grey(self, mode):
        im = GREY.convert("LA").convert("PA") if mode == "PA" else GREY
        near(im if mode == "PA" else _to(GREY, mode), RAMP, .03)

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
    def test_colours(self, mode): near(_to(RGB, mode), COLOURS, .03)

    def test_palette(self):
        flat = RGB.quantize(8)
        near(flat, np.asarray(flat.convert("RGB"))/255, 1e-6)

    def test_black_and_white(self): near(GREY.convert("1", dither=0), (BYTES > 127)*1., 0)

    @pytest.mark.parametrize(
        "im",
        [
            Image.fromarray((RAMP*65535).astype(np.uint16)),
            Image.fromarray((RAMP*4095).astype(np.uint16)),
            Image.fromarray((RAMP*1e6).astype(np.int32)),
            Image.fromarray((RAMP*7-3).astype(np.float32)),
            Image.fromarray(RAMP.astype(np.float32)),
        ],
        ids=lambda o: o.mode,
    )
    def test_numbers_of_more_than_8_bits(self, im): near(im, RAMP)

    @pytest.mark.parametrize("name", ["x.png", "x.tif", "x.jpg", "x.webp", "x.gif", "x.bmp"])
    def test_files(self, tmp_path, name):
        GREY.save(tmp_path/name)
        near(tmp_path/name, RAMP, .04)
        near(f"file://{tmp_path}/{name}", RAMP, .04)

    @pytest.mark.parametrize("name", ["x.png", "x.tif", "big-endian.tif"])
    def test_16_bit_files(self, tmp_path, name):
        a = (RAMP*65535).astype(np.uint16)
        im = Image.fromarray(a)
        if name.startswith("big"):
            im = Image.frombytes("I;16B", im.size, a.astype(">u2").tobytes())
        im.save(tmp_path/name)
        near(tmp_path/name, RAMP)
        assert len(np.unique(thumbnails([tmp_path/name], [0]))) > 40

    def test_transparency_is_over_white(self):
        a = np.zeros((4, 4, 4), np.uint8)
        a[:2] = [255, 0, 0, 255]
        a[3, :, 3] = 128
        want = np.ones((4, 4, 3))
        want[:2] = [1, 0, 0]
        want[3] = .5
        near(Image.fromarray(a), want, .01)
        near(a, want, .01)
        near(torch.tensor(a), want, .01)
        near(a/255, want, .01)

    def test_a_transparent_colour_of_a_palette(self, tmp_path):
        im = Image.new("P", (2, 1))
        im.putpalette([255, 0, 0, 0, 0, 255])
        im.putdata([0, 1])
        im.save(tmp_path/"x.png", transparency=1)
        near(tmp_path/"x.png", np.array([[[1., 0, 0], [1, 1, 1]]]), 0)

    def test_upright(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6  # the camera was turned
        RGB.rotate(90, expand=True).save(tmp_path/"x.png", exif=exif)
        near(tmp_path/"x.png", COLOURS)

    def test_an_opened_image_stays_as_it_is(self, tmp_path):
        RGB.resize((3000, 2000)).save(tmp_path/"x.jpg")
        im = Image.open(tmp_path/"x.jpg")
        small = thumbnails([im, tmp_path/"x.jpg"], [0, 1])
        assert im.size == (3000, 2000) and small.shape == (2, 3, 64, 64)
        assert np.abs(small[0].astype(int)-small[1]).max() < 6


def _to(im, mode):
    return im.convert("RGB").convert(mode) if mode in ("CMYK", "YCbCr", "HSV") else im.convert(mode)


class TestArrays:
    @pytest.mark.parametrize("lib", ["numpy", "torch"])
    @pytest.mark.parametrize("layout", ["HW", "1HW", "HW1", "3HW", "HW3"])
    def test_layouts(self, lib, layout):
        a = COLOURS if "3" in layout else RAMP
        made = {
            "HW": a,
            "1HW": a[None],
            "HW1": a[..., None],
            "3HW": np.moveaxis(a, -1, 0),
            "HW3": a,
        }[layout]
        near(torch.tensor(made.copy()) if lib == "torch" else made, a, 1e-6)

    @pytest.mark.parametrize(
        "a",
        [
            BYTES,
            (RAMP*65535).astype(np.uint16),
            (RAMP*65535).astype(">u2"),
            (RAMP*255).astype(np.int64),
            RAMP.astype(np.float16),
            RAMP*9 - 4,
            np.asfortranarray(RAMP),
            RAMP[::-1, ::-1][::-1, ::-1],
            torch.tensor(RAMP).bfloat16(),
            torch.tensor((RAMP*65535).astype(np.uint16)),
            torch.tensor(RAMP).requires_grad_(),
        ],
        ids=lambda a: str(a.dtype),
    )
    def test_types(self, a): near(a, RAMP)

    def test_bools(self): near(RAMP > .5, (RAMP > .5)*1., 0)

    def test_what_is_no_number(self):
        a = RAMP.copy()
        a[3, 5] = np.nan
        a[4, 6] = np.inf
        x = as_picture(a)
        assert x[0, 3, 5] == 0 and x[0, 4, 6] == 0 and x[0, 0, -1] == 1
        assert as_picture(np.full((2, 2), np.nan)).tolist() == [[[0., 0.], [0., 0.]]]
        assert as_picture(np.full((2, 2), 700)).max() == 0

    @pytest.mark.parametrize(
        "a",
        [
            np.zeros(5),
            np.zeros((2, 5, 5)),
            np.zeros((7, 5, 5)),
            np.zeros((1, 3, 4, 4)),
            np.zeros((0, 4)),
            np.zeros((4, 4), complex),
            np.array([["a"]]),
            None,
            dict(image=1),
        ],
        ids=str,
    )
    def test_no_picture(self, a):
        with pytest.raises(LabelKitError, match="picture"): as_picture(a)


class TestThumbnails:
    def test_arrays_keep_their_sides(self):
        x = torch.rand(4, 3, 100, 50)
        assert thumbnails(x, [0, 2]).shape == (2, 3, 64, 32)
        assert thumbnails(x.numpy(), [1]).dtype == np.uint8
        small = (x[..., :8, :8]*255).byte()
        assert (thumbnails(small, [3]) == small[3:].numpy()).all()
        last = small.permute(0, 2, 3, 1).numpy()
        assert (thumbnails(last, [3, 0]) == small[[3, 0]].numpy()).all()
        assert thumbnails(x[:, 0], [0]).shape == (1, 1, 64, 32)

    def test_items_of_other_programs(self, tmp_path):
        "Arrays that are on a disk, and read one by one"
        import zarr
        a = (np.random.rand(5, 1, 8, 8)*255).astype(np.uint8)
        z = zarr.create_array(str(tmp_path/"z"), shape=a.shape, dtype=a.dtype)
        z[:] = a
        m = np.memmap(tmp_path/"m", a.dtype, "w+", shape=a.shape)
        m[:] = a
        for images in (z, m): assert (thumbnails(images, [4, 1]) == a[[4, 1]]).all()

    def test_lists_become_squares(self):
        pil = [(Image.new("RGB", (30, 10), (255, 0, 0)), 0), (Image.new("L", (10, 200), 128), 1)]
        t = thumbnails(pil, [0, 1])
        assert t.shape == (2, 3, 64, 64)
        assert t[0, :, 32, 32].tolist() == [255, 0, 0] and t[0, :, 0, 0].tolist() == [128]*3
        assert t[1, :, 32, 32].tolist() == [128]*3
        mixed = [RGB, BYTES, torch.rand(1, 9, 9), RAMP > .5]
        assert thumbnails(mixed, range(4)).shape == (4, 3, 64, 64)

    def test_what_cannot_be_read(self, tmp_path):
        GREY.save(tmp_path/"a.png")
        raw = (tmp_path/"a.png").read_bytes()
        (tmp_path/"half.png").write_bytes(raw[:len(raw)//2])
        files = [tmp_path/"half.png", tmp_path/"none.png", tmp_path/"a.png"]
        got = thumbnails(files, [0, 1, 2])
        assert (got[0] == got[1]).all() and not (got[0] == got[2]).all()
        assert got[0, 0, 10, 10] > got[0, 0, 10, 30], "not crossed"
        with pytest.raises(LabelKitError, match="data gives sample 0 no picture that can be shown"):
            thumbnails(files, [0, 1])
        assert (thumbnails(files, [0, 1], some=False) == got[:2]).all()
        with pytest.raises(LabelKitError, match="data has 3 pictures, and sample 3"):
            thumbnails(files, [3])

    def test_columns(self, tmp_path):
        GREY.save(tmp_path/"a.png")
        column = pd.Series([str(tmp_path/"a.png")]*2, index=[7, 3])
        assert thumbnails(column, [1]).shape == (1, 3, 64, 64)

    def test_urls(self, tmp_path):
        import fsspec
        GREY.save(tmp_path/"a.png")
        url = f"memory://{tmp_path.name}/a.png"
        with fsspec.open(url, "wb") as f: f.write((tmp_path/"a.png").read_bytes())
        assert (thumbnails([url], [0]) == thumbnails([tmp_path/"a.png"], [0])).all()
