"""The label log: what stands after undo and redo, two real processes at once, kill -9, files both
ways, other data, and wrong input"""
import json, pickle, signal, sqlite3, subprocess, sys, threading
from pathlib import Path
from unicodedata import normalize

import numpy as np, pandas as pd, pytest, torch
from fastai.basics import Learner
from fastai.callback import schedule  # noqa: F401

from labelkit.data.loaders import from_arrays
from labelkit.errors import LabelKitError
from labelkit.storage.label_log import LabelLog
from labelkit.storage.label_names import nfc
from labelkit.storage.log_file import LogFile, make_tables
from labelkit.models import small_cnn
from labelkit.relabel.label_edits import LabelEdits

VOCAB = ["cat", "dog", "fox"]
GIVEN = [0, 1, 2, 0, 1, 2, -1, 0]


@pytest.fixture
def path(tmp_path): return tmp_path/"labels.db"
@pytest.fixture
def log(path): return LabelLog(path, GIVEN, VOCAB, author="first")


class TestEdits:
    def test_given_stay_and_new_labels_come(self, log):
        a = log.edit([0, 2], ["dog", 0], reason=["one", "two"])
        b = log.edit(1, torch.tensor(2))
        assert b > a and log.given.tolist() == GIVEN
        assert log.labels().tolist() == [1, 2, 0, 0, 1, 2, -1, 0]
        assert log.frame()[["id", "given_label", "label", "author", "reason"]].values.tolist() == [
            [0, "cat", "dog", "first", "one"],
            [1, "dog", "fox", "first", ""],
            [2, "fox", "cat", "first", "two"],
        ]

    def test_no_label_both_ways(self, log):
        log.edit(0, None), log.edit(6, "fox"), log.edit(1, -1)
        assert log.labels().tolist() == [-1, -1, 2, 0, 1, 2, 2, 0]

    def test_a_column_with_gaps(self, log):
        log.edit(pd.Series([0, 1, 2]), pd.Series(["dog", None, "cat"]))
        assert log.labels()[:3].tolist() == [1, -1, 0]

    def test_undo_takes_whole_edits_of_one_author(self, log):
        log.edit([0, 1], "fox"), log.edit(0, "dog", author="second"), log.edit(2, "cat")
        assert log.undo() == [2] and log.undo() == [0, 1] and log.undo() == []
        assert log.labels().tolist() == [1, *GIVEN[1:]]  # what the second said still counts
        assert log.undo("second") == [0] and log.labels().tolist() == GIVEN

    def test_redo_in_order_until_a_new_edit(self, log):
        for i in range(3): log.edit(i, "fox")
        log.undo(), log.undo()
        assert (
            log.redo() == [1]
            and log.undo() == [1]
            and log.redo() == [1]
            and log.redo() == [2]
            and log.redo() == []
        )
        log.undo()
        log.edit(5, "cat", author="second")  # another's edit does not end the redoing of the first
        assert log.redo() == [2]
        log.undo(), log.edit(4, "cat")
        assert log.redo() == []

    def test_a_redone_edit_keeps_its_place(self, log):
        log.edit(0, "dog"), log.undo(), log.edit(0, "fox", author="second"), log.redo()
        assert log.labels()[0] == 2

    def test_undo_is_the_same_after_closing(self, log, path):
        log.edit(0, "dog"), log.edit(1, "fox"), log.undo()
        log.close()
        again = LabelLog(path, GIVEN, VOCAB, author="first")
        assert (
            again.redo() == [1]
            and again.undo() == [1]
            and again.undo() == [0]
            and again.labels().tolist() == GIVEN
        )

    def test_random_walk_equals_replay(self, log):
        "Against the plainest model: a list of actions"
        rng = np.random.default_rng(0)
        acts = []
        undone = set()
        redoable = {"first": [], "second": []}
        for _ in range(150):
            who = rng.choice(["first", "second"])
            what = rng.choice(["edit", "edit", "undo", "redo"])
            if what == "edit":
                i = int(rng.integers(8))
                label = int(rng.integers(3))
                log.edit(i, label, author=who)
                acts.append((who, i, label))
                redoable[who] = []
            elif what == "undo":
                mine = [k for k, a in enumerate(acts) if a[0] == who and k not in undone]
                assert log.undo(who) == ([acts[mine[-1]][1]] if mine else [])
                if mine:
                    undone.add(mine[-1])
                    redoable[who].append(mine[-1])
            else:
                k = redoable[who].pop() if redoable[who] else None
                assert log.redo(who) == ([] if k is None else [acts[k][1]])
                undone.discard(k)
            want = list(GIVEN)
            for k, (_, i, label) in enumerate(acts):
                if k not in undone: want[i] = label
            assert log.labels().tolist() == want

    def test_history_has_everything(self, log):
        a = log.edit(0, "dog", reason="why")
        log.undo(), log.redo(), log.edit(1, "fox")
        h = log.history(0)
        assert (
            h.kind.tolist() == ["edit", "undo", "redo"]
            and h.target.fillna(0).tolist() == [0, a, a]
            and h.standing.all()
        )
        assert len(log.history()) == 4 and h.reason.tolist() == ["why", "", ""]

    def test_nothing_can_be_changed_or_removed(self, log):
        log.edit(0, "dog")
        for sql in (
            "UPDATE edits SET label='fox'",
            "DELETE FROM edits",
            "UPDATE samples SET given='fox'",
            "DELETE FROM actions",
        ):
            with pytest.raises(sqlite3.DatabaseError, match="only ever appended"):
                log.file.db.execute(sql)

    def test_many_at_once_are_one_edit(self, path):
        log = LabelLog(path, torch.zeros(20_000, dtype=torch.long), vocab=["a", "b"])
        log.edit(torch.arange(20_000), 1)
        assert (
            log.labels().sum() == 20_000 and len(log.undo()) == 20_000 and log.labels().sum() == 0
        )

    def test_pickle_threads_and_another_thread(self, log):
        twin = pickle.loads(pickle.dumps(log))
        twin.edit(0, "dog")
        assert log.labels()[0] == 1
        ts = [
            threading.Thread(target=lambda: [log.edit(1, "fox") for _ in range(5)])
            for _ in range(3)
        ]
        for t in ts: t.start()
        for t in ts: t.join()
        assert (log.history(1).kind == "edit").sum() == 15


@pytest.mark.parametrize(
    "edit,said",
    [
        (dict(ids=8, labels=0), "id 8 is none of the data's 8 samples"),
        (dict(ids=[0, -1], labels=0), "id -1"),
        (dict(ids=True, labels=0), "id True"),
        (dict(ids=0., labels=0), "ids is 0.0: pass numbers or keys"),
        (dict(ids={0: "dog"}, labels=None), "ids is {0: 'dog'}: pass numbers or keys, and their"),
        (dict(ids=[0, 0], labels=0), "id 0 is there twice"),
        (
            dict(ids=0, labels="cow"),
            "label 'cow' is no class: pass None, a number below 3, or one of cat, dog, fox",
        ),
        (dict(ids=0, labels=3), "label 3 is no class"),
        (dict(ids=0, labels=1.5), "label 1.5"),
        (dict(ids=[0, 1], labels=[0]), "labels has 1 entries for 2 ids"),
        (dict(ids=0, labels=0, author=" "), "author=' ' is not a text"),
        (dict(ids=0, labels=0, reason=7), "reason=7 is not a text"),
        (dict(ids=0, labels=0, reason="\ud800"), "is not a text"),
        (dict(ids=0, labels=0, reason="x"*100_001), "reason has 100001 characters"),
        (dict(ids="img", labels=0), "id 'img'"),
    ],
)
def test_wrong_edits_keep_nothing(log, edit, said):
    with pytest.raises(LabelKitError) as e: log.edit(**edit)
    assert said in str(e.value) and len(log.history()) == 0
    assert log.edit([], "cat") is None and len(log.history()) == 0


class TestOtherData:
    @pytest.mark.parametrize(
        "given,vocab,said",
        [
            (GIVEN[:5], VOCAB, "is the log of 8 samples, and the data have 5"),
            ([1, *GIVEN[1:]], VOCAB, "sample 0 was given 'cat' and is 'dog' now"),
            (
                GIVEN,
                ["cat", "dog", "cow"],
                "class 'fox' of the log is none of the data's 3 classes: pass classes={'fox'",
            ),
        ],
    )
    def test_refused_with_the_fix(self, log, path, given, vocab, said):
        with pytest.raises(LabelKitError) as e: LabelLog(path, given, vocab)
        assert said in str(e.value)

    def test_classes_reordered_added_renamed_removed(self, log, path):
        log.edit(0, "fox"), log.edit(1, "cat")
        order = ["owl", "fox", "dog", "cat"]
        number = lambda y, vocab: [-1 if i < 0 else vocab.index(VOCAB[i]) for i in y]
        moved = LabelLog(path, number(GIVEN, order), order)
        assert [order[i] for i in moved.labels()[:2]] == ["fox", "cat"]
        moved.edit(3, "owl")
        with pytest.raises(LabelKitError, match="class 'owl'"): log.labels()
        moved.undo()
        renamed = LabelLog(
            path, GIVEN, ["cat", "dog", "vixen"], classes=dict(fox="vixen", owl=None)
        )
        assert renamed.labels().tolist() == [2, 0, 2, 0, 1, 2, -1, 0]
        removed = LabelLog(
            path, [0, 1, -1, 0, 1, -1, -1, 0], ["cat", "dog"], classes=dict(fox=None, owl=None)
        )
        assert removed.labels().tolist() == [-1, 0, -1, 0, 1, -1, -1, 0]
        with pytest.raises(
            LabelKitError, match="classes names 'wolf', which is no class of the log"
        ):
            LabelLog(path, GIVEN, VOCAB, classes=dict(wolf=None))

    def test_keys_follow_samples_to_another_split(self, path):
        names = np.array([f"{i}.png" for i in range(6)])
        y = np.array([0, 1, 2, 0, 1, 2])
        a = LabelLog(path, y[:4], VOCAB, keys=names[:4], author="first")
        a.edit("3.png", "fox"), a.edit(0, "dog")
        b = LabelLog(path, y[[5, 3]], VOCAB, keys=names[[5, 3]], author="first")
        assert (
            b.labels().tolist() == [2, 2]
            and b.history().id.tolist() == [1, -1]
            and b.history().key.tolist() == ["3.png", "0.png"]
        )
        b.edit("5.png", "cat")
        assert a.labels().tolist() == [1, 1, 2, 2]
        assert len(LabelLog(path)) == 5
        with pytest.raises(LabelKitError, match="knows its samples by key: open it with keys="):
            LabelLog(path, y[:4], VOCAB)
        with pytest.raises(LabelKitError, match="knows none of these samples"):
            LabelLog(path, y[:1], VOCAB, keys=["x.png"])
        with pytest.raises(LabelKitError, match="keys has 'a' twice"):
            LabelLog(path, y[:2], VOCAB, keys=["a", "a"])

    def test_opened_alone_with_classes_that_are_called_otherwise_now(self, log, path):
        log.edit(0, "fox")
        alone = LabelLog(path, classes=dict(fox="vixen", dog=None))
        assert alone.vocab == ["cat", "vixen"]
        assert alone.given.tolist() == [0, -1, 1, 0, -1, 1, -1, 0] and alone.labels()[0] == 1
        with pytest.raises(LabelKitError, match="classes names 'wolf', which is no class"):
            LabelLog(path, classes=dict(wolf="fox"))

    def test_opened_alone(self, log, path):
        log.edit(0, "fox")
        alone = LabelLog(path)
        assert alone.vocab == VOCAB and alone.given.tolist() == GIVEN and alone.labels()[0] == 2

    def test_names_for_labels(self, tmp_path):
        assert LabelLog(tmp_path/"n.db", ["dog", None, "cat"]).given.tolist() == [1, -1, 0]
        for given,vocab in ((["dog"], ["cat"]), ([3], VOCAB), ([.5], VOCAB)):
            with pytest.raises(LabelKitError, match="data (gives|of) sample 0"):
                LabelLog(tmp_path/"m.db", given, vocab)
        with pytest.raises(LabelKitError, match="vocab has 'a' twice"):
            LabelLog(tmp_path/"m.db", [0], ["a", "a"])
        assert not (tmp_path/"m.db").exists()


def old_log(path, samples, edits):
    """A log as it was written before keys had one form: samples as (key, given), edits as (key,
    label)"""
    file = LogFile(path, make=True)
    about = dict(fingerprint="", vocab=json.dumps(VOCAB), made="2026-01-01T00:00", keys="true")
    with file.write() as db:
        make_tables(db)
        db.executemany("INSERT INTO about VALUES (?, ?)", about.items())
        db.executemany(
            "INSERT INTO samples VALUES (?, ?, ?)", [(*s, i) for i, s in enumerate(samples)]
        )
        for i, (key, label) in enumerate(edits, 1):
            time = about["made"]
            db.execute("INSERT INTO actions VALUES (?, 'edit', 'first', ?, NULL)", (i, time))
            row = (i, key, label, VOCAB.index(label), "first", "", about["made"])
            db.execute("INSERT INTO edits VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    file.close()


class TestKeysInAnyForm:
    """`é` as one character or as two: macOS hands out file names decomposed, Linux as they were
    written"""
    MAC, LINUX = ([normalize(f, o) for o in ("café.jpg", "roof.jpg")] for f in ("NFD", "NFC"))

    @pytest.mark.parametrize("there,here", [(MAC, LINUX), (LINUX, MAC)])
    def test_a_log_that_moves(self, path, there, here):
        with LabelLog(path, [0, 0], VOCAB, keys=there) as log: log.edit(there[0], "dog")
        log = LabelLog(path, [0, 0], VOCAB, keys=here)
        assert log.labels().tolist() == [1, 0] and len(LabelLog(path)) == 2
        log.edit(there[0], "fox"), log.edit(Path(here[1]), "cat")
        assert log.labels().tolist() == [2, 0] and log.frame().key.tolist() == self.LINUX
        for key in (here[0], there[0]): assert log.history(key).action.tolist() == [1, 2]

    def test_classes(self, path):
        mac,linux = (normalize(form, "Käse") for form in ("NFD", "NFC"))
        log = LabelLog(path, [mac, "Öl", mac])
        log.edit(1, mac), log.edit(2, linux), log.close()
        again = LabelLog(path, [linux, "Öl", linux])
        assert again.labels().tolist() == [0, 0, 0] and again.vocab == [linux, "Öl"]
        renamed = LabelLog(path, ["x", "Öl", "x"], ["x", "Öl"], classes={mac: "x"})
        assert renamed.labels().tolist() == [0, 0, 0]

    def test_an_old_log_goes_on(self, path):
        old_log(path, [(k, "cat") for k in self.MAC], [(self.MAC[0], "dog")])
        for log in (LabelLog(path), LabelLog(path, [0, 0], VOCAB, keys=self.LINUX)):
            assert log.labels().tolist() == [1, 0] and log.keys == self.LINUX
        log.edit(self.LINUX[0], "fox", author="first")
        assert log.labels().tolist() == [2, 0] and len(log.history(self.MAC[0])) == 2
        assert log.undo("first") == [0] and log.labels().tolist() == [1, 0]

    def test_one_sample_that_an_old_log_has_twice(self, path):
        "Made on a Mac, continued on Linux: what was said last about it counts"
        both = [self.MAC[0], self.LINUX[0], self.LINUX[1]]
        old_log(path, [(k, "cat") for k in both], [(both[1], "dog"), (both[0], "fox")])
        for log in (LabelLog(path), LabelLog(path, [0, 0], VOCAB, keys=self.MAC)):
            assert log.labels().tolist() == [2, 0] and len(log) == 2
            assert log.history(self.MAC[0]).label.tolist() == ["dog", "fox"]
        log.edit(0, "cat")
        assert LabelLog(path).labels().tolist() == [0, 0]

    def test_keys_of_another_folder_are_named(self, path):
        LabelLog(path, [0], VOCAB, keys=["/Volumes/data/a.png"])
        match = "knows '/Volumes/data/a.png', keys has '/mnt/a.png'"
        with pytest.raises(LabelKitError, match=match):
            LabelLog(path, [0], VOCAB, keys=["/mnt/a.png"])


class TestBadFiles:
    def test_missing_folder_text_foreign_damaged(self, log, path, tmp_path):
        with pytest.raises(LabelKitError, match="is no file: pass an existing log, or the data"):
            LabelLog(tmp_path/"none.db")
        with pytest.raises(LabelKitError, match="is a folder"): LabelLog(tmp_path, GIVEN, VOCAB)
        (tmp_path/"text").write_text("no database, "*50)
        with pytest.raises(LabelKitError, match="is no label log, or a damaged one"):
            LabelLog(tmp_path/"text", GIVEN, VOCAB)
        db = sqlite3.connect(tmp_path/"foreign")
        db.execute("CREATE TABLE t (a)")
        db.commit()
        db.close()
        before = (tmp_path/"foreign").read_bytes()
        with pytest.raises(LabelKitError, match="another program's SQLite file"):
            LabelLog(tmp_path/"foreign", GIVEN, VOCAB)
        assert (tmp_path/"foreign").read_bytes() == before
        with pytest.raises(LabelKitError, match="cannot be written"):
            LabelLog(tmp_path/"text"/"labels.db", GIVEN, VOCAB)
        log.edit(list(range(8)), "fox", reason="x"*2000)
        log.close()
        whole = path.read_bytes()
        for cut in (whole[:len(whole)//2], whole[:5000]+b"\xff"*8000+whole[13000:]):
            (tmp_path/"cut.db").write_bytes(cut)
            with pytest.raises(LabelKitError, match="damaged"):
                LabelLog(tmp_path/"cut.db", GIVEN, VOCAB).history()

    def test_an_empty_file_is_a_new_log(self, tmp_path):
        (tmp_path/"empty.db").touch()
        assert LabelLog(tmp_path/"empty.db", GIVEN, VOCAB).labels().tolist() == GIVEN

    def test_a_log_that_vanished_is_not_made_anew(self, log, path):
        log.close()
        path.unlink()
        with pytest.raises(LabelKitError, match="is no file"): log.edit(0, "dog")
        assert not path.exists()


class TestTables:
    NASTY = [
        '=HYPERLINK("http://x")',
        "'=1",
        "''",
        "+1",
        "@a",
        "-2",
        "-",
        "＝1",
        'it\'s, "quoted"',
        '"',
        ",",
        ";",
        "two\nlines",
        "\nfirst line empty",
        "old\rMac",
        "\rfirst",
        "Windows\r\n",
        "\ttab",
        "tab\tinside",
        " in front",
        "behind ",
        "ünï ✓",
        "NA",
        "nan",
        "None",
        "null",
        "007",
        "1.0",
        "1e5",
        "TRUE",
        "👩‍👩‍👧",
        "עברית",
        "\u202eright to left",
        "\u200b",
        "\ufeffmark",
        "\x85next line",
        "\u2028line",
        "\x0bfeed\x1c",
        "<b>bold</b>",
        "a"*5000,
        "id",
        "label",
    ]

    @pytest.mark.parametrize("kind", ["csv", "parquet"])
    def test_round_trip(self, tmp_path, kind):
        vocab = self.NASTY
        given = list(range(len(vocab)))
        a = LabelLog(tmp_path/"a.db", given, vocab, author="=first")
        for i, o in enumerate(self.NASTY[:-1]):
            a.edit(i, (i+1) % len(vocab), reason=o, author=f"-{i} {o}")
        a.edit(len(vocab)-1, None, reason="")
        getattr(a, f"to_{kind}")(tmp_path/"f")
        b = LabelLog(tmp_path/"b.db", given, vocab, author="second")
        assert getattr(b, f"from_{kind}")(tmp_path/"f") == len(vocab)
        pd.testing.assert_frame_equal(a.frame(), b.frame())
        assert torch.equal(a.labels(), b.labels())
        assert len(b.undo()) == len(vocab)  # the one who imported can take it back
        if kind == "csv":
            cells = pd.read_csv(tmp_path/"f", dtype=str, keep_default_na=False).to_numpy().ravel()
            assert not [c for c in cells if c[:1] in tuple("=+-@\t\r\n＝")]

    @pytest.mark.parametrize("seed", range(20))
    def test_random_names(self, tmp_path, seed):
        "Any text can be a class, a reason, an author and the name of a file"
        rng = np.random.default_rng(seed)
        signs = [*"abcZ09 ,;'\"=+-@\t\n\r|\\/<>&%#äß字🙂", "e\u0301", "\u00e9", "\u0627", "\u200f"]
        text = lambda: "".join(rng.choice(signs, rng.integers(1, 8)))
        vocab = list({nfc(o) for o in (text() for _ in range(12)) if o.strip()})
        n = len(vocab)
        keys = [f"{o}/{i}" for i, o in enumerate(vocab)]
        a = LabelLog(tmp_path/"a.db", range(n), vocab, keys=keys)
        a.edit(range(n), rng.permutation(n), reason=[*vocab])
        for i in range(0, n, 3): a.edit(keys[i], vocab[i], author=vocab[i], reason=text())
        for kind in ("csv", "parquet"):
            b = LabelLog(tmp_path/f"{kind}.db", range(n), vocab, keys=keys)
            getattr(a, f"to_{kind}")(tmp_path/kind)
            getattr(b, f"from_{kind}")(tmp_path/kind)
            pd.testing.assert_frame_equal(a.frame(), b.frame())
            assert torch.equal(a.labels(), b.labels()) and b.vocab == vocab
        again = LabelLog(tmp_path/"a.db")
        assert again.vocab == vocab and again.keys == keys
        pd.testing.assert_frame_equal(again.frame(), a.frame())

    @pytest.mark.parametrize(
        "text,said",
        [
            ("id,label\n0,dog\n99,cat\n", "line 3: id '99' is none of the data's 8 samples"),
            ("id,label\n0,dog\nx,cat\n", "line 3: id 'x'"),
            ("id,label\n0,dog\n1,cow\n", "line 3: label 'cow' is no class"),
            ("id,label\n0,dog\n0,cat\n", "line 3: id '0' was there in line 2 already"),
            ("id,label\n0,dog\n1\n", "line 3 has 1 cells for 2 columns"),
            ("id\n0\n", "has 0 columns 'label'"),
            ("", "has 0 columns 'id'"),
            ("id,label,label\n0,a,b\n", "has 2 columns 'label'"),
            (
                "id,label,given_label\n0,dog,fox\n",
                "line 2: given_label is 'fox' and sample 0 was given 'cat'",
            ),
            ("id,label,time\n0,dog,yesterday\n", "line 2: time 'yesterday' is none"),
            ('id,label,reason\n0,dog,"a\nb"\n1,cow,\n', "line 4: label 'cow'"),
            ('id,label\n0,"dog\n', "cannot be read as CSV"),
        ],
    )
    def test_bad_csv_imports_nothing(self, log, tmp_path, text, said):
        (tmp_path/"bad.csv").write_text(text)
        with pytest.raises(LabelKitError) as e: log.from_csv(tmp_path/"bad.csv")
        assert said in str(e.value) and "bad.csv" in str(e.value) and len(log.history()) == 0

    def test_bad_files(self, log, tmp_path):
        (tmp_path/"l.csv").write_bytes(b"id,label,reason\n0,dog,\xff\n")
        for name in ("l.csv", "none.csv"):
            with pytest.raises(LabelKitError, match="cannot be read as CSV in UTF-8"):
                log.from_csv(tmp_path/name)
        with pytest.raises(LabelKitError, match="cannot be read as Parquet"):
            log.from_parquet(tmp_path/"l.csv")
        for row, said in (
            (dict(id=[0, 9], label=["cat", "dog"]), "row 2: id 9"),
            (dict(id=[0.5], label=["cat"]), "row 1: id 0.5"),
            (dict(id=[0], label=[1]), "row 1: label 1 is no class: write the name"),
            (dict(label=["cat"]), "has 0 columns 'id'"),
        ):
            pd.DataFrame(row).to_parquet(tmp_path/"p")
            with pytest.raises(LabelKitError, match=said): log.from_parquet(tmp_path/"p")
        assert len(log.history()) == 0

    def test_by_key_and_with_a_byte_order_mark(self, tmp_path):
        log = LabelLog(tmp_path/"k.db", [0, 1], VOCAB, keys=["a.png", "=b.png"])
        (tmp_path/"k.csv").write_bytes("\ufeffkey,label\r\n'=b.png,fox\r\n".encode())
        assert log.from_csv(tmp_path/"k.csv") == 1 and log.labels().tolist() == [0, 2]

    @pytest.mark.parametrize("sign", [";", "\t"])
    def test_spreadsheets_of_other_countries(self, log, tmp_path, sign):
        text = "id,label,reason\r\n0,dog,a\r\n6,fox,\r\n".replace(",", sign)
        (tmp_path/"k.csv").write_bytes(text.encode("utf-8-sig"))
        assert log.from_csv(tmp_path/"k.csv") == 2 and log.labels()[[0, 6]].tolist() == [1, 2]

    def test_rows_are_found_in_another_unicode_form(self, tmp_path):
        log = LabelLog(tmp_path/"k.db", ["Käse", "Öl"], keys=["ä.png", "b.png"])
        text = normalize("NFD", "key,label,given_label\nä.png,Öl,Käse\n")
        (tmp_path/"k.csv").write_text(text, encoding="utf-8")
        log.from_csv(tmp_path/"k.csv")
        assert log.labels().tolist() == [1, 1]


WRITER = """
import sys
from labelkit.storage.label_log import LabelLog
path, who, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
log = LabelLog(path, [0, 1, 2, 0, 1, 2, -1, 0], ["cat", "dog", "fox"], author=who)
i = 0
while n < 0 or i < n:
    a = log.edit([i % 8, (i+1) % 8], ["dog", "fox"], reason=f"{i} " + "x"*300)
    if i % 5 == 4: log.undo()
    print(i, a, flush=True)
    i += 1
"""
def writer(path, who, n):
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), who, str(n)], stdout=subprocess.PIPE, text=True
    )


def test_two_processes_make_and_write_one_log(path):
    both = [writer(path, who, 100) for who in ("first", "second")]
    said = {
        who: [int(line.split()[1]) for line in p.communicate(timeout=120)[0].splitlines()]
        for who, p in zip(("first", "second"), both)
    }
    assert [p.returncode for p in both] == [0, 0]
    h = LabelLog(path).history()
    for who in said:
        mine = h[(h.author == who) & (h.kind == "edit")]
        assert (
            sorted(mine.action.unique()) == said[who]
            and len(said[who]) == 100
            and (h[(h.author == who) & (h.kind == "undo")].action.nunique() == 20)
        )


def test_killed_without_warning(path):
    said = {}
    for k in range(3):
        p = writer(path, "first", -1)
        for line in p.stdout:
            i, a = map(int, line.split())
            said[a] = i
            if i == 20+7*k: p.send_signal(signal.SIGKILL)
        p.wait()
        h = LabelLog(path).history()
        edits = h[h.kind == "edit"].groupby("action").reason.agg(["size", "first", "nunique"])
        assert (edits["size"] == 2).all() and (edits["nunique"] == 1).all()
        for a, i in said.items(): assert edits.loc[a, "first"] == f"{i} " + "x"*300


class TestTraining:
    def data(self, **kwargs):
        g = torch.Generator().manual_seed(0)
        y = torch.arange(48) % 3
        x = torch.rand(48, 1, 8, 8, generator=g)
        return from_arrays(x[:32], y[:32], x[32:], y[32:], bs=8, vocab=VOCAB, **kwargs)

    def fit(self, cbs, dls):
        torch.manual_seed(0)
        learn = Learner(dls, small_cnn(dls, width=4), cbs=cbs)
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
        return learn

    def test_an_empty_log_changes_nothing(self, path):
        plain = self.fit([], self.data())
        logged = self.fit(LabelEdits(LabelLog(path, self.data())), self.data())
        assert all(
            torch.equal(a, b)
            for a, b in zip(plain.model.state_dict().values(), logged.model.state_dict().values())
        )

    def test_reads_the_log_at_every_fit_and_trusts_in_part(self, path):
        dls = self.data()
        log = LabelLog(path, dls)
        log.edit(0, (int(dls.given[0])+1) % 3)
        learn = self.fit(LabelEdits(path, trust=.75), dls)
        cb = learn.label_edits
        row = cb.table.targets[cb.table.place[0]]
        assert sorted(row.tolist()) == [0, .25, .75] and row.argmax() == (int(dls.given[0])+1) % 3
        log.edit(5, None)
        with learn.no_bar(), learn.no_logging(): learn.fit(1)
        assert cb.table.weights[5] == .25 and cb.table.weights.sum() == len(cb.table.weights)-.75
        assert cb.ledger.frame().reason.value_counts().to_dict() == {
            "not reviewed": 30,
            "corrected in review": 1,
            "label removed in review": 1,
        }

    def test_batch_of_one(self, path):
        dls = self.data()
        dls.train.bs = 1
        log = LabelLog(path, dls)
        log.edit(torch.arange(10), 0)
        assert all(
            v.isfinite().all() for v in self.fit(LabelEdits(log), dls).model.state_dict().values()
        )

    def test_wrong_input(self, path):
        log = LabelLog(path, self.data())
        for cb, said in (
            (LabelEdits(log), "with other given labels than dls has"),
            (LabelEdits(path.with_name("x.db")), "is no file"),
        ):
            with pytest.raises(LabelKitError, match=said): self.fit(cb, self.data(noise_rate=.5))
        with pytest.raises(LabelKitError, match="trust=-1"): LabelEdits(log, trust=-1)
