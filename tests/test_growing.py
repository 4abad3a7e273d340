"""Sound files that grow: whole at every moment while they are written, waited for while others write them."""

import io
import struct
import threading
import time
import wave

import pytest
import torch

from gamut.io.growing import WavWriter, settled
from gamut.io.media import read_audio, write_audio


def tone(seconds: float, rate: int = 16000) -> torch.Tensor:
    return torch.sin(torch.arange(int(seconds * rate)) * 0.1) * 0.5


def test_the_written_file_is_whole_at_every_moment(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(b"an older file")
    parts = [tone(0.1 * k) for k in (1, 3, 2)]
    with WavWriter(path, 16000) as out:
        total = 0
        for part in [tone(0), *parts]:
            out.append(part)
            total += len(part)
            with wave.open(io.BytesIO(path.read_bytes())) as file:  # another program looks
                assert (file.getnframes(), file.getframerate()) == (total, 16000)
                assert len(file.readframes(total)) == 2 * total
    wav, rate = read_audio(path)
    assert rate == 16000 and torch.allclose(wav, torch.cat(parts), atol=1 / 32000)
    assert [file.name for file in tmp_path.iterdir()] == ["a.wav"]
    with pytest.raises(ValueError, match=r"must go to a \.wav, got 'a\.mp3'"):
        WavWriter(tmp_path / "a.mp3", 16000)


def test_a_header_never_promises_samples_that_are_not_there(tmp_path):
    """Samples go in first: whoever reads between the two writes sees the shorter file."""
    path = tmp_path / "a.wav"
    with WavWriter(path, 8000) as out:
        out.append(torch.full((100,), 2.0))  # clipped
        out.file.seek(44 + 200)
        out.file.write(b"\x01" * 60)
        out.file.flush()
        with wave.open(io.BytesIO(path.read_bytes())) as file:
            assert file.getnframes() == 100 and file.readframes(1) == b"\xff\x7f"


def test_a_file_that_grows_is_waited_for(tmp_path):
    path, ended = tmp_path / "mic.wav", []

    def record() -> None:
        with WavWriter(path, 8000) as out:
            for _ in range(6):
                out.append(tone(0.25, 8000))
                time.sleep(0.1)
        ended.append(time.monotonic())

    thread = threading.Thread(target=record)
    thread.start()
    while not path.exists():
        time.sleep(0.01)
    seen: list[int] = []
    settled(path, patience=0.6, grows=lambda: seen.append(1))
    assert seen == [1] and ended and len(read_audio(path)[0]) == 12000
    thread.join()
    began = time.monotonic()
    time.sleep(0.3)
    settled(path, patience=0.2, grows=lambda: seen.append(2))  # old: not waited for
    assert seen == [1]
    assert time.monotonic() - began < 0.5


def test_an_older_file_stays_until_there_is_sound(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), WavWriter(path, 8000):
        assert path.read_bytes() == b"old"
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and [file.name for file in tmp_path.iterdir()] == ["a.wav"]
    with pytest.raises(KeyboardInterrupt), WavWriter(path, 8000) as out:
        out.append(tone(0.1, 8000))
        raise KeyboardInterrupt
    assert len(read_audio(path)[0]) == 800
    with WavWriter(path, 8000):
        pass  # an answer without sound
    assert len(read_audio(path)[0]) == 800
    assert [file.name for file in tmp_path.iterdir()] == ["a.wav"]


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"folder\.wav' is a folder; give the name of a \.wav file"):
        WavWriter(tmp_path / "folder.wav", 8000)
    with pytest.raises(ValueError, match=r"cannot be written \(.*\); choose another place"):
        WavWriter(tmp_path / "file" / "a.wav", 8000)


@pytest.mark.parametrize("size", [0x7FFFFF00, 0x7FFFF000, 0xFFFFFFFF])
def test_a_recording_whose_header_knows_no_length_yet(tmp_path, size):
    """As arecord, sox and ffmpeg leave it while they run."""
    data = bytearray(write_audio(tmp_path / "a.wav", tone(0.5), 16000).read_bytes())
    data[4:8], data[40:44] = struct.pack("<I", min(size + 36, 0xFFFFFFFF)), struct.pack("<I", size)
    wav, rate = read_audio(bytes(data))
    assert rate == 16000 and torch.allclose(wav, tone(0.5), atol=1 / 32000)
