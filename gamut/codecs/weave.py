"""Text and audio ids woven into one stream; codecs/answer.py takes it apart again.

Step-Audio 2 speaks in TA4: ``<tts_start>``, then one text id and four audio ids in turn, then ``<tts_end>`` and perhaps
ordinary text such as a tool call (arXiv 2507.16632 §3.1; padding as in the vLLM branch step-audio2-mini).
Step-Audio-AQAA weaves 10 text ids with 15 audio ids, without padding (arXiv 2506.08967 §2): ``Weave(10, 15).blocks``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

Padding = Literal["full", "reference", "none"]


@runtime_checkable
class Vocabulary(Protocol):
    """What a weave or a chat asks of a tokenizer; ``codecs.text.Tokenizer`` is one."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def id(self, token: str) -> int: ...


@dataclass(frozen=True)
class Marks:
    """The ids that carve up a woven stream. ``audio`` is the id of code 0; every id from there on is audio."""

    start: int
    end: int
    text_pad: int
    audio: int
    codes: int

    @classmethod
    def of(cls, tokenizer: Vocabulary, codes: int = 6561) -> "Marks":
        """Looked up by their strings. ``codes``: the codec's vocabulary; the token after the last code pads the audio.

        Raises:
            ValueError: a token is missing, or the audio tokens are not in a row.
        """
        first, pad = tokenizer.id("<audio_0>"), tokenizer.id(f"<audio_{codes}>")
        if pad - first != codes:
            raise ValueError(
                f"audio tokens must have consecutive ids: <audio_0> is {first} and <audio_{codes}> is {pad}, "
                f"not {first + codes}; take the tokenizer released with this model"
            )
        return cls(tokenizer.id("<tts_start>"), tokenizer.id("<tts_end>"), tokenizer.id("<tts_pad>"), first, codes)

    @property
    def audio_pad(self) -> int:
        """Fills the audio side of a group: the id after the last code."""
        return self.audio + self.codes

    def audio_ids(self, codes: Sequence[int]) -> list[int]:
        """Codec codes -> token ids."""
        wrong = [code for code in codes if not 0 <= code < self.codes]
        if wrong:
            raise ValueError(f"codec codes must lie in [0, {self.codes}), got {wrong[:4]}; is this the model's codec?")
        return [self.audio + code for code in codes]

    def audio_codes(self, ids: Sequence[int]) -> list[int]:
        """Token ids -> codec codes; what is no code (padding, text, unused rows of the vocabulary) is left out."""
        return [i - self.audio for i in ids if 0 <= i - self.audio < self.codes]


@dataclass(frozen=True)
class Weave:
    """``text`` text ids, then ``audio`` audio ids, in turn."""

    text: int = 1
    audio: int = 4

    def __post_init__(self):
        if self.text < 1 or self.audio < 1:
            raise ValueError(f"a weave takes at least one id of each side, got text={self.text}, audio={self.audio}")

    def blocks(self, text_ids: Sequence[int], audio_ids: Sequence[int]) -> list[int]:
        """Both sides in turn, nothing added; when one side is used up the other goes on alone."""
        count = max(-(-len(text_ids) // self.text), -(-len(audio_ids) // self.audio))
        out: list[int] = []
        for i in range(count):
            out += text_ids[i * self.text : (i + 1) * self.text]
            out += audio_ids[i * self.audio : (i + 1) * self.audio]
        return out

    def build(
        self, text_ids: Sequence[int], audio_ids: Sequence[int], marks: Marks, *, padding: Padding = "full"
    ) -> list[int]:
        """A marked section: start, groups, end.

        Args:
            padding: "full" fills both sides of every group, which training data wants. "reference" repeats the released
                code, which pads audio to as many *tokens* as there are groups, so that trailing groups may hold fewer.
                "none" adds nothing. The parser takes all three.
        Raises:
            ValueError: a text id that the parser would not give back as text, or an audio id that is none.
        """
        bad = [i for i in text_ids if not 0 <= i < marks.audio or i in (marks.end, marks.text_pad)]
        if bad:
            raise ValueError(f"text ids must lie in [0, {marks.audio}) and be no end or padding mark, got {bad[:4]}")
        bad = [i for i in audio_ids if not marks.audio <= i <= marks.audio_pad]
        if bad:
            raise ValueError(
                f"audio ids must lie in [{marks.audio}, {marks.audio_pad}], got {bad[:4]}; "
                f"turn codec codes into ids with marks.audio_ids(codes)"
            )
        text_ids, audio_ids = list(text_ids), list(audio_ids)
        if padding != "none":
            groups = max(-(-len(text_ids) // self.text), -(-len(audio_ids) // self.audio))
            wanted = groups * self.audio if padding == "full" else groups
            text_ids += [marks.text_pad] * (groups * self.text - len(text_ids))
            audio_ids += [marks.audio_pad] * (wanted - len(audio_ids))
        return [marks.start, *self.blocks(text_ids, audio_ids), marks.end]


TA4 = Weave(1, 4)


def build_ta4(
    text_ids: Sequence[int], audio_ids: Sequence[int], marks: Marks, *, padding: Padding = "full"
) -> list[int]:
    """``TA4.build``: one text id, four audio ids, in turn."""
    return TA4.build(text_ids, audio_ids, marks, padding=padding)
