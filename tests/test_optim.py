"""Schedules, groups, decay, freezing and the running average, against numbers worked out here."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from gamut.io.learners import pack, unpack
from gamut.train.optim import Group, Learner, Optim, Phase


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm(4)
        self.inner = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5, bias=False)

    def forward(self, ids):
        return self.head(self.inner(self.norm(self.embed(ids))))


def by_name(learner):
    return {
        name: (group["scale"], group["weight_decay"]) for group in learner.adam.param_groups for name in group["names"]
    }


def test_schedules_at_hand_picked_steps():
    constant, linear, cosine = (
        Optim(lr=2.0, schedule=s, warmup=4, final=0.1) for s in ("constant", "linear", "cosine")
    )
    assert [constant.at(i, 14) for i in (0, 1, 3, 4, 13)] == [0.5, 1.0, 2.0, 2.0, 2.0]
    assert [round(linear.at(i, 14), 9) for i in (0, 4, 9, 14)] == [0.5, 2.0, 1.1, 0.2]
    assert [round(cosine.at(i, 14), 9) for i in (0, 4, 9, 14, 99)] == [0.5, 2.0, 1.1, 0.2, 0.2]
    assert Optim(lr=1.0, schedule="linear").at(99, 100) == pytest.approx(0.01)  # the last update still moves


def test_matrices_decay_and_nothing_else():
    rates = by_name(Learner(Phase("model", Tiny(), Optim(weight_decay=0.3))))
    assert {name for name, (_, decay) in rates.items() if decay == 0.3} == {"inner.weight", "head.weight"}
    assert rates["embed.weight"] == rates["norm.weight"] == rates["inner.bias"] == (1.0, 0.0)


def test_the_first_matching_group_counts_and_lr_scale_0_freezes():
    groups = (Group("inner.bias", lr_scale=3.0), Group("inner.*", lr_scale=0.0), Group("embed*", 0.5, weight_decay=0.7))
    learner = Learner.all(Tiny(), Optim(lr=1.0, groups=groups))[0]
    rates = by_name(learner)
    assert rates["inner.bias"] == (3, 0.0) and rates["embed.weight"] == (0.5, 0.7) and "inner.weight" not in rates
    with learner.alone():
        assert not learner.phase.modules.inner.weight.requires_grad
    assert learner.phase.modules.inner.weight.requires_grad  # the next stage may train it


def test_learning_rates_reach_adam():
    model = Tiny()
    learner = Learner.all(model, Optim(lr=1.0, groups=(Group("head*", lr_scale=0.25),)))[0]
    before = model.head.weight.detach().clone(), model.inner.bias.detach().clone()
    model(torch.arange(5)).square().sum().backward()
    learner.apply(0.1)
    first = (model.inner.bias.detach() - before[1]).abs().max()  # of Adam, whatever the gradient: the learning rate
    assert first == pytest.approx(0.1, rel=1e-4)
    decayed = before[0] * (1 - 0.1 * 0.25 * 0.1)
    assert (model.head.weight.detach() - decayed).abs().max() == pytest.approx(0.025, rel=1e-4)


def test_average_starts_fast_and_swaps_in():
    model = nn.Linear(1, 1, bias=False)
    learner = Learner.all(model, Optim(ema=0.5, weight_decay=0.0))[0]
    value = average = model.weight.item()
    for n in range(8):
        model.weight.grad = torch.ones(1, 1)
        learner.apply(0.1)
        value = model.weight.item()
        decay = min(0.5, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * value
    with learner.averaged():
        assert model.weight.item() == pytest.approx(average, abs=1e-6) and abs(average - value) > 0.05
    assert model.weight.item() == value


def test_tied_weights_are_averaged_under_both_names():
    model = Tiny()
    model.head.weight = model.embed.weight
    learner = Learner.all(model, Optim(ema=0.9))[0]
    model(torch.arange(5)).sum().backward()
    learner.apply(0.1)
    files = pack(learner)
    assert torch.equal(files["model.ema"]["head.weight"], files["model.ema"]["embed.weight"])
    assert not torch.equal(files["model.ema"]["embed.weight"], files["model"]["embed.weight"])
    assert files["model.ema"].keys() == files["model"].keys() == model.state_dict().keys()


def test_clip_is_torchs():
    a, b = Tiny(), Tiny()
    b.load_state_dict(a.state_dict())
    for model in (a, b):
        (100 * model(torch.arange(5)).square().sum()).backward()
    norm = Learner.all(a, Optim(clip=0.5))[0].clip(1.0)
    assert torch.equal(norm, torch.nn.utils.clip_grad_norm_(b.parameters(), 0.5))
    assert all(torch.equal(x.grad, y.grad) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert torch.nn.utils.get_total_norm([p.grad for p in a.parameters()]) == pytest.approx(0.5, rel=1e-4)


def test_clip_inf_measures_only():
    model = Tiny()
    model(torch.arange(5)).square().sum().backward()
    before = model.head.weight.grad.clone()
    norm = Learner.all(model, Optim(clip=math.inf))[0].clip(2.0)
    assert torch.equal(model.head.weight.grad, before / 2) and norm > 0


def test_errors_name_the_setting():
    with pytest.raises(ValueError, match="schedule must be constant, cosine or linear; got 'cos'"):
        Optim(schedule="cos")
    with pytest.raises(ValueError, match=r"final must lie in \[0, 1\], got 2.0"):
        Optim(final=2.0)
    with pytest.raises(ValueError, match="clip must be above 0"):
        Optim(clip=0.0)
    message = r"no parameter of phase 'model' matches 'inner.weight_x'; closest: inner.weight"
    with pytest.raises(ValueError, match=message):
        Learner.all(Tiny(), Optim(groups=(Group("inner.weight_x"),)))
    with pytest.raises(ValueError, match="nothing to train: all 6 parameters are frozen"):
        Learner.all(Tiny(), Optim(groups=(Group("*", lr_scale=0.0),)))
    with pytest.raises(ValueError, match="phases need different names"):
        Learner.all([Phase("a", Tiny()), Phase("a", Tiny())])
    with pytest.raises(ValueError, match="optim is for a bare module"):
        Learner.all([Phase("a", Tiny())], Optim())
    with pytest.raises(ValueError, match="every is a period in steps"):
        Phase("a", Tiny(), every=0)
    with pytest.raises(ValueError, match=r"letters, digits, _ and - only; got 'a/b'"):
        Phase("a/b", Tiny())


def test_modules_that_share_a_weight_update_it_once():
    a, b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    b.weight = a.weight
    learner = Learner.all([Phase("both", {"a": a, "b": b}, Optim(ema=0.9))])[0]
    assert list(learner.params) == ["a.weight"]
    a.weight.grad = torch.ones(3, 3)
    learner.apply(0.1)
    files = pack(learner)
    assert files["both.a.ema"].keys() == files["both.b.ema"].keys() == {"weight"}
    assert torch.equal(files["both.a.ema"]["weight"], files["both.b.ema"]["weight"])
    with pytest.raises(
        ValueError, match=r"'here/both.a.safetensors' does not fit what is trained here: 1 missing: weight"
    ):
        unpack(learner, {}, Path("here"))
