"""Your own recordings with transcripts, as conversations to train on; data/folders.py reads them."""

import random
from collections.abc import Sequence

from gamut.codecs.chat import encode_turns
from gamut.codecs.mel import hear, patches, pieces
from gamut.codecs.prompts import TRANSCRIBE
from gamut.codecs.text import Tokenizer
from gamut.data.sources import Clip
from gamut.data.talks import TalkBatch, stacked


class Recordings:
    """Own recordings with transcripts, as the conversations in which the released model transcribes them."""

    def __init__(self, clips: Sequence[Clip], words: Tokenizer, prompt: str = TRANSCRIBE, seed: int = 0):
        self.clips, self.words, self.prompt, self.seed = clips, words, prompt, seed

    def batch(self, index: int, size: int) -> TalkBatch:
        """Conversation batch number ``index``: ``size`` recordings drawn at random."""
        rng = random.Random(f"recordings {self.seed} {index}")
        rows, mels, seconds = [], [], 0.0
        for clip in (self.clips[rng.randrange(len(self.clips))] for _ in range(size)):
            heard = [hear(piece, clip.rate) for piece in pieces(clip.wav, clip.rate)]
            sound = [{"type": "audio", "patches": [patches(mel.shape[-1]) for mel in heard]}]
            messages = [{"role": "system", "content": self.prompt}, {"role": "human", "content": sound}]
            rows.append(encode_turns([*messages, {"role": "assistant", "content": clip.text}], self.words))
            mels, seconds = mels + heard, seconds + len(clip.wav) / clip.rate
        return stacked(rows, mels, self.words, seconds)
