"The demo: its sections train, here and in other processes, and its page is whole"
import pytest

from labelkit.demo import demo, demo_sections


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_section_trains(tmp_path, jobs):
    sections = {k: s | dict(epochs=1) for k,s in demo_sections().items()}
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
