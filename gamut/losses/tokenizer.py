"""What a speech tokenizer learns by: its tokens must be readable, and use the room that codes have.

N clips · T tokens · V labels, the last of which is none · C coordinates of a code
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

Stats = dict[str, Tensor]
NOT_COUNTED = -100


def tokenizer_loss(
    logits_NTV: Float[Tensor, "N T V"],
    labels: Int[Tensor, "N T"] | Sequence[Sequence[int]],
    counts_N: Int[Tensor, " N"],
    latent_NTC: Float[Tensor, "N T C"] | None = None,
    *,
    room: float = 0.1,
) -> tuple[Float[Tensor, ""], Stats]:
    """How badly speech is read from tokens, plus ``room`` times how far what is rounded strays from N(0, 1)'s moments.

    Args:
        labels: of every token (N, T): cross entropy, V - 1 where nothing is said, -100 where a token does not count; or
            what is said in each clip, in order: CTC, whose blank is V - 1.
        counts_N: tokens of each clip.
        latent_NTC: what FSQ rounds; None leaves its term out (VQ). Without it the coordinates run to their ends within
            a hundred updates and a tenth of the codes is used (ours; dev/LOG.md).
    Returns:
        loss, and stats: ``read`` (nats a token, CTC: a symbol), ``room``, and with labels of tokens ``read_right``.
    Raises:
        ValueError: where a label is no class, or labels and clips are not as many.
    Source: arXiv 2412.10117 §2.1, whose recogniser is trained to transcribe; labels of tokens and ``room`` are ours.
    """
    blank = logits_NTV.shape[-1] - 1
    inside_NT = torch.arange(logits_NTV.shape[1], device=logits_NTV.device) < counts_N[:, None].to(logits_NTV.device)
    stats: Stats = {}
    if isinstance(labels, Tensor):
        counted_NT = inside_NT & (labels != NOT_COUNTED)
        guess, truth = logits_NTV[counted_NT].float(), labels[counted_NT]
        if truth.numel() and not 0 <= int(truth.min()) <= int(truth.max()) <= blank:
            raise ValueError(f"labels of tokens must lie in 0..{blank}, got {int(truth.min())}..{int(truth.max())}")
        loss = F.cross_entropy(guess, truth)
        stats["read_right"] = (guess.argmax(-1) == truth).float().mean()
    else:
        flat = [symbol for row in labels for symbol in row]
        if len(labels) != len(logits_NTV) or any(not 0 <= symbol < blank for symbol in flat):
            raise ValueError(f"CTC takes the symbols 0..{blank - 1} of each of {len(logits_NTV)} clips, got "
                             f"{len(labels)} clips with symbols {sorted(set(flat))[:8]}")
        logp_TNV = logits_NTV.float().log_softmax(-1).transpose(0, 1)
        sizes = torch.tensor([len(row) for row in labels], device=logp_TNV.device)
        wanted = torch.tensor(flat, dtype=torch.long, device=logp_TNV.device)
        loss = F.ctc_loss(logp_TNV, wanted, counts_N.long().cpu(), sizes, blank, zero_infinity=True)
    stats["read"] = loss.detach()
    if latent_NTC is not None:
        z = latent_NTC[inside_NT].float()
        spread = z.var(0, correction=0).add(1e-6).sqrt()  # at no spread at all the root has no slope
        strays = (z.mean(0).square() + (spread - 1).square()).mean()
        loss, stats["room"] = loss + room * strays, strays.detach()
    return loss, stats
