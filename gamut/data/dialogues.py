"""Conversations with a known right answer to every turn, and the rows a model learns them from.

What the model is given is written exactly as it will be when it answers (generate/speak.py): message by message, an
answer behind the prefill that asks for it, generated ids kept as they are, thinking left out of the past.

M mel bins
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from jaxtyping import Float
from torch import Tensor

from gamut.codecs.chat import ANSWER_SPEECH, ANSWER_TEXT, ANSWER_THINKING, EOT, TTS_START, encode_chat, write_tool_call
from gamut.codecs.mel import patches
from gamut.codecs.text import Tokenizer
from gamut.data.spoken import RATE

Row = tuple[list[int], list[bool]]
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@dataclass(frozen=True)
class Turn:
    """What is asked, in words or sound or both, and all that is right to do then.

    ``calls`` are tools with their arguments, ``results`` what they return; ``found`` says whose voice a search returns
    with its result. ``voice`` speaks the answer, the usual one if empty. ``kind`` is what a report counts it under.
    """

    answer: str
    request: str = ""
    wav: Tensor | None = None
    rate: int = RATE
    aloud: bool = False
    voice: str = ""
    calls: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    results: tuple[str, ...] = ()
    found: str = ""
    thought: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Dialogue:
    """Turns under one system message. ``tools``: all tools are offered. ``when`` and ``number`` are what the clock and
    the coffee counter say."""

    name: str
    system: str
    turns: Sequence[Turn]
    tools: bool = False
    when: datetime = NOON
    number: int = 0
    labels: Mapping[str, Any] = field(default_factory=dict)


def human(turn: Turn, frames: int = 0) -> dict[str, Any]:
    """The human's message; ``frames`` of the log-mel of what is heard."""
    words = [{"type": "text", "text": turn.request}] if turn.request else []
    return {"role": "human", "content": words + ([{"type": "audio", "patches": patches(frames)}] if frames else [])}


def found_message(name: str, text: str, audio_ids: Sequence[int] = ()) -> dict[str, Any]:
    """A tool's result as the model reads it: text, and the audio ids of a clip that was found."""
    sound = [{"type": "token", "token": list(audio_ids)}] if audio_ids else []
    return {"role": "tool", "name": name, "content": [{"type": "text", "text": text}, *sound]}


def prefill(turn: Turn, tools: bool, told: bool) -> str:
    """How the answer is asked for. With tools on offer the model itself chooses between a call, words and speech; after
    a result (``told``), and without tools, whether to speak is asked for."""
    if turn.thought and not told:
        return ANSWER_THINKING
    return ANSWER_TEXT if (tools and not told) or not turn.aloud else ANSWER_SPEECH


class Writer:
    """Dialogues to rows.

    Args:
        tools: schemas. codes: the codec's vocabulary.
        spoken: an answer and a voice to woven ids, from ``<tts_start>`` to ``<tts_end>``.
        sample: a voice to the audio ids of a clip of it.
    """

    def __init__(
        self, words: Tokenizer, tools: Sequence[Mapping], codes: int, spoken: Callable[[str, str], list[int]],
        sample: Callable[[str], list[int]],
    ):
        self.words, self.tools, self.codes, self.spoken, self.sample = words, tools, codes, spoken, sample

    def row(self, dialogue: Dialogue, mels: Sequence[Float[Tensor, "M _"] | None]) -> Row:
        """Ids, and which of them the model has to learn. ``mels``: of each turn, what is heard."""
        self.ids: list[int] = []
        self.learn: list[bool] = []
        schemas = self.tools if dialogue.tools else None
        self._given([{"role": "system", "content": dialogue.system}], schemas)
        for turn, mel in zip(dialogue.turns, mels, strict=True):
            self._given([human(turn, 0 if mel is None else mel.shape[-1])])
            thinks = turn is dialogue.turns[-1]  # the past holds no thoughts
            self._answer(turn if thinks else replace(turn, thought=""), dialogue.tools)
        return self.ids, self.learn

    def _answer(self, turn: Turn, tools: bool) -> None:
        told = bool(turn.calls)
        if told:
            self._own("", "".join(write_tool_call(name, arguments) for name, arguments in turn.calls))
            for (name, _), result in zip(turn.calls, turn.results, strict=True):
                self._given([found_message(name, result, self.sample(turn.found) if turn.found else ())])
        before = prefill(turn, tools, told)
        thought = f"{turn.thought}\n</think>\n\n" if before == ANSWER_THINKING else ""
        if not turn.aloud:
            return self._own(before, thought + turn.answer)
        woven = self.spoken(turn.answer, turn.voice)
        opened = before.endswith(TTS_START)  # whether to speak was then the prompt's choice, not the model's
        self._own(before, thought, woven[1:] if opened else woven)

    def _given(self, messages: list[dict], tools: Sequence[Mapping] | None = None) -> None:
        ids = encode_chat(messages, self.words, tools, add_generation_prompt=False, codes=self.codes)
        self.ids, self.learn = self.ids + ids, self.learn + [False] * len(ids)

    def _own(self, before: str, text: str, ids: Sequence[int] = ()) -> None:
        head = encode_chat([], self.words, prefill=before)
        own = [*(self.words.encode(text) if text else ()), *ids, self.words.id(EOT)]
        self.ids, self.learn = self.ids + head + own, self.learn + [False] * len(head) + [True] * len(own)
