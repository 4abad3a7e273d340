"""How a model hears and speaks in tokens: a tokenizer, the way back to sound, and voices out of recordings.

    codec = SpeechCodec.from_pretrained(folder)
    codes = codec.encode(wav_BT)                               # sound at codec.hears Hz
    wav = codec.decode(codes, voice=codec.voice_of(clip, rate))  # at codec.rate Hz, in the voice of the clip

B batch · N tokens · T samples · S channels of a speaker
Source: fact sheet step_audio_2 §6.1.
"""

import warnings
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gamut.codecs.fbank import fbank
from gamut.codecs.flow import Voice
from gamut.codecs.flow_stream import FlowState
from gamut.codecs.mel import WHISPER_RATE
from gamut.codecs.s3_tokenizer import S3Tokenizer
from gamut.codecs.timbre import timbre
from gamut.codecs.token2wav import Token2Wav, WavStream
from gamut.io.files import atomic_dir
from gamut.io.media import one_channel, resample
from gamut.models.speaker import SpeakerNet

SHORTEST, LONGEST = 0.5, 10.0  # s of a recording that a voice is made of; ours
KEPT = 2  # voices read: the usual one, and one that was found. At the released sizes 66 MB a second of recording
TOKENIZER, SPEAKER = "tokenizer", "speaker"  # folders inside a converted token2wav folder


@dataclass(frozen=True)
class SpeechCodec:
    """Sound to tokens and back. ``network`` tells speakers apart; without one a voice is its long-term spectrum, as
    far as the flow was trained on that, or a vector made elsewhere."""

    tokenizer: S3Tokenizer
    wave: Token2Wav
    network: SpeakerNet | None = None
    _read: list[tuple[Voice, FlowState]] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self):
        if self.tokenizer.vocab > self.wave.vocab:
            raise ValueError(f"the tokenizer has {self.tokenizer.vocab} tokens, the flow knows {self.wave.vocab}; take "
                             f"both from one release")  # fmt: skip

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "SpeechCodec":
        """From a folder that ``save_pretrained`` or ``gamut convert`` (of a token2wav folder) wrote.

        Raises:
            ValueError: a folder without a tokenizer, with the way to get it.
        """
        path = Path(path)
        wave = Token2Wav.from_pretrained(path)
        if not (path / TOKENIZER).is_dir():
            raise ValueError(f"'{path}' has no {TOKENIZER}; convert a token2wav folder with its .onnx files, or one "
                             f"alone: gamut convert FILE.onnx {path / TOKENIZER}")  # fmt: skip
        network = SpeakerNet.from_pretrained(path / SPEAKER) if (path / SPEAKER).is_dir() else None
        return cls(S3Tokenizer.from_pretrained(path / TOKENIZER).eval(), wave.eval(), network)

    def save_pretrained(self, path: str | Path, card: str = "") -> Path:
        """The folder that ``from_pretrained`` reads."""
        with atomic_dir(path) as part:
            self.tokenizer.save_pretrained(part / TOKENIZER, card=card)
            if self.network is not None:
                self.network.save_pretrained(part / SPEAKER, card=card)
            for file in self.wave.save_pretrained(part / "wave", card=card).iterdir():
                file.rename(part / file.name)
            (part / "wave").rmdir()
        return Path(path)

    @property
    def vocab(self) -> int:
        return self.wave.vocab

    @property
    def channels(self) -> int:
        return self.wave.channels

    @property
    def stride(self) -> tuple[int, ...]:
        """Samples at ``rate`` per token."""
        return self.wave.stride

    @property
    def causal(self) -> bool:
        return False

    @property
    def voices(self) -> dict[str, Voice]:
        """Those that came with it, by name; the first is the usual one."""
        return self.wave.voices

    @property
    def hears(self) -> int:
        """Hz of what ``encode`` takes."""
        return WHISPER_RATE

    @property
    def rate(self) -> int:
        """Hz of what ``decode`` gives."""
        return self.wave.rate

    def to(self, device: torch.device | str) -> "SpeechCodec":
        """Its networks there, in place; what ``decode``, a stream and ``voice_of`` give is on the CPU all the same."""
        for part in filter(None, (self.tokenizer, self.wave, self.network)):
            part.to(device)
        self._read.clear()
        return self

    def encode(self, signal: Float[Tensor, "B T"]) -> Int[Tensor, "B N"]:
        return self.tokenizer.encode(signal)

    def decode(self, latent: Int[Tensor, "B N"], voice: Voice | None = None) -> Float[Tensor, "B T"]:
        return self.wave.decode(latent, voice)

    def streaming(self, batch: int = 1, voice: Voice | None = None) -> AbstractContextManager[WavStream]:
        """See ``Token2Wav.open``. What the flow has read of the last voices is kept: a further answer in one of them
        does not wait for that. (Weights must not change in between.)"""
        voice = self.wave.chosen(voice)
        found = [kept for kept in self._read if _same(kept[0], voice)] or [(voice, self.wave.read(voice))]
        self._read[:] = [*found, *(kept for kept in self._read if kept is not found[0])][:KEPT]
        return self.wave.streaming(batch, voice=found[0][1])

    @torch.no_grad()
    def voice_of(self, wav_T: Float[Tensor, " T"], rate: int, vector: Float[Tensor, " S"] | None = None) -> Voice:
        """The voice of a recording at ``rate`` Hz; ``vector`` stands for what a network would say of the speaker.

        The flow goes on from the recording, in time and memory; of a long one the first 10 s are taken, with a warning.
        Raises:
            ValueError: a recording of less than half a second or with NaN, a vector that does not fit the flow, or no
                way to one.
        """
        flow = self.wave.config.flow
        wav_T = one_channel(wav_T)
        if len(wav_T) < SHORTEST * rate:
            raise ValueError(f"a voice needs a recording of at least {SHORTEST} s, got {len(wav_T) / rate:.2f} s")
        if len(wav_T) > LONGEST * rate:
            warnings.warn(f"a voice is made of the first {LONGEST:g} s of a recording; this one has "
                          f"{len(wav_T) / rate:.1f} s, the rest is left out", stacklevel=2)  # fmt: skip
            wav_T = wav_T[: int(LONGEST * rate)]
        sound = resample(wav_T, rate, self.rate)
        heard = resample(wav_T, rate, self.hears)
        if vector is not None:
            told = vector
        elif self.network is not None:
            like = next(self.network.parameters())
            told = self.network(fbank(heard, centred=True)[None].to(like))[0].cpu()
        else:
            return self._timbre(sound)
        if len(told) != flow.speaker:
            raise ValueError(f"this flow takes speaker vectors of {flow.speaker} numbers, got {len(told)}")
        return self.wave.voice(self.encode(heard[None])[0].cpu(), sound, told)

    def _timbre(self, sound: Float[Tensor, " T"]) -> Voice:
        vector = timbre(self.wave.hift.encode(sound[None]))[0]
        if len(vector) != self.wave.config.flow.speaker:
            raise ValueError(f"this codec was trained with speaker vectors of {self.wave.config.flow.speaker} numbers "
                             f"and has no {SPEAKER} network; gamut convert campplus.onnx FOLDER/{SPEAKER}, or pass "
                             f"vector=…")  # fmt: skip
        return Voice.of(vector)


def _same(a: Voice, b: Voice) -> bool:
    return a is b or all(torch.equal(vars(a)[name].cpu(), part.cpu()) for name, part in vars(b).items())
