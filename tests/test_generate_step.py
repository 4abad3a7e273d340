"""The fast decoding step against the model's own forward pass, and when it must not be used."""

from dataclasses import replace

import pytest
import torch

from gamut.generate.ar import Stream, generate
from gamut.generate.sampling import Sampling
from gamut.generate.step import Step
from gamut.models.lm import LM, LMConfig, MoEConfig
from gamut.nn.linear import onednn

TINY = LMConfig(vocab=40, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=48, max_positions=48)
CONFIGS = {
    "qwen2": replace(TINY, qkv_bias=True),
    "qwen3": replace(TINY, qk_norm=True, head_dim=12, tied=True, qkv_bias=True, out_bias=True),
    "moe": replace(TINY, moe=MoEConfig(4, 2, 16, shared_ffn=8, dense_layers=(1,))),
    "step1": replace(TINY, positions="sqrt_alibi", heads=6),
    "many_heads": replace(TINY, kv_heads=4),
}
pytestmark = pytest.mark.skipif(not onednn(), reason="the fast step needs oneDNN and AVX-512")


def make(name="qwen2"):
    torch.manual_seed(0)
    model = LM(CONFIGS[name]).eval()
    for key, weight in model.named_parameters():
        if weight.dim() == 1:
            torch.nn.init.normal_(weight, mean=float("norm" in key), std=0.1)
    return model


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("rows", [1, 3])
@torch.no_grad()
def test_a_step_equals_the_forward_pass(name, rows):
    """Rows of equal and of unlike length, five tokens on."""
    model = make(name)
    for lengths in ([4] * rows, [4, 2, 5][:rows]):
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        prompt = torch.randint(0, 40, mask.shape)
        caches = [model.new_cache(rows, 12) for _ in range(2)]
        for cache in caches:
            model.hidden(prompt, mask_BT=mask, cache=cache)
        step = Step.of(model, rows)
        for _ in range(5):
            ids = torch.randint(0, 40, (rows,))
            want = model.head(model.hidden(ids[:, None], cache=caches[0])[:, 0])
            torch.testing.assert_close(step(ids, caches[1]), want, atol=1e-5, rtol=0)
        assert caches[0].lengths == caches[1].lengths == [n + 5 for n in lengths]


def test_changed_weights_are_noticed_between_two_tokens():
    model, other = make(), make("qwen2")
    torch.nn.init.normal_(other.head.weight)
    stream, ids = Stream(model, rows=1), []
    stream.add([1, 2, 3], Sampling(temperature=0.0, max_new=8))
    for token in stream:
        ids.append(token.id)
        if len(ids) == 4:
            model.load_state_dict(other.state_dict())
    assert ids[:4] == generate(make(), [[1, 2, 3]], Sampling(temperature=0.0, max_new=4))[0].ids
    text = torch.tensor([[1, 2, 3, *ids]])
    with torch.no_grad():  # the cache still holds the old blocks' keys; here only the head differs
        assert ids[4:] == other(text)[0, 6:10].argmax(-1).tolist()


def test_it_is_made_once_and_again_only_after_a_change():
    model = make()
    step = Step.of(model, 4)
    assert Step.of(model, 2) is step and Step.of(model, 1) is not step
    with torch.no_grad():
        model.blocks[0].mlp.up.weight.mul_(2)
    assert not step.fresh() and Step.of(model, 4) is not step and Step.of(model, 4).fresh()


def test_models_it_cannot_copy_are_left_alone():
    assert Step.of(make(), 1) is not None
    assert Step.of(make().double(), 1) is None
    assert Step.of(make().to(torch.bfloat16), 1) is None
    mixed = make("moe")
    mixed.blocks[0].mlp.experts.to(torch.bfloat16)
    assert Step.of(make("moe"), 1) is not None and Step.of(mixed, 1) is None
    hooked, adapted = make(), make()
    hooked.blocks[0].register_forward_hook(lambda *_: None)
    assert Step.of(hooked, 1) is None
    with torch.inference_mode():
        assert Step.of(make(), 1) is None
    adapted.blocks[1].attn.q = torch.nn.Sequential(adapted.blocks[1].attn.q)
    assert Step.of(adapted, 1) is None
