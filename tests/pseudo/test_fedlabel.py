"FedLabel: who is surer, what a client is told, and clients that are averaged"
import pytest
import torch
from torch import tensor
from torch.nn import functional as F

from contract import data, fit, learner, same, weights
from labelkit.data.sets import table
from labelkit.errors import LabelKitError
from labelkit.models import mlp
from labelkit.pseudo.base import consistency_loss, hard_target
from labelkit.pseudo.fedlabel import (
    FedLabel, average_states, clients_of, deal, entropy, federated, global_accuracy, surer_of,
)
from labelkit.pseudo.fixmatch import FixMatch
from mix.mixtools import Keep

close = torch.testing.assert_close


class TestFunctions:
    def test_entropy(self):
        close(entropy(tensor([[.25]*4, [1., 0., 0., 0.]])), tensor([4., 1.]).log())

    def test_surer(self):
        a = tensor([[.6, .4], [.9, .1], [.7, .3]])
        b = tensor([[.1, .9], [.5, .5], [.3, .7]])
        # of equal ones the local
        assert torch.equal(surer_of(a, b), torch.stack([b[0], a[1], a[2]]))

    def test_average(self):
        a = dict(w=tensor([0., 2.]), n=tensor(4))
        b = dict(w=tensor([4., 6.]), n=tensor(8))
        out = average_states([a, b], [1, 3])
        assert torch.equal(out["w"], tensor([3., 5.])) and out["n"].dtype == torch.long
        assert int(out["n"]) == 7

    def test_deal(self):
        y = torch.arange(10).repeat(100)
        for alpha in (.1, 100.):
            client = deal(y, 4, alpha, seed=1)
            assert set(client.tolist()) <= {0, 1, 2, 3}
            assert torch.equal(client, deal(y, 4, alpha, seed=1))
        share = torch.stack([client[y == k].bincount(minlength=4) for k in range(10)])
        assert (share > 10).all()  # nearly even


def test_clients_share_all_samples_and_each_can_train():
    dls = data()
    clients = clients_of(dls, 6, .05)
    assert sum(o.n_ids for o in clients) == 160
    assert sum(int((o.given >= 0).sum()) for o in clients) == 64
    assert all((o.given >= 0).any() and (o.given < 0).any() for o in clients)
    assert all(o.c == 10 and o.train.bs == 16 for o in clients)
    with pytest.raises(LabelKitError, match="n=65 clients cannot share 64"): clients_of(dls, 65)
    with pytest.raises(LabelKitError, match="alpha=0 is not"): clients_of(dls, 2, 0)


@pytest.mark.parametrize("judge", ["surer", "local", "global"])
def test_what_a_batch_is_told(judge):
    learn = learner([cb := FedLabel(threshold=.12, judge=judge), keep := Keep()])
    begin = weights(learn)
    fit(learn)
    assert same(cb.world.model.state_dict(), begin)
    s = keep.seen[-1]
    local = s.outputs["fedlabel.weak"].detach().softmax(1)
    with torch.no_grad(): world = cb.world(s.own(cb).weak).softmax(1)
    p = dict(surer=surer_of(local, world), local=local)
    p = p.get(judge, world)
    want = consistency_loss(s.outputs["fedlabel.strong"], hard_target(p), p.amax(1) >= .12)
    close(s.losses["fedlabel"][0], want)
    agree = local.argmax(1) == world.argmax(1)
    kl = F.kl_div(s.outputs["fedlabel.weak"].log_softmax(1), world, reduction="none").sum(1)
    close(s.losses["fedlabel.agreement"][0], (kl*agree).mean())


@pytest.mark.parametrize("judge", ["surer", "local", "global"])
def test_two_models_that_say_different_things(judge):
    both = 2*torch.randn(2, 32, 10, generator=torch.Generator().manual_seed(0))
    class Other(FedLabel):
        name = "fedlabel"
        def predict(self, s): return both[0]
        def setup(self):
            super().setup()
            self.world = lambda x: both[1]
        def before_steps(self): "The global model is what it is"
    fit(learner([Other(threshold=.3, judge=judge), keep := Keep()]))
    s = keep.seen[0]
    local,world = both.softmax(2)
    said = dict(surer=surer_of(local, world), local=local, world=world)
    p = said["world" if judge == "global" else judge]
    agree = local.argmax(1) == world.argmax(1)
    assert agree.any() and not agree.all() and not torch.equal(said["surer"], local)
    assert not torch.equal(said["surer"], world)
    want = consistency_loss(s.outputs["fedlabel.strong"], hard_target(p), p.amax(1) >= .3)
    close(s.losses["fedlabel"][0], want)
    kl = F.kl_div(s.outputs["fedlabel.weak"].log_softmax(1), world, reduction="none").sum(1)
    close(s.losses["fedlabel.agreement"][0], (kl*agree).mean())


def test_the_world_normalises_by_the_batch_as_the_local_model_does():
    fit(learner([cb := FedLabel(), keep := Keep()]))
    s = keep.seen[-1]
    x = s.own(cb).weak
    said = cb.world(x)
    assert not torch.allclose(said[:8], cb.world(x[:8]), atol=1e-4)
    for k,v in cb.world.model.named_buffers():
        if k.endswith("running_var"): v.mul_(9)
    assert torch.equal(cb.world(x), said)


def test_each_fit_is_a_round():
    learn = fit(learner([cb := FedLabel()]))
    then = weights(learn)
    fit(learn)
    assert same(cb.world.model.state_dict(), then) and not same(then, weights(learn))
    then = weights(learn)
    with learn.no_bar(), learn.no_logging(): learn.fit(3, 1e-3, start_epoch=1)
    assert same(cb.world.model.state_dict(), then) and not same(then, weights(learn))


def test_federated_averages_what_each_client_learned():
    learn = learner([FedLabel(threshold=0.)])
    own = learn.dls
    begin = weights(learn)
    clients = clients_of(own, 2)
    federated(learn, clients, 1, lr=1e-3)
    got = weights(learn)
    assert learn.dls is own
    alone = []
    for dls in clients:
        other = learner([FedLabel(threshold=0.)], dls=dls)
        other.model.load_state_dict(begin)
        with other.no_bar(), other.no_logging(): other.fit(1, 1e-3)
        alone.append(weights(other))
    mean = average_states(alone, [o.n_ids for o in clients])
    moved = [k for k in got if k.endswith("weight")]
    # order and views are other ones; it is the same way
    for k in moved:
        assert not torch.equal(got[k], begin[k])
        assert (got[k]-begin[k]).norm() < 3*(mean[k]-begin[k]).norm() + 1e-3
    assert 0 <= global_accuracy(learn) <= 1
    federated(learner([FixMatch(threshold=0.)]), clients, 1)


def test_the_server_by_hand():
    "Each client begins from the same weights, and counts by its samples; nothing is drawn"
    still = dict(weak=lambda x: x, strong=lambda x: x, threshold=0.)
    learn = learner([FedLabel(**still)])
    own = learn.dls
    clients = [data(n=n, labeled=n//4, bs=n//4, ratio=3) for n in (40, 120)]  # a batch each
    begin = weights(learn)
    federated(learn, clients, 1, lr=1e-3)
    got = weights(learn)
    alone = []
    for dls in clients:
        other = learner([FedLabel(**still)], dls=dls)
        other.model.load_state_dict(begin)
        with other.no_bar(), other.no_logging(): other.fit(1, 1e-3)
        alone.append(weights(other))
    k = "head.weight"
    steps = [a[k]-begin[k] for a in alone]
    want = (steps[0] + 3*steps[1])/4
    off = lambda o: float((got[k]-begin[k]-o).norm()/want.norm())
    assert off(want) < .01 < min(off(steps[1]), off(sum(steps)/2))
    assert learn.dls is own


def test_the_world_is_asked_in_evaluation_mode_and_the_same_for_all_epochs():
    learn = learner([cb := FedLabel()])
    begin = weights(learn)
    fit(learn, 3)
    assert same(cb.world.model.state_dict(), begin) and not cb.world.model.training


def test_the_weight_counts_for_agreement_too():
    fit(learner([FedLabel(threshold=0., weight=3., agreement=.5), keep := Keep()]))
    assert {s.losses["fedlabel.agreement"][1] for s in keep.seen
            if "fedlabel.agreement" in s.losses} == {1.5}


def test_classes_are_dealt_by_the_truth():
    "Unlabeled samples too lie with those of their class"
    dls = data()
    one = torch.cat([o.train_ds.arrays.y.new_tensor([o.n_ids]) for o in clients_of(dls, 4, .05)])
    by_truth = deal(dls.truth, 4, .05, 0).bincount(minlength=4)
    assert (one - by_truth).abs().max() <= 4


def test_a_table():
    noisy = lambda x, rng: x + .1*torch.randn(x.shape, generator=rng)
    dls = table("wine", labeled=9, bs=3, ratio=3)
    learn = learner([FedLabel(weak=noisy, strong=noisy)], dls=dls, make=lambda seed: mlp(dls))
    federated(learn, clients_of(dls, 2), 1)
    assert learn.supervision.parts["fedlabel"]


def test_refused():
    for k,v in dict(threshold=2, agreement=-1, judge="both").items():
        with pytest.raises(LabelKitError, match=f"{k}="): FedLabel(**{k: v})
    with pytest.raises(LabelKitError, match="weak_grad=False"): FedLabel(weak_grad=False)
