"""Rows and batches of own conversations, written exactly as the model will see them when it answers.

Message by message, each answer behind what asks for it (codecs/chat.py); conversations packed into rows in which none
sees another, or side by side with their like.

B rows · T tokens · N clips · M mel bins · F mel frames
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gamut.codecs import chat
from gamut.codecs.chat import AUDIO_END, AUDIO_PATCH, AUDIO_START, EOT, encode_chat
from gamut.codecs.mel import PAD, WHISPER_HOP, WHISPER_RATE, hear, levelled, pad_mels, patches
from gamut.codecs.text import Tokenizer
from gamut.codecs.weave import Marks, build_ta4
from gamut.data.own import Talked, parts, refuse, sound_file, unfolded
from gamut.data.pack import buckets, pack, shuffled
from gamut.io.media import pieces, read_audio, resample
from gamut.io.progress import progress

_CODE = re.compile(r"<audio_(\d+)>")


@dataclass
class Row:
    """Ids, which of them are learned, log-mels (M, F) of what is heard among them, seconds of it, patches of each."""

    ids: list[int] = field(default_factory=list)
    learn: list[bool] = field(default_factory=list)
    mels: list[Tensor] = field(default_factory=list)
    seconds: float = 0.0
    patches: list[int] = field(default_factory=list)

    def add(self, ids: Sequence[int], learn: bool = False) -> None:
        self.ids += ids
        self.learn += [learn] * len(ids)


@dataclass(frozen=True)
class OwnBatch:
    """Rows padded on the right. ``learn_BT`` marks what the assistant wrote itself; ``segments_BT`` numbers the
    conversations of packed rows, padding last."""

    ids_BT: Int[Tensor, "B T"]
    learn_BT: Bool[Tensor, "B T"]
    segments_BT: Int[Tensor, "B T"] | None
    mels_NMF: Float[Tensor, "N M F"] | None
    lens_N: Int[Tensor, " N"] | None
    audio_s: float


def _clips(one: Talked) -> list[Path]:
    return [one.folder / sound_file(part) for message in one.messages for part in parts(message)
            if part["type"] == "audio"]  # fmt: skip


def _located(one: Talked, error: ValueError) -> ValueError:
    """The error with the line it is about, if it does not say that already."""
    return error if one.where in str(error) else ValueError(f"{one.where}: {error}")


class Own:
    """Conversations by number, and batches of them.

    Args:
        tokens: positions of a batch, padding included; a longer conversation is refused.
        codec: for spoken answers; its ``encode`` takes sound at ``codec.hears`` Hz (or ``rate``).
        packed: one row of several conversations; otherwise a row each, of like length.
        level: RMS that questions are brought to, 0 leaves them as they are; as when the model is asked.
        context: positions that the model can look back on; a longer conversation is refused, too.
    Raises:
        ValueError: conversations that do not fit, sound that cannot be read, a spoken answer and no codec: all of them,
            the first few by name.
    """

    def __init__(
        self, talked: Sequence[Talked], words: Tokenizer, *, tokens: int = 4096, codec: Any = None, packed: bool = True,
        level: float = 0.0, context: int = 1 << 30, seed: int = 0,
    ):
        self.talked = [part for one in talked for part in unfolded(one)]
        self.words, self.codec, self.packed, self.level = words, codec, packed, level
        self.codes = max((int(m[1]) for name in words.specials if (m := _CODE.fullmatch(name))), default=6561)
        self.spoken: dict[Path, list[int]] = {}
        self.lengths = self._measured(tokens, context)
        groups = (pack if packed else buckets)(self.lengths, tokens)
        self.batches, self.group = len(groups), shuffled(groups, seed)

    def _measured(self, tokens: int, context: int) -> list[int]:
        """Positions of each conversation; what cannot be used is named."""
        samples, wrong = self._decoded()
        lengths, vocab = [], self.words.vocab
        for one in self.talked:
            if not samples.keys() >= set(_clips(one)):
                continue  # named already
            try:
                row = self.row(one, samples)
                lengths.append(len(row.ids))
                if unknown := [i for i in row.ids if not 0 <= i < vocab]:
                    raise ValueError(f"{one.where} holds the token ids {unknown[:4]}, the model's tokenizer has 0 to "
                                     f"{vocab - 1}; write ids of this model, or the text")  # fmt: skip
                self._check_marks(one, row)
                if lengths[-1] > context:
                    raise ValueError(f"{one.where} takes {lengths[-1]} positions, the model's context holds {context}; "
                                     f"cut it")  # fmt: skip
                if lengths[-1] > tokens:
                    raise ValueError(f"{one.where} takes {lengths[-1]} positions, a batch has {tokens}; cut it, or "
                                     f"raise tokens")  # fmt: skip
            except ValueError as error:
                wrong.append(str(error))
        refuse(wrong)
        return lengths

    def _decoded(self) -> tuple[dict[Path, int], list[str]]:
        """Samples at WHISPER_RATE of every clip that can be read whole, and what is wrong with the others: headers do
        not tell. Each is decoded once, one at a time."""
        first: dict[Path, Talked] = {}
        for one in self.talked:
            first |= {file: one for file in _clips(one) if file not in first}
        samples, wrong = {}, []
        for file, one in progress(first.items(), "clips read", len(first)) if first else ():
            try:
                wav, rate = read_audio(file)
                samples[file] = -(-len(wav) * WHISPER_RATE // rate)
            except ValueError as error:
                wrong.append(str(_located(one, error)))
        return samples, wrong

    def _check_marks(self, one: Talked, row: Row) -> None:
        """Raises ValueError where there are other marks of sound than those around what is heard."""
        pieces = len(row.patches)
        for mark, wanted in ((AUDIO_START, pieces), (AUDIO_PATCH, sum(row.patches)), (AUDIO_END, pieces)):
            if (found := row.ids.count(self.words.id(mark))) != wanted:
                raise ValueError(f"{one.where} holds {mark} {found} times, what is heard in it makes {wanted}; write "
                                 f"the mark otherwise in texts, and leave its id out of tokens")  # fmt: skip

    def row(self, one: Talked, samples: Mapping[Path, int] | None = None) -> Row:
        """A conversation as ids. Given the ``samples`` of its clips (at WHISPER_RATE), none is heard: the ids are the
        same.

        Raises:
            ValueError: what is wrong with it, and its line.
        """
        row, given, tools = Row(), list[Mapping[str, Any]](), one.tools or None
        try:
            for i, message in enumerate(one.messages):
                if message["role"] != "assistant":
                    given.append(self._heard(one, message, row, samples))
                    continue
                row.add(self._written(given, tools))
                chooses = bool(one.tools) and one.messages[i - 1]["role"] in ("user", "human")
                head, own = self._answer(one, message, i == len(one.messages) - 1, chooses)
                row.add(head)
                row.add(own, i >= one.first)
                given, tools = [], None
        except ValueError as error:
            raise _located(one, error) from error
        return row

    def _written(self, given: Sequence[Mapping[str, Any]], tools: Sequence[Mapping] | None) -> list[int]:
        return encode_chat(given, self.words, tools, add_generation_prompt=False, codes=self.codes)

    def _heard(
        self, one: Talked, message: Mapping[str, Any], row: Row, samples: Mapping[Path, int] | None
    ) -> Mapping[str, Any]:
        """A message to the model, with as many patches in place of its sound as that takes."""
        if not isinstance(message["content"], list):
            return message
        said = []
        for part in parts(message):
            if part["type"] != "audio":
                said.append(part)
                continue
            file = one.folder / sound_file(part)
            if samples is None:
                wav, rate = read_audio(file)
                wav = resample(levelled(wav, self.level) if self.level else wav, rate, WHISPER_RATE)
                mels = [hear(piece, WHISPER_RATE) for piece in pieces(wav)]
                row.mels, row.seconds = row.mels + mels, row.seconds + len(wav) / WHISPER_RATE
                frames = [mel.shape[-1] for mel in mels]
            else:
                frames = [(len(piece) + PAD) // WHISPER_HOP for piece in pieces(torch.zeros(1).expand(samples[file]))]
            counts = [patches(count) for count in frames]
            row.patches += counts
            said.append({"type": "audio", "patches": counts})
        return {**message, "content": said}

    def _answer(
        self, one: Talked, message: Mapping[str, Any], last: bool, chooses: bool
    ) -> tuple[list[int], list[int]]:
        """The header with what asks for the answer, and the answer's own ids. With tools on offer the model chooses by
        itself to speak; otherwise it is asked to, and does not learn that. A thought stays where nothing follows it."""
        said, before = self._said(one, message), chat.ANSWER_TEXT
        if said and isinstance(said[0], str):
            plain = chat.without_thinking(said[0])
            if last and plain != said[0]:
                before = chat.ANSWER_THINKING
                thought = said[0].strip().removeprefix("<think>").partition("</think>")[0]
                plain = f"{thought.strip()}\n</think>\n\n{plain}"
            said[0] = plain
        elif said and not chooses and said[0][:1] == [self.words.id(chat.TTS_START)]:  # ids given may be of text
            before, said[0] = chat.ANSWER_SPEECH, said[0][1:]
        ids: list[int] = []
        for text in said:
            ids += self.words.encode(text) if isinstance(text, str) else text
        return encode_chat([], self.words, prefill=before), [*ids, self.words.id(EOT)]

    def _said(self, one: Talked, message: Mapping[str, Any]) -> list[str | list[int]]:
        """Text, and woven ids from <tts_start> on; texts that touch are one."""
        said: list[str | list[int]] = []
        if speech := message.get("tts_content"):
            said.append(self._woven(speech["tts_text"], self.words.encode(speech["tts_audio"])))
        for part in parts(message):
            if part["type"] == "audio":
                codes = Marks.of(self.words, self.codes).audio_ids(self._encoded(one, part))
                said.append(self._woven(part.get("text", ""), codes))
            else:
                said.append(part["text"] if part["type"] == "text" else list(part["token"]))
        for call in message.get("tool_calls") or ():
            function = call.get("function", call)
            said.append(chat.write_tool_call(function["name"], function["arguments"]))
        joined: list[str | list[int]] = []
        for part in said:
            before = joined[-1] if joined else None
            if isinstance(part, str) and isinstance(before, str):
                joined[-1] = before + part
            else:
                joined.append(part)
        return joined

    def _woven(self, text: str, audio_ids: Sequence[int]) -> list[int]:
        return build_ta4(self.words.encode(text), audio_ids, Marks.of(self.words, self.codes))

    def _encoded(self, one: Talked, part: Mapping[str, Any]) -> list[int]:
        """The codec's tokens of a spoken answer; made once."""
        file = one.folder / sound_file(part)
        if self.codec is None:
            raise ValueError(f"{one.where} has a spoken answer, which takes a codec that encodes; give one")
        if self.codec.vocab != self.codes:
            raise ValueError(f"the codec has {self.codec.vocab} tokens, the model's tokenizer {self.codes}; take both "
                             f"from one release")  # fmt: skip
        if file not in self.spoken:
            wav, _ = read_audio(file, getattr(self.codec, "hears", self.codec.rate))
            with torch.no_grad():
                self.spoken[file] = self.codec.encode(levelled(wav)[None])[0].tolist()
        return self.spoken[file]

    def question(self, one: Talked) -> tuple[Row, list[int]]:
        """What stands before the last answer, and the answer: its ids with the <|EOT|>."""
        row = self.row(one)
        start = len(row.learn) - next((i for i, mine in enumerate(reversed(row.learn)) if not mine), 0)
        return Row(row.ids[:start], row.learn[:start], row.mels, row.seconds), row.ids[start:]

    def batch(self, index: int) -> OwnBatch:
        """Batch number ``index``; every conversation comes once before any comes again."""
        return self.stack([self.talked[i] for i in self.group(index)])

    def stack(self, some: Sequence[Talked]) -> OwnBatch:
        """These conversations as one batch: a row, or (not packed) a row each."""
        made = [self.row(one) for one in some]
        rows = [made] if self.packed else [[row] for row in made]
        length = max(sum(len(part.ids) for part in row) for row in rows)
        ids_BT = torch.full((len(rows), length), self.words.id(EOT))
        learn_BT, segments_BT = torch.zeros_like(ids_BT, dtype=torch.bool), torch.zeros_like(ids_BT)
        for b, row in enumerate(rows):
            at = 0
            for number, part in enumerate(row):
                end = at + len(part.ids)
                ids_BT[b, at:end], learn_BT[b, at:end] = torch.tensor(part.ids), torch.tensor(part.learn)
                segments_BT[b, at:end], at = number, end
        mels = [mel for row in made for mel in row.mels]
        heard = pad_mels(mels) if mels else (None, None)
        several = self.packed and len(made) > 1
        return OwnBatch(ids_BT, learn_BT, segments_BT if several else None, *heard, sum(row.seconds for row in made))
