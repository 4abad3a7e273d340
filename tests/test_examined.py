"""Conversations held with a model and scored: the whole way on random weights, and the scores by hand."""

import json
import random
from dataclasses import replace

import pytest
import torch
from speeches import codec as small_codec

from gamut.codecs.toolcall import ToolCall
from gamut.data.conversations import Conversations, vocabulary
from gamut.data.dialogues import Dialogue, Turn
from gamut.data.orders import Orders, menu
from gamut.data.scripts import SCRIPTS, World, choose_tool, mix
from gamut.data.sources import Clip
from gamut.data.spoken import RATE, Digits
from gamut.evals import conversations
from gamut.evals.conversations import Played, converse, dialogues, examine, library, ordered, scores, silenced, sounded
from gamut.evals.judges import trust_speakers, who
from gamut.generate.ar import generate
from gamut.generate.speaker import Speaker
from gamut.generate.voices import four_tools
from gamut.models.audio_encoder import AudioEncoderConfig
from gamut.models.judge import DigitJudge, DigitJudgeConfig
from gamut.models.lm import LMConfig
from gamut.models.omni import Omni, OmniConfig

pytest.importorskip("bm25s")
NAMES = ("theo", "lucas")


def clips() -> list[Clip]:
    time = torch.arange(RATE // 5) / RATE
    return [
        Clip((6.2832 * (200 + 50 * d) * height * time).sin(), RATE, str(d), speaker, labels={"digit": d})
        for d in range(10)
        for speaker, height in zip(NAMES, (2, 1), strict=True)
    ]


@pytest.fixture(scope="module")
def world() -> World:
    slots = [{"coffeeDrink": "latte"}, {"coffeeDrink": "mocha", "size": "small"}]
    order = [Clip(torch.randn(16000) * 0.1, 16000, "", labels={"slots": slots[i % 2]}) for i in range(6)]
    return World(Digits(clips()), NAMES, Orders(order), vary=False)


@pytest.fixture(scope="module")
def speaker(world) -> Speaker:
    torch.manual_seed(0)
    codec = small_codec()
    box = four_tools(library(world.digits, NAMES), menu(world.orders))
    words = vocabulary(9, box.schemas, world.orders)
    lm = LMConfig(words.vocab, 32, 2, 2, 1, 16, 48, max_positions=2048)
    audio = AudioEncoderConfig(width=16, layers=1, heads=2, ffn=32, positions=400)
    marks = {f"audio_{name}_id": words.id(f"<audio_{name}>") for name in ("start", "end", "patch")}
    return Speaker(Omni(OmniConfig(lm, audio, 24, **marks)).eval(), words, codec, box)


def test_every_kind_of_conversation_is_held_to_its_end(speaker, world):
    asked = dialogues(world, SCRIPTS, 2)
    played = converse(speaker, asked, library(world.digits, NAMES), menu(world.orders))
    assert [one.turn for one in played] == [turn for dialogue in asked for turn in dialogue.turns]
    judges = DigitJudge().eval(), DigitJudge(DigitJudgeConfig(classes=2, names=NAMES)).eval()
    sounded(speaker, played)
    found = scores(played, *judges)
    assert {"digits/wer", "who/text", "memory/text", "tools/choice", "calculator/exact", "voice/recognised",
            "order/drink", "order/slots", "sum/text", "memory/text/constant"} <= set(found)  # fmt: skip
    assert all(0 <= value <= 1 for name, value in found.items() if "wer" not in name)


def test_the_prompts_of_an_examination_are_the_rows_of_training(speaker, world, monkeypatch):
    """Twin: a model that answers right is asked exactly what the rows were made of, tools and found clips included."""
    box = four_tools(library(world.digits, NAMES), menu(world.orders))
    talks = Conversations(world, {name: Digits(clips(), (name,)) for name in NAMES}, speaker.codec, speaker.words,
                          box.schemas)  # fmt: skip
    for seed in range(6):
        dialogue = choose_tool(world, random.Random(seed))
        dialogue = replace(dialogue, turns=[replace(turn, aloud=False) for turn in dialogue.turns])
        (ids, learn), _, _ = talks.row(dialogue, random.Random(0))
        asked: list[list[int]] = []

        def oracle(model, prompts, sampling, ids=ids, learn=learn, asked=asked):
            """What the row says after as much of it as the prompt holds (found clips aside, which are drawn)."""
            out = []
            for prompt in prompts:
                asked.append(list(prompt.ids))
                place = len(asked) - 1
                own = "".join("x" if mine else " " for mine in learn).split(" ")
                answer = [run for run in own if run][place]
                start = _nth(learn, place)
                out.append(type("S", (), {"ids": ids[start : start + len(answer)]}))
            return out

        monkeypatch.setattr("gamut.evals.conversations.generate", oracle)
        played = converse(speaker, [dialogue], library(world.digits, NAMES), menu(world.orders))
        assert all(one.right for one in played) and all(one.made == one.wanted for one in played)
        for place, prompt in enumerate(asked):
            start, audio = _nth(learn, place), speaker.words.id("<audio_0>")
            assert [i for i in prompt if i < audio] == [i for i in ids[:start] if i < audio]
    assert generate is not oracle


def _nth(learn: list[bool], place: int) -> int:
    """Where the place-th run of learned ids begins."""
    starts = [i for i, mine in enumerate(learn) if mine and (i == 0 or not learn[i - 1])]
    return starts[place]


def played(turn: Turn, text: str = "", call: tuple[str, dict] | None = None, tools: bool = False) -> Played:
    calls = [ToolCall(call[0], json.dumps(call[1]), "c")] if call else []
    return Played(Dialogue(turn.kind, "", [turn], tools=tools), turn, calls, [], text)


def test_an_examination_names_noise_and_silence(speaker, world):
    judges = DigitJudge().eval(), DigitJudge(DigitJudgeConfig(classes=2, names=NAMES)).eval()
    voices, scripts = library(world.digits, NAMES), mix(who=1, calculator=1)
    found, first = examine(speaker, *judges, world, voices, {}, each=1, scripts=scripts)
    assert {"who/text", "who/text/10dB", "who/text/no_sound", "calculator/exact/10dB", "tools/choice"} <= set(found)
    assert "who/text/constant/10dB" not in found and len(first) == 2


def test_every_order_is_asked_once_under_every_condition(speaker, world, monkeypatch):
    """And what is heard without sound is judged as the rest is; one of so many voices is chance."""
    judges, counted = (DigitJudge().eval(), DigitJudge(DigitJudgeConfig(classes=2, names=NAMES)).eval()), []
    monkeypatch.setattr(conversations, "ordered", lambda some: counted.append(len(some)) or ordered(some))
    found, _ = examine(speaker, *judges, world, library(world.digits, NAMES), menu(world.orders), each=1,
                       scripts=mix(order=1, audio_search=1, sum=1))  # fmt: skip
    assert counted.count(len(world.orders)) == 4 and counted.count(1) == 3 and len(world.orders) > 1
    conditions = ("/10dB", "/no_sound", "/pauses")
    assert {f"order/{what}{how}" for what in ("drink", "slots") for how in ("", *conditions)} <= set(found)
    assert {f"{name}{how}" for name in ("sum/aloud", "voice/recognised") for how in conditions[:2]} <= set(found)
    assert found["voice/recognised/chance"] == 1 / len(NAMES) and "sum/aloud/pauses" not in found


def test_scores_by_hand():
    product = Turn("42", kind="calculator", calls=(("calculator", {"expression": "6*7"}),), results=("42",))
    plain = Turn("7", kind="none")
    some = [
        played(product, "42", ("calculator", {"expression": "6*7"}), True),
        played(product, "42", ("calculator", {"expression": "7*6"}), True),
        played(plain, "7", tools=True),
        played(plain, "7", ("order", {}), True),
        played(Turn("123", kind="transcribe"), "124"),
    ]
    found = scores(some, DigitJudge().eval())
    assert found["digits/wer"] == pytest.approx(1 / 3) and found["calculator/exact"] == 0.5
    assert found["tools/choice"] == 0.75 and found["tools/choice/constant"] == 0.5
    assert (found["calculator/text"], found["none/text/constant"]) == (1.0, 1.0)
    assert (found["calculator/exact/constant"], found["digits/wer/constant"]) == (1.0, 0.0)
    assert not [name for name in scores(some) if "aloud" in name]


def test_further_calls_and_other_tools_are_not_right(speaker):
    turn = Turn("7", kind="calculator", calls=(("calculator", {"expression": "3+4"}),), results=("7",))
    right = ToolCall("calculator", '{"expression": "3+4"}', "a")
    tried = {
        "right": ([right], (1, 1)), "another tool": ([replace(right, name="date")], (0, 0)),
        "one too many": ([right, ToolCall("order", "{}", "b")], (0, 0)), "none": ([], (0, 0)),
        "no JSON": ([replace(right, arguments="3+4")], (0, 1)),
    }  # fmt: skip
    for name, (calls, wanted) in tried.items():
        found = scores([Played(Dialogue("", "", [turn], tools=True), turn, calls, [], "7")], DigitJudge().eval())
        assert (found["calculator/exact"], found["tools/choice"]) == wanted, name
    with pytest.raises(ValueError, match="no conversation to hold"):
        converse(speaker, [], [], {})


def test_orders_are_scored_by_drink_and_by_all_slots():
    def order(slots: dict, given: dict | None) -> Played:
        return played(Turn("1", kind="order", calls=(("order", slots),)), call=("order", given) if given else None)

    latte, mocha = {"coffeeDrink": "latte", "size": "small"}, {"coffeeDrink": "mocha"}
    partly = {"coffeeDrink": "latte"}
    found = ordered([order(latte, latte), order(latte, partly), order(mocha, latte), order(mocha, None)])
    assert found == {"order/drink": 0.5, "order/drink/majority": 0.5, "order/slots": 0.25, "order/slots/majority": 0.5}


def test_silence_takes_the_sound_and_nothing_else(world):
    dialogue = choose_tool(world, random.Random(1))
    silent = silenced(dialogue)
    assert [turn.request for turn in silent.turns] == [turn.request for turn in dialogue.turns]
    assert all(turn.wav is None or not turn.wav.any() for turn in silent.turns)


def test_a_judge_of_speakers_names_somebody_it_knows_or_nobody():
    judge = DigitJudge(DigitJudgeConfig(width=4, dilations=(), classes=2, names=NAMES)).eval()
    assert who(judge, torch.zeros(8000))[0] in ("", *NAMES)
    found = trust_speakers(judge, Digits(clips()))
    assert set(found) == {"speakers/accuracy", "speakers/fooled", "speakers/sure"}
    assert all(0 <= value <= 1 for value in found.values())
