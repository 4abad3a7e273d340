"""What a model answered: its words and its speech taken apart, whole or while they arrive, and the message to keep."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from gamut.codecs.chat import ANSWER_TEXT, AUDIO_END, AUDIO_PATCH, AUDIO_START, EOT, TTS_START, without_thinking
from gamut.codecs.text import Tokenizer
from gamut.codecs.weave import Marks, Vocabulary
from gamut.io.tokenizer import library


class Woven(NamedTuple):
    """A stream taken apart: the words spoken, their audio ids, and everything outside the spoken section."""

    text_ids: list[int]
    audio_ids: list[int]
    other_ids: list[int]


class WeaveParser:
    """Takes a stream apart as it arrives. The result does not depend on how the stream is cut.

    Works for every ratio, since each id says by itself which side it is on. ``is_ta4``: the stream begins inside a
    spoken section (``is_ta4_prompt``); if not, nothing in it is speech, as in the released parser, unless ``reopen``
    lets a ``<tts_start>`` in the stream open a section (for a model that decides by itself when to speak; ours).
    """

    def __init__(self, marks: Marks, is_ta4: bool = True, *, reopen: bool = False):
        self.marks, self.inside, self.reopen = marks, is_ta4, reopen
        self.spoken = is_ta4 or reopen

    def push(self, ids: Sequence[int]) -> Woven:
        """Padding and the marks of a spoken section are dropped; what is not known to be audio inside it is text."""
        woven, marks = Woven([], [], []), self.marks
        for i in ids:
            if i == marks.end and self.spoken:
                self.inside = False
            elif i == marks.start and self.reopen:
                self.inside = True
            elif not self.inside:
                woven.other_ids.append(i)
            elif i >= marks.audio:
                if i != marks.audio_pad:
                    woven.audio_ids.append(i)
            elif i != marks.text_pad:
                woven.text_ids.append(i)
        return woven


def is_ta4_prompt(ids: Sequence[int], marks: Marks) -> bool:
    """Whether the answer to this prompt begins inside a spoken section."""
    return bool(ids) and ids[-1] == marks.start


def parse_ta4(ids: Sequence[int], is_ta4: bool, marks: Marks) -> Woven:
    """A whole answer taken apart; ``ids`` are what followed the prompt, so the section is open when ``is_ta4``."""
    return WeaveParser(marks, is_ta4).push(ids)


def remember(ids: Sequence[int], tokenizer: Vocabulary, prefill: str = ANSWER_TEXT) -> dict[str, Any]:
    """The assistant's message that keeps an answer in the history.

    Speech stays as it was generated: ``<tts_start>`` and the ids after it, never tokenised again. Thinking is left out.
    Everything from the first ``<|EOT|>`` on is cut, and marks of sound are dropped: in a prompt they stand for a clip,
    and there is none for what a model only imagines.
    """
    ids, stop = list(ids), tokenizer.id(EOT)
    ids = ids[: ids.index(stop)] if stop in ids else ids
    sound = {tokenizer.id(mark) for mark in (AUDIO_START, AUDIO_PATCH, AUDIO_END)}
    ids = [i for i in ids if i not in sound]
    text = prefill.lstrip()
    if (text + tokenizer.decode(ids[:16])).lstrip().startswith("<think>"):
        start = tokenizer.id(TTS_START)
        cut = ids.index(start) if start in ids else len(ids)
        text, ids = without_thinking(text + tokenizer.decode(ids[:cut])), ids[cut:]
    return {"role": "assistant", "content": [{"type": "text", "text": text}, {"type": "token", "token": ids}]}


class TextStream:
    """Incremental decoding: a character whose bytes span several tokens is emitted once it is whole."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer, self.ids, self.sent = tokenizer, [], 0
        self.inner = library().decoders.DecodeStream(skip_special_tokens=False)

    def push(self, id: int) -> str:
        """The text that ``id`` completes, perhaps none."""
        self.ids.append(id)
        text = self.inner.step(self.tokenizer.inner, id) or ""
        self.sent += len(text)
        return text

    def end(self) -> str:
        """What is left; then all pieces joined equal ``decode`` of all ids (bytes never completed show as U+FFFD)."""
        return self.tokenizer.decode(self.ids)[self.sent :]
