"""Small stand-ins that several test files share."""

import json
from pathlib import Path

from gamut.evals.parity_text import RuleTokenizer

TA4 = json.loads((Path(__file__).parent / "golden" / "step_audio_2_ta4.json").read_text())


class ToyTokenizer(RuleTokenizer):
    """The tokenizer of step_audio_2_ta4.json: special strings by table, every other character is its code point."""

    def __init__(self, rule: dict = TA4["tokenizer"]):
        super().__init__(rule)
