"""Conversations with a past, sound files that grow, and what people hand to a chat that should not work."""

import math
from dataclasses import replace

import pytest
import soundfile
import torch
from speeches import codec as small_codec

from gamut.codecs.chat import encode_chat
from gamut.codecs.mel import patches
from gamut.data.conversations import vocabulary
from gamut.generate import chatting
from gamut.generate.ar import Stream
from gamut.generate.chatting import Figures, Talk, chat, questions, say
from gamut.generate.past import Past
from gamut.generate.sampling import Sampling
from gamut.generate.speak import Asked, Done, Sound, Thought, Told, Words, collect
from gamut.generate.speaker import Speaker
from gamut.generate.tools import Toolbox, calculator
from gamut.generate.voices import Voice, four_tools, library
from gamut.io.growing import WavWriter
from gamut.io.media import pieces, read_audio, write_audio
from gamut.models.audio_encoder import AudioEncoderConfig
from gamut.models.lm import LMConfig
from gamut.models.omni import Omni, OmniConfig


@pytest.fixture(scope="module")
def speaker() -> Speaker:
    """Random weights: what it says is nonsense, how it goes about it is not."""
    torch.manual_seed(0)
    codec = small_codec()
    tools = Toolbox([calculator()])
    words = vocabulary(9, tools.schemas)
    lm = LMConfig(words.vocab, 32, 2, 2, 1, 16, 48, max_positions=1024)
    audio = AudioEncoderConfig(mels=128, width=16, layers=1, heads=2, ffn=32, positions=1300)
    marks = {f"audio_{name}_id": words.id(f"<audio_{name}>") for name in ("start", "end", "patch")}
    model = Omni(OmniConfig(lm, audio, 24, **marks)).eval()
    return Speaker(model, words, codec, tools)


def tone(seconds: float, rate: int = 16000) -> torch.Tensor:
    return torch.sin(torch.arange(int(seconds * rate)) * 0.1) * 0.5


SHORT = Sampling(temperature=1.0, max_new=24, seed=1)


def prompts_of(talk: Talk, monkeypatch, *asked) -> list[list[int]]:
    """The ids each question was put to the model with."""
    seen = []
    whole = Stream.add

    def add(self, prompt, sampling):
        seen.append(list(prompt.ids))
        return whole(self, prompt, sampling)

    monkeypatch.setattr(Stream, "add", add)
    for wav, text in asked:
        collect(talk.ask(wav, 16000, text))
    return seen


def test_every_turn_continues_the_prompt_of_the_one_before(speaker, monkeypatch):
    """What was heard and what was said stand in the next prompt id for id, sound in and sound out interleaved."""
    talk = Talk(speaker, "Answer aloud.", sampling=SHORT)
    first, second, third = prompts_of(talk, monkeypatch, (tone(1), ""), (tone(2), "and this"), (None, "bye"))
    said = [m["content"][1]["token"] for m in talk.messages if m["role"] == "assistant"]
    stop = speaker.words.id("<|EOT|>")
    assert second[: len(first) + len(said[0]) + 1] == [*first, *said[0], stop]
    assert third[: len(second) + len(said[1]) + 1] == [*second, *said[1], stop]
    assert len(talk.mels) == 2 and len(talk.messages) == 6
    assert third.count(speaker.words.id("<audio_patch>")) == 13 + 25


def test_thoughts_do_not_return(speaker, monkeypatch):
    talk = Talk(speaker, thinks=True, sampling=SHORT)
    first, second = prompts_of(talk, monkeypatch, (None, "a"), (None, "b"))
    shown = speaker.words.decode(second)
    assert speaker.words.decode(first).endswith("<think>\n") and shown.count("<think>") == 1


def heard_and_run(talk: Talk, *asked) -> list[tuple[int, int]]:
    """Clips encoded and positions run through the language model, for each question."""
    counts, model = [], talk.speaker.model
    spies = [
        model.encoder.register_forward_pre_hook(lambda _, given: counts.append((len(given[0]), 0))),
        model.lm.blocks[0].register_forward_pre_hook(lambda _, given: counts.append((0, given[0].shape[1]))),
    ]
    out = []
    for wav, text in asked:
        counts.clear()
        collect(talk.ask(wav, 16000, text))
        out.append(tuple(map(sum, zip(*counts, strict=True))))
    for spy in spies:
        spy.remove()
    return out


@pytest.mark.parametrize("edge", ["parity", "closed"])
@pytest.mark.parametrize("how", [{}, {"thinks": True}, {"tools": True}, {"aloud": False}])
def test_a_turn_costs_what_is_new_in_it(speaker, how, edge):
    """Five turns, greedy, of clips of even and odd length: what is said is what a talk says that begins anew each
    time, and neither a clip nor a word of the past is run again."""
    torch.manual_seed(2)
    audio = replace(speaker.model.config.audio, edge=edge)
    speaker = replace(speaker, model=Omni(replace(speaker.model.config, audio=audio)).eval())
    sampling = Sampling(temperature=0.0, max_new=12)
    asked = [(tone(0.61), ""), (None, "two"), (tone(1.6), "three"), (tone(0.35), ""), (None, "five")]
    kept, fresh = (Talk(speaker, "Answer.", sampling=sampling, **how) for _ in range(2))
    new = heard_and_run(kept, *asked)
    again = []
    for question in asked:
        fresh.past = Past(speaker.model.lm)
        again += heard_and_run(fresh, question)
    assert kept.messages == fresh.messages
    assert [clips for clips, _ in new] == [1, 0, 1, 1, 0] and [clips for clips, _ in again] == [1, 1, 2, 3, 3]
    assert new[0] == again[0] and all(a < b for (_, a), (_, b) in zip(new[1:], again[1:], strict=True))


def test_other_sound_of_the_same_length_is_not_taken_for_the_first(speaker):
    """Two talks of equal ids with one past, by mistake: the sound decides. The third hears what the second heard."""
    past = Past(speaker.model.lm)
    high = torch.sin(torch.arange(16000) * 1.0) * 0.5
    for wav, clips in ((tone(1), 1), (high, 1), (high, 0), (tone(1), 1)):
        talk = Talk(speaker, sampling=replace(SHORT, max_new=1))
        talk.past = past
        [(heard, _)] = heard_and_run(talk, (wav, ""))
        assert heard == clips


def test_a_thought_is_cut_from_the_past_exactly_where_it_began(speaker):
    """Of the first turn, all but the thought and what was said behind it."""
    talk = Talk(speaker, thinks=True, sampling=SHORT)
    collect(talk.ask(None, text="a"))
    question, *_ = talk.messages
    asked = encode_chat([question], speaker.words)
    assert talk.past.ids[: len(asked)] == asked and "<think>" in speaker.words.decode(talk.past.ids[len(asked) :])
    follow = encode_chat([*talk.messages, {"role": "human", "content": "b"}], speaker.words)
    assert talk.past.keep(follow) == len(asked) < len(follow)


def test_an_answer_that_is_cut_in_the_middle_leaves_the_past_as_it_was(speaker):
    talk = Talk(speaker, sampling=replace(SHORT, max_new=200))
    collect(talk.ask(tone(1), 16000))
    messages, mels = talk.messages, talk.mels
    events = talk.ask(tone(1), 16000)
    next(events)
    events.close()
    assert talk.messages is messages and talk.mels is mels
    assert collect(talk.ask(None, text="again")).finish


@pytest.mark.parametrize("seconds", [24.99, 25.0, 25.0001, 25.02, 25.03, 50.001])
def test_sound_around_25_seconds(speaker, seconds):
    """The rest behind a border is either heard or too short to be; never a block without a patch."""
    wav = tone(seconds)
    parts = pieces(wav)
    assert [patches((len(part) + 479) // 160) > 0 for part in parts] == [True] * len(parts)
    assert len(wav) - sum(map(len, parts)) < 0.021 * 16000
    assert collect(Talk(speaker, aloud=False, sampling=replace(SHORT, max_new=2)).ask(wav, 16000)).finish


def test_two_hours_are_refused_before_any_of_it_is_heard(speaker, monkeypatch):
    for step in ("levelled", "resample", "pieces", "hear"):
        monkeypatch.delattr(chatting, step)
    wav = torch.zeros(1).expand(2 * 3600 * 8000)
    with pytest.raises(ValueError, match=r"is 2 h 00 min long and takes 90720 positions .* at most 1 min 21 s at"):
        next(Talk(speaker).ask(wav, 8000))


def test_a_file_of_minutes_is_refused_before_it_is_decoded(speaker, tmp_path, monkeypatch):
    file = write_audio(tmp_path / "long.flac", torch.zeros(120 * 8000), 8000)
    monkeypatch.delattr(chatting, "read_audio")
    with pytest.raises(ValueError, match=r"is 2 min 00 s long and takes 1512 positions .* at most 1 min 21 s at"):
        chat(speaker, file, out=tmp_path / "answer.wav")


def test_a_past_that_outgrows_the_context_is_forgotten_from_its_beginning(speaker, monkeypatch):
    """Whole exchanges, with their sound; what is left stands in the prompt as before, behind the system message."""
    talk = Talk(speaker, "Be brief.", aloud=False, sampling=replace(SHORT, max_new=2))
    asked = [(tone(30), "one"), (None, "two"), (tone(15), "three"), (tone(20), "four")]
    with pytest.warns(UserWarning, match="outgrows the model's context: its oldest turn is left out") as warned:
        prompts = [speaker.words.decode(ids) for ids in prompts_of(talk, monkeypatch, *asked)]
    assert len(warned) == 1 and "one" in prompts[2] and "one" not in prompts[3]
    assert all(word in prompts[3] for word in ("Be brief.", "two", "three", "four"))
    assert len(talk.messages) == 6 and len(talk.mels) == 2
    fresh = Talk(speaker, "Be brief.", False, sampling=talk.sampling, messages=talk.messages[:4], mels=talk.mels[:1])
    assert speaker.words.decode(prompts_of(fresh, monkeypatch, asked[3])[0]) == prompts[3]


def test_nothing_and_next_to_nothing_are_refused(speaker):
    with pytest.raises(ValueError, match="nothing to answer: give a recording, a text, or both"):
        next(Talk(speaker).ask())
    for samples in (0, 100):
        with pytest.raises(ValueError, match=r"is \d+ ms long, too short to be heard"):
            next(Talk(speaker).ask(torch.zeros(samples), 16000))
    for wav, why in ((torch.zeros(16000, 2), r"one channel, .*got \(16000, 2\)"), (torch.ones(9).short(), "int16"),
                     (torch.zeros(900) / 0, "NaN or infinite samples, 900 of 900")):  # fmt: skip
        with pytest.raises(ValueError, match=why):
            next(Talk(speaker).ask(wav, 16000))
    assert collect(Talk(speaker, aloud=False, sampling=SHORT).ask(tone(1)[None], 16000)).finish


def test_clipped_silent_and_stereo_sound_is_answered(speaker, tmp_path):
    clipped = (tone(1) * 40).clamp(-1, 1)
    stereo = torch.stack([tone(1), torch.zeros(16000)])
    for name, wav in (("clipped", clipped), ("stereo", stereo)):
        got, rate = read_audio(write_audio(tmp_path / f"{name}.wav", wav, 16000))
        assert got.shape == (16000,)
        assert collect(Talk(speaker, sampling=SHORT).ask(got, rate)).finish
    assert collect(Talk(speaker, sampling=SHORT).ask(torch.zeros(8000), 8000)).finish


def test_a_file_that_is_cut_short_or_empty_is_named(speaker, tmp_path):
    whole = write_audio(tmp_path / "a.wav", tone(1), 16000).read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[:5000])
    (tmp_path / "empty.wav").write_bytes(b"")
    for name, why in (("cut.wav", "is cut short"), ("empty.wav", r"is empty \(0 bytes\)")):
        with pytest.raises(ValueError, match=why):
            chat(speaker, tmp_path / name, out=tmp_path / "out.wav")


def test_what_a_chat_prints_and_measures(tmp_path):
    """By hand: the first sound after one of four words, half a second of sound."""
    from gamut.codecs.toolcall import ToolCall
    from gamut.generate.tools import ToolResult

    call = ToolCall("calculator", "{}", "c")
    events = [Thought("hm"), Asked(call), Told(ToolResult(call, "12", True, 0.0)), Words("a", True),
              Sound(torch.zeros(4000)), Words("bcd", True), Done([], "stop")]  # fmt: skip
    shown: list[str] = []
    with WavWriter(tmp_path / "a.wav", 8000) as out:
        figures = say(events, out, shown.append)
    assert "".join(shown) == "thinks: hm\ncalls: calculator {}\n  gives: 12\nanswer: abcd\n"
    assert figures.seconds == 0.5 and figures.early == 0.25 and 0 <= figures.first <= figures.took
    assert "with 25 % of the words written; 0.5 s of speech" in figures.line
    assert Figures(0, 1.5, 0, 0).line == "answered in 1.50 s, without speech"
    assert not math.isnan(figures.took)


def test_a_thought_without_an_answer_says_what_to_do(tmp_path):
    shown: list[str] = []
    with WavWriter(tmp_path / "a.wav", 8000) as out:
        say([Thought("7"), Done([], "stop")], out, shown.append)
    assert "".join(shown) == "thinks: 7\nit said nothing after its thought; ask without --thinks\n"
    assert Figures(0.1, 2.0, 1.0, 0.5).line.endswith("real-time factor 2.00 (slower than it is heard)")


@pytest.mark.parametrize(("finish", "said"), [("length", "cut off here"), ("turns", "and never answered")])
def test_an_answer_that_is_none_says_so(finish, said):
    shown: list[str] = []
    say([Words("a"), Done([], finish)], None, shown.append)
    assert shown[0:2] == ["answer: ", "a"] and said in shown[2]


def test_every_end_token_of_a_model_ends_an_answer(speaker):
    """A released one has three; what it would have said without the others is cut there."""
    def answer(who: Speaker) -> tuple[list, str]:
        done = list(Talk(who, aloud=False, sampling=replace(SHORT, temperature=0.0)).ask(None, text="a"))[-1]
        return done.messages[0]["content"], done.finish

    whole, finish = answer(speaker)
    ids = whole[-1]["token"] if isinstance(whole, list) else speaker.words.encode(whole)
    assert finish == "length" and len(ids) > 2
    cut, finish = answer(replace(speaker, ends=(ids[2],)))
    assert finish == "stop" and len(str(cut)) < len(str(whole))


def test_a_question_is_never_written_over_and_an_answer_only_by_another(speaker, tmp_path, capsys):
    question = write_audio(tmp_path / "q.wav", tone(0.5), 16000)
    before = question.read_bytes()
    for asked, more in ((tmp_path, {}), (None, {"text": "a", "kept": [question]})):  # a voice to speak in, say
        with pytest.raises(ValueError, match=r"written over '.*q\.wav', a recording that it takes; give another file"):
            chat(speaker, asked, out=tmp_path / "x" / ".." / "q.wav", **more)
    assert question.read_bytes() == before
    (tmp_path / "a.wav").write_bytes(b"an older answer")
    long = write_audio(tmp_path / "long.wav", torch.zeros(8000 * 200), 8000)
    for path, why in ((long, "is 3 min 20 s long and takes"), (tmp_path / "none.wav", "does not exist")):
        with pytest.raises(ValueError, match=why):
            chat(speaker, path, out=tmp_path / "a.wav")
        assert (tmp_path / "a.wav").read_bytes() == b"an older answer"
    capsys.readouterr()
    chat(speaker, question, out=tmp_path / "a.wav", sampling=replace(SHORT, max_new=2))  # too short for any sound
    assert (tmp_path / "a.wav").read_bytes() == b"an older answer"
    said = capsys.readouterr().out
    assert said.startswith("question: q.wav, 0.5 s\n") and "without speech" in said and "a.wav" not in said
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.wav", "long.wav", "q.wav"]


def test_stopped_in_the_middle_an_answer_is_whole_as_far_as_it_came(speaker, tmp_path, monkeypatch):
    """Ctrl-C between two pieces of sound; and before the first, when nothing is touched."""
    question, out = write_audio(tmp_path / "q.wav", tone(0.5), 16000), tmp_path / "a.wav"

    def interrupted(pieces: int):
        def ask(*_):
            yield from [Words("seven", True), *[Sound(torch.zeros(400))] * pieces]
            raise KeyboardInterrupt

        return ask

    for pieces_, left in ((0, None), (2, 800)):
        monkeypatch.setattr(Talk, "ask", interrupted(pieces_))
        with pytest.raises(KeyboardInterrupt):
            chat(speaker, question, out=out)
        assert (soundfile.info(out).frames if out.exists() else None) == left
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.wav", "q.wav"]


def test_a_folder_is_a_conversation(speaker, tmp_path, capsys):
    (tmp_path / "q").mkdir()
    for name in ("2.wav", "1.wav"):
        write_audio(tmp_path / "q" / name, tone(0.5), 16000)
    (tmp_path / "q" / "notes.txt").write_text("no sound")
    (tmp_path / "q" / "._1.wav").write_text("what macOS leaves behind")
    assert [file.name for file in questions(tmp_path / "q")] == ["1.wav", "2.wav"]
    write_audio(tmp_path / "q" / "10.wav", tone(0.5), 16000)
    assert [file.name for file in questions(tmp_path / "q")] == ["1.wav", "2.wav", "10.wav"]
    (tmp_path / "q" / "10.wav").unlink()
    figures = chat(speaker, tmp_path / "q", out=tmp_path / "a.wav", sampling=SHORT)
    shown = capsys.readouterr().out
    assert len(figures) == 2 and shown.count("heard: ") == 2
    assert soundfile.info(tmp_path / "a.wav").frames == sum(round(f.seconds * 24000) for f in figures)
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"holds no sound files; allowed: \.wav"):
        questions(tmp_path / "none")


def test_a_speaker_keeps_its_voices_and_menu(speaker, tmp_path):
    pytest.importorskip("bm25s")
    voices = [Voice("theo", "a high voice", "12", lambda: (tone(0.5, 8000), 8000))]
    menu = {"coffeeDrink": ["latte"], "milkAmount": []}
    speaker.save(tmp_path / "m", voices=voices, menu=menu)
    again = Speaker.load(tmp_path / "m")
    assert again.tools.schemas == four_tools(voices, menu).schemas
    [kept] = library(tmp_path / "m" / "voices")
    assert (kept.description, kept.text, len(kept.read()[0])) == ("a high voice", "12", 4000)


def test_a_question_in_writing_needs_no_recording(speaker, tmp_path, capsys):
    [figures] = chat(speaker, text="What time is it?", out=tmp_path / "a.wav", sampling=SHORT)
    [silent] = chat(speaker, text="What time is it?", out=tmp_path / "b.wav", sampling=SHORT, written=True)
    assert figures.seconds > 0 == silent.seconds and not (tmp_path / "b.wav").exists()
    shown = capsys.readouterr().out
    assert shown.startswith("question: What time is it?\n") and "heard: " not in shown and figures.line in shown
    with pytest.raises(ValueError, match="nothing is asked: give a recording, or a question in writing with --text"):
        chat(speaker, out=tmp_path / "a.wav")
