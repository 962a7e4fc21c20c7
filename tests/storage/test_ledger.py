"The ledger by hand: which sample, which epoch, right or wrong by whose truth, and its file"
import math, os

import numpy as np, pandas as pd, pytest, torch

from labelkit.data.loaders import from_arrays
from labelkit.errors import LabelKitError
from labelkit.storage.ledger import Ledger, read_ledger

T = torch.tensor
TRUTH = T([2, 0, 1, 2, 1, 0])


def record(book, ids, labels, confidence, accepted, epoch, **kwargs):
    book.record(T(ids), T(labels), T(confidence), T(accepted), epoch, **kwargs)


class TestSamples:
    def test_each_sample_has_its_own_truth(self):
        "Not that of the first samples, nor that of the place in the batch"
        book = Ledger(6, given=T([0]*6), truth=TRUTH)
        record(book, [5, 3, 1], [0, 2, 1], [.9, .8, .7], [True, True, True], 0)
        f = book.frame().set_index("id")
        assert f.index.tolist() == [1, 3, 5]
        assert f.suggested_label.to_dict() == {1: 1, 3: 2, 5: 0}
        assert f.true_label.to_dict() == {1: 0, 3: 2, 5: 0}
        h = book.history()
        assert h["correct"].sum() == 2 and h["wrong"].sum() == 1 and h["unknown"].sum() == 0
        assert h["wrong"][0, 70] == 1 and h["correct"][0, [80, 90]].tolist() == [1, 1]

    def test_given_and_truth_are_two_things(self):
        book = Ledger(3, given=T([1, 1, -1]), truth=T([0, 1, 2]))
        record(book, [0, 1, 2], [0, 0, 2], [.5, .5, .5], [True, True, False], 0)
        labels = book.frame()[["given_label", "true_label"]]
        assert labels.values.tolist() == [[1, 0], [1, 1], [-1, 2]]
        assert book.summary().accuracy.tolist() == [.5]
        assert book.history()["accepted_correct"].tolist() == [1]

    def test_truth_of_some(self):
        book = Ledger(4, truth=T([0, -1, 1, -1]))
        record(book, [0, 1, 2, 3], [0, 0, 0, 0], [.9]*4, [True, True, True, False], 0)
        h = book.history()
        assert [h[k].sum() for k in ("correct", "wrong", "unknown")] == [1, 1, 2]
        assert book.summary().accuracy.tolist() == [.5]
        record(book, [1, 3], [0, 0], [.9]*2, [True, True], 1)
        assert math.isnan(book.summary().accuracy[1])

    def test_latest_counts(self):
        book = Ledger(3, reasons=("", "far"))
        record(book, [0, 2], [1, 1], [.3, .4], [False, False], 0, reason=1)
        record(book, [2], [0], [.6], [True], 4)
        columns = ["id", "suggested_label", "epoch", "reason", "accepted"]
        assert book.frame()[columns].values.tolist() == [
            [0, 1, 0, "far", False],
            [2, 0, 4, "", True],
        ]

    def test_an_id_that_comes_twice(self):
        "The last row stays in the table, and both are counted"
        book = Ledger(3, truth=T([0, 1, 2]), reasons=("", "far"))
        accepted = [False, True, True]
        record(book, [1, 1, 0], [1, 2, 0], [.3, .8, .9], accepted, 0, reason=T([1, 0, 1]))
        columns = ["id", "suggested_label", "accepted", "reason"]
        assert book.frame()[columns].values.tolist() == [[0, 0, True, "far"], [1, 2, True, ""]]
        h = book.history()
        assert h["correct"].sum() == 2 and h["wrong"].sum() == 1 and h["accepted"].tolist() == [2]

    @pytest.mark.parametrize("reason", [1, T(1), [1, 1], T([1, 1])])
    def test_a_reason_for_all_or_for_each(self, reason):
        book = Ledger(2, reasons=("", "far"))
        record(book, [0, 1], [0, 0], [.3, .8], [False, True], 0, reason=reason)
        assert book.frame().reason.tolist() == ["far", "far"]

    def test_a_batch_of_none(self):
        book = Ledger(2, truth=T([0, 1]))
        book.record(T([]).long(), T([]).long(), T([]), T([]).bool(), 0)
        assert not len(book.frame()) and book.summary().seen.tolist() == [0]

    def test_columns_of_a_technique(self):
        book = Ledger(4, columns=dict(quality=torch.float, size=torch.long))
        record(book, [3], [0], [1.], [True], 0, quality=T([.25]), size=T([7]))
        assert book.frame()[["quality", "size"]].values.tolist() == [[.25, 7]]

    def test_what_comes_in_half_precision_and_with_a_gradient(self):
        book = Ledger(1)
        c = T([.75]).bfloat16().requires_grad_()
        book.record(T([0]), T([0]), c, T([True]), 0)
        assert book.frame().confidence[0] == .75 and not book.columns["confidence"].requires_grad


class TestEpochs:
    def test_each_epoch_has_its_own_row(self):
        book = Ledger(6, truth=TRUTH)
        record(book, [0, 1], [2, 1], [.9, .1], [True, False], 0)
        record(book, [2], [1], [.95], [True], 0)
        record(book, [3, 4], [0, 1], [.2, .3], [True, True], 1)
        record(book, [5], [1], [.5], [True], 3)  # and nothing in epoch 2
        s = book.summary()
        assert s.epoch.tolist() == [0, 1, 3] and s.seen.tolist() == [3, 2, 1]
        np.testing.assert_allclose(s.mask_rate, [2/3, 1, 1], rtol=1e-6)
        np.testing.assert_allclose(s.accuracy, [1, .5, 0])
        h = book.history()
        assert h["epochs"] == [0, 1, 3] and h["accepted"].tolist() == [2, 2, 1]
        assert h["accepted_correct"].tolist() == [2, 1, 0]
        at = lambda kind, e: np.flatnonzero(h[kind][e]).tolist()
        assert at("correct", 0) == [90, 95] and at("wrong", 0) == [10]
        assert at("correct", 1) == [30] and at("wrong", 1) == [20] and at("wrong", 2) == [50]
        assert book.frame().set_index("id").epoch.to_dict() == {0: 0, 1: 0, 2: 0, 3: 1, 4: 1, 5: 3}

    def test_thresholds_stay_with_their_epoch(self):
        book = Ledger(2)
        for epoch in range(3):
            t = T([.1*epoch, 1.])
            record(book, [0], [0], [.5], [True], epoch, class_threshold=t)
        np.testing.assert_allclose(book.history()["class_threshold"][:, 0], [0, .1, .2], atol=1e-7)
        t.fill_(7)  # the technique goes on with its own tensor
        assert book.history()["class_threshold"][2, 0] == pytest.approx(.2)
        record(book, [0], [0], [.5], [True], 3)
        assert book.history()["class_threshold"] is None

    @pytest.mark.parametrize(
        "confidence,bin_", [(0., 0), (.009, 0), (.01, 1), (.999, 99), (1., 99)]
    )
    def test_bins(self, confidence, bin_):
        book = Ledger(1)
        record(book, [0], [0], [confidence], [True], 0)
        h = book.history()
        assert h["unknown"][0, bin_] == 1 and h["unknown"].sum() == 1 and len(h["bins"]) == 101

    def test_goes_on_from_its_state(self):
        "In the middle of an epoch, and what is recorded later does not reach what was saved"
        a = Ledger(6, truth=TRUTH)
        record(a, [0], [2], [.5], [True], 0, class_threshold=T([.5]))
        record(a, [1], [2], [.5], [True], 1, class_threshold=T([.6]))
        state = a.state_dict()
        b = Ledger(6, truth=TRUTH)
        b.load_state_dict(state)
        for book in (a, b): record(book, [2], [1], [.7], [False], 1, class_threshold=T([.7]))
        pd.testing.assert_frame_equal(a.frame(), b.frame())
        pd.testing.assert_frame_equal(a.summary(), b.summary())
        assert torch.equal(a._counts(), b._counts())
        np.testing.assert_array_equal(*(o.history()["class_threshold"] for o in (a, b)))
        c = Ledger(6, truth=TRUTH)
        c.load_state_dict(state)
        assert c.summary().seen.tolist() == [1, 1]


class TestOf:
    def test_class_labels(self):
        x = torch.rand(8, 3)
        y = T([0, 1, 2, 0, 1, 2, -1, -1])
        dls = from_arrays(x, y, x[:6], y[:6], vocab=["a", "b", "c"])
        dls.truth = y  # as far as anybody knows
        book = Ledger.of(dls, reasons=("", "x"))
        assert book.n_ids == 8 and book.vocab == ["a", "b", "c"] and book.reasons == ("", "x")
        record(book, [6, 7, 2], [0, 0, 0], [.9]*3, [True]*3, 0)
        assert book.frame().given_label.tolist() == [2, -1, -1]
        # what nobody knows is neither right nor wrong
        assert book.history()["unknown"].sum() == 2 and book.history()["wrong"].sum() == 1

    def test_targets_of_other_kinds(self):
        x = torch.rand(6, 3)
        y = torch.eye(3)[[0, 1, 2, 0, 1, 2]]
        book = Ledger.of(from_arrays(x, y, x, y, kind="soft"))
        record(book, [0, 5], [0, 2], [.9, .9], [True, True], 0)
        assert book.frame().given_label.tolist() == [-1, -1]
        assert book.history()["unknown"].sum() == 2


class TestFiles:
    def test_there_and_back(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        book = Ledger(6, truth=TRUTH, reasons=("", "=1+1, \"x\"\n"))
        record(book, [5, 1], [0, 1], [.5, .25], [True, False], 2, reason=1)
        book.to_parquet("~/books/a b.parquet")
        for path in ("~/books/a b.parquet", f"file://{tmp_path}/books/a%20b.parquet"):
            pd.testing.assert_frame_equal(read_ledger(path), book.frame())
        assert os.listdir(tmp_path/"books") == ["a b.parquet"]

    def test_wrong_files(self, tmp_path):
        with pytest.raises(LabelKitError, match="the ledger is empty"): Ledger(2).summary()
        with pytest.raises(LabelKitError, match="is no file"): read_ledger(tmp_path/"none")
        with pytest.raises(LabelKitError, match="is a URL"): read_ledger("s3://b/x")
        with pytest.raises(LabelKitError, match="is a URL"): Ledger(2).to_parquet("s3://b/x")
        pd.DataFrame(dict(a=[1])).to_parquet(tmp_path/"p")
        with pytest.raises(LabelKitError, match="has no column"): read_ledger(tmp_path/"p")
