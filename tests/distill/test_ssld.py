"""SSLD: its divergences against SciPy's and against the published formula, and labels without a
part"""
import math

import numpy as np, pytest, torch
from fastai.basics import Callback
from scipy.spatial.distance import jensenshannon

from distill.distilltools import Keep, fit, net
from labelkit.core.teachers import as_teacher
from labelkit.distill.base import soft_kl
from labelkit.distill.ssld import SSLD, js_divergence, symmetric_kl
from labelkit.errors import LabelKitError


class Wrong(Callback):
    "Other labels than the given ones"
    order = -20
    def before_batch(self):
        if self.training: self.learn.yb = (torch.randint_like(self.yb[0], 10),)


@pytest.fixture
def teacher():
    torch.manual_seed(11)
    return net()


@pytest.fixture
def logits():
    g = torch.Generator().manual_seed(0)
    return [3*torch.randn(50, 7, generator=g) for _ in range(2)]


def test_js_is_scipys(logits):
    p,q = (o.double().softmax(1).numpy() for o in logits)
    torch.testing.assert_close(
        js_divergence(*logits).double(),
        torch.as_tensor(jensenshannon(p, q, axis=1)**2), rtol=1e-4, atol=1e-6,
    )


def test_symmetric_is_the_published_formula(logits):
    "sum over classes of ½·q·log(q/p) + ½·p·log(p/q)"
    p,q = (o.double().softmax(1) for o in logits)
    expected = (q*(q/p).log() + p*(p/q).log()).sum(1)/2
    torch.testing.assert_close(symmetric_kl(*logits).double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("f", [js_divergence, symmetric_kl])
def test_the_same_from_both_sides_and_zero_for_equals(f, logits):
    a,b = logits
    torch.testing.assert_close(f(a, b), f(b, a))
    assert f(a, a+3).abs().max() < 1e-5
    assert (f(a, b) > 0).all()


def test_js_is_bounded_and_finite_for_certain_answers():
    a = torch.tensor([[200.,-200.,0.]], requires_grad=True)
    value = js_divergence(a, torch.tensor([[-200.,200.,0.]]))
    grad, = torch.autograd.grad(value.sum(), a)
    assert value.item() == pytest.approx(math.log(2), abs=1e-5)
    assert grad.isfinite().all()


def test_labels_have_no_part(teacher):
    states = [
        fit(SSLD(teacher, unlabeled=True), *more).model.state_dict() for more in ([], [Wrong()])
    ]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


@pytest.mark.parametrize("divergence,f", [("js", js_divergence), ("symmetric", symmetric_kl)])
def test_the_loss_of_training_is_the_formula(teacher, divergence, f):
    fit(SSLD(teacher, divergence, soft_weight=.5), keep := Keep())
    s,loss = keep.seen
    assert loss == pytest.approx(.5*f(s.pred, as_teacher(teacher)(s.x)).mean().item(), abs=1e-5)


def test_batch_statistics_are_the_batchs_own_and_stay_unrecorded(teacher):
    before = {k: v.clone() for k,v in teacher.state_dict().items()}
    cb = SSLD(teacher, batch_stats=True)
    plain = SSLD(teacher)
    x = torch.rand(16, 1, 8, 8)
    assert not torch.equal(cb.teacher(x), plain.teacher(x))
    torch.testing.assert_close(cb.teacher(x), teacher.train()(x).detach())
    learn = fit(cb)
    assert np.isfinite(learn.recorder.losses).all()
    assert all(torch.equal(v, cb.teacher.model.state_dict()[k]) for k,v in before.items())


def test_kl_and_js_agree_to_second_order():
    "near the teacher, JS is a quarter of KL"
    a = torch.randn(20, 5, generator=torch.Generator().manual_seed(1)).double()
    b = a + .01*torch.randn(20, 5, generator=torch.Generator().manual_seed(2)).double()
    ratio = js_divergence(a, b)/soft_kl(a, b)
    assert (ratio-.25).abs().max() < .01


@pytest.mark.parametrize(
    "kwargs,message",
    [
        (dict(divergence="kl"), "divergence='kl' is not known"),
        (dict(soft_weight=-1), "soft_weight=-1"),
        (dict(hard_weight="none"), "hard_weight='none'"),
    ],
)
def test_bad_arguments(kwargs, message, teacher):
    with pytest.raises(LabelKitError, match=message): SSLD(teacher, **kwargs)
