"""Tools a model may call: one protocol for all of them, a calculator, the date and time, a counter that takes orders.

A tool is a plain function. Its calls run in worker threads, all calls of a turn at once, each with its own deadline;
the results come back in call order and are always text for the model to read, also when something went wrong. The text
around calls and results is the released models' (codecs/toolcall.py, codecs/chat.py); everything in this file is ours.
"""

import ast
import difflib
import inspect
import json
import math
import operator
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from gamut.codecs.toolcall import ToolCall, defuse
from gamut.io.media import one_channel

KINDS: dict[str, tuple[type, ...]] = {
    "string": (str,), "number": (int, float), "integer": (int,), "boolean": (bool,), "array": (list,),
    "object": (dict,), "null": (type(None),),
}  # fmt: skip


@dataclass(frozen=True)
class Tool:
    """``run`` is called with the arguments by keyword and returns text, or anything JSON can hold.

    ``parameters`` is the JSON schema of the arguments, an object; types, enums, required and unknown names are checked
    before ``run`` is called. A ValueError is told to the model as it stands. ``seconds`` is the deadline of one call.
    ``ending`` follows a result, which then comes in role input: how the released models are given what they searched.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    run: Callable[..., Any]
    seconds: float = 10.0
    ending: str = ""
    terse: bool = False  # tell the model names and types alone: a prompt is long for a small one

    @property
    def schema(self) -> dict[str, Any]:
        """What the prompt tells the model, in the OpenAI form."""
        parameters = dict(self.parameters)
        if self.terse:
            types = {name: {"type": kind["type"]} for name, kind in parameters.get("properties", {}).items()}
            parameters = {"type": "object", "properties": types}
        function = {"name": self.name, "description": self.description, "parameters": parameters}
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class Found:
    """A result with a sound, wav (T,) at ``rate`` Hz: the model reads ``text`` and hears the clip, and its answer takes
    on the voice."""

    text: str
    wav: Any
    rate: int

    def __post_init__(self):
        object.__setattr__(self, "wav", one_channel(self.wav))


@dataclass(frozen=True)
class ToolResult:
    """What came of a call. ``content`` begins with "error:" unless ``ok``; ``sound`` is what was found beside it."""

    call: ToolCall
    content: str
    ok: bool
    seconds: float
    sound: Found | None = None
    ending: str = ""

    @property
    def message(self) -> dict[str, Any]:
        """The message for the conversation (codecs/chat.py)."""
        if self.ending:
            return {"role": "input", "content": self.content + self.ending}
        return {"role": "tool", "tool_call_id": self.call.id, "name": self.call.name, "content": self.content}


def clip(text: str, limit: int) -> str:
    """At most ``limit`` bytes of UTF-8; what is cut says so at its end. Lone surrogates become question marks."""
    data = text.encode("utf-8", "replace")
    if len(data) <= limit:
        return data.decode()
    marker = f"\n[truncated: the result had {len(data)} bytes, at most {limit} are shown]"
    return data[: limit - len(marker)].decode("utf-8", "ignore") + marker


def failure(why: object, limit: int = 2000) -> str:
    """What the model reads of a call that went wrong, in at most ``limit`` bytes, and never more than 2000."""
    return clip(defuse(f"error: {why}"), min(limit, 2000))


def check_arguments(arguments: Any, parameters: Mapping[str, Any]) -> None:
    """Raises ValueError, in words the model can act on, unless ``arguments`` fit the schema's outer level."""
    properties = parameters.get("properties", {})
    wanted = f"the arguments are a JSON object with {json.dumps(properties, ensure_ascii=False)}"
    if not isinstance(arguments, dict):
        raise ValueError(f"{wanted}; got {json.dumps(arguments, ensure_ascii=False)[:200]}")
    if missing := [name for name in parameters.get("required", ()) if name not in arguments]:
        raise ValueError(f"argument {missing[0]!r} is missing; {wanted}")
    for name, value in arguments.items():
        if name not in properties:
            if parameters.get("additionalProperties"):
                continue
            close = difflib.get_close_matches(name, properties, 1)
            raise ValueError(f"unknown argument {name!r}{f', did you mean {close[0]!r}' if close else ''}; {wanted}")
        kinds = properties[name].get("type", list(KINDS))
        kinds = [kinds] if isinstance(kinds, str) else kinds
        allowed = tuple(kind for name in kinds for kind in KINDS[name])
        choices = properties[name].get("enum", [value])
        if not isinstance(value, allowed) or (isinstance(value, bool) and "boolean" not in kinds):
            choices, must = [], "be " + " or ".join(kinds)
        else:
            must = f"be one of {json.dumps(choices, ensure_ascii=False)}"
        if value not in choices:
            raise ValueError(f"argument {name!r} must {must}, got {json.dumps(value, ensure_ascii=False)[:200]}")


def _check_schema(tool: Tool) -> None:
    """Raises ValueError where ``check_arguments`` would not understand what a tool takes."""
    for name, kind in tool.parameters.get("properties", {}).items():
        kinds = kind.get("type", [] if not tool.terse else None) if isinstance(kind, Mapping) else None
        kinds = [kinds] if isinstance(kinds, str) else kinds
        if not isinstance(kinds, list) or not set(kinds) <= KINDS.keys():
            raise ValueError(f"tool {tool.name!r}: argument {name!r} needs a schema with a type, one of "
                             f"{', '.join(KINDS)}; got {kind!r}")


class _Job(threading.Thread):
    """One call in its own daemon thread: a tool that never returns cannot keep the process from ending."""

    def __init__(self, tool: Tool, call: ToolCall, limit: int):
        super().__init__(name=f"tool {tool.name}", daemon=True)
        self.tool, self.call, self.limit, self.began = tool, call, limit, time.monotonic()
        self.outcome: tuple[str, bool] | None = None
        self.sound: Found | None = None

    def run(self) -> None:
        try:
            arguments = json.loads(self.call.arguments)
        except (ValueError, RecursionError) as error:
            example = dict.fromkeys(self.tool.parameters.get("properties", {}), "…")
            self.outcome = self._failure(f"the arguments are not JSON ({error}); write {json.dumps(example)}")
            return
        try:
            check_arguments(arguments, self.tool.parameters)
            value = self.tool.run(**arguments)
            self.sound = value if isinstance(value, Found) else None
            value = value.text if isinstance(value, Found) else value
            if inspect.iscoroutine(value):
                value.close()
                raise ValueError("the tool is an async function, which nothing here awaits; it must be a plain one")
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            self.outcome = clip(defuse(text), self.limit), True
        except ValueError as error:
            self.outcome = self._failure(str(error))
        except BaseException as error:  # whatever it was, the conversation goes on and the model is told
            self.outcome = self._failure(f"{self.tool.name} failed ({type(error).__name__}: {error})")

    def _failure(self, why: str) -> tuple[str, bool]:
        return failure(why, self.limit), False

    def result(self) -> ToolResult:
        self.join(max(0.0, self.began + self.tool.seconds - time.monotonic()))
        late = self._failure(f"{self.tool.name} did not answer within {self.tool.seconds:g} s")
        content, ok = self.outcome or late
        took, sound = time.monotonic() - self.began, self.sound if ok else None
        return ToolResult(self.call, content, ok, took, sound, self.tool.ending if ok else "")


class Toolbox:
    """The tools of one conversation.

    Args:
        limit: bytes of UTF-8 the results of a round may have, shared alike; longer ones are cut, with a note.
        most: calls one turn may make; what goes beyond is answered with an error.
        stuck: calls past their deadline that may still be running (a thread cannot be killed); at that number new calls
            are refused until one of them ends.
    """

    def __init__(self, tools: Sequence[Tool], *, limit: int = 65536, most: int = 8, stuck: int = 16):
        if limit < 128:
            raise ValueError(f"limit must be at least 128 bytes, room for a note that a result was cut; got {limit}")
        self.tools = {tool.name: tool for tool in tools}
        if len(self.tools) < len(tools):
            raise ValueError(f"tool names must differ, got {[tool.name for tool in tools]}")
        for tool in tools:
            _check_schema(tool)
        self.limit, self.most, self.stuck = limit, most, stuck
        self.running: list[_Job] = []

    @property
    def schemas(self) -> list[dict[str, Any]]:
        """For ``encode_chat(…, tools=…)``."""
        return [tool.schema for tool in self.tools.values()]

    def run(self, calls: Sequence[ToolCall]) -> list[ToolResult]:
        """Run all calls at once; results in call order, after the longest of their deadlines at the latest."""
        return self.results(self.start(calls))

    def start(self, calls: Sequence[ToolCall], room: int = sys.maxsize) -> "list[_Job | ToolResult]":
        """Begin all calls and return at once; ``results`` takes what this gives. They share ``limit``, or a quarter of
        the ``room``, the ids that the model's context still holds (an id is a byte or more)."""
        limit = max(128, min(self.limit, room // 4) // max(1, min(len(calls), self.most)))
        return [self._start(call, i, limit) for i, call in enumerate(calls)]

    def slow(self, begun: "Sequence[_Job | ToolResult]", seconds: float) -> bool:
        """Whether a call that was begun still runs when this much more time has passed."""
        ends = time.monotonic() + seconds
        for job in begun:
            if isinstance(job, _Job):
                job.join(max(0.0, ends - time.monotonic()))
        return any(isinstance(job, _Job) and job.is_alive() for job in begun)

    def results(self, begun: "Sequence[_Job | ToolResult]") -> list[ToolResult]:
        """What came of calls that were begun, in their order; waits for each until its deadline."""
        results = [job if isinstance(job, ToolResult) else job.result() for job in begun]
        self.running = [job for job in self.running if job.is_alive()]
        return results

    def _start(self, call: ToolCall, place: int, limit: int) -> "_Job | ToolResult":
        tool, refusal = self.tools.get(call.name), None
        if tool is None:
            refusal = f"unknown tool {call.name!r}; available: {', '.join(self.tools) or 'none'}"
        elif place >= self.most:
            refusal = f"a turn may make {self.most} calls, this is number {place + 1}; call again in the next turn"
        elif sum(job.is_alive() for job in self.running) >= self.stuck:
            refusal = f"{self.stuck} earlier calls still run past their deadline; try again later"
        if tool is None or refusal:
            return ToolResult(call, failure(refusal, limit), False, 0.0)
        job = _Job(tool, call, limit)
        self.running.append(job)
        job.start()
        return job


BITS = 4096  # the longest integer the calculator handles, about 1,230 digits
OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow,
}  # fmt: skip
FUNCTIONS: dict[str, Callable[[list], Any]] = {"min": min, "max": max, "abs": lambda values: abs(*values)}


def calculate(expression: str) -> str:
    """The value of an arithmetic expression: numbers, + - * / // % **, brackets, min, max and abs; nothing is executed.

    Integers are exact up to ``BITS`` bits; other numbers are shown with 12 digits.

    Raises:
        ValueError: anything else, a division by zero, a result too large.
    """
    if len(expression) > 500:
        raise ValueError(f"an expression may have 500 characters, got {len(expression)}")
    source = expression.translate(str.maketrans("\u00d7\u00f7\u2212", "*/-")).strip()
    try:
        value = _value(ast.parse(source, mode="eval").body)
    except (SyntaxError, ArithmeticError, RecursionError, TypeError) as error:
        raise ValueError(f"cannot calculate {expression!r}: {getattr(error, 'msg', error)}") from error
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.12g}"
    return str(value)


def _value(node: ast.AST) -> int | float:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            pass
        case ast.BinOp(left, op, right) if type(op) in OPERATORS:
            a, b = _value(left), _value(right)
            if isinstance(op, ast.Pow) and isinstance(a, int) and abs(a) > 1 and a.bit_length() * b > BITS:
                raise ValueError("the result is too large")  # found out before the power is taken
            value = OPERATORS[type(op)](a, b)
        case ast.UnaryOp(ast.UAdd() | ast.USub() as op, operand):
            value = -_value(operand) if isinstance(op, ast.USub) else _value(operand)
        case ast.Call(ast.Name(name), [_, *_] as values, []) if name in FUNCTIONS:
            value = FUNCTIONS[name]([_value(argument) for argument in values])
        case _:
            allowed = "numbers, + - * / // % **, brackets, min, max, abs"
            raise ValueError(f"cannot calculate {ast.unparse(node)[:80]!r}; allowed: {allowed}")
    if isinstance(value, complex):
        raise ValueError("the result is not a real number")
    if value.bit_length() > BITS if isinstance(value, int) else not math.isfinite(value):
        raise ValueError("the result is too large")
    return value


def calculator() -> Tool:
    """``calculate`` as a tool."""
    expression = {"type": "string", "description": "for example (3 + 4) * 12, min(2, 7), 2 ** 10"}
    parameters = {"type": "object", "properties": {"expression": expression}, "required": ["expression"]}
    return Tool("calculator", "Work out an arithmetic expression.", parameters, calculate)


def local_now() -> datetime:
    """The clock of this machine, with its time zone."""
    return datetime.now().astimezone()


def date_and_time(clock: Callable[[], datetime] = local_now) -> Tool:
    """Date, time and weekday, in the clock's own zone or a named one. ``clock`` must know its zone."""

    def tell(timezone: str = "") -> str:
        now = clock()
        if timezone:
            now = now.astimezone(_zone(timezone))
        weekday = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")[now.weekday()]
        offset = now.strftime("%z")
        return f"{now:%Y-%m-%d %H:%M:%S}, {weekday}, {timezone or now.tzname()} (UTC{offset[:3]}:{offset[3:5]})"

    zone = {"type": "string", "description": "IANA name such as Asia/Shanghai; local time without it"}
    parameters = {"type": "object", "properties": {"timezone": zone}, "required": []}
    return Tool("date_and_time", "The current date, time and weekday.", parameters, tell)


def order_counter(menu: Mapping[str, Sequence[str]], number: Callable[[], int]) -> Tool:
    """Takes an order and gives its number.

    Args:
        menu: slot -> its values, any text if empty; the first slot is required.
        number: of the next order.
    """
    slots = {name: {"type": "string"} | ({"enum": list(values)} if values else {}) for name, values in menu.items()}
    parameters = {"type": "object", "properties": slots, "required": list(menu)[:1]}
    return Tool("order", "Take an order.", parameters, lambda **order: f"order number {number()}")


def _zone(name: str):
    import zoneinfo

    if name.upper() == "UTC":
        return UTC
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        known = zoneinfo.available_timezones()
        if not known:
            raise ValueError("no time zone data here (pip install tzdata); only UTC and local time") from error
        close = difflib.get_close_matches(name, known, 3) or ["Asia/Shanghai", "Europe/London"]
        raise ValueError(f"unknown time zone {name[:60]!r}; closest: {', '.join(close)}") from error
