"""Conversations of the small world held with a model, turn by turn, with its own answers as their past, and scored:
words, calls, and the sound as judges hear it. Beside them chance, the commonest answer, and the same without sound."""

import json
import random
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gamut.codecs.answer import WeaveParser, remember
from gamut.codecs.chat import EOT, TTS_START, encode_chat, without_thinking
from gamut.codecs.mel import hear, pad_mels
from gamut.codecs.prompts import READ_ALOUD
from gamut.codecs.toolcall import ToolCall, parse_tool_calls
from gamut.codecs.weave import Marks
from gamut.data.dialogues import Dialogue, Turn, human, prefill
from gamut.data.scripts import (
    ASSIST,
    ASSIST_ALOUD,
    CONVERSE,
    CONVERSE_ALOUD,
    SCRIPTS,
    WHO,
    Script,
    World,
    describe,
    order_turn,
)
from gamut.data.spoken import RATE, Digits, white
from gamut.data.talks import TASKS
from gamut.evals.judges import Sphinx, who
from gamut.evals.judges import hear as judged
from gamut.evals.metrics import error_rate
from gamut.generate.ar import Prompt, generate
from gamut.generate.sampling import Sampling
from gamut.generate.speak import heard, with_sound
from gamut.generate.speaker import Speaker
from gamut.generate.tools import Toolbox
from gamut.generate.voice import SpeechCodec
from gamut.generate.voices import Voice, four_tools
from gamut.io.media import resample
from gamut.io.progress import counting
from gamut.models.judge import DigitJudge

LONGEST = 160  # tokens of an answer: about five seconds of speech
GREEDY = Sampling(temperature=0.0)
ARITHMETIC = [task.name for task in TASKS[1:]]


@dataclass
class Played:
    """One turn as it went. ``text`` is what was written, or said beside the sound."""

    dialogue: Dialogue
    turn: Turn
    calls: list[ToolCall] = field(default_factory=list)
    results: list[str] = field(default_factory=list)
    text: str = ""
    codes: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)  # all that the last answer is made of
    voice: Any = None  # what the codec takes on; None: its usual one
    wav: Tensor = field(default_factory=lambda: torch.zeros(0))  # 8 kHz

    @property
    def right(self) -> bool:
        return self.text == self.turn.answer

    @property
    def made(self) -> list[tuple[str, Any]]:
        """Name and arguments of every call, in order; arguments that are no JSON are None."""
        return [(call.name, _plain(call.arguments)) for call in self.calls]

    @property
    def wanted(self) -> list[tuple[str, Any]]:
        """The calls that are right."""
        return [(name, dict(arguments)) for name, arguments in self.turn.calls]

    @property
    def tools(self) -> tuple[str, ...]:
        """The tools that were called, in order; none is ()."""
        return tuple(name for name, _ in self.made)

    @property
    def wanted_tools(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.wanted)

    @property
    def arguments(self) -> Any:
        """Of the first call."""
        return self.made[0][1] if self.calls else None


def _plain(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return None


@dataclass
class _Held:
    """A conversation so far."""

    dialogue: Dialogue
    tools: Toolbox
    messages: list[dict[str, Any]]
    mels: list[Tensor] = field(default_factory=list)
    played: list[Played] = field(default_factory=list)


def taught() -> dict[str, dict[str, bool]]:
    """Every request of `data.scripts`, and how it is answered."""
    tasks = {task.prompt: task != TASKS[0] for task in TASKS}
    plain = tasks | {CONVERSE_ALOUD: True, CONVERSE: False, READ_ALOUD: True, WHO: False}
    with_tools = {ASSIST_ALOUD: True, ASSIST: False}
    return {name: {"aloud": aloud, "tools": name in with_tools} for name, aloud in (plain | with_tools).items()}


def library(digits: Digits, names: Sequence[str], seed: int = 0) -> list[Voice]:
    """A clip of each of these people, four digits long, described as in `data.scripts`."""
    def clip(name: str) -> tuple[Tensor, int]:
        rng = random.Random(f"library {seed} {name}")
        return digits.say([rng.randrange(10) for _ in range(4)], rng, vary=False, speaker=name).wav, RATE

    return [Voice(name, "; ".join(describe(name)), "", partial(clip, name)) for name in names]


def converse(
    speaker: Speaker, dialogues: Sequence[Dialogue], voices: Sequence[Voice], menu: Mapping[str, Sequence[str]],
    sampling: Sampling = GREEDY,
) -> list[Played]:
    """Hold all of them, many at once, turn by turn. The tools run; their clock and counter are the dialogue's.

    Raises:
        ValueError: there are none.
    """
    if not dialogues:
        raise ValueError("there is no conversation to hold; give at least one")
    held = []
    for dialogue in dialogues:
        box = four_tools(voices, menu, clock=lambda when=dialogue.when: when, number=lambda n=dialogue.number: n)
        held.append(_Held(dialogue, box, [{"role": "system", "content": dialogue.system}]))
    for place in range(max(len(dialogue.turns) for dialogue in dialogues)):
        active = [one for one in held if place < len(one.dialogue.turns)]
        for one in active:
            turn = one.dialogue.turns[place]
            mel = None if turn.wav is None else hear(turn.wav, turn.rate)
            one.mels += [] if mel is None else [mel]
            one.messages.append(human(turn, 0 if mel is None else mel.shape[-1]))
            one.played.append(Played(one.dialogue, turn))
        _reply(speaker, active, sampling, told=False)
        _reply(speaker, [one for one in active if one.played[-1].calls], sampling, told=True)
    return [played for one in held for played in one.played]


def _reply(speaker: Speaker, held: Sequence[_Held], sampling: Sampling, *, told: bool) -> None:
    """One answer of the model in each conversation; after a call, its results are added."""
    words, codec, prompts = speaker.words, speaker.codec, []
    marks, stop = Marks.of(words, codec.vocab), words.id(EOT)
    prefixes = [prefill(one.played[-1].turn, one.dialogue.tools, told) for one in held]
    for one, prefix in zip(held, prefixes, strict=True):
        schemas = one.tools.schemas if one.dialogue.tools else None
        ids = encode_chat(one.messages, words, schemas, prefill=prefix, codes=codec.vocab)
        mels = pad_mels(one.mels) if one.mels else (None, None)
        prompts.append(Prompt(ids, speaker.model.prompt(ids, *mels)))
    sampling = replace(sampling, max_new=LONGEST, stop=(stop,), logprobs=False)
    samples = generate(speaker.model.lm, prompts, sampling) if prompts else []
    for one, prefix, sample in zip(held, prefixes, samples, strict=True):
        ids, played = [i for i in sample.ids if i != stop], one.played[-1]
        woven = WeaveParser(marks, prefix.endswith(TTS_START), reopen=True).push(ids)
        written = words.decode([i for i in woven.other_ids if i < marks.audio])
        one.messages.append(remember(ids, words, prefix))
        played.ids = ids
        played.codes, played.text = marks.audio_codes(woven.audio_ids), words.decode(woven.text_ids)
        if not played.text:
            played.text = without_thinking(prefix + written).strip()
        if not told and one.dialogue.tools:
            played.calls = parse_tool_calls(written).calls
            _told(speaker, one, played, marks)


def _told(speaker: Speaker, one: _Held, played: Played, marks: Marks) -> None:
    for result in one.tools.run(played.calls):
        played.results.append(result.content)
        message = result.message
        if result.sound:
            codes, played.voice = heard(speaker.codec, result.sound)
            message = with_sound(message, marks.audio_ids(codes))
        one.messages.append(message)


def sounded(speaker: Speaker, played: Sequence[Played]) -> None:
    """Give every answer its sound, in the voice that was found for it, at the judges' rate."""
    said = [one for one in played if one.codes]
    with counting("answers to say", len(said)) as seen:
        for one in said:
            one.wav = resample(speaker.codec.decode(torch.tensor([one.codes]), one.voice)[0], speaker.codec.rate, RATE)
            seen.step()


def dialogues(world: World, scripts: Sequence[Script], each: int, seed: int = 0) -> list[Dialogue]:
    """``each`` conversations of every script."""
    return [script.make(world, random.Random(f"exam {seed} {script.name} {i}"))
            for script in scripts for i in range(each)]  # fmt: skip


def at_ratio(wav: Tensor, decibel: float, rng: random.Random) -> Tensor:
    """White noise added, so many dB below the RMS of what is said: silence that was put around it (zeros) is not
    counted. Seeded by ``rng``."""
    level = wav.square().sum().div((wav != 0).sum().clamp(min=1)).sqrt()
    return wav + white(len(wav), rng) * level * 10 ** (-decibel / 20)


def at_level(world: World, level: float) -> World:
    """The world as it is examined: recordings as they are, so many dB over white noise."""
    return replace(world, vary=False, noise=lambda wav, rng: at_ratio(wav, level, rng))


def every_order(world: World, seed: int = 0) -> list[Dialogue]:
    """All orders of a world, one conversation each, answered in writing."""
    out = []
    for which in range(len(world.orders or ())):
        rng = random.Random(f"order {seed} {which}")
        number = rng.randint(10, 99)
        turn = order_turn(world, rng, number, False, which)
        out.append(Dialogue("order", ASSIST, [turn], tools=True, number=number))
    return out


def silenced(dialogue: Dialogue) -> Dialogue:
    """The same with nothing to hear."""
    turns = [turn if turn.wav is None else replace(turn, wav=torch.zeros_like(turn.wav)) for turn in dialogue.turns]
    return replace(dialogue, turns=turns)


def scores(
    played: Sequence[Played], judge: DigitJudge | None = None, people: DigitJudge | None = None
) -> dict[str, float]:
    """Shares in [0, 1] (wer: errors per digit); what was not asked is not there, nor what is aloud without a judge.

    ``KIND/text`` is the words, ``KIND/aloud`` the sound as the judge hears it; ``tools/choice`` the tools that were
    called, or none, and no other, where all were on offer; ``calculator/exact`` all calls, with their arguments;
    ``voice/recognised`` the voice that was asked for, as the judge of speakers hears it; ``order/drink`` and
    ``order/slots`` what was ordered. ``/constant``: the commonest right answer of the kind, always.
    """
    out: dict[str, float] = {}
    by_kind: dict[str, list[Played]] = {}
    for one in played:
        by_kind.setdefault(one.turn.kind.replace(" ", "_"), []).append(one)
    for kind, some in by_kind.items():
        wanted = [one.turn.answer for one in some]
        if kind == "transcribe":
            out["digits/wer"] = error_rate(wanted, [one.text for one in some])
            out["digits/wer/constant"] = error_rate(wanted, [Counter(wanted).most_common(1)[0][0]] * len(some))
            continue
        out[f"{kind}/text"] = _share(one.right for one in some)
        out[f"{kind}/text/constant"] = _commonest(wanted)
        if judge is not None and (aloud := [one for one in some if one.turn.aloud]):
            out[f"{kind}/aloud"] = _share(_said(judge, one) for one in aloud)
            out[f"{kind}/aloud/constant"] = _commonest([one.turn.answer for one in aloud])
    sums = [one for kind in ARITHMETIC for one in by_kind.get(kind, ())]
    for way, some in (("text", sums), ("aloud", [one for one in sums if one.turn.aloud])):
        for name in (way, f"{way}/constant") if some and (judge is not None or way == "text") else ():
            out[f"arithmetic/{name}"] = sum(out[f"{one.turn.kind}/{name}"] for one in some) / len(some)
    if offered := [one for one in played if one.dialogue.tools]:
        out["tools/choice"] = _share(one.tools == one.wanted_tools for one in offered)
        out["tools/choice/constant"] = _commonest([one.wanted_tools for one in offered])
    if some := by_kind.get("calculator"):
        out["calculator/exact"] = _share(one.made == one.wanted for one in some)
        out["calculator/exact/constant"] = _commonest([str(one.wanted) for one in some])
    if (some := by_kind.get("audio_search")) and people is not None:
        out["voice/recognised"] = _share(len(one.wav) > 0 and who(people, one.wav)[0] == one.turn.voice for one in some)
        out["voice/found"] = _share(one.results == list(one.turn.results) for one in some)
    return out | ordered(by_kind.get("order", []))


def examine(
    speaker: Speaker, judge: DigitJudge, people: DigitJudge | None, world: World, voices: Sequence[Voice],
    menu: Mapping[str, Sequence[str]], *, each: int = 20, seed: int = 0, levels: Sequence[float] = (20.0, 10.0),
    scripts: Sequence[Script] = SCRIPTS,
) -> tuple[dict[str, float], list[Played]]:
    """`scores` at several noise levels, and what was played at the first.

    Where orders are asked for, ``order/drink`` and ``order/slots`` are of all of them, each once, under every condition
    below. ``levels``: dB of the questions over white noise. Scores of the first carry their names alone, those of the
    others end in ``/10dB`` and the like, those of the first questions without their sound in ``/no_sound``, those of
    questions as they are recorded at home, 0.3 to 1 s between digits and 1 s around, in ``/pauses`` (words alone, of
    numbers and orders).
    """
    ask = partial(converse, speaker, voices=voices, menu=menu)
    asks_orders = world.orders and any(script.name == "order" for script in scripts)

    def orders(world: World, change: Callable[[Dialogue], Dialogue] = lambda dialogue: dialogue) -> dict[str, float]:
        return ordered(ask([change(one) for one in every_order(world, seed)])) if asks_orders else {}

    first = at_level(world, levels[0])
    asked = dialogues(first, scripts, each, seed)
    played = ask(asked)
    sounded(speaker, played)
    out = scores(played, judge, people) | orders(first)
    for level in levels[1:]:
        noisy = at_level(world, level)
        again = ask(dialogues(noisy, scripts, each, seed))
        sounded(speaker, again)
        out |= _under(f"{level:g}dB", scores(again, judge, people) | orders(noisy))
    silent = ask([silenced(dialogue) for dialogue in asked])
    sounded(speaker, silent)
    out |= _under("no_sound", scores(silent, judge, people) | orders(first, silenced))
    slow = replace(first, gap=(0.3, 1.0), rest=(1.0, 1.0))
    numbers = [script for script in scripts if script.name in {task.name for task in TASKS}]
    out |= _under("pauses", scores(ask(dialogues(slow, numbers, each, seed)) if numbers else []) | orders(slow))
    if "voice/recognised" in out:
        out["voice/recognised/chance"] = 1 / len(voices)
    return out | reference(speaker.codec, judge, world, played, seed), played


def _under(condition: str, found: Mapping[str, float]) -> dict[str, float]:
    """Scores under a condition, without what they are compared with."""
    return {f"{name}/{condition}": value for name, value in found.items() if name.count("/") == 1}


def reference(
    codec: SpeechCodec, judge: DigitJudge, world: World, played: Sequence[Played], seed: int = 0
) -> dict[str, float]:
    """What answers aloud can be held against: the right digits said by held-out recordings of the usual voice
    (``aloud/recorded``), and these through the codec (``aloud/resynthesised``); ``sphinx/``: as pocketsphinx hears
    either, and the answers themselves (``sphinx/aloud``), where it is installed. The answers are learned from
    recordings that the judge learned from, too; these are not.
    """
    some = [one for one in played if one.turn.kind in ARITHMETIC and one.turn.aloud]
    if not some or world.voices[0] not in world.digits.names:
        return {}
    rng = random.Random(f"reference {seed}")
    wanted = [[int(c) for c in one.turn.answer] for one in some]
    real = [world.digits.say(d, rng, vary=False, gap=(0.04, 0.12), speaker=world.voices[0]).wav for d in wanted]
    coded = [resample(codec.decode(codec.encode(resample(wav, RATE, codec.hears)[None]))[0], codec.rate, RATE)
             for wav in real]  # fmt: skip
    sounds = {"aloud/recorded": real, "aloud/resynthesised": coded}
    out = {name: _share(judged(judge, wav)[0] == d for wav, d in zip(wavs, wanted, strict=True))
           for name, wavs in sounds.items()}  # fmt: skip
    try:
        sphinx = Sphinx()
    except ImportError:
        return out
    for name, wavs in (sounds | {"aloud": [one.wav for one in some]}).items():
        hits = [len(wav) > 0 and sphinx.hear(wav, len(d)) == d for wav, d in zip(wavs, wanted, strict=True)]
        out["sphinx/" + name] = _share(hits)
    return out


def ordered(some: Sequence[Played]) -> dict[str, float]:
    """Of coffee orders: the drink, and all slots, in the call. ``/majority``: the commonest drink, always."""
    if not some:
        return {}
    wanted = [dict(one.turn.calls[0][1]) for one in some]
    given = [one.arguments if isinstance(one.arguments, dict) else {} for one in some]
    drink = [slots.get("coffeeDrink") for slots in wanted]
    return {
        "order/drink": _share(slots.get("coffeeDrink") == name for slots, name in zip(given, drink, strict=True)),
        "order/drink/majority": _commonest(drink),
        "order/slots": _share(a == b for a, b in zip(given, wanted, strict=True)),
        "order/slots/majority": _commonest([json.dumps(slots) for slots in wanted]),
    }


def _said(judge: DigitJudge, one: Played) -> bool:
    return len(one.wav) > 0 and "".join(map(str, judged(judge, one.wav)[0])) == one.turn.answer


def _commonest(wanted: Sequence[Hashable]) -> float:
    return Counter(wanted).most_common(1)[0][1] / len(wanted)


def _share(hits) -> float:
    hits = list(hits)
    return sum(hits) / max(1, len(hits))
