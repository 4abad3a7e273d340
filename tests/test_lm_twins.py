"""The same numbers by another way: cached, packed, padded, embedded, checkpointed, saved and loaded, chunked."""

from dataclasses import asdict, replace

import pytest
import torch

from gamut.losses.balance import balance
from gamut.losses.from_hidden import next_token_from_hidden
from gamut.losses.next_token import next_token
from gamut.models.count import count
from gamut.models.lm import LM, LMConfig, MoEConfig

TINY = LMConfig(vocab=50, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=48, max_positions=64)
CONFIGS = {
    "qwen2": replace(TINY, qkv_bias=True),
    "qwen3": replace(TINY, qk_norm=True, head_dim=12, tied=True),
    "moe": replace(TINY, moe=MoEConfig(6, 2, 24, shared_ffn=16, renormalise=False, dense_layers=(0,))),
    "step1": replace(TINY, positions="sqrt_alibi", heads=6, interp_ratio=2.0),
    "many_heads": replace(TINY, kv_heads=4),
}


@pytest.fixture(params=CONFIGS)
def model(request):
    torch.manual_seed(0)
    model = LM(CONFIGS[request.param])
    for name, weight in model.named_parameters():  # no norm at one, no bias at zero
        if weight.dim() == 1:
            torch.nn.init.normal_(weight, mean=float("norm" in name), std=0.1)
    return model


def ids(*shape, seed=1):
    return torch.randint(0, TINY.vocab, shape, generator=torch.Generator().manual_seed(seed))


def close(a, b):
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@torch.no_grad()
def test_cached_equals_uncached_whatever_the_pieces(model):
    """In one go, token by token, and in uneven chunks."""
    text = ids(3, 13)
    whole = model(text)
    for cuts in ([13], [1] * 13, [4, 1, 5, 3]):
        cache = model.new_cache(4, 16)
        close(torch.cat([model(part, cache=cache) for part in text.split(cuts, 1)], 1), whole)
        assert cache.lengths == [13, 13, 13, 0]


@torch.no_grad()
def test_rows_of_unlike_length_share_a_cache(model):
    """A right-padded prompt of three lengths, then one token and then two tokens per row."""
    text, lengths = ids(3, 12), [3, 9, 6]
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    cache = model.new_cache(3, 12)
    model(text[:, :9], mask_BT=mask, cache=cache)
    assert cache.lengths == lengths
    one = model(torch.stack([text[r, n : n + 1] for r, n in enumerate(lengths)]), cache=cache)
    two = model(torch.stack([text[r, n + 1 : n + 3] for r, n in enumerate(lengths)]), cache=cache)
    for r, n in enumerate(lengths):
        close(torch.cat([one, two], 1)[r], model(text[r : r + 1, : n + 3])[0, n:])


@torch.no_grad()
def test_a_copied_row_goes_on_like_the_original(model):
    text = ids(2, 8)
    cache, other = model.new_cache(2, 8), model.new_cache(1, 8)
    model(text[:, :6], cache=cache)
    other.copy_row(0, cache, 1)
    close(model(text[1:, 6:], cache=other)[0], model(text[1:])[0, 6:])


def test_packed_equals_padded_in_outputs_and_gradients(model):
    texts = [ids(n, seed=n) for n in (5, 7, 1, 4)]
    packed = torch.cat(texts)[None]
    segments = torch.repeat_interleave(torch.arange(4), torch.tensor([5, 7, 1, 4]))[None]
    a = model(packed, segments_BT=segments)[0]
    first = torch.nn.functional.pad(segments[:, 1:] == segments[:, :-1], (1, 0))
    next_token(a[None], packed, first)[0].backward()
    packed_grad = [w.grad.clone() for w in model.parameters()]
    model.zero_grad()
    padded = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(t) for t in texts], batch_first=True)
    b = model(padded, mask_BT=mask)
    close(a, b[mask.bool()])
    next_token(b, padded, mask)[0].backward()
    for ours, w in zip(packed_grad, model.parameters(), strict=True):
        close(ours, w.grad)


@torch.no_grad()
def test_embeddings_and_explicit_positions_stand_in_for_ids(model):
    text = ids(2, 6)
    close(model(embeds_BTD=model.embed(text)), model(text))
    if model.config.positions == "rope":
        close(model(text, positions_BT=torch.arange(6).expand(2, 6)), model(text))
        close(model(text, positions_BT=torch.arange(6).expand(2, 6) + 9), model(text))  # rope sees differences only
        assert not torch.allclose(model(text, positions_BT=2 * torch.arange(6).expand(2, 6)), model(text), atol=1e-3)
    else:
        with pytest.raises(ValueError, match="leave positions_BT out"):
            model(text, positions_BT=torch.arange(6).expand(2, 6))


def test_the_future_changes_nothing(model):
    text = ids(2, 8)
    changed = text.clone()
    changed[:, 5] = (changed[:, 5] + 1) % TINY.vocab
    with torch.no_grad():
        a, b = model(text), model(changed)
    close(a[:, :5], b[:, :5])
    assert not torch.equal(a[:, 5:], b[:, 5:])


def test_checkpointing_gives_equal_gradients(model):
    text, grads, losses = ids(2, 9), [], []
    for switch in (False, True):
        model.checkpointing = switch
        routing = []
        loss = next_token(model(text, routing=routing), text)[0]
        if routing:
            loss = loss + 0.1 * balance(routing, model.config.moe.top_k)[0]
        loss.backward()
        losses.append(loss.detach())
        grads.append([w.grad.clone() for w in model.parameters()])
        model.zero_grad()
    assert torch.equal(*losses) and all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_loss_from_hidden_states_equals_the_plain_one(model):
    text = ids(3, 11)
    mask = torch.rand(3, 11, generator=torch.Generator().manual_seed(0)) < 0.6
    results = []
    for way in ("plain", 4, 1000):
        hidden = model.hidden(text)
        if way == "plain":
            loss, stats = next_token(model.head(hidden), text, mask)
        else:
            loss, stats = next_token_from_hidden(hidden, model.head.weight, text, mask, chunk=way)
        (2 * loss).backward()
        results.append([loss.detach(), *(w.grad.clone() for w in model.parameters())])
        assert stats["targets"] == mask[:, 1:].sum()
        model.zero_grad()
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            close(a, b)


def test_saved_and_loaded_is_the_same(model, tmp_path):
    model.save_pretrained(tmp_path / "m", card="a tiny one")
    back = LM.from_pretrained(tmp_path / "m")
    assert back.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(back.state_dict().values(), model.state_dict().values(), strict=True))
    close(back(ids(1, 5)), model(ids(1, 5)))
    assert LM.from_pretrained(tmp_path / "m", dtype=torch.bfloat16).norm.weight.dtype == torch.bfloat16


@torch.no_grad()
def test_bfloat16_stays_near_float32(model):
    text = ids(2, 8)
    want = model(text)
    got = model.to(torch.bfloat16)(text)
    assert got.dtype == torch.bfloat16 and (got.float() - want).abs().mean() < 0.05 * want.abs().mean()


PUBLISHED = {  # parameters as the hub reports them
    "Qwen2-7B": (LMConfig(152064, 3584, 28, 28, 4, 128, 18944, qkv_bias=True), 7_615_616_512),
    "Qwen2-0.5B": (LMConfig(151936, 896, 24, 14, 2, 64, 4864, qkv_bias=True, tied=True), 494_032_768),
    "Qwen3-0.6B": (LMConfig(151936, 1024, 28, 16, 8, 128, 3072, qk_norm=True, tied=True), 596_049_920),
    "Qwen3-30B-A3B": (
        LMConfig(151936, 2048, 48, 32, 4, 128, 6144, qk_norm=True, moe=MoEConfig(128, 8, 768)),
        30_532_122_624,
    ),
    "Qwen1.5-MoE-A2.7B": (
        LMConfig(151936, 2048, 24, 16, 16, 128, 5632, qkv_bias=True, moe=MoEConfig(60, 4, 1408, 5632, False)),
        14_315_784_192,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_equal_the_published_ones(name):
    config, parameters = PUBLISHED[name]
    assert count(config)["parameters"] == parameters


def test_counted_arithmetic_equals_what_torch_executes():
    """One row of T tokens: torch's own counter over our forward pass, without the causal saving."""
    from torch.utils.flop_counter import FlopCounterMode

    model, T = LM(CONFIGS["qwen2"]), 16
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(ids(1, T))
    assert counter.get_total_flops() == T * count(model.config, context=T)["forward_flops"]


def test_active_parameters_leave_idle_experts_out():
    dense, sparse = CONFIGS["many_heads"], CONFIGS["moe"]
    one = 3 * sparse.width * sparse.moe.expert_ffn
    assert count(sparse)["parameters"] - count(sparse)["active"] == 4 * one + sparse.vocab * sparse.width
    assert count(dense)["parameters"] - count(dense)["active"] == dense.vocab * dense.width


def test_wrong_calls_say_what_to_give():
    model, text = LM(TINY), ids(2, 4)
    with pytest.raises(ValueError, match="exactly one"):
        model(text, embeds_BTD=model.embed(text))
    with pytest.raises(ValueError, match="padding must be on the right"):
        model(text, mask_BT=torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]]))
    with pytest.raises(ValueError, match="holds 3 tokens a row, got 4"):
        model(text, cache=model.new_cache(2, 3))
    with pytest.raises(ValueError, match="has 1 rows, got a batch of 2"):
        model(text, cache=model.new_cache(1, 8))
    with pytest.raises(ValueError, match="give each its own row"):
        model(text, cache=model.new_cache(2, 8), segments_BT=torch.zeros_like(text))
    with pytest.raises(ValueError, match="no target"):
        next_token(model(text), text, torch.zeros_like(text))
    with pytest.raises(ValueError, match="no MoE layer"):
        balance([], 2)
    with pytest.raises(ValueError, match="kv_heads must divide heads"):
        replace(TINY, kv_heads=3)
    with pytest.raises(ValueError, match="positions must be"):
        replace(TINY, positions="rotary")
    with pytest.raises(ValueError, match="one per head; got 2 for 4"):
        replace(TINY, slopes=(0.1, 0.2))
    with pytest.raises(ValueError, match=r"unknown LM config fields.*'breadth'"):
        LMConfig.from_dict(asdict(TINY) | {"breadth": 3})
