"""Dense or mixture of experts, for given parameters, compute and data: arXiv 2506.12119 ("MoE can surpass dense").

    plan = resource_plan(N=2.15e9, C=9.3e20, D_unique=6.5e10)       # a mixture at the paper's activation rate, 20%
    resource_plan(N=2.15e9, C=9.3e20, D_unique=6.5e10, activation_rate=1)      # the dense model that it must beat

N counts everything but the vocabulary; Na what one token uses; C = M D with M = 6 Na + 12 width sequence layers FLOPs
per token, forward and backward (sheet section 2). Equations 4-6 leave the router and the norms out: `Shape.built`
counts them.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gamut.plan.rules import Number, step_law

RATE = 0.20  # best activation rate at 2B, 3B and 7B: 17-21% (sheet section 6)
ASPECT, MU, ALPHA = 88, 22.0, 2.77  # width / layers, total and dense feed-forward ratios (sheet section 4, step 1)
HEAD = 128  # channels
REUSE = 8.3  # epochs: the most that was tried; beyond 2 it costs at 7B (sheet section 7)


@dataclass(frozen=True)
class Shape:
    """A decoder: multi-head attention, gated feed-forwards, ``dense_layers`` first, then mixtures (if experts > 0)."""

    width: int
    layers: int
    ffn: int
    heads: int
    head_dim: int
    experts: int = 0
    top_k: int = 0
    expert_ffn: int = 0
    shared_ffn: int = 0
    dense_layers: int = 1

    @property
    def _layers(self) -> tuple[int, int]:
        """(dense, mixture)"""
        return (self.dense_layers, self.layers - self.dense_layers) if self.experts else (self.layers, 0)

    def _count(self, experts: int) -> int:
        dense, mixture = self._layers
        attention = 4 * self.width * self.heads * self.head_dim * self.layers
        return attention + 3 * self.width * (self.ffn * dense + (self.shared_ffn + experts * self.expert_ffn) * mixture)

    @property
    def parameters(self) -> int:
        """Eq. 1 or 4: parameters without vocabulary, router and norms."""
        return self._count(self.experts)

    @property
    def active(self) -> int:
        """Eq. 5: those that one token uses."""
        return self._count(self.top_k)

    @property
    def activation_rate(self) -> float:
        return self.active / self.parameters

    def built(self, *, vocab: int = 0, shared_gate: bool = False) -> int:
        """Parameters of the built model: with norms and router, two embedding matrices of ``vocab``, and the shared
        expert's gate if it has one."""
        mixture = self._layers[1]
        norms = self.width * (2 * self.layers + 1)
        return self.parameters + norms + self.width * mixture * (self.experts + shared_gate) + 2 * vocab * self.width

    def flops(self, sequence: int) -> int:
        """M: training FLOPs per token."""
        return 6 * self.active + 12 * self.width * sequence * self.layers


@dataclass(frozen=True)
class Budget:
    """A run that spends C. Tokens and batch in tokens; lr is the peak, by Step Law with the total N."""

    shape: Shape
    sequence: int
    C: float
    tokens: float
    unique: float
    lr: float
    batch: int
    iterations: int
    warmup: int
    notes: tuple[str, ...] = ()

    @property
    def epochs(self) -> float:
        """Times that the unique tokens are read; 1 when there are enough."""
        return max(1.0, self.tokens / self.unique)


def resource_plan(
    N: Number,
    C: Number,
    D_unique: Number = math.inf,
    activation_rate: Number = RATE,
    *,
    sequence: int = 2048,
    head_dim: int = HEAD,
) -> Budget:
    """The architecture and the run for a memory (N), compute (C) and data (D_unique) budget.

    Args:
        N: parameters without vocabulary. C: training FLOPs. D_unique: different tokens there are.
        activation_rate: Na / N; 1 gives a dense model.
        sequence: tokens. head_dim: channels; widths are multiples of it.
    Raises:
        ValueError: for numbers that are not above 0, a rate no expert layout has at this N (`layout`), or a budget
            under one batch.
    """
    for name, value in (("N", N), ("C", C), ("D_unique", D_unique), ("sequence", sequence)):
        if not value > 0 or (math.isinf(value) and name != "D_unique"):
            raise ValueError(
                f"{name} must be above 0{'' if name == 'D_unique' else ' and finite'}, got {value}; "
                "for example N=2.15e9, C=9.3e20, D_unique=6.5e10"
            )
    shape = layout(N, activation_rate, head_dim=head_dim)
    N, C, D_unique, activation_rate = map(float, (N, C, D_unique, activation_rate))
    tokens = C / shape.flops(sequence)
    lr, batch = step_law(shape.parameters, tokens)
    rows = max(1, round(batch / sequence / 16) * 16 or round(batch / sequence))
    iterations = int(tokens / (rows * sequence))
    if iterations < 1:
        raise ValueError(
            f"C = {C:.3g} buys {tokens:.3g} tokens for N = {N:.3g}, less than one batch; raise C or lower N"
        )
    warmup = min(max(int(0.01 * iterations), 200), 2000)
    notes = _doubts(shape, tokens, D_unique, activation_rate)
    for note in notes:
        warnings.warn(note, stacklevel=2)
    return Budget(shape, sequence, C, tokens, D_unique, lr, rows * sequence, iterations, warmup, notes)


def layout(
    N: Number, activation_rate: Number, *, head_dim: int = HEAD, aspect: Number = ASPECT, like: Shape | None = None
) -> Shape:
    """The architecture alone, by the paper's findings (sheet section 4, step 1).

    Args:
        N: parameters without vocabulary, met within 1%.
        activation_rate: Na / N, met within 2% of itself (5% for tiny models); 1 gives a dense model.
        aspect: width / layers to aim at. like: keep the width and layers of this one, as a sweep over rates does.
    Raises:
        ValueError: for a rate outside (0, 1], or one that no expert layout has at this N.
    """
    if not 0 < activation_rate <= 1:
        raise ValueError(
            f"activation_rate must lie in (0, 1], got {activation_rate}; the paper's best is {RATE}, 1 is dense"
        )
    widths = list(_widths(N, 4 + 3 * (ALPHA if activation_rate == 1 else MU), head_dim, aspect))
    if like:
        widths = [one for one in widths if one[1:] == (like.width, like.layers)]
    shapes = _dense(N, head_dim, widths) if activation_rate == 1 else _mixtures(N, activation_rate, head_dim, widths)
    close = [
        (cost, shape)
        for cost, shape in shapes
        if abs(shape.parameters / N - 1) < 0.01 and _rate_met(shape, activation_rate, N)
    ]
    if not close:
        raise ValueError(
            f"no layout of experts has N = {N:.3g} within 1% and activation rate {activation_rate:g}: attention and "
            "the dense layer alone use more, or one expert does; try a rate between 0.09 and 0.58, "
            f"a smaller head_dim than {head_dim}, or a larger N"
        )
    return min(close, key=lambda pair: pair[0])[1]


def _rate_met(shape: Shape, rate: Number, N: Number) -> bool:
    return abs(shape.activation_rate / rate - 1) < (0.02 if N >= 1e8 else 0.05)


def _widths(N: Number, per_layer: Number, head_dim: int, aspect: Number) -> Iterator[tuple[float, int, int]]:
    """(penalty, width, layers) around the aspect ratio: N = per_layer width^2 layers."""
    best = (N * aspect / per_layer) ** (1 / 3)
    step = head_dim
    for width in range(step, int(3 * best) + 2 * step, step):
        for layers in {max(2, round(width / aspect) + extra) for extra in range(-2, 40)}:
            off = abs(math.log(width / layers / aspect))
            if off < math.log(4) and 0.4 < per_layer * width**2 * layers / N < 2.5:
                yield off, width, layers


Widths = list[tuple[float, int, int]]


def _dense(N: Number, head_dim: int, widths: Widths) -> Iterator[tuple[float, Shape]]:
    for off, width, layers in widths:
        ffn = round((N / layers / width**2 - 4) / 3 * width / 8) * 8
        if ffn > 0:
            yield (
                off + abs(math.log(ffn / width / ALPHA)),
                Shape(width, layers, ffn, width // head_dim, head_dim, dense_layers=layers),
            )


def _mixtures(N: Number, rate: Number, head_dim: int, widths: Widths) -> Iterator[tuple[float, Shape]]:
    """Per width and depth: mu from N (Eq. 4), beta from the rate (Eq. 5), then experts near width / 4, or 16 channels
    where that is more."""
    for off, width, layers in widths:
        ffn, grain = round(ALPHA * width / 8) * 8, 32 if width >= 512 else 16
        dense = 4 * width**2 + 3 * width * ffn
        mu, beta = (((total - dense) / (width**2 * (layers - 1)) - 4) / 3 for total in (N, rate * N))
        if beta <= 0 or mu <= beta:
            continue
        usual = max(1, round(beta * width / 2 / max(width / 4, grain)))
        for top_k in {max(1, usual + extra) for extra in (-2, -1, 0, 1, 2)}:
            size = max(grain, round(beta * width / (2 * top_k) / grain) * grain)
            experts = round((mu * width - top_k * size) / size)
            if experts > top_k:
                coarse = abs(math.log(size / max(width / 4, grain)))
                cost = off + abs(math.log(mu / MU)) + 0.5 * coarse + 0.3 * (top_k == 1)
                yield cost, Shape(width, layers, ffn, width // head_dim, head_dim, experts, top_k, size, top_k * size)


def _doubts(shape: Shape, tokens: float, unique: float, rate: float) -> tuple[str, ...]:
    found, epochs = [], tokens / unique
    if epochs > REUSE:
        found.append(f"{epochs:.1f} epochs over {unique:.3g} unique tokens; the paper tried {REUSE} at most")
    elif epochs > 2:
        found.append(
            f"{epochs:.1f} epochs: reading again cost 0.003-0.005 bits per character in the paper, "
            "and at 7B more than 2 always hurts"
        )
    if tokens / shape.parameters < 20:
        found.append(
            f"only {tokens / shape.parameters:.0f} tokens per parameter; the paper's findings hold from about 20"
        )
    if rate < 1 and not 0.15 <= rate <= 0.48:
        found.append(
            f"activation rate {rate:g} lies outside 0.15-0.48, where mixtures beat the dense model of equal N and C"
        )
    return tuple(found)


def best_activation(rates: Sequence[Number], losses: Sequence[Number]) -> float:
    """Activation rate of least loss among runs of equal N and C, by a curve in ln(rate): a cubic, or with four
    different rates a parabola.

    Raises:
        ValueError: with fewer than four rates, or when the curve has no minimum between them.
    """
    x, y = np.log(np.asarray(rates, dtype=float)), np.asarray(losses, dtype=float)
    if (different := len(np.unique(x))) < 4:
        raise ValueError(
            f"the region of the optimum needs four activation rates at equal N and C, got {different}; add runs"
        )
    grid = np.linspace(x.min(), x.max(), 2001)
    curve = np.polyval(np.polyfit(x, y, 2 if different == 4 else 3), grid)
    at = int(np.argmin(curve))
    if at in (0, len(grid) - 1):
        raise ValueError(f"the loss is least at the end of the range, {math.exp(grid[at]):.3g}; add rates beyond it")
    return float(math.exp(grid[at]))
