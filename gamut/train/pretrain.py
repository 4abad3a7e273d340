"""Cells of a pre-training grid: a language model of some shape, on so many tokens, measured on unseen text.

Used by recipes/farseer.py and recipes/moe_vs_dense.py. N is counted without embedding, head, norms and routers, as both
papers do.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gamut.data.characters import VOCAB, Corpus
from gamut.data.load import Batches
from gamut.io.env import environment
from gamut.io.progress import clock
from gamut.io.runs import Run
from gamut.losses.balance import balance, load
from gamut.losses.next_token import next_token
from gamut.models.decoder import LMConfig
from gamut.models.lm import LM
from gamut.plan.rules import step_law
from gamut.train.loop import fit
from gamut.train.optim import Optim

LENGTH = 128  # characters of a window
MOST = 0.01  # peak learning rate: Step Law, far below the sizes it was made for, asks for more at times


@dataclass(frozen=True)
class Cell:
    """What a run is asked for. ``unique``: different tokens, read again where ``tokens`` is more; 0: no token twice.

    Windows are as long as the model's ``max_positions``.
    """

    config: LMConfig
    tokens: float
    seed: int = 0
    unique: int = 0
    balance: float = 0.0  # weight of the load balance loss, which is 1 where experts are used evenly
    lr_scale: float = 1.0

    @property
    def parameters(self) -> int:
        return sized(self.config)

    @property
    def rows(self) -> int:
        """Windows of a batch, by Step Law; at least four."""
        return max(4, round(step_law(self.parameters, self.tokens)[1] / self.config.max_positions))

    @property
    def batch(self) -> int:
        """Tokens of an update."""
        return self.rows * self.config.max_positions

    @property
    def steps(self) -> int:
        return max(1, int(self.tokens / self.batch))

    @property
    def lr(self) -> float:
        return self.lr_scale * min(MOST, step_law(self.parameters, self.tokens)[0])

    def facts(self) -> dict[str, float]:
        """What tells it from the other runs of a grid."""
        c, moe = self.config, self.config.moe
        known = {"N": float(self.parameters), "D": float(self.steps * self.batch), "width": c.width, "layers": c.layers,
                 "lr": self.lr, "batch": float(self.batch), "seed": self.seed, "unique": self.unique}  # fmt: skip
        experts = {"experts": moe.experts, "top_k": moe.top_k, "expert_ffn": moe.expert_ffn} if moe else {}
        return known | experts | ({"balance_weight": self.balance} if moe else {})

    def work(self) -> float:
        """Roughly the seconds it takes on one core: 25 GFLOP/s (experts 15), and 12 ms an update for the rest."""
        c, moe, unused = self.config, self.config.moe, 0
        if moe:
            unused = (moe.experts - moe.top_k) * 3 * c.width * moe.expert_ffn * (c.layers - len(moe.dense_layers))
        each = 6 * (self.parameters - unused) + 6 * c.width * (c.vocab + 2 * c.max_positions * c.layers)
        return self.steps * (0.012 + self.batch * each / (15e9 if moe else 25e9))


def dense(width: int, layers: int, head_dim: int = 16) -> LMConfig:
    """A decoder with N = 12 layers width^2, as near as whole channels allow."""
    return LMConfig(
        VOCAB, width, layers, width // head_dim, width // head_dim, head_dim, 8 * width // 3, rope_theta=1e4,
        max_positions=LENGTH,
    )  # fmt: skip


def sized(config: LMConfig) -> int:
    """Parameters of attention and feed-forwards."""
    with torch.device("meta"):
        model = LM(config)
    left_out = ("embed", "head", "norm", "router", "shared_gate")
    named = ((name.split("."), p.numel()) for name, p in model.named_parameters())
    return sum(count for parts, count in named if not any(part.startswith(left_out) for part in parts))


def measured_flops(config: LMConfig) -> float:
    """FLOPs of one token in training, forward and backward: torch counts those of a batch as it runs, head included.

    In double precision, with attention as plain products: torch does not count the fused kernels of a CPU.
    """
    model = LM(config).double()
    ids = torch.randint(config.vocab, (4, config.max_positions), generator=torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        next_token(model(ids), ids)[0].backward()
    return counter.get_total_flops() / ids.numel()


def train(
    cell: Cell, corpus: Corpus, run: Run | None = None, stage: str = "train", said: Callable[[str], object] = print
) -> dict[str, float]:
    """Train the cell, and return what it was asked for (`Cell.facts`), what `evaluate` measures, and ``seconds``.

    With ``run`` a finished stage is not trained again.
    """
    torch.manual_seed(cell.seed)
    model, moe, rows, steps = LM(cell.config), cell.config.moe, cell.rows, cell.steps

    def step(ids, phase: str):
        routing: list[torch.Tensor] = []
        loss, stats = next_token(model.head(model.hidden(ids, routing=routing)), ids)
        if moe:
            loss = loss + cell.balance * evenness(routing, moe.top_k)
        return loss, stats

    data = Batches(lambda index: corpus.rows(index, rows, cell.config.max_positions, cell.seed, unique=cell.unique))
    optim = Optim(lr=cell.lr, warmup=max(1, steps // 20), final=0.1)
    done = fit(step, model, data, steps=steps, optim=optim, run=run, stage=stage, seed=cell.seed)
    found = cell.facts() | evaluate(model, corpus) | {"seconds": done.seconds}
    said(f"{stage}: N {found['N']:,.0f}, D {found['D']:,.0f}, held-out loss {found['loss']:.4f}")
    return found


def train_all(
    cells: Sequence[Cell], corpus: Corpus, run: Run | None, record: Path | None, said: Callable[[str], object] = print
) -> list[dict[str, float]]:
    """`train` every cell, in the order given, and say after each how long the rest will take.

    Args:
        record: a .jsonl file to which every finished run is appended at once, with its commit and machine; a run that
            it holds (same shape, tokens, rate, seed and text) is not made again. None: nothing is kept.
    """
    kept = [json.loads(line) for line in record.read_text().splitlines()] if record and record.exists() else []
    known = [_recorded(cell, corpus, kept) for cell in cells]
    left = sum(cell.work() for cell, row in zip(cells, known, strict=True) if row is None)
    said(f"{len(cells)} runs on {corpus.origin}; {len(cells) - known.count(None)} are done, the rest is about "
         f"{clock(left)} on an idle core")  # fmt: skip
    rows, spent, done = [], 0.0, 0.0
    for i, (cell, row) in enumerate(zip(cells, known, strict=True), 1):
        if row is None:
            began, stage = time.monotonic(), f"n{cell.parameters}-d{int(cell.tokens)}-u{cell.unique}-s{cell.seed}"
            row = train(cell, corpus, run, stage, said=lambda _: None)
            if record:
                _append(record, row | {"text": corpus.origin})
            spent, done, left = spent + time.monotonic() - began, done + cell.work(), left - cell.work()
            said(f"run {i} of {len(cells)}: {row['N']:,.0f} parameters, {row['D']:,.0f} characters, held-out loss "
                 f"{row['loss']:.4f} nats a character · {clock(max(0.0, spent / done * left))} left")  # fmt: skip
        rows.append(row)
    return rows


def _append(record: Path, row: dict) -> None:
    here = environment()
    where = {name: here[name] for name in ("commit", "cpu", "torch", "torch threads")}
    record.parent.mkdir(parents=True, exist_ok=True)
    with open(record, "a") as file:
        file.write(json.dumps(row | {"date": time.strftime("%Y-%m-%d"), **where}) + "\n")


def _recorded(cell: Cell, corpus: Corpus, kept: Sequence[dict]) -> dict | None:
    wanted = cell.facts() | {"text": corpus.origin}
    return next((row for row in kept if all(row.get(name) == value for name, value in wanted.items())), None)


def evenness(routing: Sequence[torch.Tensor], top_k: int) -> torch.Tensor:
    """Load balance loss, the mean of every layer's own: 1 where experts are used evenly."""
    return torch.stack([balance([logits_NE], top_k)[0] for logits_NE in routing]).mean() / top_k


@torch.no_grad()
def evaluate(model: LM, corpus: Corpus, windows: int = 512) -> dict[str, float]:
    """On held-out windows: ``loss``, nats a character; of a mixture ``balance`` (`evenness`), the load of the
    ``busiest`` and ``idlest`` expert (1 = even), and ``dead``, the share of experts with a load below 0.01.
    """
    ids, moe = corpus.check(windows, model.config.max_positions), model.config.moe
    model.eval()
    losses, even, loads = [], [], []
    for part in ids.split(64):
        routing: list[torch.Tensor] = []
        losses.append(float(next_token(model.head(model.hidden(part, routing=routing)), part)[0]))
        if moe:
            even.append(float(evenness(routing, moe.top_k)))
            loads.append(load(torch.stack(routing), moe.top_k))
    found = {"loss": sum(losses) / len(losses)}
    if moe:
        load_LE = torch.stack(loads).mean(0)
        found |= {"balance": sum(even) / len(even), "busiest": float(load_LE.max()),
                  "idlest": float(load_LE.min()), "dead": float((load_LE < 0.01).float().mean())}  # fmt: skip
    return found
