"""What the family's claims are tried on: who has seen which labels, and rows that are spelled
alike."""
import pytest
import torch
from labelkit.core.claim import made
from labelkit.core.technique import registry
from labelkit.distill.knowledge_distillation import KnowledgeDistillation
from labelkit.distill.stage import few, student, taught
from labelkit.evidence.claims import row_key
import labelkit.all  # noqa: F401  every technique registers itself

FAMILY = [card for card in registry.values() if card.family == "distill"]


def test_few_labels_and_the_rest_without():
    dls = few(3)
    assert len(dls.train_ds.rows) == 200 and len(dls.unlabeled.dataset.rows) == 3800
    assert (dls.given >= 0).sum() == 200
    assert student(dls)(dls.one_batch()[0]).shape == (32, 10)
    assert not torch.equal(few(4).train_ds.rows, dls.train_ds.rows)


def test_taught_trains_a_teacher_on_the_loaders_and_keeps_the_settings():
    asked = []
    def by(dls):
        asked.append(dls)
        return torch.nn.Linear(2, 2)
    dls = object()
    cb = taught(made("KnowledgeDistillation", temperature=2., unlabeled=True), by, dls)
    assert asked == [dls] and type(cb) is KnowledgeDistillation
    assert cb.temperature == 2 and cb.unlabeled


@pytest.mark.parametrize("card", FAMILY, ids=lambda c: c.slug)
def test_every_technique_claims_something_with_rows_that_can_be_spelled(card):
    assert sum(not claim.long for claim in card.claims) == 1
    for claim in card.claims:
        keys = [row_key(claim, name) for name in claim.rows]
        assert len(set(keys)) == len(keys), "two rows are the same"
        assert claim.reported and claim.note


def test_claims_on_few_share_their_first_row():
    keys = {
        row_key(c.claims[0], "labels only")
        for c in FAMILY if c.claims[0].data is few
    }
    assert len(keys) == 1
