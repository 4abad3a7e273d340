"""`gamut plan moe`: a mixture of experts beside the dense model of the same parameters and compute."""

import math
import warnings

from gamut.plan.budget import RATE, Budget, resource_plan


def main(
    *,
    n: float,
    flops: float,
    unique: float = math.inf,
    rate: float = RATE,
    sequence: int = 2048,
    head_dim: int = 128,
    vocab: int = 65536,
) -> None:
    """Dense or mixture of experts, for given parameters, compute and data (arXiv 2506.12119).

    Args:
        n: parameters without the vocabulary, such as 2.15e9.
        flops: training compute, such as 9.3e20.
        unique: different tokens that there are; inf means enough.
        rate: activation rate Na / N; the paper's best is 0.2.
        sequence: tokens.
        head_dim: channels; smaller for tiny models.
        vocab: tokens of the vocabulary, for the count of the built model.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plans = {
            f"mixture, {100 * rate:.0f}% active": resource_plan(
                n, flops, unique, rate, sequence=sequence, head_dim=head_dim
            )
        }
        plans["dense"] = resource_plan(n, flops, unique, 1, sequence=sequence, head_dim=head_dim)
    columns = [_lines(plan, vocab) for plan in plans.values()]
    print(f"{'':30s}" + "".join(f"{name:>24s}" for name in plans))
    for name in columns[0]:
        print(f"{name:30s}" + "".join(f"{column[name]:>24s}" for column in columns))
    for name, plan in plans.items():
        for note in plan.notes:
            print(f"careful, {name}: {note}")
    mixture, dense = plans.values()
    print(f"the mixture reads {mixture.tokens / dense.tokens:.2f} times the tokens at equal N and C")


def _lines(plan: Budget, vocab: int) -> dict[str, str]:
    s = plan.shape
    experts = f"{s.experts}, {s.top_k} per token" if s.experts else "-"
    return {
        "parameters N, active": f"{s.parameters:.3e}, {100 * s.activation_rate:.1f}%",
        "as built, with vocabulary": f"{s.built(vocab=vocab):.3e}",
        "width, layers": f"{s.width}, {s.layers}",
        "heads, channels": f"{s.heads}, {s.head_dim}",
        "dense feed-forward": f"{s.ffn} ({s.dense_layers} layers)",
        "routed experts": experts,
        "expert, shared expert": f"{s.expert_ffn}, {s.shared_ffn}" if s.experts else "-",
        "training FLOPs per token": f"{s.flops(plan.sequence):.3e}",
        "tokens": f"{plan.tokens:.3e}",
        "tokens per parameter": f"{plan.tokens / s.parameters:.0f}",
        "epochs": f"{plan.epochs:.2f}",
        "peak learning rate": f"{plan.lr:.2e}",
        "batch, tokens": f"{plan.batch:,}",
        "iterations, warm-up": f"{plan.iterations:,}, {plan.warmup}",
    }
