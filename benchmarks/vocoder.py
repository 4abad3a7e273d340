"""HiFT at its released sizes on one core: seconds of computation per second of sound, random weights.

    python -m benchmarks.vocoder          # results appended
    python -m benchmarks.vocoder --dry    # nothing written

Thread time with one thread, so a busy machine slows it little. Beside it the floor: the multiply-adds of its
convolutions at the rate of a large matrix product measured between the runs.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.record import record
from gamut.codecs.hift import HiFT, HiFTConfig

RELEASES = {
    "24 kHz": HiFTConfig(),
    "22.05 kHz": HiFTConfig(rate=22050, upsample=(8, 8), kernels=(16, 16), source_kernels=(7, 11), smooth=False),
}


def cpu_seconds(run: Callable[[], object]) -> float:
    """Time of this thread in one call; what oneDNN prepares per shape is done by a call before."""
    begin = time.thread_time()
    run()
    return time.thread_time() - begin


def matrix_rate() -> float:
    """Floating-point operations per second of a product of 1024 x 1024 float32 matrices."""
    a = torch.randn(1024, 1024)
    a @ a
    return 2 * 1024**3 / min(cpu_seconds(lambda: a @ a) for _ in range(3))


def measured(config: HiFTConfig, frames: int, runs: int) -> dict[str, float]:
    """Normed against folded weights: ratio, real-time factors of both, floating-point operations and their floor."""
    torch.manual_seed(0)
    normed, folded = HiFT(config).eval(), HiFT(config).eval().fold()
    mel, sound = torch.randn(1, config.mels, frames) - 4, frames * config.hop / config.rate
    with FlopCounterMode(display=False) as counter:
        folded.decode(mel)
    normed.decode(mel)
    pairs = [(cpu_seconds(lambda: normed.decode(mel)), cpu_seconds(lambda: folded.decode(mel))) for _ in range(runs)]
    ratios = sorted(a / b for a, b in pairs)
    flop = counter.get_total_flops()
    return {
        "ratio": median(ratios), "low": ratios[0], "high": ratios[-1], "slow_s": median(a for a, _ in pairs),
        "fast_s": median(b for _, b in pairs), "rtf": median(b for _, b in pairs) / sound,
        "gflop_per_s_of_sound": flop / sound / 1e9, "floor_rtf": flop / matrix_rate() / sound,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--frames", type=int, nargs="*", default=[58, 200], help="58 are a streamed chunk of 50")
    parser.add_argument("--dry", action="store_true", help="print, write nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name, config in RELEASES.items():
        for frames in args.frames:
            values = measured(config, frames, args.runs)
            metric = f"HiFT {name}, {frames} frames, normed / folded"
            print(metric, {k: round(v, 4) for k, v in values.items()}, flush=True)
            if not args.dry:
                record("vocoder", metric, values)


if __name__ == "__main__":
    main()
