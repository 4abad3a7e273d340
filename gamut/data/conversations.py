"""Batches of conversations of the small world, heard and woven: what `gamut.data.scripts` tells, as rows to learn."""

import json
import random
from collections.abc import Mapping, Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from gamut.codecs.chat import ANSWER_THINKING, write_tool_call
from gamut.codecs.mel import hear
from gamut.codecs.text import Tokenizer
from gamut.codecs.weave import Marks, build_ta4
from gamut.data import scripts
from gamut.data.dialogues import Dialogue, Row, Turn, Writer
from gamut.data.disguise import disguised, hidden
from gamut.data.load import alike
from gamut.data.orders import Orders
from gamut.data.scripts import SCRIPTS, Script, World
from gamut.data.spoken import RATE, Digits
from gamut.data.talks import TalkBatch, Voice, stacked, tokenizer
from gamut.io.media import resample

POOL = 8  # batches made together, so that rows of one length can be put side by side; ours
SAMPLE = 25  # tokens of the clip that a search for a voice returns, a second; ours
PAUSE = 640  # samples of silence after each digit of an answer: two tokens. Ours


def vocabulary(codes: int, tools: Sequence[Mapping], orders: Orders | None = None, size: int = 1280) -> Tokenizer:
    """A tokenizer to which everything that is written in this world is a few tokens."""
    texts = [*scripts.WORDS, ANSWER_THINKING, "\n</think>\n\n"]
    texts += [*scripts.VOICES, *(words for pair in scripts.VOICES.values() for words in pair), "order number "]
    texts += [json.dumps({"voice": "; ".join(pair)}) for pair in scripts.VOICES.values()]
    texts += [write_tool_call("audio_search", {"query": words}) for pair in scripts.VOICES.values() for words in pair]
    texts += [write_tool_call("date_and_time", {}), "UTC (UTC+00:00)"]
    texts += [write_tool_call("order", slots) for slots in (orders.slots if orders else ())]
    texts += [orders.clips[i].text for i in (orders.written if orders else ())]
    return tokenizer(codes, tools, texts, size)


class Conversations:
    """Makes rows and batches out of a world.

    Args:
        voices: name -> recordings that answers in that voice are put together from; the world's voices.
        codec: turns them into tokens. tools: schemas, shown where a dialogue has tools.
    """

    def __init__(
        self, world: World, voices: Mapping[str, Digits], codec: Voice, words: Tokenizer, tools: Sequence[Mapping],
        seed: int | str = 0,
    ):
        if missing := [name for name in world.voices if name not in voices]:
            raise ValueError(f"no recordings of the voice {missing[0]!r}; there are {', '.join(voices)}")
        self.world, self.voices, self.codec, self.words, self.tools = world, voices, codec, words, tools
        self.seed, self.marks = seed, Marks.of(words, codec.vocab)
        self.codes = {name: [self._encoded(wav) for wav in voice.wavs] for name, voice in voices.items()}
        self._pool: tuple[tuple, list[list[tuple[Row, list[Tensor], float]]]] | None = None

    def _encoded(self, wav: Tensor) -> list[int]:
        return self.codec.encode(resample(F.pad(wav, (0, PAUSE)), RATE, self.codec.hears)[None])[0].tolist()

    def spoken(self, rng: random.Random, answer: str, voice: str = "") -> list[int]:
        """A woven answer: digits written, and said by recordings of the voice, each followed by a pause."""
        return build_ta4(self.words.encode(answer), self._ids(rng, answer, voice), self.marks)

    def sample(self, rng: random.Random, voice: str) -> list[int]:
        """The audio ids of a short clip of a voice: what a search for it returns."""
        return self._ids(rng, "".join(str(rng.randrange(10)) for _ in range(4)), voice)[:SAMPLE]

    def _ids(self, rng: random.Random, digits: str, voice: str) -> list[int]:
        name = voice or self.world.voices[0]
        takes = [rng.choice(self.voices[name].by_digit[int(c)]) for c in digits]
        return self.marks.audio_ids([code for take in takes for code in self.codes[name][take]])

    def row(self, dialogue: Dialogue, rng: random.Random) -> tuple[Row, list[Tensor], float]:
        """Ids and what to learn of them, the log-mels heard, and the seconds of sound."""
        mels = [None if turn.wav is None else self._heard(turn, rng) for turn in dialogue.turns]
        writer = Writer(self.words, self.tools, self.codec.vocab, partial(self.spoken, rng), partial(self.sample, rng))
        seconds = sum(len(turn.wav) / turn.rate for turn in dialogue.turns if turn.wav is not None)
        return writer.row(dialogue, mels), [mel for mel in mels if mel is not None], seconds

    def _heard(self, turn: Turn, rng: random.Random) -> Tensor:
        mel = hear(turn.wav, turn.rate)
        if not self.world.vary:
            return mel
        if turn.kind != "who" and rng.random() < 0.5:
            mel = disguised(mel, rng)
        return hidden(mel, rng) if turn.kind == "order" else mel

    def batch(self, index: int, size: int, chosen: Sequence[Script] = SCRIPTS) -> TalkBatch:
        """Batch number ``index``: the scripts by their weights, rows of like length together.

        ``POOL`` batches are drawn at once and sorted by length; which of them comes when is drawn too.
        """
        pool, place = divmod(index, POOL)
        key = (pool, size, tuple(chosen))
        if self._pool is None or self._pool[0] != key:
            self._pool = key, self._batches(pool, size, chosen)
        made = self._pool[1][place]
        return stacked([row for row, _, _ in made], [mel for _, mels, _ in made for mel in mels], self.words,
                       sum(seconds for _, _, seconds in made))  # fmt: skip

    def _batches(self, pool: int, size: int, chosen: Sequence[Script]) -> list[list[tuple[Row, list[Tensor], float]]]:
        rng = random.Random(f"conversations {self.seed} {pool}")
        drawn = rng.choices(chosen, [script.weight for script in chosen], k=size * POOL)
        rows = [self.row(script.make(self.world, rng), rng) for script in drawn]
        return alike(rows, size, lambda made: len(made[0][0]), rng)
