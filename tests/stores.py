"Small stores for tests"
from pathlib import Path

import torch

from labelkit.models import small_cnn
from labelkit.storage.builder import build_store
from labelkit.storage.stored_views import CropViews

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
