"""The language model against transformers, in one process, with the same weights.

    python -m benchmarks.lm                         # everything, 2 threads and 1, results appended
    python -m benchmarks.lm --only decode --dry     # one theme, nothing written

The fixed case: Qwen2, 4 layers, width 256, 4 heads, 2 key/value heads, ffn 1024, vocabulary 8192, float32.
"""

from dataclasses import asdict
from functools import partial

import numpy as np
import torch
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM, Qwen2MoeConfig
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock

from benchmarks.record import clock_name, parser, peak, ratio, record, seconds
from gamut.generate.ar import generate
from gamut.generate.sampling import Sampling
from gamut.generate.step import product
from gamut.io.folders import load_strict
from gamut.io.keys import qwen
from gamut.losses.from_hidden import next_token_from_hidden
from gamut.models.lm import LM, LMConfig
from gamut.nn.moe import LaidOut, MoE

VOCAB = 8192
WEIGHTS = 4 * (2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 1024) + 256 * VOCAB  # that a token is multiplied with
GFLOP, READ = 2 * WEIGHTS / 1e9, 4 * WEIGHTS / 1e9  # per token, attention left out; GB of one pass over the weights


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
        {"case": "8 x 256 tokens, AdamW fused on both sides"} | floor(3 * GFLOP * 8 * 256),
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
    facts = {"case": "prompt 16, 256 new, greedy"} | floor(256 * GFLOP, 256 * READ)
    yield "decode 1 prompt", values | {"tokens_per_s": 256 / values["fast_s"]}, facts


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
        yield name, values | {"tokens_per_s": sum(want) / values["fast_s"]}, {"case": case} | _floors(want)


def _floors(want: list[int]) -> dict[str, float]:
    """Of our side, whose batch shrinks as rows end, and of transformers', whose rows all run to the end."""
    least = floor(sum(want) * GFLOP)
    best, speed, steps = least["peak_gflops"], least["read_gb_s"], range(max(want))
    ours = sum(max(sum(n > t for n in want) * GFLOP / best, READ / speed) for t in steps)
    theirs = len(steps) * max(len(want) * GFLOP / best, READ / speed)
    return least | {"floor_s": round(ours, 4), "floor_slow_s": round(theirs, 4)}


def moe(pairs: int):
    """One sparse block, 8 experts of 1024, top 2, width 256, with the same weights on both sides (transformers leaves
    a bare block's router at zero: every token would go to the same two experts) and new tokens at every call, so that
    no two calls split them alike. Its default (grouped_mm) and its loop over experts (eager)."""
    torch.manual_seed(0)
    ours, grad = MoE(256, 8, 2, 1024, renormalise=False), torch.randn(8, 256, 256)
    for kind in ("grouped_mm", "eager"):
        theirs = _theirs_moe(ours, kind)
        for tokens, name in ((1, "1 token, as decoding runs it"), (32, "32 tokens, as decoding runs them"),
                             (2048, "2048 tokens")):  # fmt: skip
            repeat, mine = (1, ours) if tokens > 32 else (50, ours.laid_out(partial(product, one_row=tokens == 1)))
            runs = [partial(_forward, block, tokens) for block in (theirs, mine)]
            gflop, read = tokens * 2 * 3 * 2 * 256 * 1024 / 1e9, min(2 * tokens, 8) * 3 * 256 * 1024 * 4 / 1e9
            facts = {"case": f"forward, {name}, 8 experts of 1024, top 2", "calls": repeat}
            yield f"MoE layer against {kind}", ratio(*runs, pairs, repeat), facts | floor(gflop, read)
        runs = [partial(_backward, block, grad) for block in (theirs, ours)]
        facts = {"case": "forward + backward, 8 x 256 tokens, 8 experts of 1024, top 2"}
        yield f"MoE layer against {kind}", ratio(*runs, pairs), facts | floor(3 * gflop)


def _theirs_moe(ours: MoE, kind: str) -> Qwen2MoeSparseMoeBlock:
    config = Qwen2MoeConfig(
        hidden_size=256, moe_intermediate_size=1024, num_experts=8, num_experts_per_tok=2,
        shared_expert_intermediate_size=0, norm_topk_prob=False,
    )  # fmt: skip
    config._experts_implementation = kind
    theirs, x = Qwen2MoeSparseMoeBlock(config), torch.randn(4, 40, 256)
    with torch.no_grad():
        theirs.gate.weight.copy_(ours.router.weight)
        theirs.experts.gate_up_proj.copy_(torch.cat([ours.experts.gate, ours.experts.up], 1))
        theirs.experts.down_proj.copy_(ours.experts.down)
        torch.testing.assert_close(ours(x)[0], theirs(x), atol=1e-4, rtol=1e-4)
    return theirs


def _forward(block, tokens: int) -> None:
    with torch.no_grad():
        x = torch.randn(tokens, 256)
        block(x, x) if isinstance(block, LaidOut) else block(x[None])


def _backward(block, grad) -> None:
    out = block(torch.randn(grad.shape, requires_grad=True))
    (out[0] if isinstance(out, tuple) else out).backward(grad)
    block.zero_grad()


def floor(gflop: float, read_gb: float = 0.0) -> dict[str, float]:
    """The least seconds that so many operations, or reading so many GB of weights, take here: measured now."""
    x, weight = torch.randn(1, 256), torch.randn(256, 24 << 10)  # 24 MB, as much as the model
    best, row = peak() / 1e9, weight.numel() * 4e-9
    speed = max(row / seconds(lambda: torch.mm(x, weight)) for _ in range(8))
    least = max(gflop / best, read_gb / speed)
    return {"gflop": round(gflop, 3), "peak_gflops": round(best, 1), "read_gb": round(read_gb, 4),
            "read_gb_s": round(speed, 1), "floor_s": round(least, 6)}  # fmt: skip


def _theirs(new: int) -> GenerationConfig:
    return GenerationConfig(max_new_tokens=new, min_new_tokens=new, do_sample=False, use_cache=True, pad_token_id=0)


THEMES = {"training": training, "decode": decode, "decode_many": decode_many, "moe": moe}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--only", choices=THEMES, nargs="*", default=list(THEMES))
    options.add_argument("--threads", type=int, nargs="*", default=[2, 1])
    options.add_argument("--pairs", type=int, default=7)
    args = options.parse_args()
    for threads in args.threads:
        torch.set_num_threads(threads)
        for theme in args.only:
            for metric, values, facts in THEMES[theme](args.pairs):
                record("lm", metric, values, dry=args.dry, clock=clock_name(), **facts)


if __name__ == "__main__":
    main()
