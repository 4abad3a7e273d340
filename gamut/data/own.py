"""Your own conversations to fine-tune on: a JSONL file of messages with sound, or a folder of clips with transcripts.

    {"messages": [{"role": "system", "content": "Be brief."},
                  {"role": "user", "content": [{"type": "audio", "file": "q.wav"}, {"type": "text", "text": "Well?"}]},
                  {"role": "assistant", "content": [{"type": "audio", "file": "a.wav", "text": "Yes."}]}],
     "tools": [...]}

a line, files relative to the JSONL. Sound of the user is heard; sound of the assistant, with its ``text``, is what it
learns to say, and needs a codec that encodes. ``tool_calls`` and ``tool`` messages are as codecs/chat.py has them.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gamut.codecs.chat import TTS_START, encode_turns
from gamut.codecs.mel import PAD, WHISPER_HOP, WHISPER_RATE, hear, patches, pieces
from gamut.codecs.prompts import TRANSCRIBE
from gamut.codecs.text import Tokenizer
from gamut.codecs.weave import Marks, build_ta4
from gamut.data.dialogues import Row
from gamut.data.pack import buckets, shuffled
from gamut.data.talks import TalkBatch, Voice, stacked
from gamut.io.listing import listed
from gamut.io.media import duration, read_audio, resample

ROLES = ("system", "user", "human", "assistant", "tool", "input", "function_output")


@dataclass(frozen=True)
class Talked:
    """A conversation as it was written down; ``where`` names its line for messages."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]]
    folder: Path
    where: str


def read_conversations(path: str | Path, prompt: str = TRANSCRIBE) -> list[Talked]:
    """Conversations of a .jsonl file, of the conversations.jsonl in a folder, or (``prompt`` asking) of a folder with
    transcripts.

    Raises:
        ValueError: nothing of the kind; a line that is no conversation, names a missing file, or in which the
            assistant says nothing. Found before any sound is read.
    """
    path = Path(path)
    file = path / "conversations.jsonl" if path.is_dir() else path
    if path.is_dir() and not file.exists():
        return [
            Talked([{"role": "system", "content": prompt}, {"role": "user", "content": [_sound(clip)]},
                    {"role": "assistant", "content": text}], (), path, f"'{clip}'")
            for clip, text, _ in listed(path)
        ]  # fmt: skip
    if not file.is_file() or file.suffix != ".jsonl":
        raise ValueError(f"'{path}' is neither a .jsonl file of conversations nor a folder; see gamut.data.own")
    lines = [(number, line) for number, line in enumerate(file.read_text().splitlines(), 1) if line.strip()]
    if not lines:
        raise ValueError(f"'{file}' holds no conversations; write one JSON object a line")
    return [_line(file, number, line) for number, line in lines]


def _sound(file: Path | str) -> dict[str, str]:
    return {"type": "audio", "file": str(file)}


def _line(file: Path, number: int, line: str) -> Talked:
    where = f"'{file}' line {number}"
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON ({error}); one object a line") from error
    messages = entry.get("messages") if isinstance(entry, dict) else None
    whole = isinstance(messages, list) and all(isinstance(m, dict) and "role" in m and "content" in m for m in messages)
    if messages is None or not whole:
        raise ValueError(f'{where} needs {{"messages": [{{"role": …, "content": …}}, …]}}; got {line[:80]}')
    for message in messages:
        if message["role"] not in ROLES:
            raise ValueError(f"{where} has the role {message['role']!r}; allowed: {', '.join(ROLES)}")
        for part in message["content"] if isinstance(message["content"], list) else ():
            if part.get("type") == "audio" and not (file.parent / str(part.get("file"))).is_file():
                raise ValueError(f"{where} names the sound {part.get('file')!r}, which is not in '{file.parent}'; "
                                 f'write {{"type": "audio", "file": …}} relative to it')
    if not any(message["role"] == "assistant" for message in messages):
        raise ValueError(f"{where} has no assistant message: nothing could be learned from it")
    return Talked(messages, entry.get("tools") or (), file.parent, where)


def split(talked: Sequence[Talked], share: float, seed: int = 0) -> tuple[list[Talked], list[Talked]]:
    """(to train on, held out): ``share`` of them, at least one where there are two; drawn by ``seed``.

    Raises:
        ValueError: a share outside [0, 1).
    """
    if not 0 <= share < 1:
        raise ValueError(f"the share held out must be at least 0 and below 1, got {share}")
    order = random.Random(f"split {seed}").sample(range(len(talked)), len(talked))
    count = max(1, round(share * len(talked))) if share and len(talked) > 1 else 0
    return [talked[i] for i in sorted(order[count:])], [talked[i] for i in sorted(order[:count])]


class Own:
    """Rows and batches of own conversations, rows of like length together.

    Args:
        tokens: positions of a batch, padding included; a longer conversation is refused.
        codec: for spoken answers; its ``encode`` takes sound at ``codec.hears`` Hz.
    Raises:
        ValueError: a conversation longer than ``tokens``, or with a spoken answer and no codec; it names the line.
    """

    def __init__(
        self, talked: Sequence[Talked], words: Tokenizer, *, tokens: int = 4096, codec: Voice | None = None,
        seed: int = 0,
    ):
        self.talked, self.words, self.codec = list(talked), words, codec
        self.codes = codec.vocab if codec else 6561
        self.spoken: dict[Path, list[int]] = {}
        lengths = [len(self.row(one, hear_it=False)[0][0]) for one in self.talked]
        for one, length in zip(self.talked, lengths, strict=True):
            if length > tokens:
                raise ValueError(f"{one.where} takes {length} positions, a batch has {tokens}; cut it, or raise tokens")
        self.group = shuffled(buckets(lengths, tokens), seed)

    def row(self, one: Talked, hear_it: bool = True) -> tuple[Row, list[Tensor], float]:
        """Ids and what is learned of them, log-mels of what is heard, seconds of it.

        Without ``hear_it`` no question is read, only measured: the ids are as many, up to a patch a clip.
        """
        messages, mels, seconds = [], [], 0.0
        for message in one.messages:
            parts = message["content"]
            if isinstance(parts, list):
                own, written = message["role"] == "assistant", []
                for part in parts:
                    if part.get("type") != "audio":
                        written.append(part)
                    elif own:
                        written.append({"type": "token", "token": self._said(one, part)})
                    elif not hear_it:
                        blank = torch.zeros(1).expand(round(duration(one.folder / part["file"]) * WHISPER_RATE))
                        frames = [(len(piece) + PAD) // WHISPER_HOP for piece in pieces(blank)]
                        written.append({"type": "audio", "patches": [patches(count) for count in frames]})
                    else:
                        wav, rate = read_audio(one.folder / part["file"])
                        heard = [hear(piece, WHISPER_RATE) for piece in pieces(resample(wav, rate, WHISPER_RATE))]
                        written.append({"type": "audio", "patches": [patches(mel.shape[-1]) for mel in heard]})
                        mels, seconds = mels + heard, seconds + len(wav) / rate
                message = {**message, "content": written}
            messages.append(message)
        ids, learn = encode_turns(messages, self.words, one.tools or None, codes=self.codes)
        asked = self.words.id(TTS_START)  # whether to speak is the prompt's choice, not the model's
        return (ids, [own and i != asked for i, own in zip(ids, learn, strict=True)]), mels, seconds

    def _said(self, one: Talked, part: Mapping[str, Any]) -> list[int]:
        """A spoken answer as woven ids; encoded once."""
        if self.codec is None:
            raise ValueError(f"{one.where} has a spoken answer, which takes a codec that encodes; give one")
        marks, file = Marks.of(self.words, self.codec.vocab), one.folder / part["file"]
        if file not in self.spoken:
            rate = self.codec.hears
            with torch.no_grad():
                self.spoken[file] = self.codec.encode(read_audio(file, rate)[0][None])[0].tolist()
        return build_ta4(self.words.encode(part.get("text", "")), marks.audio_ids(self.spoken[file]), marks)

    def batch(self, index: int) -> TalkBatch:
        """Batch number ``index``; every conversation comes once before any comes again."""
        made = [self.row(self.talked[i]) for i in self.group(index)]
        return stacked([row for row, _, _ in made], [mel for _, mels, _ in made for mel in mels], self.words,
                       sum(seconds for _, _, seconds in made))  # fmt: skip
