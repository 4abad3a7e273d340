"""Recordings by name and by folder, with and without a copy or a network."""

import hashlib
import http.server
import io
import json
import os
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import gamut
from gamut.data import corpora, sources
from gamut.data.folders import folder
from gamut.data.own import read_conversations
from gamut.io import fsdd, voices
from gamut.io.listing import listed
from gamut.io.media import write_audio

DATA = os.environ.get("GAMUT_DATA", "")
with_data = pytest.mark.skipif(not (Path(DATA) / "speech" / "fsdd_8k.npz").exists() or not DATA, reason="GAMUT_DATA")


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """No copy, an empty cache, and a home of the data that refuses at once."""
    monkeypatch.delenv("GAMUT_DATA", raising=False)
    monkeypatch.setenv("GAMUT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fsdd, "URL", "http://127.0.0.1:9/digits.zip")
    return tmp_path / "cache"


@with_data
def test_the_recordings_and_their_splits():
    """By file: takes 0-4 are the published test split; the parts share no take and make up everything."""
    parts = {split: sources.digits(split, "recordings") for split in ("train", "validation", "test")}
    assert {split: len(part) for split, part in parts.items()} == {"train": 2520, "validation": 180, "test": 300}
    names = [{part._read(i).name for i in part._order} for part in parts.values()]
    assert len(set.union(*names)) == 3000
    clip = parts["test"][0]
    assert (clip.text, clip.speaker, clip.name, clip.rate) == ("0", "george", "0_george_0", 8000)
    assert clip.labels == {"digit": 0, "take": 0} and clip.wav.shape == (2384,) and clip.wav.dtype == torch.float32
    assert clip.wav[0].item() == -1489 / 32768
    assert "recordings of six people" in parts["test"].origin and parts["test"].licence == "CC BY-SA 4.0"
    assert {c.text for c in parts["test"]} == set("0123456789")
    assert [c.name for c in parts["test"][5:7]] == [parts["test"][5].name, parts["test"][6].name]


def serve(body: bytes):
    """A small home for the archive on this machine."""

    class Home(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Home)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def archive(arrays: fsdd.Arrays) -> bytes:
    import soundfile as sf

    ends, buffer = np.cumsum(arrays["length"]), io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for i in reversed(range(len(ends))):  # out of order on purpose
            wav = io.BytesIO()
            sf.write(wav, arrays["wav_int16"][ends[i] - arrays["length"][i] : ends[i]], 8000, format="WAV")
            name = f"{arrays['digit'][i]}_{arrays['speaker'][i]}_{arrays['take'][i]}.wav"
            file.writestr(f"fsdd-1234/recordings/{name}", wav.getvalue())
        file.writestr("fsdd-1234/pip_requirements.txt", "x")
    return buffer.getvalue()


def few() -> fsdd.Arrays:
    draw = np.random.default_rng(0)
    clips = {f"{d}_ann_{t}.wav": draw.integers(-99, 99, 800).astype(np.int16) for d in range(10) for t in (0, 6, 9)}
    return fsdd._arrays(clips)


def test_a_download_is_checked_and_kept(alone, monkeypatch):
    """The archive lists its files in another order; the samples are compared in the order of their names."""
    wanted = few()
    server = serve(archive(wanted))
    monkeypatch.setattr(fsdd, "URL", f"http://127.0.0.1:{server.server_port}/x.zip")
    monkeypatch.setattr(fsdd, "SHA256", hashlib.sha256(wanted["wav_int16"].tobytes()).hexdigest())
    fetched = fsdd.recordings()
    server.shutdown()
    server.server_close()
    assert all(np.array_equal(fetched[key], wanted[key]) for key in wanted)
    assert (alone / "fsdd_8k.npz").exists()
    assert len(sources.digits("test")) == 10  # the server is gone: this is the cache


def test_other_samples_than_the_published_are_refused(alone, monkeypatch):
    server = serve(archive(few()))
    monkeypatch.setattr(fsdd, "URL", f"http://127.0.0.1:{server.server_port}/x.zip")
    with pytest.raises(ValueError, match=r"are not the published ones: SHA-256 .* should be 6f643a74"):
        sources.digits("test")
    server.shutdown()
    server.server_close()
    assert not alone.exists()


def test_half_an_archive_is_not_taken_for_a_whole_one(alone, monkeypatch):
    server = serve(archive(few())[:5000])
    monkeypatch.setattr(fsdd, "URL", f"http://127.0.0.1:{server.server_port}/x.zip")
    with pytest.raises(ConnectionError, match="archive of the digit set is incomplete"):
        sources.digits("test", "recordings")
    server.shutdown()
    server.server_close()
    assert not alone.exists()


def test_a_changed_copy_is_refused(alone, monkeypatch, tmp_path):
    fsdd.save(tmp_path / "speech" / "fsdd_8k.npz", few())
    monkeypatch.setenv("GAMUT_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=r"fsdd_8k.npz are not the published ones.*delete that copy"):
        sources.digits()


def test_without_copy_or_network_the_voices_are_synthetic_and_say_so(alone, monkeypatch):
    pytest.importorskip("espeakng_loader")
    whole = fsdd.synthetic
    monkeypatch.setattr(fsdd, "synthetic", lambda: whole(takes=1))
    with pytest.raises(ConnectionError, match=r"cannot be downloaded.*set GAMUT_DATA to a folder that has speech/fsdd"):
        sources.digits("test", "recordings")
    with pytest.warns(UserWarning, match="Going on with espeak-ng synthetic voices, not recordings of people"):
        speech = sources.digits("test")
    assert speech.origin == "espeak-ng synthetic voices, not recordings of people"
    assert len(speech) == 10 * len(voices.VOICES) and speech[0].text == "0"
    assert all(800 < len(clip.wav) < 16000 and clip.wav.abs().max() > 0.1 for clip in speech)
    assert (alone / "espeak_digits_8k.npz").exists()
    assert torch.equal(sources.digits("test", "synthetic")[3].wav, speech[3].wav)


def test_a_name_server_that_never_answers_does_not_hang(alone, monkeypatch):
    monkeypatch.setattr(fsdd, "CONNECT_SECONDS", 0.2)
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: time.sleep(30))
    start = time.monotonic()
    with pytest.raises(ConnectionError, match=r"no answer about 127.0.0.1 in 0.2 s"):
        sources.digits("test", "recordings")
    assert time.monotonic() - start < 20  # far below the 30 s of the look-up, on a busy machine too


def test_synthetic_speech_follows_speed_and_voice():
    pytest.importorskip("espeakng_loader")
    one = voices.say("seven", rate=16000)
    assert 0.2 < len(one) / 16000 < 1.5 and abs(len(voices.say("seven", rate=16000)) - len(one)) < 400
    slow = voices.say("seven", rate=16000, speed=0.6)
    assert len(slow) > 1.2 * len(one)
    assert not torch.equal(voices.say("seven", rate=16000, voice="en-us+f2")[:1000], one[:1000])
    with pytest.raises(ValueError, match="espeak-ng has no voice 'klingon-x'; used here: en-us, "):
        voices.say("seven", rate=16000, voice="klingon-x")
    with pytest.raises(ValueError, match="says nothing for ''"):
        voices.say("", rate=16000)


@pytest.mark.parametrize("split, source, message", [
    ("dev", "auto", "split must be one of test, validation, train, got 'dev'"),
    ("test", "internet", "source must be 'auto', 'recordings' or 'synthetic', got 'internet'"),
])
def test_unknown_split_or_source(split, source, message):
    with pytest.raises(ValueError, match=message):
        sources.digits(split, source)


@pytest.fixture
def own(tmp_path):
    for name in ("a.wav", "wavs/b.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_audio(tmp_path / name, torch.sin(torch.arange(8000) * 0.1), 16000)
    return tmp_path


LISTS = {
    "transcripts.csv": "file,text,speaker\na.wav,\"one, two\",ann\nb,three,bob\n",
    "transcripts.tsv": "\ufeffpath\tsentence\tspeaker\na.wav\tone, two\tann\nwavs/b.wav\tthree\tbob\n",
    "transcripts.jsonl": '{"audio": "a", "text": "one, two", "speaker": "ann"}\n\n'
    '{"file": "b", "text": "three", "speaker": "bob"}\n',
    "metadata.csv": "a|1, 2|one, two\nb|3|three\n",
}


@pytest.mark.parametrize("name", LISTS)
def test_own_recordings(own, name):
    (own / name).write_text(LISTS[name])
    speech = folder(own, 8000)
    assert [clip.text for clip in speech] == ["one, two", "three"]
    assert [(clip.name, clip.rate, len(clip.wav)) for clip in speech] == [("a", 8000, 4000), ("b", 8000, 4000)]
    if name != "metadata.csv":
        assert [clip.speaker for clip in speech] == ["ann", "bob"]
    assert str(own) in speech.origin
    assert folder(own, origin="my own voice").origin == "my own voice"


FAULTS = {
    "missing clip": ("transcripts.csv", "file,text\na.wav,one\nc.wav,two\n",
                     r"transcripts.csv' line 3 names the clip 'c.wav', which is neither in .*; add the file, or del"),
    "columns swapped": ("transcripts.csv", "file,text\n" + 99 * "two " + ",a.wav\n", r"the clip '(two ){20}', w"),
    "missing clip lj": ("metadata.csv", "a|one|one\nzz|two|two\n", "metadata.csv' line 2 names the clip 'zz'"),
    "no text": ("transcripts.csv", "file,words\na.wav,one\n",
                r"line 2 needs a file and a text, got columns \['file', 'words'\]"),
    "two of three": ("transcripts.csv", "file,text\nc.wav,x\na.wav,one\nd.wav,y\n",
                     r"line 2 names the clip 'c.wav'[^$]*line 4"),
    "twenty": ("transcripts.csv", "file,text\n" + 20 * "c.wav,x\n", r"line 9 names [^$]*\.\.\. and 12 more like these"),
    "no file": ("transcripts.jsonl", '{"text": "x"}\n', r"line 1 needs a file and a text, got columns \['text'\]"),
    "not json": ("transcripts.jsonl", '{"file": "a", "text": "x"}\n{broken\n', "transcripts.jsonl' line 2 is not JSON"),
    "not an object": ("transcripts.jsonl", '["a", "x"]\n', "line 1 is not a JSON object"),
    "not text": ("transcripts.jsonl", '{"file": "a", "text": 5}\n', "line 1 needs a text, got 5 for the clip 'a'"),
    "nothing": ("transcripts.jsonl", '{"file": "a", "text": "x"}\n{}\n', "line 2 needs a file and a text, got columns"),
    "quote": ("transcripts.csv", 'file,text\na.wav,"two\nb.wav,three\n',
              r"transcripts.csv' line 2 holds a line break: a quote is not closed, .*'two\\nb.wav,three"),
    "quote in a label": ("transcripts.csv", 'file,text,who\n\na.wav,one,"ann\nb.wav,three,bob\n', "line 3 holds a"),
    "quote in the header": ("transcripts.tsv", 'file\t"text\na.wav\tone\n', "line 1 holds a line break"),
    "two quotes": ("transcripts.csv", 'file,text\na.wav,"x\ny"\nb.wav,"z\ny"\n', r"line 2 holds[^$]*line 4 holds"),
    "long quote": ("transcripts.csv", 'file,text\na.wav,"' + 20000 * "b.wav,x\n", r"line 2: a quote is not closed"),
    "empty text": ("transcripts.csv", "file,text\na.wav,\nb.wav, \n",
                   r"line 2 needs a text, got '' for the clip 'a.wav'; write what is said in it, or del[^$]*line 3"),
    "empty text lj": ("metadata.csv", "a||\n", "line 1 needs a text, got ''"),
    "commas": ("transcripts.csv", "file,text\nb,two\na.wav,one, two\n",
               "line 3 has more columns than the header, the first is ' two'; put a text that holds commas"),
    "empty": ("transcripts.csv", "file,text\n", "lists no clips; write one line per clip"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_faults_in_a_transcript_file_are_named_by_line(own, kind):
    name, content, message = FAULTS[kind]
    (own / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        folder(own)
    assert (own / "a.wav").exists() and (own / name).read_text() == content


@pytest.mark.parametrize("code, got", [("latin-1", "0xe9 in line 2"), ("utf-16", "0xff in line 1"),
                                       ("utf-16-le", "0xe9 in line 2")])  # fmt: skip
@pytest.mark.parametrize("name", ["transcripts.csv", "transcripts.jsonl"])
def test_a_table_of_another_encoding(own, name, code, got):
    text = "file,text\na.wav,\u00e9t\u00e9\n" if name.endswith("csv") else '{"file": "a"}\n{"text": "\u00e9t\u00e9"}\n'
    (own / name).write_bytes(text.encode(code))
    with pytest.raises(ValueError, match=rf"{name}' is not UTF-8 text; save it as UTF-8 .*; got byte {got}"):
        folder(own)


def test_cells_as_tables_have_them(own):
    """Quoted commas and quotes, line ends of Windows, empty columns at the end, a character that only looks like a line
    end; a voice may have no text."""
    (own / "transcripts.csv").write_bytes('file,text,\r\na.wav,"one, ""two""",,\r\nb,x\u2028y,\r\n'.encode())
    assert [clip.text for clip in folder(own)] == ['one, "two"', "x\u2028y"]
    (own / "transcripts.csv").write_text("file,text,speaker\na.wav,,ann\nb,two\n")
    assert [(text, more) for _, text, more in listed(own, textless=True)] == [("", {"speaker": "ann"}), ("two", {})]


def test_a_text_beside_each_clip(own):
    (own / "a.txt").write_text("one two\n")
    with pytest.raises(ValueError, match=r"b\.wav' needs a text in b\.txt, as other clips have"):
        folder(own)
    (own / "wavs" / "b.txt").write_text("three")
    assert [(clip.name, text) for clip, text, _ in listed(own)] == [("a.wav", "one two"), ("b.wav", "three")]
    (own / "metadata.jsonl").write_text('{"file_name": "b.wav", "transcription": "four"}')
    assert [text for _, text, _ in listed(own)] == ["four"]


def test_folders_that_are_none(tmp_path):
    with pytest.raises(ValueError, match="no transcripts") as wrong:
        read_conversations(tmp_path)
    assert wrong.value.__notes__ == ["Conversations are read from conversations.jsonl in the folder, or a .jsonl file "
                                     "given itself."]  # fmt: skip
    with pytest.raises(ValueError, match=r"there is no folder 'Qwen2.5-0.5B', and no weights come under that name"):
        gamut.load("Qwen2.5-0.5B")
    with pytest.raises(ValueError, match=r"holds no transcripts; allowed: transcripts.csv, .* write one line per clip"):
        folder(tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        folder(tmp_path / "x")


@with_data
def test_coffee_orders_and_lj_speech():
    pytest.importorskip("pyarrow")
    coffee, lj = corpora.coffee(), corpora.ljspeech(16000)
    assert (len(coffee), len(lj)) == (530, 8)
    assert coffee[0].rate == 16000 and "coffeeDrink" in coffee[0].labels["slots"] and len(coffee[0].wav) > 8000
    assert lj[0].rate == 16000 and lj[0].text.startswith("Printing") and lj.licence == "public domain"
    assert json.dumps(coffee[1].labels)


def test_data_that_is_only_under_gamut_data(alone):
    with pytest.raises(FileNotFoundError, match=r"speech/ljspeech_8.parquet is not under GAMUT_DATA \(not set\)"):
        corpora.ljspeech()


def test_the_coffee_orders_come_with_the_checkout(alone):
    pytest.importorskip("pyarrow")
    coffee = corpora.coffee()
    assert len(coffee) == 530 and {clip.labels["intent"] for clip in coffee[:3]} == {"orderDrink"}
