"""Low-rank adapters: exact merging, and the same folders and logits as peft on the official model."""

import json

import pytest
import torch
from torch import nn

from gamut.generate.ar import generate
from gamut.generate.sampling import Sampling
from gamut.io.convert import export
from gamut.models.adapters import load_lora, save_lora
from gamut.models.audio_encoder import AudioEncoderConfig
from gamut.models.lm import LM, LMConfig, MoEConfig
from gamut.models.omni import Omni, OmniConfig
from gamut.nn.lora import (
    LoRALinear,
    add_lora,
    attach_lora,
    fold_lora,
    lora_layers,
    lora_state,
    merge_lora,
    unmerge_lora,
)

CONFIG = LMConfig(
    vocab=50, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=48, qkv_bias=True, max_positions=64
)
MOE = LMConfig(
    vocab=50, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=48, qkv_bias=True, max_positions=64,
    moe=MoEConfig(experts=4, top_k=2, expert_ffn=16, shared_ffn=24),
)  # fmt: skip
IDS = torch.arange(24).view(2, 12) % 50


def tiny(config=CONFIG, seed=0) -> LM:
    torch.manual_seed(seed)
    return LM(config).eval()


def stirred(model, **options):
    """With adapters whose B is no longer zero."""
    add_lora(model, **options)
    torch.manual_seed(1)
    for _, layer in lora_layers(model):
        nn.init.normal_(layer.lora_B, std=0.1)
    return model


def test_new_adapters_change_nothing_and_alone_require_gradients():
    model = tiny()
    before = model(IDS)
    names = add_lora(model, rank=4)
    assert torch.equal(model(IDS), before)
    assert len(names) == 14 and "blocks.1.mlp.down" in names and "head" not in names
    wanted = {f"{name}.lora_{part}" for name in names for part in "AB"}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == wanted
    model(IDS).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_the_adapter_adds_alpha_over_rank_b_a():
    torch.manual_seed(0)
    base = nn.Linear(5, 3)
    layer = LoRALinear(base, rank=2, alpha=6.0)
    nn.init.normal_(layer.lora_B)
    x = torch.randn(4, 5)
    want = x @ base.weight.T + base.bias + 3.0 * (x @ layer.lora_A.T) @ layer.lora_B.T
    torch.testing.assert_close(layer(x), want)
    assert layer.weight is base.weight


def test_training_lowers_the_loss_and_leaves_the_base_alone():
    model = tiny()
    base = {k: v.clone() for k, v in model.state_dict().items()}
    add_lora(model, ["attn.*", "mlp.*"], rank=4)
    optim = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-2)

    def loss():
        return nn.functional.cross_entropy(model(IDS)[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())

    first = loss().item()
    for _ in range(20):
        optim.zero_grad()
        (now := loss()).backward()
        optim.step()
    assert now.item() < 0.7 * first
    assert all(torch.equal(model.state_dict()[name], weight) for name, weight in base.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merge_agrees_and_unmerge_restores_every_bit(dtype):
    model = stirred(tiny().to(dtype), rank=4)
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    apart = model(IDS)
    merge_lora(model)
    together = model(IDS)
    merge_lora(model)  # a second call changes nothing
    torch.testing.assert_close(together, apart, atol=1e-5 if dtype == torch.float32 else 0.1, rtol=0)
    assert torch.equal(model(IDS), together) and not torch.equal(together, tiny().to(dtype)(IDS))
    unmerge_lora(model)
    assert torch.equal(model(IDS), apart)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in weights.items())


def test_fold_leaves_a_plain_model():
    model = stirred(tiny(), rank=4)
    apart = model(IDS)
    fold_lora(model)
    assert model.state_dict().keys() == tiny().state_dict().keys()
    assert not list(lora_layers(model)) and all(p.requires_grad for p in model.parameters())
    torch.testing.assert_close(model(IDS), apart, atol=1e-5, rtol=0)


def test_generation_uses_the_adapters():
    """Apart, merged and folded decode the same ids, which are not the plain model's."""
    prompts, greedy = [[1, 2, 3], [4, 5]], Sampling(temperature=0.0, max_new=12)

    def ids(model):
        return [sample.ids for sample in generate(model, prompts, greedy)]

    plain = ids(tiny())
    model = stirred(tiny(), rank=4)
    apart = ids(model)
    merge_lora(model)
    merged = ids(model)
    unmerge_lora(model)
    again = ids(model)
    fold_lora(model)
    assert apart == merged == again == ids(model) and apart != plain


def test_half_precision_layers_get_float_adapters():
    model = tiny().to(torch.bfloat16)
    add_lora(model)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert model(IDS).dtype == torch.bfloat16


@pytest.mark.parametrize("config", [CONFIG, MOE], ids=["dense", "moe"])
def test_folder_round_trip(tmp_path, config):
    targets = ["attn.q", "blocks.1.mlp.down", "shared.up"]
    model = stirred(tiny(config), targets=targets, rank=3, alpha=5.0)
    save_lora(model, tmp_path / "adapter")
    other = tiny(config)
    load_lora(other, tmp_path / "adapter")
    assert torch.equal(other(IDS), model(IDS))
    assert dict(lora_layers(other)).keys() == dict(lora_layers(model)).keys()
    assert {name for name, p in other.named_parameters() if p.requires_grad} == {
        f"{name}.lora_{part}" for name, _ in lora_layers(model) for part in "AB"
    }


def test_a_model_that_hears_takes_adapters_in_all_its_parts(tmp_path):
    """Names of encoder, adaptor and language model go through the official layout and back."""
    torch.manual_seed(0)
    audio = AudioEncoderConfig(mels=8, width=16, layers=1, heads=2, ffn=64, positions=20)
    model = Omni(OmniConfig(lm=CONFIG, audio=audio, adaptor_hidden=24)).eval()
    stirred(model, targets=["encoder.*.attn.v", "adapter.up", "lm.*.attn.q", "mlp.down"])
    save_lora(model, tmp_path / "adapter")
    names = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["target_modules"]
    assert "encoder.blocks.0.attn.value" in names and "model.layers.1.self_attn.q_proj" in names
    other = Omni(model.config).eval()
    load_lora(other, tmp_path / "adapter")
    tensors = [dict(lora_state(m)[0]) for m in (model, other)]
    assert tensors[0].keys() == tensors[1].keys() and all(torch.equal(tensors[0][k], tensors[1][k]) for k in tensors[0])


def official(tmp_path):
    """Our tiny model as transformers sees it."""
    transformers = pytest.importorskip("transformers")
    if not (tmp_path / "hf").exists():
        tiny().save_pretrained(tmp_path / "ours")
        export(tmp_path / "ours", tmp_path / "hf")
    return transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()


@pytest.mark.parametrize("targets", [["attn.q", "attn.v"], ["blocks.0.attn.*", "blocks.1.mlp.up"]])
def test_peft_loads_ours(tmp_path, targets):
    peft = pytest.importorskip("peft")
    model = stirred(tiny(), targets=targets, rank=4, alpha=10.0)
    save_lora(model, tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(official(tmp_path), tmp_path / "adapter")
    adapted = sum("lora_A" in name for name, _ in theirs.named_parameters())
    assert adapted == len(list(lora_layers(model)))
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS).logits, model(IDS), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"r": 4, "lora_alpha": 12},
        {"r": 4, "lora_alpha": 12, "use_rslora": True},
        {"r": 4, "lora_alpha": 12, "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"layers.1.self_attn.q_proj": 40}},
    ],
    ids=["plain", "rslora", "patterns"],
)
def test_we_load_peft(tmp_path, options):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM", **options)
    theirs = peft.get_peft_model(official(tmp_path), config).eval()
    torch.manual_seed(2)
    for name, p in theirs.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p, std=0.1)
    theirs.save_pretrained(tmp_path / "adapter")
    model = tiny()
    load_lora(model, tmp_path / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(model(IDS), theirs(IDS).logits, atol=1e-5, rtol=0)


def test_errors_name_layer_and_reason(tmp_path):
    model = tiny()
    with pytest.raises(ValueError, match=r"no linear layer matches \['q_proj'\]; there are .*'blocks.0.attn.q'"):
        add_lora(model, ["q_proj"])
    with pytest.raises(ValueError, match=r"^head cannot be adapted, losses read its weight directly; narrow \['\*'\]"):
        add_lora(model, ["*"])
    with pytest.raises(ValueError, match="lora rank must be at least 1, got 0"):
        add_lora(model, rank=0)
    with pytest.raises(ValueError, match="has no adapters to save"):
        save_lora(model, tmp_path / "adapter")
    a, b = torch.zeros(2, 32), torch.zeros(32, 2)
    with pytest.raises(ValueError, match=r"x is no linear layer here; blocks.0.attn.q has only one of lora_A, lora_B"):
        attach_lora(model, {"x.lora_A": a, "blocks.0.attn.q.lora_A": a}, {})
    with pytest.raises(ValueError, match=r"blocks.0.attn.k has A \(2, 32\) and B \(32, 2\) for 32 -> 16"):
        attach_lora(model, {"blocks.0.attn.k.lora_A": a, "blocks.0.attn.k.lora_B": b}, {})
    add_lora(model)
    with pytest.raises(ValueError, match=r"has adapters already; fold_lora"):
        add_lora(model)


def test_adapters_of_other_kinds_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no adapter_config.json; give the folder"):
        load_lora(tiny(), tmp_path)
    save_lora(stirred(tiny()), tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"use_dora": True}))
    with pytest.raises(ValueError, match=r"use_dora=True in .* is not built; allowed: False"):
        load_lora(tiny(), tmp_path / "adapter")
