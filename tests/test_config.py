"A run's configuration: all that is in it has an effect, or is refused with its place"
import copy, json, math
from types import SimpleNamespace

import pytest
import torch

from labelkit import config as lib
from labelkit.atlas import load_techniques
from labelkit.config import (
    as_row,
    check_config,
    check_sets,
    data_here,
    data_names,
    data_settings,
    defaults,
    load_config,
    make_callbacks,
    make_data,
    model_names,
    model_settings,
    parse_sets,
    parse_techniques,
    run_config,
    to_json,
    write_json,
)
from labelkit.data import sets
from labelkit.errors import LabelKitError
from labelkit.models import SmallCNN, WideResNet

SLUGS = sorted(load_techniques())
BASE = dict(
    techniques=[dict(name="cutmix", args={})],
    data=dict(name="digits", labeled=40),
    model=dict(name="small_cnn", width=4),
    epochs=1,
    lr=1e-2,
    seed=0,
)


def refused(config, *says):
    with pytest.raises(LabelKitError) as e: check_config(config)
    for s in says: assert s in str(e.value), str(e.value)


def misspelled(word):
    "Words that are nearly `word`"
    return {word[:-1], word + "s", word[1:], word.upper(), word[:1] + word} - {"", word}


def test_a_checked_configuration_stays_the_same():
    once = check_config(BASE)
    assert check_config(once) == once and once["data"] == BASE["data"]
    assert json.loads(to_json(once)) == once


@pytest.mark.parametrize("key", [*BASE, "teacher", "versions", "labelkit", "format"])
def test_every_key_is_needed_or_known(key):
    for word in misspelled(key): refused({**BASE, word: 1}, f"the key {word!r} is unknown")
    if key in BASE: refused({k: v for k,v in BASE.items() if k != key}, f"{key!r} is missing")


@pytest.mark.parametrize("name", data_names)
def test_every_setting_of_data_is_known_and_checked(name):
    known = data_settings(name)
    assert {"labeled", "noise_rate", "bs", "bag_size", "known"} <= set(known)
    assert ("n" in known, "root" in known) == (name not in data_here,)*2
    place = dict(name=name) | ({} if name in data_here else dict(root="/nowhere"))
    for k,p in known.items():
        for word in misspelled(k) - set(known):
            refused(BASE | dict(data=place | {word: 1}), f"setting {word!r} is unknown")
        for bad in (math.nan, {}, {"a": 1}, object()):
            refused(BASE | dict(data=place | {k: bad}), f"data.{k}=")
        other = [0, True, "3"] if p.annotation is int else ["3"] if p.annotation is float else []
        for bad in other: refused(BASE | dict(data=place | {k: bad}), f"data.{k}=")


@pytest.mark.parametrize("name", model_names)
def test_every_setting_of_a_model_is_known_and_checked(name):
    known = model_settings(name)
    assert known and not {"dls", "c", "c_in", "stats"} & set(known)
    for where in ("model", "teacher"):
        for k,p in known.items():
            techniques = [dict(name="knowledge_distillation")] if where == "teacher" else []
            base = BASE | dict(techniques=techniques, teacher=dict(name="small_cnn"))
            if where == "model": del base["teacher"]
            for word in misspelled(k) - set(known):
                refused(base | {where: {"name": name, word: 1}}, f"setting {word!r} is unknown")
            for bad in ("8", math.nan, [], True, *([0, -1, 1.5] if p.annotation is int else [])):
                refused(base | {where: {"name": name, k: bad}}, f"{where}.{k}=")


@pytest.mark.parametrize("slug", SLUGS)
def test_every_setting_of_a_technique_is_known_and_checked(slug):
    known = load_techniques()[slug].cls.parameters()
    one = lambda **args: BASE | dict(techniques=[dict(name=slug, args=args)])
    for k,p in known.items():
        for word in misspelled(k) - set(known):
            refused(one(**{word: 1}), f"setting {word!r} is unknown")
        refused(one(**{k: object()}), f"{slug}.{k}=")
        if isinstance(p.default, (int, float)): refused(one(**{k: "much"}), f"{slug}.{k}='much'")
    refused(one() | dict(techniques=[dict(name=slug), dict(name=slug.upper())]), "named twice")
    refused(one() | dict(techniques=[dict(name=slug, arg={})]), "did you mean args?")


@pytest.mark.parametrize("slug", SLUGS)
def test_every_technique_can_be_typed_and_saved(slug):
    card = load_techniques()[slug]
    for spelling in (slug, card.name, slug.upper(), slug.replace("_", "-")):
        typed,_ = parse_techniques(spelling)
        assert typed == [dict(name=slug, args=defaults(card.cls.parameters()))]
    config = BASE | dict(techniques=typed, teacher=dict(name="small_cnn", width=64))
    for k in card.data: refused(config, f"{slug} is for data with {k}: write --set data.{k}=")
    config["data"] = BASE["data"] | card.data
    # a store, a log, votes or candidates are made in Python, and without them nothing is done
    if card.makes: return refused(config, f"{slug}: ", "missing")
    checked = check_config(config)["techniques"]
    assert json.loads(to_json(checked)) == json.loads(to_json(typed))


def test_what_cannot_be_typed_is_missing():
    one = lambda name, **args: BASE | dict(techniques=[dict(name=name, args=args)])
    refused(one("spl"), "spl: weak_labels is missing", "use it in Python, SPL(weak_labels=…)")
    refused(one("label_budget"), "label_budget: good is missing, and without it LabelBudget does")
    check_config(one("cutmix", p=0.))  # turned off by a number is what was asked for


@pytest.mark.parametrize(
    "change,says",
    [
        (dict(epochs=0), "epochs=0 is no whole number"),
        (dict(epochs=-1), "epochs=-1"),
        (dict(epochs=True), "epochs=True"),
        (dict(epochs=2.), "epochs=2.0"),
        (dict(epochs="2"), "epochs='2'"),
        (dict(lr=math.nan), "lr=nan"),
        (dict(lr=math.inf), "lr=inf"),
        (dict(lr=0), "lr=0"),
        (dict(lr="1e-3"), "lr='1e-3' is no number"),
        (dict(lr=[1e-3]), "lr=[0.001] is no number"),
        (dict(lr=True), "lr=True"),
        (dict(seed=1.5), "seed=1.5"),
        (dict(seed=2**64), "seed=18446744073709551616"),
        (dict(seed=None), "seed=None"),
        (dict(techniques="cutmix"), "techniques is no list"),
        (dict(techniques=["cutmix"]), "without a name"),
        (dict(techniques=[dict(name="cutmx")]), "did you mean CutMix?"),
        (dict(techniques=[dict(name="cutmix+mixup")]), "is unknown"),
        (dict(techniques=[dict(name="baseline+")]), "is unknown"),
        (dict(techniques=[dict(name="cutmix", args=[])]), "args=[] is no dictionary"),
        (dict(techniques=[dict(name="cutmix", args=dict(alpha=-1))]), "alpha=-1"),
        (dict(techniques=[dict(name="fixmatch", args=dict(weak="left"))]), "fixmatch: view 'left'"),
        (dict(techniques=[dict(name="knowledge_distillation")]), "'teacher' is missing"),
        (dict(data={}), "data has no name"),
        (dict(data=dict(name="digit")), "did you mean digits?"),
        (dict(data=dict(name="mnist")), "pass --root"),
        (dict(data=dict(name="digits", noise="pair")), "noise='pair' has no effect"),
        (dict(data=dict(name="digits", noise="pair", noise_rate=0.)), "has no effect"),
        (dict(data=dict(name="digits", ratio=3)), "ratio=3 has no effect"),
        (dict(model="small_cnn"), "model has no name"),
        (dict(model=dict(name="mlp")), "use one of small_cnn"),
        (dict(teacher=dict(name="small_cnn", width=8)), "'teacher' has no effect"),
        (dict(teacher=3), "'teacher' has no effect"),
        (dict(versions=["torch"]), "versions is no dictionary"),
        (dict(versions=dict(torch=2)), "versions is no dictionary"),
        (dict(labelkit="comparison"), "of another kind"),
        (dict(format=2), "newer version"),
    ],
    ids=str,
)
def test_what_is_refused(change, says, monkeypatch):
    monkeypatch.delenv("LABELKIT_DATA", raising=False)
    refused(BASE | change, says)


@pytest.fixture
def images(monkeypatch):
    "In the place of torchvision's sets: 40 images of 2 classes"
    asked = []
    def load(name, root, train, download):
        asked.append((name, root, train, download))
        return torch.rand(40, 1, 8, 8), torch.arange(40) % 2, ["a", "b"]
    monkeypatch.setattr(sets, "_load_set", load)
    return asked


def test_a_folder_of_the_environment(images, monkeypatch):
    monkeypatch.setenv("LABELKIT_DATA", "/there")
    d = check_config(BASE | dict(data=dict(name="mnist", labeled=10)))["data"]
    assert "root" not in d and make_data(d, 0).n_ids == 40 and not images[0][3]


def test_settings_reach_what_comes_with_packages():
    d = check_config(BASE | dict(data=dict(name="mnist_5k", size=7, valid=100)))["data"]
    assert make_data(d, 0).train_ds.arrays.x.shape == (4900, 1, 7, 7)
    d = check_config(BASE | dict(data=dict(name="photos", size=64)))["data"]
    assert make_data(d, 0).c == 2


@pytest.mark.parametrize("config", [None, [], 3, "config", {}], ids=str)
def test_what_is_no_configuration(config): refused(config)


def test_what_has_an_effect_after_all():
    check_config(BASE | dict(data=dict(name="digits", noise="pair", noise_rate=.2)))
    check_config(BASE | dict(data=dict(name="digits", labeled=40, ratio=3)))
    check_config(BASE | dict(data=dict(name="digits", known=6, ratio=3)))
    check_config(BASE | dict(teacher=lib.standard_teacher))  # as every saved run has it


def test_files_in_every_encoding(tmp_path):
    p = tmp_path/"c.json"
    text = json.dumps(BASE | dict(versions=dict(labelkit="ü")), ensure_ascii=False)
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        p.write_text(text, encoding=encoding)
        assert load_config(p)["versions"] == dict(labelkit="ü")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        '{"techniques": []}',
        "["*100_000,
        '{"epochs": 1, "epochs": 2}',
        json.dumps(BASE)[:-1] + ', "lr": 3}',
        json.dumps(BASE)[:-1] + ", }",
        json.dumps(BASE | dict(lr=math.nan)),
        json.dumps(BASE).replace("0.01", "1e999"),
        b"\xff\xfe\x00",
    ],
    ids=lambda t: str(t)[:40],
)
def test_a_foreign_file_is_refused_by_name(text, tmp_path):
    p = tmp_path/"mine.json"
    p.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(LabelKitError, match="mine.json"): load_config(p)
    with pytest.raises(LabelKitError, match="mine.json"): load_config(tmp_path/"no"/"mine.json")


def test_json_is_for_every_reader(tmp_path):
    write_json(tmp_path/"x.json", dict(a=[math.nan, (1, math.inf)], b="ü \udcff"))
    text = (tmp_path/"x.json").read_bytes().decode()
    read = json.loads(text, parse_constant=lambda k: pytest.fail(f"{k} is no JSON"))
    assert read == dict(a=[None, [1, None]], b="ü \udcff")


def test_words_of_set():
    words = ["threshold=.9", "fix_match.weight=2", "on=true", "off=None", "how=cosine", "a=[1, 2]",
             "b=", "c==", "data.bag_size=4"]
    assert parse_sets(words) == [
        ("", "threshold", .9),
        ("fix_match", "weight", 2),
        ("", "on", True),
        ("", "off", None),
        ("", "how", "cosine"),
        ("", "a", [1, 2]),
        ("", "b", ""),
        ("", "c", "="),
        ("data", "bag_size", 4),
    ]
    for bad in ("alpha", "=1", "1a=2", "a b=1", ".a=1"):
        with pytest.raises(LabelKitError, match="not of the form"): parse_sets([bad])
    with pytest.raises(LabelKitError, match="a.b=… stands there twice"): parse_sets(["a.b=1"]*2)
    for deep in ("["*10_000, "(" * 200 + ")"*200, "1" + "0"*5000): parse_sets([f"a={deep}"])


@pytest.mark.parametrize(
    "spec,words,says",
    [
        ("cutmix+cutmix", (), "'cutmix' is named twice"),
        ("cutmix+cut_mix", (), "'cutmix' is named twice"),
        ("cutmx", (), "did you mean CutMix?"),
        ("", (), "unknown"),
        ("cutmix", ["cutmix.alhpa=1"], "did you mean alpha?"),
        ("cutmix", ["alpha=much"], "cutmix.alpha='much' is not a number"),
        ("cutmix", ["alpha={1}"], "no number, word"),
        ("cutmix", ["alpha=1j"], "no number, word"),
        ("cutmix", ["alpha=1e999"], "no number, word"),
        ("cutmix+mixup", ["alpha=.5"], "write cutmix.alpha"),
        ("cutmix", ["alpha=1", "cutmix.alpha=2"], "twice"),
        ("cutmix", ["cutmi.alpha=2"], "did you mean CutMix?"),
    ],
)
def test_wrong_words_of_a_technique(spec, words, says):
    with pytest.raises(LabelKitError) as e: parse_techniques(spec, parse_sets(words))
    assert says in str(e.value)


def test_sets_that_fit_nothing():
    check = lambda specs, word: check_sets(specs, parse_sets([word]), set())
    with pytest.raises(LabelKitError, match="did you mean alpha?"): check(["cutmix"], "alhpa=1")
    with pytest.raises(LabelKitError, match="'mixup' is unknown"): check(["cutmix"], "mixup.p=1")
    with pytest.raises(LabelKitError, match="setting 'alpha'"): check(["baseline"], "alpha=1")
    check(["cutmix"], "data.bag_size=4")
    check(["cutmix"], "model.width=4")


def test_settings_reach_their_techniques():
    techniques,used = parse_techniques(
        "fixmatch+cutmix", parse_sets(["threshold=.8", "CutMix.alpha=.5", "data.labeled=3"])
    )
    assert used == {0, 1}
    cbs = make_callbacks(dict(techniques=techniques))(None)
    assert [repr(cb) for cb in cbs] == ["FixMatch(threshold=0.8)", "CutMix(alpha=0.5)"]


@pytest.mark.parametrize("name", data_names[len(data_here):])
def test_settings_reach_the_data(name, images):
    d = dict(name=name, root="/there", download=True, n=30, labeled=10, bs=5, ratio=2)
    dls = make_data(check_config(BASE | dict(data=d))["data"], 3)
    assert images[0] == (name, "/there", True, True)
    assert (dls.n_ids, len(dls.train_ds), dls.train.bs, dls.unlabeled.bs) == (30, 10, 5, 10)
    again = make_data(d, 4)
    assert dls.given.tolist() != again.given.tolist()


def test_settings_reach_digits_and_models():
    d = dict(name="digits", valid_pct=.5, bag_size=4, bs=8)
    dls = make_data(check_config(BASE | dict(data=d))["data"], 0)
    assert dls.n_ids == 1797 - 898 and dls.proportions is not None and dls.train.bs == 8
    make = lambda **d: as_row(check_config(BASE | dict(model=d)))["model"](dls)
    assert make(name="small_cnn", width=3).n_features == 12
    net = make(name="wide_resnet", depth=10, width=1, dropout=.5)
    assert isinstance(net, WideResNet) and net.n_features == 64
    assert make(name="small_vit", dim=8, heads=2, depth=1, patch=4).n_features == 8


def test_errors_of_data_and_models_have_a_place():
    with pytest.raises(LabelKitError, match="^data: labeled=4000"):
        make_data(dict(name="digits", labeled=4000), 0)
    with pytest.raises(LabelKitError, match="^model: depth must be"):
        lib.make_model(dict(name="wide_resnet", depth=11))(make_data(BASE["data"], 0))


def test_one_teacher_for_all_who_need_one(monkeypatch):
    trained = []
    def train(dls, config):
        trained.append(SmallCNN(10, ([0.], [1.]), config["teacher"]["width"]))
        return trained[-1]
    monkeypatch.setattr(lib, "train_teacher", train)
    names = ("knowledge_distillation", "mealv2")
    config = BASE | dict(
        techniques=[dict(name=n) for n in names], teacher=dict(name="small_cnn", width=6)
    )
    make_callbacks(check_config(config))(SimpleNamespace())
    assert [t.n_features for t in trained] == [24]


def test_a_configuration_is_the_run():
    config = check_config(copy.deepcopy(BASE))
    before = copy.deepcopy(config)
    told = []
    _,epochs = run_config(config, told.append)
    assert told == epochs and config == before
    assert run_config(json.loads(to_json(config)))[1] == epochs
    assert run_config(config | dict(seed=1))[1] != epochs
    assert run_config(config | dict(lr=1e-3))[1] != epochs
