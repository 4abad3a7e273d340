"""Parity of the language models: Qwen2, Qwen3, their mixtures of experts, Step-1."""

from dataclasses import asdict, replace

import torch
from torch import Tensor

from gamut.evals.fixtures import Fixture, Ours
from gamut.generate.ar import generate
from gamut.generate.sampling import Sampling
from gamut.io.folders import load_strict
from gamut.io.keys import qwen, step1
from gamut.losses.balance import balance
from gamut.losses.next_token import next_token
from gamut.models.lm import LM, LMConfig
from gamut.nn.alibi import slopes
from gamut.nn.rope import angles


def _built(fixture: Fixture, keys) -> LM:
    config = LMConfig.from_dict(keys.config_from_official(fixture.config))
    model = LM(replace(config, max_positions=1 << 20))  # official code decodes beyond the declared length, ours stops
    load_strict(model, keys.to_ours(fixture.weights, asdict(model.config)), fixture.path)
    return model.eval()


def run_qwen(fixture: Fixture) -> dict[str, Ours]:
    """logits and loss as in use; hidden_first and router_logits at padded positions too, see `_padded_alike`."""
    model, given = _built(fixture, qwen), fixture.inputs
    ids = given["input_ids"]
    mask = given.get("attention_mask", torch.ones_like(ids))
    logits = model(ids, mask_BT=mask)
    first, routing = _padded_alike(model, ids, mask.bool())
    ours = {
        "logits": Ours(logits, mask.bool()[..., None]),
        "hidden_first": Ours(first),
        "loss": Ours(next_token(logits, ids, mask)[0][None]),
    }
    if "greedy_ids" in fixture.outputs:
        greedy = Sampling(temperature=0.0, max_new=fixture.outputs["greedy_ids"].shape[1])
        samples = generate(model, given["prompt_ids"].tolist(), greedy)
        ours["greedy_ids"] = Ours(torch.tensor([sample.ids for sample in samples]))
    ours |= {f"router_logits.{layer}": Ours(value) for layer, value in enumerate(routing)}
    if routing and model.config.moe:
        ours["aux_loss"] = Ours(balance(routing, model.config.moe.top_k, mask.flatten())[0][None])
    return ours


def _padded_alike(model: LM, ids_BT: Tensor, real_BT: Tensor) -> tuple[Tensor, list[Tensor]]:
    """First block's output and router logits, with padding masked as the official models do it.

    Ours leaves padding unmasked (no real token sees it) and its values there mean nothing; the fixtures hold them.
    """
    x_BTD, T = model.embed(ids_BT), ids_BT.shape[1]
    turn = angles(torch.arange(T), model.config.head_dim, model.config.rope_theta)
    mask = torch.ones(T, T, dtype=torch.bool).tril() & real_BT[:, None, None, :]
    outputs, routing = [], []
    for block in model.blocks:
        x_BTD, logits_NE = block(x_BTD, turn, mask, None)
        outputs.append(x_BTD)
        routing += [] if logits_NE is None else [logits_NE]
    return outputs[0], routing


def run_step1(fixture: Fixture) -> dict[str, Ours]:
    """Slopes are named slopes.HEADS and slopes.HEADS.ratioR."""
    model, ids = _built(fixture, step1), fixture.inputs["input_ids"]
    hidden = model.hidden(ids)
    ours = {"hidden": Ours(hidden), "logits": Ours(model.head(hidden))}
    if "cached_logits" in fixture.outputs:
        first = ids.shape[1] - fixture.outputs["cached_logits"].shape[1]
        cache = model.new_cache(*ids.shape)
        model(ids[:, :first], cache=cache)
        steps = [model(ids[:, t : t + 1], cache=cache) for t in range(first, ids.shape[1])]
        ours["cached_logits"] = Ours(torch.cat(steps, 1))
    for name in fixture.outputs:
        if name.startswith("slopes."):
            heads, _, ratio = name.removeprefix("slopes.").partition(".ratio")
            ours[name] = Ours(torch.tensor(slopes(int(heads), float(ratio or 1))))
    return ours
