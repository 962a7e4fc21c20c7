"A stored view for each sample, drawn, and what was said of it; stores of other data are refused"
from types import SimpleNamespace

import pytest
import torch

from contract import data, learner, model
from labelkit.errors import LabelKitError
from labelkit.parts.stored_batch import check_fits, show_stored
from labelkit.storage.builder import build_store
from labelkit.storage.stored_views import AugmentViews


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    views = AugmentViews(scale=(.5, 1.), flip=False)
    return build_store(
        tmp_path_factory.mktemp("r")/"s", data(n=24, labeled=None), model(7), views, n_views=3,
        k=10, dtype="float32", progress=False,
    )


def test_each_sample_in_a_view_of_its_own_and_what_was_said_of_that(store):
    x = data(n=24, labeled=None).train_ds.arrays.x
    ids = torch.tensor([7, 2, 19, 11, 3, 0, 23, 5])
    rng = torch.Generator().manual_seed(0)
    shown = []
    for _ in range(6):
        s = SimpleNamespace(x=x[ids], ids=ids)
        said = show_stored(store, s, rng)
        with torch.no_grad(): want = model(7).eval()(s.x).softmax(1)
        torch.testing.assert_close(said.dense(), want, atol=1e-4, rtol=0)
        made = [store.views.make(x[ids], store.read(ids, v).params) for v in range(3)]
        hit = torch.stack([(o == s.x).flatten(1).all(1) for o in made])
        assert hit.any(0).all()
        shown.append(hit.int().argmax(0))
    shown = torch.stack(shown)
    assert set(shown.flatten().tolist()) == {0, 1, 2}
    assert all(len(set(o.tolist())) > 1 for o in shown)  # not one view for the whole batch


def test_other_samples_are_refused(store):
    check_fits(store, learner(dls=data(n=24, labeled=None)), "views", "reinforce")
    with pytest.raises(LabelKitError, match="sample 24 is not in the store"):
        check_fits(store, learner(dls=data(n=30, labeled=None)), "views", "reinforce")
    with pytest.raises(LabelKitError, match="no label maps: make one with `relabel`"):
        check_fits(store, learner(dls=data(n=24, labeled=None)), "label maps", "relabel")
