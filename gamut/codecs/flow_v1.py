"""Step-Audio's flow: dual-codebook tokens and a voice to a log-mel at 22.05 kHz.

    tokens (41.6 a second) -> conformer -> interpolated to the mel's rate (86.1) -> mu -> a U-Net's velocity -> mel

B batch · N tokens · T mel frames · M mel bins · S channels of a speaker
Source: fact sheet step_audio §4.1; fixture step_audio_flow.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from gamut.codecs.flow import Voice, start
from gamut.io.meta import meta
from gamut.io.pretrained import Plain, Pretrained
from gamut.losses.flow import Stats, dropped, flow_matching
from gamut.nn.conformer import Block, Entrance, check_length, positions
from gamut.nn.linear import Linear
from gamut.nn.ode import cosine, cosine_times, euler, guided
from gamut.nn.unet1d import UNet1d

SIGMA, DROP = 1e-6, 0.2  # of the path's end; share of rows trained without conditions


@dataclass(frozen=True)
class FlowV1Config(Plain):
    """The released sizes. Rates are per second; ``unet_`` fields are the estimator's, the others the encoder's."""

    called = "flow v1"

    vocab: int = 5120
    token_rate: float = 41.6
    mel_rate: float = 22050 / 256
    speaker: int = 192
    mels: int = 80
    inputs: int = 512  # of a token's embedding
    width: int = 512
    layers: int = 6
    heads: int = 8
    ffn: int = 2048
    unet_channels: tuple[int, ...] = (256, 256)
    unet_blocks: int = 4
    unet_middle: int = 12
    unet_heads: int = 8
    unet_head_dim: int = 64
    guidance: float = 0.7
    steps: int = 10


class Conformer(nn.Module):
    """One vector per token, each sees every other."""

    def __init__(self, inputs: int, width: int, layers: int, heads: int, ffn: int):
        super().__init__()
        self.entrance, self.heads = Entrance(inputs, width), heads
        self.blocks = nn.ModuleList(Block(width, heads, ffn) for _ in range(layers))
        self.norm = nn.LayerNorm(width, 1e-5)

    def forward(
        self, x_BNI: Float[Tensor, "B N I"], mask: Bool[Tensor, "#B 1 #N N"] | None = None
    ) -> Float[Tensor, "B N D"]:
        """``mask`` says which keys count."""
        check_length(len(x_BNI), self.heads, x_BNI.shape[1], x_BNI)
        x, N = self.entrance(x_BNI), x_BNI.shape[1]
        table = positions(N, N, x.shape[-1], x)
        for block in self.blocks:
            x = block(x, table, mask)
        return self.norm(x)


class LengthRegulator(nn.Module):
    """Linear interpolation to a number of frames, then convolutions."""

    def __init__(self, width: int, layers: int = 4):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(width, width, 3, padding=1) for _ in range(layers))
        self.norms = nn.ModuleList(nn.GroupNorm(1, width) for _ in range(layers))
        self.out = nn.Conv1d(width, width, 1)

    def forward(self, parts_BMN: Sequence[Tensor], frames: Sequence[int]) -> Float[Tensor, "B M T"]:
        """Each part is stretched to its own number of frames; those without tokens are left out."""
        pairs = [(x, count) for x, count in zip(parts_BMN, frames, strict=True) if x.shape[-1] and count]
        x = torch.cat([F.interpolate(x, size=count, mode="linear") for x, count in pairs], -1)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.mish(norm(conv(x)))
        return self.out(x)


class FlowV1(Pretrained, nn.Module):
    """Tokens to mels, a whole utterance at a time: the released model has no streaming form."""

    Config, inside = FlowV1Config, staticmethod(meta)

    def __init__(self, config: FlowV1Config = FlowV1Config()):
        super().__init__()
        c = self.config = config
        self.embed, self.speaker = nn.Embedding(c.vocab, c.inputs), Linear(c.speaker, c.mels)
        self.encoder = Conformer(c.inputs, c.width, c.layers, c.heads, c.ffn)
        self.project, self.regulator = Linear(c.width, c.mels), LengthRegulator(c.mels)
        self.estimator = UNet1d(
            4 * c.mels, c.mels, c.unet_channels, blocks=c.unet_blocks, middle=c.unet_middle, heads=c.unet_heads,
            head_dim=c.unet_head_dim,
        )  # fmt: skip

    def frames(self, tokens: int) -> int:
        """Mel frames of so many tokens."""
        return int(tokens / self.config.token_rate * self.config.mel_rate)

    def mu(self, ids_BN: Int[Tensor, "B N"], prompt: int = 0, prompt_frames: int = 0) -> Float[Tensor, "B M T"]:
        """What the tokens say of each frame; the first ``prompt`` tokens are stretched to ``prompt_frames``.

        Raises:
            ValueError: an id outside [0, vocab), or too few tokens for a frame.
        """
        if ids_BN.numel() and not 0 <= int(ids_BN.min()) <= int(ids_BN.max()) < self.config.vocab:
            raise ValueError(f"speech tokens must lie in [0, {self.config.vocab}), got "
                             f"{int(ids_BN.min())}..{int(ids_BN.max())}")
        counts = prompt_frames, self.frames(ids_BN.shape[1] - prompt)
        if counts[1] < 1:
            raise ValueError(f"a flow needs tokens for at least one mel frame, got {ids_BN.shape[1] - prompt} tokens")
        x_BMN = self.project(self.encoder(self.embed(ids_BN))).transpose(1, 2)
        return self.regulator((x_BMN[..., :prompt], x_BMN[..., prompt:]), counts)

    def spoken_by(self, speaker_BS: Float[Tensor, "B S"]) -> Float[Tensor, "B M"]:
        """Speaker vectors as the estimator takes them; their length does not matter."""
        return self.speaker(F.normalize(speaker_BS, dim=1))

    def velocity(
        self,
        x_BMT: Float[Tensor, "B M T"],
        t_B: Float[Tensor, " B"],
        mu_BMT: Float[Tensor, "B M T"],
        speaker_BM: Float[Tensor, "B M"],
        prompt_BMT: Float[Tensor, "B M T"],
        mask_B1T: Float[Tensor, "#B 1 T"],
    ) -> Float[Tensor, "B M T"]:
        """One call of the estimator."""
        speaker_BMT = speaker_BM[..., None].expand_as(mu_BMT)
        return self.estimator(torch.cat([x_BMT, mu_BMT, speaker_BMT, prompt_BMT], 1), t_B, mask_B1T)

    @torch.no_grad()
    def mel(
        self, ids_N: Int[Tensor, " N"], voice: Voice, *, steps: int | None = None, guidance: float | None = None,
        noise_MT: Float[Tensor, "M _"] | None = None,
    ) -> Float[Tensor, "M T"]:
        """Log-mel of one utterance, without the prompt.

        Args:
            voice: its mel may have any length: its tokens are stretched to it.
            steps, guidance: of the solver; None: the config's. noise_MT: the start; None: drawn from seed 0.
        Raises:
            ValueError: as of ``mu``, or a voice that does not fit.
        """
        voice.fitting(self.config.speaker, self.config.mels)
        c, weight, prompt = self.config, self.project.weight, voice.mel_MT.shape[1]
        mu = self.mu(torch.cat([voice.ids_N, ids_N])[None].to(weight.device), len(voice.ids_N), prompt)
        shown = F.pad(voice.mel_MT.to(weight), (0, mu.shape[-1] - prompt))[None]
        conditions = mu, self.spoken_by(voice.speaker_S[None].to(weight)), shown
        mu, speaker, shown = (torch.cat([x, torch.zeros_like(x)]) for x in conditions)
        mask, scale = torch.ones_like(mu[:1, :1]), c.guidance if guidance is None else guidance

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            v = self.velocity(x.expand(2, -1, -1), t.expand(2), mu, speaker, shown, mask)
            return guided(v[:1], v[1:], scale)

        x = start(noise_MT, c.mels, 0, mu.shape[-1]).to(weight)[None]
        return euler(velocity, x, cosine_times(c.steps if steps is None else steps))[0, :, prompt:]

    def loss(
        self,
        mel_BMT: Float[Tensor, "B M T"],
        mu_BMT: Float[Tensor, "B M T"],
        speaker_BM: Float[Tensor, "B M"],
        prompt_BMT: Float[Tensor, "B M T"],
        mask_B1T: Float[Tensor, "B 1 T"],
        *,
        uniform_B: Float[Tensor, " B"] | None = None,
        drop_B: Float[Tensor, " B"] | None = None,
        noise: Float[Tensor, "B M T"] | None = None,
    ) -> tuple[Float[Tensor, ""], Stats]:
        """The estimator's training loss; all draws may be given (uniform ones before their warp)."""
        rows, device = len(mel_BMT), mel_BMT.device
        uniform_B = torch.rand(rows, device=device) if uniform_B is None else uniform_B
        drop_B = torch.rand(rows, device=device) if drop_B is None else drop_B
        mu, speaker, shown = dropped(drop_B > DROP, mu_BMT, speaker_BM, prompt_BMT)
        return flow_matching(
            lambda x, t: self.velocity(x, t, mu, speaker, shown, mask_B1T), mel_BMT, cosine(uniform_B), noise,
            mask=mask_B1T, sigma=SIGMA,
        )  # fmt: skip
