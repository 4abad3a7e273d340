"""The small world's conversations: right answers by hand, rows as the model will meet them, held-out splits apart."""

import json
import random
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from speeches import codec as small_codec

from gamut.codecs.chat import EOT, TTS_START
from gamut.codecs.prompts import TRANSCRIBE
from gamut.codecs.toolcall import parse_tool_calls
from gamut.data.conversations import Conversations, vocabulary
from gamut.data.dialogues import prefill
from gamut.data.orders import Orders, menu
from gamut.data.scripts import (
    AGAIN,
    BEFORE,
    FIRST,
    LEARNED,
    SCRIPTS,
    VOICES,
    World,
    choose_tool,
    date_turn,
    dictation,
    memory,
    mix,
    only,
    who_speaks,
)
from gamut.data.sources import Clip
from gamut.data.spoken import RATE, Digits
from gamut.evals.conversations import at_ratio
from gamut.generate.tools import calculator, date_and_time

SLOTS = [{"coffeeDrink": "latte", "milkAmount": " soy milk"}, {"size": "small", "coffeeDrink": "mocha"}]


def clips() -> list[Clip]:
    """A tone per digit, 0.2 s, in two voices an octave apart."""
    time = torch.arange(RATE // 5) / RATE
    return [
        Clip((6.2832 * (200 + 50 * d) * height * time).sin(), RATE, str(d), speaker, labels={"digit": d})
        for d in range(10)
        for speaker, height in (("theo", 2), ("lucas", 1))
    ]


def coffee(count: int = 10) -> Orders:
    torch.manual_seed(0)
    return Orders([Clip(torch.randn(16000) * 0.1, 16000, "", labels={"slots": SLOTS[i % 2]}) for i in range(count)])


@pytest.fixture(scope="module")
def talks() -> Conversations:
    torch.manual_seed(0)
    codec = small_codec()
    tools, orders = [calculator().schema, date_and_time().schema], coffee()
    world = World(Digits(clips()), ("lucas", "theo"), orders)
    voices = {name: Digits(clips(), (name,)) for name in world.voices}
    return Conversations(world, voices, codec, vocabulary(9, tools, orders), tools)


def test_every_script_makes_rows_whose_own_part_holds_the_answer(talks):
    for script in LEARNED:
        for seed in range(5):
            rng = random.Random(seed)
            dialogue = script.make(talks.world, rng)
            (ids, learn), mels, seconds = talks.row(dialogue, rng)
            assert len(ids) == len(learn) and (seconds > 0) == bool(mels)
            own = [i for i, mine in zip(ids, learn, strict=True) if mine]
            text = talks.words.decode([i for i in own if i < talks.marks.audio])
            for turn in dialogue.turns:
                spoken = talks.words.encode(turn.answer)
                assert turn.answer in text or all(i in own for i in spoken), (script.name, text)
            assert own.count(talks.words.id(EOT)) == sum(1 + bool(turn.calls) for turn in dialogue.turns)


@pytest.mark.parametrize(("name", "learned", "asked"), [("transcribe", 8, 6), ("reverse", 6, 4), ("read", 8, 4)])
def test_numbers_to_learn_from_are_longer_and_say_digits_twice(talks, name, learned, asked):
    """What is asked in an examination is drawn evenly; what is learned from, where counting is hard."""
    def answers(world: World) -> list[str]:
        return [mix(**{name: 1})[0].make(world, random.Random(seed)).turns[0].answer for seed in range(400)]

    for world, longest, twice in ((talks.world, learned, 0.325), (replace(talks.world, vary=False), asked, 0.1)):
        some = answers(world)
        pairs = [a == b for answer in some for a, b in pairwise(answer)]
        assert max(map(len, some)) == longest
        assert sum(pairs) / len(pairs) == pytest.approx(twice, abs=0.035)  # 0.25 + 0.75 / 10, and 1 / 10


def test_dictation_is_of_orders_whose_words_are_known(talks):
    turn = dictation(talks.world, random.Random(0)).turns[0]
    assert turn.kind == "transcribe" and turn.answer.isdigit()  # nobody wrote these orders down
    some = coffee(4)
    written = Orders([*some.clips, replace(some.clips[0], text="a latte with soy milk")])
    world = replace(talks.world, orders=written)
    dialogue = dictation(world, random.Random(0))
    assert [turn.answer for turn in dialogue.turns] == ["a latte with soy milk"] and dialogue.system == TRANSCRIBE
    assert [script.name for script in LEARNED if script not in SCRIPTS] == ["dictation"]
    words = vocabulary(9, [], written)
    assert len(words.encode("a latte with soy milk")) == 5


def test_who_speaks_is_one_person(talks):
    for seed in range(10):
        [turn] = who_speaks(talks.world, random.Random(seed)).turns
        peak = float(torch.fft.rfft(turn.wav).abs().argmax()) * RATE / len(turn.wav)
        assert turn.answer in ("theo", "lucas")
        assert peak < 800 if turn.answer == "lucas" else peak > 320


def test_memory_by_hand(talks):
    asked = set()
    for seed in range(40):
        dialogue = memory(talks.world, random.Random(seed))
        *past, last = dialogue.turns
        assert len(past) == 2 and (last.wav is not None) == (last.request == BEFORE)
        if last.request == AGAIN:
            assert last.answer == past[-1].answer
        asked.add(last.request)
    assert asked == {FIRST, BEFORE, AGAIN}


def test_what_was_said_is_remembered_as_digits_not_as_answers(talks):
    """Two numbers were added before: "what did I say" wants the numbers, "your last answer" the sum."""
    for seed in range(200):
        dialogue = memory(talks.world, random.Random(seed))
        before, last = dialogue.turns[1], dialogue.turns[2]
        if before.request == "Add these numbers." and last.request == BEFORE:
            assert len(last.answer) == 2 and int(before.answer) == sum(map(int, last.answer))
            return
    raise AssertionError("never asked")


def test_the_tools_themselves_say_what_the_scripts_say_they_do(talks):
    """Twin: the results in the rows are those of the real tools."""
    from gamut.codecs.toolcall import ToolCall
    from gamut.generate.tools import Toolbox

    checked = set()
    for seed in range(60):
        dialogue = choose_tool(talks.world, random.Random(seed))
        box = Toolbox([calculator(), date_and_time(lambda when=dialogue.when: when)])
        for turn in dialogue.turns:
            for (name, arguments), result in zip(turn.calls, turn.results, strict=True):
                if name in box.tools:
                    checked.add(name)
                    assert box.run([ToolCall(name, json.dumps(arguments), "c")])[0].content == result
    assert checked == {"calculator", "date_and_time"}


def test_a_date_answered_by_hand():
    from datetime import UTC, datetime

    when = datetime(2026, 2, 3, 14, 5, tzinfo=UTC)
    answers = {date_turn(when, random.Random(seed), False).request: date_turn(when, random.Random(seed), False).answer
               for seed in range(20)}  # fmt: skip
    assert answers == {"What day is it?": "Tuesday", "What time is it?": "14:05", "Say the day of the month.": "3"}


def test_a_voice_is_searched_for_found_and_spoken_in(talks):
    dialogue = only("audio search")(talks.world, random.Random(3))
    [turn] = dialogue.turns
    assert turn.calls[0][1]["query"] in VOICES[turn.voice] and turn.calls[0][1]["query"] in turn.request
    (ids, learn), _, _ = talks.row(dialogue, random.Random(3))
    text = talks.words.decode(ids)
    [call] = parse_tool_calls(text.partition("assistant\n")[2]).calls
    assert json.loads(call.arguments) == turn.calls[0][1]
    end = len(ids) - 1
    start = max(i for i, one in enumerate(ids) if one == talks.words.id(TTS_START))
    said = talks.marks.audio_codes(ids[start:end])
    takes = [talks.voices[turn.voice].by_digit[int(c)][0] for c in turn.answer]
    digits = [code for take in takes for code in talks.codes[turn.voice][take]]
    assert said == digits  # one take per digit and voice here
    given = talks.marks.audio_codes([i for i, own in zip(ids, learn, strict=True) if not own])
    assert len(given) == 25  # a second of the clip that was found


def test_speech_is_learned_only_where_the_model_chooses_it(talks):
    start = talks.words.id(TTS_START)
    for seed in range(60):
        rng = random.Random(seed)
        dialogue = only("none")(talks.world, rng) if seed % 2 else SCRIPTS[1].make(talks.world, rng)
        [turn] = dialogue.turns
        if turn.aloud:
            (ids, learn), _, _ = talks.row(dialogue, rng)
            assert learn[ids.index(start)] == bool(dialogue.tools or turn.thought)


def test_whether_to_speak_can_be_told_from_what_was_said(talks):
    """Where no prefill asks for it, one system message and a thought or none always mean the same: a model cannot guess
    a coin, and half of its thought answers would be written in vain."""
    wanted: dict[tuple, set[bool]] = {}
    for script in LEARNED:
        for seed in range(60):
            dialogue = script.make(talks.world, random.Random(seed))
            for turn in dialogue.turns:
                before = prefill(turn, dialogue.tools, told=False)
                if not before.endswith(TTS_START) and not turn.calls and (dialogue.tools or turn.thought):
                    wanted.setdefault((dialogue.system, dialogue.tools, before), set()).add(turn.aloud)
    assert len(wanted) == 6 and all(len(choices) == 1 for choices in wanted.values())


def test_batches_keep_what_rows_have_to_learn(talks):
    """The start of speech too, where tools are on offer and the model itself chooses to speak."""
    start, chosen = talks.words.id(TTS_START), 0
    for index in range(4):
        batch = talks.batch(index, 4, mix(choice=1))
        chosen += int(batch.learn_BT[batch.ids_BT == start].sum())
    assert chosen > 0


def test_thoughts_are_learned_in_the_last_turn_and_never_kept(talks):
    from dataclasses import replace

    dialogue = memory(talks.world, random.Random(0))
    thinking = replace(dialogue, turns=[replace(turn, thought="hm") for turn in dialogue.turns])
    (ids, learn), _, _ = talks.row(thinking, random.Random(0))
    text = talks.words.decode(ids)
    assert text.count("<think>\nhm\n</think>") == 1 and text.rindex("<|BOT|>assistant") < text.index("<think>")
    own = talks.words.decode([i for i, mine in zip(ids, learn, strict=True) if mine])
    assert "hm\n</think>" in own and "<think>" not in own


def test_folds_cover_every_order_once_and_do_not_mix():
    orders = coffee(53)
    seen = []
    for number in range(5):
        train, test = orders.fold(number)
        names = [id(clip) for clip in test.clips]
        assert len(train) + len(test) == 53 and not set(names) & {id(clip) for clip in train.clips}
        seen += names
    assert sorted(seen) == sorted(id(clip) for clip in orders.clips)
    assert [id(c) for c in orders.fold(2)[1].clips] == [id(c) for c in coffee_again(orders).fold(2)[1].clips]
    with pytest.raises(ValueError, match="fold must be 0 to 4, got 5"):
        orders.fold(5)
    with pytest.raises(ValueError, match="no orders; give recordings"):
        Orders([])


def coffee_again(orders: Orders) -> Orders:
    return Orders(orders.clips)


def test_slots_are_cleaned_and_counted():
    orders = coffee(4)
    assert orders.slots[0] == {"coffeeDrink": "latte", "milkAmount": "soy milk"}
    assert list(orders.slots[1]) == ["coffeeDrink", "size"]  # one order of slots, whatever the file's
    assert menu(orders) == {"coffeeDrink": ["latte", "mocha"], "size": ["small"], "milkAmount": ["soy milk"]}
    assert menu(orders, most=1)["coffeeDrink"] == []


def test_noise_at_a_ratio():
    wav = torch.sin(torch.arange(8000.0))
    for decibel in (20.0, 5.0):
        noise = at_ratio(wav, decibel, random.Random(0)) - wav
        ratio = 20 * torch.log10(wav.square().mean().sqrt() / noise.square().mean().sqrt())
        assert abs(float(ratio) - decibel) < 0.2
    rested = torch.cat([torch.zeros(8000), wav, torch.zeros(24000)])  # silence around what is said makes no difference
    noise = at_ratio(rested, 20.0, random.Random(0)) - rested
    assert float(noise.square().mean().sqrt() / wav.square().mean().sqrt()) == pytest.approx(0.1, rel=0.03)
    assert not at_ratio(torch.zeros(9), 20.0, random.Random(0)).any()


def test_batches_are_a_function_of_their_number_and_little_is_padded(talks):
    a, b = talks.batch(5, 4), talks.batch(5, 4)
    other = Conversations(talks.world, talks.voices, talks.codec, talks.words, talks.tools).batch(5, 4)
    assert torch.equal(a.ids_BT, b.ids_BT) and torch.equal(a.ids_BT, other.ids_BT)
    lengths = [[int((row != talks.words.id(EOT)).nonzero()[-1]) for row in talks.batch(i, 8).ids_BT] for i in range(4)]
    spread = [max(one) - min(one) for one in lengths]
    assert sum(spread) / 4 < (max(map(max, lengths)) - min(map(min, lengths))) / 1.5


def test_a_mix_is_asked_for_by_name(talks):
    assert [(script.name, script.weight) for script in mix(who=1, audio_search=2)] == [("who", 1), ("audio search", 2)]
    with pytest.raises(ValueError, match="no script is called 'whoo'; there are transcribe"):
        mix(whoo=1.0)
    with pytest.raises(ValueError, match="no recordings of the voice 'jackson'; there are theo"):
        world = World(Digits(clips()), ("jackson",))
        Conversations(world, {"theo": Digits(clips())}, talks.codec, talks.words, [])
