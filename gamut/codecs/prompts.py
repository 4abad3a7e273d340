# ruff: noqa: RUF001  (the prompts are Chinese, and so is their punctuation)
"""Task prompts: system messages of Step-Audio 2 mini. Source: repo examples.py."""

TRANSCRIBE = "请记录下你所听到的语音内容。"
TRANSLATE_ALOUD = "请仔细聆听这段语音，然后将其内容翻译成中文并用语音播报。"  # answer with chat.ANSWER_SPEECH
READ_ALOUD = "以自然的语速读出下面的文字。\n"  # base model: this, the text, chat.ANSWER_SPEECH; no roles
SUMMARISE_RESULT = "\n\n\n请用口语化形式总结检索结果，简短地回答用户的问题。"  # follows a search result in role input
