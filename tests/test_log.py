"""What is shown while something runs."""

import io
import math
import time

import pytest
import rich
from rich.console import Console

from gamut.io.progress import clock, counting, progress
from gamut.train import log
from gamut.train.log import METRICS, PARTS, RATES, View, meaning, short, sparkline


@pytest.fixture
def screen(monkeypatch):
    """The console that the log writes to, and its text; ``terminal`` makes it believe that somebody watches."""

    def make(terminal: bool) -> io.StringIO:
        text = io.StringIO()
        monkeypatch.setattr(rich, "_console", Console(file=text, force_terminal=terminal, width=100))
        return text

    return make


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0 s"), (59.4, "59 s"), (125.0, "2 min 05 s"), (3600.0, "1 h 00 min"), (math.nan, "-")],
)
def test_clock(seconds, text):
    assert clock(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.41234, "0.412"), (12345.0, "12.3 k"), (3e-4, "3.0e-04"), (2.5e6, "2.5 M"), (1234.0, "1234"),
     (math.nan, "nan"), (-0.5, "-0.5")],
)  # fmt: skip
def test_short(value, text):
    assert short(value) == text


def test_sparkline_falls_with_its_values():
    assert sparkline([8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]) == "█▇▆▅▄▃▂▁"
    assert sparkline([]) == "" and sparkline([math.nan]) == "" and sparkline([2.0, 2.0]) == "▁▁"
    assert len(sparkline(map(float, range(1000)), width=20)) == 20


def test_every_name_the_view_knows_is_in_the_table():
    assert set(PARTS) | set(RATES) | set(log.COUNTS) <= set(METRICS)
    assert meaning("eval/loss") == METRICS["loss"] and meaning("never heard of") is None


def test_lines_where_nobody_watches(screen, monkeypatch):
    text = screen(terminal=False)
    monkeypatch.setattr(log, "LINE", 0.0)
    view = View()
    view.start("codec", steps=4)
    for step in (1, 2, 3, 4):
        view.step(step, {"loss": 2.0 / step, "lr": 1e-3, "tokens_per_second": 12345.0}, {"forward": 0.1})
    view.end()
    view.end()
    lines = text.getvalue().splitlines()
    assert lines[0] == "codec: step 1/4 (25%) · loss 2 · lr 1.0e-03 · 12.3 k tokens/s · 0 s left"
    assert lines[-1] == "codec: 4 steps in 0 s · loss 0.5 · 12.3 k tokens/s"
    assert len(lines) == 4, "a line a step here, the last step told by the closing line, which comes once"


def test_the_panel_shows_stage_loss_rate_and_time_split(screen, monkeypatch):
    text = screen(terminal=True)
    monkeypatch.setattr(log, "FRAME", 0.0)
    view = View()
    view.start("hear [and] speak", steps=10, done=4)
    view.step(5, {"loss": 1.25, "grad_norm": 3.5, "audio_s_per_second": 31.0}, {"data": 1.0, "forward": 3.0})
    shown = text.getvalue()
    for words in ("hear [and] speak", "of 10", "1.25", "grad_norm 3.5", "31 s of audio/s", "data 25%", "forward 75%"):
        assert words in shown
    view.end()
    assert "stopped at step 5 of 10" in text.getvalue()


def test_two_phases_show_the_loss_of_the_first(screen, monkeypatch):
    text = screen(terminal=False)
    monkeypatch.setattr(log, "LINE", 0.0)
    view = View()
    view.start("gan", steps=2)
    view.step(1, {"generator/loss": 0.5, "critic/loss": 0.7, "eval/loss": 9.0}, {})
    assert "generator/loss 0.5" in text.getvalue()


def test_a_view_costs_next_to_nothing(screen):
    screen(terminal=True)
    view = View()
    view.start("codec", steps=20_000)
    began = time.process_time()
    for step in range(1, 20_001):
        view.step(step, {"loss": 1.0, "lr": 1e-3}, {"data": 0.001, "forward": 0.01})
    assert time.process_time() - began < 20_000 * 50e-6
    view.end()


def test_progress_passes_items_on_and_says_when_it_is_done(screen):
    text = screen(terminal=False)
    assert list(progress([3, 1, 2], "clips judged")) == [3, 1, 2]
    assert list(progress(iter("ab"), "letters")) == ["a", "b"]
    assert text.getvalue().splitlines() == ["clips judged: 3 in 0 s", "letters: 2 in 0 s"]


def test_what_is_counted_by_hand_tells_how_long_it_still_takes(screen, monkeypatch):
    text = screen(terminal=False)
    monkeypatch.setattr("gamut.io.progress.LINE", 0.0)
    with counting("questions", 4) as seen:
        seen.began -= 10
        seen.step()
        seen.step(3)
    assert text.getvalue().splitlines() == [
        "questions: 1/4 (25%) · 30 s left", "questions: 4/4 (100%) · 0 s left", "questions: 4 in 10 s"]
