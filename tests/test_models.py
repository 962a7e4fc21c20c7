import copy, pickle
from types import SimpleNamespace

import pytest, torch
from torch import nn

from labelkit.errors import LabelKitError
from labelkit.models import (
    InputNorm,
    as_written,
    body_layers,
    head_of,
    in_precision_of,
    layer_name,
    layer_outputs,
    logits_of,
    map_layer,
    mean_places,
    mlp,
    small_cnn,
    small_vit,
    wide_resnet,
    widened,
    with_features,
)


def fake_dls(c=10, shape=(16, 1, 8, 8), stats=None):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    batch = lambda: (x, torch.arange(len(x)) % c)
    return SimpleNamespace(
        c=c,
        stats=stats,
        valid=SimpleNamespace(one_batch=batch),
        train=SimpleNamespace(one_batch=batch),
    )


makers = dict(small_cnn=lambda **k: small_cnn(c=5, c_in=3, **k),
              wide_resnet=lambda **k: wide_resnet(c=5, c_in=3, depth=10, width=1, **k),
              small_vit=lambda **k: small_vit(c=5, c_in=3, size=16, **k))


@pytest.mark.parametrize("name", makers)
class TestImages:
    def test_head_of_features_is_the_model(self, name):
        m = makers[name]().eval()
        x = torch.rand(4, 3, 16, 16)
        f = m.features(x)
        assert f.shape == (4, m.n_features) and m(x).shape == (4, 5)
        torch.testing.assert_close(m.head(f), m(x))

    def test_seed_makes_the_weights(self, name):
        def made(seed):
            torch.manual_seed(seed)
            return torch.cat([p.flatten() for p in makers[name]().parameters()])
        assert torch.equal(made(1), made(1)) and not torch.equal(made(1), made(2))

    def test_all_weights_get_a_gradient(self, name):
        m = makers[name]()
        nn.functional.cross_entropy(m(torch.rand(4, 3, 16, 16)), torch.arange(4)).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in m.parameters())

    def test_wrong_channels(self, name):
        with pytest.raises(LabelKitError, match="made for 3 channels, got 1"):
            makers[name]()(torch.rand(2, 1, 16, 16))
        with pytest.raises(LabelKitError, match=r"x\[:, None\]"):
            makers[name]()(torch.rand(2, 16, 16))
        with pytest.raises(LabelKitError, match="c_in says 3"): makers[name](stats=([0, 0], [1, 1]))

    def test_autocast_copy_and_pickle(self, name):
        m = makers[name]().eval()
        x = torch.rand(2, 3, 16, 16)
        with torch.autocast("cpu", torch.bfloat16): half = m(x)
        assert half.isfinite().all() and (half.float() - m(x)).abs().max() < .1
        for other in (copy.deepcopy(m), pickle.loads(pickle.dumps(m))):
            assert torch.equal(other(x), m(x))


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (28, 20), (64, 64)])
def test_small_cnn_takes_any_size(size):
    assert small_cnn(c=3, c_in=1, width=8)(torch.rand(2, 1, *size)).shape == (2, 3)


def test_wide_resnet_has_the_paper_s_size():
    count = lambda m: sum(p.numel() for p in m.parameters())
    assert count(wide_resnet(c=10, c_in=3)) == 1_467_610
    assert count(wide_resnet(c=100, c_in=3, width=8)) == pytest.approx(23.4e6, rel=.01)
    for depth in (4, 20, 29):
        with pytest.raises(LabelKitError, match="6n"): wide_resnet(c=10, depth=depth)


def test_wide_resnet_dropout_is_for_training():
    m = wide_resnet(c=3, c_in=1, depth=10, width=1, dropout=.5)
    x = torch.rand(4, 1, 8, 8)
    assert not torch.equal(m(x), m(x))
    m.eval()
    assert torch.equal(m(x), m(x))


def test_vit_shows_its_attention():
    m = small_vit(c=4, c_in=1, size=(8, 12), patch=2, dim=32, depth=2, heads=2).eval()
    x = torch.rand(3, 1, 8, 12)
    logits, maps = m(x, attention=True)
    assert maps.shape == (3, 2, 4, 6) and (maps >= 0).all() and (maps.sum((2, 3)) < 1).all()
    torch.testing.assert_close(logits, m(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert m(x, attention=True)[1].dtype == torch.float32


def test_vit_attention_lies_where_the_patch_is():
    """Without positions, equal patches get equal attention, and only the one that differs stands
    out, in its place"""
    torch.manual_seed(0)
    m = small_vit(c=2, c_in=1, size=8, patch=2, dim=16, depth=1, heads=1).eval()
    with torch.no_grad(): m.positions.zero_()
    x = torch.zeros(1, 1, 8, 8)
    x[..., 2:4, 4:6] = 1
    a = m(x, attention=True)[1][0, 0]
    rest = torch.ones(4, 4, dtype=torch.bool)
    rest[1, 2] = False
    assert a[rest].std() < 1e-6 and (a[1, 2] - a[rest].mean()).abs() > 1e-6


def test_vit_refuses_sizes():
    with pytest.raises(LabelKitError, match="30x30 cannot be cut"):
        small_vit(c=2, c_in=1, size=30, patch=4)
    with pytest.raises(LabelKitError, match="heads=3"): small_vit(c=2, c_in=1, size=8, heads=3)
    with pytest.raises(LabelKitError, match="images of 8x8, got 16x16"):
        small_vit(c=2, c_in=1, size=8)(torch.rand(1, 1, 16, 16))
    with pytest.raises(LabelKitError, match="size is unknown"): small_vit(c=2)


def test_models_read_the_dataloaders():
    dls = fake_dls(c=7, shape=(16, 3, 8, 8), stats=([.1, .2, .3], [.4, .5, .6]))
    for make in (small_cnn, lambda d: wide_resnet(d, depth=10), small_vit):
        m = make(dls)
        assert m.c == 7 and m.c_in == 3 and torch.equal(m.normalize.std, torch.tensor([.4, .5, .6]))
        assert m(dls.valid.one_batch()[0]).shape == (16, 7)
    assert small_vit(dls).grid == (4, 4) and small_vit(fake_dls(shape=(2, 1, 32, 32))).grid == (
        8,
        8,
    )


def test_statistics_are_measured_where_none_are_given():
    dls = fake_dls(shape=(64, 2, 8, 8))
    m = small_cnn(dls)
    x = dls.valid.one_batch()[0]
    z = m.normalize(x)
    assert z.mean((0, 2, 3)).abs().max() < 1e-5 and (z.std((0, 2, 3)) - 1).abs().max() < 1e-3
    del dls.valid
    assert small_cnn(dls).c_in == 2


def test_the_training_loader_is_left_alone():
    dls = fake_dls()
    dls.train = None
    assert small_cnn(dls).c_in == 1


def test_without_enough_to_go_on():
    with pytest.raises(LabelKitError, match="number of classes is unknown"): small_cnn()
    with pytest.raises(LabelKitError, match="at least 1"): small_cnn(c=0)
    with pytest.raises(LabelKitError, match="no batch"): small_cnn(SimpleNamespace(c=2))


def test_normalize():
    n = InputNorm([.5, 0.], [.25, 2.])
    assert n(torch.ones(1, 2, 3, 3))[0, :, 0, 0].tolist() == [2.0, 0.5] and n(
        torch.ones(1, 2)
    ).tolist() == [[2.0, 0.5]]
    assert not list(n.parameters()) and set(n.state_dict()) == {"mean", "std"}
    with pytest.raises(LabelKitError, match="std must be above zero"): InputNorm([0.], [0.])
    with pytest.raises(LabelKitError, match="2 channels and std 1"): InputNorm([0., 0.], [1.])


def test_mlp():
    m = mlp(c=3, c_in=4)
    assert m(torch.rand(5, 4)).shape == (5, 3) and m.features(torch.rand(5, 4)).shape == (5, 64)
    with pytest.raises(LabelKitError, match="flatten"): m(torch.rand(5, 2, 2))
    with pytest.raises(LabelKitError, match="made for 4 channels, got 3"): m(torch.rand(5, 3))
    assert mlp(fake_dls(c=2, shape=(32, 6))).c_in == 6
    constant = fake_dls(c=2, shape=(32, 6))
    constant.valid = SimpleNamespace(one_batch=lambda: (torch.ones(8, 6), None))
    assert mlp(constant)(torch.ones(2, 6)).isfinite().all()


def test_small_cnn_learns_the_digits():
    from sklearn.datasets import load_digits
    d = load_digits()
    x = torch.tensor(d.images, dtype=torch.float).div(16)[:, None]
    y = torch.tensor(d.target)
    m = small_cnn(c=10, c_in=1, width=16, stats=([x.mean()], [x.std()]))
    opt = torch.optim.AdamW(m.parameters(), lr=5e-3)
    tr, va = torch.randperm(len(x)).split((1257, 540))
    for _ in range(5):
        for i in tr[torch.randperm(len(tr))].split(64):
            nn.functional.cross_entropy(m(x[i]), y[i]).backward()
            opt.step()
            opt.zero_grad()
    assert (m.eval()(x[va]).argmax(1) == y[va]).float().mean() > .95


# ---- the order in memory

LAST = torch.channels_last

def convs(m): return [o.weight for o in m.modules() if isinstance(o, nn.Conv2d)]
def in_order(m): return all(w.is_contiguous(memory_format=LAST) for w in convs(m))


convnets = dict(small_cnn=lambda: small_cnn(c=5, c_in=3, width=8),
                wide_resnet=lambda: wide_resnet(c=5, c_in=3, depth=10, width=1))


def plain(m):
    "The same network with its weights channel by channel"
    return copy.deepcopy(m).to(memory_format=torch.contiguous_format)


@pytest.mark.parametrize("name", convnets)
class TestChannelsLast:
    def test_weights_stay_in_order(self, name):
        m = convnets[name]()
        assert in_order(m) and not in_order(plain(m))
        m.load_state_dict(plain(m).state_dict())
        assert in_order(m)
        for other in (copy.deepcopy(m), pickle.loads(pickle.dumps(m)), m.to("cpu"), m.double()):
            assert in_order(other)

    def test_results_are_those_of_the_other_order(self, name):
        torch.manual_seed(0)
        m = convnets[name]()
        other = plain(m)
        x = torch.rand(16, 3, 16, 16)
        y = torch.arange(16) % 5
        a,b = (o(x) for o in (m, other))
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        for z in (a, b): nn.functional.cross_entropy(z, y).backward()
        for p,q in zip(m.parameters(), other.parameters()):
            assert (p.grad-q.grad).abs().max() <= 1e-4*max(1e-2, float(q.grad.abs().max()))
        torch.testing.assert_close(m.eval()(x), other.eval()(x), rtol=1e-4, atol=1e-5)

    def test_an_averaged_copy_and_compiling(self, name):
        from labelkit.core.teachers import EMA
        m = convnets[name]().eval()
        teacher = EMA(m, .5)
        teacher.update(m)
        x = torch.rand(2, 3, 16, 16)
        assert in_order(teacher.model) and torch.allclose(teacher(x), m(x), atol=1e-6)
        compiled = torch.compile(m, backend="eager")
        assert torch.allclose(compiled(x), m(x), atol=1e-6)
        assert torch.equal(with_features(compiled, x)[1], m.features(x))

    def test_two_runs_are_one(self, name):
        def run():
            torch.manual_seed(1)
            m = convnets[name]()
            opt = torch.optim.SGD(m.parameters(), .1, momentum=.9)
            y = torch.arange(8) % 5
            for _ in range(3):
                nn.functional.cross_entropy(m(torch.rand(8, 3, 16, 16)), y).backward()
                opt.step()
                opt.zero_grad()
            return torch.cat([p.flatten() for p in m.parameters()])
        assert torch.equal(run(), run())


def test_few_channels_stay_as_they_are():
    assert not in_order(small_cnn(c=2, c_in=3, width=4))
    assert in_order(small_cnn(c=2, c_in=3, width=8))


@pytest.mark.parametrize("memory", [torch.contiguous_format, LAST])
def test_the_mean_s_gradient_lies_as_its_input(memory):
    x = torch.rand(3, 8, 4, 5).contiguous(memory_format=memory).requires_grad_()
    grads = []
    z = x*1
    z.register_hook(grads.append)
    mean = mean_places(z)
    torch.testing.assert_close(mean, x.mean((2, 3)))
    weight = torch.rand(3, 8)
    (mean*weight).sum().backward()
    assert grads[0].is_contiguous(memory_format=memory)
    torch.testing.assert_close(x.grad, (weight/20)[:,:,None,None].expand_as(x))


# ---- inputs of every kind

@pytest.mark.parametrize("name", makers)
def test_other_inputs_work_or_are_refused_in_words(name):
    m = makers[name]().eval()
    x = torch.rand(2, 3, 16, 16)
    want = m(x)
    for other in (x.double(), x.half(), x.bfloat16()):
        assert m(other).dtype == torch.float32
        torch.testing.assert_close(m(other), want, atol=.1, rtol=.1)
    torch.testing.assert_close(m.double()(x), want.double(), atol=1e-4, rtol=1e-4)
    m.float()
    for other,match in (
        ((x*255).byte(), "bytes: pass x.float"),
        (dict(image=x), "one tensor, got dict"),
        ([x], "one tensor, got list"),
        (x.numpy(), "one tensor, got ndarray"),
        (x.to(torch.complex64), "real numbers"),
    ):
        with pytest.raises(LabelKitError, match=match): m(other)


def test_whole_numbers_of_a_table():
    m = mlp(c=3, c_in=4, stats=([2.]*4, [3.]*4)).eval()
    x = torch.randint(0, 9, (5, 4))
    assert torch.equal(m(x), m(x.float())) and torch.equal(m(x.byte()), m(x.float()))


def test_images_in_bytes_with_the_statistics_of_bytes():
    m = small_cnn(c=3, stats=([33.], [78.]), width=4).eval()
    x = torch.randint(0, 256, (2, 1, 8, 8)).byte()
    assert torch.equal(m(x), m(x.float()))


def test_a_model_pickled_under_the_old_name():
    import labelkit.models
    with pytest.warns(DeprecationWarning, match="is now labelkit.models.InputNorm"):
        assert labelkit.models.Normalize is InputNorm
    assert "Normalize" not in labelkit.models.__all__
    with pytest.raises(AttributeError, match="Normalise"):
        getattr(labelkit.models, "Normalise")  # noqa: B009


# ---- layers by name

class Two(nn.Module):
    "A layer that runs twice, and a head that is not the last to be registered"
    def __init__(self):
        super().__init__()
        self.norm = InputNorm([0.], [1.])
        self.stem = nn.Conv2d(1, 4, 3, 1, 1)
        self.twice = nn.Conv2d(4, 4, 3, 1, 1)
        self.flat = nn.Flatten()
        self.head = nn.Linear(4, 2)
        self.unused = nn.Identity()
    def forward(self, x):
        x = self.twice(self.twice(self.stem(self.norm(x))))
        return self.head(self.flat(x.mean((2, 3))))


def test_body_layers():
    assert body_layers(small_cnn(c=2, c_in=1, width=4)) == ["body.0", "body.1", "body.2"]
    assert body_layers(Two()) == ["stem", "twice"]
    net = nn.Sequential(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)))
    assert body_layers(net) == ["0.0", "0.1"]
    assert body_layers(nn.DataParallel(Two())) == ["stem", "twice"]
    assert body_layers(torch.compile(Two(), backend="eager")) == ["stem", "twice"]
    vit = small_vit(c=2, c_in=1, size=8, dim=8, depth=2, heads=2)
    assert body_layers(vit) == ["patches", "blocks.0", "blocks.1", "norm"]
    with pytest.raises(LabelKitError, match="no linear layer"): body_layers(nn.Conv2d(1, 2, 3))


def test_layer_name():
    net = Two()
    assert layer_name(net, "twice") == layer_name(net, net.twice) == "twice"
    assert layer_name(nn.DataParallel(net), net.head) == "head"
    assert layer_name(net, "input", also=("input",)) == "input"
    for wrong in ("input", "", "body", 3, None, nn.Linear(2, 2)):
        with pytest.raises(LabelKitError, match="has no layer .*: choose from stem, twice"):
            layer_name(net, wrong)
    with pytest.raises(LabelKitError, match="choose from input, stem"):
        layer_name(net, "body", also=("input",))
    tied = nn.Sequential(a := nn.Linear(2, 2), nn.ReLU(), a)
    assert layer_name(tied, "2") == "2" and layer_name(tied, a) == "0"


def test_layer_outputs():
    net = Two().eval()
    x = torch.rand(3, 1, 6, 6)
    with torch.no_grad():
        once = net.twice(net.stem(x))
        want = dict(stem=net.stem(x), twice=net.twice(once))
    with layer_outputs(net) as outs:
        assert outs == {}
        net(torch.rand(1, 1, 6, 6))
        net(x)
        kept = dict(outs)
    net(x*0)
    assert list(kept) == ["stem", "twice"]  # in the order in which they ran
    for k,o in want.items(): assert torch.equal(kept[k], o) and torch.equal(outs[k], kept[k])
    with layer_outputs(net, [net.head, "stem", "unused"]) as outs: net(x)
    assert list(outs) == ["stem", "head"] and outs["head"].requires_grad
    with pytest.raises(LabelKitError, match="no layer 'body'"), layer_outputs(net, ["body"]): pass
    with pytest.raises(RuntimeError), layer_outputs(net, ["stem"]): net(torch.rand(1, 2, 6, 6))
    assert not any(o._forward_hooks for o in net.modules())


def test_a_compiled_model_is_looked_into():
    "Also where it was compiled before, without a hook, and in place"
    x = torch.rand(3, 1, 6, 6)
    for in_place in (False, True):
        torch.compiler.reset()
        net = Two().eval()
        want = net(x)
        if in_place: net.compile(backend="eager")
        compiled = net if in_place else torch.compile(net, backend="eager")
        compiled(x)
        with layer_outputs(compiled) as outs: z = compiled(x)
        assert list(outs) == ["stem", "twice"] and torch.equal(z, want)
        z,f = with_features(compiled, x)
        assert torch.equal(net.head(f), want) and torch.equal(z, want)
    traced = []
    def count(graph, example):
        traced.append(1)
        return graph.forward
    compiled = torch.compile(Two().eval(), backend=count)
    with as_written(): compiled(x)
    assert not traced
    compiled(x)
    assert traced


def test_at_least_32_bits():
    for given,want in (("float16", "float32"), ("bfloat16", "float32"), ("float32", "float32"),
                       ("float64", "float64"), ("int64", "int64")):
        x = torch.ones(2, 3, dtype=getattr(torch, given))
        for f in (widened, logits_of): assert f(x).dtype == getattr(torch, want)
    third = torch.tensor([[1/3]], dtype=torch.double)
    assert logits_of(third).item() == 1/3


def test_a_network_in_the_precision_of_a_model():
    kinds = lambda m: {p.dtype for p in m.parameters()}
    for given,want in ((Two(), torch.float), (Two().half(), torch.float),
                       (nn.DataParallel(Two().double()), torch.double)):
        net = nn.Linear(2, 2)
        assert in_precision_of(net, given) is net and kinds(net) == {want}


def test_map_layer():
    x = torch.rand(3, 1, 6, 6)
    assert map_layer(Two().eval(), x) == "twice"
    for name,m in convnets.items():
        m = m().eval()
        name = map_layer(m, torch.rand(2, 3, 16, 16)) if name == "small_cnn" else "body"
        assert name == "body"
    with pytest.raises(LabelKitError, match="no layer whose mean"):
        map_layer(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(32, 2)), x)
    with pytest.raises(LabelKitError, match="no layer whose mean"):
        map_layer(nn.Sequential(nn.Flatten(), nn.Linear(36, 2)), x)


def test_several_inputs_have_features():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(2, 3)
        def forward(self, a, b): return self.head(a+b)
    a = torch.rand(4, 2)
    logits, features = with_features(net := Sum(), a, 2*a)
    assert torch.equal(features, a+2*a) and torch.equal(logits, net(a, 2*a))
    assert head_of(net) is net.head
