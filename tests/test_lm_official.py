"""Folders as the reference implementation writes them, in shapes the recorded fixtures do not have; and refusals."""

import json

import pytest
import torch

from gamut.io.keys import qwen, step1
from gamut.models.lm import LM

BASE = {
    "vocab_size": 70, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
SPARSE = {"num_experts": 5, "num_experts_per_tok": 3, "moe_intermediate_size": 20}
CASES = {
    "qwen2_theta": ("Qwen2", {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}, "rms_norm_eps": 1e-5}),
    "qwen3_bias": ("Qwen3", {"head_dim": 16, "attention_bias": True, "tie_word_embeddings": True}),
    "qwen2_moe_some": ("Qwen2Moe", SPARSE | {"mlp_only_layers": [1], "decoder_sparse_step": 2, "norm_topk_prob": True,
                                             "shared_expert_intermediate_size": 24}),
    "qwen2_moe_tied": ("Qwen2Moe", SPARSE | {"tie_word_embeddings": True, "qkv_bias": False,
                                             "shared_expert_intermediate_size": 24}),
    "qwen3_moe_one": ("Qwen3Moe", SPARSE | {"num_experts_per_tok": 1, "head_dim": 12, "attention_bias": True,
                                            "mlp_only_layers": [0, 3]}),
}  # fmt: skip


@pytest.fixture(params=CASES)
def folder(request, tmp_path):
    """A random checkpoint that transformers saved, and its logits on a right-padded batch."""
    transformers = pytest.importorskip("transformers")
    family, fields = CASES[request.param]
    torch.manual_seed(0)
    theirs = getattr(transformers, family + "ForCausalLM")(getattr(transformers, family + "Config")(**BASE | fields))
    for weight in theirs.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    theirs.eval().save_pretrained(tmp_path / "hf", max_shard_size="40KB")
    ids, mask = torch.randint(0, 70, (2, 9)), torch.tensor([[1] * 9, [1] * 5 + [0] * 4])
    with torch.no_grad():
        return tmp_path / "hf", ids, mask, theirs(input_ids=ids, attention_mask=mask).logits


@torch.no_grad()
def test_a_hugging_face_folder_gives_equal_logits(folder):
    path, ids, mask, want = folder
    assert len(list(path.glob("*.safetensors"))) > 1
    ours = LM.from_pretrained(path)
    seen = mask.bool()
    torch.testing.assert_close(ours(ids, mask_BT=mask)[seen], want[seen], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "llama"}, "model_type must be one of qwen2, qwen3.*got 'llama'"),
        ({"use_sliding_window": True}, "use_sliding_window=True.*allowed: False"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types.*sliding_attention"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope scaling is not built.*'yarn'"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rope scaling is not built.*'linear'"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "rope scaling is not built"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'.*allowed: 'silu'"),
        ({"attention_dropout": 0.1}, "attention_dropout=0.1"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"model_type": "qwen3_moe"}, "lacks num_experts, num_experts_per_tok, moe_intermediate_size"),
    ],
)
def test_a_feature_that_is_not_built_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        qwen.config_from_official({"model_type": "qwen2", **BASE, **change})


def test_an_unknown_field_is_warned_of():
    with pytest.warns(UserWarning, match="without effect here: logit_scale"):
        qwen.config_from_official({"model_type": "qwen2", **BASE, "logit_scale": 2.0})


@pytest.mark.parametrize(
    "rope, theta",
    [
        ({"rope_theta": 3e4}, 3e4),
        ({"rope_theta": 3e4, "rope_parameters": {"rope_type": "default", "rope_theta": 7e4}}, 7e4),
        ({"rope_scaling": None}, 1e4),
        ({"rope_scaling": {"type": "default", "rope_type": "default"}, "rope_theta": 2e4}, 2e4),
    ],
)
def test_the_rope_base_is_found_where_either_generation_keeps_it(rope, theta):
    assert qwen.config_from_official({"model_type": "qwen2", **BASE, **rope})["rope_theta"] == theta


def test_broken_checkpoints_are_named(tmp_path):
    weights = {f"model.layers.0.mlp.experts.{e}.gate_proj.weight": torch.zeros(2, 2) for e in (0, 2)}
    with pytest.raises(ValueError, match=r"needs experts 0 .. 2, got 2 \(missing \[1\]\)"):
        qwen.to_ours(weights, {"moe": {"experts": 3}})
    with pytest.raises(ValueError, match=r"lm_head.weight differs"):
        tied = {"lm_head.weight": torch.ones(2, 2), "model.embed_tokens.weight": torch.zeros(2, 2)}
        qwen.to_ours(tied, {"tied": True})
    with pytest.raises(ValueError, match="no official name"):
        qwen.to_official({"blocks.0.attn.q.lora_a": torch.zeros(1)}, {})
    (tmp_path / "config.json").write_text(json.dumps({"gamut": "0.1.0", "class": "Omni", "config": {}}))
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="holds a Omni, not an LM"):
        LM.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ValueError, match="got 'gpt2'"):
        LM.from_pretrained(tmp_path)


def test_configs_without_an_official_form_are_refused():
    base = {"positions": "rope", "qk_norm": False, "qkv_bias": False, "out_bias": False, "moe": None, "width": 32,
            "heads": 4, "head_dim": 8, "tied": False}  # fmt: skip
    with pytest.raises(ValueError, match="qwen2 needs qkv_bias"):
        qwen.config_to_official(base)
    with pytest.raises(ValueError, match="positions must be 'sqrt_alibi'"):
        step1.config_to_official(base)
    with pytest.raises(ValueError, match="lacks vocab_size"):
        step1.config_from_official({})
    sizes = {field: 8 for field in step1.FIELDS.values()}
    with pytest.raises(ValueError, match="tie_word_embeddings=True"):
        step1.config_from_official(sizes | {"tie_word_embeddings": True})
