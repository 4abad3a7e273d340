"""Tool calls in a model's text, read whole and read while the text arrives; codecs/chat.py writes them.

    <tool_call>function
    {name}
    {arguments as JSON}</tool_call>

Calls may follow each other. The format and both readers' results are those of the released serving branch (arXiv
2507.16632; vLLM branch step-audio2-mini), except that here the result never depends on how the stream was cut.
"""

import json
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from gamut.codecs.chat import CONTROL, TOOL_CLOSE, TOOL_OPEN


def new_call_id() -> str:
    """A name no other call has; clients send it back with the result."""
    return f"call_{uuid.uuid4().hex[:24]}"


@dataclass(frozen=True)
class ToolCall:
    """One call as the model wrote it. ``arguments`` is JSON when it parsed, otherwise the text that did not."""

    name: str
    arguments: str
    id: str


class ToolText(NamedTuple):
    """``content`` is what a reader sees beside the calls; None when there is nothing else."""

    content: str | None
    calls: list[ToolCall]


def defuse(text: str) -> str:
    """``text`` with a space in every control string, so that words from outside can open no role, call or speech."""
    return CONTROL.sub("< ", text)


def _json(text: str) -> Any:
    def refuse(word: str):
        raise ValueError(f"{word} is not JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def parse_tool_calls(
    text: str, tools: Sequence[str] | None = None, *, new_id: Callable[[], str] = new_call_id
) -> ToolText:
    """Read a finished answer.

    Calls whose arguments are not JSON are dropped and so, when ``tools`` lists names, are unknown ones. Without a valid
    call the text is returned whole; with one, ``content`` is what stands before the first call and after the last:
    text between calls is dropped too, as in the reference.
    """
    before, mark, rest = text.partition(TOOL_OPEN)
    calls, after = [], ""
    while mark and TOOL_CLOSE in rest:
        body, _, after = rest.partition(TOOL_CLOSE)
        lines = body.split("\n", 2)
        if len(lines) == 3 and (not tools or lines[1] in tools):
            try:
                arguments = json.dumps(_json(lines[2]), ensure_ascii=False)
                calls.append(ToolCall(lines[1], arguments, new_id()))
            except ValueError:
                pass  # the caller sees fewer calls; ToolCallParser.calls keeps what did not parse
        _, mark, rest = after.partition(TOOL_OPEN)
    return ToolText(before + after or None, calls) if calls else ToolText(text, [])


class _Draft:
    """The inside of one call while it arrives: a type line, a name line, then JSON that ends where its brackets do."""

    def __init__(self):
        self.lines, self.arguments, self.value = [""], "", None
        self.depth, self.quoted, self.escaped, self.whole = 0, False, False, False

    def feed(self, text: str) -> None:
        while len(self.lines) < 3 and text:
            if self.lines == [""]:
                text = text.lstrip()  # the reference strips what stands before the type line
            line, newline, text = text.partition("\n")
            self.lines[-1] += line
            if newline:
                self.lines.append("")
        if self.whole or len(self.lines) < 3:
            return
        end = next((i for i, c in enumerate(text) if self._ends(c)), None)
        self.arguments += text if end is None else text[: end + 1]
        if end is not None:
            self.finish()

    def _ends(self, c: str) -> bool:
        if self.quoted:
            if self.escaped:
                self.escaped = False
            elif c == "\\":
                self.escaped = True
            elif c == '"':
                self.quoted = False
        elif c == '"':
            self.quoted = True
        elif c in "{[":
            self.depth += 1
        elif c in "}]":
            self.depth -= 1
            return self.depth <= 0
        return False

    def finish(self) -> None:
        """Nothing more belongs to the arguments: parse them. A bare number or word only ends with the call."""
        if not self.whole:
            self.whole = True
            try:
                self.value = _json(self.arguments)
                self.arguments = json.dumps(self.value, ensure_ascii=False)
            except ValueError:
                pass  # the text stays as it is, for an error message to quote

    @property
    def named(self) -> bool:
        return len(self.lines) == 3 and bool(self.arguments.strip())


class ToolCallParser:
    """Reads an answer piece by piece into messages such as a streaming client gets.

    The name is sent when the arguments begin, the arguments in one piece once they parse; empty arguments are never
    sent, and unknown names are, as in the reference. What may be the beginning of a mark waits for the next piece.
    ``calls`` holds every call so far, also those a client was not told of (broken JSON, ``{}``, no arguments at all).
    """

    def __init__(self, new_id: Callable[[], str] = new_call_id):
        self.new_id, self.waiting, self.draft = new_id, "", None
        self.drafts: list[tuple[_Draft, str]] = []
        self.index, self.sent_name, self.sent_arguments = -1, False, False

    def push(self, delta: str) -> list[dict[str, Any]]:
        """Messages that ``delta`` completes: {"content": text} or {"tool_calls": [one entry with its index]}."""
        messages, text = [], self.waiting + delta
        while True:
            mark = TOOL_CLOSE if self.draft else TOOL_OPEN
            piece, found, rest = text.partition(mark)
            if not found:
                held = next((n for n in range(len(mark) - 1, 0, -1) if piece.endswith(mark[:n])), 0)
                piece, self.waiting = piece[: len(piece) - held], piece[len(piece) - held :]
            messages += self._inside(piece, bool(found)) if self.draft else self._outside(piece, bool(found))
            if not found:
                return messages
            text = rest

    def end(self) -> list[dict[str, Any]]:
        """The text is over: what was held back as the possible beginning of a mark is text after all."""
        piece, self.waiting = self.waiting, ""
        return self._inside(piece, False) if self.draft else self._outside(piece, False)

    @property
    def calls(self) -> list[ToolCall]:
        """Every call in order, each with the id its messages carried."""
        return [ToolCall("".join(d.lines[1:2]).strip(), d.arguments, i) for d, i in self.drafts]

    def _outside(self, piece: str, opens: bool) -> list[dict[str, Any]]:
        if opens:
            self.draft, self.sent_name, self.sent_arguments = _Draft(), False, False
            self.drafts.append((self.draft, self.new_id()))
        return [{"content": piece}] if piece else []

    def _inside(self, piece: str, closes: bool) -> list[dict[str, Any]]:
        draft, id = self.drafts[-1]
        draft.feed(piece)
        if closes:
            draft.finish()
            self.draft = None
        messages = []
        if draft.named and not self.sent_name:
            self.sent_name = True
            self.index += 1
            messages.append(self._entry(type="function", id=id, function={"name": draft.lines[1]}))
        if self.sent_name and draft.value and not self.sent_arguments:
            self.sent_arguments = True
            messages.append(self._entry(function={"arguments": draft.arguments}))
        return messages

    def _entry(self, **fields: Any) -> dict[str, Any]:
        return {"tool_calls": [{"index": self.index, **fields}]}


def aggregate(messages: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What a client has after all messages: {"content": text, "calls": [{"name", "arguments"}]}."""
    content, calls = "", {}
    for message in messages:
        content += message.get("content", "")
        for entry in message.get("tool_calls", ()):
            call = calls.setdefault(entry["index"], {"name": "", "arguments": ""})
            for key, value in entry["function"].items():
                call[key] += value
    return {"content": content, "calls": [calls[i] for i in sorted(calls)]}
