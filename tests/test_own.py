"""Own conversations: read from disk, refused line by line, written as the model will see them, batched."""

import json

import pytest
import torch
from speeches import codec as small_codec

import gamut.data.own_rows
from gamut.codecs.chat import ANSWER_SPEECH, ANSWER_THINKING, encode_chat, encode_turns
from gamut.codecs.weave import Marks
from gamut.data.conversations import vocabulary
from gamut.data.own import read_conversations, split, unfolded
from gamut.data.own_rows import Own
from gamut.evals.own import scored
from gamut.generate.tools import calculator
from gamut.generate.voice import SpeechCodec
from gamut.io.media import write_audio

WORDS = vocabulary(9, [calculator().schema])
CALL = {"id": "c1", "function": {"name": "calculator", "arguments": '{"expression": "3*4"}'}}


@pytest.fixture(scope="module")
def codec() -> SpeechCodec:
    torch.manual_seed(0)
    return small_codec()


def asked(file: str, answer, **more) -> dict:
    user = {"role": "user", "content": [{"type": "audio", "file": file}, {"type": "text", "text": "Well?"}]}
    system, own = {"role": "system", "content": "Be brief."}, {"role": "assistant", "content": answer}
    return {"messages": [system, user, own], **more}


def write(folder, *lines) -> None:
    (folder / "conversations.jsonl").write_text("\n".join(json.dumps(line) for line in lines))


def learned(row) -> str:
    return WORDS.decode([i for i, mine in zip(row.ids, row.learn, strict=True) if mine])


@pytest.fixture
def folder(tmp_path):
    for k in range(4):
        write_audio(tmp_path / f"{k}.wav", torch.sin(torch.arange(4000 * (k + 1)) * 0.1) * 0.3, 8000)
    spoken = [{"type": "audio", "file": "3.wav", "text": "yes"}]
    lines = [asked(f"{k}.wav", f"number {k}") for k in range(3)] + [asked("0.wav", spoken)]
    write(tmp_path, *lines)
    return tmp_path


def test_a_conversation_becomes_what_the_model_hears_and_says(folder, codec):
    own = Own(read_conversations(folder), WORDS, codec=codec)
    row = own.row(own.talked[2])
    assert len(row.mels) == 1 and row.seconds == 1.5 and row.ids.count(WORDS.id("<audio_patch>")) == 19
    assert learned(row) == "number 2<|EOT|>"
    row, marks = own.row(own.talked[3]), Marks.of(WORDS, 9)
    said = [i for i, mine in zip(row.ids, row.learn, strict=True) if mine]
    assert len(marks.audio_codes(said)) == 50  # two seconds at 25 tokens
    assert marks.start in row.ids and marks.start not in said  # whether to speak was asked for
    assert [len(own.row(one).ids) for one in own.talked] == own.lengths  # measured as it is read


def test_what_is_there_twice_is_on_one_side(folder):
    """The same words and sounds, in whatever lines: none is both learned from and held out."""
    once = split(read_conversations(folder), 0.25, seed=3)
    lines = [asked(f"{k % 3}.wav", f"number {k % 3}") for k in range(12)]
    write(folder, *lines)
    for seed in range(8):
        train, test = split(read_conversations(folder), 0.3, seed)
        assert (len(train), len(test)) == (8, 4)
        assert not {json.dumps(one.told) for one in train} & {json.dumps(one.told) for one in test}
    assert [len(part) for part in once] == [3, 1]


def test_rows_are_what_the_official_layout_says(folder, codec):
    """Several turns and a tool, beside the whole conversation written at once; the past says nothing of thoughts."""
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "three times four?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "12"},
        {"role": "assistant", "content": "12"},
        {"role": "user", "content": "again?"},
        {"role": "assistant", "content": "12, I said"},
    ]
    schemas = [calculator().schema]
    write(folder, {"messages": turns, "tools": schemas})
    [one] = read_conversations(folder)
    row = Own([one], WORDS).row(one)
    assert (row.ids, row.learn) == encode_turns(turns, WORDS, schemas, codes=9)
    text = WORDS.decode(row.ids)
    assert "<tool_call>function\ncalculator\n" in text and "function_output\ncalculator\n12<|EOT|>" in text


def test_each_thought_is_learned_where_a_row_ends(folder):
    def turn(number: int) -> list[dict]:
        said = f"<think>\nhm {number}\n</think>\n\nnumber {number}"
        return [{"role": "user", "content": f"say {number}"}, {"role": "assistant", "content": said}]

    write(folder, {"messages": [*turn(1), *turn(2)]})
    [one] = read_conversations(folder)
    assert [len(part.messages) for part in unfolded(one)] == [2, 4]
    own = Own([one], WORDS)
    first, second = (own.row(part) for part in own.talked)
    assert learned(first) == "hm 1\n</think>\n\nnumber 1<|EOT|>"
    assert learned(second) == "hm 2\n</think>\n\nnumber 2<|EOT|>"
    past = [turn(1)[0], {"role": "assistant", "content": "number 1"}, turn(2)[0]]
    asks = encode_chat(past, WORDS, prefill=ANSWER_THINKING)
    assert second.ids[: len(asks)] == asks  # as the model is asked


def test_with_tools_on_offer_the_model_chooses_to_speak(folder, codec):
    spoken = [{"type": "audio", "file": "3.wav", "text": "yes"}]
    write(folder, asked("0.wav", spoken, tools=[calculator().schema]))
    [one] = read_conversations(folder)
    row, start = Own([one], WORDS, codec=codec).row(one), WORDS.id("<tts_start>")
    assert start in [i for i, mine in zip(row.ids, row.learn, strict=True) if mine]


def test_speech_as_the_released_server_writes_it(folder):
    speech = {"tts_text": "yes", "tts_audio": "<audio_1><audio_2><audio_3><audio_4>"}
    write(folder, {"messages": [{"role": "user", "content": "Well?"},
                                {"role": "assistant", "content": None, "tts_content": speech}]})  # fmt: skip
    [one] = read_conversations(folder)
    row = Own([one], WORDS).row(one)
    given = encode_chat([{"role": "user", "content": "Well?"}], WORDS, prefill=ANSWER_SPEECH)
    assert row.ids[: len(given)] == given and one.aloud
    assert Marks.of(WORDS, 9).audio_codes(row.ids) == [1, 2, 3, 4]


@pytest.mark.parametrize("packed", [True, False])
def test_every_conversation_comes_once_an_epoch(folder, codec, packed):
    own = Own(read_conversations(folder), WORDS, tokens=300, codec=codec, packed=packed)
    rows = [own.batch(i) for i in range(own.batches)]
    assert sum(len(batch.mels_NMF) for batch in rows) == 4
    assert all(batch.ids_BT.numel() <= 300 for batch in rows)
    assert all((len(batch.ids_BT) == 1) or not packed for batch in rows)
    assert torch.equal(own.batch(0).ids_BT, rows[0].ids_BT)
    assert {i for k in range(own.batches) for i in own.group(own.batches + k)} == {0, 1, 2, 3}


def test_a_folder_of_clips_with_transcripts_is_conversations_too(folder, monkeypatch):
    """Two pieces of 25 s make two audio blocks in one message. The folder may be named from where one stands."""
    monkeypatch.chdir(folder.parent)
    (folder / "conversations.jsonl").unlink()
    write_audio(folder / "long.wav", torch.randn(26 * 8000) * 0.1, 8000)
    (folder / "transcripts.csv").write_text("file,text\n0.wav,one two\nlong.wav,12\n")
    own = Own(read_conversations(folder.name, prompt="Write it down."), WORDS)
    short, long = (own.row(one) for one in own.talked)
    assert "Write it down." in WORDS.decode(short.ids) and learned(short) == "one two<|EOT|>"
    assert len(long.mels) == 2 and long.ids.count(WORDS.id("<audio_start>")) == 2
    question, answer = own.question(own.talked[1])
    assert WORDS.decode(question.ids).endswith("<|BOT|>assistant\n") and WORDS.decode(answer) == "12<|EOT|>"


def test_no_answers_have_no_score():
    with pytest.raises(ValueError, match="no answers to score; give at least one conversation"):
        scored([])


def said(content, **more) -> str:
    return json.dumps({"messages": [{"role": "assistant", "content": content, **more}]})


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "line 1 is not JSON"), ("[]", 'line 1 needs {"messages"'), ('{"messages": [{"role": "user"}]}', "needs"),
        (json.dumps(asked("9.wav", "x")), "line 1 names the sound '9.wav', which is not in"),
        (json.dumps({"messages": [{"role": "user", "content": "x"}]}), "line 1 has no assistant message"),
        (json.dumps({"messages": [{"role": "bot", "content": "x"}]}), "line 1 has the role 'bot'; allowed: system"),
        (json.dumps({"messages": [{"role": "assistant", "content": ""}]}), "assistant message without content"),
        (json.dumps({"messages": [{"role": "user", "content": 3}]}), "content is text or a list of parts, got 3"),
        (json.dumps({"messages": [{"role": "user", "content": [{"type": "image"}]}]}), "has the part {'type': 'im"),
        (json.dumps({"messages": [{"role": "assistant", "content": "x"}], "tools": "web"}), "tools is a list of sche"),
        ("", "holds no conversations"),
        (said([{"type": "audio", "audio": "data:" * 99}]), "line 1 names the sound '(data:){16}', which is not in"),
        (said([5]), "line 1 has the part 5; allowed"), (said([{"text": 5}]), "has the part {'text': 5}; allowed"),
        (said([{"type": "text", "text": 5}]), "has the part {'type': 'text', 'text': 5}; allowed"),
        (said([{"type": "token", "token": 7}]), "has the part {'type': 'token', 'token': 7}; allowed"),
        (said([{"type": "token", "token": ["7"]}]), "has the part {'type': 'token'"),
        (said([{"type": "audio", "file": ["a.wav"]}]), "has the part {'type': 'audio'"),
        (said([{"type": "audio", "file": "a.wav", "text": None}]), "has the part {'type': 'audio'"),
        (said(None, tool_calls="web"), "line 1: tool_calls is a list of calls, each with a name and arg.*got web"),
        (said(None, tool_calls=["web"]), "tool_calls is a list of calls"),
        (said(None, tool_calls=[{"function": {"name": "web"}}]), "tool_calls is a list of calls"),
        (said(None, tool_calls=[{"function": {"arguments": "{}"}}]), "tool_calls is a list of calls"),
        (said(None, tool_calls=[CALL | {"id": ["c1"]}]), "tool_calls is a list of calls"),
        (said("x", tool_call_id=[1]), r"tool_call_id is the id of a call, got \[1\]"),
        (said(None, tts_content={"tts_text": "yes"}), "line 1: tts_content holds tts_text and tts_audio, both"),
        (said(None, tts_content={"tts_text": "yes", "tts_audio": 1}), "tts_content holds tts_text and tts_audio"),
        (said(None, tool_calls=[{"function": {"name": "web", "arguments": "{broken"}}]), "tool_calls is a list of"),
        (said("  "), "an assistant message without content"), (said("x", contents="y"), "the key 'contents' in a mess"),
        (json.dumps({"messages": [{"role": "user", "content": []}]}), "line 1 has a user message without content"),
        (json.dumps({"messages": [{"role": "user", "content": "<audio>"}], "audios": ["0.wav"]}), "has audios beside"),
        (said(None, tts_content="yes"), "tts_content holds tts_text and tts_audio, both strings; got yes"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named(tmp_path, line, why):
    (tmp_path / "c.jsonl").write_text(line)
    with pytest.raises(ValueError, match=why):
        read_conversations(tmp_path / "c.jsonl")


def test_a_line_nested_too_deeply_is_named(tmp_path):
    (tmp_path / "c.jsonl").write_text(said("x") + "\n" + "[" * 100_000)
    with pytest.raises(ValueError, match=r"c\.jsonl' line 2 is nested too deeply to be read, it begins '\[\[\["):
        read_conversations(tmp_path / "c.jsonl")
    (tmp_path / "transcripts.jsonl").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"transcripts\.jsonl' line 1 is not JSON \(maximum recursion depth"):
        read_conversations(tmp_path)


def test_conversations_of_another_encoding(tmp_path):
    (tmp_path / "c.jsonl").write_bytes(said("na\u00efve").replace("\\u00ef", "\u00ef").encode("latin-1"))
    with pytest.raises(ValueError, match=r"c\.jsonl' is not UTF-8 text; save it as UTF-8 .*; got byte 0xef in line 1"):
        read_conversations(tmp_path / "c.jsonl")


def test_ids_of_an_answer_are_learned_as_they_are(tmp_path):
    """All of them, where they are words; behind the mark that asks for speech, where they are spoken."""
    mark = WORDS.id("<tts_start>")
    for ids, own in ([5, 6], [5, 6]), ([mark, 5, 6], [5, 6]):
        asks, answer = ({"role": "user", "content": "say 1"}, {"role": "assistant", "content": [
            {"type": "token", "token": ids}]})  # fmt: skip
        write(tmp_path, {"messages": [asks, answer]})
        [one] = read_conversations(tmp_path)
        row = Own([one], WORDS).row(one)
        assert row.ids[-4:] == ([mark] if ids[0] == mark else row.ids[-4:-3]) + [*own, WORDS.id("<|EOT|>")]
        assert [i for i, mine in zip(row.ids, row.learn, strict=True) if mine] == [*own, WORDS.id("<|EOT|>")]


@pytest.mark.parametrize("part", [{"type": "text", "text": "a <audio_start> mark"},
                                  {"type": "token", "token": [WORDS.id("<audio_start>"), 5]},
                                  {"type": "text", "text": "<audio_patch>"}, {"type": "text", "text": "<audio_end>"}])
def test_marks_of_sound_that_nobody_hears_are_named_with_their_line(folder, part):
    """In what is asked and in what is answered, beside sound or alone."""
    for role, heard in ("user", []), ("assistant", []), ("user", [{"type": "audio", "file": "0.wav"}]):
        said = {"user": "x", "assistant": "x"} | {role: [*heard, part]}
        write(folder, asked("0.wav", "x"), {"messages": [{"role": name, "content": c} for name, c in said.items()]})
        with pytest.raises(ValueError, match=r"line 2 holds <audio_\w+> \d+ times, what is heard in it makes \d+; wr"):
            Own(read_conversations(folder), WORDS)


@pytest.mark.parametrize("wrong", [-1, WORDS.vocab])
@pytest.mark.parametrize("role", ["user", "assistant"])
def test_ids_of_another_tokenizer_are_named_with_their_line(tmp_path, role, wrong):
    texts = {"user": "say 1", "assistant": "1"} | {role: [{"type": "token", "token": [wrong, WORDS.vocab - 1]}]}
    write(tmp_path, {"messages": [{"role": name, "content": text} for name, text in texts.items()]})
    match = rf"jsonl' line 1 holds the token ids \[{wrong}\], the model's tokenizer has 0 to {WORDS.vocab - 1}; write"
    with pytest.raises(ValueError, match=match):
        Own(read_conversations(tmp_path), WORDS)


def test_all_bad_lines_are_named_at_once(tmp_path):
    (tmp_path / "c.jsonl").write_text("{\n" * 12)
    with pytest.raises(ValueError, match=r"(?s)line 1 is not JSON.*line 8 is not JSON.*\.\.\. and 4 more like these"):
        read_conversations(tmp_path / "c.jsonl")


def test_what_does_not_fit_is_refused_before_training(folder, codec):
    talked = read_conversations(folder)
    with pytest.raises(ValueError, match="line 4 has a spoken answer, which takes a codec that encodes"):
        Own(talked, WORDS)
    with pytest.raises(ValueError, match=r"line 1 takes \d+ positions, a batch has 20; cut it, or raise tokens"):
        Own(talked, WORDS, tokens=20, codec=codec)
    with pytest.raises(ValueError, match=r"line 1 takes \d+ positions, the model's context holds 30; cut it"):
        Own(talked, WORDS, context=30, codec=codec)
    with pytest.raises(ValueError, match=r"the codec has 9 tokens, the model's tokenizer 27; take both from one"):
        Own(talked, vocabulary(27, []), codec=codec)
    with pytest.raises(ValueError, match=r"neither a \.jsonl file of conversations nor a folder"):
        read_conversations(folder / "0.wav")
    with pytest.raises(ValueError, match="share held out must be at least 0 and below 1, got 1"):
        split(talked, 1.0)


def test_sound_that_cannot_be_used_is_named_with_its_line(folder):
    """Unreadable, empty, of no length that can be heard, two hours: all at once."""
    (folder / "noise.wav").write_bytes(b"no sound at all")
    (folder / "empty.wav").write_bytes(b"")
    write_audio(folder / "click.wav", torch.ones(40) * 0.1, 8000)
    write_audio(folder / "hours.wav", torch.zeros(2 * 3600 * 8000), 8000)
    write(folder, *(asked(f"{name}.wav", "x") for name in ("noise", "empty", "click", "hours")))
    with pytest.raises(ValueError) as caught:
        Own(read_conversations(folder), WORDS)
    said = str(caught.value).splitlines()
    assert len(said) == 4 and all(f"line {n}" in line for n, line in enumerate(said, 1))
    assert "not a sound file that can be read" in said[0] and "0 bytes" in said[1]
    assert "is the clip empty?" in said[2] and "takes 90" in said[3]


def test_some_are_held_out(folder):
    talked = read_conversations(folder)
    train, test = split(talked, 0.25)
    assert len(train) == 3 and len(test) == 1 and test[0] not in train
    assert split(talked[:1], 0.25) == (talked[:1], [])


@pytest.mark.parametrize("rate", [8000, 22050, 44100])
def test_a_row_is_measured_as_it_is_read_at_every_border(tmp_path, rate):
    """Around 25 s, around what is just heard, and of one sample more or less."""
    seconds = [0.03, 0.5, 24.99, 25.0, 25.02, 25.03, 50.001]
    samples = [round(s * rate) + d for s in seconds for d in (-1, 0, 1)]
    for count in samples:
        write_audio(tmp_path / f"{count}.wav", torch.zeros(count) + 0.1, rate)
    write(tmp_path, *(asked(f"{count}.wav", "x") for count in samples))
    own = Own(read_conversations(tmp_path), WORDS)
    assert [len(own.row(one).ids) for one in own.talked] == own.lengths


def test_stereo_of_other_rates_and_lengths_shares_a_row(tmp_path):
    """Channels, rates and loudness as people bring them; what is heard is the first channel, at one level if asked."""
    for name, rate, seconds, gain in (("a", 44100, 0.3, 40.0), ("b", 8000, 1.1, 0.001), ("c", 16000, 0.7, 1.0)):
        left = torch.sin(torch.arange(int(rate * seconds)) * 700 / rate) * 0.3 * gain
        write_audio(tmp_path / f"{name}.wav", torch.stack([left, torch.randn_like(left)]).clamp(-1, 1), rate)
    write(tmp_path, *(asked(f"{name}.wav", "x") for name in "abc"))
    batch = Own(read_conversations(tmp_path), WORDS, level=0.05).batch(0)
    assert len(batch.mels_NMF) == 3 and batch.lens_N.tolist() == sorted(batch.lens_N.tolist(), reverse=True)
    loudest = [float(mel[:, : int(n)].max()) for mel, n in zip(batch.mels_NMF, batch.lens_N, strict=True)]
    assert max(loudest) - min(loudest) < 0.25 and bool(batch.mels_NMF.isfinite().all())


def test_a_clip_that_was_cut_short_is_found_before_training(folder):
    whole = (folder / "3.wav").read_bytes()
    (folder / "1.wav").write_bytes(whole[:5000])
    with pytest.raises(ValueError, match=r"line 2: '.*1\.wav' is cut short: it should hold 32000 bytes of sound"):
        Own(read_conversations(folder)[:3], WORDS)


def test_clips_that_only_decoding_shows_to_be_unusable_are_all_named(folder):
    """Their headers are sound. Two in one conversation, one of an answer, one that several lines share."""
    soundfile = pytest.importorskip("soundfile")
    noise = torch.randn(16000, generator=torch.Generator().manual_seed(0)) * 0.1
    soundfile.write(folder / "slow.wav", noise.numpy(), 6000)
    holed = noise.clone()
    holed[5] = float("nan")
    soundfile.write(folder / "holed.wav", holed.numpy(), 16000, subtype="FLOAT")
    write_audio(folder / "torn.flac", noise, 16000)
    (folder / "torn.flac").write_bytes((folder / "torn.flac").read_bytes()[:9000])
    spoken = [{"type": "audio", "file": "torn.flac", "text": "yes"}]
    write(folder, asked("slow.wav", "x"), asked("slow.wav", "y"), asked("holed.wav", spoken), asked("0.wav", "x"))
    with pytest.raises(ValueError) as caught:
        Own(read_conversations(folder), WORDS)
    slow, holed, torn = str(caught.value).splitlines()
    assert "line 1: " in slow and "slow.wav' is sampled at 6000 Hz" in slow
    assert "line 3: " in holed and "holed.wav' holds 1 samples that are NaN" in holed
    assert "line 3: " in torn and "torn.flac' is not a sound file that can be read" in torn


def test_each_clip_is_decoded_once_to_be_measured(folder, monkeypatch):
    """However many lines, turns and thoughts it stands in."""
    read, seen = gamut.data.own_rows.read_audio, []
    monkeypatch.setattr(gamut.data.own_rows, "read_audio", lambda file: seen.append(file.name) or read(file))
    turn = asked("1.wav", "<think>\nhm\n</think>\n\nx")["messages"]
    write(folder, asked("0.wav", "x"), asked("0.wav", "y"), {"messages": [*turn, *turn[1:]]})
    assert len(Own(read_conversations(folder), WORDS).talked) == 4 and seen == ["0.wav", "1.wav"]
