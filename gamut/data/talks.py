"""Conversations about spoken numbers, as Step-Audio 2 would see them: heard, answered in text or aloud, with a tool."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gamut.codecs.chat import AUDIO_END, AUDIO_PATCH, AUDIO_START, BOT, EOT, TTS_END, TTS_PAD, TTS_START, encode_turns
from gamut.codecs.mel import hear, pad_mels, patches
from gamut.codecs.prompts import READ_ALOUD
from gamut.codecs.text import Tokenizer
from gamut.codecs.weave import Marks, build_ta4
from gamut.data.spoken import RATE, TASKS, Digits, Said, Task, noisy

PAUSE = 640  # samples of silence after each digit of an answer: two tokens. Ours
ROLES = ("system", "human", "assistant", "function_output", "tool_json_schemas")


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

    ``tools`` are the schemas a prompt may hold, ``more`` other texts to learn words from, up to ``size`` of them.
    """
    call = 'function\ncalculator\n{"expression": "3*4"}'
    texts = [task.prompt for task in TASKS] + [f"{role}\n" for role in ROLES]
    texts += [READ_ALOUD, call, json.dumps(tools), *more]
    marks = [BOT, EOT, "<tool_call>", "</tool_call>", AUDIO_START, AUDIO_END, AUDIO_PATCH, TTS_START, TTS_END, TTS_PAD]
    return Tokenizer.train(texts * 4, size, [*marks, *(f"<audio_{code}>" for code in range(codes + 1))])


def question(task: Task, frames: int) -> list[dict]:
    """System prompt and the human's recording of so many mel frames."""
    sound = [{"type": "audio", "patches": patches(frames)}]
    return [{"role": "system", "content": task.prompt}, {"role": "human", "content": sound}]


def call_arguments(task: Task, digits: Sequence[int]) -> dict[str, str]:
    return {"expression": task.tool.join(map(str, digits))}


def call(task: Task, digits: Sequence[int]) -> list[dict]:
    """The calculator is asked, and answers."""
    function = {"name": "calculator", "arguments": call_arguments(task, digits)}
    asked = {"role": "assistant", "content": "", "tool_calls": [{"id": "call_0", "function": function}]}
    return [asked, {"role": "tool", "tool_call_id": "call_0", "content": task.answer(digits)}]


@runtime_checkable
class Voice(Protocol):
    """What talking needs of a codec: tokens for sound, and how much of a sound they lose."""

    vocab: int

    def encode(self, signal: Tensor) -> Tensor: ...

    def distance(self, signal: Tensor) -> float: ...


def clearest(voice: Digits, codec: Voice, each: int) -> Digits:
    """Of every digit the ``each`` recordings that the codec carries best."""
    distance = [codec.distance(wav[None]) for wav in voice.wavs]
    return voice.keep([i for ids in voice.by_digit.values() for i in sorted(ids, key=lambda i: distance[i])[:each]])


class Talks:
    """Makes conversations out of recorded digits.

    Args:
        digits: what people say. voice: recordings in the one voice that answers. codec: turns them into tokens.
        tools: schemas shown with the questions that need one.
    """

    def __init__(
        self, digits: Digits, voice: Digits, codec: Voice, words: Tokenizer, tools: Sequence[Mapping], seed: int = 0
    ):
        self.digits, self.voice, self.codec, self.words = digits, voice, codec, words
        self.tools, self.seed = tools, seed
        self.marks = Marks.of(words, codec.vocab)
        self.codes = [codec.encode(F.pad(wav, (0, PAUSE))[None])[0].tolist() for wav in voice.wavs]

    def spoken(self, answer: str, rng: random.Random) -> list[int]:
        """A woven answer: the digits written, and said by recordings of the voice, each followed by a pause."""
        takes = [rng.choice(self.voice.by_digit[int(c)]) for c in answer]
        codes = [code for take in takes for code in self.codes[take]]
        return build_ta4(self.words.encode(answer), self.marks.audio_ids(codes), self.marks)

    def talk(self, task: Task, said: Said, frames: int, aloud: bool, rng: random.Random) -> list[dict]:
        """Question to answer, whole."""
        messages = question(task, frames)
        if task.tool:
            messages += call(task, said.digits)
        answer = task.answer(said.digits)
        spoken = [{"type": "token", "token": self.spoken(answer, rng)}] if aloud else answer
        return [*messages, {"role": "assistant", "content": spoken}]

    def read_aloud(self, rng: random.Random) -> list[dict]:
        """Text to speech without a question: the system's request holds the digits."""
        answer = "".join(str(rng.randrange(10)) for _ in range(rng.randint(1, 4)))
        spoken = [{"type": "token", "token": self.spoken(answer, rng)}]
        return [{"role": "system", "content": READ_ALOUD + answer}, {"role": "assistant", "content": spoken}]

    def in_writing(self, rng: random.Random) -> list[dict]:
        """A question that nobody says, answered in writing: what can be learned of arithmetic without listening."""
        task = rng.choice([task for task in TASKS if task.name != "transcribe" and not task.tool])
        digits = [rng.randrange(10) for _ in range(rng.choice(task.counts))]
        asked = [{"role": "system", "content": task.prompt}, {"role": "human", "content": "".join(map(str, digits))}]
        return [*asked, {"role": "assistant", "content": task.answer(digits)}]

    def batch(
        self, index: int, size: int, tasks: Sequence[Task] = TASKS, aloud: float = 0.5, read: float = 0.15,
        written: float = 0.0,
    ) -> TalkBatch:
        """Conversation batch number ``index``: equally many digits, all with a tool or none, so that little is padded.

        Args:
            aloud: share of answers that are spoken (never a transcript). read: share of text to speech.
            written: share of questions and answers in writing.
        """
        rng = random.Random(f"talks {self.seed} {index}")
        [leader] = rng.choices(tasks, [task.weight for task in tasks])
        tool, counts = leader.tool, rng.choice(leader.counts)
        fitting = [task for task in tasks if task.tool == tool and counts in task.counts]
        rows, mels, seconds = [], [], 0.0
        for _ in range(size):
            kind = 1.0 if tool else rng.random()
            if kind < read:
                messages, tools = self.read_aloud(rng), None
            elif kind < read + written:
                messages, tools = self.in_writing(rng), None
            else:
                task = rng.choice(fitting)
                said = self.digits.say([rng.randrange(10) for _ in range(counts)], rng)
                mels.append(hear(noisy(said.wav, rng), RATE))
                seconds += len(said.wav) / RATE
                speak = task.name != "transcribe" and rng.random() < aloud
                messages = self.talk(task, said, mels[-1].shape[-1], speak, rng)
                tools = self.tools if task.tool else None
            rows.append(encode_turns(messages, self.words, tools, codes=self.codec.vocab))
        return stacked(rows, mels, self.words, seconds)


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
    learn_BT &= ids_BT != words.id(TTS_START)  # whether to speak is the prompt's choice, not the model's
    return TalkBatch(ids_BT, learn_BT, *(pad_mels(mels) if mels else (None, None)), seconds)
