"The demo: its sections train, here and in other processes, its page is whole, its story is true"
import pytest

from labelkit.demo import demo, demo_sections


def short(section):
    "One epoch for every row"
    quick = lambda row: row | dict(epochs=1) if isinstance(row, dict) else row
    return section | dict(epochs=1, rows={k: quick(v) for k,v in section["rows"].items()})


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_section_trains(tmp_path, jobs):
    sections = {k: short(s) for k,s in demo_sections().items()}
    shown = []
    made = demo(
        tmp_path/"r.html", seeds=1, sections=sections, progress=False, jobs=jobs,
        show=lambda title, c: shown.append((title, len(c.runs))),
    )
    assert [t for t,_ in shown] == list(sections) and all(c.complete for c in made.values())
    page = (tmp_path/"r.html").read_text()
    for title,s in sections.items():
        assert f"<h2>{title}</h2>" in page and s["note"].split(".")[0] in page
        for name in s["rows"]: assert name in page


def test_without_a_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = dict(rows={"labels only": []}, epochs=1)
    demo(None, seeds=1, sections={"x": demo_sections()["Forty labels"] | rows}, progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.full
def test_the_story_is_true():
    "What the notes say, with two seeds: pseudo-labeling, mixing and the teacher are far ahead"
    sections = demo_sections()
    forty = sections["Forty labels"]
    forty["rows"] = {k: forty["rows"][k] for k in ("labels only", "weak views", "MeanTeacher")}
    forty,mixes,wrong,student = (
        c.table()["mean"] for c in demo(None, 2, sections, progress=False).values()
    )
    assert forty["MeanTeacher"] > forty["labels only"] + .15
    assert forty["MeanTeacher"] > forty["weak views"] + .06
    assert mixes["ResizeMix"] > mixes["labels only"] + .02
    assert wrong["ConfidentRelabel"] > wrong["as given"] + .02
    assert student["KnowledgeDistillation"] > student["student alone"] + .2
