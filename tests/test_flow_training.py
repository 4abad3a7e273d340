"""A training step of the flow: what counts, what is dropped, what is hidden, and that it learns."""

import pytest
import torch
from flows import CONFIG, flow, ids

from gamut.codecs.flow import Flow, Voice
from gamut.codecs.flow_stream import FlowStream, Rules, begin
from gamut.codecs.flow_training import flow_loss

ROWS = torch.stack([ids(20), ids(20, 1)])
MELS, SPEAKERS = torch.randn(2, 8, 40, generator=torch.Generator().manual_seed(0)), torch.ones(2, 6)


def loss_of(model, mels=MELS, rows=ROWS, seed=0, **how):
    torch.manual_seed(seed)
    return flow_loss(model, rows, mels, SPEAKERS, **how)


def test_what_lies_beyond_a_row_does_not_count():
    model, tokens = flow(), torch.tensor([20, 11])
    mels, rows = MELS.clone(), ROWS.clone()
    mels[1, :, 22:], rows[1, 11:] = 99.0, 3
    for chunked in (0.0, 1.0):
        wanted, _ = loss_of(model, tokens_B=tokens, chunked=chunked)
        got, _ = loss_of(model, mels, rows, tokens_B=tokens, chunked=chunked)
        assert torch.allclose(wanted, got, atol=1e-5)


def test_rows_that_are_dropped_teach_the_encoder_nothing():
    model = flow()
    for drop, heard in ((1.0, False), (0.0, True)):
        model.zero_grad()
        loss_of(model, drop=drop)[0].backward()
        grads = [part.grad.abs().sum() for part in (model.embed.weight, model.speaker.weight)]
        assert all((float(g) > 0) == heard for g in grads)


def test_prompts_are_shown_and_chunks_hide():
    """The same draws with and without a prompt, with and without chunks, give other losses."""
    model = flow()
    losses = {
        (prompted, chunked): loss_of(model, prompted=prompted, longest=1.0, chunked=chunked, drop=0.0)[0].item()
        for prompted in (0.0, 1.0) for chunked in (0.0, 1.0)
    }  # fmt: skip
    assert len({round(value, 5) for value in losses.values()}) == 4


def test_the_prior_pulls_mu_to_the_mel():
    model = flow()
    loss, stats = loss_of(model, prior=0.5)
    plain, _ = loss_of(model)
    assert torch.allclose(loss, plain + 0.5 * stats["mu_mse"]) and torch.allclose(stats["flow_mse"], plain)


def test_it_refuses_mels_that_do_not_fit():
    with pytest.raises(ValueError, match="20 tokens need a mel of 40 frames, got 38"):
        loss_of(flow(), MELS[..., :38])


def test_it_learns_to_say_what_the_tokens_say():
    """Every token stands for one mel; after a hundred updates offline and streamed mels are near it."""
    torch.manual_seed(0)
    model, sounds, losses, steps = Flow(CONFIG), torch.randn(6, 8), [], 100
    optim = torch.optim.Adam(model.parameters(), lr=1e-2)
    for k in range(steps):
        optim.param_groups[0]["lr"] = 1e-2 * (1 - k / steps)
        rows = torch.randint(6, (16, 8))
        mels = sounds[rows].repeat_interleave(2, 1).transpose(1, 2)
        loss, _ = flow_loss(model, rows, mels, torch.ones(16, 6), prior=1.0)
        optim.zero_grad()
        loss.backward()
        optim.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.4 * sum(losses[:10])
    row, plain = ids(15, 9) % 6, Voice.of(torch.ones(6), 8)
    wanted = sounds[row].repeat_interleave(2, 0).T
    stream = FlowStream(model.eval(), [begin(model, plain, Rules.of(model))])
    streamed = torch.cat([stream.decode(row[None]), stream.flush()], 2)[0]
    for mel in (model.mels([row], [plain])[0], streamed):
        assert (mel - wanted).abs().mean() < 0.5 * wanted.abs().mean()
