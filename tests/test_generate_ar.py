"""Decoding against the plain forward pass, and the promise that a sample does not depend on its company."""

import math
from dataclasses import replace

import pytest
import torch

from gamut.generate.ar import Prompt, Stream, generate
from gamut.generate.sampling import Sampling
from gamut.models.lm import LM, LMConfig, MoEConfig

TINY = LMConfig(vocab=40, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=48, max_positions=48, qkv_bias=True)
CONFIGS = {
    "rope": TINY,
    "alibi": replace(TINY, positions="sqrt_alibi"),
    "moe": replace(TINY, qk_norm=True, moe=MoEConfig(4, 2, 16)),
}
GREEDY = Sampling(temperature=0.0, max_new=10)
PROMPTS = [[1, 2, 3], [7], [5, 4, 3, 2, 1, 9, 8, 7, 6], [11, 12], [30, 31, 32, 33, 34, 35]]


def make(name="rope"):
    torch.manual_seed(3)
    return LM(CONFIGS[name]).eval()


@torch.no_grad()
def plain(model, ids, count):
    """Greedy ids and their log-probabilities, the whole text forward again for every token."""
    text, logprobs = list(ids), []
    for _ in range(count):
        step = model(torch.tensor([text]))[0, -1].log_softmax(-1)
        text.append(int(step.argmax()))
        logprobs.append(float(step.max()))
    return text[len(ids) :], logprobs


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_greedy_equals_the_uncached_forward(name, rows):
    model = make(name)
    settings = [replace(GREEDY, max_new=count) for count in (10, 3, 6, 1, 8)]
    samples = generate(model, PROMPTS, settings, rows=rows)
    for prompt, setting, sample in zip(PROMPTS, settings, samples, strict=True):
        ids, logprobs = plain(model, prompt, setting.max_new)
        assert sample.ids == ids and sample.finish == "length"
        assert sample.logprobs == pytest.approx(logprobs, abs=1e-4)


def test_equal_shapes_give_equal_bits():
    """Again, and beside a neighbour of its own length: nothing but shapes decides how numbers are rounded."""
    model, two = make(), [PROMPTS[0], [9, 8, 7]]
    first, second, other = (generate(model, p, GREEDY) for p in (two, two, [PROMPTS[0], [20, 21, 22]]))
    assert first == second and first[0] == other[0]


def test_without_the_fast_step_decoding_is_bitwise_the_cached_forward(monkeypatch):
    model = make()
    monkeypatch.setattr("gamut.generate.step.LARGEST", 0)
    sample = generate(model, [PROMPTS[0]], GREEDY, rows=1)[0]
    cache = model.new_cache(1, 20)
    with torch.inference_mode():
        pieces = [PROMPTS[0], *([i] for i in sample.ids[:-1])]
        hidden = [model.hidden(torch.tensor([piece]), cache=cache)[:, -1] for piece in pieces]
        rows = torch.cat([model.head(h) for h in hidden])
    assert sample.ids == rows.argmax(-1).tolist()
    assert sample.logprobs == [float(row.log_softmax(-1)[i]) for row, i in zip(rows, sample.ids, strict=True)]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_sample_does_not_depend_on_its_company(name):
    """Alone, in any number of rows, in another order, beside greedy and filtered neighbours."""
    model = make(name)
    kinds = [
        Sampling(seed=5, max_new=12),
        Sampling(seed=6, max_new=9, top_k=5),
        GREEDY,
        Sampling(seed=7, max_new=7, top_p=0.8, temperature=1.5),
        Sampling(seed=8, max_new=11, repetition_penalty=1.3, top_k=7, top_p=0.9),
    ]
    alone = [generate(model, [p], [s])[0] for p, s in zip(PROMPTS, kinds, strict=True)]
    for rows in (1, 2, 4, 8):
        together = generate(model, PROMPTS, kinds, rows=rows)
        assert [s.ids for s in together] == [s.ids for s in alone]
    backwards = generate(model, PROMPTS[::-1], kinds[::-1], rows=3)[::-1]
    assert [s.ids for s in backwards] == [s.ids for s in alone]
    for a, b in zip(alone, backwards, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


def test_samples_of_a_prompt_share_its_one_forward_pass():
    model, lengths = make(), []
    model.blocks[0].register_forward_hook(lambda _m, args, _out: lengths.append(tuple(args[0].shape[:2])))
    samples = generate(model, [PROMPTS[2]], Sampling(max_new=4), n=5, rows=2)
    assert [shape for shape in lengths if shape[1] > 1] == [(1, 9)]
    assert len({tuple(s.ids) for s in samples}) == 5
    assert [s.ids for s in generate(model, [PROMPTS[2]], Sampling(max_new=4), n=3)] == [s.ids for s in samples[:3]]


def test_batch_shrinks_as_samples_end_and_free_rows_are_refilled():
    model, batches = make(), []
    model.blocks[0].register_forward_hook(lambda _m, args, _out: batches.append(args[0].shape[0]))
    lengths = [2, 9, 3, 4, 3, 3, 2]
    for rows in (2, 3, 7):
        batches.clear()
        samples = generate(model, [[i + 1] for i in range(7)], [replace(GREEDY, max_new=n) for n in lengths], rows=rows)
        assert [len(s.ids) for s in samples] == lengths
        assert sum(batches) == sum(lengths), "a row was run for nothing"
        for i, sample in enumerate(samples):
            assert sample.ids == plain(model, [i + 1], lengths[i])[0]


def test_stop_ids_and_sequences_end_a_sample_and_stay_in_it():
    model = make()
    ids = generate(model, [PROMPTS[0]], GREEDY)[0].ids
    cut = next(i for i in range(2, 10) if ids[i] not in ids[:i])
    one = generate(model, [PROMPTS[0]], replace(GREEDY, stop=(39, ids[cut])))[0]
    assert one.ids == ids[: cut + 1] and one.finish == "stop"
    pair = generate(model, [PROMPTS[0]], replace(GREEDY, stop=((ids[cut - 1], ids[cut]),)))[0]
    assert pair.ids == ids[: cut + 1] and pair.finish == "stop"
    across = generate(model, [PROMPTS[0]], replace(GREEDY, stop=((PROMPTS[0][-1], ids[0]),)))[0]
    assert across.ids == ids, "a sequence that begins in the prompt is no stop"


def test_the_callback_sees_every_token_and_may_end_its_sample():
    model, seen = make(), []

    def watch(index, new, logprob):
        seen.append((index, new, logprob))
        return not (index == 1 and sum(i == 1 for i, _, _ in seen) == 3)

    samples = generate(model, PROMPTS[:3], GREEDY, rows=2, on_token=watch)
    assert [len(s.ids) for s in samples] == [10, 3, 10] and samples[1].finish == "stop"
    for index, sample in enumerate(samples):
        assert [(i, p) for at, i, p in seen if at == index] == list(zip(sample.ids, sample.logprobs, strict=True))


def test_a_stream_takes_new_prompts_while_it_runs():
    model = make()
    want = generate(model, PROMPTS[:2], GREEDY)
    stream, got = Stream(model, rows=2), {0: [], 1: []}
    stream.add(PROMPTS[0], GREEDY)
    for number, token in enumerate(stream):
        if number == 3:
            assert list(stream.add(PROMPTS[1], GREEDY)) == [1]
        got[token.index].append(token.id)
    assert got == {0: want[0].ids, 1: want[1].ids}
    stream.add(PROMPTS[4], replace(GREEDY, max_new=30))  # longer than the cache that the first two left behind
    stream.add(PROMPTS[0], GREEDY)
    stream.stop(3)
    assert [token.id for token in stream] == plain(model, PROMPTS[4], 30)[0]


def test_embeddings_stand_in_for_ids():
    model = make()
    ids = PROMPTS[2]
    with torch.no_grad():
        own = model.embed(torch.tensor(ids))
        other = own.clone()
        other[2:5] = torch.randn(3, TINY.width)
    want = generate(model, [ids], GREEDY)[0]
    assert generate(model, [Prompt(ids, own)], GREEDY)[0].ids == want.ids
    a, b = generate(model, [Prompt(ids, other), ids], GREEDY)
    assert b.ids == want.ids and a.ids != want.ids
    x, out = other, []
    with torch.no_grad():
        for _ in range(10):
            out.append(int(model(embeds_BTD=x[None])[0, -1].argmax()))
            x = torch.cat([x, model.embed(torch.tensor(out[-1:]))])
    assert a.ids == out


def test_generation_ends_where_the_context_does():
    model = make()
    sample = generate(model, [PROMPTS[2]], replace(GREEDY, max_new=1000))[0]
    assert len(PROMPTS[2]) + len(sample.ids) == TINY.max_positions and sample.finish == "length"


def test_log_probabilities_are_those_of_the_untouched_model():
    model = make()
    odd = Sampling(temperature=0.5, top_k=3, repetition_penalty=2.0, seed=1, max_new=8)
    sample = generate(model, [PROMPTS[0]], odd)[0]
    text = torch.tensor([PROMPTS[0] + sample.ids])
    with torch.no_grad():
        logp = model(text)[0].log_softmax(-1)[len(PROMPTS[0]) - 1 : -1]
    want = logp.gather(1, text[0, len(PROMPTS[0]) :, None])[:, 0]
    assert sample.logprobs == pytest.approx(want.tolist(), abs=1e-4) and math.exp(sum(sample.logprobs)) < 1
    assert generate(model, [PROMPTS[0]], replace(odd, logprobs=False))[0] == replace(sample, logprobs=[])


def test_wrong_calls_say_what_to_give():
    model = make()
    cases = [
        ([[]], GREEDY, "at least one token"),
        ([[1] * 48], GREEDY, "prompt has 48 tokens, the model's context holds 48.*shorten the prompt to 47"),
        ([[1, 40]], GREEDY, r"prompt ids must lie in 0 \.\. 39; got 1 \.\. 40"),
        ([Prompt([1, 2], torch.zeros(3, 32))], GREEDY, r"prompt.embeds must be \(2, 32\).*got \(3, 32\)"),
        ([[1], [2]], [GREEDY], "one per prompt; got 1 for 2"),
    ]
    for prompts, sampling, message in cases:
        with pytest.raises(ValueError, match=message):
            generate(model, prompts, sampling)
    with pytest.raises(ValueError, match="n must be 1 or more"):
        generate(model, [[1]], GREEDY, n=0)
    with pytest.raises(ValueError, match="rows must be 1 or more"):
        Stream(model, rows=0)


@pytest.mark.parametrize("setting", [GREEDY, Sampling(), Sampling(top_k=4, logprobs=False)])
def test_nan_logits_stop_the_run(setting):
    model = make()
    with torch.no_grad():
        model.norm.weight[0] = torch.nan
    with pytest.raises(ValueError, match="logits contain NaN"):
        generate(model, [[1, 2]], setting)


@pytest.mark.parametrize(
    "field, value, allowed",
    [
        ("temperature", -0.1, "0 or more"),
        ("top_k", -1, "0 .all. or more"),
        ("top_p", 0.0, "above 0, at most 1"),
        ("repetition_penalty", 0.0, "above 0"),
        ("max_new", 0, "1 or more"),
        ("seed", -1, r"0 \.\. 2\^64"),
        ("stop", ((),), "ids or non-empty sequences"),
    ],
)
def test_settings_are_checked(field, value, allowed):
    with pytest.raises(ValueError, match=f"sampling.{field} must be {allowed}"):
        Sampling(**{field: value})
