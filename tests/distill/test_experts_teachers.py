"""MEAL V2 and MDCS: values of the official code, and who is trained by which loss."""
import json, math

import pytest
import torch
from fastai.basics import Callback
from torch import nn, tensor
from torch.nn import functional as F

from contract import data, fit, learner, model
from labelkit.errors import LabelKitError
from labelkit.core.teachers import Ensemble
from labelkit.distill.mdcs import (
    MDCS,
    anew,
    confident_consistency,
    expert_logits,
    own_blocks,
    says_with,
)
from labelkit.distill.mealv2 import MEALv2, told_apart
from labelkit.lesson.batch import look
from labelkit.models import body_layers, layer_outputs


@pytest.fixture
def reference(root):
    values = json.loads((root/"tests/reference/experts_teachers.json").read_text())
    return lambda name: next(o for o in values if o["name"] == name)


def test_mealv2_reference(reference):
    ref = reference("meal_v2_ensemble_soft_label")
    i = {k: tensor(v) for k,v in ref["inputs"].items()}
    mean = Ensemble([lambda x: i["teacher1"], lambda x: i["teacher2"]])(torch.zeros(6, 1))
    torch.testing.assert_close(mean.softmax(1), tensor(ref["expected"]["soft"]), atol=1e-6, rtol=0)
    loss = MEALv2(
        [lambda x: i["teacher1"], lambda x: i["teacher2"]], adversarial_weight=0.0
    ).distill_loss(i["student"], mean, None)
    assert loss.item() == pytest.approx(ref["expected"]["loss"], abs=1e-6)


class Watch(Callback):
    "Gradients of each named loss: of the model and of the technique's networks"
    order = 6
    def __init__(self, module):
        self.module = module
        self.seen = {}
    def after_loss(self):
        if not self.training or self.seen: return
        s = self.learn.supervision.record
        for name,(v,_) in (s.losses | s.auxiliary_losses).items():
            sums = []
            for m in (self.learn.model, self.module()):
                grads = torch.autograd.grad(
                    v, list(m.parameters()), retain_graph=True, allow_unused=True
                )
                sums.append(sum(float(g.abs().sum()) for g in grads if g is not None))
            self.seen[name] = sums


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_student_and_discriminator_learn_apart(variant):
    cb = MEALv2([model(1), model(2)], variant=variant)
    before = []
    class Before(Callback):
        def before_batch(self):
            if not before: before.extend(p.clone() for p in cb.judge.module.parameters())
    fit(learner([cb, Before(), w := Watch(lambda: cb.judge.module)]))
    assert w.seen["mealv2.judge"][0] == 0 < w.seen["mealv2.judge"][1]
    assert w.seen["mealv2.adversarial"][1] == 0 < w.seen["mealv2.adversarial"][0]
    assert any(not torch.equal(a, b) for a, b in zip(before, cb.judge.module.parameters())), (
        "the discriminator did not learn"
    )


def test_the_student_fools_or_helps():
    """With variant='paper' the student's loss falls as its answers look like a teacher's, with
    'official' it rises"""
    for variant,sign in (("paper", 1), ("official", -1)):
        cb = MEALv2([model(1)], variant=variant)
        fit(learner([cb]))
        losses = {}
        class Record:
            def add_loss(self, name, value, weight=1., auxiliary=False): losses[name] = value
        scale = cb.judge.module[-1].bias
        for bias in (-5., 5.):
            with torch.no_grad(): scale.fill_(bias)
            cb.distill_loss(torch.randn(4, 10), torch.randn(4, 10), Record())
            losses[bias] = losses["mealv2.adversarial"].item()
        assert sign*(losses[-5.]-losses[5.]) > 0


def test_being_told_apart_counts_both_weights():
    b = look(learner([MEALv2([model(1)], soft_weight=.5, adversarial_weight=.4, lr=.03)]))
    assert b.losses["mealv2.adversarial"][1] == pytest.approx(.2)
    assert b.state["mealv2"].judge.lr == .03


def test_told_apart_prefers_the_truth():
    assert (
        told_apart(tensor([[4.0]]), tensor([[-4.0]]))
        < told_apart(tensor([[0.0]]), tensor([[0.0]]))
        < told_apart(tensor([[-4.0]]), tensor([[4.0]]))
    )


def test_mdcs_reference(reference):
    ref = reference("mdcs_loss_epoch20")
    i = ref["inputs"]
    zs = tensor(i["expert_logits"])
    y = tensor(i["target"])
    n = tensor(i["cls_num_list"])
    zs = [expert_logits(z, n, e) for z,e in zip(zs, (-.5, 1., 2.5))]
    ce = sum(F.cross_entropy(z, y) for z in zs)
    kl = sum(confident_consistency(z[:3], z[3:], F.one_hot(y[:3], 4).float()) for z in zs)
    assert (ce + .6*kl).item() == pytest.approx(ref["expected"], abs=1e-5)


def test_mdcs_loss_is_the_sum_of_its_parts():
    "The callback's own loss on one batch, from the logits of its experts"
    still = lambda x: x
    cb = MDCS(weak=still, strong=still)
    kept = {}
    class Keep(Callback):
        order = 6
        def after_loss(self):
            if self.training and not kept:
                s = self.learn.supervision.record
                said = torch.cat([s.pred, s.outputs["mdcs"]])
                x = torch.cat([s.x, s.requests["mdcs"]])
                zs = [z[:len(s.y)] for z in cb.experts(said, s.own(cb).kept, x)]
                kept.update(
                    have=s.losses["mdcs"][0],
                    want=sum(
                        F.cross_entropy(z + e * cb._counts.clamp_min(1).log(), s.y)
                        for z, e in zip(zs, cb.exponents)
                    ),
                )

    fit(learner([cb, Keep()], dls=data(labeled=None)))
    torch.testing.assert_close(kept["have"], kept["want"])


def test_mdcs_experts():
    cb = MDCS()
    learn = fit(learner([cb]))
    x = learn.dls.valid_ds.arrays.x
    z = cb.logits(x)
    assert z.shape == (3, len(x), 10)
    learn.model.eval()
    with torch.no_grad(): torch.testing.assert_close(z[1], learn.model(x))
    off = MDCS(exponents=())
    fit(learner([off]))
    with pytest.raises(LabelKitError, match="no experts yet"): off.logits(x)


def test_mdcs_needs_the_class_sizes():
    with pytest.raises(LabelKitError, match="counts has shape"): fit(learner([MDCS(counts=[3, 4])]))
    fit(learner([MDCS(counts=[9]*10)]))


def test_experts_have_last_blocks_of_their_own():
    """Shared blocks are not computed again, buffers of the model stay, and each expert's pass is
    the model's with its own blocks and head"""
    net = model(0).eval()
    x = torch.rand(5, 1, 8, 8)
    own_names = own_blocks(net)
    shared = body_layers(net)[:-2]
    with layer_outputs(net, shared) as kept: own = net(x)
    assert own_names == body_layers(net)[-2:]
    calls = []
    first = net.get_submodule(shared[0])
    handle = first.register_forward_hook(lambda *_: calls.append(1))
    given = {k: (lambda *_, v=v: v) for k,v in kept.items()}
    torch.testing.assert_close(says_with(net, given, x), own)
    blocks = {k: anew(net.get_submodule(k)).train() for k in own_names}
    before = {k: v.clone() for k,v in net.named_buffers()}
    other = says_with(net, given | blocks, x)
    handle.remove()
    assert not torch.allclose(other, own)
    assert all(torch.equal(v, before[k]) for k,v in net.named_buffers())
    assert not any("forward" in vars(net.get_submodule(k)) for k in own_names)
    new = {id(p) for b in blocks.values() for p in b.parameters()}
    assert new.isdisjoint(map(id, net.parameters()))


def test_the_first_block_is_shared_where_there_are_two():
    assert own_blocks(model(0), 9) == body_layers(model(0))[1:]
    only = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 10))
    assert own_blocks(only) == ["1"]


def test_a_model_that_is_a_head_alone_has_no_blocks():
    assert own_blocks(nn.Sequential(nn.Flatten(), nn.Linear(64, 10))) == []
    cb = MDCS()
    learn = learner([cb])
    learn.model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    fit(learn)
    assert cb.logits(learn.dls.valid_ds.arrays.x).shape[0] == 3


def test_counts_that_half_precision_does_not_know():
    z = torch.zeros(1, 2, dtype=torch.float16)
    said = expert_logits(z, tensor([10., 1e6]), -.5)
    assert said.tolist()[0] == pytest.approx([-.5*math.log(10), -.5*math.log(1e6)], rel=1e-3)

def test_the_official_student_minimises_the_discriminators_own_loss():
    "With its factor of one half, which comes from the mean over both halves of the answers"
    own = [model(1), model(2)]
    b = look(learner([cb := MEALv2(own, variant="official")]))
    s = b.record
    judge = b.state["mealv2"].judge
    asked = s.pred.detach().log_softmax(1).requires_grad_()
    whole = told_apart(judge(cb.teacher(s.x).log_softmax(1)), judge(asked))
    (want,) = torch.autograd.grad(whole, asked)
    (grad,) = torch.autograd.grad(s.losses["mealv2.adversarial"][0], s.pred)
    p = asked.detach().exp()
    torch.testing.assert_close(grad, want - p*want.sum(1, keepdim=True))  # through the log-softmax
