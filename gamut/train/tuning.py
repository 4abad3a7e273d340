"""Fine-tuning a model that hears and speaks on own conversations: all of it, or adapters; the best is kept."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gamut.data.load import Batches
from gamut.data.own import Talked, split
from gamut.data.own_rows import Own, OwnBatch
from gamut.io.folders import load_tensors
from gamut.io.learners import fill
from gamut.io.runs import Run
from gamut.losses.from_hidden import next_token_from_hidden
from gamut.models.adapters import load_lora, save_lora
from gamut.nn.lora import DECODER, add_lora, fold_lora, lora_layers, merge_lora, unmerge_lora
from gamut.train import dist
from gamut.train.loop import Fit, fit
from gamut.train.optim import Group, Optim, Phase
from gamut.train.scope import recompute

HELD = 16  # batches of what is held out that an evaluation takes, at most; ours
BEST, ADAPTER = "best", "adapter"  # folders of a run
Omni = Any  # gamut.models.omni.Omni: reading how to tune one takes its method hidden alone
Score = Callable[[], Mapping[str, float]]


def loss(model: Omni, batch: OwnBatch) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Mean cross entropy of what the assistant wrote and said; ``targets`` in the stats counts its tokens."""
    x_BTD = model.hidden(batch.ids_BT, batch.mels_NMF, batch.lens_N, segments_BT=batch.segments_BT)
    return next_token_from_hidden(x_BTD, model.lm.head.weight, batch.ids_BT, batch.learn_BT)


def finetune(
    model: Omni, own: Own, held_out: Own | None, run: Run | None, *, steps: int, lr: float = 1e-5, rank: int = 0,
    accumulate: int = 1, every: int = 0, seed: int = 0, targets: Sequence[str] = DECODER, stage: str = "tune",
    checkpointing: bool = False, score: Score | None = None,
) -> Fit:
    """Next-token loss on what the assistant wrote and said; the encoder stays as it is, as in all stages of the paper.

    ``model`` may be sharded (`dist.shard`, method hidden). It ends with the weights that had the lowest loss on
    ``held_out`` (with a run; else with the last).

    Args:
        rank: of LoRA adapters on the decoder's layers named by ``targets``; 0 trains adaptor and decoder whole. With a
            run the adapters are saved in ``run.path / "adapter"`` in peft's layout; at the end they are folded in.
        lr: peak. Source: arXiv 2507.16632 §4.4, 1e-5 falling to 1e-6; adapters want ten times as much (ours).
        every: steps between evaluations on ``held_out`` (also after the last); logged as eval/loss.
        score: further numbers for the log of an evaluation.
    Raises:
        ValueError: as ``add_lora``.
    """
    if rank:
        model.requires_grad_(False)
        there = next(model.parameters()).device
        with torch.random.fork_rng([there] if there.type == "cuda" else []):
            torch.manual_seed(seed)
            add_lora(model.lm, targets, rank=rank)

    def step(batch: OwnBatch, phase: str):
        mean, stats = loss(model, batch)
        counts = {"tokens": batch.ids_BT.numel(), "audio_s": batch.audio_s}
        return mean, counts | {"weight": stats["targets"]}  # however conversations fall into micro-batches

    def evaluate(at: int) -> dict[str, float]:
        merge_lora(model)
        with dist.gathered(model):
            found = {"loss": mean_loss(model, held_out)} if held_out else {}
            found |= score() if score else {}
        unmerge_lora(model)
        if held_out and run is not None and dist.gather(found["loss"] < _lowest(run, stage, at))[0]:
            _keep(model, run.path / BEST, rank)
        return found

    optim = Optim(lr, "cosine", warmup=max(1, steps // 20), final=0.1, weight_decay=0.0 if rank else 0.1,
                  groups=() if rank else (Group("encoder.*", 0),))  # fmt: skip
    with recompute([model], checkpointing):
        done = fit(step, _phase(model, rank, optim), Batches(own.batch), steps=steps, run=run, stage=stage, seed=seed,
                   accumulate=accumulate, evaluate=evaluate if held_out or score else None, evaluate_every=every,
                   save_every=max(10, min(250, steps // 4)))  # fmt: skip
    if run is not None and (run.path / BEST).is_dir():
        _put_back(model, run.path / BEST, rank)
    if rank:
        if run is not None and not dist.rank():
            save_lora(model, run.path / ADAPTER)
        fold_lora(model)
    return done


def _phase(model: Omni, rank: int, optim: Optim) -> Phase:
    """What is trained, and so what checkpoints hold: the model, or its adapters alone."""
    if not rank:
        return Phase("model", model, optim)
    adapters = {f"{name}.{part}": getattr(layer, part) for name, layer in lora_layers(model)
                for part in ("lora_A", "lora_B")}  # fmt: skip
    return Phase("adapters", nn.ParameterDict({name.replace(".", "/"): p for name, p in adapters.items()}), optim)


def mean_loss(model: Omni, own: Own) -> float:
    """Loss by the token on (the first batches of) what is held out."""
    device, total, count = model.lm.norm.weight.device, 0.0, 0
    with torch.no_grad():
        for index in range(min(HELD, own.batches)):
            mean, stats = loss(model, dist.move(own.batch(index), device))
            total, count = total + float(mean) * int(stats["targets"]), count + int(stats["targets"])
    return total / count


def _lowest(run: Run, stage: str, before: int) -> float:
    seen = run.curves().get(stage, {}).get("eval/loss", [])
    return min((value for at, value in seen if at < before), default=float("inf"))


def _keep(model: Omni, path: Path, rank: int) -> None:
    if not rank:
        model.save_pretrained(path)
    elif not dist.rank():
        save_lora(model, path)


def _put_back(model: Omni, path: Path, rank: int) -> None:
    if rank:
        load_lora(model, path)
    else:
        tensors = load_tensors(path)
        for name, target in model.state_dict().items():
            fill(target, tensors[name])


def own_data(
    talked: Sequence[Talked], make: Callable[[Sequence[Talked]], Own], share: float = 0.1, seed: int = 0
) -> tuple[Own, Own | None]:
    """What is trained on, and what is held out (None where there is but one conversation, or no share)."""
    train, test = split(talked, share, seed)
    return make(train), make(test) if test else None
