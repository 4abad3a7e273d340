"""What GPUs and models can do: the numbers under the simulator of RL runs.

Times are in seconds, sizes in bytes, rates per second. Sources: StreamRL (arXiv 2504.15930), Tables 1 and 2 and Figure
6.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Gpu:
    name: str
    flops: float  # dense BF16
    memory: float
    bandwidth: float  # of its memory
    cost: float  # of one GPU; 1/8 of the relative cost of a machine of 8


GPUS = {
    "H20": Gpu("H20", 148e12, 96e9, 4.0e12, 1.00 / 8),  # Table 1
    "H800": Gpu("H800", 989.5e12, 80e9, 3.35e12, 2.85 / 8),  # Table 1
    "H100": Gpu("H100", 989.5e12, 80e9, 3.35e12, 2.85 / 8),  # data sheet of the maker; cost as H800, ours
}


@dataclass(frozen=True)
class Model:
    name: str
    parameters: float
    layers: int
    heads: int
    kv_heads: int
    width: int

    @property
    def weights(self) -> float:
        """Bytes in bfloat16."""
        return 2 * self.parameters

    @property
    def kv_bytes(self) -> float:
        """KV cache of one token, bfloat16."""
        return 2 * 2 * self.layers * self.kv_heads * self.width / self.heads


MODELS = {
    "7b": Model("7b", 7.62e9, 28, 28, 4, 3584),  # Table 2; kv_heads of the released weights (the table prints 8)
    "32b": Model("32b", 32.8e9, 64, 40, 8, 5120),  # Table 2
    "72b": Model("72b", 72.7e9, 80, 64, 8, 8192),  # Table 2
    "13b": Model("13b", 13.0e9, 40, 40, 40, 5120),  # LLaMA, RLHFuse Table 2
    "33b": Model("33b", 32.5e9, 60, 52, 52, 6656),  # RLHFuse Table 2
    "65b": Model("65b", 65.2e9, 80, 64, 64, 8192),  # RLHFuse Table 2
}

# Figure 2 left: 7B, time to train on 8, 16, 24, 32 GPUs, relative to 8; read off to 0.01
FIG2 = {8: 1.0, 16: 0.54, 24: 0.30, 32: 0.19}
MOST = 36  # fitted: Figure 10's stages that generate on 40 and 80 GPUs, and Table 3
FILL = 24  # samples up to which Figure 6 is nearly flat: a replica that holds fewer wastes bandwidth

# Figure 6 right: 7B on one H800, vLLM; batch size -> milliseconds per token, read off the plot to 0.15 ms
FIG6 = {1: 8.4, 2: 8.75, 4: 8.95, 8: 9.0, 16: 9.4, 32: 10.25, 64: 11.65, 128: 15.25, 256: 21.4, 512: 36.85}


@dataclass(frozen=True)
class Measured:
    """Per-token latency by decode batch size from a table; straight lines between its points, and beyond its end."""

    sizes: tuple[float, ...] = tuple(FIG6)
    seconds: tuple[float, ...] = tuple(value / 1e3 for value in FIG6.values())

    def __post_init__(self):
        if len(self.sizes) != len(self.seconds) or len(self.sizes) < 2 or list(self.sizes) != sorted(set(self.sizes)):
            raise ValueError(
                f"a latency table needs two or more rising batch sizes, each with its time; got {self.sizes}"
            )

    def __call__(self, batch: float, context: float = 0.0) -> float:
        """Seconds for one token of each of ``batch`` samples; ``context`` is in the table's own."""
        if batch > self.sizes[-1]:
            slope = (self.seconds[-1] - self.seconds[-2]) / (self.sizes[-1] - self.sizes[-2])
            return self.seconds[-1] + slope * (batch - self.sizes[-1])
        return float(np.interp(batch, self.sizes, self.seconds))


@dataclass(frozen=True)
class Roofline:
    """Per-token latency by first principles: a fixed part, then reading weights and cache, then computing.

    The fixed part is ``layer`` seconds for each layer, and two ``reduce`` where tensor parallelism must add up. At
    ``use`` = 0.8 of the peaks, ``layer`` = 0.097 ms gives a 7B model on one H800 Figure 6's 8.4 ms at batch 1; with
    1,400 tokens of context every point of the figure is met within 9 %. Reading and computing add up: the maximum of
    the two misses its last point by half. ``reduce`` was fitted: RLHFuse's Figure 8, generation of at most 512 tokens.
    """

    model: Model
    gpu: Gpu
    tp: int = 1
    layer: float = 0.097e-3
    reduce: float = 50e-6
    use: float = 0.8

    def __call__(self, batch: float, context: float = 0.0) -> float:
        """Seconds for one token of each of ``batch`` samples with ``context`` tokens of cache each."""
        cache = batch * context * self.model.kv_bytes
        reading = (self.model.weights + cache) / (self.tp * self.gpu.bandwidth * self.use)
        computing = 2 * self.model.parameters * batch / (self.tp * self.gpu.flops * self.use)
        fixed = self.model.layers * (self.layer + 2 * self.reduce * (self.tp > 1))
        return fixed + reading + computing


def training_efficiency(model: Model, gpu: Gpu, gpus: int) -> float:
    """Work done by each GPU, relative to the mean over Figure 2's points: 7B on H800 trains faster than in proportion
    from 16 to 32 GPUs. 1 for what was not measured."""
    if (model.name, gpu.name) != ("7b", "H800"):
        return 1.0
    each = [8 / (count * time) for count, time in FIG2.items()]
    return float(np.interp(gpus, list(FIG2), each) / np.mean(each))


def replica(model: Model, gpu: Gpu, tokens: float, share: float = 0.9) -> int:
    """GPUs of one replica: the fewest (1, 2, 4 or 8, one machine) whose memory holds `FILL` samples of ``tokens``.

    The paper does not print its degrees. This rule, ours, was found on Figure 8's Async cells of 32B and 72B: any
    number of samples from 22 to 28 gives the same degrees there.
    """
    need = model.weights + FILL * model.kv_bytes * tokens
    return next((tp for tp in (1, 2, 4) if tp * gpu.memory * share >= need), 8)


def slots(model: Model, gpu: Gpu, tp: int, tokens: float, share: float = 0.9) -> int:
    """Samples of ``tokens`` each whose cache fits beside the weights on ``tp`` GPUs; ``share``: of the memory, in use.

    Raises:
        ValueError: the weights alone do not fit, or not one sample does.
    """
    left = tp * gpu.memory * share - model.weights
    found = int(left // (model.kv_bytes * tokens))
    if found < 1:
        need = (model.weights + model.kv_bytes * tokens) / (gpu.memory * share)
        raise ValueError(
            f"{model.name} with a sample of {tokens:g} tokens does not fit {tp} x {gpu.name}; allowed: tp >= "
            f"{int(np.ceil(need))}"
        )
    return found


def parse_gpus(text: str) -> tuple[int, Gpu]:
    """``32xH800`` -> (32, the GPU). Any other one as ``32xNAME:TFLOPS:GB:TB/s:COST``: dense BF16, memory, its
    bandwidth, and the cost of one GPU in any unit that all pools share.

    >>> parse_gpus("32xH800")[0], parse_gpus("8xh20")[1].name, parse_gpus("8xB1:2250:192:8:0.6")[1].memory
    (32, 'H20', 192000000000.0)
    """
    count, _, what = text.partition("x")
    name, *own = what.split(":")
    try:
        if not count.isdigit() or int(count) < 1 or len(own) not in (0, 4) or not name:
            raise ValueError(text)
        if not own:
            return int(count), GPUS[name.upper()]
        flops, memory, bandwidth, cost = map(float, own)
        if not all(0 < value < np.inf for value in (flops, memory, bandwidth, cost)):
            raise ValueError(text)
    except (KeyError, ValueError):
        raise ValueError(
            f"GPUs are given as COUNTxNAME, got '{text}'; names: {', '.join(GPUS)}; for example 32xH800; any other as "
            "COUNTxNAME:TFLOPS:GB:TB/s:COST, all above 0, for example 32xB200:2250:192:8:0.6"
        ) from None
    return int(count), Gpu(name, flops * 1e12, memory * 1e9, bandwidth * 1e12, cost)


def parse_model(name: str) -> Model:
    """A name of `MODELS`, or any size as ``14b:layers:heads:kv_heads:width``."""
    if name.lower() in MODELS:
        return MODELS[name.lower()]
    size, *rest = name.lower().split(":")
    try:
        if len(rest) != 4 or not size.endswith("b"):
            raise ValueError(size)
        return Model(size, float(size[:-1]) * 1e9, *map(int, rest))
    except ValueError as error:
        raise ValueError(
            f"unknown model '{name}'; known: {', '.join(MODELS)}; or SIZEb:LAYERS:HEADS:KV_HEADS:WIDTH, for "
            "example 14b:48:40:8:5120"
        ) from error


def hardware(gpus: Sequence[str]) -> list[tuple[int, Gpu]]:
    """Several pools, each as `parse_gpus` reads it."""
    return [parse_gpus(text) for text in gpus]
