# ruff: noqa: RUF001
"""Prompts of every role and kind, exactly; the history an answer leaves; what training scores."""

import pytest
from toys import TA4 as GOLDEN
from toys import ToyTokenizer

from gamut.codecs import chat, prompts
from gamut.codecs.answer import is_ta4_prompt, remember
from gamut.codecs.chat import encode_chat, encode_turns, render
from gamut.codecs.text import Tokenizer
from gamut.codecs.weave import Marks, build_ta4

TOY = ToyTokenizer()
MARKS = Marks.of(TOY)
SCHEMA = {"type": "function", "function": {"name": "now", "description": "时间", "parameters": {"type": "object"}}}
SCHEMAS = '<|BOT|>tool_json_schemas\n[{"type": "function", "function": {"name": "now", "description": "时间", '
SCHEMAS += '"parameters": {"type": "object"}}}]<|EOT|>'


@pytest.mark.parametrize("case", GOLDEN["chat_template"])
def test_prompts_like_the_reference(case):
    arguments = {key: value for key, value in case.items() if key != "text"}
    assert render(**arguments) == case["text"]
    assert encode_chat(**arguments, tokenizer=TOY) == TOY.encode(case["text"])


@pytest.mark.parametrize("case", GOLDEN["chat_template_ta4"])
def test_spoken_history_like_the_reference(case):
    got = encode_chat(case["messages"], TOY, None, case["add_generation_prompt"], padding="reference")
    assert got == case["ids"]


@pytest.mark.parametrize(
    ("role", "written"),
    [
        ("system", "system\nx"), ("user", "human\nx"), ("human", "human\nx"), ("assistant", "assistant\nx"),
        ("input", "input\nx"), ("function_output", "input\nx"), ("tool", "function_output\ntool\nx"),
        ("tool_json_schemas", "tool_json_schemas\nx"), ("narrator", "narrator\nx"),
    ],
)  # fmt: skip
def test_every_role(role, written):
    message = {"role": role, "content": "x"}
    assert render([message], add_generation_prompt=False) == f"<|BOT|>{written}<|EOT|>"
    assert render([{**message, "eot": False}], add_generation_prompt=False) == f"<|BOT|>{written}"
    assert render([message], continue_final_message=True) == f"<|BOT|>{written}"


@pytest.mark.parametrize(
    ("prefill", "ending"),
    [
        (chat.ANSWER_TEXT, "<|BOT|>assistant\n"),
        (chat.ANSWER_SPEECH, "<|BOT|>assistant\n<tts_start>"),
        (chat.ANSWER_THINKING, "<|BOT|>assistant\n\n<think>\n"),
    ],
)
def test_every_kind_of_answer(prefill, ending):
    """Table of the sheet, §4.3; the prefill as an argument and as an open message are one thing."""
    user = {"role": "user", "content": "hi"}
    prompt = render([user], prefill=prefill)
    assert prompt == f"<|BOT|>human\nhi<|EOT|>{ending}"
    assert render([user, {"role": "assistant", "content": prefill, "eot": False}], None, False) == prompt
    assert render([user, {"role": "assistant", "content": prefill}], continue_final_message=True) == prompt
    assert is_ta4_prompt(encode_chat([user], TOY, prefill=prefill), MARKS) == (prefill == chat.ANSWER_SPEECH)
    assert render([user, {"role": "assistant", "content": None}], None, False) == render([user])


def test_task_prompts_and_the_search_example():
    messages = [
        {"role": "system", "content": prompts.TRANSLATE_ALOUD},
        {"role": "user", "content": [{"type": "audio", "patches": 2}, {"type": "text", "text": "!"}]},
        {"role": "input", "content": "sunny" + prompts.SUMMARISE_RESULT},
    ]
    assert render(messages, prefill=chat.ANSWER_SPEECH) == (
        "<|BOT|>system\n请仔细聆听这段语音，然后将其内容翻译成中文并用语音播报。<|EOT|>"
        "<|BOT|>human\n<audio_start><audio_patch><audio_patch><audio_end>!<|EOT|>"
        "<|BOT|>input\nsunny\n\n\n请用口语化形式总结检索结果，简短地回答用户的问题。<|EOT|>"
        "<|BOT|>assistant\n<tts_start>"
    )


def test_base_models_have_no_roles():
    prompt = [prompts.READ_ALOUD, "你好", {"type": "audio", "patches": [1, 1]}, "<tts_start>"]
    block = "<audio_start><audio_patch><audio_end>"
    assert render(prompt, None, False) == f"以自然的语速读出下面的文字。\n你好{block}{block}<tts_start>"


def test_schemas_follow_the_system_message():
    system, user = {"role": "system", "content": "s"}, {"role": "user", "content": "u"}
    head = "<|BOT|>system\ns<|EOT|>"
    assert render([system, user], [SCHEMA], False) == f"{head}{SCHEMAS}<|BOT|>human\nu<|EOT|>"
    assert render([system], [SCHEMA], False) == head + SCHEMAS
    # without one the released template leaves its header open; kept, since the model has seen it
    assert render([user], [SCHEMA], False) == f"<|BOT|>system\n{SCHEMAS}<|BOT|>human\nu<|EOT|>"
    assert render([], [SCHEMA]) == f"<|BOT|>system\n{SCHEMAS}<|BOT|>assistant\n"


def test_a_tool_result_finds_the_name_of_its_call():
    call = {"id": "c1", "type": "function", "function": {"name": "now", "arguments": '{"zone":"UTC"}'}}
    asked = {"role": "assistant", "content": None, "tool_calls": [call]}
    answered = {"role": "tool", "tool_call_id": "c1", "content": "12:00"}
    assert render([asked, answered], None, False) == (
        '<|BOT|>assistant\n<tool_call>function\nnow\n{"zone":"UTC"}</tool_call><|EOT|>'
        "<|BOT|>function_output\nnow\n12:00<|EOT|>"
    )
    other = {"role": "tool", "tool_call_id": "c2", "name": "clock", "content": "1"}
    assert render([asked, other], None, False).endswith("<|BOT|>function_output\nclock\n1<|EOT|>")


def test_thinking_leaves_the_history_but_not_the_answer_being_written():
    user = {"role": "user", "content": "u"}
    thought = {"role": "assistant", "content": "\n<think>\nhm\n</think>\n\nyes"}
    assert "<|BOT|>assistant\nyes<|EOT|>" in render([user, thought, user])
    assert render([user, {**thought, "eot": False}], None, False).endswith("assistant\n\n<think>\nhm\n</think>\n\nyes")
    cut = {"role": "assistant", "content": "<think>never ends"}
    assert "<|BOT|>assistant\n<|EOT|>" in render([cut, user])
    assert "<think>x</think>" in render([{"role": "user", "content": "<think>x</think>"}])
    assert "say <think>x</think>" in render([{"role": "assistant", "content": "say <think>x</think>"}, user])


def test_spoken_turns_are_remembered_as_they_were_generated():
    """`<tts_start>` + the generated ids: the next prompt repeats them bit for bit, with no re-tokenising."""
    made = build_ta4(TOY.encode("世b"), MARKS.audio_ids([5, 6, 7, 8, 9]), MARKS)[1:] + TOY.encode("more")
    user = {"role": "user", "content": "u"}
    first = encode_chat([user], TOY, prefill=chat.ANSWER_SPEECH)
    eot = TOY.id("<|EOT|>")
    message = remember([*made, eot, 1, 2], TOY, chat.ANSWER_SPEECH)
    second = encode_chat([user, message], TOY, add_generation_prompt=False)
    assert second == [*first, *made, eot]


@pytest.mark.parametrize("prefill", [chat.ANSWER_THINKING, chat.AFTER_THINKING])
def test_only_speech_is_remembered_of_a_thinking_turn(prefill):
    """In one go, or continued after </think> as the released example does."""
    spoken = build_ta4(TOY.encode("ok"), MARKS.audio_ids([1]), MARKS)
    thought = TOY.encode("hm\n</think>\n\n") + spoken if prefill == chat.ANSWER_THINKING else spoken[1:]
    message = remember(thought, TOY, prefill)
    want = TOY.encode("<|BOT|>assistant\n") + spoken + TOY.encode("<|EOT|>")
    assert encode_chat([message], TOY, add_generation_prompt=False) == want


def test_text_answers_are_remembered_too():
    def remembered(answer: str, prefill: str = chat.ANSWER_TEXT) -> str:
        message = remember(TOY.encode(answer), TOY, prefill)
        return TOY.decode(encode_chat([message], TOY, add_generation_prompt=False))

    assert remembered("a<|EOT|>junk") == "<|BOT|>assistant\na<|EOT|>"
    assert remembered("<think>a</think>b") == "<|BOT|>assistant\nb<|EOT|>"  # nobody asked it to think
    assert remembered("a</think>\nb<|EOT|>", chat.ANSWER_THINKING) == "<|BOT|>assistant\nb<|EOT|>"
    assert remembered("a and a", chat.ANSWER_THINKING) == "<|BOT|>assistant\n<|EOT|>"


def test_training_scores_what_the_assistant_writes():
    """Content and <|EOT|> of every assistant turn, calls and speech included; headers and results never."""
    spoken = {"type": "token", "token": build_ta4([97], MARKS.audio_ids([3]), MARKS)}
    call = {"id": "c", "function": {"name": "now", "arguments": {}}}
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": [spoken], "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "12"},
        {"role": "assistant", "content": "noon"},
    ]
    ids, mask = encode_turns(messages, TOY, [SCHEMA])
    assert ids == encode_chat(messages, TOY, [SCHEMA], add_generation_prompt=False)
    scored = TOY.decode([i for i, learn in zip(ids, mask, strict=True) if learn])
    speech = "<tts_start>a<audio_3><audio_6561><audio_6561><audio_6561><tts_end>"
    assert scored == f"{speech}<tool_call>function\nnow\n{{}}</tool_call><|EOT|>noon<|EOT|>"


def test_a_header_is_tokenised_apart_only_for_training():
    """A tokenizer that merges line breaks does so in a prompt, however its content was cut; an answer, which begins
    after the header, is trained as it will be generated."""
    import tokenizers

    vocab = {"\n": 0, "\n\n": 1, **{letter: 2 + i for i, letter in enumerate("asitn")}}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [("\n", "\n")]))
    inner.add_special_tokens([chat.BOT, chat.EOT])
    tokenizer = Tokenizer(inner)
    header = [7, 2, 3, 3, 4, 3, 5, 2, 6, 5]
    for content in ("\na", [{"type": "text", "text": "\n"}, {"type": "text", "text": "a"}]):
        message = {"role": "assistant", "content": content}
        assert encode_chat([message], tokenizer, None, False) == [*header, 1, 2, 8]
        assert encode_turns([message], tokenizer)[0] == [*header, 0, 0, 2, 8]


def test_errors_say_which_message_and_what_is_allowed():
    with pytest.raises(ValueError, match=r"messages\[1\] must be .*got \"\{'content': 'x'\}\""):
        render([{"role": "user", "content": "a"}, {"content": "x"}])
    with pytest.raises(ValueError, match=r"messages\[0\].content must be text, a list of parts or None, got int"):
        render([{"role": "user", "content": 3}])
    with pytest.raises(ValueError, match=r"messages\[0\].content\[0\] must be .*\"patches\".*got .*'image'"):
        render([{"role": "user", "content": [{"type": "image"}]}])
    with pytest.raises(ValueError, match="one or more patches per piece, got 0; is the clip empty"):
        render([{"role": "user", "content": [{"type": "audio", "patches": 0}]}])
    with pytest.raises(ValueError, match=r"use encode_chat"):
        render([{"role": "assistant", "content": [{"type": "token", "token": [1]}]}])
    with pytest.raises(ValueError, match=r"tts_content lacks \['tts_audio'\]"):
        render([{"role": "assistant", "content": "", "tts_content": {"tts_text": "a"}}])
    with pytest.raises(ValueError, match="needs a message to continue"):
        render([], continue_final_message=True)


def test_sound_that_a_model_imagines_is_not_remembered():
    """An <audio_start> in the history would ask for a clip that does not exist."""
    message = remember(TOY.encode("a<audio_start><audio_patch><audio_end>b"), TOY)
    assert encode_chat([message], TOY, None, False) == TOY.encode("<|BOT|>assistant\nab<|EOT|>")
