"""Messages -> the prompt of a Step model, as text or as ids; codecs/answer.py has the way back.

    <|BOT|>{role}\\n{content}<|EOT|>      nothing between messages

Roles: system, human (also called user), assistant, tool_json_schemas, input, function_output; others pass through.
Step-Audio and Step-Audio-AQAA use the same frame (arXiv 2502.11946 §3), Step-Audio 2 adds tools and woven speech
(arXiv 2507.16632; repo stepaudio2.py; vLLM branch step-audio2-mini).

A message is {"role", "content"}. Content is a string, a list of parts, or None (a header left open, to be continued).
Parts: {"type": "text", "text": str}, {"type": "audio", "patches": n or [n, …]} with one n per 25 s piece,
{"type": "token", "token": ids} for ids that were generated and must not be tokenised again.
Further keys: "eot": False leaves the message open; "tool_calls" as in the OpenAI API; "tts_content": {"tts_text",
"tts_audio"} is a spoken answer as the released server returns it.
A bare string or part stands for itself, without a role: so base models are prompted. Task prompts: codecs/prompts.py.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from gamut.codecs.weave import Marks, Padding, Vocabulary, build_ta4

BOT, EOT = "<|BOT|>", "<|EOT|>"
AUDIO_START, AUDIO_PATCH, AUDIO_END = "<audio_start>", "<audio_patch>", "<audio_end>"
TTS_START, TTS_END, TTS_PAD = "<tts_start>", "<tts_end>", "<tts_pad>"
TOOL_OPEN, TOOL_CLOSE = "<tool_call>", "</tool_call>"
CONTROL = re.compile(r"<(?=\|[^|<>\n]{1,40}\|>|/?tool_call>|tts_(?:start|end|pad)>|audio_(?:\d+|start|end|patch)>)")
ROLES = {"user": "human", "function_output": "input"}

# What follows the assistant's header, by the kind of answer wanted. Source: repo examples.py, examples-think.py.
ANSWER_TEXT = ""
ANSWER_SPEECH = TTS_START
ANSWER_THINKING = "\n<think>\n"  # generate up to </think>, then continue with AFTER_THINKING
AFTER_THINKING = "\n\n<tts_start>"

_THINKING = re.compile(r"^\s*<think>.*?(?:</think>\s*|\Z)", re.DOTALL)


@dataclass(frozen=True)
class _Speech:
    """A spoken answer given as two strings; only a tokenizer can weave them."""

    text: str
    audio: str


@dataclass(frozen=True)
class _Piece:
    value: str | tuple[int, ...] | _Speech
    learn: bool = False  # written by the assistant: what training scores


def audio_marks(patches: int | Sequence[int]) -> str:
    """The text of an audio part: a block per 25 s piece, with a position for each of its feature vectors."""
    counts = [patches] if isinstance(patches, int) else list(patches)
    if not counts or min(counts) < 1:
        raise ValueError(f"an audio part needs one or more patches per piece, got {patches}; is the clip empty?")
    return "".join(f"{AUDIO_START}{AUDIO_PATCH * count}{AUDIO_END}" for count in counts)


def without_thinking(text: str) -> str:
    """``text`` without the reasoning it begins with, also when that was cut off before ``</think>``."""
    return _THINKING.sub("", text)


def _part(part: Any, where: str) -> str | tuple[int, ...]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    key = {"text": "text", "audio": "patches", "token": "token"}.get(str(kind))
    if key is None or key not in part:
        allowed = '{"type": "text", "text"}, {"type": "audio", "patches"} or {"type": "token", "token"}'
        raise ValueError(f"{where} must be {allowed}; got {str(part)[:60]!r}")
    if kind == "audio":
        return audio_marks(part["patches"])
    return part["text"] if kind == "text" else tuple(part["token"])


def _content(message: Mapping[str, Any], where: str, past: bool) -> list[str | tuple[int, ...]]:
    content = message["content"]
    parts: list[str | tuple[int, ...]] = []
    if isinstance(content, str):
        parts.append(content)
    elif isinstance(content, Sequence):
        parts = [_part(part, f"{where}.content[{i}]") for i, part in enumerate(content)]
    elif content is not None:
        raise ValueError(f"{where}.content must be text, a list of parts or None, got {type(content).__name__}")
    if past and message["role"] == "assistant" and parts and isinstance(parts[0], str):
        parts[0] = without_thinking(parts[0])
    return parts


def write_tool_call(name: str, arguments: Mapping[str, Any] | str) -> str:
    """The text of one call. Control strings inside the arguments are escaped as JSON allows, so they cannot end it.

    Raises:
        ValueError: a name with a line break or a control string, which could not be read back.
    """
    if "\n" in name or CONTROL.search(name) or not name:
        raise ValueError(f"a tool name is one line of plain text, got {name!r}; allowed: letters, digits, _ and -")
    text = arguments if isinstance(arguments, str) else json.dumps(dict(arguments), ensure_ascii=False)
    escaped = CONTROL.sub(r"\\u003c", text)
    return f"{TOOL_OPEN}function\n{name}\n{escaped}{TOOL_CLOSE}"


def _calls(message: Mapping[str, Any]) -> str:
    functions = [call.get("function", call) for call in message.get("tool_calls") or ()]
    return "".join(write_tool_call(function["name"], function["arguments"]) for function in functions)


def _speech(message: Mapping[str, Any], where: str) -> list[_Speech]:
    speech = message.get("tts_content")
    if not speech:
        return []
    if missing := {"tts_text", "tts_audio"} - set(speech):
        raise ValueError(f"{where}.tts_content lacks {sorted(missing)}; it holds tts_text and tts_audio, both strings")
    return [_Speech(speech["tts_text"], speech["tts_audio"])]


def _message(message: Any, where: str, names: Mapping[str, str], *, last_open: bool) -> Iterator[_Piece]:
    if isinstance(message, str):
        yield _Piece(message)
        return
    if isinstance(message, Mapping) and "role" not in message and "type" in message:
        yield _Piece(_part(message, where))
        return
    if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
        raise ValueError(f'{where} must be {{"role": …, "content": …}}, a string or a part; got {str(message)[:60]!r}')
    role = message["role"]
    spoken, calls = _speech(message, where), _calls(message)
    bare = message["content"] is None and not spoken and not calls
    is_open = last_open or bare or not message.get("eot", True)
    if role == "tool":
        name = names.get(message.get("tool_call_id", ""), message.get("name", "tool"))
        yield _Piece(f"{BOT}function_output\n{name}\n")
    else:
        yield _Piece(f"{BOT}{ROLES.get(role, role)}\n")
    learn = role == "assistant"
    for value in [*spoken, *_content(message, where, past=not is_open), calls]:
        if value:
            yield _Piece(value, learn)
    if not is_open:
        yield _Piece(EOT, learn)


def _pieces(
    messages: Sequence[Any], tools: Sequence[Mapping] | None, header: bool, continued: bool, prefill: str
) -> Iterator[_Piece]:
    """The prompt in order. With tools but no system message an empty system header stands open before the schemas: so
    does the template of the released model, and a prompt it was not trained on would be worse."""
    if continued and not messages:
        raise ValueError("continue_final_message needs a message to continue, got none")
    names = {
        call["id"]: call["function"]["name"]
        for message in messages
        if isinstance(message, Mapping) and message.get("role") == "assistant"
        for call in message.get("tool_calls") or ()
        if "id" in call and "function" in call
    }
    system = bool(messages) and isinstance(messages[0], Mapping) and messages[0].get("role") == "system"
    parts = [
        _message(message, f"messages[{i}]", names, last_open=continued and i == len(messages) - 1)
        for i, message in enumerate(messages)
    ]
    if tools:
        schemas = f"{BOT}tool_json_schemas\n{json.dumps(list(tools), ensure_ascii=False)}{EOT}"
        parts.insert(int(system), iter([_Piece(schemas if system else f"{BOT}system\n{schemas}")]))
    yield from chain.from_iterable(parts)
    if header and not continued:
        yield _Piece(f"{BOT}assistant\n{prefill}")


def render(
    messages: Sequence[Any], tools: Sequence[Mapping] | None = None, add_generation_prompt: bool = True, *,
    continue_final_message: bool = False, prefill: str = ANSWER_TEXT,
) -> str:
    """The prompt as text.

    Args:
        tools: schemas, {"type": "function", "function": {"name", "description", "parameters"}}.
        add_generation_prompt: end with the assistant's header and ``prefill`` (one of the ANSWER constants).
        continue_final_message: leave the last message open instead; no header is added then.
    Raises:
        ValueError: a message that is none, or one that holds ids or woven speech, which only ``encode_chat`` can write.
    """
    pieces = list(_pieces(messages, tools, add_generation_prompt, continue_final_message, prefill))
    if not all(isinstance(piece.value, str) for piece in pieces):
        raise ValueError("the messages hold token ids or speech, which have no text form; use encode_chat(…) instead")
    return "".join(str(piece.value) for piece in pieces)


def _encode(pieces: Sequence[_Piece], tokenizer: Vocabulary, padding: Padding, codes: int) -> list[int]:
    """Neighbouring strings are tokenised as one, so that where a message was cut cannot change its ids."""
    ids, text = [], ""
    for piece in pieces:
        if isinstance(piece.value, str):
            text += piece.value
            continue
        ids += tokenizer.encode(text) if text else []
        text = ""
        if isinstance(piece.value, _Speech):
            spoken, audio = (tokenizer.encode(side) for side in (piece.value.text, piece.value.audio))
            ids += build_ta4(spoken, audio, Marks.of(tokenizer, codes), padding=padding)
        else:
            ids += piece.value
    return ids + (tokenizer.encode(text) if text else [])


def encode_chat(
    messages: Sequence[Any], tokenizer: Vocabulary, tools: Sequence[Mapping] | None = None,
    add_generation_prompt: bool = True, *, continue_final_message: bool = False, prefill: str = ANSWER_TEXT,
    padding: Padding = "full", codes: int = 6561,
) -> list[int]:
    """The prompt as ids; arguments as in ``render``.

    ``padding`` (of ``build_ta4``) and ``codes`` (of ``Marks.of``) serve messages with ``tts_content``.
    """
    pieces = list(_pieces(messages, tools, add_generation_prompt, continue_final_message, prefill))
    return _encode(pieces, tokenizer, padding, codes)


def encode_turns(
    messages: Sequence[Any], tokenizer: Vocabulary, tools: Sequence[Mapping] | None = None, *,
    padding: Padding = "full", codes: int = 6561,
) -> tuple[list[int], list[bool]]:
    """A whole conversation for training: its ids, and whether the assistant wrote each (its ``<|EOT|>`` included).

    The assistant's header is tokenised apart from what follows, as it is when an answer is generated.
    """
    ids, mask, run = [], [], []
    for piece in [*_pieces(messages, tools, False, False, ""), None]:
        if run and (piece is None or piece.learn != run[-1].learn):
            part = _encode(run, tokenizer, padding, codes)
            ids, mask, run = ids + part, mask + [run[-1].learn] * len(part), []
        run.append(piece)
    return ids, mask
