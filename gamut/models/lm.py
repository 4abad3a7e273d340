"""One language model for Qwen2, Qwen3, their mixtures of experts, and Step-1: the config says which.

    model = LM.from_pretrained("path/of/a/checkpoint")     # ours, or a plain Hugging Face folder of these families
    logits_BTV = model(ids_BT)

B batch · T tokens · D width · H heads
"""

import torch
from torch import Tensor, nn

from gamut.io.meta import meta
from gamut.io.pretrained import Pretrained
from gamut.models.decoder import Decoder, LMConfig, MoEConfig
from gamut.nn.alibi import slopes, sqrt_bias
from gamut.nn.attention import Turn, same_segment
from gamut.nn.cache import Cache
from gamut.nn.mlp import SwiGLU
from gamut.nn.moe import MoE

__all__ = ["LM", "LMConfig", "MoEConfig"]


class LM(Pretrained, Decoder):
    """The decoder with every feed-forward layer and kind of position that its config can name."""

    Config, inside = LMConfig, staticmethod(meta)

    def feed_forward(self, layer: int) -> nn.Module:
        """Experts, but for a dense model and in the layers that are kept dense."""
        c, moe = self.config, self.config.moe
        if moe is None or layer in moe.dense_layers:
            return SwiGLU(c.width, c.ffn)
        return MoE(c.width, moe.experts, moe.top_k, moe.expert_ffn, shared=moe.shared_ffn, renormalise=moe.renormalise)

    def order(
        self, x_BTD: Tensor, positions_BT: Tensor | None, segments_BT: Tensor | None, cache: Cache | None
    ) -> tuple[Turn | None, Tensor | None]:
        """Rotation and mask as in a Decoder, or nothing to rotate and Step-1's bias as the mask."""
        if self.config.positions == "rope":
            return super().order(x_BTD, positions_BT, segments_BT, cache)
        if positions_BT is not None:
            raise ValueError("sqrt_alibi counts distances in the row itself; leave positions_BT out")
        c, device, T = self.config, x_BTD.device, x_BTD.shape[1]
        first, stop = (0, T) if cache is None else (cache.first(), cache.stop)
        slope_H = torch.tensor(c.slopes or slopes(c.heads, c.interp_ratio), device=device, dtype=torch.float32)
        seen_S = torch.arange(stop, device=device)
        bias = sqrt_bias(slope_H, first + torch.arange(T, device=device), seen_S).to(x_BTD.dtype)
        bias = bias if bias.dim() == 4 else bias[None]
        return None, bias if segments_BT is None else bias.masked_fill(~same_segment(segments_BT), -torch.inf)
