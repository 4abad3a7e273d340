"""Your own conversations to fine-tune on: a JSONL file of messages with sound, or a folder of clips with transcripts.

    {"messages": [{"role": "system", "content": "Be brief."},
                  {"role": "user", "content": [{"type": "text", "text": "Well?"}, {"type": "audio", "file": "q.wav"}]},
                  {"role": "assistant", "content": [{"type": "audio", "file": "a.wav", "text": "Yes."}]}],
     "tools": [...]}

a line, files relative to the JSONL. The parts of a message are learned in the order they stand in; `gamut chat` puts
what is written (--text) before what is heard. Sound of the user is heard; sound of the assistant, with its ``text``,
is what it learns to say. That needs a codec that encodes, or the tokens themselves: {"tts_content": {"tts_text",
"tts_audio"}} as the released server writes it. ``tool_calls`` and ``tool`` messages are as codecs/chat.py has them; an
answer may begin with <think>…</think>.
"""

import contextlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gamut.codecs.chat import without_thinking
from gamut.codecs.prompts import TRANSCRIBE
from gamut.io.listing import is_file, listed, read_lines, refuse

ROLES = ("system", "user", "human", "assistant", "tool", "input", "function_output")
KEYS = ("role", "content", "name", "tool_calls", "tool_call_id", "tts_content")  # of a message
BESIDE = ("audio", "audios", "image", "images", "video", "videos")  # of an entry: what other trainers put there
CONVERSATIONS = "conversations.jsonl"


@dataclass(frozen=True)
class Talked:
    """A conversation as it was written down; it ends with an answer.

    ``where`` names its line for messages; what stands before message number ``first`` is given, not learned.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]]
    folder: Path
    where: str
    first: int = 0

    @property
    def system(self) -> str | None:
        """What the model is told to do: "" if nothing is said, None if it is not said in words alone."""
        if self.messages[0]["role"] != "system":
            return ""
        said = parts(self.messages[0])
        return "".join(part["text"] for part in said) or None if all(p["type"] == "text" for p in said) else None

    @property
    def told(self) -> list[Any]:
        """All that is written in it; of sound the names and sizes of the files."""
        said = [{**message, "content": [self._told(part) for part in parts(message)]} for message in self.messages]
        return [self.first, list(self.tools), said]

    def _told(self, part: Mapping[str, Any]) -> list[Any]:
        if part["type"] != "audio":
            return [part]
        file = self.folder / sound_file(part)
        return [part.get("text"), file.name, file.stat().st_size]

    @property
    def aloud(self) -> bool:
        """Whether the last answer is spoken."""
        return is_spoken(self.messages[-1])


def is_spoken(message: Mapping[str, Any]) -> bool:
    return bool(message.get("tts_content")) or any(part["type"] in ("audio", "token") for part in parts(message))


def parts(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What a message holds, text too as a part."""
    content = message.get("content")
    return list(content) if isinstance(content, list) else [{"type": "text", "text": content}] if content else []


def thinks(message: Mapping[str, Any]) -> bool:
    """Whether an answer begins with a thought."""
    said = parts(message)
    text = said[0].get("text", "") if said and said[0]["type"] == "text" else ""
    return message["role"] == "assistant" and text != without_thinking(text)


def sound_file(part: Mapping[str, Any]) -> str:
    """The file of a part of sound, under either name that is in use."""
    return str(part.get("file") or part.get("audio"))


def read_conversations(path: str | Path, prompt: str = TRANSCRIBE) -> list[Talked]:
    """Conversations of a .jsonl file, of the conversations.jsonl in a folder, or (``prompt`` asking) of a folder with
    transcripts.

    Raises:
        ValueError: nothing of the kind, not UTF-8; lines that are no conversation, name a missing file, or in which the
            assistant says nothing: all of them, the first few by name, before any sound is read.
    """
    path = Path(path)
    file = path / CONVERSATIONS if path.is_dir() else path
    if path.is_dir() and not file.exists():
        try:
            clips = listed(path)
        except ValueError as error:
            error.add_note(f"Conversations are read from {CONVERSATIONS} in the folder, or a .jsonl file given itself.")
            raise
        return [
            Talked([{"role": "system", "content": prompt},
                    {"role": "user", "content": [{"type": "audio", "file": str(clip)}]},
                    {"role": "assistant", "content": text}], (), Path(), f"'{clip}'")
            for clip, text, _ in clips
        ]  # fmt: skip
    if not file.exists():
        raise ValueError(f"'{path}' does not exist; give a folder of recordings, or a .jsonl file of conversations")
    if not file.is_file() or file.suffix != ".jsonl":
        raise ValueError(f"'{path}' is neither a .jsonl file of conversations nor a folder; see gamut.data.own")
    talked, wrong = [], []
    for number, line in enumerate(read_lines(file), 1):
        try:
            talked += [_line(file, f"'{file}' line {number}", line)] if line.strip() else []
        except ValueError as error:
            wrong.append(str(error))
    refuse(wrong)
    if not talked:
        raise ValueError(f"'{file}' holds no conversations; write one JSON object a line")
    return talked


def _line(file: Path, where: str, line: str) -> Talked:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON ({error}); one object a line") from error
    except RecursionError as error:
        raise ValueError(f"{where} is nested too deeply to be read, it begins {line[:40]!r}; one conversation a line, "
                         f'{{"messages": […]}}') from error
    messages = entry.get("messages") if isinstance(entry, dict) else None
    if not isinstance(messages, list) or not all(isinstance(m, dict) and {"role"} < set(m) for m in messages):
        raise ValueError(f'{where} needs {{"messages": [{{"role": …, "content": …}}, …]}}; got {line[:80]}')
    if beside := [name for name in BESIDE if entry.get(name)]:
        raise ValueError(f"{where} has {beside[0]} beside its messages; write each sound in the message that holds it, "
                         f'"content": [{{"type": "audio", "file": …}}]')
    for message in messages:
        _check(message, file.parent, where)
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        raise ValueError(f"{where} has no assistant message: nothing could be learned from it")
    tools = entry.get("tools") or ()
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError(f'{where}: tools is a list of schemas, {{"type": "function", "function": …}}; got {tools!r}')
    return Talked(list(_named(messages[: answers[-1] + 1])), tools, file.parent, where)


def _check(message: Mapping[str, Any], folder: Path, where: str) -> None:
    role, content = message["role"], message.get("content")
    if role not in ROLES:
        raise ValueError(f"{where} has the role {role!r}; allowed: {', '.join(ROLES)}")
    if unknown := [str(name) for name in message if name not in KEYS]:
        raise ValueError(f"{where} has the key {unknown[0]!r} in a message; allowed: {', '.join(KEYS)}")
    empty = not (content.strip() if isinstance(content, str) else content)
    if role == "assistant" and empty and not (message.get("tool_calls") or message.get("tts_content")):
        raise ValueError(f"{where} has an assistant message without content, tool_calls or tts_content")
    if role in ("system", "user", "human") and empty:
        raise ValueError(f"{where} has a {role} message without content")
    if content is not None and not isinstance(content, str | list):
        raise ValueError(f"{where}: content is text or a list of parts, got {content!r}")
    for part in content if isinstance(content, list) else ():
        if not _is_part(part):
            allowed = '{"type": "text", "text": …}, {"type": "audio", "file": …} or {"type": "token", "token": [ids]}'
            raise ValueError(f"{where} has the part {str(part)[:60]}; allowed: {allowed}")
        if part["type"] == "audio" and not is_file(folder / sound_file(part)):
            raise ValueError(f"{where} names the sound {sound_file(part)[:80]!r}, which is not in '{folder}'; "
                             f'write {{"type": "audio", "file": …}} relative to it')
    calls, speech = message.get("tool_calls") or [], message.get("tts_content") or {"tts_text": "", "tts_audio": ""}
    if not isinstance(calls, list) or not all(map(_is_call, calls)):
        raise ValueError(f"{where}: tool_calls is a list of calls, each with a name and arguments, "
                         f'{{"id", "function": {{"name": "…", "arguments": {{…}}}}}}; got {str(calls)[:80]}')
    if not isinstance(speech, dict) or not all(isinstance(speech.get(k), str) for k in ("tts_text", "tts_audio")):
        raise ValueError(f"{where}: tts_content holds tts_text and tts_audio, both strings; got {str(speech)[:80]}")
    if not isinstance(message.get("tool_call_id"), str | int | None):
        raise ValueError(f"{where}: tool_call_id is the id of a call, got {message['tool_call_id']!r}")


def _is_part(part: Any) -> bool:
    if not isinstance(part, dict):
        return False
    if part.get("type") == "token":
        ids = part.get("token")
        return isinstance(ids, list) and all(isinstance(i, int) for i in ids)
    if part.get("type") == "audio":
        return isinstance(part.get("file") or part.get("audio"), str) and isinstance(part.get("text", ""), str)
    return part.get("type") == "text" and isinstance(part.get("text"), str)


def _is_call(call: Any) -> bool:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not (isinstance(function, dict) and isinstance(function.get("name"), str)):
        return False
    arguments = function.get("arguments")
    with contextlib.suppress(ValueError, RecursionError):  # what is no JSON stays a string
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    return isinstance(arguments, dict) and isinstance(call.get("id"), str | int | None)


def _named(messages: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Each result with the name of the tool that was called: messages are written one by one."""
    names: dict[str, str] = {}
    for message in messages:
        for call in message.get("tool_calls") or ():
            names[call.get("id", "")] = call.get("function", call)["name"]
        named = message["role"] == "tool" and message.get("tool_call_id") in names
        yield {"content": None} | dict(message) | ({"name": names[message["tool_call_id"]]} if named else {})


def split(talked: Sequence[Talked], share: float, seed: int = 0) -> tuple[list[Talked], list[Talked]]:
    """(to train on, held out): ``share`` of them, at least one where there are two; drawn by ``seed``. What is there
    more than once (the same words, files of the same size) stays together.

    Raises:
        ValueError: a share outside [0, 1).
    """
    if not 0 <= share < 1:
        raise ValueError(f"the share held out must be at least 0 and below 1, got {share}")
    alike: dict[str, list[int]] = {}
    for i, one in enumerate(talked):
        alike.setdefault(json.dumps(one.told), []).append(i)
    order = random.Random(f"split {seed}").sample(list(alike.values()), len(alike))
    count = max(1, round(share * len(order))) if share and len(order) > 1 else 0
    train, test = (sorted(i for places in some for i in places) for some in (order[count:], order[:count]))
    return [talked[i] for i in train], [talked[i] for i in test]


def unfolded(one: Talked) -> list[Talked]:
    """A conversation as often as it thinks: the past holds no thoughts, so each is learned where a row ends."""
    out, first = [], one.first
    for i, message in enumerate(one.messages[:-1]):
        if thinks(message):
            out.append(replace(one, messages=one.messages[: i + 1], first=first))
            first = i + 1
    return [*out, replace(one, first=first)]
