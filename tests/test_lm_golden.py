"""Official weights and outputs: every family must give the recorded numbers under the official key names."""

import json
from dataclasses import asdict

import pytest
import torch
from safetensors import safe_open

from gamut.io.folders import load_strict
from gamut.io.keys import qwen, step1
from gamut.losses.balance import balance
from gamut.losses.from_hidden import next_token_from_hidden
from gamut.losses.next_token import next_token
from gamut.models.lm import LM, LMConfig
from gamut.nn.alibi import slopes

QWEN = ["qwen2", "qwen2_tied", "qwen3", "qwen2_moe", "qwen3_moe"]


def read(golden, name):
    with safe_open(golden / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        config = json.loads(file.metadata()["config"])
    parts = {p: {k[len(p) + 1 :]: v for k, v in tensors.items() if k.startswith(p + ".")} for p in ("w", "in", "out")}
    return config, parts["w"], parts["in"], parts["out"]


def build(config, weights, keys):
    model = LM(LMConfig.from_dict(keys.config_from_official(config)))
    load_strict(model, keys.to_ours(weights, asdict(model.config)), "fixture")
    return model.eval()


def greedy(model, ids, count):
    for _ in range(count):
        ids = torch.cat([ids, model(ids)[:, -1:].argmax(-1)], dim=1)
    return ids[:, -count:]


@pytest.mark.parametrize("name", QWEN)
@torch.no_grad()
def test_qwen_matches_the_official_outputs(golden, name):
    config, weights, given, want = read(golden, name)
    model = build(config, weights, qwen)
    ids, mask = given["input_ids"], given["attention_mask"]
    first, routing = [], []
    hook = model.blocks[0].register_forward_hook(lambda _m, _i, out: first.append(out[0]))
    hidden = model.hidden(ids, mask_BT=mask, routing=routing)
    hook.remove()
    logits, seen = model.head(hidden), mask.bool()
    torch.testing.assert_close(logits[seen], want["logits"][seen], atol=1e-4, rtol=0)
    torch.testing.assert_close(first[0][seen], want["hidden_first"][seen], atol=1e-4, rtol=0)
    loss, _ = next_token(logits, ids, mask)
    fused, _ = next_token_from_hidden(hidden, model.head.weight, ids, mask)
    torch.testing.assert_close(torch.stack([loss, fused]), want["loss"].expand(2), atol=1e-4, rtol=0)
    assert torch.equal(greedy(model, given["prompt_ids"], 8), want["greedy_ids"])
    if "aux_loss" in want:
        for layer, logits in enumerate(routing):
            want_logits = want[f"router_logits.{layer}"][seen.flatten()]
            torch.testing.assert_close(logits[seen.flatten()], want_logits, atol=1e-4, rtol=0)
        aux, _ = balance(routing, model.config.moe.top_k, mask.flatten())
        torch.testing.assert_close(aux, want["aux_loss"][0], atol=1e-4, rtol=0)
        assert f"router_logits.{len(routing)}" not in want


@torch.no_grad()
def test_step1_matches_the_official_outputs(golden):
    config, weights, given, want = read(golden, "step1_lm")
    model = build(config, weights, step1)
    ids = given["input_ids"]
    hidden = model.hidden(ids)
    torch.testing.assert_close(hidden, want["hidden"], atol=1e-4, rtol=0)
    torch.testing.assert_close(model.head(hidden), want["logits"], atol=1e-4, rtol=0)
    cache = model.new_cache(*ids.shape)
    model(ids[:, :-4], cache=cache)
    steps = [model(ids[:, t : t + 1], cache=cache) for t in range(ids.shape[1] - 4, ids.shape[1])]
    torch.testing.assert_close(torch.cat(steps, 1), want["cached_logits"], atol=1e-4, rtol=0)


def test_step1_slopes_match_with_and_without_stretching(golden):
    _, _, _, want = read(golden, "step1_lm")
    cases = [name for name in want if name.startswith("slopes.")]
    assert len(cases) == 21
    for name in cases:
        heads, ratio = (f"{name}.ratio1").split(".")[1:3]
        ours = torch.tensor(slopes(int(heads), float(ratio.removeprefix("ratio"))))
        torch.testing.assert_close(ours, want[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", [*QWEN, "step1_lm"])
def test_key_maps_and_configs_round_trip(golden, name):
    config, weights, _, _ = read(golden, name)
    keys = step1 if name == "step1_lm" else qwen
    model = build(config, weights, keys)
    back = keys.to_official(model.state_dict(), asdict(model.config))
    assert back.keys() == weights.keys() and all(torch.equal(back[k], weights[k]) for k in weights)
    official = json.loads(json.dumps(keys.config_to_official(asdict(model.config))))
    assert LMConfig.from_dict(keys.config_from_official(official)) == model.config
