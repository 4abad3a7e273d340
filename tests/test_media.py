"""Sound files in and out, and what a user is told about each kind of broken file."""

import io
import struct
import warnings

import numpy as np
import pytest
import soundfile as sf
import torch

from gamut.io.growing import WavWriter
from gamut.io.media import duration, read_audio, silent, write_audio


def tone(seconds: float = 0.5, rate: int = 16000) -> np.ndarray:
    return (0.3 * np.sin(np.arange(int(seconds * rate)) * 0.2)).astype(np.float32)


def stored(samples: np.ndarray, rate: int = 16000, container: str = "WAV", subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    sf.write(buffer, samples, rate, format=container, subtype=subtype)
    return buffer.getvalue()


@pytest.mark.parametrize("suffix, tolerance", [(".wav", 1e-4), (".flac", 1e-4), (".ogg", 0.05)])
def test_what_is_written_is_read(tmp_path, suffix, tolerance):
    wav = torch.from_numpy(tone())
    path = write_audio(tmp_path / f"a{suffix}", wav, 16000)
    again, rate = read_audio(path)
    assert rate == 16000 and len(again) == len(wav) and again.dtype == torch.float32
    assert (again - wav).abs().max() < tolerance
    assert duration(path) == duration(path.read_bytes()) == 0.5


def test_stereo_is_written_and_its_first_channel_read(tmp_path):
    wav = torch.stack([torch.from_numpy(tone()), torch.zeros(8000)])
    path = write_audio(tmp_path / "a.wav", wav, 16000)
    assert torch.allclose(read_audio(path)[0], wav[0], atol=1e-4)
    assert torch.allclose(read_audio(path, channel="mean")[0], wav[0] / 2, atol=1e-4)


def test_three_channels_give_the_first():
    """As Step-Audio 2 does with any recording: not an error, not a mix."""
    samples = np.stack([tone(), np.zeros(8000), np.ones(8000) * 0.1], 1)
    wav, _ = read_audio(stored(samples))
    assert np.allclose(wav.numpy(), tone(), atol=1e-4)


def test_resampling_on_the_way_in():
    wav, rate = read_audio(stored(tone(1, 44100), 44100), 16000)
    assert rate == 16000 and len(wav) == 16000


def test_loud_sound_is_clipped_not_wrapped(tmp_path):
    path = write_audio(tmp_path / "a.wav", torch.tensor([2.0, -2.0] * 100), 8000)
    wav, _ = read_audio(path)
    assert wav.max() > 0.99 and wav.min() < -0.99 and (wav[::2] > 0).all()


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_audio(tmp_path / "a.wav", torch.from_numpy(tone()), 16000)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_audio(path, torch.zeros(100) + 0.1, 16000)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.wav"]


@pytest.mark.parametrize(
    "name, wav, message",
    [
        ("a.xyz", torch.ones(8), "cannot write 'a.xyz' as sound; the suffix must be one of .wav, .flac, .ogg"),
        ("a.wav", torch.ones(0), r"at least one sample; got shape \(0,\)"),
        ("a.wav", torch.tensor([0.1, torch.nan]), "holding NaN or infinity"),
        ("a.wav", torch.ones(1, 2, 8), r"must be \(T,\) or \(C, T\).*got shape \(1, 2, 8\)"),
    ],
)
def test_what_cannot_be_written(tmp_path, name, wav, message):
    with pytest.raises(ValueError, match=message):
        write_audio(tmp_path / name, wav, 8000)
    assert not list(tmp_path.iterdir())


def faulty(container: str) -> bytes:
    whole = stored(tone(), container=container)
    return whole[: len(whole) * 2 // 3]


NAN = np.where(np.arange(8000) == 5, np.nan, tone()).astype(np.float32)
INFINITE = np.where(np.arange(8000) < 2, np.inf, tone()).astype(np.float32)
BROKEN = {
    "empty": (b"", r"is empty \(0 bytes\); give a sound file"),
    "text": (b"To be, or not to be" * 40, r"is not a sound file that can be read.*allowed: WAV, FLAC, OGG, MP3"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(500), "is not a sound file that can be read"),
    "truncated wav": (faulty("WAV"), "is cut short: it should hold 16000 bytes of sound and holds 1"),
    "truncated header": (stored(tone())[:30], "is cut short: it ends before its sound begins"),
    "truncated flac": (faulty("FLAC"), "is cut short|is not a sound file"),
    "truncated ogg": (faulty("OGG"), "is cut short: its last page is incomplete"),
    "no samples": (stored(tone()[:0]), "holds a header and 0 samples"),
    "nan": (stored(NAN, subtype="FLOAT"), "holds 1 samples that are NaN or infinite, out of 8000"),
    "infinite": (stored(INFINITE, subtype="FLOAT"), "holds 2 samples that are NaN or infinite"),
    "4 kHz": (stored(tone(0.5, 4000), 4000), "is sampled at 4000 Hz; speech needs at least 8000 Hz; record it again"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files_are_named_with_what_to_do(tmp_path, kind):
    data, message = BROKEN[kind]
    path = tmp_path / "question.wav"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"question.wav' {message}"):
        read_audio(path)
    with pytest.raises(ValueError, match="the given audio"):
        read_audio(data)
    assert path.read_bytes() == data


@pytest.mark.parametrize("container", ["WAV", "FLAC", "OGG"])
@pytest.mark.parametrize("part", [0.05, 0.3, 0.5, 0.9, 0.99])
def test_a_file_cut_anywhere_is_noticed(container, part):
    data = stored(tone(2.0), container=container)
    with pytest.raises(ValueError, match=r"cut short|not a sound file"):
        read_audio(data[: int(len(data) * part)])


def test_a_recorder_that_streams_leaves_no_length():
    """ffmpeg writes 0xFFFFFFFF where it cannot go back to fill in the size: that is not a truncated file."""
    data = bytearray(stored(tone()))
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", 0xFFFFFFFF)
    data[4:8] = struct.pack("<I", 0xFFFFFFFF)
    wav, _ = read_audio(bytes(data))
    assert len(wav) == 8000


def headed(riff: int, counted: int, samples: np.ndarray, behind: bytes = b"", subtype: str | None = None) -> bytes:
    """A WAV file whose header says what it likes."""
    data = bytearray(stored(samples, subtype=subtype))
    at = data.index(b"data") + 4
    data[4:8], data[at : at + 4] = struct.pack("<I", riff), struct.pack("<I", counted)
    return bytes(data) + behind


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
@pytest.mark.parametrize("riff", [0, 8, 36])
def test_a_recorder_that_still_runs_counts_nothing(riff, subtype):
    data = headed(riff, 0, tone(), subtype=subtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wav, _ = read_audio(data)
        assert duration(data) == 0.5
    assert np.allclose(wav.numpy(), tone(), atol=1e-4) and len(wav) == 8000
    assert len(read_audio(data[:-3])[0]) == 7999 - (subtype == "PCM_16")  # in the middle of a sample


def test_a_header_that_lags_behind_is_told(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(headed(36 + 32000, 32000, tone(3)))
    lags = "a.wav' holds 96000 bytes of sound and its header counts 32000, as of a recording that goes on; all that is"
    for read in (lambda: len(read_audio(path)[0]) / 16000, lambda: duration(path)):
        with pytest.warns(UserWarning, match=lags):
            assert read() == 3


LIST = b"LIST" + struct.pack("<I", 400) + b"INFOINAM"  # cut short
BEHIND = {"list": LIST, "other": b"abcd\4\0\0\0" + bytes(4), "tag": b"TAG" + b"title" * 25, "rest": b"12345"}


@pytest.mark.parametrize("kind", BEHIND)
def test_what_follows_the_sound_is_no_sound(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = headed(36 + 16000, 16000, tone())
        for behind in (BEHIND[kind], bytes(999)):
            assert duration(data + behind) == 0.5 and len(read_audio(data + behind)[0]) == 8000
        odd = headed(36 + 15999, 15999, tone())
        for one in (odd + BEHIND[kind], odd[:-1] + BEHIND[kind]):  # padded, and not
            assert duration(one) == 7999 / 16000 and len(read_audio(one)[0]) == 7999
    with pytest.raises(ValueError, match="holds a header and 0 samples"):
        read_audio(headed(36, 0, tone()[:0], BEHIND[kind]))


def test_a_file_that_has_only_begun_is_empty(tmp_path):
    with WavWriter(tmp_path / "a.wav", 16000) as file:
        with pytest.raises(ValueError, match="holds a header and 0 samples"):
            read_audio(file.part)
        file.file.seek(0, 2)
        file.file.write(bytes(100) + b"\x11" * 900)  # samples first, then the header
        file.file.flush()
        assert len(read_audio(file.part)[0]) == 500 and duration(file.part) == 500 / 16000


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(ValueError, match=r"nothing.wav' does not exist; give the path of a sound file"):
        read_audio(tmp_path / "nothing.wav")
    with pytest.raises(ValueError, match="is a folder; give one sound file"):
        read_audio(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        duration(tmp_path / "nothing.wav")
    with pytest.raises(ValueError, match="not a sound file"):
        duration(b"hello" * 100)


def test_unknown_channel_choice():
    with pytest.raises(ValueError, match="channel must be 'first' or 'mean', got 'left'"):
        read_audio(stored(tone()), channel="left")


def test_silence_is_read_with_a_warning():
    with pytest.warns(UserWarning, match="is silent: its loudest sample is below 0.0001 of full scale"):
        wav, _ = read_audio(stored(np.zeros(8000, np.float32)))
    assert len(wav) == 8000 and silent(wav)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not silent(read_audio(stored(tone()))[0])


def test_without_soundfile_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "soundfile", None)
    with pytest.raises(ImportError, match=r"pip install 'gamut\[audio\]'"):
        read_audio(b"RIFF")
