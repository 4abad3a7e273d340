"""Parity of text formats: the TA4 weave with its prompts, and tool calls. Every case must be equal."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gamut.codecs.answer import WeaveParser, is_ta4_prompt, parse_ta4
from gamut.codecs.chat import encode_chat, render
from gamut.codecs.toolcall import ToolCallParser, aggregate, parse_tool_calls
from gamut.codecs.weave import Marks, build_ta4
from gamut.evals.fixtures import Fixture

Case = dict[str, Any]


class RuleTokenizer:
    """The toy tokenizer a fixture describes: special strings by table, any other character is its code point."""

    def __init__(self, rule: Mapping[str, Any]):
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
            raise ValueError(f"token {token!r} is not in the fixture's vocabulary; allowed: {list(self.specials)[:12]}")
        return self.specials[token]


def run_ta4(fixture: Fixture) -> dict[str, list[Case]]:
    """Our version of every case; padding as the reference has it."""
    rule = fixture.config["tokenizer"]
    text = RuleTokenizer(rule)
    marks = Marks.of(text, rule["audio_count"] - 1)

    def build(case: Case) -> Case:
        return {"ids": build_ta4(case["text_ids"], case["audio_ids"], marks, padding="reference")}

    def parse(case: Case) -> Case:
        return parse_ta4(case["output_ids"], case["is_ta4"], marks)._asdict()

    def stream(case: Case) -> Case:
        parser = WeaveParser(marks)
        return {"events": [event | parser.push(event["delta_ids"])._asdict() for event in case["events"]]}

    def prompt(case: Case) -> Case:
        return {"is_ta4": is_ta4_prompt(case["prompt_ids"], marks)}

    def template(case: Case) -> Case:
        return {"text": render(**{k: v for k, v in case.items() if k != "text"})}

    def spoken(case: Case) -> Case:
        settings = {k: v for k, v in case.items() if k != "ids"}
        return {"ids": encode_chat(**settings, tokenizer=text, padding="reference", codes=rule["audio_count"] - 1)}

    runs = {
        "build": build, "parse": parse, "stream": stream, "is_ta4_prompt": prompt, "chat_template": template,
        "chat_template_ta4": spoken,
    }  # fmt: skip
    return _every(fixture, runs)


def run_tool_calls(fixture: Fixture) -> dict[str, list[Case]]:
    """Ids of calls are random in the reference and stand as <any>; other cuttings compare aggregates."""

    def complete(case: Case) -> Case:
        content, calls = parse_tool_calls(case["text"], case["tools"])
        found = [{"function": {"name": call.name, "arguments": call.arguments}} for call in calls]
        return {"tools_called": bool(calls), "tool_calls": found, "content": content}

    def pushed(deltas: Sequence[str]) -> tuple[list[Any], Case]:
        parser = ToolCallParser(lambda: "<any>")
        messages = [parser.push(delta) for delta in deltas]
        whole = [message for group in [*messages, parser.end()] for message in group]
        return [(group[0] if len(group) == 1 else group) if group else None for group in messages], aggregate(whole)

    def stream(case: Case) -> Case:
        messages, whole = pushed([event["delta"] for event in case["events"]])
        events = [event | {"message": message} for event, message in zip(case["events"], messages, strict=True)]
        return {"events": events, "aggregate": whole}

    def chunked(case: Case) -> Case:
        return {"aggregate": pushed(case["deltas"])[1]}

    return _every(fixture, {"complete": complete, "stream": stream, "stream_chunked": chunked})


def _every(fixture: Fixture, runs: Mapping[str, Callable[[Case], Case]]) -> dict[str, list[Case]]:
    return {n: [case | run(case) for case in fixture.config[n]] for n, run in runs.items() if n in fixture.config}
