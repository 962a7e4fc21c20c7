"Features in two dimensions: the projection, the neighbours, what a recorder keeps, what is refused"
import numpy as np
import pytest
import torch
from fastai.basics import Learner, set_seed
from torch import tensor

from contract import fit, learner, same, weights
from labelkit.errors import LabelKitError
from labelkit.explore.embedding_explorer import (
    EmbeddingExplorer,
    EmbeddingRecorder,
    as_groups,
    nearest_samples,
    one_projection,
)
from labelkit.represent.simclr import SimCLR

NASTY = "<img src=x onerror='window.hacked=1'>"


class TestProjection:
    def test_is_the_same_for_all_epochs(self):
        f = torch.randn(3, 20, 6)
        places,share,project = one_projection(f)
        torch.testing.assert_close(project(f), places)
        apart = lambda a: a[:, 1:] - a[:, :-1]
        g = torch.cat([f[:2], f[:1] + 5])  # the first epoch again, somewhere else
        places,_,_ = one_projection(g)
        torch.testing.assert_close(apart(places)[0], apart(places)[2], atol=1e-4, rtol=1e-4)
        assert share.sum() <= 1 + 1e-5 and (share.diff() <= 1e-6).all()
        torch.testing.assert_close(places.mean(1), torch.zeros(3, 4), atol=1e-5, rtol=0)

    def test_directions_by_hand(self):
        "Along (−3, 1) and across it: the largest entry points to the right, whatever was drawn"
        t = tensor([-2., -1., 0., 1., 2.])
        s = tensor([.1, -.2, .2, -.2, .1])
        f = t[:, None]*tensor([-3., 1.]) + s[:, None]*tensor([1., 3.])
        places,share,project = one_projection(f[None])
        step = project(f[None] + tensor([1., 0.])) - places
        assert step[0, 0, 0] == pytest.approx(3/10**.5, abs=1e-4)
        spread = tensor([float((t**2).sum()), float((s**2).sum())])
        torch.testing.assert_close(share[:2], spread/spread.sum(), atol=1e-4, rtol=0)
        assert torch.equal(places, one_projection(f[None])[0])

    def test_few_dimensions(self):
        places,share,_ = one_projection(torch.randn(2, 9, 1))
        assert places.shape == (2, 9, 4) and (places[..., 1:] == 0).all() and share[0] == 1

    def test_all_the_same(self):
        assert one_projection(torch.ones(2, 5, 3))[0].isfinite().all()


class TestGroups:
    def test_words_numbers_and_truth(self):
        at,words = as_groups(tensor([2, 0, -1]), 2)
        assert words == ["none", "0", "2"] and at.tolist() == [[2, 1, 0]]*2
        assert as_groups(tensor([True, False]), 1)[1] == ["no", "yes"]
        at,words = as_groups(np.array([["b", "a"], ["a", "a"]]), 2)
        assert at.tolist() == [[1, 0], [0, 0]] and words == ["a", "b"]

    def test_too_many(self):
        with pytest.raises(LabelKitError, match="61 groups"): as_groups(torch.arange(61), 1)


def test_neighbours():
    f = tensor([[1., 0.], [2., .1], [0., 1.], [.1, 3.]])
    assert nearest_samples(f, 1)[:, 0].tolist() == [1, 0, 3, 2]
    assert nearest_samples(f, 9).shape == (4, 3)
    long = tensor([[1., 0.], [1., .2], [50., 50.]])  # length says nothing
    assert nearest_samples(long, 1)[:, 0].tolist() == [1, 0, 1]


def explorer(**kwargs):
    g = torch.Generator().manual_seed(0)
    f = torch.randn(3, 12, 5, generator=g)
    given = dict(colours={"class": ["a", NASTY, "c"]*4, "half": torch.arange(12) < 6})
    return EmbeddingExplorer(f, **given | kwargs)


class TestExplorer:
    def test_states(self):
        e = explorer(pictures=torch.rand(12, 1, 8, 8), ids=range(100, 112))
        assert e.state["epoch"] == 2 and e.axes["colour"] == ["class", "half"]
        assert e.axes["group"][0] == "every group" and "half: yes" in e.axes["group"]
        assert e.readout().startswith("Epoch 2: sample 100, class a; ")
        near = nearest_samples(e.features[2])
        kind = torch.arange(12) % 3
        share = (kind[near] == kind[:, None]).float().mean()
        torch.testing.assert_close(e.agree[0, 2], share)
        e.select(epoch=0, colour="half")
        assert e.readout().startswith("Epoch 0: sample 100, half yes; ")
        assert e.plot().axes

    def test_marks(self):
        e = explorer(marks=torch.randn(3, 3, 5), mark="mean of")
        assert e.data["markNames"][0] == f"mean of {NASTY}"
        assert e.arrays["marks"]["shape"] == [3, 3, 4]

    def test_refused(self):
        f = torch.randn(2, 8, 3)
        y = dict(a=range(8))
        for said,make in {
            "has shape": lambda: EmbeddingExplorer(f[0], y),
            "NaN or infinite": lambda: EmbeddingExplorer(f*torch.inf, y),
            "different shapes": lambda: EmbeddingExplorer([f[0], f[0, :4]], y),
            "colours is empty": lambda: EmbeddingExplorer(f, {}),
            "has 7 values for 8": lambda: EmbeddingExplorer(f, dict(a=range(7))),
            "texts has 2 entries": lambda: EmbeddingExplorer(f, y, texts=["a", "b"]),
            "300 samples": lambda: EmbeddingExplorer(torch.randn(1, 300, 3), y),
        }.items():
            with pytest.raises(LabelKitError, match=said): make()


class TestRecorder:
    def test_what_is_kept(self):
        r = EmbeddingRecorder(n=20, every=2, columns=dict(odd=lambda learn, ids: ids % 2 == 1))
        learn = fit(learner([r]), 3)
        shape = (20, learn.model.n_features)
        assert r.epochs == [0, 2, 3] and [tuple(o.shape) for o in r.embeddings] == [shape]*3
        c = r.colours()
        assert list(c) == ["class", "predicted", "odd"] and c["odd"].shape == (3, 20)
        e = r.explore()
        assert e.axes["epoch"] == [0, 2, 3] and e.images.shape == (20, 1, 8, 8)

    def test_training_is_as_without_it(self):
        a = fit(learner([SimCLR()]), 2)
        b = fit(learner([SimCLR(), EmbeddingRecorder(n=10)]), 2)
        assert same(weights(a), weights(b))

    def test_predictions_afterwards_leave_it(self):
        learn = fit(learner([r := EmbeddingRecorder(n=10)]), 2)
        with learn.no_bar(): learn.get_preds()
        assert r.epochs == [0, 1, 2]

    def test_unlabeled_samples(self):
        learn = learner()
        r = EmbeddingRecorder(n=10, of=learn.dls.unlabeled)
        learn.add_cb(r)
        fit(learn)
        truth = learn.dls.truth[r.ids]
        assert r.colours()["class"].tolist() == [str(int(o)) for o in truth]

    def test_of_a_technique(self):
        fit(learner([cb := SimCLR()]))
        assert cb.explore().axes["epoch"] == [0]
        with pytest.raises(LabelKitError, match="belongs to no learner"):
            EmbeddingExplorer.from_technique(SimCLR())
        with pytest.raises(LabelKitError, match="kept nothing yet"): EmbeddingRecorder().explore()

    def test_no_pictures(self):
        set_seed(0)
        from labelkit.data.loaders import from_arrays
        from labelkit.models import mlp
        x = torch.randn(40, 4)
        y = (x[:, 0] > 0).long()
        dls = from_arrays(x, y, x, y, bs=8)
        learn = Learner(dls, mlp(dls), cbs=EmbeddingRecorder(n=10))
        fit(learn)
        e = learn.embedding_recorder.explore(texts=list("abcdefghij"))
        assert e.images is None and e.data["texts"][0] == "a"


def test_sizes():
    e = EmbeddingExplorer(
        torch.randn(12, 200, 64), {"class": torch.arange(200) % 10},
        pictures=torch.rand(200, 1, 28, 28), size=14,
    )
    assert e.saved_size < e.max_saved
