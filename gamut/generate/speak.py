"""An answer as it arrives: words, sound and tool calls out of one stream of ids, for as many turns as the tools need.

    decode = decoder(model, Sampling(max_new=400, stop=(tokenizer.id("<|EOT|>"),)), mels)
    for event in respond(messages, decode, tokenizer, codec=codec, prefill=ANSWER_SPEECH):
        match event:
            case Words(text): print(text, end="", flush=True)
            case Sound(wav): play(wav)

Sound leaves as soon as the codec's stream has enough codes, so it begins before the text is complete. Ours; the formats
are those of codecs/chat.py, codecs/answer.py and codecs/toolcall.py.

T samples · M mel bins
"""

import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gamut.codecs.answer import TextStream, WeaveParser, remember
from gamut.codecs.chat import ANSWER_TEXT, EOT, TTS_START, encode_chat
from gamut.codecs.mel import levelled, pad_mels
from gamut.codecs.text import Tokenizer
from gamut.codecs.toolcall import ToolCall, ToolCallParser
from gamut.codecs.weave import Marks
from gamut.generate.ar import Prompt, Stream
from gamut.generate.past import Past
from gamut.generate.sampling import Sampling
from gamut.generate.tools import Found, Toolbox, ToolResult, failure
from gamut.io.media import resample
from gamut.models.omni import Omni

Decode = Callable[[list[int]], Iterable[int]]


@dataclass(frozen=True)
class Words:
    """More text. ``spoken``: it is also said; otherwise it is only written."""

    text: str
    spoken: bool = False


@dataclass(frozen=True)
class Thought:
    """More of what the model thinks before it answers; it is shown, and not kept."""

    text: str


@dataclass(frozen=True)
class Sound:
    """More sound, at the codec's rate."""

    wav: Float[Tensor, " T"]


@dataclass(frozen=True)
class Asked:
    """The model calls a tool."""

    call: ToolCall


@dataclass(frozen=True)
class Told:
    """The tool's answer, as the model will read it."""

    result: ToolResult


@dataclass(frozen=True)
class Done:
    """The end. ``messages`` continue the conversation.

    ``finish`` is "stop", "length" (the model was cut off; a call in that turn was not run), "turns" (it still calls
    tools after as many turns as were allowed) or "room" (with what tools gave it, the context is full).
    """

    messages: list[dict[str, Any]]
    finish: str


Event = Words | Thought | Sound | Asked | Told | Done
Interim = Callable[[], Iterable[Event]]
Switch = Callable[[Found], tuple[Sequence[int], Any]]
THINK, THOUGHT = "<think>", "</think>"


class _Turn:
    """One turn of the assistant taken apart: ids in, events out."""

    def __init__(
        self, tokenizer: Tokenizer, marks: Marks | None, prefix: str, speak: Callable[[], Any], reads_calls: bool
    ):
        self.marks, self.speak, spoken = marks, speak, prefix.endswith(TTS_START)
        self.voice: Any = None  # begins with the first code: reading a voice costs what a second of speech does
        self.thinking, self.held = THINK in prefix and THOUGHT not in prefix, ""
        self.thought = self.thinking  # the lines left blank behind a thought belong to it
        self.weave = WeaveParser(marks, spoken, reopen=True) if marks else None
        self.said, self.written = TextStream(tokenizer), TextStream(tokenizer)
        self.calls = ToolCallParser() if reads_calls else None

    def push(self, id: int) -> Iterator[Event]:
        if self.weave is None or self.marks is None:
            yield from self._write(self.written.push(id))
            return
        was_inside = self.weave.inside
        text_ids, audio_ids, other_ids = self.weave.push([id])
        for i in text_ids:
            if text := self.said.push(i):
                yield Words(text, spoken=True)
        if codes := self.marks.audio_codes(audio_ids):
            self.voice = self.voice or self.speak()
            yield from self._sound(self.voice.decode(torch.tensor([codes])))
        for i in other_ids:
            if i < self.marks.audio:  # audio outside a spoken section is neither said nor shown
                yield from self._write(self.written.push(i))
        if was_inside and not self.weave.inside:  # the rest of the sound must not wait for what is only written
            yield from self._flush()

    def end(self) -> Iterator[Event]:
        if rest := self.said.end():
            yield Words(rest, spoken=True)
        yield from self._write(self.written.end(), last=True)
        if self.weave and self.weave.inside:
            yield from self._flush()

    def _think(self, text: str, last: bool) -> Iterator[Thought]:
        """Thoughts end at their mark, which may come in pieces; what follows it is left in ``held``."""
        thought, mark, rest = (self.held + text).partition(THOUGHT)
        kept = 0 if last else next((n for n in range(len(THOUGHT) - 1, 0, -1) if thought.endswith(THOUGHT[:n])), 0)
        self.thinking = not mark
        self.held = rest if mark else thought[len(thought) - kept :]
        if shown := thought if mark else thought[: len(thought) - kept]:
            yield Thought(shown)

    def _write(self, text: str, last: bool = False) -> Iterator[Words | Thought]:
        if self.thinking:
            yield from self._think(text, last)
            if self.thinking:
                return
            text, self.held = self.held, ""
        text = text.lstrip() if self.thought else text
        self.thought = self.thought and not text
        if self.calls is None:
            if text:
                yield Words(text)
            return
        for message in [*self.calls.push(text), *(self.calls.end() if last else ())]:
            if "content" in message:
                yield Words(message["content"])

    def _flush(self) -> Iterator[Sound]:
        if self.voice:
            yield from self._sound(self.voice.flush())

    def _sound(self, wav_BT: Float[Tensor, "1 T"]) -> Iterator[Sound]:
        if wav_BT.shape[1]:
            yield Sound(wav_BT[0])


def _consult(
    tools: Toolbox, calls: Sequence[ToolCall], marks: Marks | None, switch: Switch,
    interim: Interim | None, patience: float, room: int,
) -> Generator[Event, None, tuple[list[dict[str, Any]], dict[str, Any]]]:
    """Run the calls; the messages that keep their results, and how the codec is to speak from then on."""
    begun, messages, manner = tools.start(calls, room), [], {}
    for call in calls:
        yield Asked(call)
    if interim and tools.slow(begun, patience):
        yield from interim()
    for result in tools.results(begun):
        message = result.message
        if result.sound and marks:
            try:
                codes, voice = switch(result.sound)
                manner = manner if voice is None else {"voice": voice}
                message = with_sound(message, marks.audio_ids(codes))
            except ValueError as error:  # the model is told, as of all that goes wrong with a tool
                result = replace(result, content=failure(error), ok=False, sound=None, ending="")
                message = result.message
        messages.append(message)
        yield Told(result)
    return messages, manner


def respond(
    messages: Sequence[Any],
    decode: Decode,
    tokenizer: Tokenizer,
    *,
    codec: Any = None,
    tools: Toolbox | None = None,
    prefill: str | Sequence[str] = ANSWER_TEXT,
    stop: Sequence[int] = (),
    after_thought: str = "",
    turns: int = 4,
    switch: Switch | None = None,
    interim: Interim | None = None,
    patience: float = 1.0,
    room: int = sys.maxsize,
) -> Iterator[Event]:
    """The events of an answer, the last of them `Done`.

    Args:
        decode: takes the ids of a prompt, gives the ids of an answer one at a time (`decoder` makes one of a model).
        codec: says the codes; its ``streaming(1)`` takes codes (1, N) by ``decode`` and ends with ``flush``.
        tools: offered to the model and run when it calls; without, a call is ordinary text.
        prefill: how the answer begins (an ANSWER constant of codecs/chat.py), or one per turn, the last for all others:
            ("", "<tts_start>") for a model that calls its tool silently and then speaks.
        stop: further ids that end a turn, besides ``<|EOT|>``.
        after_thought: put behind a thought as if the model had written it: AFTER_THINKING makes it speak.
        turns: turns the assistant may take, one more than rounds of tools.
        switch: a clip that a tool found to the codes the model hears of it, and the voice that the codec's
            ``streaming(1, voice=…)`` speaks in from then on (None: its usual one). Default: ``heard``.
        interim: what is said or shown when tools take longer than ``patience`` seconds, while they run; not kept.
        room: ids that the context holds. A round's results take at most a quarter of what is left; without, it ends.
    Raises:
        ValueError: a spoken answer without a codec, no turn at all, and what ``encode_chat`` refuses.
    """
    prefills = [prefill] if isinstance(prefill, str) else list(prefill)
    if turns < 1 or not prefills:
        raise ValueError(f"an answer needs at least one turn and one prefill, got turns={turns}, prefill={prefill!r}")
    if codec is None and any(TTS_START in text for text in prefills):
        raise ValueError(f"a spoken answer (prefill {prefill!r}) needs a codec; pass codec=…, or ask for ANSWER_TEXT")
    marks, switch = Marks.of(tokenizer, codec.vocab) if codec else None, switch or partial(heard, codec)
    stops, added, finish, manner = {tokenizer.id(EOT), *stop}, [], "turns", {}
    for turn in range(turns):
        prefix = prefills[min(turn, len(prefills) - 1)]
        said, codes = [*messages, *added], marks.codes if marks else 6561
        prompt = encode_chat(said, tokenizer, tools.schemas if tools else None, prefill=prefix, codes=codes)
        if turn and len(prompt) >= room:
            finish = "room"
            break
        with ExitStack() as open_voice:
            speak = partial(_begin, open_voice, codec, manner)
            part = _Turn(tokenizer, marks, prefix, speak, tools is not None)
            ids, finish = yield from _say(part, decode, prompt, stops, tokenizer.encode(after_thought))
        added.append(remember(ids, tokenizer, prefix))
        calls = part.calls.calls if part.calls else []
        finish = "turns" if turn == turns - 1 and tools and calls and finish == "stop" else finish
        if tools is None or not calls or finish != "stop":
            break
        told, found = yield from _consult(tools, calls, marks, switch, interim, patience, room - len(prompt + ids))
        added, manner = added + told, found or manner
    yield Done(added, finish)


def _say(
    part: _Turn, decode: Decode, prompt: list[int], stops: set[int], behind: Sequence[int]
) -> Generator[Event, None, tuple[list[int], str]]:
    """One turn: its ids, ``behind`` a thought put among them, and how it ended."""
    ids, finish, given = [], "length", iter(decode(prompt))
    while (i := next(given, None)) is not None:
        if i in stops:
            finish = "stop"
            break
        ids.append(i)
        thinking = part.thinking
        yield from part.push(i)
        if behind and thinking and not part.thinking:
            for j in behind:
                yield from part.push(j)
            ids += behind
            given = iter(decode([*prompt, *ids]))
    yield from part.end()
    return ids, finish


def _begin(opened: ExitStack, codec: Any, manner: dict[str, Any]) -> Any:
    return opened.enter_context(codec.streaming(1, **manner))


HEARD = 1.0  # seconds of a clip that the model hears of a voice it found; ours


def heard(codec: Any, found: Found) -> tuple[list[int], Any]:
    """The codes of the first second of a clip, at the loudness codecs are trained at; and its voice, if the codec can
    take it on (None: it speaks as usual)."""
    wav, rate = found.wav, getattr(codec, "hears", codec.rate)
    sound = levelled(resample(wav[: int(HEARD * found.rate)], found.rate, rate))
    takes_on = getattr(codec, "voice_of", None)
    return codec.encode(sound[None])[0].tolist(), takes_on(levelled(wav), found.rate) if takes_on else None


def with_sound(message: dict[str, Any], audio_ids: Sequence[int]) -> dict[str, Any]:
    """A tool's message with the audio ids of what was found behind its text."""
    parts = [{"type": "text", "text": message["content"]}, {"type": "token", "token": list(audio_ids)}]
    return message | {"content": parts}


def decoder(
    model: Omni, sampling: Sampling, mels: Sequence[Float[Tensor, "M _"]] = (), past: Past | None = None
) -> Decode:
    """``decode`` for `respond`: a model that hears these log-mels, the n-th at the n-th ``<audio_start>``.

    With a ``past`` of its language model, neither words nor sounds that it holds are run again.
    """

    def decode(ids: list[int]) -> Iterator[int]:
        starts = [at for at, i in enumerate(ids) if i == model.config.audio_start_id]
        if len(starts) != len(mels):
            raise ValueError(f"{len(mels)} log-mels came for {len(starts)} <audio_start> marks; give one for each")
        kept = past.keep(ids, dict(zip(starts, mels, strict=True))) if past else 0
        parts = [(None, kept), *((mel, at) for mel, at in zip(mels, starts, strict=True) if at >= kept)]
        ends = [*(at for _, at in parts[1:]), len(ids)]
        # each clip by itself: what the model hears of it must not depend on those beside it, or it could not be kept
        embeds = [
            model.prompt(ids[at:end], *(() if mel is None else pad_mels([mel])))
            for (mel, at), end in zip(parts, ends, strict=True) if at < end
        ]  # fmt: skip
        stream = Stream(model.lm, rows=1)
        stream.add(Prompt(ids, torch.cat(embeds), past), sampling)
        return (token.id for token in stream)

    return decode


@dataclass
class Answer:
    """All events of an answer, put together."""

    text: str = ""
    spoken: str = ""
    thought: str = ""
    wav: Float[Tensor, " T"] = field(default_factory=lambda: torch.zeros(0))
    results: list[ToolResult] = field(default_factory=list)
    messages: list[dict[str, Any]] = field(default_factory=list)
    finish: str = ""


def collect(events: Iterable[Event]) -> Answer:
    """For callers who would rather wait. ``text`` is what was only written, ``spoken`` what was said."""
    answer, wavs = Answer(), []
    for event in events:
        match event:
            case Words(text, spoken):
                answer.spoken, answer.text = answer.spoken + text * spoken, answer.text + text * (not spoken)
            case Thought(text):
                answer.thought += text
            case Sound(wav):
                wavs.append(wav)
            case Told(result):
                answer.results.append(result)
            case Done(messages, finish):
                answer.messages, answer.finish = messages, finish
    answer.wav = torch.cat(wavs) if wavs else answer.wav
    return answer
