"""Time to the first token of every turn of a spoken conversation, with and without the keys and values of the past.

    python -m benchmarks.turns          # results appended
    python -m benchmarks.turns --dry    # nothing written

A model of about 100 M random weights hears a question of four seconds and answers with 64 tokens, five times. Without
a past it encodes every clip and runs the whole conversation again; with it, only what is new. CPU time, one thread.
"""

from collections.abc import Iterator
from statistics import median
from typing import Any

import torch

from benchmarks.record import clock_name, parser, record, seconds
from gamut.codecs.chat import EOT, encode_chat
from gamut.codecs.mel import WHISPER_RATE, hear, patches
from gamut.data.conversations import vocabulary
from gamut.generate.past import Past
from gamut.generate.sampling import Sampling
from gamut.generate.speak import decoder
from gamut.models.audio_encoder import AudioEncoderConfig
from gamut.models.decoder import LMConfig
from gamut.models.omni import Omni, OmniConfig

TURNS, SECONDS, ANSWER = 5, 4, 64
GREEDY = Sampling(temperature=0.0, max_new=ANSWER, logprobs=False)


def random_model(words) -> Omni:
    torch.manual_seed(0)
    lm = LMConfig(words.vocab, 768, 12, 12, 4, 64, 2304, max_positions=4096, qkv_bias=True)
    marks = {f"audio_{name}_id": words.id(f"<audio_{name}>") for name in ("start", "end", "patch")}
    return Omni(OmniConfig(lm, AudioEncoderConfig(width=512, layers=6, heads=8, ffn=2048), **marks)).eval()


def conversation(model: Omni, words) -> Iterator[tuple[int, float, float]]:
    """Positions of each turn's prompt, seconds to its first token from nothing, and with the past."""
    past, messages, mels = Past(model.lm), [], []
    for _ in range(TURNS):
        mels.append(hear(torch.randn(SECONDS * WHISPER_RATE) / 10, WHISPER_RATE))
        heard: dict[str, Any] = {"type": "audio", "patches": patches(mels[-1].shape[-1])}
        messages.append({"role": "human", "content": [heard]})
        ids = encode_chat(messages, words)
        said: list[list[int]] = [[], []]
        slow = seconds(lambda: said[0].append(next(iter(decoder(model, GREEDY, mels)(ids)))))  # noqa: B023
        answer: list[Iterator[int]] = []

        def begin() -> None:
            answer.append(iter(decoder(model, GREEDY, mels, past)(ids)))  # noqa: B023
            said[1].append(next(answer[0]))  # noqa: B023

        fast = seconds(begin)
        assert said[0] == said[1], "the first tokens differ"
        tokens = [i for i in (*said[1], *answer[0]) if i != words.id(EOT)]
        messages.append({"role": "assistant", "content": [{"type": "token", "token": tokens}]})
        yield len(ids), slow, fast


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--pairs", type=int, default=3, help="conversations")
    args = options.parse_args()
    torch.set_num_threads(1)
    words = vocabulary(9, [])
    model = random_model(words)
    size = sum(p.numel() for p in model.parameters())
    list(conversation(model, words))  # what is prepared once
    runs = [list(conversation(model, words)) for _ in range(args.pairs)]
    for turn, measured in enumerate(zip(*runs, strict=True), 1):
        ratios = sorted(slow / fast for _, slow, fast in measured)
        values = {
            "ratio": median(ratios), "low": ratios[0], "high": ratios[-1], "pairs": len(runs),
            "slow_s": median(slow for _, slow, _ in measured), "fast_s": median(fast for *_, fast in measured),
        }  # fmt: skip
        case = f"{size / 1e6:.0f} M parameters, {SECONDS} s a question, {ANSWER} tokens an answer"
        record("turns", f"first token of turn {turn}, from nothing / with the past", values, dry=args.dry,
               clock=clock_name(), positions=measured[0][0], case=case)  # fmt: skip


if __name__ == "__main__":
    main()
