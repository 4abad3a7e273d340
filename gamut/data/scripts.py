"""What the conversations of a small world are about: spoken numbers, who says them, voices to answer in, four tools,
coffee, and what was said before. The counterpart of the paper's mixes and tool scripts (arXiv 2507.16632 §4), ours.
"""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import Any

from torch import Tensor

from gamut.codecs.prompts import READ_ALOUD, TRANSCRIBE
from gamut.data.dialogues import Dialogue, Turn
from gamut.data.orders import Orders
from gamut.data.room import CLOSE, NONE, Rest, Span, microphone, rested, silences
from gamut.data.spoken import RATE, Digits, noisy
from gamut.data.talks import TASKS, Task

ASSIST, ASSIST_ALOUD = "Use a tool where it takes one.", "Speak. Use a tool where it takes one."
CONVERSE, CONVERSE_ALOUD = "Answer in writing.", "Answer aloud."
WHO = "Say who is speaking."
VOICES = {  # the set's own metadata name accents; height and pace by the median pitch and mean length of 12 takes each
    "george": ("a man with a Greek accent", "someone bright and clear"),
    "jackson": ("a deep American man", "someone deep and calm"),
    "lucas": ("a very low man", "the lowest and slowest one"),
    "nicolas": ("a man with a French accent", "someone soft and quick"),
    "theo": ("a high American voice", "the highest one"),
    "yweweler": ("a man with a German accent", "the briskest one"),
}
REPEAT = "Repeat these numbers."
PLAIN = {  # what is asked of two numbers, without a tool
    REPEAT: lambda d: "".join(map(str, d)),
    "Add these numbers.": lambda d: str(sum(d)),
    "Which number is larger?": lambda d: str(max(d)),
}
TIMES = ("Multiply these numbers.", "What is the product?")
DAY, CLOCK, DATE = "What day is it?", "What time is it?", "Say the day of the month."
FIRST, BEFORE, AGAIN = "What did I say first?", "What did I say before this?", "Say your last answer again."
IN_VOICE, READ_IN_VOICE = "Repeat these numbers in the voice of {}.", "Read {} in the voice of {}."
COUNT_ON = "Count on: {}"
TWICE = 0.25  # of the digits to learn from are the one before. Ours
ONE_TO_FOUR = (1, 2, 3, 4)  # digits that are read aloud
SPOKEN = (1, 2, 3, 4, 4, 5, 5, 6, 6, 7, 8)  # digits to learn to say, where one to four are asked. Ours
ZONES = (("UTC", 0), ("GMT", 0), ("CET", 60), ("CEST", 120), ("BST", 60), ("MSK", 180), ("+04", 240), ("IST", 330),
         ("CST", 480), ("JST", 540), ("AEST", 600), ("NZDT", 780), ("-03", -180), ("EDT", -240), ("EST", -300),
         ("PDT", -420), ("PST", -480))  # names of clocks, minutes from UTC
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
WORDS = (ASSIST, ASSIST_ALOUD, CONVERSE, CONVERSE_ALOUD, WHO, *PLAIN, *TIMES, DAY, CLOCK, DATE, FIRST, BEFORE, AGAIN,
         IN_VOICE, READ_IN_VOICE, COUNT_ON, *WEEKDAYS)  # fmt: skip


@dataclass(frozen=True)
class World:
    """Who and what there is to talk about.

    ``digits`` are asked with; ``voices`` can be answered in (names), the first is the usual one; ``noise`` and ``vary``
    are how what is heard differs from the recording; ``gap`` and ``rest`` are the silence between digits (seconds, from
    and to) and around what is said (before and behind), where nothing varies.
    """

    digits: Digits
    voices: Sequence[str]
    orders: Orders | None = None
    noise: Callable[[Tensor, random.Random], Tensor] = lambda wav, rng: noisy(wav, rng, -4.5, -1.6)
    vary: bool = True
    gap: Span = CLOSE
    rest: Rest = NONE

    def count(self, asked: Sequence[int], learn: Sequence[int], rng: random.Random) -> int:
        """How many digits: as many as are ``asked`` for, or, to learn from, as ``learn`` has (``asked`` if empty)."""
        return rng.choice(learn if learn and self.vary else asked)

    def drawn(self, count: int, rng: random.Random) -> list[int]:
        """So many digits. To learn from, one in four is the same as the one before it: what is hardest to count."""
        digits: list[int] = []
        for _ in range(count):
            again = digits and self.vary and rng.random() < TWICE
            digits.append(digits[-1] if again else rng.randrange(10))
        return digits

    def heard(self, count: int, rng: random.Random, speaker: str = "") -> tuple[tuple[int, ...], dict[str, Any]]:
        """So many digits, and the fields of a turn in which they are heard."""
        digits = self.drawn(count, rng)
        gap, rest = silences(rng) if self.vary else (self.gap, self.rest)
        said = self.digits.say(digits, rng, vary=self.vary, gap=gap, rest=rest, speaker=speaker)
        return said.digits, self._recorded(said.wav, RATE, rng)

    def order(self, which: int, rng: random.Random) -> dict[str, Any]:
        """The fields of a turn in which one of the orders is heard."""
        assert self.orders is not None
        wav = self.orders.say(which, rng if self.vary else None)
        rest = silences(rng)[1] if self.vary else self.rest
        return self._recorded(rested(wav, self.orders.rate, rest), self.orders.rate, rng)

    def _recorded(self, wav: Tensor, rate: int, rng: random.Random) -> dict[str, Any]:
        wav, rate = microphone(wav, rate, rng) if self.vary else (wav, rate)
        return {"wav": self.noise(wav, rng), "rate": rate}


Make = Callable[[World, random.Random], Dialogue]


@dataclass(frozen=True)
class Script:
    """A kind of conversation; ``weight`` is its share before a mix is normalised."""

    name: str
    weight: float
    make: Make


def describe(name: str) -> tuple[str, ...]:
    """Words for a voice."""
    return VOICES.get(name, (f"the speaker {name}",))


def _arithmetic(task: Task, aloud: float = 0.5, think: float = 0.15) -> Make:
    """One of the tasks on spoken numbers; ``aloud`` and ``think`` are shares. What is thought over is said aloud:
    behind a thought nothing else tells the model which of the two is wanted."""

    def make(world: World, rng: random.Random) -> Dialogue:
        digits, sound = world.heard(world.count(task.counts, task.learn, rng), rng)
        thought = " and ".join(map(str, digits)) if rng.random() < think else ""
        spoken = rng.random() < aloud or bool(thought)
        turn = Turn(task.answer(digits), aloud=spoken, thought=thought, kind=task.name, **sound)
        return Dialogue(task.name, task.prompt, [turn])

    return make


def dictation(world: World, rng: random.Random) -> Dialogue:
    """What somebody orders, word by word, of the orders whose words are known; digits where none are."""
    known = world.orders.written if world.orders else ()
    if not known:
        return _arithmetic(TASKS[0], 0.0, 0.0)(world, rng)
    assert world.orders is not None
    which = rng.choice(known)
    turn = Turn(world.orders.clips[which].text, kind="dictation", **world.order(which, rng))
    return Dialogue("dictation", TRANSCRIBE, [turn])


def written(world: World, rng: random.Random) -> Dialogue:
    """The same arithmetic with nothing to hear: text to text, or to speech."""
    task = rng.choice(TASKS[1:])
    digits = world.drawn(world.count(task.counts, task.learn, rng), rng)
    turn = Turn(task.answer(digits), request=" ".join(map(str, digits)), aloud=rng.random() < 0.3, kind="written")
    return Dialogue("written", task.prompt, [turn])


def read_aloud(world: World, rng: random.Random) -> Dialogue:
    """Text to speech, as the released model is asked for it."""
    answer = "".join(map(str, world.drawn(world.count(ONE_TO_FOUR, SPOKEN, rng), rng)))
    return Dialogue("read", READ_ALOUD, [Turn(answer, request=answer, aloud=True, kind="read")])


def count_on(world: World, rng: random.Random) -> Dialogue:
    """Text that goes on in speech: the interleaved continuation of the paper's second and third stage."""
    first, step = rng.randrange(10), rng.choice((1, 2, 9))
    row = [(first + i * step) % 10 for i in range(6)]
    answer = "".join(map(str, row[3:]))
    request = COUNT_ON.format(" ".join(map(str, row[:3])))
    return Dialogue("count on", CONVERSE_ALOUD, [Turn(answer, request=request, aloud=True, kind="count on")])


def who_speaks(world: World, rng: random.Random) -> Dialogue:
    speaker = rng.choice(world.digits.names)
    _, sound = world.heard(rng.choice((1, 2, 3)), rng, speaker)
    return Dialogue("who", WHO, [Turn(speaker, kind="who", **sound)])


def calculator_turn(world: World, rng: random.Random, aloud: bool) -> Turn:
    digits, sound = world.heard(2, rng)
    answer = str(digits[0] * digits[1])
    call = ("calculator", {"expression": "*".join(map(str, digits))})
    return Turn(answer, rng.choice(TIMES), aloud=aloud, calls=(call,), results=(answer,), kind="calculator", **sound)


def plain_turn(world: World, rng: random.Random, aloud: bool) -> Turn:
    request = rng.choice(list(PLAIN))
    digits, sound = world.heard(2, rng)
    return Turn(PLAIN[request](digits), request, aloud=aloud, kind="none", **sound)


def date_turn(when: datetime, rng: random.Random, aloud: bool) -> Turn:
    """The day of the month can be said; names of days and the time are written."""
    request = DATE if aloud else rng.choice((DAY, CLOCK, DATE))
    answer = {DAY: WEEKDAYS[when.weekday()], CLOCK: f"{when:%H:%M}", DATE: str(when.day)}[request]
    offset = f"{when:%z}"
    told = f"{when:%Y-%m-%d %H:%M:%S}, {WEEKDAYS[when.weekday()]}, {when.tzname()} (UTC{offset[:3]}:{offset[3:]})"
    return Turn(answer, request, aloud=aloud, calls=(("date_and_time", {}),), results=(told,), kind="date")


def voice_turn(world: World, rng: random.Random) -> Turn:
    """An answer in a voice that must be looked for: what is heard, or what is written, said by somebody else."""
    voice = rng.choice(list(world.voices))
    wanted = rng.choice(describe(voice))
    found = json.dumps({"voice": "; ".join(describe(voice))}, ensure_ascii=False)
    search = {"calls": (("audio_search", {"query": wanted}),), "results": (found,), "found": voice}
    if rng.random() < 0.5:
        digits, sound = world.heard(rng.choice((1, 2, 3)), rng)
        answer, request = "".join(map(str, digits)), IN_VOICE.format(wanted)
    else:
        answer = "".join(map(str, world.drawn(world.count(ONE_TO_FOUR, SPOKEN, rng), rng)))
        request, sound = READ_IN_VOICE.format(answer, wanted), {}
    return Turn(answer, request, aloud=True, voice=voice, kind="audio search", **search, **sound)


def order_turn(world: World, rng: random.Random, number: int, aloud: bool, which: int | None = None) -> Turn:
    """A spoken order: its slots to the tool, the number the counter gives to the guest."""
    assert world.orders is not None
    which = rng.randrange(len(world.orders)) if which is None else which
    call = ("order", world.orders.slots[which])
    return Turn(str(number), aloud=aloud, calls=(call,), results=(f"order number {number}",), kind="order",
                **world.order(which, rng))  # fmt: skip


def _assist(world: World, rng: random.Random, kinds: Sequence[str], name: str) -> Dialogue:
    """One turn of each kind in order, every tool on offer."""
    aloud, when = rng.random() < 0.5 or "audio search" in kinds, _moment(rng)
    number = rng.randint(10, 99)
    make = {
        "calculator": lambda: calculator_turn(world, rng, aloud), "none": lambda: plain_turn(world, rng, aloud),
        "date": lambda: date_turn(when, rng, aloud), "audio search": lambda: voice_turn(world, rng),
        "order": lambda: order_turn(world, rng, number, aloud),
    }  # fmt: skip
    turns = [make[kind]() for kind in kinds]
    return Dialogue(name, ASSIST_ALOUD if aloud else ASSIST, turns, tools=True, when=when, number=number)


def _moment(rng: random.Random) -> datetime:
    """Some time of four years, in some zone: a clock tells its own, and what it tells of the zone is to be left out."""
    seconds = rng.randrange(4 * 365 * 86400)
    name, minutes = ZONES[seconds % len(ZONES)]
    return datetime(2024, 1, 1, tzinfo=timezone(timedelta(minutes=minutes), name)) + timedelta(seconds=seconds)


def only(kind: str) -> Make:
    """A single turn of one kind, every tool on offer; orders give way to the calculator in a world without any."""

    def make(world: World, rng: random.Random) -> Dialogue:
        return _assist(world, rng, [kind if kind != "order" or world.orders else "calculator"], kind)

    return make


def choose_tool(world: World, rng: random.Random) -> Dialogue:
    """One to three turns, each with another tool or with none."""
    kinds = ["calculator", "date", "audio search", "none", *(["order"] if world.orders else [])]
    return _assist(world, rng, rng.sample(kinds, rng.choice((1, 1, 2, 3))), "choice")


def memory(world: World, rng: random.Random) -> Dialogue:
    """Two turns about numbers, then what was said before: first, before this, or by the assistant itself."""
    aloud = rng.random() < 0.6
    past, turns = [], []
    for _ in range(2):
        digits, sound = world.heard(rng.choice((1, 2)), rng)
        request = rng.choice([r for r in PLAIN if len(digits) > 1 or r == REPEAT])
        past.append("".join(map(str, digits)))
        turns.append(Turn(PLAIN[request](digits), request, aloud=aloud, kind="plain", **sound))
    asked = rng.choice((FIRST, BEFORE, AGAIN))
    sound = world.heard(1, rng)[1] if asked == BEFORE else {}
    answer = {FIRST: past[0], BEFORE: past[-1], AGAIN: turns[-1].answer}[asked]
    last = Turn(answer, asked, aloud=aloud, kind="memory", **sound)
    return Dialogue("memory", CONVERSE_ALOUD if aloud else CONVERSE, [*turns, last])


SCRIPTS = (
    *(Script(task.name, task.weight, _arithmetic(task, 0.0 if task == TASKS[0] else 0.5, 0.15 * (task != TASKS[0])))
      for task in TASKS),
    Script("read", 0.2, read_aloud), Script("written", 0.16, written), Script("count on", 0.08, count_on),
    Script("who", 0.15, who_speaks), Script("calculator", 0.08, only("calculator")), Script("date", 0.07, only("date")),
    Script("audio search", 0.25, only("audio search")), Script("order", 0.4, only("order")),
    Script("choice", 0.3, choose_tool), Script("memory", 0.2, memory),
)  # fmt: skip

LEARNED = (*SCRIPTS, Script("dictation", 0.15, dictation))  # the last is never asked in an examination


def mix(**weights: float) -> tuple[Script, ...]:
    """Some of the scripts with these weights; words joined by _ for names of two.

    Raises:
        ValueError: a name that is none of the scripts.
    """
    by_name = {script.name.replace(" ", "_"): script for script in LEARNED}
    if unknown := sorted(set(weights) - set(by_name)):
        raise ValueError(f"no script is called {unknown[0]!r}; there are {', '.join(by_name)}")
    return tuple(replace(by_name[name], weight=weight) for name, weight in weights.items())
