"""Int8 weights: error bounds, the size of an 8 B model, and the memory that loading really takes."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

from gamut.io.convert import export
from gamut.io.folders import save_folder
from gamut.io.meta import meta
from gamut.models.int8 import load_int8
from gamut.models.lm import LM, LMConfig, MoEConfig
from gamut.models.omni import Omni, OmniConfig
from gamut.nn import int8
from gamut.nn.int8 import PACKED_ROWS, Int8Linear, quantise, use_int8

MINI = LMConfig(
    vocab=158720, width=3584, layers=28, heads=28, kv_heads=4, head_dim=128, ffn=18944, qkv_bias=True,
    max_positions=16384,
)  # fmt: skip
SMALL = LMConfig(vocab=80, width=64, layers=2, heads=4, kv_heads=2, head_dim=16, ffn=96, qkv_bias=True)


def filled(linear: nn.Linear, dtype=torch.bfloat16) -> Int8Linear:
    layer = Int8Linear(linear.in_features, linear.out_features, linear.bias is not None, dtype)
    layer.weight, layer.scale = quantise(linear.weight.detach(), dtype)
    if linear.bias is not None:
        layer.bias = linear.bias.detach().to(dtype)
    return layer


@given(st.integers(0, 1000), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
@settings(max_examples=30, deadline=None)
def test_no_weight_moves_by_more_than_half_a_step(seed, dtype):
    torch.manual_seed(seed)
    weight = torch.randn(7, 33) * torch.logspace(-2, 2, 7)[:, None]
    weight[3] = 0
    q, scale = quantise(weight, dtype)
    step = scale.float()[:, None]
    assert ((q.float() * step - weight).abs() <= 0.5001 * step).all() and q.abs().max() == 127
    assert (q[3] == 0).all()


@pytest.mark.parametrize("rows", [1, PACKED_ROWS, PACKED_ROWS + 1, 40])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_layer_computes_with_the_rounded_weight(monkeypatch, rows, dtype, tolerance):
    """Both kernels, and more outputs than one block."""
    torch.manual_seed(0)
    monkeypatch.setattr(int8, "BLOCK", 64 * 50)
    layer = filled(nn.Linear(64, 120), dtype)
    x = torch.randn(2, rows, 64).to(dtype)[:1]
    weight = layer.weight.float() * layer.scale.float()[:, None]
    want = x.float() @ weight.T + layer.bias.float()
    got = layer(x)
    assert got.dtype == dtype and got.shape == (1, rows, 120)
    torch.testing.assert_close(got.float(), want, atol=tolerance, rtol=tolerance)


def test_inputs_that_lie_turned_in_memory_are_taken():
    """As the convolutions in front of an encoder give them."""
    layer, x = filled(nn.Linear(64, 30), torch.bfloat16), torch.randn(1, 64, 5, dtype=torch.bfloat16).transpose(1, 2)
    assert torch.equal(layer(x), layer(x.contiguous()))


@pytest.mark.parametrize("width, offset", [(24, 0), (8, 0), (40, 0), (64, 1), (64, 8)])
def test_widths_and_places_that_the_packed_kernel_crashes_on(width, offset):
    layer, room = filled(nn.Linear(width, 30), torch.bfloat16), torch.randn(3 * width + offset).bfloat16()
    x = room[offset:].view(3, width)
    want = x.float() @ (layer.weight.float() * layer.scale.float()[:, None]).T + layer.bias.float()
    torch.testing.assert_close(layer(x).float(), want, atol=0.05, rtol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_pass_through_to_the_input(dtype):
    layer, x = filled(nn.Linear(64, 30), dtype), torch.randn(3, 64, dtype=dtype, requires_grad=True)
    layer(x).float().sum().backward()
    want = (layer.weight.float() * layer.scale.float()[:, None]).sum(0).expand(3, 64)
    torch.testing.assert_close(x.grad.float(), want, atol=0.05 if dtype == torch.bfloat16 else 1e-5, rtol=0.02)
    assert not list(layer.parameters())


def test_mini_is_below_ten_gigabytes():
    """Step-Audio 2 mini: 8,315,179,264 parameters, embedding, norms and convolutions in bf16, all else int8."""
    with meta():
        model = Omni(OmniConfig(lm=MINI))
    parameters = sum(p.numel() for p in model.parameters())
    names = use_int8(model.to(torch.bfloat16))
    size = sum(t.nbytes for t in model.state_dict().values())
    assert parameters == 8_315_179_264 and len(names) == 391
    assert size == 8_900_957_696 < 10e9


def logits_of(model, ids):
    with torch.no_grad():
        return model(ids).float()


@pytest.mark.parametrize(
    "config",
    [SMALL, replace(SMALL, tied=True), replace(SMALL, moe=MoEConfig(4, 4, 32, shared_ffn=48))],
    ids=["dense", "tied", "moe"],  # of the mixture every expert runs: no near-tie can flip a choice
)
def test_ours_and_official_folders_load_to_the_same_close_model(tmp_path, config):
    torch.manual_seed(0)
    model, ids = LM(config).eval(), torch.arange(40).view(2, 20)
    model.save_pretrained(tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "hf")
    exact = logits_of(model, ids)
    small = load_int8(tmp_path / "ours", torch.float32)
    got = logits_of(small, ids)
    assert torch.equal(got, logits_of(load_int8(tmp_path / "hf", torch.float32), ids))
    relative = (got - exact).pow(2).mean().sqrt() / exact.pow(2).mean().sqrt()
    assert relative < 0.03, relative
    half = logits_of(load_int8(tmp_path / "ours"), ids)
    reference = logits_of(LM.from_pretrained(tmp_path / "ours", torch.bfloat16), ids)
    assert (half - exact).pow(2).mean() < 4 * (reference - exact).pow(2).mean() + (0.02 * exact).pow(2).mean()


def test_the_released_layout_of_step_audio_2(golden, tmp_path):
    with safe_open(golden / "step_audio_2_lm.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        config = json.loads(file.metadata()["config"])
    weights = {key[2:]: t for key, t in tensors.items() if key.startswith("w.")}
    save_folder(tmp_path, weights, {"model_type": "step_audio_2"} | config)
    model, inputs = load_int8(tmp_path, torch.float32), [tensors[f"in.{k}"] for k in ("input_ids", "mels", "mel_lens")]
    wanted, seen = tensors["out.logits"], tensors["in.attention_mask"].bool()
    with torch.no_grad():
        error = (model(*inputs) - wanted)[seen].pow(2).mean() / wanted[seen].pow(2).mean()
    assert isinstance(model.encoder.blocks[0].mlp.up, Int8Linear) and error.sqrt() < 0.05


def test_kept_layers_stay_in_floating_point(tmp_path):
    LM(SMALL).save_pretrained(tmp_path)
    model = load_int8(tmp_path, keep=["head"])
    assert isinstance(model.head, nn.Linear) and isinstance(model.blocks[0].attn.q, Int8Linear)
    assert model.head.weight.dtype == model.embed.weight.dtype == torch.bfloat16


def test_greedy_decoding_with_a_cache_follows_the_uncached_model(tmp_path):
    torch.manual_seed(0)
    LM(SMALL).save_pretrained(tmp_path)
    model = load_int8(tmp_path, torch.float32)
    cache, ids = model.new_cache(1, 16), torch.arange(12)[None]
    with torch.no_grad():
        steps = torch.cat([model(ids[:, t : t + 1], cache=cache) for t in range(12)], 1)
        torch.testing.assert_close(steps, model(ids), atol=1e-5, rtol=0)


def test_misfitting_checkpoints_are_reported(tmp_path):
    model = LM(SMALL)
    model.blocks[0].attn.q = nn.Linear(64, 60)
    model.norm.extra = nn.Parameter(torch.ones(1))
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"1 unexpected: norm.extra; 3 mis-shaped: .*q.weight \(60, 64\) instead of"):
        load_int8(tmp_path)


PEAK = """
import re, sys, torch
torch.set_num_threads(1)
from gamut.models.int8 import load_int8

def kilobytes(name):  # not getrusage: its maximum survives exec, so it would be the parent's
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1])

before = kilobytes("VmRSS")
model = load_int8(sys.argv[1])
print((kilobytes("VmHWM") - before) * 1024, sum(t.nbytes for t in model.state_dict().values()))
"""


def sparse(path, tensors) -> int:
    """A safetensors file of float32 zeros that takes no room on the disk; returns the bytes of its tensors."""
    header, end = {}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return end


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux to measure")
def test_loading_never_holds_the_float_model(tmp_path):
    """Peak resident memory, file pages included, of a process that loads 595 MB of floats: what it keeps and 160 MB."""
    config = LMConfig(vocab=8192, width=1024, layers=10, heads=8, kv_heads=2, head_dim=128, ffn=3456, qkv_bias=True)
    with meta():
        shapes = LM(config).state_dict()
    floats = sparse(tmp_path / "model.safetensors", shapes)
    (tmp_path / "config.json").write_text(json.dumps({"gamut": "0", "class": "LM", "config": asdict(config)}))
    done = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path)], capture_output=True, text=True, check=True)
    grown, kept = map(int, done.stdout.split())
    text = f"{grown / 1e6:.0f} MB for {kept / 1e6:.0f} of {floats / 1e6:.0f} MB"
    assert kept < grown < kept + 160e6 < 0.6 * floats, text
