"""The flow-matching loss and the samplers, against numbers worked out by hand."""

import math

import pytest
import torch

from gamut.losses.flow import dropped, flow_matching, path
from gamut.nn.ode import cosine, cosine_times, euler, guided


def test_the_path_and_its_velocity():
    x1, noise, t = torch.tensor([[2.0], [4.0]]), torch.tensor([[1.0], [-1.0]]), torch.tensor([0.25, 1.0])
    x_t, v = path(x1, noise, t)
    assert x_t.tolist() == [[1.25], [4.0]] and v.tolist() == [[1.0], [5.0]]
    x_t, v = path(x1, noise, t, sigma=0.5)
    assert x_t.tolist() == [[0.875 + 0.5], [4.0 - 0.5]] and v.tolist() == [[1.5], [4.5]]


def test_the_loss_by_hand():
    """Velocity 0 everywhere: the loss is the mean square of x1 - noise where the mask is 1."""
    x1, noise = torch.tensor([[[1.0, 2.0, 9.0]], [[3.0, 0.0, 0.0]]]), torch.zeros(2, 1, 3)
    mask, t = torch.tensor([[[1, 1, 0]], [[1, 0, 0]]]).float(), torch.tensor([0.25, 0.75])
    loss, stats = flow_matching(lambda x, t: torch.zeros_like(x), x1, t, noise, mask=mask)
    assert float(loss) == pytest.approx((1 + 4 + 9) / 3)
    assert float(stats["flow_mse_early"]) == pytest.approx(2.5) and float(stats["flow_mse_late"]) == pytest.approx(9)
    masked = x1.clone()
    masked[0, 0, 2] = 1e6  # what is masked does not count
    assert float(flow_matching(lambda x, t: 0 * x, masked, t, noise, mask=mask)[0]) == float(loss)


def test_the_loss_refuses_nonsense():
    x1 = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"times must lie in \[0, 1\], got 0 .. 2"):
        flow_matching(lambda x, t: x, x1, torch.tensor([0.0, 2.0]))
    with pytest.raises(ValueError, match="nothing counts: the mask"):
        flow_matching(lambda x, t: x, x1, mask=torch.zeros(2, 3))


def test_draws_are_uniform_times_and_normal_noise():
    torch.manual_seed(0)
    seen = {}

    def velocity(x, t):
        seen["x"], seen["t"] = x, t
        return torch.zeros_like(x)

    loss, _ = flow_matching(velocity, torch.zeros(4000, 2))
    assert float(loss) == pytest.approx(1, abs=0.05) and float(seen["t"].mean()) == pytest.approx(0.5, abs=0.02)


def test_conditions_drop_together():
    keep = torch.tensor([True, False])
    a, b = dropped(keep, torch.ones(2, 3), torch.ones(2, 3, 4))
    assert a.sum(1).tolist() == [3, 0] and b.sum((1, 2)).tolist() == [12, 0]


def test_time_grids():
    assert cosine_times(3).tolist() == pytest.approx([1 - math.cos(math.pi * k / 6) for k in range(4)], abs=1e-6)
    assert float(cosine(torch.tensor(1.0))) == pytest.approx(1)
    with pytest.raises(ValueError, match="at least 1 step, got 0"):
        cosine_times(0)


def test_solvers_follow_a_known_path():
    """dx/dt = x from 1: e at t = 1. The error halves with twice the steps."""
    ends = [float(euler(lambda x, t: x, torch.ones(1), torch.linspace(0, 1, n + 1))) for n in (20, 40)]
    assert (math.e - ends[0]) / (math.e - ends[1]) == pytest.approx(2, rel=0.1)
    straight = euler(lambda x, t: torch.full_like(x, 3.0), torch.zeros(2), cosine_times(7))
    assert straight.tolist() == pytest.approx([3, 3], abs=1e-5)  # a straight path is exact on any grid


def test_guidance():
    a, b = torch.tensor([2.0]), torch.tensor([1.0])
    assert guided(a, b, 0.7).tolist() == pytest.approx([1.7 * 2 - 0.7]) and torch.equal(guided(a, b, 0), a)
