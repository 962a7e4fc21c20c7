"""The review without a page: what is flagged, every decision in the log, messages from a page, and
wrong input"""
import numpy as np, pandas as pd, pytest, torch

from labelkit.data.loaders import digits, from_arrays
from labelkit.errors import LabelKitError
from labelkit.storage.label_log import LabelLog
from labelkit.storage.ledger import Ledger
from labelkit.explore.review import Review, flagged_rows, review, severity_of, thumbnails

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


def test_pictures():
    g = torch.Generator().manual_seed(0)
    x = torch.rand(4, 3, 100, 50, generator=g)
    assert (
        thumbnails(x, [0, 2]).shape == (2, 3, 64, 32)
        and thumbnails(x.numpy(), [1]).dtype == np.uint8
    )
    assert (
        thumbnails((x[..., :8, :8] * 255).byte(), [3]) == (x[3:, :, :8, :8] * 255).byte().numpy()
    ).all()
    from PIL import Image
    pil = [(Image.new("RGB", (30, 10), (255, 0, 0)), 0), (Image.new("L", (10, 200), 128), 1)]
    t = thumbnails(pil, [0, 1])
    assert (
        t.shape == (2, 3, 64, 64)
        and t[0, :, 32, 32].tolist() == [255, 0, 0]
        and t[0, :, 0, 0].tolist() == [0, 0, 0]
        and t[1, 0, 32, 32] == 128
    )


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
    assert (
        learn.label_edits.table.targets.argmax(1).tolist()
        == r.label_log.labels()[learn.label_edits.ids[learn.label_edits.table.place[:24] >= 0]].tolist()
    )
    assert (learn.label_edits.table.place >= 0).sum() == 3
