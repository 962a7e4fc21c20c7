"""Complementary labels: every loss against libcll's and the authors' values, unbiasedness, mixed
rows, networks that are wrong and sure of it, the callback, wrong input"""
import json, math
from types import SimpleNamespace

import pytest, torch
from fastai.basics import Callback, CrossEntropyLossFlat, Learner, accuracy, set_seed
from fastai.callback.training import ShortEpochCallback
from torch.nn import functional as F

from places import REFERENCES
from labelkit.data.settings import biased_transition, complementary_labels
from labelkit.data.loaders import from_arrays
from labelkit.data.sets import digits
from labelkit.core.supervision import LabelCallback
from labelkit.errors import LabelKitError
from labelkit.models import small_cnn
from labelkit.mix.mixup import MixUp
from labelkit.pseudo.fixmatch import FixMatch
from labelkit.relabel.complementary_labels import (
    ComplementaryLabels,
    complementary_accuracy,
    complementary_losses,
    complementary_scores,
    cpe_decode,
    cpe_loss,
    dm_loss,
    forward_corrected_loss,
    invert_transition,
    mcl_loss,
    op_loss,
    pc_loss,
    scarce_loss,
    scl_loss,
    uniform_transition,
    ure_loss,
)

REFERENCE = json.loads((REFERENCES/"complementary.json").read_text())
LOGITS = torch.tensor(REFERENCE["inputs"]["logits"])
LABELS = torch.tensor(REFERENCE["inputs"]["comp_label"])
PRIORS = torch.tensor(REFERENCE["inputs"]["class_priors"])
COMP = F.one_hot(LABELS, 4).float()
T = uniform_transition(4)

PUBLISHED = {
    "PC": lambda: pc_loss(LOGITS, COMP),
    "SCL-NL": lambda: scl_loss(LOGITS, COMP),
    "SCL-EXP": lambda: scl_loss(LOGITS, COMP, "exp"),
    "FWD": lambda: forward_corrected_loss(LOGITS, COMP, T),
    "URE-NN": lambda: ure_loss(LOGITS, COMP, T, PRIORS, "nn", "libcll"),
    "URE-GA": lambda: ure_loss(LOGITS, COMP, T, PRIORS, "ga", "libcll"),
    "DM": lambda: dm_loss(LOGITS, COMP),
    "OP": lambda: op_loss(LOGITS, COMP),
    "CPE-I": lambda: cpe_loss(LOGITS, COMP),
    "CPE-F": lambda: cpe_loss(LOGITS, COMP, T),
    "SCARCE": lambda: scarce_loss(LOGITS, COMP),
}

def fit(cb, dls=None, epochs=1, seed=0, cbs=(), lr=3e-3, metrics=accuracy, **kwargs):
    set_seed(seed)
    dls = dls or digits(complementary=True, bs=64)
    learn = Learner(dls, small_cnn(dls, width=8), cbs=cb, metrics=metrics, **kwargs)
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, lr, cbs=list(cbs))
    return learn

class Keep(Callback):
    order = 6
    def before_fit(self): self.seen = []
    def after_loss(self):
        if self.training: self.seen.append((self.learn.supervision.record, self.learn.loss.item()))

def first(cb, dls=None, **kwargs):
    keep = Keep()
    fit(cb, dls, cbs=[keep, ShortEpochCallback(.01)], **kwargs)
    return keep.seen[0]


class TestLosses:
    @pytest.mark.parametrize("name", sorted(PUBLISHED))
    def test_published_value(self, name):
        assert PUBLISHED[name]().item() == pytest.approx(
            REFERENCE["expected"][name], abs=REFERENCE["tolerance"] * 2
        )

    def test_all_published_are_tested(self): assert set(PUBLISHED) == set(REFERENCE["expected"])

    @pytest.mark.parametrize("beta", [0., float("inf")])
    def test_ure_of_the_authors(self, beta):
        """Written from Ishida et al. 2019, one class after the other: max(-beta, sum over labels of
        prior times mean loss, minus (K-1) times the own one)"""
        loss = -F.log_softmax(LOGITS, 1)
        k = 4
        parts = []
        for c in range(k):
            part = sum(PRIORS[j]*loss[j == LABELS, c].mean() for j in range(k))
            parts.append(part - (k-1)*PRIORS[c]*loss[c == LABELS, c].mean())
        parts = torch.stack(parts)
        assert parts.min() < 0, "the case tests the clamp"
        want = parts.clamp_min(-beta).sum()
        assert torch.allclose(
            ure_loss(LOGITS, COMP, T, PRIORS, "nn" if beta == 0 else "free"), want, atol=1e-5
        )
        assert torch.allclose(
            ure_loss(LOGITS, COMP, T, PRIORS, "ga"), -parts.clamp_max(0).sum(), atol=1e-5
        )

    def test_ure_priors_of_the_batch(self):
        shares = COMP.mean(0)
        assert torch.allclose(ure_loss(LOGITS, COMP, T), ure_loss(LOGITS, COMP, T, shares))

    @pytest.mark.parametrize("c,seed", [(4, 0), (10, 2)])
    def test_ure_is_unbiased(self, c, seed):
        t = biased_transition(c, generator=seed)
        z = torch.randn(1, c)
        for k in range(c):
            e = sum(
                t[k, j] * ure_loss(z, torch.eye(c)[j : j + 1], t, torch.ones(c), "free")
                for j in range(c)
            )
            assert torch.allclose(e, F.cross_entropy(z, torch.tensor([k])), atol=1e-3)

    @pytest.mark.parametrize("f", [pc_loss, scl_loss, dm_loss, op_loss, cpe_loss])
    def test_a_mixed_row_is_the_expectation(self, f):
        other = COMP.roll(1, 0)
        assert torch.allclose(
            f(LOGITS, 0.3 * COMP + 0.7 * other),
            0.3 * f(LOGITS, COMP) + 0.7 * f(LOGITS, other),
            atol=1e-6,
        )

    @pytest.mark.parametrize("name", sorted(complementary_losses))
    def test_a_weight_of_two_is_a_sample_twice(self, name):
        cb = ComplementaryLabels(name)
        cb.matrix = T
        cb.inverse = invert_transition(T)
        w = torch.tensor([2.,1.,1.,1.,1.,0.])
        twice = torch.tensor([0,0,1,2,3,4])
        assert torch.allclose(
            complementary_losses[name](LOGITS, COMP * w[:, None], cb),
            complementary_losses[name](LOGITS[twice], COMP[twice], cb),
            atol=1e-5,
        )

    @pytest.mark.parametrize("name", sorted(complementary_losses))
    def test_finite_for_large_logits_and_missing_labels(self, name):
        cb = ComplementaryLabels(name)
        cb.matrix = T
        cb.inverse = invert_transition(T)
        for scale in (1., 60.):
            z = (LOGITS*scale).requires_grad_()
            loss = complementary_losses[name](z[:1], COMP[:1], cb)
            loss.backward()
            assert loss.isfinite() and z.grad.isfinite().all()

    def test_transition_by_hand(self):
        """Rows are true classes: not 1 is said of class 0 with .2 and of class 2 with .5;
        transposed, it would be .4 of class 0 and .6 of class 2"""
        p = torch.tensor([[.5, .3, .2]])
        t = torch.tensor([[0., .2, .8], [.4, 0., .6], [.5, .5, 0.]])
        for k,chance in enumerate((.3*.4 + .2*.5, .5*.2 + .2*.5, .5*.8 + .3*.6)):
            hot = torch.eye(3)[k:k+1]
            want = pytest.approx(-math.log(chance), abs=1e-6)
            assert forward_corrected_loss(p.log(), hot, t).item() == want
            assert cpe_loss(p.log(), hot, t).item() == want
        # and so in the inverse: the expected loss of class 0 under its labels is that of class 0
        e = sum(t[0,j]*ure_loss(p.log(), torch.eye(3)[j:j+1], t, torch.ones(3), "free")
                for j in range(3))
        assert e.item() == pytest.approx(-math.log(.5), abs=1e-5)

    def test_transition_of_the_fit_by_hand(self):
        t = torch.tensor([[0., .2, .8], [.4, 0., .6], [.5, .5, 0.]])
        x = torch.rand(12, 1, 8, 8)
        y = torch.arange(12) % 3
        s,loss = first(ComplementaryLabels(transition=t.numpy()), from_arrays(x, y, x, y, bs=6))
        p = s.pred.softmax(1)
        chance = sum(p[:,k]*t[k, s.y] for k in range(3))
        assert loss == pytest.approx(-chance.log().mean().item(), abs=1e-5)

    def test_a_label_that_is_never_given_has_no_likelihood(self):
        t = torch.tensor([[0., 1., 0.], [1., 0., 0.], [.5, .5, 0.]])
        z = torch.randn(2, 3, requires_grad=True)
        loss = forward_corrected_loss(z, torch.tensor([[0., 0., 1.], [1., 0., 0.]]), t)
        grad, = torch.autograd.grad(loss, z)
        assert loss.isfinite() and grad.isfinite().all()
        assert grad[0].abs().max() < 1e-6 < grad[1].abs().max()

    @pytest.mark.parametrize("kind,sets", [("scl", False), ("mcl", False), ("mcl", True),
                                           ("forward", False), ("op", False)])
    def test_wrong_and_sure(self, kind, sets):
        "Where 32 bits say 1−p = 0 the loss is that of 64 bits, and its gradient that of one logit"
        z = torch.tensor([[60., 1., 0., -2.], [-3., 90., 5., 1.]])
        comp = torch.eye(4)[:2]
        if sets: comp[1,2] = 1
        t = biased_transition(4, generator=2)
        fn = dict(
            scl=lambda z,t,c: scl_loss(z, c),
            mcl=lambda z,t,c: mcl_loss(z, c, "log", sets)/6,
            forward=lambda z,t,c: forward_corrected_loss(z, c, t),
            op=lambda z,t,c: op_loss(z, c),
        )[kind]
        q = z.double().softmax(1)
        out = (q*(1-comp)).sum(1)
        label = comp.argmax(1)
        want = dict(
            scl=lambda: -out.log().mean(),
            mcl=lambda: -(out.log()/comp.sum(1)).mean(),
            forward=lambda: -(q@t.double())[[0,1],label].log().mean(),
            op=lambda: -((-z.double()).softmax(1)[[0,1],label].log()*(q[[0,1],label]+1e-6)).mean(),
        )[kind]()
        z.requires_grad_()
        loss = fn(z, t, comp)
        assert loss.item() == pytest.approx(want.item(), rel=1e-5)
        grad, = torch.autograd.grad(loss, z)
        size = (comp.sum(1) if kind == "mcl" else torch.ones(2))*2
        assert torch.allclose(grad[[0,1],label]*size, torch.ones(2), atol=1e-4)

    def test_sets_that_say_nothing(self):
        "No label, and all of them: neither moves a weight"
        z = torch.randn(2, 4, requires_grad=True)
        loss = mcl_loss(z, torch.tensor([[0.]*4, [1.]*4]), "log", sets=True)
        assert loss.item() == pytest.approx(0, abs=1e-5)
        assert torch.autograd.grad(loss, z)[0].abs().max() < 1e-6

    def test_sets(self):
        """Feng et al. 2020: with MAE the corrected loss is (2K-2)/|set| times the probability
        inside the set"""
        p = LOGITS.softmax(1)
        sets = torch.tensor([[1,1,0,0],[0,0,0,1],[1,1,1,0],[0,1,0,0],[1,0,0,1],[0,1,1,0]]).float()
        want = torch.stack(
            [
                sum(2 - 2 * p[i, j] for j in range(4) if not m[j])
                - (3 - m.sum()) / m.sum() * sum(2 - 2 * p[i, j] for j in range(4) if m[j])
                for i, m in enumerate(sets)
            ]
        ).mean()
        assert torch.allclose(mcl_loss(LOGITS, sets, "mae", sets=True), want, atol=1e-5)

    def test_decode(self):
        t = biased_transition(6, generator=1)
        assert torch.equal(cpe_decode(t.clamp_min(1e-6).log(), t), torch.arange(6))
        assert torch.equal(cpe_decode(20*torch.eye(6), t, "f"), torch.arange(6))


class TestAccuracy:
    @pytest.mark.parametrize("biased", [False, True])
    def test_unbiased(self, biased):
        n = 100_000
        c = 5
        t = biased_transition(c, generator=1) if biased else uniform_transition(c)
        y = torch.randint(c, (n,))
        guess = torch.where(torch.rand(n) < .6, y, torch.randint(c, (n,)))
        comp = complementary_labels(y, c, 3, t)
        s = complementary_scores(guess, comp, t)
        true = (guess == y).float().mean()
        assert (s.mean()-true).abs() < 4*s.std()/n**.5 and s.std()/n**.5 < .03
        assert torch.equal(
            complementary_accuracy(20 * F.one_hot(guess, c).float(), comp, t), s.mean()
        )

    def test_by_hand(self):
        assert complementary_scores(
            torch.eye(3), torch.tensor([0, 1, 0])
        ).tolist() == pytest.approx([-1.0, -1.0, 1.0], abs=1e-5)

    def test_as_a_metric(self):
        d = digits(complementary=True)
        v = d.valid_ds.arrays
        dls = from_arrays(
            d.train_ds.arrays.x,
            d.truth,
            v.x,
            complementary_labels(v.y, 10, 0),
            complementary=True,
            view_hints=dict(flip=False),
        )
        set_seed(0)
        learn = Learner(dls, small_cnn(dls, width=8), metrics=complementary_accuracy)
        p = learn.get_preds()[0]
        with learn.no_bar():
            assert learn.validate()[1] == pytest.approx(
                float(complementary_accuracy(p, dls.valid_ds.arrays.y)), abs=1e-4
            )


class TestCallback:
    def test_replaces_the_labeled_loss(self):
        s,loss = first(ComplementaryLabels("scl-nl"))
        want = scl_loss(s.pred, F.one_hot(s.y, 10).float())
        assert (
            loss == pytest.approx(want.item(), abs=1e-6)
            and s.labeled_weight == 0
            and list(s.losses) == ["complementary_labels"]
        )

    def test_weight(self):
        s,loss = first(ComplementaryLabels("scl-nl", weight=.5))
        assert loss == pytest.approx(.5*scl_loss(s.pred, s.targets).item(), abs=1e-6)

    def test_transition_of_the_data(self):
        t = biased_transition(10, generator=0)
        s,loss = first(ComplementaryLabels(), digits(complementary=t))
        assert loss == pytest.approx(forward_corrected_loss(s.pred, s.targets, t).item(), abs=1e-6)
        own = biased_transition(10, generator=5)
        s,loss = first(ComplementaryLabels(transition=own), digits(complementary=t))
        assert loss == pytest.approx(
            forward_corrected_loss(s.pred, s.targets, own).item(), abs=1e-6
        )

    def test_priors_of_the_data(self):
        dls = digits(complementary=True)
        s,loss = first(ComplementaryLabels("ure-nn"), dls)
        assert loss == pytest.approx(
            ure_loss(
                s.pred,
                s.targets,
                uniform_transition(10),
                torch.bincount(dls.given) / len(dls.given),
            ).item(),
            abs=1e-4,
        )

    def test_own_function(self):
        s,loss = first(ComplementaryLabels(lambda f, t, cb: 3*scl_loss(f, t)))
        assert loss == pytest.approx(3*scl_loss(s.pred, s.targets).item(), abs=1e-5)

    def test_of_mixed_targets(self):
        s,loss = first([ComplementaryLabels("scl-nl"), MixUp(alpha=4.)])
        assert (s.targets > 0).sum(1).max() == 2 and loss == pytest.approx(
            scl_loss(s.pred, s.targets).item(), abs=1e-6
        )

    def test_soft_complementary_labels(self):
        "A distribution over classes that the sample is not"
        x = torch.rand(20, 1, 8, 8)
        t = torch.rand(20, 4).softmax(1)
        dls = from_arrays(x, t, x, t, kind="soft", bs=10)
        s,loss = first(ComplementaryLabels("scl-nl"), dls, metrics=None)
        assert loss == pytest.approx(scl_loss(s.pred, s.y).item(), abs=1e-6)

    def test_beside_unlabeled_samples(self):
        s, loss = first(
            [ComplementaryLabels(), FixMatch(threshold=0.0)],
            digits(complementary=True, labeled=100, ratio=2),
        )
        assert set(s.losses) == {"complementary_labels", "fixmatch"} and s.labeled_weight == 0

    def test_learns_what_ordinary_training_unlearns(self):
        rows = [fit(cb, epochs=5, lr=1e-2).final_record[-1] for cb in ([], ComplementaryLabels())]
        assert rows[0] < .05 and rows[1] > .3

    def test_loss_function_stays(self):
        loss = CrossEntropyLossFlat()
        assert (
            fit(ComplementaryLabels(), loss_func=loss, cbs=[ShortEpochCallback(0.05)]).loss_func
            is loss
        )


    def test_tables_of_pandas(self):
        import pandas as pd
        own = biased_transition(10, generator=5)
        table = pd.DataFrame(own.numpy(), columns=list("abcdefghij"))
        s,loss = first(ComplementaryLabels(transition=table))
        assert loss == pytest.approx(
            forward_corrected_loss(s.pred, s.targets, own).item(), abs=1e-6
        )
        guess = torch.tensor([0, 3])
        assert torch.allclose(
            complementary_scores(guess, torch.tensor([1, 3]), table),
            complementary_scores(guess, torch.tensor([1, 3]), own),
        )

    def test_sample_weights_count(self):
        "A sample of weight 0 in the record is not there for the loss"
        class Heavy(LabelCallback):
            stage = "views"
            def before_forward(self, s): s.weigh((torch.arange(len(s.y)) < 5).float())
        s,loss = first([ComplementaryLabels("scl-nl"), Heavy()])
        few = scl_loss(s.pred[:5], F.one_hot(s.y[:5], 10).float())
        assert loss == pytest.approx(few.item(), abs=1e-5)


class TestRefused:
    @pytest.mark.parametrize(
        "kwargs,text",
        [
            (dict(loss="ce"), "loss='ce' is not known: use one of 'forward'"),
            (dict(variant="mine"), "variant='mine' is not known"),
            (dict(weight=-1), "weight=-1 is not a number at least 0"),
        ],
    )
    def test_arguments(self, kwargs, text):
        with pytest.raises(LabelKitError, match=text): ComplementaryLabels(**kwargs)

    @pytest.mark.parametrize(
        "t,text",
        [
            (torch.eye(9), r"shape \(9, 9\): pass \[10, 10\]"),
            (torch.ones(10, 10), "row 0 is not a distribution"),
            (1.5 * torch.eye(10) - 0.05 * torch.ones(10, 10), "row 0 is not a distribution"),
        ],
    )
    def test_transition(self, t, text):
        with pytest.raises(LabelKitError, match=text): fit(ComplementaryLabels(transition=t))

    def test_singular(self):
        with pytest.raises(LabelKitError, match="no usable inverse"):
            fit(ComplementaryLabels("ure-ga", transition=torch.full((10,10), .1)))

    def test_several_labels(self):
        x = torch.rand(8, 1, 8, 8)
        y = torch.eye(8)
        dls = from_arrays(x, y, x, y)
        said = "kind 'multi'.*works on single, soft: it reads a class"
        with pytest.raises(LabelKitError, match=said):
            fit(ComplementaryLabels(), dls)

    def test_class_numbers_need_the_matrix(self):
        with pytest.raises(LabelKitError, match="transition is missing"):
            complementary_scores(torch.tensor([0]), torch.tensor([1]))


@pytest.mark.parametrize("name", sorted(complementary_losses))
@pytest.mark.parametrize("rows", ["one class", "none"])
def test_labels_that_a_batch_lacks_leave_the_gradient_finite(name, rows):
    "Also where the loss is multiplied, by a weight or by mixed precision"
    z = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    comp = F.one_hot(torch.zeros(5).long(), 4).float()*(rows == "one class")
    matrix = uniform_transition(4)
    cb = SimpleNamespace(matrix=matrix, inverse=None, priors=None, variant="official")
    loss = complementary_losses[name](z, comp, cb)
    (grad,) = torch.autograd.grad(2**16*loss, z)
    assert loss.isfinite() and grad.isfinite().all()
    if rows == "none": assert loss == 0 and not grad.any()
