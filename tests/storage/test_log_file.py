"The file of a label log where nothing may be written, and under paths of every kind"
import os, sqlite3, subprocess, sys, tempfile, threading
from pathlib import Path

import pytest

from labelkit.errors import LabelKitError
from labelkit.storage.label_log import LabelLog
from labelkit.storage.log_file import LogFile

VOCAB = ["cat", "dog"]
make = lambda path, **kwargs: LabelLog(path, [0, 1, 0], VOCAB, author="first", **kwargs)


# root may write everywhere, so another user looks
GUEST = """
import os, sys
import sqlite3, tempfile, pandas, torch
from labelkit.errors import LabelKitError
from labelkit.storage.label_log import LabelLog
if os.getuid() == 0: os.setuid(65534)
for path in sys.argv[1:]:
    for log in (LabelLog(path), LabelLog(path, [0, 1, 0], ["cat", "dog"])):
        try: refused = log.edit(0, "cat")
        except LabelKitError as e: refused = "can only be read: copy it" in str(e)
        print(log.labels().tolist(), log.read_only, len(log.history()), refused)
"""


@pytest.mark.skipif(os.name == "nt", reason="rights of files are others there")
def test_read_only():
    """A log that was closed; one that is open elsewhere, whose newest edit is in the file beside
    it; one that may be written in a folder that may not"""
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        d.chmod(0o755)
        for name in ("closed", "open", "folder"):
            (d/name).mkdir()
            log = make(d/name/"l.db")
            log.edit(2, "dog")
            if name == "open": still = log
            else: log.close()
        assert (d/"open/l.db-wal").stat().st_size > 0
        (d/"folder/l.db").chmod(0o666)
        before = {p: p.read_bytes() for p in d.rglob("*") if p.is_file()}
        for name in ("closed", "open"):
            for p in (d/name).iterdir(): p.chmod(0o444)
        for name in ("closed", "open", "folder"): (d/name).chmod(0o555)
        p = subprocess.run(
            [sys.executable, "-c", GUEST, *(str(d/o/"l.db") for o in ("closed", "open", "folder"))],
            capture_output=True,
            text=True,
            env=os.environ | dict(OMP_NUM_THREADS="1"),
            cwd="/",
        )
        assert p.stdout.splitlines() == ["[0, 1, 1] True 1 True"]*6, p.stderr
        assert {p: p.read_bytes() for p in d.rglob("*") if p.is_file()} == before
        still.close()
        for name in ("closed", "open", "folder"): (d/name).chmod(0o755)


class TestPromises:
    def test_an_edit_is_on_the_disk_when_it_returns(self, tmp_path):
        with make(tmp_path/"l.db") as log:
            setting = lambda name: log.file.read(f"PRAGMA {name}")[0][0]
            assert setting("synchronous") == 2 and setting("journal_mode") == "wal"

    def test_an_edit_is_of_a_sample_that_the_log_has(self, tmp_path):
        with make(tmp_path/"l.db") as log:
            row = (1, 99, "cat", 0, "first", "", "now")
            def edit():
                with log.file.write() as db:
                    db.execute("INSERT INTO actions VALUES (1, 'edit', 'first', 'now', NULL)")
                    db.execute("INSERT INTO edits VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            with pytest.raises(LabelKitError, match="FOREIGN KEY"): edit()
            assert log.file.read("SELECT count(*) FROM actions") == [(0,)]

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
    def test_a_fork_opens_its_own_connection(self, tmp_path):
        log = make(tmp_path/"l.db")
        mine = log.file.db
        if pid := os.fork(): assert os.waitpid(pid, 0)[1] == 0
        else:
            try:
                log.edit(0, "dog")
                os._exit(log.file.db is mine)
            finally: os._exit(2)
        assert log.labels().tolist() == [1, 1, 0] and log.file.db is mine

    def test_two_that_add_the_same_samples_at_once(self, tmp_path):
        "One looks, the other adds, the first adds as well: each sample is there once"
        make(tmp_path/"l.db", keys=["a", "b", "c"]).close()
        class Slow(LabelLog):
            def _compare(self, about):
                new = super()._compare(about)
                LabelLog(tmp_path/"l.db", [0, 1], VOCAB, keys=["a", "new"]).close()
                return new
        Slow(tmp_path/"l.db", [1, 0], VOCAB, keys=["new", "a"])
        assert sorted(LabelLog(tmp_path/"l.db").keys) == ["a", "b", "c", "new"]


class Guest(LogFile):
    def _may_write(self): return False

class TestCopyInMemory:
    def test_follows_the_file(self, tmp_path):
        with make(tmp_path/"l.db") as log: log.edit(0, "dog")
        guest = Guest(tmp_path/"l.db")
        count = lambda: guest.read("SELECT count(*) FROM edits")[0][0]
        assert count() == 1
        with make(tmp_path/"l.db") as log: log.edit([0, 1], "cat")
        assert count() == 3
        log.edit(2, "dog")  # not closed: it is in the write-ahead file
        assert count() == 4

    @pytest.mark.parametrize("said", ["locking protocol", "disk I/O error", "readonly database"])
    def test_a_disk_on_which_writers_cannot_agree(self, tmp_path, monkeypatch, said):
        "A log that was made elsewhere can be read there; a new one cannot be made"
        with make(tmp_path/"l.db") as log: log.edit(0, "dog")
        def refuse(self, db): raise sqlite3.OperationalError(said)
        monkeypatch.setattr(LogFile, "_write_ahead", refuse)
        log = LabelLog(tmp_path/"l.db")
        assert log.read_only and log.labels().tolist() == [1, 1, 0]
        with pytest.raises(LabelKitError, match="cannot be written"): make(tmp_path/"new.db")

    def test_samples_that_are_new_are_not_added(self, tmp_path, monkeypatch):
        "A longer list of files with the log of a shorter one"
        keys = ["a", "b", "c"]
        with make(tmp_path/"l.db", keys=keys) as log: log.edit("b", "cat")
        monkeypatch.setattr(LogFile, "_may_write", lambda self: False)
        more = LabelLog(tmp_path/"l.db", [1, 1, 0, 0], VOCAB, keys=["new", "b", "a", "c"])
        assert more.labels().tolist() == [1, 0, 0, 0] and more.read_only
        assert len(LabelLog(tmp_path/"l.db")) == 3

    def test_damaged_and_foreign_files(self, tmp_path, monkeypatch):
        monkeypatch.setattr(LogFile, "_may_write", lambda self: False)
        (tmp_path/"text").write_text("no database, "*50)
        with pytest.raises(LabelKitError, match="is no label log, or a damaged one"):
            LabelLog(tmp_path/"text")
        db = sqlite3.connect(tmp_path/"foreign")
        db.execute("CREATE TABLE t (a)")
        db.commit()
        db.close()
        with pytest.raises(LabelKitError, match="another program's SQLite file"):
            LabelLog(tmp_path/"foreign")
        (tmp_path/"empty").touch()
        with pytest.raises(LabelKitError, match="can only be read"): make(tmp_path/"empty")

    def test_pickles_threads_and_forks(self, tmp_path):
        import pickle
        with make(tmp_path/"l.db") as log: log.edit(0, "dog")
        guest = Guest(tmp_path/"l.db")
        again = pickle.loads(pickle.dumps(guest))
        found = []
        ask = lambda f: found.extend(f.read("SELECT label FROM edits"))
        for f in (guest, again):
            t = threading.Thread(target=ask, args=(f,))
            t.start()
            t.join()
        assert found == [("dog",)]*2
        if pid := os.fork() if hasattr(os, "fork") else 0:
            assert os.waitpid(pid, 0)[1] == 0
        else:
            os._exit(guest.read("SELECT label FROM edits") != [("dog",)])

    def test_a_log_that_vanished(self, tmp_path):
        make(tmp_path/"l.db").close()
        guest = Guest(tmp_path/"l.db")
        (tmp_path/"l.db").unlink()
        with pytest.raises(LabelKitError, match="is no file"): guest.read("SELECT * FROM edits")


@pytest.mark.parametrize(
    "name", ["my labels.db", "#1.db", "100%.db", "a?mode=ro", "a%20b.db", "café.db", "a'b\".db"]
)
def test_names_of_files(tmp_path, name):
    with make(tmp_path/name) as log: log.edit(0, "dog")
    with LabelLog(str(tmp_path/name)) as log: assert log.labels().tolist() == [1, 1, 0]
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_spellings_of_a_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path/"home"))
    (tmp_path/"work").mkdir()
    monkeypatch.chdir(tmp_path/"work")
    with make("~/my labels.db") as log: log.edit(0, "dog")
    make("rel/labels.db").close()
    there = tmp_path/"home/my labels.db"
    for path in (there, str(there), f"file://{tmp_path}/home/my%20labels.db", "~/my labels.db"):
        assert LabelLog(path).labels()[0] == 1 and LabelLog(path).path == there
    log = LabelLog("rel/labels.db")
    monkeypatch.chdir(tmp_path)
    log.close()
    assert log.labels().tolist() == [0, 1, 0]  # the same file, wherever the program is now
    assert sorted(p.name for p in (tmp_path/"work").iterdir()) == ["rel"]
    for bad, said in (("s3://b/l.db", "is a URL"), ("C:\\l.db", "path of Windows"), (3, "no path")):
        with pytest.raises(LabelKitError, match=said): make(bad)
