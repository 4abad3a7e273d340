"""Tiny flows that several test files share."""

import torch

from gamut.codecs.flow import Flow, FlowConfig, Voice

CONFIG = FlowConfig(
    vocab=50, speaker=6, mels=8, inputs=16, width=16, layers=2, up_layers=1, heads=2, ffn=24, dit_width=16,
    dit_layers=2, dit_heads=2, dit_head_dim=8, steps=3, chunk=5, keep=14,
)  # fmt: skip


def lively(module: torch.nn.Module, seed: int = 0, scale: float = 0.25) -> torch.nn.Module:
    """Random weights everywhere: a new estimator is silent."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            weight.normal_(0, scale)
    return module.eval()


def flow(**changes) -> Flow:
    return lively(Flow(FlowConfig(**(vars(CONFIG) | changes))))


def ids(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(CONFIG.vocab, (count,), generator=torch.Generator().manual_seed(seed))


def voice(tokens: int = 4, seed: int = 0) -> Voice:
    draws = torch.Generator().manual_seed(100 + seed)
    return Voice(ids(tokens, 7 + seed), torch.randn(8, 2 * tokens, generator=draws), torch.randn(6, generator=draws))
