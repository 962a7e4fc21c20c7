"What is kept of votes, and of answers that are nobody's"
import torch
from torch import tensor

from labelkit.relabel.voted import Voted


def test_kept():
    cb = Voted()
    probs = tensor([[.5, .5], [0., 1.]])
    cb.keep_votes(tensor([[0, 1], [1, -1]]), ["a", 7], probs)
    assert cb.voted.tolist() == [[0, 1], [1, -1]] and cb.lf_names == ["a", "7"]
    assert cb.weak_label is probs
    cb.keep_votes(probs, [], probs)
    assert cb.voted.shape == (2, 0) and cb.voted.dtype == torch.long
