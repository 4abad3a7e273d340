"""HiFT at its released sizes on one core: seconds of computation per second of sound, random weights.

    python -m benchmarks.vocoder          # results appended
    python -m benchmarks.vocoder --dry    # nothing written

CPU time with one thread, so a busy machine slows it little. Beside it the floor: the multiply-adds of its
convolutions at the rate of a large matrix product measured between the runs.
"""

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.record import parser, peak, ratio, record
from gamut.codecs.hift import HiFT, HiFTConfig

RELEASES = {
    "24 kHz": HiFTConfig(),
    "22.05 kHz": HiFTConfig(rate=22050, upsample=(8, 8), kernels=(16, 16), source_kernels=(7, 11), smooth=False),
}


def measured(config: HiFTConfig, frames: int, runs: int) -> dict[str, float]:
    """Normed against folded weights: ratio, real-time factors of both, floating-point operations and their floor."""
    torch.manual_seed(0)
    normed, folded = HiFT(config).eval(), HiFT(config).eval().fold()
    mel, sound = torch.randn(1, config.mels, frames) - 4, frames * config.hop / config.rate
    with FlopCounterMode(display=False) as counter:
        folded.decode(mel)
    values, flop = ratio(lambda: normed.decode(mel), lambda: folded.decode(mel), runs), counter.get_total_flops()
    return values | {
        "rtf": values["fast_s"] / sound, "gflop_per_s_of_sound": flop / sound / 1e9,
        "floor_rtf": flop / peak() / sound,
    }  # fmt: skip


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--frames", type=int, nargs="*", default=[58, 200], help="58 are a streamed chunk of 50")
    args = options.parse_args()
    torch.set_num_threads(1)
    for name, config in RELEASES.items():
        for frames in args.frames:
            values = measured(config, frames, args.runs)
            record("vocoder", f"HiFT {name}, {frames} frames, normed / folded", values, dry=args.dry)


if __name__ == "__main__":
    main()
