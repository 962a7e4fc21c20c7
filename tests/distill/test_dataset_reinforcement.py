"""DatasetReinforcement: what a batch gets, that its gradient is the paper's, several networks
from one store, and wrong input"""
import pytest, torch
from fastai.basics import Callback, Learner
from torch.nn import functional as F

from contract import data, fit, learner, model, same, weights
from labelkit.data.loaders import from_arrays
from labelkit.errors import LabelKitError
from labelkit.models import small_cnn, small_vit, wide_resnet
from labelkit.storage.builder import build_store
from labelkit.storage.stored_views import AugmentViews
from labelkit.core.teachers import as_teacher
from labelkit.distill.base import soft_kl
from labelkit.distill.dataset_reinforcement import DatasetReinforcement, reinforce
from labelkit.mix.cutmix import CutMix


class Records(Callback):
    order = 6
    def before_fit(self):
        self.seen = []
        self.losses = []
    def after_loss(self):
        if self.training:
            self.seen.append(self.learn.supervision.record)
            self.losses.append(self.learn.loss_grad)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return reinforce(
        tmp_path_factory.mktemp("r") / "s",
        data(labeled=None),
        [model(7), model(8)],
        AugmentViews(scale=(0.5, 1.0), flip=False),
        n_views=6,
        k=10,
        dtype="float32",
        progress=False,
    )


def test_the_batch_is_what_the_teacher_saw_and_said(store):
    fit(learner([DatasetReinforcement(store), r := Records()], data(labeled=None)))
    teacher = as_teacher([model(7), model(8)])
    for s in r.seen:
        torch.testing.assert_close(teacher(s.x).softmax(1), s.targets, rtol=1e-4, atol=1e-5)


def test_the_views_are_those_of_the_store(store):
    dls = data(labeled=None)
    fit(learner([DatasetReinforcement(store), r := Records()], dls), 2)
    x = dls.train_ds.arrays.x
    used = set()
    for s in r.seen:
        made = torch.stack(
            [store.views.make(x[s.ids], store.read(s.ids, v).params) for v in range(6)]
        )
        hit = (made == s.x).flatten(2).all(2)
        assert hit.any(0).all()
        used |= set(hit.float().argmax(0).tolist())
    assert used == set(range(6))


def test_the_gradient_is_that_of_the_divergence(store):
    learn = learner([DatasetReinforcement(store)], data(labeled=None))

    class Compare(Callback):
        order = 7
        seen = 0
        def after_loss(self):
            if not self.training: return
            s = self.learn.supervision.record
            kl = soft_kl(s.pred, s.targets.log(), 1.).mean()
            params = list(self.learn.model.parameters())
            a, b = (
                torch.autograd.grad(v, params, retain_graph=True)
                for v in (kl, self.learn.loss_grad)
            )
            for p,q in zip(a, b): torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-6)
            entropy = -(s.targets*s.targets.log()).sum(1).mean()
            torch.testing.assert_close(self.learn.loss_grad.detach(), (kl+entropy).detach())
            Compare.seen += 1
    fit(learn, cbs=[Compare()])
    assert Compare.seen


@pytest.mark.parametrize(
    "make",
    [
        small_cnn,
        lambda dls: wide_resnet(dls, depth=10, width=1),
        lambda dls: small_vit(dls, dim=16, depth=1),
    ],
    ids=["small_cnn", "wide_resnet", "small_vit"],
)
def test_three_architectures_learn_from_one_store(store, make):
    dls = data(labeled=None)
    torch.manual_seed(0)
    learn = Learner(dls, make(dls), cbs=[DatasetReinforcement(store), r := Records()])
    fit(learn, 3)
    kl = [soft_kl(s.pred.detach(), s.targets.log()).mean() for s in r.seen]
    assert sum(kl[-5:]) < .8*sum(kl[:5])


def test_fills(store, tmp_path):
    few = reinforce(
        tmp_path / "s",
        data(labeled=None),
        model(7),
        AugmentViews(flip=False),
        n_views=2,
        k=2,
        progress=False,
    )
    for fill in ("smooth", "renorm", "official"):
        fit(learner([DatasetReinforcement(few, fill=fill), r := Records()], data(labeled=None)))
        t = r.seen[0].targets
        torch.testing.assert_close(t.sum(1), torch.ones(len(t)))
        assert ((t == 0).sum(1) == (0 if fill == "smooth" else 8)).all()


def test_mixes_come_after(store):
    fit(learner([DatasetReinforcement(store), CutMix(), r := Records()], data(labeled=None)))
    plain = Records()
    fit(learner([DatasetReinforcement(store), plain], data(labeled=None)))
    pasted = [(a.x != b.x).float().mean() for a,b in zip(r.seen, plain.seen)]
    assert all(torch.equal(a.ids, b.ids) for a,b in zip(r.seen, plain.seen))
    assert max(pasted) > 0 and min(pasted) < .9  # what was not pasted is the stored view


def test_defaults_of_the_paper(tmp_path):
    store = reinforce(tmp_path/"s", data(n=24, labeled=None), model(7), progress=False)
    assert store.n_views == 100 and store.meta["k"] == 10 and store.views.flip is False
    assert isinstance(store.views, AugmentViews)


def test_share(store):
    plain, none = (
        fit(learner(cbs, data(labeled=None))) for cbs in ([], [DatasetReinforcement(store, p=0)])
    )
    assert same(weights(plain), weights(none))
    fit(learner([DatasetReinforcement(store, p=.5), r := Records()], data(labeled=None)), 6)
    taken = [((s.targets > 0).sum(1) > 1).all().item() for s in r.seen]
    assert .3 < sum(taken)/len(taken) < .7


def test_by_path_and_users_images_on_other_loaders(store):
    a,b = (fit(learner([DatasetReinforcement(o)], data(labeled=None))) for o in (store, store.path))
    assert same(weights(a), weights(b))


def test_wrong_input(store, tmp_path):
    x = data(labeled=None).train_ds.arrays.x
    y = torch.arange(len(x)) % 10
    def refused(match, cb, dls):
        with pytest.raises(LabelKitError, match=match):
            fit(Learner(dls, small_cnn(dls, width=4), cbs=cb))
    refused("was made for other data", DatasetReinforcement(store), from_arrays(x.flip(0), y, x, y))
    refused(
        "sample 160 is not in the store",
        DatasetReinforcement(store),
        from_arrays(torch.cat([x, x]), y.repeat(2), x, y),
    )
    refused(
        "knows 10 classes and the data 12",
        DatasetReinforcement(store),
        from_arrays(x, y, x, y, vocab=range(12)),
    )
    multi = F.one_hot(y, 10).float()
    refused(
        "of kind 'multi'",
        DatasetReinforcement(store),
        from_arrays(x, multi, x, multi, kind="multi"),
    )
    refused(
        "has no views: make one with `reinforce`",
        DatasetReinforcement(build_store(tmp_path / "p", x, model(), progress=False)),
        from_arrays(x, y, x, y),
    )
    with pytest.raises(LabelKitError, match="fill='zeros' is not known"):
        DatasetReinforcement(store, fill="zeros")
    with pytest.raises(LabelKitError, match="store is missing: make one with `reinforce"):
        DatasetReinforcement()
    with pytest.raises(LabelKitError, match="p=-1"): DatasetReinforcement(store, p=-1)


def test_a_store_that_is_damaged_while_training(store, tmp_path):
    own = reinforce(
        tmp_path / "s",
        data(labeled=None),
        model(7),
        AugmentViews(flip=False),
        n_views=2,
        progress=False,
    )
    (tmp_path/"s/values/c/0/0/0").write_bytes(b"x")
    with pytest.raises(LabelKitError, match="chunk 0 of 'values' .* is damaged"):
        fit(learner([DatasetReinforcement(own)], data(labeled=None)))
