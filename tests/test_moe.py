"""Mixture of experts: every way of computing it against the plain sum over experts; the balance loss by hand."""

import pytest
import torch
from torch.nn import functional as F

from gamut.losses.balance import balance
from gamut.nn.moe import Experts, MoE, _grouped_error, grouped_works

E, D, H = 5, 16, 24


def make(**kw):
    torch.manual_seed(0)
    return MoE(D, E, 2, H, **kw)


def dense(moe, x):
    """The slow twin: every expert sees every token, its output times the weight it got (mostly 0)."""
    weight, pick = moe.router(x).softmax(-1).topk(moe.top_k, dim=-1)
    if moe.renormalise:
        weight = weight / weight.sum(-1, keepdim=True)
    share = torch.zeros(len(x), E).scatter(1, pick, weight)
    experts = zip(moe.experts.gate, moe.experts.up, moe.experts.down, strict=True)
    y = sum(
        share[:, e, None] * ((F.silu(x @ gate.T) * (x @ up.T)) @ down.T) for e, (gate, up, down) in enumerate(experts)
    )
    return y if moe.shared is None else y + moe.shared_gate(x).sigmoid() * moe.shared(x)


@pytest.mark.parametrize("shared, renormalise", [(0, True), (8, False)])
@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_sorted_experts_equal_the_dense_sum(shared, renormalise, tokens):
    """Values and all gradients; with few tokens some experts get none."""
    moe, x = make(shared=shared, renormalise=renormalise), torch.randn(tokens, D, requires_grad=True)
    results = []
    for y in (moe(x[None])[0][0], dense(moe, x)):
        grads = torch.autograd.grad(y.square().sum(), [x, *moe.parameters()])
        results.append([y, *grads])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_frozen_experts_pass_the_gradient_on():
    moe, x = make(), torch.randn(9, D, requires_grad=True)
    (want,) = torch.autograd.grad(moe(x)[0].square().sum(), x)
    moe.experts.requires_grad_(False)
    (got,) = torch.autograd.grad(moe(x)[0].square().sum(), x)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("tokens", [1, 12])
def test_half_precision_of_autocast_reaches_the_experts(tokens):
    """Values near those of fp32, weights' gradients in the weights' own precision."""
    moe, x = make(), torch.randn(tokens, D, requires_grad=True)
    want = moe(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        got = moe(x)[0]
    torch.testing.assert_close(got.float(), want, atol=0.05, rtol=0.05)
    got.float().square().sum().backward()
    assert x.grad.isfinite().all() and moe.experts.down.grad.dtype == torch.float32


def test_grouped_products_equal_the_loop():
    """Grouped products run on a CPU too, so both ways are compared everywhere."""
    assert _grouped_error("cpu", torch.float32) < 1e-4
    assert _grouped_error("cpu", torch.bfloat16) < 0.05


def test_a_plain_sum_of_grouped_outputs_has_gradients(monkeypatch):
    """A bare .sum() makes an expanded gradient, which the grouped kernel refuses; the weights in between spread it."""
    monkeypatch.setattr("gamut.nn.moe.grouped_works", lambda device, dtype: True)
    moe, x = make(), torch.randn(9, D)
    (got,) = torch.autograd.grad(moe(x)[0].sum(), [moe.experts.down])
    monkeypatch.undo()
    (want,) = torch.autograd.grad(moe(x)[0].sum(), [moe.experts.down])
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_the_probe_answers_for_devices_without_the_kernel():
    assert not grouped_works("cpu", torch.float32)
    assert not grouped_works("meta", torch.float32)


def test_an_expert_nobody_picks_gets_no_gradient():
    experts = Experts(3, D, H)
    pick = torch.tensor([[0, 2], [2, 0]])
    experts(torch.randn(2, D), pick, torch.ones(2, 2)).sum().backward()
    assert experts.gate.grad[1].abs().sum() == 0 and experts.gate.grad[2].abs().sum() > 0


def test_balance_by_hand():
    """Two tokens, three experts, top 1, probabilities (1/2, 1/4, 1/4) and (1/4, 1/2, 1/4)."""
    logits = torch.tensor([[2.0, 1.0, 1.0], [1.0, 2.0, 1.0]]).log()
    loss, stats = balance([logits], 1)
    # F = (1/2, 1/2, 0), P = (3/8, 3/8, 1/4): 3 (3/16 + 3/16)
    assert loss.item() == pytest.approx(9 / 8) and stats["busiest"] == 1.5 and stats["idlest"] == 0
    assert balance([logits], 1, torch.tensor([1, 0]))[0].item() == pytest.approx(3 * 0.5)


def test_balance_is_top_k_when_balanced_and_grows_with_collapse():
    even = torch.eye(4).repeat(8, 1) + torch.eye(4).roll(1, 0).repeat(8, 1)
    assert balance([even], 2)[0].item() == pytest.approx(2, rel=1e-5)
    assert balance([torch.tensor([[9.0, 8.0, 0.0, 0.0]]).repeat(32, 1)], 2)[0] > 3.9


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match=r"top_k must lie in 1 \.\. experts; got top_k=6, experts=5"):
        MoE(D, E, 6, H)
