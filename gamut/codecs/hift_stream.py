"""A HiFT that speaks while mels arrive: frames heard twice, a source that goes on, and cross-faded joints.

B batch · M mel bins · F mel frames · T samples
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from gamut.codecs.hift import HiFT
from gamut.nn.vocoder import Noise

Decode = Callable[[Tensor, Noise, Tensor | None], tuple[Tensor, Tensor]]


class HiFTStream:
    """Decodes ``chunk`` frames at a time behind the last ``context`` ones, and holds back the end of what it has made
    until it can be faded into the next chunk. ``streaming`` opens one.

    What is returned depends on ``chunk`` alone, never on how frames were cut into calls (with ``chunk`` None each call
    is one, the first of at least ``context`` frames). The lengths of all pieces add up to F * hop, but the sound is not
    the offline one: nothing is made with the frames behind its chunk in view, and the phase of a chunk's source begins
    anew behind the part that was carried over.

    Source: fact sheet step_audio_2 §6.3 (repo: token2wav.py); fixture hift_24k_stream.

    Args:
        decode: (mel, noise, beginning of the source) -> (sound, source).
        draw: (frames, number of the chunk) -> noise.
        silence: a mel of no frames, (B, M, 0).
    """

    def __init__(
        self, decode: Decode, draw: Callable[[int, int], Noise], hop: int, silence: Tensor, chunk: int | None,
        context: int,
    ):  # fmt: skip
        if context < 1 or (chunk is not None and chunk < context):
            raise ValueError(f"a vocoder's stream needs 1 <= context <= chunk frames, got context {context}, "
                             f"chunk {chunk}")
        self._decode, self._draw, self.chunk, self.context, self.seam = decode, draw, chunk, context, context * hop
        self.rise_T = torch.hamming_window(2 * self.seam, periodic=False)[: self.seam].to(silence)
        self.waiting_BMF = silence
        self._begin(silence)

    def _begin(self, silence: Tensor) -> None:
        self.done = 0  # chunks
        self.mel_BMF, self.source_BT, self.tail_BT = silence, silence[:, 0], silence[:, 0]

    def __enter__(self) -> "HiFTStream":
        return self

    def __exit__(self, *problem: object) -> None:
        pass

    def decode(self, mel_BMF: Float[Tensor, "B M F"], noise: Noise | None = None) -> Float[Tensor, "B T"]:
        """Take more frames, return the sound that is ready (often none).

        Args:
            noise: of the source, for the cached and the new frames; only where every call is a chunk.
        """
        if noise is not None and self.chunk is not None:
            raise ValueError("a stream that cuts its own chunks draws its own noise; open it with chunk=None to give "
                             "noise")
        self.waiting_BMF = torch.cat([self.waiting_BMF, mel_BMF], -1)
        ready = []
        while self.waiting_BMF.shape[-1] >= (self.chunk or (1 if self.done else self.context)):
            ready.append(self._next(self.chunk or self.waiting_BMF.shape[-1], noise))
        return torch.cat(ready, -1) if ready else self.tail_BT[:, :0]

    def flush(self) -> Float[Tensor, "B T"]:
        """The sound held back, with that of frames too few for a chunk. The stream then begins anew."""
        rest = self.waiting_BMF.shape[-1]
        made = [self._next(rest, None)] if rest else []
        sound = torch.cat([*made, self.tail_BT], -1)
        self._begin(self.waiting_BMF)
        return sound

    @torch.no_grad()
    def _next(self, count: int, noise: Noise | None) -> Tensor:
        fresh, self.waiting_BMF = self.waiting_BMF[..., :count], self.waiting_BMF[..., count:]
        mel = torch.cat([self.mel_BMF, fresh], -1)
        noise = noise or self._draw(mel.shape[-1], self.done)
        wav, source = self._decode(mel, noise, self.source_BT if self.done else None)
        if self.done:
            wav[:, : self.seam] = wav[:, : self.seam] * self.rise_T + self.tail_BT * self.rise_T.flip(0)
        cut = max(0, wav.shape[-1] - self.seam)
        self.mel_BMF, self.source_BT, self.tail_BT = mel[..., -self.context :], source[:, -self.seam :], wav[:, cut:]
        self.done += 1
        return wav[:, :cut]


def streaming(hift: HiFT, batch: int = 1, chunk: int | None = 50, context: int = 8) -> HiFTStream:
    """A decoder that takes mels as they come.

    Args:
        chunk: frames decoded at a time (50 are the 25 tokens of the released wrapper); None: what a call brings.
        context: frames decoded again with the next chunk; as many frames of sound are cross-faded and held back.
    """
    silence = torch.zeros(batch, hift.config.mels, 0, device=hift.pre.weight.device)
    return HiFTStream(hift.decode_with_source, lambda frames, number: hift.noise(batch, frames, number),
                      hift.config.hop, silence, chunk, context)  # fmt: skip
