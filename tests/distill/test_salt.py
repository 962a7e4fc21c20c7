"""SALT: the two parts of the training, the choice of examples by hand, and whom it lets count"""
import math
from functools import partial

import pytest, torch
from fastai.basics import Callback, Learner, accuracy, set_seed
from torch import tensor
from torch.nn import functional as F

from contract import data
from labelkit.core.supervision import LabelCallback
from labelkit.core.teachers import as_teacher
from labelkit.data.samples import Samples
from labelkit.data.sets import digits
from labelkit.distill.base import soft_kl
from labelkit.distill.salt import SALT, chosen_by, hard_but_learnable, steps_to_reach
from labelkit.errors import LabelKitError
from labelkit.models import small_cnn

net = partial(small_cnn, c=10, c_in=1, width=4)


class Keep(Callback):
    "What was shown of each step: the record, the loss, the share of the training before it"
    order = 6
    def before_fit(self): self.seen = []
    def after_loss(self):
        if self.training:
            pct = self.learn.pct_train
            loss = self.learn.loss.item()
            self.seen.append((self.learn.supervision.record, loss, pct))


def fit(*cbs, dls=None, epochs=2):
    set_seed(0)
    learn = Learner(dls or digits(bs=128), net(), cbs=list(cbs), metrics=accuracy)
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, 3e-3)
    return learn


@pytest.fixture
def small():
    torch.manual_seed(11)
    return net()


def test_scores_by_hand():
    z = tensor([[.8,.1,.1],[.5,.3,.2],[.3,.6,.1],[.2,.2,.6]]).log()
    y = tensor([0,0,0,-1])
    torch.testing.assert_close(
        hard_but_learnable(z, y), tensor([-math.log(.8), math.log(2), 0., 0.])
    )
    assert hard_but_learnable(z, y, 2)[2] == pytest.approx(-math.log(.3))
    assert hard_but_learnable(z, y, 9)[3] == 0


def test_a_sequence_has_the_median_of_its_known_places():
    p = tensor([[.9,.1],[.6,.4],[.7,.3],[.2,.8]])
    z = p.log()[None].repeat(2, 1, 1)
    y = tensor([[0,0,0,0],[0,-1,-1,1]])
    losses = -p.log()
    first = sorted([losses[0,0], losses[1,0], losses[2,0], tensor(0.)])[1]  # the fourth: not first
    second = min(losses[0,0], losses[3,1])
    torch.testing.assert_close(hard_but_learnable(z, y), torch.stack([first, second]))


def test_the_first_part_has_both_losses_and_the_rest_the_labels_alone(small):
    fit(SALT(small, share=.5, soft_weight=.6, hard_weight=.4), keep := Keep(), epochs=2)
    early = [o for o in keep.seen if o[2] < .5]
    late = [o for o in keep.seen if o[2] >= .5]
    assert early and late
    for s,loss,_ in early:
        kl = soft_kl(s.pred, as_teacher(small)(s.x)).mean()
        expected = .4*F.cross_entropy(s.pred, s.y) + .6*kl
        assert loss == pytest.approx(expected.item(), abs=1e-4)
    for s,loss,_ in late:
        assert not s.losses
        assert loss == pytest.approx(F.cross_entropy(s.pred, s.y).item(), abs=1e-5)


def test_to_the_end_and_not_at_all(small):
    fit(SALT(small, share=1.), keep := Keep())
    assert all("salt" in s.losses for s,_,_ in keep.seen)
    plain,off = (fit(*cbs).model.state_dict() for cbs in ([], [SALT(small, share=0.)]))
    assert all(torch.equal(plain[k], off[k]) for k in plain)


def test_the_chosen_have_the_best_scores_and_alone_count(small):
    cb = SALT(small, share=1., choose=.25)
    learn = fit(cb, keep := Keep(), epochs=1)
    samples = Samples(learn.dls)
    score = hard_but_learnable(as_teacher(small)(*samples.inputs()), samples.labels())
    assert cb.chosen.sum() == round(.25*len(samples))
    taken = cb.chosen[samples.ids] > 0
    assert score[taken].min() >= score[~taken].max()
    s,loss,_ = keep.seen[0]
    counts = cb.chosen[s.ids] > 0
    assert torch.equal(s.weights > 0, counts) and 0 < counts.sum() < len(s.ids)
    kl = soft_kl(s.pred, as_teacher(small)(s.x))[counts].mean()
    assert s.losses["salt"][0].item() == pytest.approx(kl.item(), abs=1e-5)


def test_the_chosen_are_labeled_and_among_as_many_first_choices(small):
    "By id, where the labeled samples are not the first"
    dls = digits(labeled=60, ratio=2)
    cb = SALT(small, share=1., choose=.1, top_k=4)
    fit(cb, dls=dls, epochs=1)
    samples = Samples(dls)
    score = hard_but_learnable(as_teacher(small)(*samples.inputs()), samples.labels(), 4)
    assert set(cb.chosen.nonzero().flatten().tolist()) == {
        int(samples.ids[i]) for i in score.topk(6).indices
    }
    assert (dls.given[cb.chosen > 0] >= 0).all()


def test_unlabeled_samples_always_count(small):
    cb = SALT(small, share=1., choose=.5, unlabeled=True)
    fit(cb, keep := Keep(), dls=digits(labeled=40, ratio=2), epochs=1)
    s = keep.seen[0][0]
    both = torch.cat([s.x, s.unlabeled])
    said = torch.cat([s.pred, s.outputs["salt.unlabeled"]])
    kl = soft_kl(said, as_teacher(small)(both))
    counts = torch.cat([s.weights, torch.ones(len(s.unlabeled))])
    expected = (counts*kl).sum()/counts.sum()
    assert s.losses["salt"][0].item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize(
    "curve,target,expected",
    [([.5,.7,.9], .8, 2.5), ([.5,.7,.9], .5, 1.), ([.9,.2], .45, .5), ([.5,.5,1.], .75, 2.5)],
)
def test_steps_to_reach(curve, target, expected):
    assert steps_to_reach(curve, target) == pytest.approx(expected)


def test_never_reached(): assert math.isnan(steps_to_reach([.1,.2], .3))


@pytest.mark.parametrize(
    "kwargs,message",
    [
        (dict(share=1.5), "share=1.5"), (dict(choose=0), "choose=0"), (dict(top_k=0), "top_k=0"),
        (dict(soft_weight=-1), "soft_weight=-1"),
    ],
)
def test_bad_arguments(kwargs, message, small):
    with pytest.raises(LabelKitError, match=message): SALT(small, **kwargs)


def test_who_is_chosen():
    samples = Samples(data())
    y = samples.labels()
    sure = torch.arange(len(y)).float()  # the later, the surer of its label
    said = torch.nn.functional.one_hot(y, 10)*(1+sure[:, None])
    ids = chosen_by(lambda *x: said, samples, .25)
    n = round(.25*len(y))
    assert sorted(ids.tolist()) == sorted(samples.ids[:n].tolist())
    assert len(chosen_by(lambda *x: said, samples, .001)) == 1


def test_small_weights_do_not_make_the_small_model_quieter(small):
    "As with the labeled loss, the mean is over what the samples count"
    class Light(LabelCallback):
        stage = "relabel"
        def before_forward(self, s): s.weigh(torch.full((len(s.x),), 1e-3))
    fit(SALT(small, share=1.), Light(), keep := Keep(), dls=digits(bs=128), epochs=1)
    s,loss,_ = keep.seen[0]
    kl = soft_kl(s.pred, as_teacher(small)(s.x)).mean()
    assert s.losses["salt"][0].item() == pytest.approx(kl.item(), abs=1e-5)
    assert loss == pytest.approx((F.cross_entropy(s.pred, s.y)/3 + 2/3*kl).item(), abs=1e-4)
