"""What a model makes of own conversations: its last answer beside the one that was written down."""

import json
import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from gamut.codecs.answer import parse_ta4
from gamut.codecs.chat import EOT, TTS_START, without_thinking
from gamut.codecs.mel import pad_mels
from gamut.codecs.text import Tokenizer
from gamut.codecs.token2wav import Token2Wav
from gamut.codecs.toolcall import parse_tool_calls
from gamut.codecs.weave import Marks
from gamut.data.own import Talked
from gamut.data.own_rows import Own
from gamut.evals.metrics import error_rate, words
from gamut.generate.ar import Prompt, generate
from gamut.generate.sampling import Sampling
from gamut.generate.speaker import LEVEL, SMALL, codec_of, tools_of, written
from gamut.io.folders import TAUGHT, WRITTEN, json_object
from gamut.io.report import Heading, Table
from gamut.models.omni import Omni

LONGEST = 1024  # tokens of an answer; ours
ROOM = 1 << 16  # positions answered side by side, all rows together: 3.8 GB of mini's keys and values. Ours


@dataclass(frozen=True)
class Pupil:
    """A model that is to learn: its weights, its words, the codec that encodes what it is to say (None: there is none
    beside the weights), and the level that it is asked at (0: as recorded). Its encoder hears every clip of a batch as
    `generate.speak` lets it hear one: alone."""

    model: Omni
    words: Tokenizer
    codec: Any
    level: float

    @classmethod
    def load(cls, path: Path, dtype: torch.dtype | None = torch.float32) -> "Pupil":
        """From a folder of ours or a released one. ``dtype``: of the weights; None: as they lie there (mapped)."""
        model, codec = Omni.from_pretrained(path, dtype), codec_of(path)
        heard = model.encoder.config
        model.encoder.config = heard if heard.edge == "closed" else replace(heard, edge="alone")  # config says the same
        encodes = codec is not None and not isinstance(codec, Token2Wav)
        small = sum(p.numel() for p in model.parameters()) < SMALL
        return cls(model, Tokenizer.from_pretrained(path), codec if encodes else None, LEVEL if small else 0.0)


def learned(talked: Sequence[Talked], init: Path) -> dict[str, str]:
    """Files to lie beside the weights: how a model begun as ``init`` is to be asked now. Of a small one, which knows
    requests, each with its ways (``Speaker.taught``); of a large one, those that it answers in writing."""
    if (init / TAUGHT).is_file():
        known = json_object(init / TAUGHT, "copy the model again")
        return {TAUGHT: json.dumps(known | taught(talked, init), ensure_ascii=False, indent=1)}
    spoken: dict[str, list[bool]] = {}
    for one in talked:
        spoken.setdefault(one.system or "", []).append(one.aloud)
    before = written(init) - spoken.keys()
    now = {system for system, ways in spoken.items() if 2 * sum(ways) < len(ways)}
    return {WRITTEN: json.dumps(sorted(before | now), ensure_ascii=False, indent=1)}


def taught(talked: Sequence[Talked], init: Path) -> dict[str, dict[str, bool]]:
    """Requests that a small model begun as ``init`` learns, each with how it is to be asked (``Speaker.taught``).

    Its folder comes with the tools of ``init``: where the data has others the model is asked without any, and a warning
    says so.
    """
    asked, others = {}, set()
    shown = json.dumps(tools_of(init).schemas) if any(one.tools for one in talked) else ""
    for one in talked:
        same = json.dumps(list(one.tools)) == shown
        if one.tools and not same:
            others |= {str(tool.get("function", tool).get("name")) for tool in one.tools}
        if one.system is not None:
            asked.setdefault(one.system, []).append((one.aloud, same))
    if others:
        warnings.warn(f"the data has tools that are not those of '{init}': {', '.join(sorted(others))}; the model "
                      f"learns to call them, but gamut chat shows it no tools where these were on offer", stacklevel=2)
    if mixed := sorted(system for system, ways in asked.items() if len(set(ways)) > 1):
        warnings.warn(f"under one request the data is answered aloud and in writing, or with tools and without: "
                      f"{mixed[0][:60]!r}; gamut chat will ask for what is more frequent", stacklevel=2)  # fmt: skip
    ways = {system: max(dict.fromkeys(some), key=some.count) for system, some in asked.items()}
    return {system: {"aloud": aloud, "tools": tools} for system, (aloud, tools) in ways.items()}


@dataclass(frozen=True)
class Answered:
    """A last answer, and the one wanted: words, written or said, and tool calls as (name, JSON)."""

    one: Talked
    wanted: str
    got: str
    wanted_calls: list[tuple[str, str]]
    calls: list[tuple[str, str]]

    @property
    def right(self) -> bool:
        return (symbols(self.got), self.calls) == (symbols(self.wanted), self.wanted_calls)


def symbols(text: str) -> list[str]:
    """Words, and single characters where words are not set apart: what an error rate counts.

    >>> symbols("Two words, 两个字")
    ['two', 'words', '两', '个', '字']
    """
    found = []
    for word in words(text):
        ideographs = any(unicodedata.name(c, "").startswith(("CJK", "HIRAGANA", "KATAKANA")) for c in word)
        found += list(word) if ideographs else [word]
    return found


def read_answer(ids: Sequence[int], tokenizer: Tokenizer, codes: int) -> tuple[str, list[tuple[str, str]]]:
    """Words and calls of an answer, its thought left out. ``ids`` may begin inside a thought or a spoken section."""
    ids = [i for i in ids if i != tokenizer.id(EOT)]
    start, first = tokenizer.id(TTS_START), tokenizer.id("<audio_0>")
    sound = next((i for i, one in enumerate(ids) if one == start or one >= first), len(ids))
    opened = sound < len(ids) and ids[sound] != start  # it was asked for: the section began before the answer
    head, tail = ([], ids) if opened else (ids[:sound], ids[sound + 1 :])
    woven = parse_ta4(tail, True, Marks.of(tokenizer, codes)) if sound < len(ids) else None
    written = tokenizer.decode([*head, *(woven.other_ids if woven else ())])
    found = parse_tool_calls(written)
    plain = (found.content or "").rpartition("</think>")[2]
    said = tokenizer.decode(woven.text_ids) if woven else ""
    return f"{without_thinking(plain)} {said}".strip(), [(call.name, _sorted(call.arguments)) for call in found.calls]


def _sorted(arguments: str) -> str:
    return json.dumps(json.loads(arguments), sort_keys=True, ensure_ascii=False)


def answered(model: Omni, own: Own, count: int = 64, longest: int = LONGEST) -> list[Answered]:
    """The first ``count`` conversations answered greedily."""
    some, prompts, wanted = own.talked[:count], [], []
    for one in some:
        row, answer = own.question(one)
        mels = pad_mels(row.mels) if row.mels else (None, None)
        mels = tuple(part if part is None else part.to(model.lm.norm.weight.device) for part in mels)
        prompts.append(Prompt(row.ids, model.prompt(row.ids, *mels)))
        wanted.append(answer)
    rows = max(1, min(32, ROOM // max((len(prompt.ids) + longest for prompt in prompts), default=1)))
    greedy = Sampling(temperature=0.0, stop=(own.words.id(EOT),), logprobs=False)
    room = [min(longest, 16 + 2 * len(answer)) for answer in wanted]  # twice what is wanted says enough
    samples = generate(model.lm, prompts, [replace(greedy, max_new=most) for most in room], rows=rows)
    out = []
    for one, answer, sample in zip(some, wanted, samples, strict=True):
        right, got = (read_answer(ids, own.words, own.codes) for ids in (answer, sample.ids))
        out.append(Answered(one, right[0], got[0], right[1], got[1]))
    return out


def scored(answers: Sequence[Answered]) -> dict[str, float]:
    """``wer``: errors per word (per character where words are not set apart) of the answers that have any;
    ``exact``: answers right as a whole; ``calls``: tool calls exactly right, of the answers that should make any.

    Raises:
        ValueError: there are no answers.
    """
    if not answers:
        raise ValueError("there are no answers to score; give at least one conversation")
    said = [a for a in answers if symbols(a.wanted)]
    calling = [a for a in answers if a.wanted_calls]
    found = {"exact": sum(a.right for a in answers) / len(answers)}
    if said:
        found["wer"] = error_rate([symbols(a.wanted) for a in said], [symbols(a.got) for a in said])
    if calling:
        found["calls"] = sum(a.calls == a.wanted_calls for a in calling) / len(calling)
    return found


def examined(model: Omni, own: Own, count: int) -> dict[str, float]:
    """``scored`` of the first ``count`` conversations."""
    return scored(answered(model, own, count))


def report(
    facts: Sequence[tuple[str, Any]], before: Sequence[Answered], after: Sequence[Answered], count: int = 20
) -> list[Any]:
    """Blocks of a report: what was learned from, scores before and after, answers beside those wanted."""
    old, new = scored(before), scored(after)
    rows = [(name, f"{old[name]:.3f}", f"{value:.3f}") for name, value in new.items()]
    shown = [(a.one.where.rpartition("/")[2].replace("'", ""), _told(a.wanted, a.wanted_calls), _told(b.got, b.calls),
              _told(a.got, a.calls)) for b, a in list(zip(before, after, strict=True))[:count]]  # fmt: skip
    return [
        Heading("What it learned from"),
        Table(("", "count"), facts),
        Heading("What was held out", f"{len(after)} conversations, answered greedily before and after."),
        Table(("score", "before", "after"), rows),
        Table(("conversation", "wanted", "before", "after"), shown),
    ]


def _told(text: str, calls: Sequence[tuple[str, str]]) -> str:
    return "; ".join([*([text] if text else []), *(f"{name} {arguments}" for name, arguments in calls)]) or "(nothing)"
