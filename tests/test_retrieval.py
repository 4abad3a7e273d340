"""Search in documents and among voices: what is found, what is refused, and what the model is told when it fails."""

import http.server
import json
import threading

import pytest
import torch

from gamut.codecs.toolcall import ToolCall
from gamut.data.dialogues import found_message
from gamut.data.scripts import VOICES
from gamut.generate.retrieval import Index, passages, plain, web_search, words
from gamut.generate.speak import with_sound
from gamut.generate.tools import Found, Tool, Toolbox, order_counter
from gamut.generate.voices import Voice, audio_search, four_tools, library
from gamut.io.media import write_audio

pytest.importorskip("bm25s")


def ask(tool: Tool, **arguments) -> str:
    return Toolbox([tool]).run([ToolCall(tool.name, json.dumps(arguments), "c")])[0].content


def test_words_of_any_script():
    assert words("The café's 2 dogs, 天气!") == ["the", "café", "s", "2", "dogs", "天", "气"]


def test_an_index_ranks_by_shared_rare_words_and_finds_nothing_for_nothing():
    index = Index(["the cat sat", "the dog sat on the cat", "the bird flew", ""])
    assert index.best("dog") == [1] and index.best("bird the")[0] == 2
    assert index.best("zebra") == [] and index.best("  ") == []
    with pytest.raises(ValueError, match="needs at least one text"):
        Index([])


def test_documents_of_a_folder_are_found_by_passage(tmp_path):
    (tmp_path / "deep").mkdir()
    tea = ["# Tea", "Green tea is steamed.", "filler " * 150, "Oolong is between."]
    (tmp_path / "deep" / "a.md").write_text("\n\n".join(tea))
    (tmp_path / "b.html").write_text("<title>Rail</title><script>var oolong</script><p>The train leaves at 9.</p>")
    (tmp_path / "c.bin").write_bytes(b"\xff\xfe")
    tool = web_search(tmp_path)
    found = ask(tool, query="when does the train leave")
    assert found.startswith("[b.html]") and "leaves at 9" in found and "var" not in found
    assert "Oolong is between" in ask(tool, query="oolong") and "steamed" not in ask(tool, query="oolong")
    assert ask(tool, query="qqq") == "nothing found for 'qqq'"


def test_what_a_page_closes_without_opening_shows_no_script():
    assert plain("x</style></script><script>hidden()</script>y<style>c</style>z") == "xyz"


def test_unreadable_documents_are_named_and_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds nothing to search in; put \.txt"):
        web_search(tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        web_search(tmp_path / "none")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "good.txt").write_text("hello")
    with pytest.warns(UserWarning, match=r"1 documents .* left out: bad.txt"):
        web_search(tmp_path)


def test_passages_are_short_and_lose_nothing():
    text = "\n\n".join(["a" * 500, "b" * 500, "c" * 2000])
    parts = passages(text)
    assert max(map(len, parts)) <= 801 and sum("".join(parts).count(c) for c in "abc") == 3000
    assert plain("<p>1 &lt; 2</p><style>x</style>").strip() == "1 < 2"


class Service(http.server.BaseHTTPRequestHandler):
    """Answers by its path."""

    def do_GET(self) -> None:
        kind, body = {
            "/json": ("application/json", b'{"a": 1}'), "/broken": ("application/json", b'{"a": ' + b"x" * 9000),
            "/html": ("text/html", b"<p>hi <b>you</b></p>"), "/big": ("text/plain", b"y" * (10 << 20)),
            "/picture": ("image/png", b"\x89PNG"),
        }.get(self.path.partition("?")[0], ("text/plain", self.path.encode()))  # fmt: skip
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        try:
            self.wfile.write(body)
        except OSError:
            pass  # the client had enough

    def log_message(self, *arguments) -> None:
        pass


@pytest.fixture(scope="module")
def service():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/echo", "/echo?q=a%20b%26c"), ("/json", '{"a": 1}'), ("/html", "hi you"),
        ("/broken", "error: the search service answered with broken JSON (Expecting value"),
        ("/big", "error: the search service answered with over 4 MB; ask for less"),
        ("/picture", "error: the search service answered with image/png, not with text"),
    ],
)  # fmt: skip
def test_an_endpoint_is_read_within_limits(service, path, told):
    content = ask(web_search(f"{service}{path}?q=%s"), query="a b&c").strip()
    assert content.startswith(told) and len(content) < 600


def test_an_endpoint_that_is_not_there_is_an_error_for_the_model():
    assert ask(web_search("http://127.0.0.1:9/%s"), query="x").startswith("error: search failed (URLError")
    with pytest.raises(ValueError, match="one %s where the query goes"):
        web_search("http://127.0.0.1/")


def voice(name: str, read=lambda: (torch.ones(80), 8000)) -> Voice:
    return Voice(name, "; ".join(VOICES[name]), "", read)


@pytest.mark.parametrize(("name", "query"), [(name, query) for name, pair in VOICES.items() for query in pair])
def test_every_description_finds_its_own_voice(name, query):
    box = Toolbox([audio_search([voice(one) for one in VOICES])])
    [result] = box.run([ToolCall("audio_search", json.dumps({"query": query}), "c")])
    assert json.loads(result.content) == {"voice": "; ".join(VOICES[name])}
    assert isinstance(result.sound, Found) and result.sound.rate == 8000


def test_what_training_shows_of_a_search_is_what_a_search_gives():
    """Twin: the message of a real result, and the one the rows are made of."""
    [result] = Toolbox([audio_search([voice("theo")])]).run([ToolCall("audio_search", '{"query": "highest"}', "c")])
    real, made = with_sound(result.message, [7, 8]), found_message("audio_search", result.content, [7, 8])
    assert {key: real[key] for key in made} == made


def test_a_clip_that_cannot_be_read_gives_way_to_the_next():
    def broken():
        raise ValueError("cut short")

    tool = audio_search([voice("theo", broken), voice("jackson")])
    with pytest.warns(UserWarning, match="clip theo was found but not read: cut short"):
        [result] = Toolbox([tool]).run([ToolCall("audio_search", '{"query": "American"}', "c")])
    assert "deep" in result.content
    assert ask(tool, query="zzz") == "no voice found for 'zzz'"


def test_a_folder_of_voices_with_unreadable_clips(tmp_path):
    write_audio(tmp_path / "a.wav", torch.randn(8000) * 0.1, 8000)
    (tmp_path / "b.wav").write_bytes(b"RIFFnonsense")
    (tmp_path / "c.wav").write_bytes(b"")
    lines = [{"file": f"{c}.wav", "text": "hello there", "description": f"voice {c}"} for c in "abc"]
    (tmp_path / "transcripts.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    with pytest.warns(UserWarning, match=r"2 clips of .* are left out: .*b\.wav"):
        found = library(tmp_path)
    assert [one.name for one in found] == ["a.wav"]
    [result] = Toolbox([audio_search(found)]).run([ToolCall("audio_search", '{"query": "hello"}', "c")])
    assert json.loads(result.content) == {"voice": "voice a", "text": "hello there"}
    (tmp_path / "a.wav").unlink()
    write_audio(tmp_path / "d.wav", torch.randn(8000) * 0.1, 8000)
    (tmp_path / "transcripts.jsonl").write_text(json.dumps({"file": "b.wav", "text": ""}))
    with pytest.raises(ValueError, match=r"not one clip of .* can be read"):
        library(tmp_path)


def test_an_order_is_taken_and_a_wrong_one_is_not():
    tool = order_counter({"coffeeDrink": ["latte", "mocha"], "milkAmount": []}, lambda: 17)
    assert ask(tool, coffeeDrink="latte", milkAmount="a bit of milk") == "order number 17"
    assert ask(tool, coffeeDrink="tea").startswith("error: argument 'coffeeDrink' must be one of")
    assert ask(tool, milkAmount="x").startswith("error: argument 'coffeeDrink' is missing")
    box, call = four_tools([], {"coffeeDrink": ["latte"]}), ToolCall("order", '{"coffeeDrink": "latte"}', "c")
    assert [box.run([call])[0].content for _ in range(3)] == [f"order number {n}" for n in (10, 11, 12)]
