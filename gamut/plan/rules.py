"""Published rules for the peak learning rate and the batch, side by side.

N parameters without vocabulary (of a mixture: all, not the activated ones) · D tokens · C = 6 N D FLOPs · loss in
nats per token. Batches are tokens per update. Step Law's settings: AdamW, 2,000 warm-up steps, cosine to a fixed 1e-5.
"""

import math
from dataclasses import dataclass

Number = float | int


@dataclass(frozen=True)
class Advice:
    """One rule's answer; nan where it says nothing. ``excess``: its published loss above the grid's best, per mille."""

    rule: str
    lr: float
    batch: float
    excess: float
    note: str


def step_law(N: Number, D: Number) -> tuple[float, float]:
    """Peak learning rate 1.79 N^-0.713 D^0.307 and batch in tokens 0.58 D^0.571 (arXiv 2503.04715).

    >>> lr, batch = step_law(1e9, 1e11)
    >>> round(lr, 5), round(batch, -4)
    (0.00163, 1110000.0)
    """
    _positive(N=N, D=D)
    return 1.79 * N**-0.713 * D**0.307, 0.58 * D**0.571


def step_law_bootstrap(N: Number, D: Number) -> tuple[float, float]:
    """The same law as the mean of its 1,000 published bootstrap fits."""
    _positive(N=N, D=D)
    lr = math.exp(0.5863 - 0.7129 * math.log(N) + 0.3075 * math.log(D))
    return lr, math.exp(-0.5435 + 0.5709 * math.log(D))


def all_rules(N: Number, D: Number, loss: Number | None = None) -> list[Advice]:
    """Every rule of the fact sheet at (N, D).

    Args:
        loss: that the run is expected to reach; two rules set the batch by it.
    Raises:
        ValueError: for N, D or loss that are not above 0.
    """
    _positive(N=N, D=D, **({} if loss is None else {"loss": loss}))
    nan, C = math.nan, 6 * N * D
    lr, batch = step_law(N, D)
    lr_mean, batch_mean = step_law_bootstrap(N, D)
    by_loss = "" if loss is not None else "batch needs the expected loss"
    return [
        Advice("Step Law", lr, batch, 0.94, "N in total, also for mixtures: activated N loses 1.0% instead of 0.16%"),
        Advice("Step Law, mean of bootstraps", lr_mean, batch_mean, nan, "what its command line prints"),
        Advice("Porian et al.", 3.7 * N**-0.36, 0.7576 * N**0.703, 3.71, ""),
        Advice(
            "Microsoft",
            1.3192e-5 * N**-0.23 * D**-0.32,
            nan,
            9.25,
            "as printed; its units of N and D were not recovered",
        ),
        Advice("DeepSeek", 0.3188 * C**-0.125, 0.2920 * C**0.3271, 9.26, ""),
        Advice(
            "Kaplan (OpenAI)", 3.239e-3 - 1.395e-4 * math.log(N), 2e18 * loss**-4.7619 if loss else nan, 9.51, by_loss
        ),
        Advice("MiniCPM", nan, 2e18 * loss**-6.24 if loss else nan, nan, by_loss),
    ]


def _positive(**values: Number) -> None:
    for name, value in values.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be above 0, got {value}; N and D are plain counts, such as 1e9 and 2e10")
