"Latent label shift: the authors' posterior, tables that come back, and what cannot be told apart"
import json

import pytest
import torch
from torch import tensor

from labelkit.errors import LabelKitError
from labelkit.pseudo.latent_label_shift import (
    cell_shares, cells_of, class_posterior, corners, dealt, domain_answers, factored, frequencies,
    matched,
)
from places import REFERENCES

close = torch.testing.assert_close


def test_reference():
    (ref,) = json.loads((REFERENCES/"latent_label_shift.json").read_text())
    i = ref["inputs"]
    want = ref["expected"]
    double = lambda o: tensor(o, dtype=torch.float64)
    p = double(i["p_y_given_d"])
    f = double(i["p_d_given_x"])
    close(class_posterior(p, f), double(want["p_y_given_x"]), atol=1e-6, rtol=0)
    own = class_posterior(p, f, tensor(i["domains"]))
    close(own, double(want["p_y_given_x_d"]), atol=1e-6, rtol=0)
    # the last sample is undecided among two by rounding alone
    assert own.argmax(1).tolist() == want["label"]


class TestFactors:
    table = tensor([[.7, .2, .1, .25], [.2, .6, .1, .25], [.1, .2, .8, .5]])

    def test_tables_come_back(self):
        pure = torch.cat([.5*torch.eye(3), torch.full((2, 3), .25)])
        a,b = factored(pure@self.table, 3)
        order = [int((b-row).abs().sum(1).argmin()) for row in self.table]
        assert sorted(order) == [0, 1, 2]
        close(b[order], self.table, atol=2e-2, rtol=0)
        close(a.sum(0), torch.ones(3))
        close(b.sum(0), torch.ones(4))

    def test_corners(self):
        inside = tensor([[.2, .8], [.5, .5]])
        assert sorted(corners(torch.cat([torch.eye(2), inside]), 2)) == [0, 1]

    def test_too_few_domains_or_cells(self):
        with pytest.raises(LabelKitError, match="k=3 classes.*2 domains"):
            factored(torch.full((5, 2), .2), 3)
        with pytest.raises(LabelKitError, match="2 cells"): factored(torch.full((2, 4), .5), 3)

    def test_shares(self):
        s = cell_shares(tensor([0, 0, 1, 1]), tensor([0, 1, 1, 1]), 3, 2)
        close(s, tensor([[1., 1/3], [0., 2/3], [0., 0.]]))
        with pytest.raises(LabelKitError, match="domain 1 has no sample"):
            cell_shares(tensor([0]), tensor([0]), 1, 2)


class TestData:
    def test_frequencies(self):
        t = frequencies(3, 4, seed=2)
        close(t.sum(0), torch.ones(4))
        assert torch.linalg.cond(t) <= 4 and torch.equal(t, frequencies(3, 4, seed=2))
        with pytest.raises(LabelKitError, match="r=2 domains"): frequencies(3, 2)
        with pytest.raises(LabelKitError, match="was not met"): frequencies(3, 4, alpha=1e5)
        with pytest.raises(LabelKitError, match="alpha=0"): frequencies(3, 4, alpha=0)

    def test_dealt(self):
        y = torch.arange(300) % 3
        t = frequencies(3, 4)
        at,domain = dealt(y, t)
        assert len(at.unique()) == len(at) == len(domain)
        share = torch.stack([y[at][domain == d].bincount(minlength=3) for d in range(4)], 1)
        close(share/share.sum(0), t, atol=.06, rtol=0)

    def test_classes_that_are_not_named_are_left_out(self):
        y = torch.arange(400) % 4 - 1
        at,_ = dealt(y, frequencies(3, 4))
        assert (y[at] >= 0).all()

    def test_match(self):
        y = tensor([0, 0, 1, 2])
        assert matched(tensor([2, 2, 0, 1]), y) == 1
        assert matched(tensor([0, 0, 0, 0]), y) == .5


def test_cells():
    x = torch.cat([torch.zeros(9, 2), torch.ones(9, 2)]) + .01*torch.rand(18, 2)
    cell = cells_of(x, 2, torch.Generator().manual_seed(0))
    assert len(set(cell[:9].tolist())) == len(set(cell[9:].tolist())) == 1
    assert cell[0] != cell[-1]


def test_a_network_is_asked_about_what_it_has_not_seen():
    x = torch.rand(80, 1, 8, 8)
    d = torch.arange(80) % 2
    x[d == 1, :, :4] += 1
    f = domain_answers(x/2, d, epochs=25, width=4, lr=1e-2)
    close(f.sum(1), torch.ones(80))
    assert (f.argmax(1) == d).float().mean() > .8


def test_posteriors_use_frequencies_of_domains_within_a_class():
    "By Bayes: with one image of each domain and class certain, the table itself decides"
    p = tensor([[.9, .2], [.1, .8]])
    q = p/p.sum(1, keepdim=True)       # p(domain | class), of equally large domains
    f = q                               # an image of class 0, and one of class 1
    close(class_posterior(p, f), torch.eye(2), atol=1e-5, rtol=0)
    both = class_posterior(p, tensor([[.5, .5]]).repeat(2, 1), tensor([0, 1]))
    one = class_posterior(p, tensor([[.5, .5]]))
    want = one*q[:, [0, 1]].T
    close(both, want/want.sum(1, keepdim=True))


def test_small_cells_are_no_corners():
    "A cell with one sample is as pure as chance made it"
    table = TestFactors.table
    pure = torch.cat([.495*torch.eye(3), torch.full((2, 3), .2475)])
    shares = torch.cat([pure@table, tensor([[.01, .01, .01, .01]])*tensor([4., 0., 0., 0.])])
    a,b = factored(shares/shares.sum(0), 3)
    order = [int((b-row).abs().sum(1).argmin()) for row in table]
    assert sorted(order) == [0, 1, 2]
    close(b[order], table, atol=.06, rtol=0)
    assert a.isfinite().all()


def test_the_rest_is_projected_away():
    "The second corner is not a row like the first one, however long"
    rows = tensor([[1., 0., 0.], [.99, .01, 0.], [0., .6, .4], [0., .4, .6]])
    assert set(corners(rows, 3)) == {0, 2, 3}


def test_nobody_is_dealt_twice_and_domains_are_of_one_size():
    y = torch.cat([torch.zeros(40), torch.ones(200)]).long()
    at,domain = dealt(y, tensor([[.5, .25], [.5, .75]]))
    sizes = domain.bincount()
    assert len(at.unique()) == len(at) and abs(int(sizes[0]-sizes[1])) <= 2
    assert int((y[at] == 0).sum()) >= 38  # all of the rare class, and no more than there are


def test_each_half_is_asked_by_the_other(monkeypatch):
    "Images of no kind: whoever has seen them knows their domains by heart"
    torch.manual_seed(0)
    x = torch.rand(60, 1, 8, 8)
    d = torch.randint(2, (60,))
    f = domain_answers(x, d, epochs=40, width=8, lr=1e-2)
    assert (f.argmax(1) == d).float().mean() < .75
