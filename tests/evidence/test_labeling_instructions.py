"""Labeling instructions: average precision, the greedy choice, the border, a page that is text"""
import re

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score

from labelkit.data.loaders import from_arrays
from labelkit.errors import LabelKitError
from labelkit.evidence.labeling_instructions import (
    average_precision,
    border_examples,
    choose_examples,
    embed,
    found_by,
    labeling_instructions,
    similarity,
)
from labelkit.models import small_cnn


def test_average_precision_is_scikit_learns():
    g = torch.Generator().manual_seed(0)
    scores = torch.rand(5, 40, generator=g)
    of_class = torch.rand(40, generator=g) < .3
    want = [average_precision_score(of_class.numpy(), s.numpy()) for s in scores]
    np.testing.assert_allclose(average_precision(scores, of_class).numpy(), want, rtol=1e-5)
    assert average_precision(scores, torch.zeros(40).bool()).tolist() == [0]*5

def two_ways():
    "Class 0 looks in two ways, class 1 lies between them"
    g = torch.Generator().manual_seed(0)
    centres = torch.tensor([[1., 0, 0], [0, 1., 0], [.7, .7, .3]])
    f = torch.cat([c + .02*torch.randn(10, 3, generator=g) for c in centres])
    return f,torch.tensor([0]*20 + [1]*10)

def test_one_example_for_each_way():
    f,y = two_ways()
    found = choose_examples(f, y == 0)
    assert len(found["rows"]) == 2 and {int(o)//10 for o in found["rows"]} == {0, 1}
    assert found["precision"][1] == pytest.approx(1., abs=1e-5)
    assert found["precision"][0] < .9
    assert found_by(f, f[found["rows"]], y == 0) == pytest.approx(found["precision"][-1])

def test_a_third_example_is_added_to_the_first_two():
    "Three ways to look: what the first example finds stays found"
    g = torch.Generator().manual_seed(0)
    centres = torch.cat([torch.eye(3), torch.full((1, 3), .58)])
    f = torch.cat([c + .02*torch.randn(10, 3, generator=g) for c in centres])
    y = torch.tensor([0]*30 + [1]*10)
    found = choose_examples(f, y == 0)
    assert {int(o)//10 for o in found["rows"]} == {0, 1, 2}
    for i,said in enumerate(found["precision"]):
        assert found_by(f, f[found["rows"][:i+1]], y == 0) == pytest.approx(said)

def test_a_candidate_is_in_the_middle_of_a_way_to_look():
    turn = torch.tensor([-.5, 0., .4])
    f = torch.stack([turn.cos(), turn.sin()], 1)
    found = choose_examples(f, torch.ones(3).bool(), candidates=1)
    assert found["rows"].tolist() == [1]

def test_what_all_samples_share_says_nothing():
    g = torch.Generator().manual_seed(0)
    f = torch.randn(40, 4, generator=g)
    y = torch.arange(40) % 2
    y[::7] = -1
    pages = [labeling_instructions(o, y) for o in (f, f + 100.)]
    a,b = ([o["rows"].tolist() for o in page.examples] for page in pages)
    assert a == b

def test_greedy_never_falls_and_stops():
    g = torch.Generator().manual_seed(1)
    f = torch.randn(60, 4, generator=g)
    found = choose_examples(f, torch.arange(60) < 20, n=8)
    assert found["precision"] == sorted(found["precision"])
    assert len(found["rows"].unique()) == len(found["rows"]) <= 8
    one = choose_examples(f, torch.arange(60) == 3, n=8)
    assert one["rows"].tolist() == [3]

def test_candidates_limit_what_is_tried():
    f,y = two_ways()
    assert len(choose_examples(f, y == 0, candidates=1)["rows"]) == 1

def test_border_by_hand():
    f = torch.tensor([[1., 0.], [.9, .5], [.5, .9], [0., 1.]])
    y = torch.tensor([0, 0, 0, 1])
    rows,who = border_examples(f, y, [torch.tensor([0]), torch.tensor([3])], 0, n=5)
    assert rows.tolist() == [2, 1] and who.tolist() == [1, 1]
    # where there is no other class there is no border
    rows,_ = border_examples(f[:3], y[:3], [torch.tensor([0])], 0)
    assert not len(rows)

def test_the_border_is_measured_from_the_nearest_example():
    "Of two opposite ones the nearer counts: own .9 and .2, the rival's .4 and .3"
    f = torch.tensor([[1., 0., 0.], [-1., 0., 0.], [.9, .4, .173], [.2, .3, .933], [0., 1., 0.]])
    y = torch.tensor([0, 0, 0, 0, 1])
    rows,_ = border_examples(f, y, [torch.tensor([0, 1]), torch.tensor([4])], 0)
    assert rows.tolist() == [3, 2]

def test_similarity_of_nothing():
    assert similarity(torch.zeros(1, 2), torch.ones(1, 2)).tolist() == [[0.]]

def test_features_of_a_model():
    x = torch.rand(6, 1, 8, 8)
    y = torch.arange(6) % 2
    dls = from_arrays(x, y, x, y, bs=2)
    net = small_cnn(dls, width=2)
    f = embed(net, x, bs=4)
    assert f.shape == (6, net.n_features) and not f.requires_grad
    bytes_ = (255*x).round().byte()
    torch.testing.assert_close(embed(net, bytes_), embed(net, bytes_.float()/255))
    with pytest.raises(LabelKitError): embed(lambda x: x, x)

def test_a_page_is_text(tmp_path):
    f,y = two_ways()
    items = ["<script>alert(1)</script>"]*30
    names = ["<i>a</i>", "b'\"&"]
    words = {names[0]: "</p><img src=x>"}
    page = labeling_instructions(f, y, items=items, vocab=names, words=words, title="<u>t</u>")
    text = page.html(tmp_path/"page.html").read_text()
    for bad in ("<script>", "<i>", "<img src=x", "<u>"): assert bad not in text.split("<body")[1]
    assert "&lt;script&gt;" in text and "&lt;i&gt;a" in text
    assert "http" not in re.sub(r"http://www\.w3\.org\S*", "", text.split("<body")[1])

@pytest.mark.parametrize("channels", [1, 3])
def test_pictures(channels, tmp_path):
    f,y = two_ways()
    x = (255*torch.rand(30, channels, 9, 7)).byte()
    page = labeling_instructions(f, y, items=x, n=2, borderline=1)
    text = page.html(tmp_path/"page.html").read_text()
    assert "default-src 'none'" in text and "img-src data:" in text
    assert page.sections().count("data:image/png;base64,") >= 4
    assert page.precision_by_step().index[0] == 1

def test_missing_labels_and_classes():
    f,y = two_ways()
    y = y.clone()
    y[::5] = -1
    page = labeling_instructions(f, y, vocab=["a", "b", "never"])
    assert not len(page.examples[2]["rows"]) and "never" not in page.sections()
    shown = torch.cat([o["rows"] for o in page.examples] + [o[0] for o in page.border]).long()
    assert (y[shown] >= 0).all()
    # a class without samples between two others: rivals keep their names
    page = labeling_instructions(f, torch.where(y == 1, 2, y), vocab=["a", "never", "c"])
    assert set(page.border[0][1].tolist()) == {2} and set(page.border[2][1].tolist()) == {0}
    alone = labeling_instructions(f[:9], [0]*9, vocab=["a"])
    assert not len(alone.border[0][0]) and "sample" in alone.sections()

def test_errors(tmp_path):
    f,y = two_ways()
    with pytest.raises(LabelKitError, match="features has shape"): labeling_instructions(f, y[:4])
    with pytest.raises(LabelKitError, match="items has 2"):
        labeling_instructions(f, y, items=["a", "b"])
    with pytest.raises(LabelKitError, match="words speaks of 'z'"):
        labeling_instructions(f, y, words={"z": ""}, vocab=["a", "b"])
    with pytest.raises(LabelKitError, match="candidates=0"):
        choose_examples(f, y == 0, candidates=0)
    with pytest.raises(LabelKitError):
        labeling_instructions(f, y).html(tmp_path/"no"/"such"/"\0")


def test_items_of_every_kind(tmp_path):
    "A split column, arrays with channels last, opened images and files are shown as tensors are"
    f = torch.tensor([[1., 0.], [.9, .5], [0., 1.], [.1, 1.]])
    page = lambda items: labeling_instructions(f, [0, 0, 1, 1], items=items).sections()
    texts = page(pd.Series(list("uvwx"), index=range(50, 54)))
    assert texts == page(list("uvwx")) and "<q>u</q>" in texts
    x = torch.arange(4*3*8*8).view(4, 3, 8, 8).remainder(256).byte()
    last = x.permute(0, 2, 3, 1).numpy()
    opened = [Image.fromarray(o) for o in last]
    files = [tmp_path/f"a {i}.png" for i in range(4)]
    for o,file in zip(opened, files): o.save(file)
    for items in (x.float()/255, x.numpy(), last, opened, files): assert page(items) == page(x)
    files[0].unlink()
    files[1].unlink()
    with pytest.raises(LabelKitError, match="items: .*png cannot be read"): page(files)


def test_words_find_their_class_in_each_spelling():
    f = torch.rand(4, 2)
    page = lambda y, words: labeling_instructions(f, y, words=words).sections()
    assert "drinks" in page(["café", "café", "b", "b"], {"cafe\u0301": "drinks"})
    assert "naught" in page([0, 0, 1, 1], {0: "naught"})
    with pytest.raises(LabelKitError, match="words speaks of '7', which is no class: use 0, 1"):
        page([0, 0, 1, 1], {7: "x", "a": "y"})
