"""docs/plan.md and its figures are what dev/planning.py makes of the other pages and of the recorded runs."""

import re

import pytest

from gamut.plan.topics import TOPICS, overview


def test_the_page_of_plans_is_up_to_date():
    planning = pytest.importorskip("dev.planning")
    for path, text in planning.pages().items():
        assert path.read_text() == text, f"{path.name} is out of date; python -m dev.planning"


def test_every_link_and_picture_of_the_page_is_there():
    planning = pytest.importorskip("dev.planning")
    links = re.findall(r"\]\(([^)]+)\)", (planning.DOCS / "plan.md").read_text())
    assert len(links) >= 7 and all((planning.DOCS / link).exists() for link in links)


def test_tables_of_a_page():
    planning = pytest.importorskip("dev.planning")
    page = "text\n\n| a | b |\n|---|--:|\n| 1 | **2** |\n\n| c |\n|---|\n| 3 |\n"
    assert planning.tables(page) == [[["a", "b"], ["1", "**2**"]], [["c"], ["3"]]]


def test_a_figure_holds_every_dot_inside():
    figures = pytest.importorskip("benchmarks.figures")
    picture = figures.strips({"a <b>": [(0.5, False), (2, True)], "c": []}, "x", ticks=(1,), band=(0.9, 1.1))
    spots = [float(x) for x in re.findall(r'cx="([\d.]+)"', picture)]
    assert len(spots) == 2 and all(40 <= x <= figures.RIGHT for x in spots)
    assert "a &lt;b&gt;" in picture and picture.count('class="mid"') == 1


def test_the_help_of_plan_asks_a_question_for_every_topic():
    for topic in TOPICS.values():
        assert topic.question.endswith("?") and topic.question in overview() and topic.example in overview()
