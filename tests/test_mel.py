"""Audio front-ends against the published ones, and the way back to sound."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from gamut.codecs import mel
from gamut.codecs.codec import Codec
from gamut.codecs.fbank import fbank
from gamut.codecs.griffin_lim import griffin_lim
from gamut.codecs.vocoder_mel import log_mel, mel22, mel24, vocoder_mel
from gamut.io import media
from gamut.io.media import resample

SMALL = {"rate": 8000, "n_fft": 256, "hop": 80}


@pytest.fixture
def front(golden):
    return load_file(golden / "audio_frontends.safetensors")


def assert_near(got, want, tolerance):
    assert got.shape == want.shape
    assert (got - want).abs().max() <= tolerance


def test_step_audio_2_front_end(front):
    long, short = (mel.step_audio_2_mel(front[key]) for key in ("in.wav16", "in.wav16_short"))
    assert_near(long, front["out.sa2_log_mel"], 1e-4)
    assert_near(short, front["out.sa2_log_mel_short"], 1e-4)
    padded, lens = mel.pad_mels([long, short])
    assert_near(padded, front["out.sa2_padded"], 1e-4)
    assert lens.tolist() == front["out.sa2_mel_len"].tolist()
    frames = front["in.sa2_token_num_frames"].tolist()
    assert [mel.patches(f) for f in frames] == front["out.sa2_token_num"].tolist()


@pytest.mark.parametrize(
    "front_end, source, target, tolerance",
    [
        (mel.whisper_mel, "wav16", "s3_log_mel", 1e-4),
        (lambda wav: mel24(wav[None]), "wav24", "mel24", 1e-3),
        (lambda wav: mel22(wav[None]), "wav22", "mel22", 1e-3),
        (fbank, "wav16", "fbank80", 1e-3),
        (lambda wav: fbank(wav, centred=True), "wav16", "fbank80_centered", 1e-3),
    ],
)
def test_other_front_ends(front, front_end, source, target, tolerance):
    assert_near(front_end(front[f"in.{source}"]), front[f"out.{target}"], tolerance)


RATES = [(16000, 24000, "wav16"), (22050, 16000, "wav22"), (24000, 16000, "wav24")]


@pytest.mark.parametrize("old, new, source", RATES)
def test_resampler(front, old, new, source):
    assert_near(resample(front[f"in.{source}"], old, new), front[f"out.resample_{old}_{new}"], 1e-5)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([8000, 11025, 16000, 22050, 44100]), st.sampled_from([8000, 16000, 24000, 15999]),
       st.integers(1, 3000))
def test_resampled_length_and_tone(old, new, samples):
    """Lengths round up; a tone well inside both bands keeps its frequency."""
    tone = torch.sin(2 * math.pi * 440 * torch.arange(samples, dtype=torch.float64) / old)
    out = resample(tone, old, new)
    assert len(out) == -(-samples * new // old)
    margin = 20 * max(1, new // old + 1)
    wanted = torch.sin(2 * math.pi * 440 * torch.arange(len(out), dtype=torch.float64) / new)
    if len(out) > 2 * margin:
        assert (out - wanted)[margin:-margin].abs().max() < 0.02


def test_resampler_rows_and_gradient():
    wav = torch.randn(3, 2, 500, requires_grad=True)
    out = resample(wav, 44100, 16000)
    assert torch.allclose(out[1, 0], resample(wav[1, 0], 44100, 16000), atol=1e-6)
    out.sum().backward()
    assert wav.grad is not None and wav.grad.abs().min() > 0


@pytest.mark.parametrize("rate", [0, -8000])
def test_resampler_refuses_impossible_rates(rate):
    with pytest.raises(ValueError, match=f"positive whole numbers of Hz, got 8000 and {rate}"):
        resample(torch.zeros(10), 8000, rate)


def test_patch_table():
    """Check values of the fact sheet, in seconds of 16 kHz sound."""
    table = {0.08: 1, 0.5: 6, 1: 13, 2: 25, 5: 63, 10: 125, 25: 313, 29.98: 375}
    for seconds, count in table.items():
        frames = mel.step_audio_2_mel(torch.zeros(round(seconds * 16000)) + 0.1).shape[-1]
        assert frames == (round(seconds * 16000) + 479) // 160
        assert mel.patches(frames) == count, seconds


def test_pieces_cover_the_recording():
    wav = torch.arange(60 * 16000.0)
    parts = media.pieces(wav)
    assert [len(part) / 16000 for part in parts] == [25, 25, 10]
    assert torch.equal(torch.cat(parts), wav)
    assert [len(part) for part in media.pieces(wav[: 25 * 16000])] == [25 * 16000]


def test_shorter_mels_end_in_zeros():
    a, b = torch.ones(4, 10), torch.ones(4, 7)
    stacked, lens = mel.pad_mels([a, b])
    assert stacked.shape == (2, 4, 10) and lens.tolist() == [8, 5] and stacked[1, :, 7:].abs().sum() == 0
    with pytest.raises(ValueError, match="at least one log-mel"):
        mel.pad_mels([])


def test_a_batch_padded_by_zeros_equals_single_clips():
    """Why clips may be batched before the front-end: 479 zeros already stand behind each."""
    clips = [torch.randn(n) * 0.1 for n in (1600, 1999, 401)]
    batch = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    together = mel.step_audio_2_mel(batch)
    for row, clip in zip(together, clips, strict=True):
        alone = mel.step_audio_2_mel(clip)
        assert torch.allclose(row[:, : alone.shape[-1]], alone, atol=1e-6)


def test_frame_counts():
    wav = torch.randn(2, 12345) * 0.1
    assert mel.whisper_mel(wav).shape == (2, 128, 77)
    assert mel24(wav).shape == (2, 80, 25)
    assert mel22(wav).shape == (2, 80, 48)
    assert fbank(wav).shape == (2, 75, 80)
    assert log_mel(wav, mels=64, **SMALL).shape == (2, 64, 154)


@pytest.mark.parametrize("samples", [1, 80, 81, 129, 200])
def test_the_shortest_sounds(samples):
    assert mel.step_audio_2_mel(torch.zeros(samples)).isfinite().all()
    if samples >= 80:
        assert log_mel(torch.zeros(samples), mels=64, **SMALL).shape == (64, samples // 80)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: mel.whisper_mel(torch.zeros(100)), "at least 160 samples.*got 100"),
        (lambda: fbank(torch.zeros(100)), "at least 400 samples.*got 100"),
        (lambda: log_mel(torch.zeros(79), mels=64, **SMALL), "at least one hop of 80 samples, got 79"),
        (lambda: mel.mel_filters(8000, 256, 64, 0.0, 5000.0), "fmax <= 4000 Hz"),
        (lambda: mel.mel_filters(8000, 256, 64, scale="bark"), "scale must be 'slaney', 'htk' or 'kaldi', got 'bark'"),
    ],
)
def test_what_cannot_be_a_mel_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_htk_filters_have_height_one_at_their_centres():
    filters = mel.mel_filters(16000, 16384, 20, scale="htk")
    assert filters.amax(1).min() > 0.98 and filters.amax() <= 1
    area = mel.mel_filters(16000, 16384, 20).sum(1) * 16000 / 16384
    assert torch.allclose(area, torch.ones(20), atol=1e-3)  # slaney: equal areas


def test_cached_filters_serve_inference_then_training():
    """A filterbank first made under inference_mode must not break a later backward pass."""
    mel.mel_filters.cache_clear()
    wav = torch.randn(1000, requires_grad=True)
    with torch.inference_mode():
        log_mel(torch.randn(1000), mels=40, **SMALL)
        fbank(torch.randn(1000))
        resample(torch.randn(1000), 8000, 12000)
    log_mel(resample(wav, 8000, 12000), mels=40, **SMALL).sum().backward()
    assert wav.grad.isfinite().all()


def test_front_ends_from_many_threads():
    wav = torch.randn(4000) * 0.1
    with ThreadPoolExecutor(8) as pool:
        mel.mel_filters.cache_clear()
        results = list(pool.map(lambda _: mel.step_audio_2_mel(wav), range(32)))
    assert all(torch.equal(result, results[0]) for result in results)
    assert mel.mel_filters.cache_info().currsize <= 64


def voiced(seconds: float = 1.0, rate: int = 8000) -> torch.Tensor:
    """A gliding buzz through two formants: voiced speech as far as a spectrogram is concerned."""
    time = np.arange(int(seconds * rate)) / rate
    phase = 2 * np.pi * np.cumsum(120 + 40 * np.sin(3 * time)) / rate
    buzz = sum(np.sin(k * phase) * np.exp(-((k * 130 - f) / 300) ** 2) for k in range(1, 25) for f in (500, 1500))
    return torch.from_numpy((buzz / np.abs(buzz).max() * 0.5 * np.sin(np.pi * time / seconds)).astype(np.float32))


def test_griffin_lim_inverts_the_mel():
    wav = voiced()
    target = log_mel(wav, mels=64, **SMALL)
    sound = griffin_lim(target, **SMALL)
    assert sound.shape == wav.shape
    error = (log_mel(sound, mels=64, **SMALL) - target).abs()[target > -4].mean()
    plain = griffin_lim(target, momentum=0.0, **SMALL)
    assert error < 0.12
    assert error < (log_mel(plain, mels=64, **SMALL) - target).abs()[target > -4].mean()


def test_griffin_lim_rows_do_not_depend_on_their_batch():
    target = log_mel(torch.stack([voiced(0.5), voiced(0.5).flip(0)]), mels=64, **SMALL)
    both, one = griffin_lim(target, iterations=8, **SMALL), griffin_lim(target[1], iterations=8, **SMALL)
    assert torch.allclose(both[1], one, atol=1e-4)
    other = griffin_lim(target[1], iterations=8, seed=1, **SMALL)
    assert not torch.allclose(other, one, atol=1e-2)


def test_griffin_lim_of_silence_is_silent():
    target = log_mel(torch.zeros(2000), mels=64, **SMALL)
    assert griffin_lim(target, **SMALL).abs().max() < 1e-3


def test_a_codec_is_recognised_by_its_parts():
    class Half:
        stride, channels, vocab, causal = (2,), 1, None, True
        encode = decode = streaming = lambda self, x: x

    assert isinstance(Half(), Codec) and not isinstance(object(), Codec)


def test_a_shorter_window_and_the_full_band():
    wav, sizes = torch.randn(1, 4800) * 0.1, {"rate": 24000, "n_fft": 1920, "hop": 480}
    plain = vocoder_mel(wav, **sizes)
    assert torch.equal(vocoder_mel(wav, win=1920, **sizes), plain)
    short, full = vocoder_mel(wav, win=960, **sizes), vocoder_mel(wav, fmax=None, **sizes)
    assert short.shape == full.shape == plain.shape and not torch.allclose(short, plain, atol=0.1)
    assert torch.equal(full, vocoder_mel(wav, fmax=12000.0, **sizes))
