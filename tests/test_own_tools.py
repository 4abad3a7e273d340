"""Tools in a talk: results too long for the model, tools that take their time, documents to search in."""

import threading
import time
from functools import partial

import pytest
import torch
from test_own import WORDS
from test_tuning import model

from gamut.codecs.chat import write_tool_call
from gamut.codecs.prompts import SUMMARISE_RESULT
from gamut.codecs.toolcall import ToolCall
from gamut.generate import chatting
from gamut.generate.retrieval import web_search
from gamut.generate.speak import Told, Words, collect
from gamut.generate.speaker import Speaker
from gamut.generate.tools import Found, Tool, Toolbox, calculator

NOTHING = {"type": "object", "properties": {}}


def script(monkeypatch, *answers: str) -> list[list[int]]:
    """A model that says these, one after another, and the prompts that it is given."""
    prompts = []

    def scripted(*_):
        def decode(ids):
            prompts.append(list(ids))
            yield from [*WORDS.encode(answers[len(prompts) - 1]), WORDS.id("<|EOT|>")]

        return decode

    monkeypatch.setattr(chatting, "decoder", scripted)
    return prompts


@pytest.mark.parametrize(
    ("value", "told"),
    [("x" * 10_000_000, "[truncated: the result had 10000000 bytes, at most 128 are shown]"),
     ({"rows": list(range(10**6))}, "are shown]"),
     ('{"broken": ', '{"broken": '),
     ("<|EOT|>" * 10**6, "are shown]")],
)  # fmt: skip
def test_ten_megabytes_or_broken_json_leave_room_for_an_answer(monkeypatch, value, told):
    """The model's context holds 512 ids: it reads what fits and a note, answers, and the past is whole."""
    prompts = script(monkeypatch, write_tool_call("big", {}), "done")
    box = Toolbox([Tool("big", "Gives a lot.", NOTHING, lambda: value)])
    talk = chatting.Talk(Speaker(model(), WORDS, None, box), aloud=False, tools=True)
    began = time.thread_time()
    answer = collect(talk.ask(None, text="go"))
    assert (answer.text, answer.finish) == ("done", "stop") and answer.results[0].content.endswith(told)
    assert len(prompts[1]) < 512 and len(talk.messages) == 4 and time.thread_time() - began < 5


def test_the_results_of_a_turn_share_a_quarter_of_the_context():
    box = Toolbox([Tool("big", "", NOTHING, lambda: "x" * 10**6)])
    told = box.results(box.start([ToolCall("big", "{}", str(i)) for i in range(9)], 16384))
    assert sum(len(result.content) for result in told[:8]) <= 4096 and not told[8].ok
    assert len(box.results(box.start([ToolCall("big", "{}", "c")], 16384))[0].content) == 4096


def test_a_failed_search_is_told_as_an_error_alone():
    [result] = Toolbox([web_search("http://127.0.0.1:9/%s")]).run([ToolCall("search", '{"query": "x"}', "c")])
    assert result.message["role"] == "tool" and result.message["content"].startswith("error: search failed")


def test_room_in_the_context_only_lessens_a_limit():
    box = Toolbox([Tool("t", "", NOTHING, lambda: "y" * 9000)], limit=1000)
    for room, limit in ((10**9, 1000), (16384, 1000), (2048, 512), (8, 128), (-5, 128)):
        [result] = box.results(box.start([ToolCall("t", "{}", "c")], room))
        assert len(result.content.encode()) == limit


def test_round_after_round_of_large_results_ends_without_losing_the_turn(monkeypatch):
    """Each round takes a quarter of what is left; where nothing is left the answer ends, and says so."""
    call = write_tool_call("big", {})
    box = Toolbox([Tool("big", "Gives a lot.", NOTHING, lambda: "x" * 10**7)])
    prompts = script(monkeypatch, call, call, call, "done")
    talk = chatting.Talk(Speaker(model(), WORDS, None, box), aloud=False, tools=True)
    answer = collect(talk.ask(None, text="go"))
    assert answer.finish in ("stop", "room") and all(len(prompt) < 512 for prompt in prompts)
    assert len(talk.messages) >= 4 and talk.messages[0]["role"] == "human"


def test_what_no_model_could_be_told_is_refused_with_its_tool():
    for parameters in ({"properties": {"n": {"type": "int"}}}, {"properties": {"n": True}}):
        with pytest.raises(ValueError, match=r"tool 't': argument 'n' needs a schema with a type, one of string, num"):
            Toolbox([Tool("t", "", parameters, print)])
    with pytest.raises(ValueError, match="argument 'n' needs a schema with a type"):
        Toolbox([Tool("t", "", {"properties": {"n": {}}}, print, terse=True)])

    async def later():
        return "x"

    [result] = Toolbox([Tool("t", "", NOTHING, later)]).run([ToolCall("t", "{}", "c")])
    assert not result.ok and "is an async function, which nothing here awaits" in result.content


def test_a_sound_that_is_none_is_told_to_the_model():
    for wav, why in ((torch.ones(9, dtype=torch.int16), "samples are floats"), (None, "got NoneType"),
                     (torch.ones(9, 2), r"(samples,) or (1, samples)"), (torch.ones(3) / 0, "NaN or infinite")):
        [result] = Toolbox([Tool("t", "", NOTHING, partial(Found, "x", wav, 8000))]).run([ToolCall("t", "{}", "c")])
        assert not result.ok and why in result.content
    assert Found("x", torch.ones(1, 9), 8000).wav.shape == (9,)


def test_a_model_says_something_while_a_tool_takes_its_time(monkeypatch):
    """It is asked to, with all that was said before; neither the request nor what it then says is kept."""
    gate = threading.Event()
    prompts = script(monkeypatch, write_tool_call("slow", {}), "one moment", "done", "you are welcome")
    box = Toolbox([Tool("slow", "", NOTHING, lambda: gate.wait(20) and "ready")])
    talk = chatting.Talk(Speaker(model(), WORDS, None, box), aloud=False, tools=True, meanwhile="wait?", patience=0.05)
    events = []
    for event in talk.ask(None, text="go"):
        events.append(event)
        if isinstance(event, Words):
            gate.set()
    told = next(i for i, event in enumerate(events) if isinstance(event, Told))
    before, after = collect(events[:told]), collect(events[told:])
    assert (before.text, events[told].result.content, after.text) == ("one moment", "ready", "done")
    collect(talk.ask(None, text="thanks"))
    asked = [WORDS.decode(ids) for ids in prompts]
    assert "go" in asked[1] and "wait?" in asked[1]
    assert not any(said in prompt for said in ("wait?", "one moment") for prompt in (asked[2], asked[3]))


def test_what_was_searched_comes_as_the_released_model_reads_it(monkeypatch, tmp_path):
    """In role input, the published request behind it (fact sheet 4.4); other results in role function_output."""
    (tmp_path / "lake.txt").write_text("The lake is 31 metres deep.")
    calls = write_tool_call("search", {"query": "lake"}) + write_tool_call("calculator", {"expression": "31*2"})
    prompts = script(monkeypatch, calls, "31 metres")
    box = Toolbox([web_search(tmp_path), calculator()])
    answer = collect(chatting.Talk(Speaker(model(), WORDS, None, box), aloud=False, tools=True).ask(None, text="go"))
    searched = f"[lake.txt]\nThe lake is 31 metres deep.{SUMMARISE_RESULT}"
    assert WORDS.decode(prompts[1]).endswith(
        f"{calls}<|EOT|><|BOT|>input\n{searched}<|EOT|><|BOT|>function_output\ncalculator\n62<|EOT|><|BOT|>assistant\n"
    )
    assert answer.text == "31 metres"
