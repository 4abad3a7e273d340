"""Spoken answers as they arrive: order of events, what is said and written, tools between turns, what is remembered.

The model is a script: a real function from a prompt's ids to an answer's, as any decoder is.
"""

import json
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from speeches import codec as small_codec

from gamut.codecs.answer import parse_ta4
from gamut.codecs.chat import (
    AFTER_THINKING,
    ANSWER_SPEECH,
    ANSWER_THINKING,
    AUDIO_END,
    AUDIO_PATCH,
    AUDIO_START,
    BOT,
    EOT,
    TTS_END,
    TTS_PAD,
    TTS_START,
    encode_chat,
    write_tool_call,
)
from gamut.codecs.mel import levelled, pad_mels, patches
from gamut.codecs.text import Tokenizer
from gamut.codecs.weave import Marks, build_ta4
from gamut.generate.ar import Prompt, generate
from gamut.generate.sampling import Sampling
from gamut.generate.speak import Asked, Done, Sound, Told, Words, collect, decoder, respond
from gamut.generate.tools import Found, Tool, Toolbox, calculator
from gamut.io.media import resample
from gamut.models.audio_encoder import AudioEncoderConfig
from gamut.models.lm import LMConfig
from gamut.models.omni import Omni, OmniConfig

torch.manual_seed(0)
CODEC = small_codec((5, 5))
STRIDE = CODEC.wave.stride[0]
SPECIALS = [BOT, EOT, "<tool_call>", "</tool_call>", AUDIO_START, AUDIO_END, AUDIO_PATCH, TTS_START, TTS_END, TTS_PAD]
WORDS = Tokenizer.train(["hello world"], 256, [*SPECIALS, *(f"<audio_{k}>" for k in range(26))])
MARKS = Marks.of(WORDS, 25)
USER = {"role": "user", "content": "hi"}
STOP = WORDS.id(EOT)


def speech(text: str, codes: list[int]) -> list[int]:
    """What a model writes behind ``<tts_start>``."""
    return build_ta4(WORDS.encode(text), MARKS.audio_ids(codes), MARKS)[1:]


def script(*answers):
    """A decoder that plays its answers in turn, and keeps the prompts it was given."""
    prompts: list[list[int]] = []

    def decode(ids: list[int]):
        prompts.append(ids)
        answer = answers[len(prompts) - 1]
        yield from WORDS.encode(answer) if isinstance(answer, str) else answer

    return decode, prompts


def test_sound_begins_before_the_words_are_complete():
    """40 words, 160 codes: the first sound comes after chunk + look-ahead codes, and all of it adds up."""
    text, codes = "x" * 40, [k % 25 for k in range(160)]
    decode, prompts = script([*speech(text, codes), STOP])
    events = list(respond([USER], decode, WORDS, codec=CODEC, prefill=ANSWER_SPEECH))
    first = next(i for i, event in enumerate(events) if isinstance(event, Sound))
    assert sum(isinstance(event, Words) for event in events[:first]) == 7  # (25 + 3) codes / 4
    answer = collect(events)
    assert (answer.spoken, answer.text, answer.finish) == (text, "", "stop")
    with CODEC.streaming(1) as voice:
        want = torch.cat([voice.decode(torch.tensor([codes])), voice.flush()], 1)[0]
    assert answer.wav.shape == (160 * STRIDE,) and torch.equal(answer.wav, want)
    assert prompts == [encode_chat([USER], WORDS, prefill=ANSWER_SPEECH)]


def test_the_next_prompt_continues_the_last_one_bit_for_bit():
    """Token in, token out: prompt, then the generated ids, then <|EOT|>, with no text tokenised again."""
    made = [*speech("hello", [1, 2, 3]), *WORDS.encode("wor"), *WORDS.encode("ld")]  # "world" would be other ids
    decode, prompts = script([*made, STOP, 5], "ok<|EOT|>")
    first = collect(respond([USER], decode, WORDS, codec=CODEC, prefill=ANSWER_SPEECH))
    collect(respond([USER, *first.messages, USER], decode, WORDS, codec=CODEC))
    assert prompts[1][: len(prompts[0]) + len(made) + 1] == [*prompts[0], *made, STOP]
    assert (first.spoken, first.text) == ("hello", "world")


def test_tools_are_called_and_their_results_read():
    """Two calls in one turn, the results in order in the next prompt, and the last answer spoken from them."""
    calls = write_tool_call("calculator", {"expression": "3*4"}) + write_tool_call("calculator", {"expression": "1-2"})
    prompts: list[str] = []

    def decode(ids: list[int]):
        prompts.append(WORDS.decode(ids))
        if len(prompts) == 1:
            return WORDS.encode(f"let me see{calls}<|EOT|>")
        told = [part.split("<|EOT|>")[0] for part in prompts[-1].split("function_output\ncalculator\n")[1:]]
        return [*speech(" and ".join(told), [7] * 9), STOP]

    box = Toolbox([calculator()])
    events = list(respond([USER], decode, WORDS, codec=CODEC, tools=box, prefill=("", ANSWER_SPEECH)))
    kinds = [type(event) for event in events if not isinstance(event, Words | Sound)]
    assert kinds == [Asked, Asked, Told, Told, Done]
    answer = collect(events)
    assert (answer.text, answer.spoken, answer.finish) == ("let me see", "12 and -1", "stop")
    assert [result.content for result in answer.results] == ["12", "-1"]
    assert [message["role"] for message in answer.messages] == ["assistant", "tool", "tool", "assistant"]
    assert json.dumps(box.schemas) in prompts[0] and prompts[0].endswith("<|BOT|>assistant\n")
    results = "".join(f"<|BOT|>function_output\ncalculator\n{value}<|EOT|>" for value in (12, -1))
    assert prompts[1] == f"{prompts[0]}let me see{calls}<|EOT|>{results}<|BOT|>assistant\n<tts_start>"


def test_a_spoken_lead_in_is_heard_before_the_tool_runs():
    call = WORDS.encode(write_tool_call("now", {}))
    decode, _ = script([*speech("wait", [1, 2, 3]), *call, STOP], [*speech("noon", [4]), STOP])
    heard: list[int] = []

    def now() -> str:
        heard.append(sum(len(event.wav) for event in events if isinstance(event, Sound)))
        return "12"

    box = Toolbox([Tool("now", "", {"type": "object", "properties": {}}, now)])
    events: list = []
    for event in respond([USER], decode, WORDS, codec=CODEC, tools=box, prefill=ANSWER_SPEECH):
        events.append(event)
    assert heard == [3 * STRIDE]
    assert (collect(events).spoken, collect(events).text) == ("waitnoon", "")


def test_a_model_may_open_its_speech_itself():
    decode, _ = script([*WORDS.encode("ok "), MARKS.start, *speech("yes", [3] * 5), *WORDS.encode("!"), STOP])
    answer = collect(respond([USER], decode, WORDS, codec=CODEC))
    assert (answer.text, answer.spoken, len(answer.wav)) == ("ok !", "yes", 5 * STRIDE)


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ('<tool_call>function\ncalculator\n{"expression": </tool_call>', "the arguments are not JSON"),
        ("<tool_call>function\ncalculator</tool_call>", "the arguments are not JSON"),
        ("<tool_call>oops", "unknown tool ''; available: calculator"),
        ('<tool_call>function\nsearch\n{"q": 1}</tool_call>', "unknown tool 'search'; available: calculator"),
    ],
)
def test_a_broken_call_is_answered_and_can_be_mended(broken, told):
    good = write_tool_call("calculator", {"expression": "1+1"})
    decode, prompts = script(f"{broken}<|EOT|>", f"{good}<|EOT|>", "2<|EOT|>")
    answer = collect(respond([USER], decode, WORDS, tools=Toolbox([calculator()])))
    assert answer.results[0].content.startswith(f"error: {told}") and answer.results[1].content == "2"
    assert answer.results[0].content in WORDS.decode(prompts[1])
    assert (answer.text, answer.finish) == ("2", "stop")


def test_an_answer_that_was_cut_off_runs_nothing():
    call = write_tool_call("calculator", {"expression": "1+1"})
    answer = collect(respond([USER], script(call)[0], WORDS, tools=Toolbox([calculator()])))
    assert (answer.results, answer.finish, len(answer.messages)) == ([], "length", 1)
    decode, _ = script([*speech("abcde", [1] * 30)[:12]])  # 2 whole groups, a word, a code
    answer = collect(respond([USER], decode, WORDS, codec=CODEC, prefill=ANSWER_SPEECH))
    assert (answer.spoken, answer.finish) == ("abc", "length")
    assert len(answer.wav) == 9 * STRIDE


def test_a_model_that_only_calls_is_stopped():
    call = write_tool_call("calculator", {"expression": "1+1"}) + EOT
    decode, prompts = script(*[call] * 9)
    answer = collect(respond([USER], decode, WORDS, tools=Toolbox([calculator()]), turns=3))
    assert (answer.finish, len(prompts), len(answer.results)) == ("turns", 3, 2)


def test_text_alone_needs_no_codec_and_splits_no_character():
    decode, _ = script("héllo 世界 <tool_call>x</tool_call><|EOT|>")
    events = list(respond([USER], decode, WORDS))
    assert all("\ufffd" not in event.text for event in events if isinstance(event, Words))
    assert len(events) > 8 and collect(events).text == "héllo 世界 <tool_call>x</tool_call>"  # no tools: plain text


@settings(max_examples=40)
@given(st.lists(st.sampled_from([*range(97, 107), *range(256 + 4, WORDS.vocab)]), max_size=40), st.booleans())
def test_any_stream_gives_what_the_whole_text_parser_gives(ids, spoken):
    """Twin, on nonsense: marks, pads and audio tokens anywhere (the model may not open speech by itself here)."""
    ids = [i for i in ids if i != MARKS.start]
    decode, _ = script([*ids, STOP])
    answer = collect(respond([USER], decode, WORDS, codec=CODEC, prefill=ANSWER_SPEECH if spoken else ""))
    whole = parse_ta4(ids, spoken, MARKS)
    assert answer.spoken == WORDS.decode(whole.text_ids)
    shown = [i for i in whole.other_ids if i < MARKS.audio and i != MARKS.end]
    assert answer.text == WORDS.decode(shown)
    assert len(answer.wav) == len(MARKS.audio_codes(whole.audio_ids)) * STRIDE


def test_whoever_stops_listening_stops_the_model():
    """Barge-in: closing the events closes the decoder where it stands."""
    given: list[int] = []
    closed: list[bool] = []

    def decode(ids: list[int]):
        try:
            for i in speech("x" * 99, [1] * 400):
                given.append(i)
                yield i
        finally:
            closed.append(True)

    events = respond([USER], decode, WORDS, codec=CODEC, prefill=ANSWER_SPEECH)
    next(event for event in events if isinstance(event, Sound))
    events.close()
    assert closed == [True] and len(given) == 35  # 28 codes, and a word for every four


def test_a_model_answers_as_generate_would():
    """`decoder` on a tiny random model that has heard a clip: the same ids as the batched path."""
    torch.manual_seed(1)
    lm = LMConfig(WORDS.vocab, 32, 2, 2, 1, 16, 48, max_positions=256)
    audio = AudioEncoderConfig(mels=16, width=16, layers=1, heads=2, ffn=32, positions=100)
    ids = {f"{name}_id": WORDS.id(f"<{name}>") for name in ("audio_start", "audio_end", "audio_patch")}
    model = Omni(OmniConfig(lm, audio, adaptor_hidden=24, **ids)).eval()
    mel = torch.randn(16, 50)
    user = {"role": "user", "content": [{"type": "audio", "patches": patches(50)}]}
    sampling = Sampling(temperature=1.0, seed=3, max_new=60, stop=(STOP,))
    decode = decoder(model, sampling, [mel])
    answer = collect(respond([user], decode, WORDS, codec=CODEC, prefill=ANSWER_SPEECH))
    prompt = encode_chat([user], WORDS, prefill=ANSWER_SPEECH)
    [sample] = generate(model.lm, [Prompt(prompt, model.prompt(prompt, *pad_mels([mel])))], sampling)
    whole = parse_ta4([i for i in sample.ids if i != STOP], True, MARKS)
    assert answer.messages[0]["content"][1]["token"] == [i for i in sample.ids if i != STOP]
    assert answer.spoken == WORDS.decode(whole.text_ids) and answer.finish == sample.finish
    with pytest.raises(ValueError, match="2 log-mels came for 1 <audio_start> marks; give one for each"):
        decoder(model, sampling, [mel, mel])(prompt)


def test_errors_say_what_to_do():
    decode, _ = script("x")
    with pytest.raises(ValueError, match="needs a codec; pass codec=…, or ask for ANSWER_TEXT"):
        next(respond([USER], decode, WORDS, prefill=ANSWER_SPEECH))
    with pytest.raises(ValueError, match=r"at least one turn and one prefill, got turns=0"):
        next(respond([USER], decode, WORDS, turns=0))


def test_thoughts_are_shown_apart_and_forgotten():
    """However the mark of their end is cut, and also when it never comes."""
    decode, prompts = script([*WORDS.encode("3 and 4\n</think>\n\n"), *[MARKS.start, *speech("7", [1] * 4)], STOP])
    answer = collect(respond([USER], decode, WORDS, codec=CODEC, prefill=ANSWER_THINKING))
    assert (answer.thought, answer.spoken, answer.text) == ("3 and 4\n", "7", "")
    assert WORDS.decode(prompts[0]).endswith("assistant\n\n<think>\n")
    follow, later = script("ok<|EOT|>")
    collect(respond([USER, *answer.messages, USER], follow, WORDS, codec=CODEC))
    assert "3 and 4" not in WORDS.decode(later[0]) and MARKS.audio_codes(later[0]) == [1] * 4
    decode, _ = script("hm </thin<|EOT|>")
    assert collect(respond([USER], decode, WORDS, prefill=ANSWER_THINKING)).thought == "hm </thin"


def test_a_voice_that_was_found_is_heard_and_spoken_in():
    """The clip's codes stand behind the result, and what ``switch`` gives is what the codec speaks in from then on."""
    asked_for: list = []

    class Manners:
        vocab, rate = CODEC.vocab, CODEC.rate

        def streaming(self, batch, voice=None):
            asked_for.append(voice)
            return CODEC.streaming(batch)

    found = Found("a low voice", torch.sin(torch.arange(8000.0)), 8000)
    tool = Tool("find", "", {"type": "object", "properties": {}}, lambda: found)
    call = f"{write_tool_call('find', {})}<|EOT|>"
    decode, prompts = script(call, [*speech("x", [2] * 4), STOP])
    answer = collect(respond([USER], decode, WORDS, codec=Manners(), tools=Toolbox([tool]),
                             prefill=("", ANSWER_SPEECH), switch=lambda hit: ([3, 4], hit.text)))  # fmt: skip
    assert asked_for == ["a low voice"] and answer.spoken == "x"
    assert MARKS.audio_codes(prompts[1]) == [3, 4] and answer.messages[1]["content"][0]["text"] == "a low voice"
    decode, prompts = script(call, "ok<|EOT|>")
    collect(respond([USER], decode, WORDS, codec=CODEC, tools=Toolbox([tool])))
    assert MARKS.audio_codes(prompts[1]) == CODEC.encode(levelled(resample(found.wav, 8000, 16000))[None])[0].tolist()
    decode, prompts = script(call, "ok<|EOT|>")
    assert collect(respond([USER], decode, WORDS, tools=Toolbox([tool]))).text == "ok"  # nothing to hear it with


def test_a_slow_tool_is_spoken_over():
    """What is said meanwhile comes before the result, and only when the tool is slow."""
    gate = threading.Event()
    tool = Tool("slow", "", {"type": "object", "properties": {}}, lambda: gate.wait(20) and "done")
    call = f"{write_tool_call('slow', {})}<|EOT|>"
    meanwhile = Sound(torch.ones(5))

    def interim():
        gate.set()
        return [Words("one moment", spoken=True), meanwhile]

    decode, prompts = script(call, "ok<|EOT|>")
    events = list(respond([USER], decode, WORDS, tools=Toolbox([tool]), interim=interim, patience=0.05))
    kinds = [type(event).__name__ for event in events]
    assert kinds[:4] == ["Asked", "Words", "Sound", "Told"]
    assert "one moment" not in WORDS.decode(prompts[1])
    decode, _ = script(call, "ok<|EOT|>")
    assert not any(e is meanwhile for e in respond([USER], decode, WORDS, tools=Toolbox([tool]), interim=interim))


def test_a_voice_that_cannot_be_taken_on_is_told_and_the_turn_goes_on():
    """Too short a clip, a codec without a tokenizer: whatever the codec refuses is the tool's error."""
    def refuse(found):
        raise ValueError("a voice needs a recording of at least 0.5 s")

    tool = Tool("voice", "", {"type": "object", "properties": {}}, lambda: Found("calm", torch.zeros(100), 8000))
    decode, prompts = script(f"{write_tool_call('voice', {})}<|EOT|>", "ok<|EOT|>")
    answer = collect(respond([USER], decode, WORDS, codec=CODEC, tools=Toolbox([tool]), switch=refuse))
    assert (answer.text, answer.results[0].content) == ("ok", "error: a voice needs a recording of at least 0.5 s")
    assert "function_output\nvoice\nerror: a voice needs" in WORDS.decode(prompts[1])


def test_a_model_that_was_not_taught_to_speaks_behind_its_thought():
    """As the released examples do: up to </think>, then the mark of speech is put there."""
    decode, prompts = script("hm</think>", "7<|EOT|>")
    asked = respond([USER], decode, WORDS, codec=CODEC, prefill=ANSWER_THINKING, after_thought=AFTER_THINKING)
    answer = collect(asked)
    assert answer.thought == "hm" and WORDS.decode(prompts[1]).endswith("<think>\nhm</think>\n\n<tts_start>")
    assert answer.spoken == "7" and answer.text == ""
    assert WORDS.decode(prompts[1]).startswith(WORDS.decode(prompts[0]))


def test_a_voice_is_read_when_there_is_something_to_say():
    opened = []

    class Counted:
        vocab, rate = CODEC.vocab, CODEC.rate

        def streaming(self, rows, **manner):
            opened.append(manner)
            return CODEC.streaming(rows, **manner)

    decode, _ = script("seven<|EOT|>")
    assert collect(respond([USER], decode, WORDS, codec=Counted())).text == "seven" and not opened
