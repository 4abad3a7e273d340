"""Fine-tuning a model that hears and speaks on own conversations: all of it, or adapters."""

from collections.abc import Callable, Sequence
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from gamut.data.load import Batches
from gamut.data.own import Own, Talked, split
from gamut.data.talks import TalkBatch
from gamut.io.runs import Run
from gamut.losses.next_token import next_token_from_hidden
from gamut.models.adapters import save_lora
from gamut.models.omni import Omni
from gamut.nn.lora import DECODER, add_lora, fold_lora
from gamut.train.loop import Fit, fit
from gamut.train.optim import Group, Optim


def loss(model: Omni, batch: TalkBatch) -> Float[Tensor, ""]:
    """Mean cross entropy of what the assistant wrote and said."""
    x_BTD = model.lm.hidden(embeds_BTD=model.embed(batch.ids_BT, batch.mels_NMF, batch.lens_N))
    return next_token_from_hidden(x_BTD, model.lm.head.weight, batch.ids_BT, batch.learn_BT)[0]


def finetune(
    model: Omni, own: Own, held_out: Own | None, run: Run | None, *, steps: int, lr: float = 1e-5, rank: int = 0,
    accumulate: int = 1, every: int = 0, seed: int = 0, targets: Sequence[str] = DECODER, stage: str = "tune",
    checkpointing: bool = False,
) -> Fit:
    """Next-token loss on what the assistant wrote and said; the encoder stays as it is, as in all stages of the paper.

    Args:
        rank: of LoRA adapters on the decoder's layers named by ``targets``; 0 trains adaptor and decoder whole. With a
            run the adapters are saved in ``run.path / "adapter"`` in peft's layout; at the end they are folded in.
        lr: peak. Source: arXiv 2507.16632 §4.4, 1e-5 falling to 1e-6; adapters want ten times as much (ours).
        every: steps between evaluations on ``held_out`` (also after the last); logged as eval/loss.
    Raises:
        ValueError: as ``add_lora``.
    """
    if rank:
        model.requires_grad_(False)
        add_lora(model.lm, targets, rank=rank)

    def step(batch: TalkBatch, phase: str):
        return loss(model, batch), {"tokens": batch.ids_BT.numel(), "audio_s": batch.audio_s}

    def evaluate(at: int) -> dict[str, float]:
        assert held_out is not None
        count = min(8, len(held_out.talked))
        return {"loss": sum(loss(model, held_out.batch(i)).item() for i in range(count)) / count}

    groups = () if rank else (Group("encoder.*", 0),)
    optim = Optim(lr, "cosine", warmup=max(1, steps // 20), final=0.1, groups=groups)
    done = fit(step, model, Batches(own.batch), steps=steps, optim=optim, run=run, stage=stage, seed=seed,
               accumulate=accumulate, evaluate=evaluate if held_out else None, evaluate_every=every, save_every=250,
               checkpointing=checkpointing)  # fmt: skip
    if rank:
        if run is not None:
            save_lora(model, run.path / "adapter")
        fold_lora(model)
    return done


def own_data(
    talked: Sequence[Talked], make: Callable[[Sequence[Talked]], Own], share: float = 0.1, seed: int = 0
) -> tuple[Own, Own | None]:
    """What is trained on, and what is held out (None where there is but one conversation, or no share)."""
    train, test = split(talked, share, seed)
    return make(train), make(test) if test else None


def saved(model: Omni, run: Run, files: dict[str, str | bytes | Path], card: str) -> Path:
    """The tuned model in ``run.path / "model"``, in our layout; ``gamut export`` writes the official one."""
    return model.save_pretrained(run.path / "model", card=card, files=files)
