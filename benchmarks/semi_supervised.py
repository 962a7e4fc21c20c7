"""A step of FixMatch end to end, beside semilearn's where it is installed and beside a plain loop
over PIL images; and what the bookkeeping of FlexMatch and the banks of SimMatchV2 cost in their
steps.

64 labeled and 448 unlabeled images of 32×32×3 and small_cnn (three layers, 32 or 16 channels in the
first), from bytes in memory to the step of the optimiser. One process, one thread, processor time,
the median of rounds that alternate. CIFAR-10 from the folder that LABELKIT_DATA names, else random
bytes, which the result says.

    python benchmarks/semi_supervised.py
"""
import argparse
import json
import os
import sys
import tempfile
import types
from importlib.machinery import ModuleSpec
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np
import torch

torch.set_num_threads(1)
from fastai.basics import SGD, Callback, Learner, set_seed
from fastai.callback.all import *
from torch.nn import functional as F
from timing import RESULTS, alternate, save, table, versions

from labelkit.data.loaders import from_arrays
from labelkit.models import small_cnn
from labelkit.pseudo.base import above_threshold
from labelkit.pseudo.fixmatch import FixMatch
from labelkit.pseudo.flexmatch import FlexMatch
from labelkit.pseudo.simmatchv2 import (
    Bank,
    SimMatchV2,
    edge_edge_loss,
    edges,
    node_edge_loss,
    propagated_labels,
)

B = 64
U = 448
C = 10


def images(n=10_000):
    "`n` images as bytes [n, 3, 32, 32], their classes, and where they are from"
    sheet = (
        Path(
            os.environ.get("LABELKIT_DATA")
            or Path(__file__).resolve().parents[2] / "shared" / "data"
        )
        / "cifar10"
    )
    if not (sheet/"train_0.webp").exists():
        g = torch.Generator().manual_seed(0)
        return (
            torch.randint(256, (n, 3, 32, 32), generator=g).byte(),
            torch.randint(C, (n,), generator=g),
            "random bytes",
        )
    from PIL import Image

    x = (
        np.asarray(Image.open(sheet / "train_0.webp"))
        .reshape(100, 32, 100, 32, 3)
        .transpose(0, 2, 4, 1, 3)
        .reshape(-1, 3, 32, 32)[:n]
    )
    return (
        torch.tensor(x),
        torch.tensor(np.load(sheet / "labels.npz")["y_train"][:n]).long(),
        "CIFAR-10",
    )


class Stop(Callback):
    "End the epoch after `n` batches"
    def __init__(self, n): self.n = n
    def after_batch(self):
        if self.training and self.iter+1 >= self.n: raise CancelTrainException()
    def before_validate(self): raise CancelValidException()


def net(width): return small_cnn(c=C, c_in=3, width=width)


def ours(cb, x, y, steps, width, labeled=4000):
    "A function that makes `steps` steps with labelkit"
    set_seed(0)
    dls = from_arrays(x, y, x[:64], y[:64], labeled=labeled, bs=B, ratio=U//B)
    learn = Learner(dls, net(width), cbs=cb, opt_func=SGD, lr=.03)

    def run():
        with learn.no_bar(), learn.no_logging(): learn.fit(1, cbs=Stop(steps))
    return run


def plain_loop(x, y, steps, width):
    """The same step as a plain loop: PIL images, torchvision's transforms one by one, one forward
    pass"""
    from PIL import Image
    from torchvision import transforms as T
    pil = [Image.fromarray(o) for o in x.permute(0,2,3,1).numpy()]
    crop = [T.RandomHorizontalFlip(), T.RandomCrop(32, padding=4, padding_mode="reflect")]
    weak = T.Compose([*crop, T.ToTensor()])
    strong = T.Compose([*crop, T.RandAugment(2, 10), T.ToTensor()])
    torch.manual_seed(0)
    model = net(width)
    opt = torch.optim.SGD(model.parameters(), .03)

    def run():
        for _ in range(steps):
            labeled = torch.randint(4000, (B,)).tolist()
            unlabeled = (4000+torch.randint(len(pil)-4000, (U,))).tolist()
            batch = (
                [weak(pil[i]) for i in labeled]
                + [weak(pil[i]) for i in unlabeled]
                + [strong(pil[i]) for i in unlabeled]
            )
            z,zw,zs = model(torch.stack(batch)).split([B, U, U])
            mask = above_threshold(p := zw.detach().softmax(1), .95)
            loss = (
                F.cross_entropy(z, y[labeled])
                + (F.cross_entropy(zs, p.argmax(1), reduction="none") * mask).mean()
            )
            opt.zero_grad()
            loss.backward()
            opt.step()
    return run


def semilearn_steps(x, y, steps, width):
    """semilearn's own FixMatch, data set, samplers and hooks, with the same net; raises what keeps
    it from running"""
    for name in ("torchaudio", "wandb", "aim"):  # for sound and for logging: imported, not used
        stub = types.ModuleType(name)
        stub.__spec__ = ModuleSpec(name, None)
        stub.Run = stub.Image = object
        sys.modules.setdefault(name, stub)
    from semilearn import get_config
    from semilearn.algorithms.fixmatch import FixMatch as Peer
    from semilearn.datasets.augmentation import RandAugment
    from semilearn.datasets.cv_datasets.datasetbase import BasicDataset
    from torchvision import transforms as T

    class Net(torch.nn.Module):
        def __init__(self, **kwargs):
            super().__init__()
            self.net = net(width)
        def forward(self, x):
            f = self.net.embed(self.net.normalize(x))
            return dict(logits=self.net.head(f), feat=f)
        def group_matcher(self, coarse=False, prefix=""):
            return dict(stem="^net.body", blocks="^net.head")
        def no_weight_decay(self): return []

    config = get_config(
        dict(
            algorithm="fixmatch",
            net="wrn_28_2",
            dataset="cifar10",
            num_classes=C,
            num_labels=4000,
            img_size=32,
            crop_ratio=0.875,
            batch_size=B,
            uratio=U // B,
            eval_batch_size=256,
            num_train_iter=1000,
            epoch=1,
            num_eval_iter=1000,
            num_log_iter=1000,
            optim="SGD",
            lr=0.03,
            layer_decay=1.0,
            momentum=0.9,
            weight_decay=5e-4,
            hard_label=True,
            T=0.5,
            p_cutoff=0.95,
            ulb_loss_ratio=1.0,
            ema_m=0.0,
            num_workers=0,
            gpu=None,
            distributed=False,
            world_size=1,
            rank=0,
            seed=0,
            use_cat=True,
            amp=False,
            save_dir=tempfile.gettempdir(),
            save_name="semilearn",
            resume=False,
            clip_grad=0,
            multiprocessing_distributed=False,
            train_sampler="RandomSampler",
        )
    )
    arrays = x.permute(0,2,3,1).numpy()
    crop = [T.RandomCrop(32, padding=4, padding_mode="reflect"), T.RandomHorizontalFlip()]
    end = [T.ToTensor(), T.Normalize([.4914,.4822,.4465], [.247,.2435,.2616])]
    weak = T.Compose([*crop, *end])
    strong = T.Compose([*crop, RandAugment(3, 5), *end])

    class OnCPU(Peer):
        def set_dataset(self):
            make = lambda a, b, ulb: BasicDataset(
                "fixmatch", arrays[a:b], y[a:b].tolist(), C, weak, ulb, strong
            )
            return dict(
                train_lb=make(0, 4000, False),
                train_ulb=make(4000, len(arrays), True),
                eval=make(0, 64, False),
                test=None,
            )

        def process_batch(self, **kwargs):  # theirs without the transfer to a GPU
            return {k: v for k,v in kwargs.items() if k in ("x_lb", "y_lb", "x_ulb_w", "x_ulb_s")}

    import logging
    alg = OnCPU(config, lambda **kwargs: Net(), None, logging.getLogger("semilearn"))
    alg.model.train()
    batches = zip(alg.loader_dict["train_lb"], alg.loader_dict["train_ulb"])

    def run():
        for _ in range(steps):
            lb,ulb = next(batches)
            alg.out_dict,alg.log_dict = alg.train_step(**alg.process_batch(**lb, **ulb))
            alg.hooks_dict["ParamUpdateHook"].after_train_step(alg)
    run()
    return run


def flex_books(n=50_000):
    "What FlexMatch does beside FixMatch in a step: status of the batch, counts, thresholds"
    cb = FlexMatch()
    cb.learn = types.SimpleNamespace(
        dls=types.SimpleNamespace(unlabeled=types.SimpleNamespace(dataset=range(n)), c=C)
    )
    cb.selected = torch.randint(-1, C, (n,))
    ids = torch.randperm(n)[:U]
    probs = torch.randn(U, C).mul(4).softmax(1)
    cb.class_threshold = torch.full((C,), .5)

    def run():
        label = probs.argmax(1)
        sure = above_threshold(probs, .95)
        cb.class_threshold[label]
        cb.selected[ids] = torch.where(sure, label, cb.selected[ids])
        cb._set_thresholds()
    return run


def sim_banks(labeled, size=4096, d=128, k=128, t=.1):
    """What SimMatchV2 does with its banks in a step: propagation, edges of both views with their
    losses and gradient, writing"""
    unit = lambda n: F.normalize(torch.randn(n, d))
    widths = dict(features=d, labels=C)
    ids = torch.arange(10_000)
    l = Bank(ids[:labeled], 10_000, widths)
    u = Bank(ids[labeled:], 10_000, widths, size)
    l.write(
        ids[:labeled],
        features=unit(labeled),
        labels=F.one_hot(torch.randint(C, (labeled,)), C).float(),
    )
    u.write(
        ids[labeled:],
        features=unit(10_000-labeled),
        labels=torch.rand(10_000-labeled, C).softmax(1),
    )
    weak = unit(U)
    strong = unit(U).requires_grad_()
    probs = torch.randn(U, C).softmax(1)
    x = unit(B)
    ids = torch.arange(B)
    uids = torch.randperm(10_000-labeled)[:U]+labeled
    labels = F.one_hot(torch.randint(C, (B,)), C).float()

    def run():
        with torch.no_grad():
            propagated_labels(weak, probs, l["features"], l["labels"], k, t, .1, l.known)
            e = edges(weak, u["features"], t, u.known)
        s = edges(strong, u["features"], t, u.known)
        torch.autograd.grad(edge_edge_loss(s, e) + node_edge_loss(s, u["labels"], probs), strong)
        l.write(ids, features=x, labels=labels)
        u.write(uids, features=weak, labels=probs)
    return run


def bookkeeping(rounds, step, width):
    "Milliseconds of the bookkeeping, and its share of the `step`s of techniques, by name"
    fns = {"FlexMatch": flex_books()}
    for n in (40, 4000): fns[f"SimMatchV2, {n} labels"] = sim_banks(n)
    return [
        dict(width=width, case=k, ms=1000*v, step_ms=step[k], share=1000*v/step[k])
        for k,v in alternate(fns, rounds).items()
    ]


def with_books(x, y, steps, width):
    "Steps of the techniques that keep books"
    return {
        "FlexMatch": ours(FlexMatch(), x, y, steps, width),
        **{
            f"SimMatchV2, {n} labels": ours(SimMatchV2(), x, y, steps, width, n)
            for n in (40, 4000)
        },
    }


def main(rounds=5, steps=2, widths=(32, 16), shares_only=False):
    x,y,source = images()
    ends = []
    shares = []
    missing = None
    for width in widths:
        torch.manual_seed(0)
        fns = with_books(x, y, steps, width)
        if not shares_only:
            fns = {
                "labelkit": ours(FixMatch(), x, y, steps, width),
                "plain loop over PIL images": plain_loop(x, y, steps, width),
            } | fns
            if missing is None:
                try: fns["semilearn"] = semilearn_steps(x, y, steps, width)
                except Exception as e: missing = f"did not run: {type(e).__name__}: {e}"[:300]
        step = {k: 1000*v/steps for k,v in alternate(fns, rounds).items()}
        ends += [
            dict(
                width=width,
                case=k,
                images_per_second=round(1000 * (B + U) / step[k]),
                ratio=step[k] / step["labelkit"],
            )
            for k in ("labelkit", "plain loop over PIL images", "semilearn")
            if k in step
        ]
        shares += bookkeeping(rounds, step, width)
    return ends,shares,dict(images=source, semilearn=missing or "ran in the same process")


if __name__ == "__main__":
    p = argparse.ArgumentParser(description="Steps of FixMatch, FlexMatch and SimMatchV2")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--shares", action="store_true",
                   help="time the bookkeeping alone, and leave the rest of the results as it is")
    a = p.parse_args()
    ends,shares,notes = main(a.rounds, shares_only=a.shares)
    print(notes)
    rows = [
        (o["case"], o["width"], o["images_per_second"], f"{o['ratio']:.2f}") for o in ends
    ]
    if ends: print(table([("FixMatch step", "width", "images/s", "times labelkit's")] + rows))
    print(
        table(
            [("bookkeeping", "width", "ms", "step ms", "share")]
            + [
                (
                    o["case"],
                    o["width"],
                    f"{o['ms']:.1f}",
                    f"{o['step_ms']:.0f}",
                    f"{o['share']:.1%}",
                )
                for o in shares
            ]
        )
    )
    books = dict(
        shares=shares,
        target="shares under 0.10 with small_cnn as it comes (32 channels)",
        shares_rounds=a.rounds,
        shares_versions=versions("labelkit", "torch", "fastai"),
    )
    steps = json.loads((RESULTS/"semi_supervised.json").read_text()) if a.shares else dict(
        what="64 labeled + 448 unlabeled 32×32×3 images, from bytes to the optimiser's step; "
             "one thread, processor time",
        rounds=a.rounds,
        fixmatch_step=ends,
        **notes,
        versions=versions("labelkit", "torch", "torchvision", "fastai", "semilearn", "pillow"),
    )
    save("semi_supervised", steps | books)
