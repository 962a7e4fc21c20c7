"""The label share is the image share, in every mix: images of one colour show by their brightness
how much of whom is in them."""
import pytest
import torch
from fastai.basics import Callback

from contract import MODEL, SLUGS, build, fit, learner, model
from labelkit.data.loaders import from_arrays
from labelkit.core.technique import registry
from labelkit.mix.base import Mix

# what SelfMix pastes is of the sample itself: there is no other share
MIXES = [s for s in SLUGS if issubclass(registry[s].cls, Mix) and s != "selfmix"]
# What makes a mix one of the images themselves, in every batch.
KNOBS = dict(
    manifold_mixup=dict(layers=["input"]),
    smmix=dict(switch=0.0),
    intra_cluster_mixup=dict(clusters=torch.zeros(64).long()),
)


def black_and_white(n=64, bs=16):
    "Class 0 is black, class 1 is white"
    y = torch.arange(n) % 2
    x = y.float()[:,None,None,None].expand(n,1,8,8).clone()
    return from_arrays(x, y, x[:16], y[:16], vocab=[str(i) for i in range(10)], bs=bs)


class Seen(Callback):
    "The record's inputs and targets as the model gets them"
    order = 5.5
    def __init__(self): self.batches = []
    def after_pred(self):
        s = self.learn.supervision.record
        if self.training: self.batches.append((s.x.detach(), s.targets.detach()))


@pytest.mark.parametrize("slug", MIXES)
def test_label_share_is_image_share(slug):
    cb = build(slug, active=True, **KNOBS.get(slug, {}))
    seen = Seen()
    learn = learner([cb, seen], dls=black_and_white())
    learn.model = MODEL.get(slug, model)(0)
    if slug == "manifold_mixup":  # its mixing happens in a hook on the model's input
        seen.inputs = []
        learn.model.normalize.register_forward_hook(
            lambda m, args, out: (
                seen.inputs.append(args[0].detach()) if learn.model.training else None
            )
        )
    fit(learn, 2)
    shares = []
    for i,(x,t) in enumerate(seen.batches):
        x = seen.inputs[i] if hasattr(seen, "inputs") else x
        torch.testing.assert_close(x.float().mean((1,2,3)), t[:,1], atol=2e-3, rtol=0)
        torch.testing.assert_close(t.sum(1), torch.ones(len(t)))
        shares.append(t[:,1])
    shares = torch.cat(shares)
    assert ((shares > .02) & (shares < .98)).any(), "nothing was mixed"
