"""One training step of Step-Audio 2's flow: flow matching with prompts, dropped conditions and chunks.

B batch · N tokens · T mel frames · M mel bins · S channels of a speaker
StepFun did not publish theirs; this is the parent project's (fact sheet §6.5). All draws come from torch's global
state, which a run saves and restores.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gamut.codecs.flow import Flow
from gamut.losses.flow import Stats, dropped, flow_matching
from gamut.nn.conformer import seen
from gamut.nn.ode import cosine

SIGMA = 1e-6  # of the path's end


def flow_loss(
    flow: Flow,
    ids_BN: Int[Tensor, "B N"],
    mel_BMT: Float[Tensor, "B M T"],
    speaker_BS: Float[Tensor, "B S"],
    tokens_B: Int[Tensor, " B"] | None = None,
    *,
    drop: float = 0.2,
    prompted: float = 0.5,
    longest: float = 0.3,
    chunked: float = 0.5,
    prior: float = 0.0,
) -> tuple[Float[Tensor, ""], Stats]:
    """Loss of a batch of utterances with their tokens and speakers.

    Args:
        mel_BMT: log-mels, ``factor`` frames per token; what lies beyond a row's tokens does not count.
        tokens_B: tokens of each row; None: all.
        drop: share of rows without conditions (tokens, speaker, prompt), which guidance needs.
        prompted, longest: share of rows that see their beginning, and the largest part of it that they see.
        chunked: share of batches in which no step sees beyond its own chunk, which streaming needs.
        prior: weight of the distance from mu to the mel itself, which teaches the encoder at once (Grad-TTS,
            arXiv 2105.06337 §3.4); 0 as in the parent project.
    Raises:
        ValueError: mels that do not fit the tokens.
    """
    c, (rows, T), device = flow.config, (len(ids_BN), mel_BMT.shape[-1]), ids_BN.device
    if T != ids_BN.shape[1] * c.factor:
        raise ValueError(f"{ids_BN.shape[1]} tokens need a mel of {ids_BN.shape[1] * c.factor} frames, got {T}")
    tokens_B = torch.full((rows,), ids_BN.shape[1], device=device) if tokens_B is None else tokens_B
    chunk = c.chunk if torch.rand(()) < chunked else None
    counts_BN = torch.arange(ids_BN.shape[1], device=device) < tokens_B[:, None]
    counts_BT = counts_BN.repeat_interleave(c.factor, 1)
    x1_BTM = (mel_BMT.transpose(1, 2) - c.mean) / c.std
    seen_B = torch.rand(rows, device=device) * longest * (torch.rand(rows, device=device) < prompted)
    shown_BT = torch.arange(T, device=device) < (seen_B * tokens_B * c.factor).floor()[:, None]
    keep_B = torch.rand(rows, device=device) >= drop
    conditions = flow.mu(ids_BN, counts_BN, chunk), flow.spoken_by(speaker_BS), x1_BTM * shown_BT[..., None]
    mu, speaker, prompt = dropped(keep_B, *conditions)
    mask = seen(T, counts_BT, None if chunk is None else chunk * c.factor, device)
    t_B = cosine(torch.rand(rows, device=device))
    loss, stats = flow_matching(
        lambda x, t: flow.velocity(x, t, mu, speaker, prompt, mask), x1_BTM, t_B, mask=counts_BT[..., None], sigma=SIGMA
    )
    if not prior:
        return loss, stats
    away = (conditions[0] - x1_BTM)[counts_BT].square().mean()
    return loss + prior * away, stats | {"flow_mse": loss.detach(), "mu_mse": away.detach()}
