"""CutMix beside timm and torchvision: one box a batch, and one box a sample.

Each call gets images and class numbers and gives mixed images and soft targets over 100 classes, so the making of targets is counted on
every side. labelkit and torchvision leave their input as it was; timm's batch mode writes into it and so is spared a copy. timm pairs each sample
with the one at the mirrored place, torchvision with the next, labelkit with the one a random number of places further on. One thread, processor time, median over rounds that alternate.

    python benchmarks/mixing.py
"""
import argparse

import torch

from timing import alternate, save, table, versions
from labelkit.core.supervision import dense_targets
from labelkit.mix.base import blend, sample_lam, take_partner
from labelkit.mix.cutmix import CutMix

CLASSES = 100


def ours(x, y, per_sample):
    "The steps of `CutMix.before_forward`, with the one-hot targets that the supervision record starts from"
    mix = CutMix(per_sample=per_sample)
    mix._rng = torch.Generator().manual_seed(0)
    def f():
        lam, partner = sample_lam(1., len(x) if per_sample else 1, mix.rng), int(torch.randint(1, len(x), (1,), generator=mix.rng))
        mixed, share = mix.mix_inputs(x, partner, lam)
        t = dense_targets(y, CLASSES, "single")
        return mixed, blend(t, take_partner(t, partner), share)
    return f


def timm(x, y, mode):
    "timm's Mixup class, CutMix only"
    from timm.data import Mixup
    mix, x = Mixup(mixup_alpha=0., cutmix_alpha=1., mode=mode, label_smoothing=0., num_classes=CLASSES), x.clone()
    return lambda: mix(x, y)


def torchvision(x, y):
    "torchvision's CutMix, one box a batch"
    from torchvision.transforms import v2
    mix = v2.CutMix(num_classes=CLASSES)
    return lambda: mix(x, y)


def main(rounds=15, shapes=((128,3,32,32), (64,3,224,224))):
    "Print the table and write `benchmarks/results/mixing.json`"
    torch.set_num_threads(1); torch.manual_seed(0)
    rows, result = [["images", "box", "labelkit ms", "timm ms", "torchvision ms", "to timm", "to torchvision", "target"]], []
    for shape in shapes:
        x, y = torch.rand(shape), torch.randint(CLASSES, shape[:1])
        number = 100 if shape[-1] < 100 else 3
        for per in ("batch", "sample"):
            fns = dict(labelkit=ours(x, y, per == "sample"), timm=timm(x, y, "batch" if per == "batch" else "elem"))
            if per == "batch": fns["torchvision"] = torchvision(x, y)
            t = alternate(fns, rounds, number)
            ratios = {k:t["labelkit"]/t[k] for k in t if k != "labelkit"}
            # the target for one box a sample is set at the small size, where the peer's loop over samples shows
            target = 1. if per == "batch" else .3 if shape[-1] < 100 else None
            name = "x".join(map(str, shape))
            rows.append([name, per, *(f"{t[k]*1000:.3f}" if k in t else "" for k in ("labelkit","timm","torchvision")),
                         *(f"{ratios[k]:.2f}" if k in ratios else "" for k in ("timm","torchvision")), "" if target is None else target])
            result.append(dict(shape=shape, box=per, ms={k:v*1000 for k,v in t.items()}, ratio=ratios, target=target))
    print(table(rows))
    save("mixing", dict(what="CutMix, ms of processor time a batch, one thread; ratio = labelkit / peer", rounds=rounds, classes=CLASSES,
                        rows=result, versions=versions("labelkit", "torch", "torchvision", "timm")))
    return all(r["target"] is None or max(r["ratio"].values()) <= r["target"] for r in result)


if __name__ == "__main__":
    p = argparse.ArgumentParser(description="CutMix beside timm and torchvision")
    p.add_argument("--rounds", type=int, default=15)
    a = p.parse_args()
    raise SystemExit(0 if main(a.rounds) else "a ratio is above its target")
