"""How the next token is chosen: settings, and one function from logits to ids.

B rows · V vocabulary · K candidates
A draw is one uniform number per token from the sample's own generator, put through the inverse distribution function:
what a sample becomes does not depend on the rows that are decoded beside it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Stop = int | tuple[int, ...]


@dataclass(frozen=True)
class Sampling:
    """Order of effects: repetition penalty, temperature, top_k, top_p (as transformers orders them)."""

    temperature: float = 1.0  # 0 = always the likeliest token
    top_k: int = 0  # candidates kept, 0 = all
    top_p: float = 1.0  # the likeliest candidates are kept until their probabilities reach this sum
    repetition_penalty: float = (
        1.0  # ids in the prompt or the answer: positive logits are divided by it, others multiplied
    )
    max_new: int = 256  # tokens
    stop: tuple[Stop, ...] = ()  # an id, or a sequence of ids; it stays in the sample
    seed: int = 0  # with the prompt's ids and the copy's number, fixes every draw
    logprobs: bool = (
        True  # log-probabilities of the chosen ids under the model itself: before penalty, temperature, top_k, top_p
    )

    def __post_init__(self):
        allowed = {
            "temperature": (self.temperature >= 0, "0 or more"),
            "top_k": (self.top_k >= 0, "0 (all) or more"),
            "top_p": (0 < self.top_p <= 1, "above 0, at most 1"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0 (1 = none)"),
            "max_new": (self.max_new >= 1, "1 or more"),
            "seed": (0 <= self.seed < 1 << 64, "0 .. 2^64 - 1"),
            "stop": (all(isinstance(s, int) or len(s) for s in self.stop), "ids or non-empty sequences of ids"),
        }
        for name, (fine, text) in allowed.items():
            if not fine:
                raise ValueError(f"sampling.{name} must be {text}; got {getattr(self, name)!r}")

    def stops(self) -> tuple[tuple[int, ...], ...]:
        """Every stop as a sequence."""
        return tuple((s,) if isinstance(s, int) else tuple(s) for s in self.stop)

    def noise(self, ids: list[int], copy: int) -> np.random.Generator:
        """The generator of one sample: a function of the seed, the prompt's ids and the number of the copy."""
        words = [self.seed & 0xFFFFFFFF, self.seed >> 32, copy, *ids]
        return np.random.default_rng(np.random.SeedSequence(np.array(words, dtype=np.uint32)))


def choose(
    logits_BV: Float[Tensor, "B V"], settings: list[Sampling], seen: list[list[int]], draws: list[np.random.Generator]
) -> tuple[list[int], list[float]]:
    """The next id of each row, and its log-probability (0.0 where the row does not ask for it).

    Args:
        settings, seen, draws: per row: its sampling, its prompt and answer so far, its generator.
    Raises:
        ValueError: a row's logits contain NaN.
    """
    raw_BV = logits_BV.float()
    logits_BV = _penalise(raw_BV, settings, seen)
    groups: dict[tuple[bool, int, bool], list[int]] = {}
    for row, s in enumerate(settings):
        groups.setdefault((s.temperature == 0, s.top_k, s.top_p < 1), []).append(row)
    if len(groups) == 1:
        id_B = _pick(logits_BV, settings, draws)
    else:  # each kind by itself, so that a row's arithmetic is the same in any company
        id_B = torch.empty(len(settings), dtype=torch.long, device=raw_BV.device)
        for rows in groups.values():
            id_B[rows] = _pick(logits_BV[rows], [settings[r] for r in rows], [draws[r] for r in rows])
    chosen_B = raw_BV.gather(1, id_B[:, None])[:, 0]
    if any(s.logprobs for s in settings):
        chosen_B = raw_BV.log_softmax(-1).gather(1, id_B[:, None])[:, 0]
    values = chosen_B.tolist()
    if any(value != value for value in values):
        bad = [row for row, value in enumerate(values) if value != value]
        raise ValueError(
            f"the model's logits contain NaN (rows {bad[:8]} of {len(values)}); check its weights and inputs"
        )
    return id_B.tolist(), [value if s.logprobs else 0.0 for value, s in zip(values, settings, strict=True)]


def _pick(logits_BV: Tensor, settings: list[Sampling], draws: list[np.random.Generator]) -> Tensor:
    """Ids of rows that agree on greedy or not, on top_k, and on whether top_p cuts."""
    first = settings[0]
    if first.temperature == 0:
        return logits_BV.argmax(-1)
    device = logits_BV.device
    scaled_BK, index_BK = logits_BV / torch.tensor([[s.temperature] for s in settings], device=device), None
    if first.top_k and first.top_k < scaled_BK.shape[1]:
        scaled_BK, index_BK = scaled_BK.topk(first.top_k, dim=-1)
    elif first.top_p < 1:
        scaled_BK, index_BK = scaled_BK.sort(dim=-1, descending=True, stable=True)
    probs_BK = scaled_BK.softmax(-1).double()
    if first.top_p < 1:
        before_BK = probs_BK.cumsum(-1) - probs_BK
        probs_BK = probs_BK * (before_BK < torch.tensor([[s.top_p] for s in settings], device=device))
    total_BK = probs_BK.cumsum(-1)
    draw_B1 = torch.tensor([[draw.random()] for draw in draws], device=device, dtype=torch.float64)
    place_B1 = torch.searchsorted(total_BK, draw_B1 * total_BK[:, -1:], right=True)
    place_B1 = place_B1.clamp(max=total_BK.shape[1] - 1)
    return (place_B1 if index_BK is None else index_BK.gather(1, place_B1))[:, 0]


def _penalise(logits_BV: Tensor, settings: list[Sampling], seen: list[list[int]]) -> Tensor:
    rows = [row for row, s in enumerate(settings) if s.repetition_penalty != 1]
    if rows:
        logits_BV = logits_BV.clone()
    for row in rows:
        ids = torch.tensor(sorted(set(seen[row])), device=logits_BV.device)
        old, penalty = logits_BV[row, ids], settings[row].repetition_penalty
        logits_BV[row, ids] = torch.where(old > 0, old / penalty, old * penalty)
    return logits_BV
