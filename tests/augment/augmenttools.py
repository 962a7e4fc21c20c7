"What the tests of augmentation share"
import json

import torch

from places import REFERENCES


def published(name):
    "An entry of the official codes' numbers"
    found = json.loads((REFERENCES/"augment.json").read_text())
    return next(o for o in found if o["name"] == name)


def close(a, b, tolerance=1e-5):
    torch.testing.assert_close(
        torch.as_tensor(a, dtype=torch.float), torch.as_tensor(b, dtype=torch.float),
        atol=tolerance, rtol=0,
    )
