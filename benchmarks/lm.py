"""The language model against transformers, in one process, with the same weights.

    python -m benchmarks.lm                         # everything, 2 threads and 1, results appended
    python -m benchmarks.lm --only decode --dry     # one theme, nothing written

The fixed case: Qwen2, 4 layers, width 256, 4 heads, 2 key/value heads, ffn 1024, vocabulary 8192, float32.
"""

import argparse
from dataclasses import asdict
from functools import partial

import numpy as np
import torch
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM, Qwen2MoeConfig
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock

from benchmarks.record import ratio, record
from gamut.generate.ar import generate
from gamut.generate.sampling import Sampling
from gamut.io.folders import load_strict
from gamut.io.keys import qwen
from gamut.losses.next_token import next_token_from_hidden
from gamut.models.lm import LM, LMConfig
from gamut.nn.moe import MoE

VOCAB = 8192


def both() -> tuple[Qwen2ForCausalLM, LM]:
    """transformers' model and ours, equal weights, and a check that they are."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCAB, hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, tie_word_embeddings=False,
    )  # fmt: skip
    theirs = Qwen2ForCausalLM(config)
    ours = LM(LMConfig.from_dict(qwen.config_from_official(config.to_dict())))
    load_strict(ours, qwen.to_ours(theirs.state_dict(), asdict(ours.config)), "transformers")
    ids = torch.randint(0, VOCAB, (2, 16))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-4, rtol=1e-4)
    return theirs, ours


def training(pairs: int):
    """Forward, loss, backward, AdamW (torch's fused kernel on both sides) on 8 x 256 random ids."""
    theirs, ours = both()
    ids = torch.randint(0, VOCAB, (8, 256))
    optims = [torch.optim.AdamW(m.parameters(), lr=1e-4, fused=True) for m in (theirs, ours)]

    def step_theirs():
        theirs(ids, labels=ids, use_cache=False).loss.backward()
        optims[0].step()
        optims[0].zero_grad()

    def step_ours():
        next_token_from_hidden(ours.hidden(ids), ours.head.weight, ids)[0].backward()
        optims[1].step()
        optims[1].zero_grad()

    yield (
        "LM training step",
        ratio(step_theirs, step_ours, pairs),
        {"case": "8 x 256 tokens, AdamW fused on both sides"},
    )


def decode(pairs: int):
    """Greedy, one prompt of 16 tokens, 256 new ones: generate() of both sides, each with its cache."""
    theirs, ours = both()
    prompt = torch.randint(0, VOCAB, (1, 16))
    setting = Sampling(temperature=0.0, max_new=256, logprobs=False)
    until = _theirs(256)
    a = theirs.generate(prompt, generation_config=until)[0, 16:].tolist()
    b = generate(ours, [prompt[0].tolist()], setting)[0].ids
    assert a == b, "greedy ids differ"
    values = ratio(
        lambda: theirs.generate(prompt, generation_config=until),
        lambda: generate(ours, [prompt[0].tolist()], setting),
        pairs,
    )
    yield "decode 1 prompt", values | {"tokens_per_s": 256 / values["fast_s"]}, {"case": "prompt 16, 256 new, greedy"}


def lengths() -> list[int]:
    """Answer lengths of the 32 prompts: lognormal, median 64, sigma 1, at most 512, seed 0."""
    return np.random.default_rng(0).lognormal(np.log(64), 1.0, 32).clip(1, 512).astype(int).tolist()


def decode_many(pairs: int):
    """32 prompts of 16 tokens with unlike answer lengths, greedy. Useful tokens per second: transformers' batch runs
    until its longest row is done; `fair` instead gives it the lengths beforehand, sorted into four batches of eight."""
    theirs, ours = both()
    prompts, want = torch.randint(0, VOCAB, (32, 16)), lengths()
    settings = [Sampling(temperature=0.0, max_new=n, logprobs=False) for n in want]
    order = np.argsort(want)[::-1]
    groups = [order[i : i + 8] for i in range(0, 32, 8)]

    def run_ours():
        return generate(ours, prompts.tolist(), settings, rows=32)

    def run_theirs():
        return theirs.generate(prompts, generation_config=_theirs(max(want)))

    def run_fair():
        for group in groups:
            theirs.generate(prompts[group.copy()], generation_config=_theirs(max(want[i] for i in group)))

    a = run_theirs()[:, 16:]
    assert all(s.ids == a[i, : want[i]].tolist() for i, s in enumerate(run_ours())), "greedy ids differ"
    case = f"32 prompts of 16, answers lognormal(64, 1) <= 512: {sum(want)} tokens, longest {max(want)}"
    for name, run in (
        ("decode 32 prompts", run_theirs),
        ("decode 32 prompts, lengths known to transformers", run_fair),
    ):
        values = ratio(run, run_ours, pairs)
        yield name, values | {"tokens_per_s": sum(want) / values["fast_s"]}, {"case": case}


def moe(pairs: int):
    """One sparse block, 8 experts of 1024, top 2, width 256, on 8 x 256 tokens: forward and backward."""
    torch.manual_seed(0)
    config = Qwen2MoeConfig(
        hidden_size=256, moe_intermediate_size=1024, num_experts=8, num_experts_per_tok=2,
        shared_expert_intermediate_size=0, norm_topk_prob=False,
    )  # fmt: skip
    x = torch.randn(8, 256, 256, requires_grad=True)
    grad = torch.randn(8, 256, 256)
    ours = MoE(256, 8, 2, 1024, renormalise=False)
    for kind in ("grouped_mm", "eager"):  # transformers' default, and its loop over experts
        config._experts_implementation = kind
        theirs = Qwen2MoeSparseMoeBlock(config)
        values = ratio(partial(_once, theirs, x, grad), partial(_once, ours, x, grad), pairs)
        yield (
            f"MoE layer against {kind}",
            values,
            {"case": "8 experts of 1024, top 2, 8 x 256 tokens, forward + backward"},
        )


def _once(block, x, grad):
    out = block(x)
    (out[0] if isinstance(out, tuple) else out).backward(grad)


def _theirs(new: int) -> GenerationConfig:
    return GenerationConfig(max_new_tokens=new, min_new_tokens=new, do_sample=False, use_cache=True, pad_token_id=0)


THEMES = {"training": training, "decode": decode, "decode_many": decode_many, "moe": moe}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=THEMES, nargs="*", default=list(THEMES))
    parser.add_argument("--threads", type=int, nargs="*", default=[2, 1])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--dry", action="store_true", help="print, write nothing")
    args = parser.parse_args()
    for threads in args.threads:
        torch.set_num_threads(threads)
        for theme in args.only:
            for metric, values, facts in THEMES[theme](args.pairs):
                if args.dry:
                    print(threads, metric, {k: round(v, 4) for k, v in values.items()}, facts, flush=True)
                else:
                    record("lm", metric, values, **facts)


if __name__ == "__main__":
    main()
