"""Step-Audio 2's speech tokens to sound: flow, then vocoder; whole, or while the tokens come.

    tokens (25 a second) -> flow -> log-mel (50) -> HiFT -> 24 kHz

B streams in step · N tokens · M mel bins · F mel frames · T samples · S channels of a speaker
Source: fact sheet step_audio_2 §6; sample counts §6.3.
"""

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gamut.codecs.flow import Flow, FlowConfig, Voice
from gamut.codecs.flow_stream import FlowState, FlowStream, Rules, begin, together, unbroken
from gamut.codecs.hift import HiFT, HiFTConfig
from gamut.codecs.hift_stream import streaming
from gamut.io.folders import read_notes, read_tensors, write_tensors
from gamut.io.meta import meta
from gamut.io.pretrained import Plain, Pretrained

VOICES = "voices.safetensors"  # beside the weights: NAME.ids, NAME.mel and NAME.speaker of each voice
ORDER = "voices"  # among that file's notes: the names, the first is the default


@dataclass(frozen=True)
class Token2WavConfig(Plain):
    """Both halves; what they share must agree."""

    called = "token2wav"
    flow: FlowConfig = field(default_factory=FlowConfig)
    hift: HiFTConfig = field(default_factory=HiFTConfig)

    def __post_init__(self):
        if self.flow.mels != self.hift.mels:
            raise ValueError(f"flow and vocoder must have the same mels, got {self.flow.mels} and {self.hift.mels}")


class Token2Wav(Pretrained, nn.Module):
    """A decoder of speech tokens in a voice. ``voices`` are those that came with it, by name; the first is the default.

    Tokens of sound come from ``S3Tokenizer``, speaker vectors from elsewhere: what this codec cannot do is ``encode``.
    """

    Config, inside = Token2WavConfig, staticmethod(meta)

    def __init__(self, config: Token2WavConfig = Token2WavConfig()):
        super().__init__()
        self.voices = dict[str, Voice]()
        self.flow, self.hift = Flow(config.flow), HiFT(config.hift)
        self.stride = (config.hift.hop * config.flow.factor,)
        self.channels, self.vocab, self.causal, self.rate = 1, config.flow.vocab, False, config.hift.rate

    @property
    def config(self) -> Token2WavConfig:
        """Of both halves as they are now: a folded vocoder says so."""
        return Token2WavConfig(self.flow.config, self.hift.config)

    @classmethod
    def of(cls, flow: Flow, hift: HiFT, voices: dict[str, Voice] | None = None) -> "Token2Wav":
        """Of two halves that are there; they are not copied."""
        with meta():
            codec = cls(Token2WavConfig(flow.config, hift.config))
        codec.flow, codec.hift, codec.voices = flow, hift, dict(voices or {})
        return codec

    @classmethod
    def from_pretrained(cls, path: str | Path, dtype: torch.dtype | None = torch.float32) -> "Token2Wav":
        """See ``Pretrained``; voices are read where there are any."""
        codec = super().from_pretrained(path, dtype)
        if (Path(path) / VOICES).is_file():
            codec.voices = read_voices(Path(path) / VOICES, codec.config.flow)
        return codec

    def save_pretrained(self, path: str | Path, card: str = "", files: dict | None = None) -> Path:
        """See ``Pretrained``; the voices are written too."""
        saved = super().save_pretrained(path, card, files)
        if self.voices:
            write_voices(saved / VOICES, self.voices)
        return saved

    def voice(
        self, ids_N: Int[Tensor, " N"], wav_T: Float[Tensor, " T"], speaker_S: Float[Tensor, " S"]
    ) -> Voice:
        """The voice of a recording at ``rate``, given its tokens and its speaker vector (fact sheet §6.1)."""
        return Voice.make(ids_N, self.hift.encode(wav_T[None])[0], speaker_S, self.config.flow.factor)

    def chosen(self, voice: Voice | str | None) -> Voice:
        """A voice by name; None: the default.

        Raises:
            ValueError: no voice of that name, or no default.
        """
        if isinstance(voice, Voice):
            return voice
        if voice is None and self.voices:
            return next(iter(self.voices.values()))
        if voice is None or voice not in self.voices:
            there = ", ".join(self.voices) or "none: make one with Token2Wav.voice, or Voice.of a speaker vector"
            wanted = "default voice" if voice is None else f"voice {voice!r}"
            raise ValueError(f"no {wanted}; there is {there}")
        return self.voices[voice]

    def encode(self, signal: Float[Tensor, "B T"]) -> Int[Tensor, "B N"]:
        """Not this codec's half.

        Raises:
            ValueError: always; it names the one that does.
        """
        raise ValueError("Token2Wav only decodes; S3Tokenizer.encode makes the tokens, of sound at 16 kHz")

    @torch.no_grad()
    def decode(
        self, latent: Int[Tensor, "B N"], voice: Voice | str | None = None, *, steps: int | None = None
    ) -> Float[Tensor, "B T"]:
        """Tokens to sound in [-0.99, 0.99], ``stride[0]`` samples each, with everything in view; it is on the CPU.

        Args:
            voice: one for all rows; None: the default. steps: of the flow's solver; None: its config's.
        """
        if not latent.shape[1]:
            return torch.zeros(len(latent), 0)
        mels = self.flow.mels(list(latent), [self.chosen(voice)] * len(latent), steps=steps)
        return self.hift.decode(torch.stack(mels)).cpu()

    @contextmanager
    def streaming(
        self, batch: int = 1, chunk: int | Sequence[int] | None = None,
        voice: Voice | str | FlowState | None = None, *, steps: int | None = None,
    ) -> Iterator["WavStream"]:
        """A decoder that takes tokens as they come; see ``open``."""
        yield self.open(batch, chunk, voice, steps=steps)

    def open(
        self, batch: int = 1, chunk: int | Sequence[int] | None = None,
        voice: Voice | str | FlowState | None = None, *, steps: int | None = None,
    ) -> "WavStream":
        """``batch`` streams in step; those that are not are opened apart and decoded by ``decode_together``.

        Args:
            chunk: tokens of a piece, or of the first, second ... piece; None: the flow's 25, a second of sound.
            voice: its prompt is read here, which takes a while; what ``read`` gives is read already.
            steps: of the flow's solver; None: its config's, or those by which the voice was read.
        Raises:
            ValueError: no such voice, or other steps than those by which it was read.
        """
        if isinstance(voice, FlowState) and steps not in (None, voice.rules.steps):
            raise ValueError(f"this voice was read for steps={voice.rules.steps}, got steps={steps}; read it for "
                             f"those: read(voice, steps={steps})")
        state = voice if isinstance(voice, FlowState) else self.read(voice, steps=steps)
        return WavStream(self, [copy.deepcopy(state) for _ in range(batch)], chunk)

    def read(self, voice: Voice | str | None = None, *, steps: int | None = None) -> FlowState:
        """A voice whose prompt the flow has read, for any number of streams."""
        return begin(self.flow, self.chosen(voice), Rules.of(self.flow, steps=steps))


class WavStream:
    """Tokens in, sound out; what comes out depends on the chunks alone, never on how the tokens were cut into calls.

    At 25 tokens a chunk the released sizes give 20,160 samples first, then 24,000, and the rest with ``flush``:
    ``stride`` samples per token in all.
    """

    def __init__(self, codec: Token2Wav, states: Sequence[FlowState], chunk: int | Sequence[int] | None = None):
        self.flow = FlowStream(codec.flow, states, chunk)
        self.hift = streaming(codec.hift, len(states), chunk=None)  # a piece of the flow is a piece of the vocoder

    def decode(self, ids_BN: Int[Tensor, "B N"]) -> Float[Tensor, "B T"]:
        """Take more tokens, return the sound that is ready (often none)."""
        return decode_together([self], [ids_BN])[0]

    def flush(self) -> Float[Tensor, "B T"]:
        """The sound of the tokens still held back, and what was held back to be faded into more.

        More tokens may follow, as when an answer speaks, writes, and speaks again: the flow goes on in what it has
        behind it, chunks are counted on, and the vocoder begins anew. What has nothing to do with it needs ``open``.
        """
        return decode_together([self], [self.flow.ids_BN[:, :0]], end=True)[0]


@torch.no_grad()
def decode_together(
    streams: Sequence[WavStream], ids: Sequence[Int[Tensor, "_ _"]], end: bool = False
) -> list[Float[Tensor, "_ _"]]:
    """``decode`` (with ``end``: and ``flush``) of streams that need not be in step, the flow's work in batches;
    the sound is on the CPU, wherever it was made."""
    made = together([stream.flow for stream in streams], ids, end)
    sound = []
    with unbroken([stream.flow for stream in streams]):
        for stream, mels in zip(streams, made, strict=True):
            parts = [stream.hift.decode(mel) for mel in mels]
            sound.append(torch.cat([*parts, stream.hift.flush()] if end else parts, 1).cpu())
    return sound


def read_voices(file: str | Path, flow: FlowConfig | None = None) -> dict[str, Voice]:
    """Voices of a safetensors file, in the order they were written; of an older file, in that of their names.

    Args:
        flow: what they are for; None: anything.
    Raises:
        ValueError: not such a file, one of a voice's three tensors is missing, or a voice does not fit the flow.
    """
    tensors = read_tensors(file)
    order = json.loads(read_notes(file).get(ORDER, "[]"))
    names = list(dict.fromkeys([*order, *sorted({name.rpartition(".")[0] for name in tensors})]))
    if missing := [f"{n}.{part}" for n in names for part in ("ids", "mel", "speaker") if f"{n}.{part}" not in tensors]:
        raise ValueError(f"'{file}' holds no voices: {', '.join(missing[:8])} missing")
    voices = {n: Voice(tensors[f"{n}.ids"], tensors[f"{n}.mel"], tensors[f"{n}.speaker"]) for n in names}
    for name, voice in voices.items() if flow else ():
        try:
            voice.fitting(flow.speaker, flow.mels, flow.factor)
        except ValueError as error:
            raise ValueError(f"voice {name!r} of '{file}': {error}") from None
    return voices


def write_voices(file: str | Path, voices: dict[str, Voice]) -> None:
    """The inverse of ``read_voices``."""
    parts = {"ids": "ids_N", "mel": "mel_MT", "speaker": "speaker_S"}
    tensors = {f"{n}.{part}": getattr(voice, field) for n, voice in voices.items() for part, field in parts.items()}
    write_tensors(Path(file), tensors, {ORDER: json.dumps(list(voices))})
