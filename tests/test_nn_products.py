"""Kernels chosen for speed against torch's own: linear layers, RMS norm, and the loss that never holds all logits."""

import pytest
import torch
from torch.nn import functional as F

from gamut.losses.from_hidden import next_token_from_hidden
from gamut.nn import linear as module
from gamut.nn.linear import Linear, linear, onednn
from gamut.nn.norm import SMALLEST, RMSNorm


@pytest.fixture
def always(monkeypatch):
    """Every product takes the detour, however small."""
    monkeypatch.setattr(module, "SMALLEST", 0)


@pytest.mark.skipif(not onednn(), reason="needs oneDNN and AVX-512")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(7, 16), (2, 3, 16), (16,)])
def test_linear_equals_torch_in_values_and_gradients(always, monkeypatch, bias, shape):
    torch.manual_seed(0)
    calls = []
    monkeypatch.setattr(module, "_call", lambda x, w, plain=module._call: calls.append(1) or plain(x, w))
    for outputs in (5, 40):  # fewer and more than inputs: the backward pass orders its product by that
        x, weight = torch.randn(shape, requires_grad=True), torch.randn(outputs, 16, requires_grad=True)
        b = torch.randn(outputs, requires_grad=True) if bias else None
        grad = torch.randn(*shape[:-1], outputs)
        given = [t for t in (x, weight, b) if t is not None]
        results = [[y, *torch.autograd.grad(y, given, grad)] for y in (linear(x, weight, b), F.linear(x, weight, b))]
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)
    assert calls


@pytest.mark.skipif(not onednn(), reason="needs oneDNN and AVX-512")
@pytest.mark.parametrize("bias", [False, True])
def test_one_row_equals_torch(monkeypatch, bias):
    """Only without gradients, and only where the outputs outnumber the inputs."""
    torch.manual_seed(0)
    calls, plain = [], torch.linalg.vecdot
    monkeypatch.setattr(torch.linalg, "vecdot", lambda *pair: calls.append(1) or plain(*pair))
    weight, b, x = torch.randn(300, 64), torch.randn(300) if bias else None, torch.randn(1, 1, 64)
    with torch.no_grad():
        torch.testing.assert_close(linear(x, weight, b), F.linear(x, weight, b), atol=1e-5, rtol=1e-5)
        assert len(calls) == 1
        linear(torch.randn(1, 300), weight.T)
        linear(torch.randn(2, 64), weight)
    linear(x, weight, b)
    assert len(calls) == 1


@pytest.mark.skipif(not onednn(), reason="needs oneDNN and AVX-512")
def test_linear_can_be_differentiated_twice(always):
    x = torch.randn(3, 4, requires_grad=True)
    weight = torch.randn(5, 4, requires_grad=True)

    def penalty(product):
        (slope,) = torch.autograd.grad(product(x, weight).tanh().sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), [x, weight])

    for ours, theirs in zip(penalty(linear), penalty(F.linear), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_linear_leaves_other_precisions_and_devices_to_torch(always):
    layer = Linear(8, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(2, 8)).dtype == torch.bfloat16
    assert layer.double()(torch.randn(2, 8, dtype=torch.float64)).dtype == torch.float64
    assert layer.to("meta")(torch.empty(2, 8, device="meta", dtype=torch.float64)).shape == (2, 4)


def test_the_probe_leaves_the_random_state_alone():
    onednn.cache_clear()
    before = torch.get_rng_state()
    onednn()
    assert torch.equal(before, torch.get_rng_state())


def test_rms_norm_equals_torch_in_values_and_gradients():
    torch.manual_seed(0)
    norm = RMSNorm(64, 1e-5)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(SMALLEST // 64 // 4, 4, 64, requires_grad=True)
    grad = torch.randn_like(x)
    results = [
        [y, *torch.autograd.grad(y, [x, norm.weight], grad)] for y in (norm(x), F.rms_norm(x, (64,), norm.weight, 1e-5))
    ]
    assert "_RMSNorm" in type(norm(x).grad_fn).__name__
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)


def test_loss_from_hidden_states_makes_only_the_gradients_asked_for(always):
    torch.manual_seed(0)
    x, head, ids = torch.randn(2, 6, 8), torch.randn(30, 8), torch.randint(0, 30, (2, 6))
    want = F.cross_entropy((x @ head.T)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(next_token_from_hidden(x, head, ids)[0], want)
    for which in (x, head):  # a frozen head, frozen features
        which.requires_grad_()
        loss, _ = next_token_from_hidden(x, head, ids, chunk=4)
        expected = F.cross_entropy((x @ head.T)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        for a, b in zip(torch.autograd.grad(loss, which), torch.autograd.grad(expected, which), strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)
        which.requires_grad_(False)


def test_losses_of_hopeless_predictions_stay_finite():
    x, head = torch.full((1, 2, 4), 300.0), torch.eye(4)
    head[1] = -1.0
    assert next_token_from_hidden(x, head, torch.tensor([[0, 1]]))[0].item() == pytest.approx(1500 + 1.0986, rel=1e-4)
