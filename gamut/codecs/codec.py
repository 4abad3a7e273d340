"""The one socket every codec fits: signal in, latents or tokens out, and back."""

from contextlib import AbstractContextManager
from typing import Protocol, Self, runtime_checkable

from torch import Tensor


@runtime_checkable
class Codec(Protocol):
    """Signal <-> latent. Lengths in samples, frames or points; latent steps are integers."""

    stride: tuple[int, ...]
    """Signal units per latent step, one per axis: (320,) for 25 tokens a second at 8 kHz, (8, 16, 16) for video."""
    channels: int
    """Latent width; for discrete codes, the number of codebooks."""
    vocab: int | None
    """Codes per codebook; None where the latent is continuous."""
    causal: bool
    """True where a latent step never depends on later signal: only then does streaming equal the offline result."""

    def encode(self, signal: Tensor) -> Tensor: ...

    def decode(self, latent: Tensor) -> Tensor: ...

    def streaming(self, batch: int) -> AbstractContextManager[Self]:
        """Decode piece by piece: at a declared chunk size the result does not depend on how calls are sliced,
        and the pieces add up to the offline length."""
        ...
