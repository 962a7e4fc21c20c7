"""FerKD: the three regions by hand, FKD as a special case, errors"""
import pytest
import torch
from fastai.basics import Learner
from torch import nn

from labelkit.data.loaders import from_arrays
from labelkit.errors import LabelKitError
from labelkit.lesson.batch import look
from labelkit.models import small_cnn
from labelkit.relabel.ferkd import FerKD, HalfOfEach, calibrate_regions, crop_store
from labelkit.storage.builder import build_store


def test_regions_by_hand():
    soft = torch.tensor([[.5, .5], [.499, .501], [.05, .95], [.049, .951]])
    label = torch.tensor([[1., 0.]]).expand(4, -1)
    targets,weights,region = calibrate_regions(soft, label, .05, .5, .2)
    assert region.tolist() == [2, 1, 1, 0] and weights.tolist() == [1, 1, 1, 0]
    torch.testing.assert_close(targets[0], soft[0])
    torch.testing.assert_close(targets[1], torch.tensor([.9, .1]))
    torch.testing.assert_close(targets.sum(1), torch.ones(4))

def test_thresholds_of_zero_are_fkd():
    soft = torch.rand(5, 3).softmax(1)
    label = torch.eye(3)[[0, 1, 2, 0, 1]]
    targets,weights,region = calibrate_regions(soft, label, 0., 0.)
    assert torch.equal(targets, soft) and (weights == 1).all() and (region == 2).all()

def test_without_smoothing_it_is_the_label():
    soft = torch.rand(5, 3).softmax(1)
    label = torch.eye(3)[[0, 1, 2, 0, 1]]
    targets,weights,_ = calibrate_regions(soft, label, 0., 1., 0.)
    assert torch.equal(targets, label) and (weights == 1).all()

def test_distributions_as_labels():
    "A relabeled sample: the probability of the label is its expectation"
    soft = torch.tensor([[.6, .2, .2]])
    label = torch.tensor([[.5, .5, 0.]])
    targets,_,region = calibrate_regions(soft, label, 0., .5, .3)
    assert region.tolist() == [1]
    torch.testing.assert_close(targets, torch.tensor([[.45, .45, .1]]))

def test_no_sample():
    targets,weights,region = calibrate_regions(torch.zeros(0, 3), torch.zeros(0, 3))
    assert targets.shape == (0, 3) and len(weights) == len(region) == 0


def data(n=24, c=3, seed=0):
    x = torch.rand(2*n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    y = torch.arange(2*n) % c
    return from_arrays(x[:n], y[:n], x[n:], y[n:], bs=8, view_hints=dict(flip=False))

def learner(dls, cb):
    torch.manual_seed(0)
    return Learner(dls, small_cnn(dls, width=2), cbs=cb, loss_func=nn.CrossEntropyLoss())

@pytest.fixture
def store(tmp_path):
    torch.manual_seed(0)
    dls = data()
    return crop_store(tmp_path/"crops", dls, small_cnn(dls, width=4), n_views=4)

def test_hints_decide_about_mirrors(store):
    assert store.views.flip is False and store.n_views == 4

def test_soft_labels_alone(store):
    s = look(learner(data(), FerKD(store, high=0., low=0.))).record
    assert (s.weights == 1).all()
    torch.testing.assert_close(s.targets.sum(1), torch.ones(8))
    assert (s.targets.amax(1) < .95).all()

def test_all_left_out_is_a_loss_of_zero(store):
    cb = FerKD(store, low=1., high=1.)
    learn = learner(data(), cb)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert cb.regions.tolist() == [24, 0, 0]
    assert all(p.isfinite().all() for p in learn.model.parameters())
    assert learn.supervision.parts["labeled"] == [0.]

def test_regions_are_counted_by_epoch(store):
    cb = FerKD(store)
    learn = learner(data(), cb)
    with learn.no_bar(), learn.no_logging(): learn.fit(2)
    assert int(cb.regions.sum()) == 24

def test_what_a_batch_is_told(store):
    "The drawn crop, what the teacher said of it, and nothing of what is lost"
    class Kept(FerKD):
        name = "ferkd"
        def calibrate(self, soft, labels):
            seen.append((soft, labels))
            return super().calibrate(soft, labels)
    seen = []
    cb = Kept(store, high=.36, low=.32, smoothing=.6)
    b = look(learner(data(), cb))
    s = b.record
    soft,labels = seen[0]
    targets,weights,region = calibrate_regions(soft, labels, .32, .36, .6)
    assert len(set(region.tolist())) > 1
    assert torch.equal(s.targets, targets) and torch.equal(s.weights, weights)
    assert not torch.equal(s.x, b.given) and s.x.shape == b.given.shape

def test_each_sample_draws_its_own_crop(store):
    seen = []
    class Kept(FerKD):
        name = "ferkd"
        def before_forward(self, s):
            before = self.rng.get_state()
            super().before_forward(s)
            after = self.rng.get_state()
            self.rng.set_state(before)
            view = torch.randint(store.n_views, (len(s.ids),), generator=self.rng)
            self.rng.set_state(after)
            said = store.read(s.ids, view)
            assert torch.equal(s.x, store.views.make(self.learn.xb[0], said.params))
            seen.extend(view.tolist())
    learn = learner(data(), Kept(store))
    with learn.no_bar(), learn.no_logging(): learn.fit(2)
    assert set(seen) == {0, 1, 2, 3}

def test_half_of_each(store):
    s = look(learner(data(), HalfOfEach(store))).record
    assert (s.weights == 1).all() and (s.targets.gather(1, s.y[:, None]) >= .5).all()

def test_errors(store, tmp_path):
    with pytest.raises(LabelKitError, match="store is missing: make one with `crop_store"): FerKD()
    with pytest.raises(LabelKitError, match="low=0.6 is above"): FerKD(store, low=.6)
    with pytest.raises(LabelKitError, match="made for other data"):
        learner(data(seed=1), FerKD(store)).fit(1)
    dls = data()
    plain = build_store(tmp_path/"plain", dls, small_cnn(dls, width=2), progress=False)
    with pytest.raises(LabelKitError, match="has no views"): learner(dls, FerKD(plain)).fit(1)
    with pytest.raises(LabelKitError, match="knows 3 classes and the data 4"):
        learner(data(c=4), FerKD(store)).fit(1)


def test_the_mean_of_label_and_soft_label(store):
    cb = HalfOfEach(store)
    soft = torch.rand(4, 3).softmax(1)
    labels = torch.eye(3)[[0, 1, 2, 0]]
    targets,weights,_ = cb.calibrate(soft, labels)
    torch.testing.assert_close(targets, .5*soft + .5*labels)
    assert (weights == 1).all()
