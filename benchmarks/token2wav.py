"""Speech tokens to sound at the released size (flow 155.8 M, HiFT 20.8 M parameters, random weights) on one core.

    python -m benchmarks.token2wav          # results appended
    python -m benchmarks.token2wav --dry    # nothing written

Seconds of computation per second of sound (rtf) in the middle of a stream, and until the first sound leaves once its
tokens are there (latency; reading the voice's prompt of 2 s apart), by chunk, steps of the solver, streams in one
batch, and precision of the flow. CPU time with one thread, so a busy machine slows it little; the prompt's keys are
there. Beside it the floor: all multiply-adds at the rate of a large fp32 matrix product measured between the runs.
"""

from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

import gamut.nn.linear
from benchmarks.record import parser, peak, record, seconds
from gamut.codecs.flow import Voice
from gamut.codecs.token2wav import Token2Wav, decode_together

PROMPT = 50  # tokens
CASES = [  # chunk in tokens, steps, streams, precision of the flow
    (25, 10, 1, torch.float32), (25, 10, 1, torch.bfloat16), (10, 10, 1, torch.float32), (25, 5, 1, torch.float32),
    (25, 10, 4, torch.float32), (10, 5, 1, torch.bfloat16), (25, 10, 4, torch.bfloat16),
]  # fmt: skip


def released() -> Token2Wav:
    """Random weights everywhere, in the gates and last layers too."""
    torch.manual_seed(0)
    codec = Token2Wav().eval()
    for weight in codec.flow.parameters():
        if not weight.detach().any():
            torch.nn.init.normal_(weight, std=0.02)
    codec.hift.fold()
    return codec


def tokens(codec: Token2Wav, count: int) -> torch.Tensor:
    return torch.randint(codec.config.flow.vocab, (1, count))


def measured(codec: Token2Wav, chunk: int, steps: int, streams: int, pieces: int) -> dict[str, float]:
    """Times of a call that makes one piece of every stream; ``ratio`` is that of the middle pieces to their floor."""
    voice = Voice(tokens(codec, PROMPT)[0], torch.randn(80, 2 * PROMPT) - 5, torch.randn(192))
    reading = []
    begun = seconds(lambda: reading.append(codec.read(voice, steps=steps)))
    rows = [codec.open(1, chunk, reading[0]) for _ in range(streams)]

    def piece(count: int) -> float:
        given = [tokens(codec, count) for _ in rows]
        return seconds(lambda: decode_together(rows, given))

    first = piece(chunk + codec.config.flow.ahead)
    piece(chunk)
    times = sorted(piece(chunk) for _ in range(pieces))
    usual, gamut.nn.linear.SMALLEST = gamut.nn.linear.SMALLEST, 1 << 62  # oneDNN's products are not counted
    with FlopCounterMode(display=False) as counter:
        piece(chunk)
    gamut.nn.linear.SMALLEST = usual
    sound, flop = chunk * codec.stride[0] / codec.rate * streams, counter.get_total_flops()
    floor = flop / peak()
    return {
        "ratio": median(times) / floor, "low": times[0] / floor, "high": times[-1] / floor, "slow_s": median(times),
        "fast_s": floor, "rtf": median(times) / sound, "floor_rtf": floor / sound, "latency_s": first,
        "prompt_s": begun, "gflop_per_s_of_sound": flop / sound / 1e9,
    }  # fmt: skip


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--pieces", type=int, default=3, help="in the middle of the stream")
    args = options.parse_args()
    torch.set_num_threads(1)
    codec = released()
    for chunk, steps, streams, dtype in CASES:
        codec.flow.to(dtype)
        values = measured(codec, chunk, steps, streams, args.pieces)
        kind = str(dtype).removeprefix("torch.")
        metric = f"token2wav, chunk {chunk}, {steps} steps, {streams} stream{'s' * (streams > 1)}, {kind}, time / floor"
        record("token2wav", metric, values, dry=args.dry)


if __name__ == "__main__":
    main()
