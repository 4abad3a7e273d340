"""A language model that hears: audio encoder, adaptor, and their vectors in place of the ``<audio_patch>`` tokens.

    model = Omni.from_pretrained("path/of/Step-Audio-2-mini")     # the released folder, or ours
    logits_BTV = model(ids_BT, mels_NMF, lens_N)

B rows · T tokens · D width of the language model · N clips, in the row-major order of their <audio_start> · P patches
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gamut.io.meta import meta
from gamut.io.pretrained import Plain, Pretrained
from gamut.models.audio_encoder import AudioEncoder, AudioEncoderConfig
from gamut.models.decoder import Decoder, LMConfig
from gamut.nn.cache import Cache


@dataclass(frozen=True)
class OmniConfig(Plain):
    """The defaults are Step-Audio 2 mini's (fact sheet §3-4.1)."""

    lm: LMConfig
    audio: AudioEncoderConfig = field(default_factory=AudioEncoderConfig)
    adaptor_hidden: int = 2048
    adaptor_kernel: int = 3  # encoder steps
    adaptor_stride: int = 2  # encoder steps per patch: 25 -> 12.5 a second
    audio_start_id: int = 151688
    audio_end_id: int = 151689
    audio_patch_id: int = 151690


class Adaptor(nn.Module):
    """Encoder vectors to the language model's width, one for every ``stride``."""

    def __init__(self, audio: int, hidden: int, width: int, kernel: int, stride: int):
        super().__init__()
        self.stride, self.kernel = stride, kernel
        self.conv = nn.Conv1d(audio, audio, kernel, stride=stride, padding=1)
        self.up, self.down = nn.Linear(audio, hidden), nn.Linear(hidden, width)

    def lengths(self, lens_N: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
        return (lens_N + 2 - self.kernel) // self.stride + 1

    def forward(
        self, x_NTA: Float[Tensor, "N T A"], lens_N: Int[Tensor, " N"]
    ) -> tuple[Float[Tensor, "N P D"], Int[Tensor, " N"]]:
        y_NPA = F.gelu(self.conv(x_NTA.transpose(1, 2))).transpose(1, 2)
        return self.down(F.relu(self.up(y_NPA))), self.lengths(lens_N)


class Omni(Pretrained, nn.Module):
    """Hears continuous features, reads and writes tokens (text and audio codes share one vocabulary)."""

    Config, inside = OmniConfig, staticmethod(meta)

    def __init__(self, config: OmniConfig):
        super().__init__()
        c = self.config = config
        self.encoder = AudioEncoder(c.audio)
        self.adapter = Adaptor(c.audio.width, c.adaptor_hidden, c.lm.width, c.adaptor_kernel, c.adaptor_stride)
        self.lm = Decoder(c.lm)

    def features(
        self, mels_NMF: Float[Tensor, "N M F"], lens_N: Int[Tensor, " N"]
    ) -> tuple[Float[Tensor, "N P D"], Int[Tensor, " N"]]:
        """What each clip becomes in the language model, and how many patches each has.

        Args:
            mels_NMF, lens_N: as ``codecs.mel.pad_mels`` returns them (lens = frames minus 2).
        """
        return self.adapter(*self.encoder(mels_NMF, lens_N))

    def embed(
        self,
        ids_BT: Int[Tensor, "B T"],
        mels_NMF: Float[Tensor, "N M F"] | None = None,
        lens_N: Int[Tensor, " N"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Token embeddings, with the n-th clip's vectors in place of those right after the n-th ``<audio_start>``.

        Raises:
            ValueError: as many clips as ``<audio_start>`` tokens, and as many ``<audio_patch>`` tokens behind each as
                its clip has patches, must be there.
        """
        x_BTD = self.lm.embed(ids_BT)
        start_N = (ids_BT.flatten() == self.config.audio_start_id).nonzero()[:, 0]
        clips = 0 if mels_NMF is None else len(mels_NMF)
        if len(start_N) != clips:
            raise ValueError(f"got {clips} clips for {len(start_N)} <audio_start> tokens in {len(ids_BT)} rows; give "
                             f"one clip per <audio_start>, in the order of rows, then of tokens")
        if mels_NMF is None:
            return x_BTD
        if lens_N is None:
            raise ValueError(f"{clips} clips came without lens_N; give the usable mel frames of each (pad_mels)")
        x_NPD, count_N = self.features(mels_NMF.to(x_BTD.device), lens_N)
        self._check_patches(ids_BT, start_N, count_N)
        step_P = torch.arange(x_NPD.shape[1], device=start_N.device)
        used_NP = step_P < count_N.to(start_N.device)[:, None]
        at_K = (start_N[:, None] + 1 + step_P)[used_NP]
        return x_BTD.flatten(0, 1).index_copy(0, at_K, x_NPD[used_NP].to(x_BTD.dtype)).view_as(x_BTD)

    def _check_patches(self, ids_BT: Tensor, start_N: Tensor, count_N: Tensor) -> None:
        """Each clip's patches are there, neither more nor fewer, and in the row of their <audio_start>."""
        width, patch = ids_BT.shape[1], (ids_BT == self.config.audio_patch_id).tolist()
        for n, (start, count) in enumerate(zip(start_N.tolist(), count_N.tolist(), strict=True)):
            behind = patch[start // width][start % width + 1 :]
            found = behind.index(False) if False in behind else len(behind)
            if found != count:
                raise ValueError(f"clip {n} has {count} patches, but {found} <audio_patch> tokens follow its "
                                 f"<audio_start> (row {start // width}, token {start % width}); write as many as "
                                 f"codecs.mel.patches(frames) says")

    def prompt(
        self,
        ids: Sequence[int],
        mels_NMF: Float[Tensor, "N M F"] | None = None,
        lens_N: Int[Tensor, " N"] | None = None,
    ) -> Float[Tensor, "T D"]:
        """Embeddings of one prompt, for ``generate.ar.Prompt(ids, embeds)``; no gradient."""
        device = self.lm.norm.weight.device
        with torch.no_grad():
            return self.embed(torch.tensor([list(ids)], device=device), mels_NMF, lens_N)[0]

    def forward(
        self,
        ids_BT: Int[Tensor, "B T"],
        mels_NMF: Float[Tensor, "N M F"] | None = None,
        lens_N: Int[Tensor, " N"] | None = None,
        *,
        mask_BT: Bool[Tensor, "B T"] | Int[Tensor, "B T"] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "B T V"]:
        """Logits of every position; mask_BT is 1 for tokens, 0 for right padding."""
        return self.lm.head(self.hidden(ids_BT, mels_NMF, lens_N, mask_BT=mask_BT, cache=cache))

    def hidden(
        self, ids_BT: Int[Tensor, "B T"], mels_NMF: Float[Tensor, "N M F"] | None = None,
        lens_N: Int[Tensor, " N"] | None = None, **given: Any,
    ) -> Float[Tensor, "B T D"]:
        """What the head sees; ``given`` as of `Decoder.hidden`."""
        return self.lm.hidden(embeds_BTD=self.embed(ids_BT, mels_NMF, lens_N), **given)
