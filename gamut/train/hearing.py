"""An encoder that learns to hear before a language model listens to it. Stands where the paper takes Qwen2-Audio's
(arXiv 2507.16632 App. B), which has heard everything; ours, for a small one that has heard nothing.

C words of the lexicon · D width · S slots of an order · T steps of the encoder · W words of a clip
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from gamut.data.hearing import Frames, Ordered, digit_frames, lexicon, order_slots, values
from gamut.data.load import Batches
from gamut.data.orders import Orders
from gamut.data.spoken import Digits
from gamut.io.runs import Run
from gamut.models.audio_encoder import AudioEncoder
from gamut.train.loop import fit
from gamut.train.optim import Optim

WORDS = 0.3  # weight of the words in their order. Ours


class Slots(nn.Module):
    """What is ordered: one look over the whole clip for each slot. It is thrown away after training."""

    def __init__(self, width: int, classes: Sequence[int]):
        super().__init__()
        self.query_SD, self.key = nn.Parameter(0.1 * torch.randn(len(classes), width)), nn.Linear(width, width)
        self.heads = nn.ModuleList(nn.Linear(width, count) for count in classes)

    def forward(self, x_NTD: Float[Tensor, "N T D"], lens_N: Int[Tensor, " N"]) -> list[Float[Tensor, "N _"]]:
        behind_NT = torch.arange(x_NTD.shape[1], device=lens_N.device) >= lens_N[:, None]
        scores_NST = torch.einsum("sd,ntd->nst", self.query_SD, self.key(x_NTD))
        seen_NSD = scores_NST.masked_fill(behind_NT[:, None], -torch.inf).softmax(-1) @ x_NTD
        return [head(seen_NSD[:, i]) for i, head in enumerate(self.heads)]


def learn_to_hear(
    encoder: AudioEncoder, digits: Digits, others: Digits | None, orders: Orders | None, run: Run | None, *, steps: int,
    lr: float, batch: int = 16, seed: int = 0,
) -> None:
    """Which digit is said and who says it, step by step, of ``others`` the digit alone; every other update, what is
    ordered, from the clip as a whole. And the words in their order, which a look at each step cannot count: the same
    digit twice."""
    (width, there), named = (encoder.config.width, encoder.positions.device), values(orders) if orders else {}
    torch.manual_seed(seed)
    places = lexicon(orders)
    sizes = {"digit": 11, "speaker": len(digits.names) + 1, "word": len(places) + 1}
    heads = nn.ModuleDict({name: nn.Linear(width, size) for name, size in sizes.items()}).to(there)
    slots = Slots(width, [len(each) + 1 for each in named.values()]).to(there)

    def step(given: Frames | Ordered, phase: str):
        x_NTD, lens_N = encoder(given.mels, given.lens)
        words = spelled(heads["word"](x_NTD), lens_N, given.words)
        stats = {"audio_s": float(given.lens.sum()) / 100, "word_loss": words.detach()}
        if isinstance(given, Frames):
            digit, speaker = heads["digit"](x_NTD), heads["speaker"](x_NTD)
            right = (digit.argmax(-1) == given.digits)[given.digits >= 0].float().mean()
            loss = _missed(digit, given.digits) + 0.5 * _missed(speaker, given.speakers) + WORDS * words
            return loss, {"accuracy": right, **stats}
        losses = [_missed(logits, given.slots[:, i]) for i, logits in enumerate(slots(x_NTD, lens_N))]
        order = torch.stack(losses)
        return 0.5 * order.sum() + WORDS * words, {"order_loss": order.mean().detach(), **stats}

    def make(index: int) -> Frames | Ordered:
        if orders and index % 2:
            return order_slots(orders, named, places, batch, index // 2, seed)
        return digit_frames(digits, others, batch, index, seed)

    fit(step, nn.ModuleDict({"encoder": encoder, "heads": heads, "slots": slots}), Batches(make), steps=steps,
        optim=Optim(lr, warmup=steps // 8, weight_decay=0.02, betas=(0.9, 0.98)), run=run, stage="hear", seed=seed,
        save_every=250)  # fmt: skip


def spelled(
    logits_NTC: Float[Tensor, "N T C"], lens_N: Int[Tensor, " N"], words_NW: Int[Tensor, "N W"]
) -> Float[Tensor, ""]:
    """CTC (Graves et al. 2006) a word, over the clips whose words are known; 0 if none is."""
    counts_N = (words_NW > 0).sum(1)
    if not (known_N := counts_N > 0).any():
        return logits_NTC.new_zeros(())
    chances_TNC = logits_NTC[known_N].float().log_softmax(-1).transpose(0, 1)
    each = F.ctc_loss(chances_TNC, words_NW[known_N], lens_N[known_N], counts_N[known_N], reduction="sum",
                      zero_infinity=True)  # fmt: skip
    return each / counts_N.sum()


def _missed(logits: Float[Tensor, "*N C"], labels: Int[Tensor, "*N"]) -> Float[Tensor, ""]:
    """Cross entropy over the labels that are none of -100; 0 if all are."""
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=-100, reduction="sum") / max(
        1, int((labels >= 0).sum())
    )
