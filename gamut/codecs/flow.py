"""Step-Audio 2's flow: speech tokens and a voice to a log-mel.

    tokens (25 a second) -> conformer, two steps per token -> mu (50) -> a causal DiT's velocity, ten Euler steps -> mel

B batch · N tokens · T mel frames, ``factor`` per token · M mel bins · S channels of a speaker · R rows of the DiT, two
per utterance (with conditions, without). Source: fact sheet step_audio_2 §6.1-6.2, §6.5; fixture step_audio_2_flow.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from gamut.io.meta import meta
from gamut.io.pretrained import Plain, Pretrained
from gamut.nn.conformer import UpsamplingConformer, seen
from gamut.nn.conv_dit import ConvDiT, Past
from gamut.nn.linear import Linear
from gamut.nn.ode import cosine_times, euler, guided

NOISE_FRAMES = 30000  # of the start that all utterances share: ten minutes, as released


@dataclass(frozen=True)
class FlowConfig(Plain):
    """The released sizes. Widths are channels; ``dit_`` fields are the estimator's, the others the encoder's."""

    called = "flow"

    vocab: int = 6561
    speaker: int = 192
    mels: int = 80
    inputs: int = 512  # of a token's embedding
    width: int = 512
    layers: int = 6  # at the tokens' rate
    up_layers: int = 4  # at the mel's
    heads: int = 8
    ffn: int = 2048
    ahead: int = 3  # tokens that a token's step looks ahead
    factor: int = 2  # mel frames per token
    dit_width: int = 512
    dit_layers: int = 16
    dit_heads: int = 8
    dit_head_dim: int = 64
    dit_mlp: float = 4.0
    guidance: float = 0.7
    steps: int = 10  # of the solver
    chunk: int = 25  # tokens of a streamed piece
    keep: int = 100  # frames that a stream's estimator remembers beside as many as the prompt has
    mean: float = 0.0  # of the mels: what the flow makes is (mel - mean) / std. Released: 0 and 1
    std: float = 1.0

    def __post_init__(self):
        if self.up_layers < 1 or self.layers < 1 or self.width % self.heads or self.std <= 0:
            raise ValueError(f"a flow needs at least 1 layer and 1 up_layer, heads that divide width, std above 0; "
                             f"got layers={self.layers}, up_layers={self.up_layers}, width={self.width}, "
                             f"heads={self.heads}, std={self.std}")


@dataclass(frozen=True)
class Voice:
    """How an answer is to sound: a recording's tokens and mel, which the flow continues, and its speaker vector.

    ``ids_N`` and ``mel_MT`` may be empty: then the speaker vector alone gives the voice.
    """

    ids_N: Int[Tensor, " N"]
    mel_MT: Float[Tensor, "M T"]
    speaker_S: Float[Tensor, " S"]

    @classmethod
    def make(cls, ids_N: Tensor, mel_MT: Tensor, speaker_S: Tensor, factor: int = 2) -> "Voice":
        """With the mel cut, or its last frame repeated, to ``factor`` frames per token (fact sheet §6.1).

        Raises:
            ValueError: tokens without a mel.
        """
        frames, have = factor * len(ids_N), mel_MT.shape[1]
        if frames and not have:
            raise ValueError(f"a voice of {len(ids_N)} tokens needs a mel of about {frames} frames, got none")
        if have < frames:
            mel_MT = torch.cat([mel_MT, mel_MT[:, -1:].expand(-1, frames - have)], 1)
        return cls(ids_N, mel_MT[:, :frames], speaker_S)

    def fitting(self, speaker: int, mels: int, factor: int | None = None) -> "Voice":
        """Itself, where a flow of such sizes can speak in it; without ``factor`` a mel may have any length.

        Raises:
            ValueError: another width of the speaker vector, other mel bins, or a mel that is not its tokens'.
        """
        tokens, frames = len(self.ids_N), self.mel_MT.shape[-1]
        fits = frames == factor * tokens if factor else bool(frames) == bool(tokens)
        if not fits or len(self.speaker_S) != speaker or len(self.mel_MT) != mels:
            wanted = f"{factor * tokens}" if factor else "some" if tokens else "no"
            raise ValueError(f"a voice for this flow needs a speaker vector of {speaker} numbers and, for its {tokens} "
                             f"tokens, a mel of {mels} x {wanted} frames; got {len(self.speaker_S)} numbers and a mel "
                             f"of {len(self.mel_MT)} x {frames}; Voice.make cuts a mel to its tokens")
        return self

    @classmethod
    def of(cls, speaker_S: Tensor, mels: int = 80) -> "Voice":
        """A speaker vector alone."""
        return cls(torch.zeros(0, dtype=torch.long), speaker_S.new_zeros(mels, 0), speaker_S)


class Flow(Pretrained, nn.Module):
    """Tokens to mels, offline here; ``codecs/flow_stream.py`` does it piece by piece."""

    Config, inside = FlowConfig, staticmethod(meta)

    def __init__(self, config: FlowConfig = FlowConfig()):
        super().__init__()
        c = self.config = config
        self.embed, self.speaker = nn.Embedding(c.vocab, c.inputs), Linear(c.speaker, c.mels)
        self.encoder = UpsamplingConformer(
            c.inputs, c.width, c.layers, c.up_layers, c.heads, c.ffn, ahead=c.ahead, factor=c.factor
        )
        self.project = Linear(c.width, c.mels)
        self.estimator = ConvDiT(4 * c.mels, c.mels, c.dit_width, c.dit_layers, c.dit_heads, c.dit_head_dim, c.dit_mlp)

    def known(self, ids_BN: Int[Tensor, "*B N"]) -> Int[Tensor, "*B N"]:
        """The ids themselves. Raises ValueError for one outside [0, vocab), and for what is no whole number."""
        if ids_BN.dtype.is_floating_point or ids_BN.dtype == torch.bool:
            raise ValueError(f"speech tokens must be integers, got {ids_BN.dtype}")
        if ids_BN.numel() and not 0 <= int(ids_BN.min()) <= int(ids_BN.max()) < self.config.vocab:
            raise ValueError(f"speech tokens must lie in [0, {self.config.vocab}), got "
                             f"{int(ids_BN.min())}..{int(ids_BN.max())}; drop what is no code before the flow")
        return ids_BN

    def embedded(self, ids_BN: Int[Tensor, "B N"]) -> Float[Tensor, "B N I"]:
        """What the encoder takes. Raises ValueError for an id outside [0, vocab)."""
        return self.embed(self.known(ids_BN))

    def mu(
        self, ids_BN: Int[Tensor, "B N"], counts_BN: Bool[Tensor, "B N"] | None = None, chunk: int | None = None
    ) -> Float[Tensor, "B T M"]:
        """What the tokens say of each mel frame; see ``UpsamplingConformer`` for the mask and the chunk."""
        return self.project(self.encoder(self.embedded(ids_BN), counts_BN, chunk))

    def spoken_by(self, speaker_BS: Float[Tensor, "B S"]) -> Float[Tensor, "B M"]:
        """Speaker vectors as the estimator takes them; their length does not matter."""
        return self.speaker(F.normalize(speaker_BS, dim=1))

    def velocity(
        self,
        x_BTM: Float[Tensor, "B T M"],
        t: Float[Tensor, " B"] | Float[Tensor, ""],
        mu_BTM: Float[Tensor, "B T M"],
        speaker_BM: Float[Tensor, "B M"],
        prompt_BTM: Float[Tensor, "B T M"],
        mask: Bool[Tensor, "#B 1 #T T"] | None = None,
        pasts: Sequence[Past] | None = None,
    ) -> Float[Tensor, "B T M"]:
        """One call of the estimator. In half precision the velocity is still fp32, as the path it is added to."""
        speaker_BTM = speaker_BM[:, None].expand_as(mu_BTM)
        both = torch.cat([x_BTM.to(mu_BTM.dtype), mu_BTM, speaker_BTM, prompt_BTM], -1)
        return self.estimator(both, t, mask, pasts).float()

    def solve(self, x_BTM: Tensor, conditions: tuple[Tensor, Tensor, Tensor], *, mask: Tensor | None = None,
              pasts: Sequence[Sequence[Past]] | None = None, steps: int, guidance: float) -> Tensor:  # fmt: skip
        """From noise to (normalised) mels. ``conditions``: mu, speaker, prompt; ``pasts``: those of each step."""
        mu, speaker, prompt = (torch.stack([c, torch.zeros_like(c)], 1).flatten(0, 1) for c in conditions)
        mask = mask if mask is None or len(mask) == 1 else mask.repeat_interleave(2, 0)
        behind = iter(pasts or ())

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            twice = x.repeat_interleave(2, 0)  # the two rows of a stream lie together
            v = self.velocity(twice, t, mu, speaker, prompt, mask, next(behind, None)).unflatten(0, (-1, 2))
            return guided(v[:, 0], v[:, 1], guidance)

        return euler(velocity, x_BTM, cosine_times(steps))

    @torch.no_grad()
    def mels(
        self,
        ids: Sequence[Int[Tensor, " _"]],
        voices: Sequence[Voice],
        *,
        steps: int | None = None,
        guidance: float | None = None,
        noise_MT: Float[Tensor, "M _"] | None = None,
    ) -> list[Float[Tensor, "M _"]]:
        """Log-mels of utterances of any lengths, computed together; a row does not depend on the others.

        Args:
            ids: tokens of each. voices: one each.
            steps, guidance: of the solver; None: the config's.
            noise_MT: the start, shared by all rows; None: drawn from seed 0.
        Returns:
            ``factor`` frames per token (M, T), without the prompt.
        Raises:
            ValueError: an id out of range, not one voice each or one that does not fit, no tokens at all, a start that
                is too short.
        """
        c, dtype, device = self.config, self.project.weight.dtype, self.project.weight.device
        if len(ids) != len(voices) or not ids:
            raise ValueError(f"each utterance needs a voice, and there must be one; got {len(ids)} and {len(voices)}")
        for voice in voices:
            voice.fitting(c.speaker, c.mels, c.factor)
        rows = [torch.cat([voice.ids_N.to(device), row.to(device)]) for row, voice in zip(ids, voices, strict=True)]
        lengths_B = torch.tensor([len(row) for row in rows], device=device)
        if not int(lengths_B.max()):
            raise ValueError(f"a flow needs at least 1 token, got {len(ids)} utterances without any")
        ids_BN = pad_sequence(rows, batch_first=True)
        even = int(lengths_B.min()) == ids_BN.shape[1]
        counts_BN = None if even else torch.arange(ids_BN.shape[1], device=device) < lengths_B[:, None]
        T = ids_BN.shape[1] * c.factor
        prompt_BTM = torch.zeros(len(rows), T, c.mels, dtype=dtype, device=device)
        for b, voice in enumerate(voices):
            prompt_BTM[b, : voice.mel_MT.shape[1]] = (voice.mel_MT.T - c.mean) / c.std
        x_BTM = start(noise_MT, c.mels, 0, T).to(device).T.expand(len(rows), -1, -1)
        speaker_BM = self.spoken_by(torch.stack([voice.speaker_S for voice in voices]).to(prompt_BTM))
        mask = None if counts_BN is None else seen(T, counts_BN.repeat_interleave(c.factor, 1))
        x_BTM = self.solve(
            x_BTM, (self.mu(ids_BN, counts_BN), speaker_BM, prompt_BTM), mask=mask,
            steps=c.steps if steps is None else steps, guidance=c.guidance if guidance is None else guidance,
        )  # fmt: skip
        ends = [(v.mel_MT.shape[1], len(row) * c.factor) for v, row in zip(voices, rows, strict=True)]
        return [(x[begin:end].T * c.std + c.mean) for x, (begin, end) in zip(x_BTM, ends, strict=True)]


@functools.lru_cache(maxsize=4)
def _drawn(mels: int, seed: int) -> Tensor:
    with torch.inference_mode(False):
        return torch.randn(mels, NOISE_FRAMES, generator=torch.Generator().manual_seed(seed))


def start(noise_MT: Tensor | None, mels: int, first: int, frames: int) -> Float[Tensor, "M T"]:
    """Frames of the start of the paths, from ``first`` on: of ``noise_MT``, or of ten minutes drawn from seed 0,
    which begin again where they end. (The release draws them when it is built and does not save them.)

    Raises:
        ValueError: a ``noise_MT`` that is too short.
    """
    if noise_MT is None:
        at = torch.arange(first, first + frames) % NOISE_FRAMES
        return _drawn(mels, 0)[:, at]
    if noise_MT.shape[0] != mels or noise_MT.shape[1] < first + frames:
        raise ValueError(f"the start must be ({mels}, at least {first + frames}), got {tuple(noise_MT.shape)}")
    return noise_MT[:, first : first + frames]
