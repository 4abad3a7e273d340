"""The loop against a hand-written one, its arithmetic, and going on after a stop at every step: bit by bit."""

import json
import math
import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from gamut.data.load import Batches
from gamut.io.learners import pack
from gamut.io.runs import Run
from gamut.io.state import reseed, saved
from gamut.train.loop import Fit, Interrupted, NotFiniteError, Quiet, View, fit, update
from gamut.train.optim import Group, Learner, Optim, Phase


def make(index):
    generator = torch.Generator().manual_seed(index)
    x = torch.randn(8, 4, generator=generator)
    return x, x.square().sum(1, keepdim=True)


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 1))


def regression(model):
    def step(batch, phase):
        noise = random.random() + float(np.random.rand())  # all three sources of randomness matter
        return (model(batch[0]) - batch[1] + 0.1 * noise).square().mean(), {"tokens": 8}

    return step


def adversaries():
    torch.manual_seed(1)
    maker, judge = nn.Linear(4, 4), net()
    phases = [
        Phase("maker", maker, Optim(lr=1e-2, ema=0.9)),
        Phase("judge", {"net": judge}, Optim(lr=2e-2, schedule="constant"), every=2),
    ]

    def step(batch, phase):
        fake = maker(batch[0] + 0.1 * torch.randn_like(batch[0]))
        if phase == "maker":
            return -judge(fake).mean(), {"size": fake.abs().mean().detach()}
        return F.softplus(judge(fake.detach())).mean() + F.softplus(-judge(batch[0])).mean(), {}

    return phases, step


def equal(a, b):
    """Whether two fits ended with the same bits: weights, buffers, moments, averages."""
    mine, yours = ({k: v for x in f.learners for k, v in pack(x).items()} for f in (a, b))
    return mine.keys() == yours.keys() and all(
        mine[file].keys() == yours[file].keys() and all(torch.equal(mine[file][n], yours[file][n]) for n in mine[file])
        for file in mine
    )


def test_fit_is_the_plain_loop():
    """The same bits as a loop that anybody would write."""
    by_fit, by_hand = net(), net()
    optim = Optim(lr=1e-2, schedule="linear", warmup=3, clip=1.0)
    result = fit(regression(by_fit), by_fit, Batches(make), steps=12, optim=optim, seed=5, view=Quiet())

    step, losses = regression(by_hand), []
    decay = [p for p in by_hand.parameters() if p.ndim > 1]
    rest = [p for p in by_hand.parameters() if p.ndim < 2]
    adam = torch.optim.AdamW(
        [{"params": decay}, {"params": rest, "weight_decay": 0.0}], weight_decay=0.1, betas=(0.9, 0.95), fused=True
    )
    for i in range(12):
        for group in adam.param_groups:
            group["lr"] = 1e-2 * min((i + 1) / 3, 1 - (i - 3) / 9)
        reseed(5, "train", i, "model", 0)
        loss, _ = step(make(i), "model")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
        losses.append(loss.item())
    assert result.loss == losses
    for name, value in by_hand.state_dict().items():
        assert torch.equal(by_fit.state_dict()[name], value), name


def test_accumulating_is_a_larger_batch():
    """Two micro-batches of 4 rows give the gradient of one of 8; no batch norm or dropout in this one."""
    models = [nn.Linear(4, 1), nn.Linear(4, 1)]
    models[1].load_state_dict(models[0].state_dict())
    half = [part for i in range(6) for part in zip(*(t.chunk(2) for t in make(i)), strict=True)]

    def step(model):
        return lambda batch, phase: (
            (model(batch[0]) - batch[1]).square().mean(),
            {"tokens": len(batch[0]), "half": 0.5},
        )

    whole = fit(step(models[0]), models[0], Batches(make), steps=6, view=Quiet())
    parts = fit(step(models[1]), models[1], Batches(lambda i: half[i]), steps=6, accumulate=2, view=Quiet())
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)
    assert torch.allclose(models[0].weight, models[1].weight, atol=1e-6)
    assert parts.stats["tokens"] == 8 and parts.stats["half"] == 0.5  # counts add up, the rest is averaged


def test_weights_make_unequal_parts_whole():
    """A mean over 8 targets split 6 and 2: with weights it is the same mean, without it is not."""
    whole, fair, naive = (nn.Linear(4, 1) for _ in range(3))
    fair.load_state_dict(whole.state_dict())
    naive.load_state_dict(whole.state_dict())
    x, y = make(0)
    parts = [(x[:6], y[:6]), (x[6:], y[6:])]

    def step(model, weighted):
        return lambda b, phase: ((model(b[0]) - b[1]).square().mean(), {"weight": len(b[0])} if weighted else {})

    optim = Optim(clip=math.inf)
    stats = [
        update(step(model, weighted), Learner.all(model, optim)[0], batches, 1e-2)
        for model, weighted, batches in ((whole, False, [(x, y)]), (fair, True, parts), (naive, False, parts))
    ]
    assert stats[1]["loss"] == pytest.approx(stats[0]["loss"], rel=1e-6) != stats[2]["loss"]
    assert stats[1]["grad_norm"] == pytest.approx(stats[0]["grad_norm"], rel=1e-5)
    assert abs(stats[2]["grad_norm"] / stats[0]["grad_norm"] - 1) > 1e-3 and "weight" not in stats[1]


def test_a_phase_leaves_the_others_alone():
    phases, step = adversaries()
    maker, judge = phases[0].modules, phases[1].modules["net"]
    seen = []

    def watch(batch, phase):
        loss, stats = step(batch, phase)
        grads = [all(p.requires_grad for p in m.parameters()) for m in (maker, judge)]
        assert all(p.grad is None for m in (maker, judge) for p in m.parameters())
        seen.append((phase, *grads, [p.detach().clone() for p in judge.parameters()]))
        return loss, stats

    result = fit(watch, phases, Batches(make), steps=4, view=Quiet())
    assert [entry[:3] for entry in seen] == [
        ("maker", True, False), ("judge", False, True), ("maker", True, False),
        ("maker", True, False), ("judge", False, True), ("maker", True, False),
    ]  # fmt: skip
    assert all(map(torch.equal, seen[0][3], seen[1][3]))  # maker's update did not move the judge
    assert all(map(torch.equal, seen[2][3], seen[3][3]))  # nor did the step in which it rests
    assert not all(map(torch.equal, seen[1][3], seen[2][3]))
    assert all(p.requires_grad and p.grad is None for m in (maker, judge) for p in m.parameters())
    assert {"maker/loss", "maker/size", "maker/lr"} <= result.stats.keys() and "judge/loss" not in result.stats


class Stop(Exception):  # noqa: N818
    pass


class StopAt(Quiet):
    """Kills training from inside, right after a step was logged."""

    def __init__(self, at):
        self.at = at

    def step(self, step, stats, seconds):
        if step == self.at:
            raise Stop


def build(kind):
    if kind == "two phases":
        phases, step = adversaries()
        return phases, step, {}
    model = net()
    settings = {"optim": Optim(lr=1e-2, warmup=2, ema=0.9, groups=(Group("0.bias", lr_scale=0.1),))}
    return model, regression(model), settings | {"accumulate": 3 if kind == "accumulated" else 1}


@pytest.mark.parametrize("kind", ["one phase", "accumulated", "two phases"])
def test_stopped_anywhere_goes_on_bit_by_bit(tmp_path, kind):
    """For every step at which it may die, and several deaths in one run: weights, moments, averages, losses and log."""

    def run_until(run, deaths, prefetch=0):
        for death in [*deaths, 0]:
            phases, step, settings = build(kind)
            torch.randn(death + 3), random.random()  # what was drawn before must not matter
            data = Batches(make, prefetch=prefetch)
            try:
                return fit(step, phases, data, steps=9, run=run, save_every=2, view=StopAt(death), **settings)
            except Stop:
                assert death

    base = Run.create(tmp_path, "base", {})
    whole = run_until(base, [])
    keep = ("stage", "step", *whole.stats)
    log = [{k: line[k] for k in keep if k in line and "second" not in k} for line in base.lines()]
    for deaths in [[1], [2], [3], [4], [5], [6], [7], [8], [9], [1, 3, 4, 8], [5, 5, 5]]:
        run = Run.create(tmp_path, "run", {})
        again = run_until(run, deaths, prefetch=2 * (len(deaths) > 1))
        assert equal(again, whole) and again.loss == whole.loss, deaths
        assert [{k: line[k] for k in keep if k in line and "second" not in k} for line in run.lines()] == log


def test_a_finished_stage_is_only_loaded(tmp_path):
    run = Run.create(tmp_path, "run", {})
    phases, step = adversaries()
    first = fit(step, phases, Batches(make), steps=5, run=run, stage="gan", view=Quiet())
    phases, step = adversaries()
    calls = []
    data = Batches(make)
    second = fit(lambda *a: calls.append(a), phases, data, steps=5, run=run, stage="gan", view=Quiet())
    assert equal(first, second) and not calls and data.state_dict() == {"index": 5}
    assert second.loss == first.loss and second.stats == first.stats and second.steps == 5
    longer = fit(step, phases, data, steps=7, run=run, stage="gan", view=Quiet())  # more steps: it goes on
    assert longer.steps == 7 and longer.loss[:5] == first.loss and len(longer.loss) == 7


def test_dice_outside_are_left_alone(tmp_path):
    """What a recipe draws after a stage is the same whether the stage was trained or loaded."""
    run, drawn = Run.create(tmp_path, "run", {}), []
    for _ in range(2):
        model = net()
        fit(regression(model), model, Batches(make), steps=3, run=run, view=Quiet())
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)


def test_weights_load_by_plain_safetensors(tmp_path):
    run = Run.create(tmp_path, "run", {})
    phases, step = adversaries()
    result = fit(step, phases, Batches(make), steps=3, run=run, view=Quiet())
    folder = saved(run.checkpoints("train"))[0]
    maker, judge = nn.Linear(4, 4), net(7)
    maker.load_state_dict(load_file(folder / "maker.safetensors"))
    judge.load_state_dict(load_file(folder / "judge.net.safetensors"))
    assert torch.equal(maker.weight, phases[0].modules.weight) and torch.equal(
        judge[0].weight, phases[1].modules["net"][0].weight
    )
    maker.load_state_dict(load_file(folder / "maker.ema.safetensors"))
    with result.averaged():
        assert torch.equal(maker.weight, phases[0].modules.weight)
    assert not torch.equal(maker.weight, phases[0].modules.weight)


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    run = Run.create(tmp_path, "run", {})
    model = net()
    fit(regression(model), model, Batches(make), steps=1, run=run, view=Quiet())
    other = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))
    with pytest.raises(ValueError, match=r"model.safetensors' does not fit .*5 unexpected: .*; 4 mis-shaped: 0.bias"):
        fit(regression(other), other, Batches(make), steps=2, run=run, view=Quiet())
    with pytest.raises(ValueError, match="has seed 0, this run 1; resume with the same seed"):
        fit(regression(model), model, Batches(make), steps=2, run=run, seed=1, view=Quiet())


class Notes(Quiet):
    def __init__(self):
        self.notes, self.steps, self.ended = [], [], 0

    def note(self, text):
        self.notes.append(text)

    def step(self, step, stats, seconds):
        self.steps.append((step, dict(stats), dict(seconds)))

    def end(self):
        self.ended += 1


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(tmp_path):
    run, results = Run.create(tmp_path, "run", {}), []
    for damage in (False, True):
        if damage:
            newest = saved(run.checkpoints("train"))[0] / "model.optim.safetensors"
            newest.write_bytes(newest.read_bytes()[:100])
        model, view = net(), Notes()
        results.append(fit(regression(model), model, Batches(make), steps=4, run=run, save_every=2, view=view))
    assert "step_00000004/model.optim.safetensors' is truncated: got 100 bytes of" in view.notes[0]
    assert [step for step, *_ in view.steps] == [3, 4] and equal(*results)


@pytest.mark.parametrize("bad_phase", ["maker", "judge"])
def test_a_loss_that_is_not_finite_stops_before_it_does_harm(tmp_path, bad_phase):
    """Weights and running statistics are those from before; resuming repeats exactly that step of that phase."""
    run = Run.create(tmp_path, "run", {})
    calls, seen = [], []

    def poisoned(step):
        def poison(batch, phase):
            calls.append(phase)
            loss, stats = step(batch, phase)
            seen.append((loss.item(), batch[0]))
            return (loss * math.nan if phase == bad_phase and torch.equal(batch[0], make(4)[0]) else loss), stats

        return poison

    phases, step = adversaries()
    with pytest.raises(
        NotFiniteError, match=r"loss is nan, .* at step 4 .*\{'index': 4\}.*nothing was updated; saved in"
    ) as error:
        fit(poisoned(step), phases, Batches(make), steps=6, run=run, save_every=3, view=Quiet())
    assert f"gamut run --resume {run.path}" in str(error.value)
    newest = saved(run.checkpoints("train"))[0]
    assert newest.name == "step_00000004" and all(
        t.isfinite().all() for t in load_file(newest / "judge.net.safetensors").values()
    )
    before, calls[:] = seen[-1], []
    phases, step = adversaries()
    with pytest.raises(NotFiniteError, match="at step 4"):  # the replay: the same numbers at once
        fit(poisoned(step), phases, Batches(make), steps=6, run=run, view=Quiet())
    assert calls == [bad_phase] and seen[-1][0] == before[0] and torch.equal(seen[-1][1], before[1])
    phases, step = adversaries()
    past = fit(step, phases, Batches(make), steps=6, run=run, view=Quiet())  # and with the cause mended it goes on
    phases, step = adversaries()
    whole = fit(step, phases, Batches(make), steps=6, view=Quiet())
    assert equal(past, whole) and past.loss == whole.loss


def test_a_gradient_that_is_not_finite_is_found_too():
    model = nn.Linear(4, 1)
    before = model.weight.detach().clone()

    def step(batch, phase):
        return (model(batch[0]) * 0).abs().sqrt().sum(), {}  # value 0, slope 0 times infinity

    with pytest.raises(
        NotFiniteError, match=r"loss is 0, gradient norm is nan .*nothing is saved, for fit was given no run"
    ):
        fit(step, model, Batches(make), steps=1, view=Quiet())
    assert torch.equal(model.weight, before)


def test_evaluation_sees_the_average_and_changes_nothing():
    seen = []
    model, plain = net(), net()

    def evaluate(step):
        torch.randn(step)
        seen.append((step, model.training, torch.is_grad_enabled(), model[0].weight.detach().clone()))
        return {"score": step / 2}

    optim, view = Optim(lr=1e-2, ema=0.95), Notes()
    assert isinstance(view, View)
    settings = {"evaluate": evaluate, "evaluate_every": 2, "view": view}
    result = fit(regression(model), model, Batches(make), steps=5, optim=optim, **settings)
    assert equal(result, fit(regression(plain), plain, Batches(make), steps=5, optim=optim, view=Quiet()))
    assert [entry[:3] for entry in seen] == [(2, False, False), (4, False, False), (5, False, False)]
    with result.averaged():
        assert torch.equal(seen[-1][3], model[0].weight)
    assert not torch.equal(seen[-1][3], model[0].weight)
    assert [stats.get("eval/score") for _, stats, _ in view.steps] == [None, 1.0, None, 2.0, 2.5]
    assert {"data", "forward", "backward", "optimiser", "wait"} <= view.steps[0][2].keys() and view.ended == 1


def test_what_is_logged(tmp_path):
    run, model = Run.create(tmp_path, "run", {}), net()
    fit(regression(model), model, Batches(make), steps=3, run=run, accumulate=2, view=Quiet())
    from gamut.train.log import meaning

    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"], line["tokens"]) for line in lines] == [("train", i, 16) for i in (1, 2, 3)]
    assert lines[0]["tokens_per_second"] > 16 and 0 < lines[0]["forward"] < 1
    assert not [name for name in lines[0] if not meaning(name) and name not in ("stage", "step", "time")]


def test_checkpointing_sets_the_switch_and_puts_it_back():
    class Switched(nn.Linear):
        checkpointing = False

    model, seen = Switched(4, 1), []

    def step(batch, phase):
        seen.append(model.checkpointing)
        return model(batch[0]).square().mean(), {}

    fit(step, model, Batches(make), steps=1, checkpointing=True, view=Quiet())
    assert seen == [True] and not model.checkpointing
    plain = nn.Linear(4, 1)
    with pytest.raises(ValueError, match="checkpointing=True, but Linear has no part with a `checkpointing` switch"):
        fit(step, plain, Batches(make), steps=1, checkpointing=True, view=Quiet())


def test_bfloat16_autocast_on_demand():
    model, kinds = nn.Linear(4, 4), []

    def step(batch, phase):
        y = model(batch[0])
        kinds.append(y.dtype)
        return y.float().square().mean(), {}

    for dtype in ("auto", "bfloat16"):
        fit(step, model, Batches(make), steps=1, dtype=dtype, view=Quiet())
    assert kinds == [torch.float32, torch.bfloat16] and model.weight.dtype == torch.float32
    with pytest.raises(ValueError, match="dtype must be auto, float32 or bfloat16; got 'float16'"):
        fit(step, model, Batches(make), steps=1, dtype="float16", view=Quiet())


def test_settings_out_of_range():
    model = net()
    with pytest.raises(ValueError, match=r"steps must be 1 or more.*got steps=0, accumulate=1"):
        fit(regression(model), model, Batches(make), steps=0, view=Quiet())


def test_modes_come_back():
    model = net().eval()
    fit(regression(model), model, Batches(make), steps=1, view=Quiet())
    assert not any(part.training for part in model.modules())
    assert isinstance(fit(regression(model), model, Batches(make), steps=1, view=Quiet()), Fit)
    assert issubclass(Interrupted, SystemExit)
    assert all(a.data_ptr() != b.data_ptr() for a, b in pairwise(model.parameters()))
