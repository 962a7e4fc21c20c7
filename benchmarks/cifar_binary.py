"""CIFAR-10 from sheets of 100x100 tiles to its makers' binary version, which `cifar10` reads.

The folder that LABELKIT_DATA names has `cifar10/` with `train_0.webp` … `train_4.webp`, `test.webp`
and `labels.npz`, as in `human_noise.py`. What is written is the public format of
https://www.cs.toronto.edu/~kriz/cifar.html, 180 MB: `cifar10(root=OUT, size=16, n=2000)`.

    LABELKIT_DATA=… python benchmarks/cifar_binary.py OUT
"""
import argparse
import os
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = "airplane automobile bird cat deer dog frog horse ship truck".split()


def images(path):
    "The 10,000 images of a sheet, each as planes of red, green and blue, [10000, 3072]"
    sheet = np.asarray(Image.open(path)).reshape(100, 32, 100, 32, 3)
    return sheet.transpose(0, 2, 4, 1, 3).reshape(10000, 3072)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("out", help="folder to write cifar-10-batches-bin in")
    p.add_argument("--data", default=os.environ.get("LABELKIT_DATA"))
    a = p.parse_args()
    if not a.data: raise SystemExit("set LABELKIT_DATA, or pass --data, the folder with cifar10/")
    source = Path(a.data)/"cifar10"
    out = Path(a.out)/"cifar-10-batches-bin"
    out.mkdir(parents=True, exist_ok=True)
    labels = np.load(source/"labels.npz")
    y = labels["y_train"].astype(np.uint8).reshape(5, 10000, 1)
    parts = {f"train_{i}.webp": (f"data_batch_{i+1}.bin", y[i]) for i in range(5)}
    parts["test.webp"] = ("test_batch.bin", labels["y_test"].astype(np.uint8)[:, None])
    for sheet,(name,y_part) in parts.items():
        np.concatenate([y_part, images(source/sheet)], 1).tofile(out/name)
    (out/"batches.meta.txt").write_text("\n".join(NAMES) + "\n")


if __name__ == "__main__": main()
