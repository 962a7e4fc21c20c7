"""The review without a page: what is flagged, every decision in the log, messages from a page, and
wrong input"""
from unicodedata import normalize

import numpy as np, pandas as pd, pytest, torch
from PIL import Image

from labelkit.data.loaders import from_arrays, label_dls

from labelkit.data.sets import digits
from labelkit.errors import LabelKitError
from labelkit.storage.label_log import LabelLog
from labelkit.storage.ledger import Ledger
from labelkit.storage.log_file import LogFile
from labelkit.explore.review import Review, flagged_rows, review, severity_of

VOCAB = ["cat", "dog", "fox"]
FLAGS = pd.DataFrame(
    dict(
        id=[3, 0, 5],
        suggested_label=["dog", "fox", "cat"],
        confidence=[0.9, 0.5, 0.7],
        label_quality=[0.1, 0.3, 0.2],
        severity=["low", "high", "high"],
        reason=["a", "", "c"],
    )
)


@pytest.fixture
def log(tmp_path): return LabelLog(tmp_path/"labels.db", [0, 1, 2, 0, 1, 2], VOCAB, author="first")
@pytest.fixture
def r(log): return review(FLAGS, log, torch.rand(6, 1, 8, 8))

def ask(r, **message):
    "What a page would send, and what it gets"
    sent = []
    r.send = lambda content, buffers=None: sent.append((content, buffers))
    r._answer(r, message, [])
    return sent


def test_rows_from_a_frame(log):
    rows = flagged_rows(FLAGS, log)
    assert (
        rows["id"].tolist() == [5, 0, 3]
        and rows["given"].tolist() == [2, 0, 0]
        and rows["suggested"].tolist() == [0, 2, 1]
    )
    assert rows["reason"] == ["c", "fox is predicted with 0.50, the given label cat with 0.30", "a"]
    numbers = flagged_rows(
        FLAGS.assign(suggested_label=[1, 2, 0]).drop(
            columns=["severity", "label_quality", "reason"]
        ),
        log,
    )
    assert (
        numbers["suggested"].tolist() == [1, 0, 2]
        and (numbers["quality"] == -1).all()
        and numbers["severity"].tolist() == [3, 3, 2]
    )
    assert severity_of([.9, .6, .4], [.1, .2, .3]).tolist() == [3, 2, 1]


def test_rows_from_a_ledger(log):
    led = Ledger(6, given=log.given, vocab=VOCAB, reasons=("looks different",))
    led.record(
        torch.arange(4),
        torch.tensor([1, 1, 0, 0]),
        torch.tensor([0.9, 0.8, 0.7, 0.6]),
        torch.ones(4, dtype=torch.bool),
        0,
    )
    rows = flagged_rows(led, log)
    assert rows["id"].tolist() == [0, 2] and set(rows["reason"]) == {"looks different"}


def test_numbers_as_names(tmp_path):
    "A vocab of numbers: a technique's own table has members of it, not places in it"
    class Found:
        ledger = Ledger(3, vocab=[20, 10])
        def issues(self): return pd.DataFrame(dict(id=[0], suggested_label=[10], confidence=[.9]))
    log = LabelLog(tmp_path/"n.db", [0, 1, 0], [20, 10])
    assert flagged_rows(Found(), log)["suggested"].tolist() == [1]


def test_decisions_go_to_the_log(r, log):
    assert r.ids == [5, 0, 3] and r.decided == [-3, -3, -3]
    r.accept(5), r.reject([0], "seen"), r.choose(torch.tensor([3]), None)
    assert r.decided == [0, 0, -1] and log.labels().tolist() == [0, 1, 2, -1, 1, 0]
    assert (
        log.frame()
        .reason.tolist()[0]
        .startswith("seen. given label kept; flagged because fox is predicted")
    )
    assert r.undo() == [3] and r.decided[2] == -3 and r.redo() == [3] and r.decided[2] == -1
    assert r.frame().decided.tolist()[:2] == ["cat", "cat"] and r.frame().is_decided.all()
    log.edit(5, "fox", author="second")
    assert r.refresh().decided[0] == 2 and "3 decided" in repr(r)


def test_messages_of_a_page(r, log):
    ((saved, _),) = ask(
        r, kind="decide", n="x-1", what="accept", rows=[0, 1], label=None, reason="sure"
    )
    assert (
        saved["kind"] == "saved"
        and saved["n"] == "x-1"
        and log.labels()[[5, 0]].tolist() == [0, 2]
        and len(log.history()) == 2
    )
    assert (
        ask(r, kind="decide", n="2", what="choose", rows=[2], label=-1)[0][0]["said"]
        == "Saved: sample 3 is without a label now."
    )
    assert ask(r, kind="undo", n="3")[0][0]["go"] == 2 and r.decided[2] == -3
    assert (
        "Redo: sample 3" in ask(r, kind="redo", n="4")[0][0]["said"]
        and ask(r, kind="redo", n="5")[0][0]["said"] == "Nothing to redo."
    )
    (m, buffers), = ask(r, kind="images", rows=[1, 2])
    assert m["rows"] == [1, 2] and len(buffers[0]) == 2*64


@pytest.mark.parametrize(
    "message",
    [
        dict(kind="decide", what="accept", rows=[99]),
        dict(kind="decide", what="drop", rows=[0]),
        dict(kind="decide", what="accept", rows="all"),
        dict(kind="decide", what="choose", rows=[0], label=7),
        dict(kind="decide", what="choose", rows=[0], label={"a": 1}),
    ],
)
def test_a_wrong_message_is_refused_and_nothing_kept(r, log, message):
    (m, _), = ask(r, n="1", **message)
    assert m["kind"] == "failed" and m["said"].startswith("Not saved: ") and len(log.history()) == 0
    assert ask(r, kind="other") == [] and ask(r, kind=["decide"]) == []


@pytest.mark.parametrize(
    "change,said",
    [
        (dict(id=[0, 0, 1]), "each once"),
        (dict(id=[0, 1, 6]), "numbers below 6"),
        (dict(id=["a", "b", "c"]), "numbers below 6"),
        (dict(confidence=[1.5, 0, 0]), "between 0 and 1"),
        (dict(suggested_label=["dog", "owl", "cat"]), "suggested_label of row 1 is 'owl'"),
        (dict(severity=["awful"] * 3), "severity 'awful' is none of"),
    ],
)
def test_wrong_tables(log, change, said):
    with pytest.raises(LabelKitError) as e: review(FLAGS.assign(**change), log)
    assert said in str(e.value)


def test_wrong_arguments(log, r, tmp_path):
    for f, said in (
        (lambda: review(FLAGS[:0], log), "nothing to review"),
        (lambda: review(7, log), "source is a int"),
        (lambda: review(FLAGS, tmp_path / "x.db"), "is no file yet"),
        (lambda: review(FLAGS, log, torch.rand(6, 5)), "pass images"),
        (lambda: review(FLAGS, log, max_rows=0), "max_rows=0"),
        (lambda: r.accept(1), "id 1 is none of the 3"),
        (lambda: r.choose(5, "owl"), "label 'owl' is no class"),
    ):
        with pytest.raises(LabelKitError, match=said): f()


def test_many_large_pictures_stay_light(tmp_path):
    n = 400
    log = LabelLog(tmp_path/"m.db", [0]*n, VOCAB)
    f = pd.DataFrame(
        dict(
            id=range(n),
            suggested_label=1,
            confidence=0.9,
            reason="because it is so, and much more of it " * 3,
        )
    )
    r = review(f, log, torch.rand(n, 3, 64, 64))
    assert r.saved_size < 300_000 and 0 < r.arrays["images"]["shape"][0] < n
    assert len(ask(r, kind="images", rows=[n-1])[0][1][0]) == 3*64*64


def test_from_loaders_without_pictures(tmp_path):
    x = torch.rand(40, 7)
    dls = from_arrays(x[:30], torch.arange(30) % 3, x[30:], torch.arange(10) % 3, vocab=VOCAB)
    r = review(FLAGS, tmp_path/"t.db", dls, author="first")
    assert isinstance(r, Review) and r.arrays == {} and r.data["shape"] is None
    r.accept(r.ids)
    assert LabelLog(tmp_path/"t.db", dls).labels()[r.ids].tolist() == [0, 2, 1]
    with pytest.raises(LabelKitError, match="is the log of 30 samples"):
        review(FLAGS, tmp_path/"t.db", digits())


def test_users_own_loaders(tmp_path):
    "Images of a data set of their own, labels read from it, and a fit with what was decided"
    from fastai.basics import DataLoader, DataLoaders, Learner
    from fastai.callback import schedule  # noqa: F401
    from labelkit.data.loaders import label_dls
    from labelkit.models import small_cnn
    from labelkit.relabel.label_edits import LabelEdits
    g = torch.Generator().manual_seed(0)
    items = [(torch.rand(3, 12, 8, generator=g), torch.tensor(i % 3)) for i in range(24)]
    dls = label_dls(DataLoaders(DataLoader(items, bs=8, shuffle=True), DataLoader(items, bs=8)))
    dls.vocab = VOCAB
    r = review(FLAGS, tmp_path/"own.db", dls, author="first")
    assert r.data["shape"] == [3, 64, 64] and r.arrays["images"]["shape"][0] == 3
    r.accept(r.ids)
    learn = Learner(
        dls,
        small_cnn(c=3, c_in=3, width=4),
        cbs=LabelEdits(r.label_log),
        loss_func=torch.nn.CrossEntropyLoss(),
    )
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    cb = learn.label_edits
    corrected = cb.ids[cb.table.place[:24] >= 0]
    assert cb.table.targets.argmax(1).tolist() == r.label_log.labels()[corrected].tolist()
    assert (cb.table.place >= 0).sum() == 3


class TestFiles:
    "Samples that are files: of a list, of a folder, on another computer"
    @pytest.fixture
    def files(self, tmp_path):
        (tmp_path/"img").mkdir()
        names = ["café 1.png", "b#2.jpg", "c.png", "d.png", "e.png", "f.png"]
        for i, o in enumerate(names):
            Image.new("RGB", (20, 10), (40*i, 0, 0)).save(tmp_path/"img"/o)
        return names

    def test_a_list_in_each_form(self, log, files, tmp_path):
        paths = [tmp_path/"img"/o for o in files]
        for data in (
            paths,
            [str(o) for o in paths],
            [o.as_uri() for o in paths],
            np.array([str(o) for o in paths]),
            pd.Series([str(o) for o in paths], index=range(6, 0, -1)),
            [Image.open(o) for o in paths],
            [(Image.open(o), 0) for o in paths],
        ):
            r = review(FLAGS, log, data)
            assert r.data["shape"] == [3, 64, 64] and r.ids == [5, 0, 3]
            shown = np.frombuffer(r.arrays["images"]["data"], np.uint8).reshape(3, 3, 64, 64)
            assert shown[:, 0, 32, 32].tolist() == [200, 0, 120]

    def test_a_damaged_file_among_others(self, log, files, tmp_path):
        (tmp_path/"img"/files[5]).write_bytes(b"no picture")
        (tmp_path/"img"/files[0]).unlink()
        r = review(FLAGS, log, [tmp_path/"img"/o for o in files])
        assert r.data["shape"] == [3, 64, 64]
        (m, buffers), = ask(r, kind="images", rows=[0])  # by itself, too
        assert m["rows"] == [0] and len(buffers[0]) == 3*64*64
        r.choose(5, None, "no picture")
        assert log.labels()[5] == -1

    def test_nothing_that_can_be_shown(self, log, files, tmp_path):
        for data, said in (
            ([f"{tmp_path}/none/{o}" for o in files], "no picture that can be shown"),
            ([tmp_path/"img"/o for o in files][:4], "data has 4 pictures, and sample 5"),
            (["a", "b", "c", "d", "e", "f"], "no picture that can be shown"),
            ([{"image": 1}]*6, "no picture that can be shown"),
            (tmp_path/"img", "is no folder of a log with keys"),
            (np.zeros((6, 4)), "is no picture: pass images"),
        ):
            with pytest.raises(LabelKitError, match=said): review(FLAGS, log, data)

    def test_a_folder_and_keys_of_another_computer(self, files, tmp_path):
        "The log and flags come from a Mac; the disk has one name composed and one decomposed"
        keys = [f"img/{normalize('NFD', o)}" for o in files]
        (tmp_path/"img"/files[1]).rename(tmp_path/"img/é.jpg")
        keys[1] = f"img/{normalize('NFD', 'é.jpg')}"
        (tmp_path/"img"/files[2]).rename(tmp_path/"img"/normalize("NFD", "ü.png"))
        keys[2] = "img/ü.png"
        LabelLog(tmp_path/"k.db", [0, 1, 2, 0, 1, 2], VOCAB, keys=keys).close()
        flags = FLAGS.drop(columns="id").assign(key=[keys[1], keys[2], keys[0]])
        r = review(flags, tmp_path/"k.db", str(tmp_path))
        assert r.rows["id"].tolist() == [0, 2, 1]
        shown = np.frombuffer(r.arrays["images"]["data"], np.uint8).reshape(3, 3, 64, 64)
        np.testing.assert_allclose(shown[:, 0, 32, 32].astype(int), [0, 80, 40], atol=3)
        r.accept(1)
        there = LabelLog(tmp_path/"k.db", [2, 1, 0], VOCAB, keys=[keys[i] for i in (2, 1, 0)])
        assert there.labels().tolist() == [2, 1, 0] and len(there.standing()) == 1

    def test_keys_are_not_numbers(self, files, tmp_path):
        "Numbers mean nothing to a log that knows its samples by key and was opened alone"
        LabelLog(tmp_path/"k.db", [0, 1, 2, 0, 1, 2], VOCAB, keys=files).close()
        paths = [tmp_path/"img"/o for o in files]
        with pytest.raises(LabelKitError, match="give source a column 'key'"):
            review(FLAGS, tmp_path/"k.db")
        flags = FLAGS.assign(key=files[:3])
        with pytest.raises(LabelKitError, match="data has them in an order of its own"):
            review(flags, tmp_path/"k.db", paths)
        with pytest.raises(LabelKitError, match="id 'x.png' is none of"):
            review(flags.assign(key=["x.png", *files[:2]]), tmp_path/"k.db")
        own = LabelLog(tmp_path/"k.db", [0, 1, 2, 0, 1, 2], VOCAB, keys=files)
        assert review(FLAGS, own, paths).ids == [5, 0, 3]

    def test_class_names_in_another_form(self, tmp_path):
        log = LabelLog(tmp_path/"u.db", ["Käse", "Öl"])
        name = normalize("NFD", "Öl")
        flags = pd.DataFrame(dict(id=[0], suggested_label=[name], confidence=[.9]))
        assert flagged_rows(flags, log)["suggested"].tolist() == [1]

    def test_a_log_that_can_only_be_read(self, log, tmp_path, monkeypatch):
        log.close()
        monkeypatch.setattr(LogFile, "_may_write", lambda self: False)
        r = review(FLAGS, LabelLog(tmp_path/"labels.db"))
        ((m, _),) = ask(r, kind="decide", n="1", what="accept", rows=[0])
        assert m["kind"] == "failed" and "can only be read" in m["said"] and r.decided == [-3]*3


def test_own_loaders_of_files_and_of_text(tmp_path):
    """fastai's own pictures of files, of which one is damaged, and samples that are no pictures"""
    from fastai.basics import DataLoader, DataLoaders
    from fastai.vision.all import ImageDataLoaders, Resize
    for i in range(8):
        (tmp_path/"img"/"ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("L", (12, 30), 30*i).save(tmp_path/f"img/{'ab'[i % 2]}/{i}.png")
    dls = ImageDataLoaders.from_folder(
        tmp_path/"img", valid_pct=.25, seed=0, item_tfms=Resize(8), bs=2, num_workers=0
    )
    dls = label_dls(dls)
    flags = pd.DataFrame(dict(id=[0, 2], suggested_label=["a", "b"], confidence=[.9, .8]))
    r = review(flags, tmp_path/"files.db", dls)
    assert r.data["shape"] == [3, 64, 64]
    assert r.label_log.given.tolist() == [dls.vocab.o2i[o.parent.name] for o in dls.train_ds.items]
    items = [(torch.arange(5), torch.tensor(i % 2)) for i in range(4)]
    text = label_dls(DataLoaders(DataLoader(items, bs=2), DataLoader(items, bs=2)))
    text.vocab = ["a", "b"]
    assert review(flags, tmp_path/"text.db", text).data["shape"] is None
