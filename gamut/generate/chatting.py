"""A conversation with a model that hears and speaks: questions in, answers while they come, the past kept as it was.

    talk = Talk(speaker, "Say the sum of the two numbers.")
    for event in talk.ask(wav, rate): ...

T samples · M mel bins · F mel frames
"""

import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gamut.codecs.chat import AFTER_THINKING, ANSWER_SPEECH, ANSWER_TEXT, ANSWER_THINKING, EOT, encode_chat
from gamut.codecs.mel import WHISPER_RATE, hear, levelled, patches
from gamut.codecs.prompts import TRANSCRIBE
from gamut.generate.past import Past
from gamut.generate.sampling import Sampling
from gamut.generate.speak import Asked, Done, Event, Sound, Thought, Told, Words, collect, decoder, respond
from gamut.generate.speaker import LEVEL, RELEASED, SAMPLING, Speaker
from gamut.io.growing import WavWriter, settled, wav_path
from gamut.io.media import SUBTYPES, duration, one_channel, pieces, read_audio, resample
from gamut.io.progress import clock

MEANWHILE = "Tell me in one short sentence that you are looking it up."  # while a tool takes its time; ours
CUT = {  # how an answer ends that is none, in words
    "length": "(cut off here: as many tokens as an answer may have)",
    "turns": "(it went on calling tools, and never answered)",
    "room": "(cut off here: what its tools gave fills the model's context)",
}
INTERIM = 200  # ids at most of what is then said; ours
PER_SECOND = 12.6  # positions that sound takes in a prompt, the marks of its pieces included
SOUNDS = (*SUBTYPES, ".mp3", ".aiff", ".opus")


@dataclass
class Talk:
    """Turns under one system message.

    ``aloud``: answer in speech. ``tools``: show the tools; the model then calls one, or answers, as it sees fit.
    ``thinks``: ask for a thought before the answer (of a model that was taught to think). ``meanwhile``: what it is
    asked to say while a tool takes longer than ``patience`` seconds; nothing if empty. ``messages`` and ``mels`` are
    the past; an answer that nobody heard to its end leaves them as they were. Keys and values of the past are kept, so
    that a turn costs what is new in it (`Past`).
    """

    speaker: Speaker
    system: str = ""
    aloud: bool = True
    tools: bool = False
    thinks: bool = False
    meanwhile: str = ""
    patience: float = 1.0
    sampling: Sampling = SAMPLING
    messages: list[dict[str, Any]] = field(default_factory=list)
    mels: list[Float[Tensor, "M _"]] = field(default_factory=list)

    def __post_init__(self):
        self.past = Past(self.speaker.model.lm)
        self.room = self.speaker.model.config.lm.max_positions

    def ask(self, wav: Any = None, rate: int = WHISPER_RATE, text: str = "") -> Iterator[Event]:
        """The events of the answer to what is said (a tensor or array of samples, (T,) or (1, T)), written, or both.

        Raises:
            ValueError: nothing to answer, sound that is not one channel of floats, under 21 ms, or more of it than the
                model's context holds (found out before any of it is heard).
        """
        if wav is None and not text:
            raise ValueError("there is nothing to answer: give a recording, a text, or both")
        parts: list[dict[str, Any]] = [{"type": "text", "text": text}] if text else []
        mels: list[Tensor] = []
        if wav is not None:
            wav = one_channel(wav)
            if (seconds := len(wav) / rate) < 0.021:
                raise ValueError(f"the recording is {1000 * seconds:.0f} ms long, too short to be heard; record it "
                                 f"again")
            self.fits(seconds)
            wav = resample(levelled(wav, LEVEL) if self.speaker.small else wav, rate, WHISPER_RATE)
            mels = [hear(piece, WHISPER_RATE) for piece in pieces(wav)]
            parts.append({"type": "audio", "patches": [patches(mel.shape[-1]) for mel in mels]})
        yield from self._answer({"role": "human", "content": parts}, mels)

    def _kept(self, around: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[Tensor]]:
        """The past without its oldest exchanges where, with system and question ``around`` it, it would take more than
        three quarters of the context."""
        past, mels, words, codec = self.messages, self.mels, self.speaker.words, self.speaker.codec
        tools, codes = self.speaker.tools.schemas if self.tools else None, codec.vocab if codec else 6561
        while past and len(encode_chat([*around, *past], words, tools, codes=codes)) > 0.75 * self.room:
            warnings.warn("the conversation outgrows the model's context: its oldest turn is left out", stacklevel=3)
            end = next((i for i, message in enumerate(past) if i and message["role"] == "human"), len(past))
            sounds = sum(len(part.get("patches", ())) for message in past[:end] if message["role"] == "human"
                         for part in message["content"])  # fmt: skip
            past, mels = past[end:], mels[sounds:]
        return past, mels

    def _answer(self, question: dict[str, Any], heard: list[Tensor]) -> Iterator[Event]:
        words = self.speaker.words
        system = [{"role": "system", "content": self.system}] if self.system else []
        past, mels = self._kept([*system, question])
        mels = [*mels, *heard]
        last = ANSWER_SPEECH if self.aloud else ANSWER_TEXT
        chooses = self.tools and bool(self.speaker.taught)  # a released model calls behind speech, as behind text
        first = ANSWER_THINKING if self.thinks else ANSWER_TEXT if chooses else last
        ends = self.speaker.ends
        sampling = replace(self.sampling, stop=(words.id(EOT), *ends))
        asked, codec = [*system, *past, question], self.speaker.codec

        def interim() -> Iterator[Event]:
            """The past is not touched: the answer goes on from where it called."""
            decode = decoder(self.speaker.model, replace(sampling, max_new=INTERIM), mels)
            request = {"role": "human", "content": self.meanwhile}
            said = respond([*asked, request], decode, words, codec=codec, prefill=last, stop=ends)
            return (event for event in said if not isinstance(event, Done))

        for event in respond(
            asked, decoder(self.speaker.model, sampling, mels, self.past), words, codec=codec,
            tools=self.speaker.tools if self.tools else None, prefill=(first, last), stop=ends, room=self.room,
            after_thought=AFTER_THINKING if self.aloud and not self.speaker.taught else "",
            interim=interim if self.meanwhile else None, patience=self.patience,
        ):  # fmt: skip
            yield event
            if isinstance(event, Done):
                self.messages, self.mels = [*past, question, *event.messages], mels

    def fits(self, seconds: float) -> None:
        """Refuse sound that is longer than the model's context, before any of it is decoded or heard."""
        room = self.room
        if (needs := round(seconds * PER_SECOND)) >= room:
            raise ValueError(f"the recording is {clock(seconds)} long and takes {needs} positions of a prompt, the "
                             f"model's context holds {room}; give at most {clock(room / PER_SECOND)} at a time")


@dataclass(frozen=True)
class Figures:
    """How fast an answer came: seconds to its first sound and to its end, seconds of sound, and how much of the text
    was there when the sound began."""

    first: float
    took: float
    seconds: float
    early: float

    @property
    def line(self) -> str:
        if not self.seconds:
            return f"answered in {self.took:.2f} s, without speech"
        return (f"first sound after {self.first:.2f} s, with {100 * self.early:.0f} % of the words written; "
                f"{self.seconds:.1f} s of speech in {self.took:.1f} s: real-time factor {self.took / self.seconds:.2f}"
                f"{'' if self.took < self.seconds else ' (slower than it is heard)'}")


def say(events: Iterable[Event], out: WavWriter | None, show: Callable[[str], object] | None = None) -> Figures:
    """Print an answer while it comes and write its sound as it comes, if it has any. ``show`` takes the text; print if
    None."""
    show = show or (lambda text: print(text, end="", flush=True))
    began, first, words, early, thought, inside = time.perf_counter(), 0.0, 0, 0, False, ""
    before = out.samples if out else 0
    for event in events:
        kind = type(event).__name__
        if kind != inside and kind in ("Words", "Thought", "Asked"):
            show("\n" * bool(inside) + {"Words": "answer: ", "Thought": "thinks: ", "Asked": "calls: "}[kind])
        inside = kind if kind != "Sound" else inside
        match event:
            case Words(text):
                words += len(text)
                show(text)
            case Thought(text):
                thought = True
                show(text)
            case Sound(wav):
                if not first:
                    first, early = time.perf_counter() - began, words
                if out is not None:
                    out.append(wav)
            case Asked(call):
                show(f"{call.name} {call.arguments}")
            case Told(result):
                show(f"\n  gives: {result.content[:400]}")
            case Done(_, finish) if finish in CUT:
                show(f"\n{CUT[finish]}")
            case Done() if not words:
                show("\nit said nothing" + (" after its thought; ask without --thinks" if thought else ""))
    show("\n")
    seconds = (out.samples - before) / out.rate if out else 0.0
    return Figures(first, time.perf_counter() - began, seconds, early / max(1, words))


def questions(path: str | Path) -> list[Path]:
    """One sound file, or those of a folder by name, 2 before 10: the turns of a conversation.

    Raises:
        ValueError: a path that does not exist, a folder without any.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"'{path}' does not exist; give a sound file ({', '.join(SOUNDS)}), or a folder of them")
    if not path.is_dir():
        return [path]
    found = (file for file in path.iterdir() if file.suffix.lower() in SOUNDS and not file.name.startswith("."))
    files = sorted(found, key=lambda file: [int(s) if s.isdecimal() else s for s in re.split(r"(\d+)", file.name)])
    if not files:
        raise ValueError(f"'{path}' holds no sound files; allowed: {', '.join(SOUNDS)}")
    return files


def asked(source: str | Path | None, text: str, out: str | Path, kept: Sequence[Path] = ()) -> list[Path]:
    """The sound files of a request, found before a large model takes minutes to load.

    Raises:
        ValueError: nothing is asked; ``out`` is no .wav or a folder, or is a question or one of ``kept``.
    """
    if source is None and not text:
        raise ValueError("nothing is asked: give a recording, or a question in writing with --text, or both")
    files = [] if source is None else questions(source)
    if wav_path(out).resolve() in [file.resolve() for file in (*files, *kept)]:
        raise ValueError(f"the answer would be written over '{out}', a recording that it takes; give another file with "
                         f"--out")
    return files


def chat(
    speaker: Speaker, source: str | Path | None = None, *, system: str = "", text: str = "",
    out: str | Path = "answer.wav", thinks: bool = False, written: bool = False, transcript: bool = True,
    patience: float = 1.0, sampling: Sampling | None = None, kept: Sequence[Path] = (),
) -> list[Figures]:
    """Ask about a recording, several in a folder one after another, or one that is still being recorded; print
    thoughts, calls and answers while they come, then what was heard; write the speech of all answers to ``out``, which
    keeps what it held if nothing is said.

    Args:
        source: None where only ``text`` asks. text: said in writing beside the sound. thinks: ask for thoughts.
        written: the answer, even where it could be spoken.
        transcript: print what was heard, too.
        patience: seconds without growth after which a growing file counts as complete.
        sampling: None takes what suits the model's size.
        kept: recordings that ``out`` must not be, besides the questions.
    Raises:
        ValueError: a request that this model was not taught; what ``asked`` says, and ``read_audio`` of a file.
    """
    files, how, codec = asked(source, text, out, kept), speaker.how(system), speaker.codec
    if speaker.small:
        torch.set_num_threads(1)
    else:
        print(speaker.weighs)
    if codec is None:
        print("it answers in writing: there is no converted codec beside the weights (gamut convert makes one of a "
              "released folder), or no voice in it (--voice RECORDING)")
    sampling = sampling or (SAMPLING if speaker.small else RELEASED)
    meanwhile = "" if speaker.small else MEANWHILE
    aloud = how.aloud and codec is not None and not written
    talk = Talk(speaker, how.system, aloud, how.tools, thinks, meanwhile, sampling=sampling)
    if how.system:
        print(f"request: {how.system}")
    figures = []
    with WavWriter(out, codec.rate) if codec else nullcontext() as sound:
        if source is None:
            print(f"question: {text}", flush=True)
            figures.append(say(talk.ask(text=text), sound))
            print(figures[-1].line)
        for file in files:
            growing = partial(print, f"'{file}' grows; the answer comes once it has not for {patience:g} s", flush=True)
            talk.fits(duration(recording := settled(file, patience, grows=growing)))
            wav, rate = read_audio(recording)
            print(f"question: {file.name}, {len(wav) / rate:.1f} s", flush=True)
            figures.append(say(talk.ask(wav, rate, text), sound))
            if transcript:
                print(f"heard: {heard(speaker, wav, rate)}")
            print(figures[-1].line)
        if sound and sound.samples:
            print(out)
    return figures


def heard(speaker: Speaker, wav: Float[Tensor, " T"], rate: int) -> str:
    """The model's own transcript of a recording."""
    most = 200 + round(10 * len(wav) / rate)
    talk = Talk(speaker, TRANSCRIBE, aloud=False, sampling=Sampling(temperature=0.0, max_new=most))
    return collect(talk.ask(wav, rate)).text
