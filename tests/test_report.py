"""The report: one file that needs nothing, and that no text can break."""

import base64
import io
import math
import re
import wave
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gamut.io import svg
from gamut.io.html import Raw, join, tag
from gamut.io.report import (
    Audio,
    Card,
    Claims,
    Columns,
    Curves,
    Details,
    Heading,
    Mel,
    Table,
    Times,
    Tokens,
    render,
    write_report,
)

EVIL = "<script>alert('x')</script> & \"quotes\""
VOID = {"meta", "img", "br", "hr"}


class Page(HTMLParser):
    """Elements by name with their attributes, and the text; complains about tags that do not match."""

    def __init__(self, markup: str):
        super().__init__()
        self.open, self.found, self.text = [], [], ""
        self.feed(markup)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, name, attributes):
        self.found.append((name, dict(attributes)))
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        self.text += data

    def all(self, name: str) -> list[dict]:
        return [attributes for found, attributes in self.found if found == name]


def everything(text: str) -> list:
    """Each kind of block, with ``text`` wherever a text goes."""
    row = {"text": text, "passed": False, "measured": {text: 0.5}, "beside": {f"{text}/chance": 0.1}}
    sound = np.sin(np.arange(800) / 9)
    return [
        text, Heading(text, text), Table((text, "n"), [(text, 1)], text), Curves(text, {text: [(1, 2), (2, 1)]}, text),
        Audio(text, sound, 8000), Mel(text, np.eye(8), 0.1), Tokens(text, [(text, 3, "text")]),
        Card(text, [text]), Columns([text]), Details(text, [text]), Claims([row]), Times({text: {text: 1.0}}),
    ]  # fmt: skip


def test_no_block_lets_markup_through(tmp_path):
    path = write_report(tmp_path / "r.html", EVIL, everything(EVIL), lead=EVIL, end=EVIL)
    page = Page(path.read_text())
    assert not page.all("script")
    assert page.text.count("<script>alert('x')</script>") >= 15


@given(text=st.text(max_size=40))
def test_any_text_comes_out_as_it_went_in(text):
    assert Page(tag("p", text, title=text)).all("p") == [{"title": text}]
    assert Page(join(text)).text == Page(tag("b", text)).text


def test_the_page_asks_nothing_of_a_network(tmp_path):
    markup = write_report(tmp_path / "r.html", "t", everything("a")).read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"|url\(([^)]*)\)', markup)
    assert all(link.startswith(("data:", "#")) for pair in sources for link in pair if link)
    assert "@import" not in markup and "http" not in re.sub(r"data:[^\"]*", "", markup)
    assert "prefers-color-scheme: dark" in markup


def test_sound_comes_back_from_the_player():
    samples = np.linspace(-1.5, 1.5, 101)
    [player] = Page(Audio("a", samples, 8000).html()).all("audio")
    kind, data = player["src"].removeprefix("data:").split(";base64,")
    with wave.open(io.BytesIO(base64.b64decode(data))) as file:
        assert (kind, file.getframerate(), file.getnframes(), file.getnchannels()) == ("audio/wav", 8000, 101, 1)
        back = np.frombuffer(file.readframes(101), "<i2") / 32767
    assert np.abs(back - np.clip(samples, -1, 1)).max() < 1e-4


def test_a_sound_file_is_embedded_as_it_is(tmp_path):
    (tmp_path / "a.ogg").write_bytes(b"OggS whatever")
    [player] = Page(Audio("a", tmp_path / "a.ogg").html()).all("audio")
    assert player["src"] == "data:audio/ogg;base64," + base64.b64encode(b"OggS whatever").decode()
    with pytest.raises(ValueError, match=r"samples need their rate in Hz, got rate=0 for 'a'; give rate=, or a path"):
        Audio("a", np.zeros(3)).html()


def test_claims_show_both_outcomes_with_what_stands_beside():
    rows = [
        {"text": "hears digits", "passed": True, "measured": {"wer": 0.031}, "beside": {"wer/chance": 0.9}},
        {"text": "is quick", "passed": False, "measured": {"seconds": 4.0}, "beside": {}},
    ]
    page = Page(Claims(rows).html())
    assert "✓hears digits" in page.text and "wer 0.031 · chance 0.9" in page.text
    assert "✗is quick does not hold" in page.text and "seconds 4" in page.text
    assert len(page.all("svg")) == 1, "a scale from 0 to 1 only where every number lies on it"


def test_numbers_stand_on_the_right():
    page = Page(Table(("speaker", "clips"), [("a", 12000), ("b", 3)]).html())
    assert [cell.get("class") for cell in page.all("td")] == [None, "number", None, "number"]
    assert "12,000" in page.text


@pytest.mark.parametrize(
    ("span", "count", "step"), [(800.0, 3, 200.0), (60.0, 4, 20.0), (0.95, 4, 0.2), (1.0, 5, 0.2), (7e6, 7, 1e6)]
)
def test_ticks_are_round(span, count, step):
    assert svg.tick_step(span, count) == pytest.approx(step)


@given(low=st.floats(-1e6, 1e6), span=st.floats(1e-3, 1e6), count=st.integers(2, 12))
def test_there_are_about_as_many_ticks_as_asked_for(low, span, count):
    found = svg.ticks(low, low + span, svg.tick_step(span, count))
    assert count / 2 - 1 <= len(found) <= 2 * count + 1
    assert all(low - 1e-6 * span <= tick <= low + span * (1 + 1e-6) for tick in found)


def heights(markup: Raw, kind: str) -> list[float]:
    """y of every point of the first path of that class."""
    [path, *_] = [node for node in ET.fromstring(markup).iter("path") if node.get("class") == kind]
    return [float(point.split()[1]) for point in path.get("d")[1:].split("L")]


def test_a_falling_curve_falls_on_the_page_too():
    ys = heights(svg.curves({"loss": [(step, 1 / step) for step in range(1, 50)]}), "curve")
    assert ys == sorted(ys) and ys[-1] > ys[0]  # y grows downwards


def test_a_logarithmic_axis_makes_a_power_law_of_steps_even():
    ys = heights(svg.curves({"loss": [(step, 10.0**-step) for step in range(5)]}, log=True), "curve")
    assert np.diff(ys) == pytest.approx(np.diff(ys)[0], abs=0.11)


def test_what_is_not_finite_is_left_out_of_curves():
    points = [(1, 1.0), (2, math.nan), (3, math.inf), (4, 0.5)]
    assert len(heights(svg.curves({"loss": points}), "curve")) == 2
    assert "nothing was logged" in svg.curves({"loss": [(1, math.nan)]})
    assert "nothing was logged" in svg.curves({})


def test_a_flat_curve_and_a_single_point_are_drawn():
    assert len(set(heights(svg.curves({"a": [(1, 3.0), (2, 3.0)]}), "curve"))) == 1
    assert len(heights(svg.curves({"a": [(5, 0.0)]}), "curve")) == 2  # a line of no length has round ends


def test_smoothing_has_no_bias_at_the_start_and_spares_short_curves():
    assert [y for _, y in svg.smoothed([(1, 4.0), (2, 4.0)], 0.9)] == pytest.approx([4, 4])
    assert [y for _, y in svg.smoothed([(1, 0.0), (2, 1.0)], 0.5)] == pytest.approx([0, 2 / 3])
    assert "raw" not in svg.curves({"a": [(1, 1.0), (2, 0.0)]}, smooth=0.9)


def test_long_curves_are_thinned_and_keep_their_end():
    points = [(step, float(step)) for step in range(10_000)]
    ys = heights(svg.curves({"a": points}), "curve")
    assert len(ys) == svg.MOST and ys[-1] == pytest.approx(10.0, abs=0.1)


def test_names_at_the_ends_of_curves_do_not_overlap():
    markup = svg.curves({name: [(1, 1.0), (2, 0.5)] for name in "abc"})
    ys = sorted(float(node.get("y")) for node in ET.fromstring(markup).iter("text") if node.get("class") == "name")
    assert len(ys) == 3 and min(np.diff(ys)) >= 14


def test_a_picture_is_a_picture():
    """Read back by another library: lowest value darkest, highest brightest, first row on top."""
    image = pytest.importorskip("PIL.Image").open(io.BytesIO(svg.png(np.array([[0.0, 1, 2], [2, 2, 2]]))))
    assert image.size == (3, 2) and image.mode == "RGB"
    dark, bright = svg.INFERNO[0], svg.INFERNO[-1]
    assert [image.getpixel(at) for at in ((0, 0), (2, 0), (0, 1))] == [dark, bright, bright]


def test_a_mel_has_seconds_and_hertz_on_its_axes():
    picture = svg.spectrogram(np.eye(40), seconds=2, hertz=list(np.linspace(0, 8000, 40)))
    texts = re.findall(r">([^<>]+)</text>", picture)
    assert "2 s" in texts and "4 kHz" in texts and "500 Hz" in texts


def test_a_string_is_paragraphs():
    assert render("a\n\nb") == "<p>a</p><p>b</p>"
