"The stage of the claims about wrong labels"
import pytest

from labelkit.atlas import load_techniques
from labelkit.core.claim import spelled
from labelkit.relabel.stage import nearly_half_wrong


@pytest.mark.parametrize("slug", ["co_teaching", "confident_relabel"])
def test_the_claims_share_their_row_as_given(slug):
    (claim,) = load_techniques()[slug].claims
    assert claim.rows["as given"] == []
    assert claim.settings() == {k: spelled(v) for k,v in nearly_half_wrong.items()}
