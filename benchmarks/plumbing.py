"""What the supervision costs: a bare fastai step beside the same step with the plumbing and no
technique, and with one that edits nothing.

One process, one thread, process time, the median of alternating rounds. Prints a table and writes
benchmarks/results/plumbing.json.
"""
import torch

torch.set_num_threads(1)
from fastai.basics import Callback, Learner, set_seed
from fastai.callback.all import *
from timing import alternate, save, table, versions

from labelkit.data.loaders import from_arrays

from labelkit.data.sets import digits
from labelkit.models import small_cnn, wide_resnet
from labelkit.core.supervision import LabelCallback, SupervisionCallback


class Nothing(LabelCallback):
    "Edits nothing"


class Stop(Callback):
    "End the epoch after `n` batches"
    def __init__(self, n): self.n = n
    def after_batch(self):
        if self.training and self.iter+1 >= self.n: raise CancelTrainException()
    def before_validate(self): raise CancelValidException()


def runner(make_dls, make_model, cbs, steps):
    set_seed(0)
    dls = make_dls()
    learn = Learner(dls, make_model(dls), cbs=cbs)

    def run():
        with learn.no_bar(), learn.no_logging(): learn.fit(1, cbs=Stop(steps))
    return run


def images():
    "CIFAR's shape; the values do not matter for the time"
    g = torch.Generator().manual_seed(0)
    x = torch.rand(512,3,32,32, generator=g)
    y = torch.randint(0, 10, (512,), generator=g)
    return from_arrays(x, y, x[:64], y[:64], bs=32, vocab=range(10))


def main():
    out = []
    for name, make_dls, make_model, steps, rounds in (
        ("small CNN, digits, batch 256", lambda: digits(bs=256, drop_last=True), small_cnn, 4, 31),
        ("WideResNet-28-2, 3×32×32, batch 32", images, wide_resnet, 2, 7),
    ):
        t = alternate(
            {
                "bare": runner(make_dls, make_model, [], steps),
                "plumbing": runner(make_dls, make_model, [SupervisionCallback()], steps),
                "technique that edits nothing": runner(make_dls, make_model, [Nothing()], steps),
            },
            rounds=rounds,
        )
        out += [dict(step=name, case=k, ms=1000*v/steps, ratio=v/t["bare"]) for k,v in t.items()]
    return out


if __name__ == "__main__":
    result = main()
    print(
        table(
            [("step", "case", "ms", "ratio to bare")]
            + [(o["step"], o["case"], f"{o['ms']:.2f}", f"{o['ratio']:.3f}") for o in result]
        )
    )
    save("plumbing", dict(rows=result, versions=versions("torch", "fastai")))
