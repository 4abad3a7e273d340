"""Int8 weights against floats, in one process, with Step-Audio 2 mini's layer sizes (two of its 28 layers).

    python -m benchmarks.int8             # 2 threads and 1, results appended
    python -m benchmarks.int8 --dry       # nothing written

Decoding reads every weight once per token, so bytes decide; a prompt multiplies each weight many times, so int8 loses
the time it takes to turn weights back into floats.
"""

import torch

from benchmarks.record import parser, ratio, record
from gamut.generate.ar import generate
from gamut.generate.sampling import Sampling
from gamut.io.meta import meta
from gamut.models.lm import LM, LMConfig
from gamut.nn import int8
from gamut.nn.int8 import Int8Linear, int8_tensors, use_int8

CONFIG = LMConfig(vocab=8192, width=3584, layers=2, heads=28, kv_heads=4, head_dim=128, ffn=18944, qkv_bias=True)
CASE = "width 3584, ffn 18944, 28 heads, 4 kv heads, 2 layers, vocabulary 8192 (497 M parameters)"
NEW, PROMPT = 16, 64  # tokens


def pair(dtype: torch.dtype) -> tuple[LM, LM]:
    """The same random weights in ``dtype`` and in int8."""
    torch.manual_seed(0)
    plain = LM(CONFIG).to(dtype).eval()
    with meta():
        small = LM(CONFIG)
    use_int8(small, dtype=dtype)
    small.load_state_dict(dict(int8_tensors(small, plain.state_dict().items(), dtype)), assign=True)
    return plain, small.eval()


def models(pairs: int):
    """Greedy decoding of one prompt, and the pass over a prompt, floats / int8."""
    setting = Sampling(temperature=0.0, max_new=NEW, logprobs=False)
    ids = torch.arange(PROMPT)[None]
    for dtype in (torch.bfloat16, torch.float32):
        plain, small = pair(dtype)
        name = str(dtype).removeprefix("torch.")

        def decode(model: LM):
            return generate(model, [[1, 2, 3, 4]], setting)

        values = ratio(lambda: decode(plain), lambda: decode(small), pairs)  # noqa: B023 - called before the next turn
        rates = {"tokens_per_s": NEW / values["fast_s"], "float_tokens_per_s": NEW / values["slow_s"]}
        yield f"decode 1 prompt, {name} / int8", values | rates, {"case": CASE, "new": NEW}
        with torch.inference_mode():
            values = ratio(lambda: plain.hidden(ids), lambda: small.hidden(ids), pairs)  # noqa: B023
        rates = {"tokens_per_s": PROMPT / values["fast_s"], "float_tokens_per_s": PROMPT / values["slow_s"]}
        yield f"prompt of {PROMPT}, {name} / int8", values | rates, {"case": CASE}


def kernels(pairs: int):
    """Where torch's packed kernel stops paying: time in blocks / packed, by rows."""
    torch.manual_seed(0)
    layer = Int8Linear(3584, 4736, bias=False)
    layer.weight.random_(-127, 128)
    layer.scale.fill_(0.01)
    kept = int8.PACKED_ROWS
    for rows in (1, 4, 8, 16, 64):
        x = torch.randn(rows, 3584, dtype=torch.bfloat16)

        def run(limit: int):
            int8.PACKED_ROWS = limit
            for _ in range(10):
                layer(x)  # noqa: B023

        with torch.inference_mode():
            yield (
                f"{rows} rows, blocks / packed",
                ratio(lambda: run(0), lambda: run(1 << 30), pairs),
                {"case": "10 times 3584 -> 4736, bfloat16"},
            )
    int8.PACKED_ROWS = kept


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--threads", type=int, nargs="*", default=[2, 1])
    options.add_argument("--pairs", type=int, default=7)
    args = options.parse_args()
    for threads in args.threads:
        torch.set_num_threads(threads)
        for theme in (kernels, models):
            for metric, values, facts in theme(args.pairs):
                record("int8", metric, values, dry=args.dry, **facts)


if __name__ == "__main__":
    main()
