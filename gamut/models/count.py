"""How large a language model is, and how much arithmetic a token costs, without making it."""

from gamut.io.meta import meta
from gamut.models.lm import LM, LMConfig


def count(config: LMConfig, context: int = 0) -> dict[str, int]:
    """Exact parameter counts, and the arithmetic of one token.

    Args:
        context: tokens that attention looks back on; 0 leaves attention scores out.
    Returns:
        parameters: all weights. active: those one token is multiplied with (its experts only, no embedding rows).
        forward_flops: 2 per active matrix element, and 4 · heads · head_dim · context per layer; training takes thrice.
    """
    with meta():
        model = LM(config)
    sizes = {name: weight.numel() for name, weight in model.named_parameters()}
    idle = 0 if config.tied else sizes["embed.weight"]
    if moe := config.moe:
        routed = sum(size for name, size in sizes.items() if ".experts." in name)
        idle += routed * (moe.experts - moe.top_k) // moe.experts
    total = sum(sizes.values())
    active = total - idle
    vectors = sum(weight.numel() for weight in model.parameters() if weight.dim() == 1)
    scores = 4 * config.heads * config.head_dim * context * config.layers
    return {"parameters": total, "active": active, "forward_flops": 2 * (active - vectors) + scores}
