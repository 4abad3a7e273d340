"""Conversations side by side, as Step-Audio 2 learns from them, and a small vocabulary to write them in."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gamut.codecs.chat import AUDIO_END, AUDIO_PATCH, AUDIO_START, BOT, EOT, TTS_END, TTS_PAD, TTS_START
from gamut.codecs.mel import pad_mels
from gamut.codecs.prompts import READ_ALOUD, TRANSCRIBE
from gamut.codecs.text import Tokenizer

ROLES = ("system", "human", "assistant", "function_output", "tool_json_schemas")


@dataclass(frozen=True)
class Task:
    """What is asked of the digits heard. ``answer`` gives the digits to write and to say."""

    name: str
    prompt: str
    counts: tuple[int, ...]  # how many digits the question may hold
    answer: Callable[[Sequence[int]], str]
    weight: float  # its share of the rows
    learn: tuple[int, ...] = ()  # how many digits to learn from, where that is more


def _row(digits: Sequence[int]) -> str:
    return "".join(map(str, digits))


TASKS = (
    Task("transcribe", TRANSCRIBE, (1, 2, 3, 4, 5, 6), _row, 0.35, (1, 2, 3, 4, 5, 5, 6, 6, 7, 8)),
    Task("sum", "Say the sum of the two numbers.", (2,), lambda d: str(d[0] + d[1]), 0.35),
    Task("difference", "Say how far apart the two numbers are.", (2,), lambda d: str(abs(d[0] - d[1])), 0.3),
    Task("maximum", "Say the larger of the two numbers.", (2,), lambda d: str(max(d)), 0.12),
    Task("reverse", "Say the numbers in reverse.", (2, 3, 4), lambda d: _row(d[::-1]), 0.5, (2, 3, 3, 4, 4, 5, 6)),
)


@dataclass(frozen=True)
class TalkBatch:
    """Rows padded on the right. ``learn_BT`` marks what the assistant wrote itself."""

    ids_BT: Int[Tensor, "B T"]
    learn_BT: Bool[Tensor, "B T"]
    mels_NMF: Float[Tensor, "N M F"] | None
    lens_N: Int[Tensor, " N"] | None
    audio_s: float


def tokenizer(codes: int, tools: Sequence[Mapping] = (), more: Sequence[str] = (), size: int = 768) -> Tokenizer:
    """Bytes, the words of the prompts, then the special strings with ``codes`` audio tokens and their padding last.

    ``tools`` are the schemas a prompt may hold, each of them one token: a small model is not to learn JSON from them.
    ``more`` are other texts to learn words from, up to ``size`` of them.
    """
    call = 'function\ncalculator\n{"expression": "3*4"}'
    schemas = [json.dumps(tool, ensure_ascii=False) for tool in tools]
    texts = [task.prompt for task in TASKS] + [f"{role}\n" for role in ROLES]
    texts += [READ_ALOUD, call, *more]
    marks = [BOT, EOT, "<tool_call>", "</tool_call>", AUDIO_START, AUDIO_END, AUDIO_PATCH, TTS_START, TTS_END, TTS_PAD]
    return Tokenizer.train(texts * 4, size, [*marks, *schemas, *(f"<audio_{code}>" for code in range(codes + 1))])


@runtime_checkable
class Voice(Protocol):
    """What talking needs of a codec: tokens for sound."""

    @property
    def vocab(self) -> int: ...

    @property
    def hears(self) -> int:
        """Hz of the sound it takes."""
        ...

    def encode(self, signal: Tensor) -> Tensor: ...


def stacked(
    rows: Sequence[tuple[list[int], list[bool]]], mels: Sequence[Tensor], words: Tokenizer, seconds: float
) -> TalkBatch:
    """Conversations (``encode_turns``) side by side, with their clips in order."""
    length = max(len(ids) for ids, _ in rows)
    ids_BT = torch.full((len(rows), length), words.id(EOT))
    learn_BT = torch.zeros(len(rows), length, dtype=torch.bool)
    for row, (ids, learn) in enumerate(rows):
        ids_BT[row, : len(ids)] = torch.tensor(ids)
        learn_BT[row, : len(ids)] = torch.tensor(learn)
    return TalkBatch(ids_BT, learn_BT, *(pad_mels(mels) if mels else (None, None)), seconds)
