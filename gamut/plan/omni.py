"""What a model that hears and speaks takes: parameters, memory and arithmetic, before it is made.

2 FLOPs per matrix element and position, 4 · heads · head_dim per position looked back on; AdamW in float32 holds 16
bytes for a trained parameter (weight, gradient, two moments). Ours; sizes as in fact sheet step_audio_2 §3-4.
"""

from collections.abc import Mapping
from typing import Any

Fields = Mapping[str, Any]
MINI: Fields = {  # Step-Audio 2 mini, as fields of OmniConfig
    "lm": {"vocab": 158720, "width": 3584, "layers": 28, "heads": 28, "kv_heads": 4, "head_dim": 128, "ffn": 18944,
           "qkv_bias": True},
    "audio": {"mels": 128, "width": 1280, "layers": 32, "ffn": 5120, "positions": 1500},
    "adaptor_hidden": 2048,
}  # fmt: skip
STEPS, PIECE = 50, 25  # encoder steps in a second before pooling, seconds heard at once
GIGA = 1e9


def _decoder(lm: Fields) -> tuple[list[tuple[int, int]], int, int]:
    """Shapes of a block's matrices, parameters of all blocks and norms, of embedding and head."""
    width, own, shared = lm["width"], lm["heads"] * lm["head_dim"], lm["kv_heads"] * lm["head_dim"]
    shapes = [(width, own), (own, width), *[(width, shared)] * 2, *[(width, lm["ffn"])] * 3]
    vectors = 2 * width + (own + 2 * shared) * bool(lm.get("qkv_bias")) + width * bool(lm.get("out_bias"))
    vectors += 2 * lm["head_dim"] * bool(lm.get("qk_norm"))
    blocks = lm["layers"] * (sum(a * b for a, b in shapes) + vectors) + width
    return shapes, blocks, lm["vocab"] * width * (1 if lm.get("tied") else 2)


def _encoder(audio: Fields) -> tuple[int, int]:
    """Parameters of the audio encoder, and FLOPs to hear a second."""
    width, ffn, layers = audio["width"], audio["ffn"], audio["layers"]
    first, second = 3 * audio["mels"] * width, 3 * width * width
    block = 4 * width * width + 2 * width * ffn
    vectors = 3 * width + ffn + width + 4 * width
    parameters = first + second + audio["positions"] * width + layers * (block + vectors) + 4 * width
    flops = 2 * STEPS * (2 * first + second + layers * (block + 2 * width * PIECE * STEPS))
    return parameters, flops


def cost(config: Fields, positions: int = 4096, rank: int = 16) -> dict[str, int | float]:
    """Lines of a plan: whole numbers, GB, GFLOP.

    Args:
        config: fields of OmniConfig, as config.json of a folder of ours holds them.
        positions: of a micro-batch in training, and of the prompt that a token is written behind.
        rank: of the adapters that are counted beside training whole.
    """
    lm, audio, hidden = config["lm"], config["audio"], config.get("adaptor_hidden", 2048)
    shapes, blocks, tables = _decoder(lm)
    encoder, second = _encoder(audio)
    kernel = config.get("adaptor_kernel", 3) * audio["width"] ** 2
    products = kernel + hidden * (audio["width"] + lm["width"])
    adaptor = products + audio["width"] + hidden + lm["width"]
    second += STEPS // 2 // config.get("adaptor_stride", 2) * 2 * products
    token = 2 * (lm["layers"] * sum(a * b for a, b in shapes) + lm["vocab"] * lm["width"])
    scores = 4 * lm["heads"] * lm["head_dim"] * lm["layers"]
    row = positions * (token + scores * positions / 2)  # a position looks back on half of the row
    whole, adapters = adaptor + blocks + tables, rank * lm["layers"] * sum(a + b for a, b in shapes)
    kept = (lm["layers"] + 2) * positions * lm["width"] * 4 + 512 * lm["vocab"] * 8  # a block's input, 512 logits
    return {
        "parameters": encoder + whole,
        "  encoder": encoder,
        "  adaptor": adaptor,
        "  decoder, embedding, head": blocks + tables,
        "weights in bfloat16, GB": 2 * (encoder + whole) / GIGA,
        "keys and values, GB": 4 * lm["layers"] * lm["kv_heads"] * lm["head_dim"] * positions / GIGA,
        "positions in view": positions,
        "hear a second, GFLOP": second / GIGA,
        "write a token, GFLOP": (token + scores * positions) / GIGA,
        "trained whole": whole,
        "  AdamW in float32, GB": (16 * whole + 4 * encoder + kept) / GIGA,
        "  a micro-batch, GFLOP": 3 * row / GIGA,
        f"trained by adapters, rank {rank}": adapters,
        "  on bfloat16 weights, GB": (16 * adapters + 2 * (encoder + whole) + kept) / GIGA,
        "  a micro-batch of them, GFLOP": 2 * row / GIGA,
    }
