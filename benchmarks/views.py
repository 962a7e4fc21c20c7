"""Weak and strong pairs a second: labelkit's batched views beside torchvision's per-image
transforms on PIL images.

Both sides do a random shift by 4 pixels with reflection, a flip, and for the strong view
RandAugment (2 operations, magnitude 9) besides; neither paints a box. The per-image side starts
from PIL images and ends in one float batch, as a data set of files does after decoding. One thread,
processor time, median over rounds that alternate.

    python benchmarks/views.py
"""
import argparse

import torch

from timing import alternate, save, table, versions
from labelkit.data.views import Strong, Weak


def pil_pipeline(x):
    "A function that makes weak and strong views of `x` image by image"
    from PIL import Image
    from torchvision import transforms as T
    images = [Image.fromarray(im) for im in (x*255).byte().permute(0,2,3,1).numpy()]
    shift = [
        T.RandomCrop(x.shape[-1], padding=x.shape[-1] // 8, padding_mode="reflect"),
        T.RandomHorizontalFlip(),
    ]
    weak = T.Compose([*shift, T.ToTensor()])
    strong = T.Compose([*shift, T.RandAugment(2, 9), T.ToTensor()])
    return lambda: (
        torch.stack([weak(im) for im in images]),
        torch.stack([strong(im) for im in images]),
    )


def batched(x):
    "A function that makes weak and strong views of the batch `x`"
    weak = Weak()
    strong = Strong(n=2, magnitude=9, cutout=0)
    g = torch.Generator().manual_seed(0)
    return lambda: (weak(x, g), strong(x, g))


def photos(n, size):
    "`n` crops of a photograph, as floats `[n, 3, size, size]`"
    from sklearn.datasets import load_sample_image
    im = torch.tensor(load_sample_image("china.jpg").copy()).permute(2,0,1).float()/255
    g = torch.Generator().manual_seed(0)
    side = size*2
    at = zip(
        torch.randint(im.shape[1] - side, (n,), generator=g).tolist(),
        torch.randint(im.shape[2] - side, (n,), generator=g).tolist(),
    )
    return torch.stack([im[:,t:t+side:2,l:l+side:2] for t,l in at])


def main(rounds=7, batches=(128, 256, 512), size=32):
    "Print the table and write `benchmarks/results/views.json`"
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = [["images", "labelkit pairs/s", "torchvision pairs/s", "ratio"]]
    result = []
    for b in batches:
        x = photos(b, size)
        t = alternate(dict(labelkit=batched(x), torchvision=pil_pipeline(x)), rounds)
        one = dict(
            shape=list(x.shape),
            labelkit=b / t["labelkit"],
            torchvision=b / t["torchvision"],
            ratio=t["torchvision"] / t["labelkit"],
        )
        rows.append(
            [
                f"{b}x3x{size}x{size}",
                f"{one['labelkit']:.0f}",
                f"{one['torchvision']:.0f}",
                f"{one['ratio']:.1f}",
            ]
        )
        result.append(one)
    print(table(rows))
    ratio = min(r["ratio"] for r in result)
    save(
        "views",
        dict(
            what="weak+strong pairs a second, one thread, processor time",
            rounds=rounds,
            target="ratio >= 4",
            ratio=ratio,
            rows=result,
            versions=versions("labelkit", "torch", "torchvision", "pillow"),
        ),
    )
    return ratio


if __name__ == "__main__":
    p = argparse.ArgumentParser(
        description="Weak and strong pairs a second: labelkit beside torchvision's per-image "
                    "transforms"
    )
    p.add_argument("--rounds", type=int, default=7)
    a = p.parse_args()
    raise SystemExit(0 if main(a.rounds) >= 4 else "ratio under 4")
