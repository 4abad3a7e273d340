"""Weaving text and audio ids: the released results exactly, and nothing lost for any lengths, ratio or cut."""

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import TA4 as GOLDEN
from toys import ToyTokenizer

from gamut.codecs.answer import WeaveParser, Woven, is_ta4_prompt, parse_ta4
from gamut.codecs.text import Tokenizer
from gamut.codecs.weave import Marks, Weave, build_ta4

MARKS = Marks.of(ToyTokenizer())
TEXTS = st.lists(st.integers(0, 0xD7FF), max_size=40)
CODES = st.lists(st.integers(0, 6560), max_size=160)
RATIOS = st.tuples(st.integers(1, 12), st.integers(1, 18))


def joined(pieces: list[Woven]) -> Woven:
    return Woven(*(list(chain.from_iterable(side)) for side in zip(*pieces, strict=True)))


def cuts(stream: list, data: st.DataObject) -> list[list]:
    """Any way of slicing a stream into deltas, empty ones included."""
    places = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    return [stream[a:b] for a, b in zip([0, *places], [*places, len(stream)], strict=True)]


@pytest.mark.parametrize("case", GOLDEN["build"])
def test_built_like_the_reference(case):
    assert build_ta4(case["text_ids"], case["audio_ids"], MARKS, padding="reference") == case["ids"]


@pytest.mark.parametrize("case", GOLDEN["parse"])
def test_parsed_like_the_reference(case):
    woven = parse_ta4(case["output_ids"], case["is_ta4"], MARKS)
    assert woven == (case["text_ids"], case["audio_ids"], case["other_ids"])


@pytest.mark.parametrize("case", GOLDEN["stream"])
def test_streamed_like_the_reference(case):
    parser = WeaveParser(MARKS)
    for event in case["events"]:
        assert parser.push(event["delta_ids"]) == (event["text_ids"], event["audio_ids"], event["other_ids"])


@pytest.mark.parametrize("case", GOLDEN["is_ta4_prompt"])
def test_a_prompt_that_ends_with_the_start_mark_wants_speech(case):
    assert is_ta4_prompt(case["prompt_ids"], MARKS) is case["is_ta4"]


@given(TEXTS, CODES, RATIOS, st.sampled_from(["full", "reference", "none"]), st.data())
def test_what_is_woven_comes_apart_again(text, codes, ratio, padding, data):
    """For any lengths, ratio and padding, whole or in any pieces, with words after the spoken section."""
    section = Weave(*ratio).build(text, MARKS.audio_ids(codes), MARKS, padding=padding)
    stream, after = section[1:], [104, 105]
    whole = parse_ta4(stream + after, True, MARKS)
    assert whole == (text, MARKS.audio_ids(codes), after)
    assert MARKS.audio_codes(whole.audio_ids) == codes
    parser = WeaveParser(MARKS)
    pieces = [parser.push(piece) for piece in cuts(stream + after, data)]
    assert joined(pieces) == whole


@given(TEXTS, CODES, RATIOS)
def test_full_padding_completes_every_group(text, codes, ratio):
    """Hand rule: groups x (T + A) ids between the marks, each group T non-audio ids then A audio ids."""
    weave = Weave(*ratio)
    inner = weave.build(text, MARKS.audio_ids(codes), MARKS)[1:-1]
    groups = max(-(-len(text) // weave.text), -(-len(codes) // weave.audio))
    assert len(inner) == groups * (weave.text + weave.audio)
    sides = [i >= MARKS.audio for i in inner]
    assert sides == ([False] * weave.text + [True] * weave.audio) * groups


def test_ten_to_fifteen_by_hand():
    """Step-Audio-AQAA: 12 words and 40 audio ids give blocks of 10 + 15, 2 + 15, then the last 10 alone."""
    text, audio = list(range(12)), list(range(100, 140))
    want = text[:10] + audio[:15] + text[10:] + audio[15:30] + audio[30:]
    assert Weave(10, 15).blocks(text, audio) == want


@given(TEXTS, CODES, st.data())
def test_a_section_may_open_inside_an_answer(text, codes, data):
    """A model that thinks or calls a tool first: only with reopen, and as the released parser has it without."""
    stream = [110, 10, *build_ta4(text, MARKS.audio_ids(codes), MARKS), 111]
    parser = WeaveParser(MARKS, is_ta4=False, reopen=True)
    pieces = [parser.push(piece) for piece in cuts(stream, data)]
    assert joined(pieces) == (text, MARKS.audio_ids(codes), [110, 10, 111])
    assert parse_ta4(stream, False, MARKS) == ([], [], stream)


def test_ids_that_are_no_code_never_reach_the_vocoder():
    ids = [MARKS.audio + 5, MARKS.audio_pad, MARKS.audio_pad + 300, 7, MARKS.audio + 6560]
    assert MARKS.audio_codes(ids) == [5, 6560]


def test_marks_come_from_the_tokenizer_for_any_codec_size():
    specials = ["<tts_pad>", "<tts_end>", "<tts_start>", *(f"<audio_{k}>" for k in range(9))]
    tokenizer = Tokenizer.characters("abc", specials)
    marks = Marks.of(tokenizer, codes=8)
    assert (marks.text_pad, marks.end, marks.start, marks.audio, marks.audio_pad) == (3, 4, 5, 6, 14)
    text = tokenizer.encode("abca")
    assert parse_ta4(build_ta4(text, marks.audio_ids([7, 0, 3]), marks)[1:], True, marks) == Woven(text, [13, 6, 9], [])


def test_errors_say_what_and_where():
    with pytest.raises(ValueError, match=r"text ids must lie in \[0, 151696\).*got \[151700\]"):
        build_ta4([151700], [], MARKS)
    with pytest.raises(ValueError, match=r"audio ids must lie in \[151696, 158257\], got \[5\].*marks.audio_ids"):
        build_ta4([], [5], MARKS)
    with pytest.raises(ValueError, match=r"codes must lie in \[0, 6561\), got \[6561\]"):
        MARKS.audio_ids([0, 6561])
    with pytest.raises(ValueError, match="at least one id of each side, got text=0, audio=4"):
        Weave(0, 4)
    specials = ["<tts_pad>", "<tts_end>", "<tts_start>", "<audio_0>", "<audio_2>", "<audio_1>"]
    with pytest.raises(ValueError, match="consecutive ids: <audio_0> is 4 and <audio_1> is 6, not 5"):
        Marks.of(Tokenizer.characters("a", specials), codes=1)
    with pytest.raises(ValueError, match="<audio_6561>"):
        Marks.of(Tokenizer.characters("a", specials))
