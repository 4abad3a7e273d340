"""Small stand-ins that several test files share."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

TA4 = json.loads((Path(__file__).parent / "golden" / "step_audio_2_ta4.json").read_text())


class ToyTokenizer:
    """The tokenizer of step_audio_2_ta4.json: special strings by table, every other character is its code point."""

    def __init__(self, rule: dict = TA4["tokenizer"]):
        audio = {f"<audio_{k}>": rule["audio_base"] + k for k in range(rule["audio_count"])}
        self.specials = {**rule["vocab"], **audio}
        self.names = {i: name for name, i in self.specials.items()}
        self.cut = re.compile("(" + "|".join(map(re.escape, rule["vocab"])) + r"|<audio_\d+>)")

    def encode(self, text: str) -> list[int]:
        out = []
        for piece in self.cut.split(text):
            out += [self.specials[piece]] if piece in self.specials else map(ord, piece)
        return out

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.names.get(i) or chr(i) for i in ids)

    def id(self, token: str) -> int:
        if token not in self.specials:
            raise ValueError(f"token {token!r} is not in this vocabulary")
        return self.specials[token]
