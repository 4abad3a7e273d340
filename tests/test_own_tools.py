"""Tools that return too much to a model with little room."""

import json
import time

import pytest
from test_own import WORDS
from test_tuning import model

from gamut.codecs.chat import write_tool_call
from gamut.codecs.toolcall import ToolCall
from gamut.generate import chatting
from gamut.generate.speak import collect
from gamut.generate.speaker import Speaker
from gamut.generate.tools import Tool, Toolbox

NOTHING = {"type": "object", "properties": {}}


@pytest.mark.parametrize(
    ("value", "told"),
    [("x" * 10_000_000, "[truncated: the result had 10000000 bytes, at most 128 are shown]"),
     ({"rows": list(range(10**6))}, "are shown]"),
     ('{"broken": ', '{"broken": '),
     ("<|EOT|>" * 10**6, "are shown]")],
)  # fmt: skip
def test_ten_megabytes_or_broken_json_leave_room_for_an_answer(monkeypatch, value, told):
    """The model's context holds 512 ids: it reads what fits and a note, answers, and the past is whole."""
    calls, prompts = [write_tool_call("big", {}), "done"], []

    def scripted(*_):
        def decode(ids):
            prompts.append(list(ids))
            yield from [*WORDS.encode(calls[len(prompts) - 1]), WORDS.id("<|EOT|>")]

        return decode

    monkeypatch.setattr(chatting, "decoder", scripted)
    box = Toolbox([Tool("big", "Gives a lot.", NOTHING, lambda: value)])
    talk = chatting.Talk(Speaker(model(), WORDS, None, box), aloud=False, tools=True)
    began = time.thread_time()
    answer = collect(talk.ask(None, text="go"))
    assert (answer.text, answer.finish) == ("done", "stop") and answer.results[0].content.endswith(told)
    assert len(prompts[1]) < 512 and len(talk.messages) == 4 and time.thread_time() - began < 5


def test_a_box_within_a_context_keeps_its_tools_and_never_grows():
    box = Toolbox([Tool("t", "", NOTHING, lambda: "y" * 9000)], limit=1000, most=3)
    assert (box.within(16384).limit, box.within(2048).limit, box.within(8).limit) == (1000, 512, 128)
    assert box.within(2048).most == 3
    [result] = box.within(2048).run([ToolCall("t", json.dumps({}), "c")])
    assert len(result.content.encode()) <= 512
