"""Sound files in and out, and the resampler every model path uses.

T samples · C channels · J output samples of one period · K taps
Files go through soundfile (``pip install gamut[audio]``); every fault a user's file can have is named here.
"""

import functools
import io
import math
import struct
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gamut.io.files import atomic_write

MIN_RATE = 8000  # telephone speech; below it the consonants' energy (2-4 kHz) is gone and no speech model here helps
SILENCE = 1e-4  # peak of full scale (-80 dB)
CHUNKS = (b"LIST", b"id3 ", b"fact", b"cue ", b"smpl", b"bext", b"PEAK", b"iXML", b"_PMX", b"JUNK", b"PAD ")
SUBTYPES = {".wav": ("WAV", "PCM_16"), ".flac": ("FLAC", "PCM_16"), ".ogg": ("OGG", "VORBIS")}


def soundfile() -> ModuleType:
    """The soundfile module, or an error that names the extra.

    Raises:
        ImportError: if soundfile (or libsndfile) is not installed.
    """
    try:
        import soundfile
    except (ImportError, OSError) as error:
        raise ImportError(f"sound files need soundfile, which does not load here ({error}); "
                          f"run: pip install 'gamut[audio]'") from error
    return soundfile


def read_audio(
    source: str | Path | bytes, rate: int | None = None, channel: str = "first"
) -> tuple[Float[Tensor, " T"], int]:
    """Read one sound file as a single channel.

    Args:
        source: a path, or the bytes of a file. WAV, FLAC, OGG (Vorbis, Opus), MP3, AIFF and what else libsndfile reads.
        rate: resample to this many Hz; None keeps the file's own rate.
        channel: ``first`` of any number of channels (as Step-Audio 2 does), or their ``mean``.
    Returns:
        wav: float32, full scale is [-1, 1].
        rate: Hz of ``wav``.
    Raises:
        ValueError: missing file, folder, no bytes, not sound, cut short, no samples, NaN or infinity, under 8 kHz.
        ImportError: if soundfile is missing.
    Silent sound is returned as it is, with a warning; so is all of a WAV file whose header lags behind it.
    """
    if channel not in ("first", "mean"):
        raise ValueError(f"channel must be 'first' or 'mean', got {channel!r}")
    sf = soundfile()
    data, name = _bytes(source)
    missing = _missing(data)
    try:
        with sf.SoundFile(io.BytesIO(data)) as file:
            found, frames = file.samplerate, file.frames
            if found < MIN_RATE:
                raise ValueError(f"{name} is sampled at {found} Hz; speech needs at least {MIN_RATE} Hz; record it "
                                 f"again (raising the rate of the file does not bring the lost sound back)")
            blocks = file.blocks(1 << 20, dtype="float32", always_2d=True)  # both channels of all of it would be large
            wav_T = torch.cat([_mono(torch.from_numpy(block), channel) for block in blocks] or [torch.zeros(0)])
    except sf.LibsndfileError as error:
        if missing:
            raise ValueError(f"{name} is cut short: {missing}; copy or record it again") from error
        raise _no_sound(name, error) from error
    if missing or len(wav_T) < frames:
        raise ValueError(f"{name} is cut short: {missing or 'its header promises more sound than it holds'}; "
                         f"{len(wav_T) / found:.2f} s can be read; copy or record it again")
    if not len(wav_T):
        raise ValueError(f"{name} holds a header and 0 samples; record it again")
    if not wav_T.isfinite().all():
        bad = (~wav_T.isfinite()).sum().item()
        raise ValueError(f"{name} holds {bad} samples that are NaN or infinite, out of {len(wav_T)}; write it again "
                         f"from a clean source")
    if silent(wav_T):
        warnings.warn(f"{name} is silent: its loudest sample is below {SILENCE:g} of full scale", stacklevel=2)
    return resample(wav_T, found, rate or found), rate or found


def _no_sound(name: str, error: Any) -> ValueError:
    return ValueError(f"{name} is not a sound file that can be read ({error.error_string.strip()}); allowed: WAV, "
                      f"FLAC, OGG, MP3; convert it first, e.g. ffmpeg -i FILE out.wav")  # fmt: skip


def _mono(wav_TC: Float[Tensor, "T C"], channel: str) -> Float[Tensor, " T"]:
    return wav_TC[:, 0].clone() if channel == "first" else wav_TC.mean(1)


def one_channel(wav: Any) -> Float[Tensor, " T"]:
    """Samples in memory as ``read_audio`` gives them, of a tensor or array (T,) or (1, T).

    Raises:
        ValueError: several channels, integers, NaN or infinity.
    """
    try:
        wav = torch.as_tensor(wav)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"sound is a tensor or an array of samples, got {type(wav).__name__}") from error
    given, wav = tuple(wav.shape), wav[0] if wav.ndim == 2 and len(wav) == 1 else wav
    if wav.ndim != 1:
        raise ValueError(f"sound has one channel, (samples,) or (1, samples); got {given}")
    if not wav.is_floating_point():
        raise ValueError(f"samples are floats, full scale is [-1, 1]; got {wav.dtype} (divide int16 by 32768)")
    if not wav.isfinite().all():
        raise ValueError(f"sound holds NaN or infinite samples, {(~wav.isfinite()).sum().item()} of {len(wav)}")
    return wav.float().cpu()


def silent(wav: Float[Tensor, "*B T"]) -> bool:
    """Whether every sample is below -80 dB of full scale."""
    return not wav.numel() or wav.abs().amax().item() < SILENCE


def _bytes(source: str | Path | bytes) -> tuple[bytes, str]:
    """The bytes, with all their samples counted, and a name for messages."""
    if isinstance(source, bytes):
        data, name = source, "the given audio"
    else:
        path = Path(source)
        name = f"'{path}'"
        if path.is_dir():
            raise ValueError(f"{name} is a folder; give one sound file, or read all with gamut.data.folders.folder")
        if not path.exists():
            raise ValueError(f"{name} does not exist; give the path of a sound file (WAV, FLAC, OGG, MP3)")
        data = path.read_bytes()
    if not data:
        raise ValueError(f"{name} is empty (0 bytes); give a sound file (WAV, FLAC, OGG, MP3)")
    return _counted(data, name), name


def _sound(data: bytes) -> tuple[int, int] | None:
    """Where the samples of a WAV file begin, and how many bytes its header says they are; None if it has none."""
    at = 12
    while at + 8 <= len(data):
        size = struct.unpack_from("<I", data, at + 4)[0]
        if data[at : at + 4] == b"data":
            return at + 8, size
        at += 8 + size + size % 2
    return None


def _is_chunk(data: bytes, at: int) -> bool:
    """Whether a part of a RIFF file begins there, or a tag that players put behind it, or nothing: no sound."""
    if len(data) < at + 8 or data[at : at + 3] in (b"TAG", b"ID3") or data[at : at + 4] in CHUNKS:
        return True
    size = struct.unpack_from("<I", data, at + 4)[0]
    return all(0x20 <= byte < 0x7F for byte in data[at : at + 4]) and at + 8 + size <= len(data)


def _counted(data: bytes, name: str) -> bytes:
    """A WAV file whose header counts the samples that are there: one that is still recorded counts none of them (no
    matter) or those of a while ago (a warning)."""
    found = _sound(data) if data[:4] == b"RIFF" and data[8:12] == b"WAVE" else None
    if not found or len(data) >= 1 << 32:
        return data
    (start, size), there = found, len(data) - found[0]
    if size >= there or any(_is_chunk(data, start + size + odd) for odd in (0, size % 2)):
        return data
    if size and not any(data[start + size :]):  # room kept for what never came
        return data
    if size:
        warnings.warn(f"{name} holds {there} bytes of sound and its header counts {size}, as of a recording that goes "
                      f"on; all that is there is read", stacklevel=4)  # fmt: skip
    sizes = struct.pack("<I", len(data) - 8), struct.pack("<I", there)
    return data[:4] + sizes[0] + data[8 : start - 4] + sizes[1] + data[start:]


def _missing(data: bytes) -> str:
    """What the container says is not there: libsndfile reads a file that was cut short without a word."""
    if data[:4] in (b"RIFF", b"RF64") and data[8:12] == b"WAVE":
        if (found := _sound(data)) is None:
            return "it ends before its sound begins"
        start, size = found
        # recorders that still run may leave the size at its maximum, or (arecord, sox) at half of that
        if 0 < size < 0x7FFFF000 and data[:4] == b"RIFF" and len(data) < start + size:
            return f"it should hold {size} bytes of sound and holds {max(0, len(data) - start)}"
        return ""
    if data[:4] == b"OggS":
        at = data.rfind(b"OggS")
        segments = data[at + 26] if at + 26 < len(data) else 255
        if len(data) < at + 27 + segments or len(data) < at + 27 + segments + sum(data[at + 27:at + 27 + segments]):
            return "its last page is incomplete"
    return ""


def write_audio(path: str | Path, wav: Float[Tensor, "*C T"], rate: int) -> Path:
    """Write a sound file whole or not at all; the suffix chooses WAV or FLAC (16 bit) or OGG (Vorbis).

    Args:
        wav: samples (T,) or channels first (C, T); full scale is [-1, 1], what lies outside is clipped.
        rate: Hz.
    Raises:
        ValueError: for another suffix, more than two axes, no samples, NaN or infinity.
    """
    path = Path(path)
    if path.suffix.lower() not in SUBTYPES:
        raise ValueError(f"cannot write {path.name!r} as sound; the suffix must be one of {', '.join(SUBTYPES)}")
    if wav.ndim not in (1, 2) or not wav.numel() or not wav.isfinite().all():
        raise ValueError(f"sound to write must be (T,) or (C, T), finite, with at least one sample; "
                         f"got shape {tuple(wav.shape)}{'' if wav.isfinite().all() else ' holding NaN or infinity'}")
    container, subtype = SUBTYPES[path.suffix.lower()]
    buffer = io.BytesIO()
    samples = wav.detach().float().cpu().clamp(-1, 1).movedim(-1, 0).numpy()
    soundfile().write(buffer, samples, rate, format=container, subtype=subtype)
    return atomic_write(path, buffer.getvalue())


def duration(source: str | Path | bytes) -> float:
    """Seconds of sound in a file, from its header.

    Raises:
        ValueError: as ``read_audio`` for a file that is missing, empty, cut short or not sound.
    """
    sf = soundfile()
    data, name = _bytes(source)
    if missing := _missing(data):
        raise ValueError(f"{name} is cut short: {missing}; copy or record it again")
    try:
        info = sf.info(io.BytesIO(data))
    except sf.LibsndfileError as error:
        raise _no_sound(name, error) from error
    return info.frames / info.samplerate


def pieces(wav: Float[Tensor, " T"], rate: int = 16000, seconds: float = 25.0) -> list[Tensor]:
    """Cut a recording as Step-Audio 2 does, into pieces of at most ``seconds``, each an audio block of its own.

    A rest too short to be heard (21 ms) is left out, where there is more than it.
    """
    parts = list(wav.split(int(seconds * rate)))
    return parts[:-1] if len(parts) > 1 and len(parts[-1]) * 1000 < 21 * rate else parts


@functools.lru_cache(maxsize=32)
def _taps(old: int, new: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """First input sample (J,) and weights (J, K) of each output sample within one period of ``old`` inputs."""
    with torch.inference_mode(False):  # a cached inference tensor could not take part in a later backward pass
        zeros, rolloff = 6, 0.99
        cutoff = min(old, new) * rolloff  # in units of the reduced rates
        reach = math.ceil(zeros * old / cutoff)
        start_J = torch.arange(new) * old // new - reach
        input_JK = start_J[:, None] + torch.arange(2 * reach + 2)
        # times in float32, as the released pipelines computed them: float64 differs from the fixture by 1e-5
        time_JK = (input_JK / old - (torch.arange(new) / new)[:, None]) * cutoff
        phase_JK = time_JK.clamp(-zeros, zeros)
        weight_JK = torch.sinc(phase_JK) * torch.cos(phase_JK * math.pi / (2 * zeros)) ** 2 * cutoff / old
        return start_J.to(device), weight_JK.to(device, dtype)


def resample(wav: Float[Tensor, "*B T"], old: int, new: int) -> Float[Tensor, "*B U"]:
    """Change the sampling rate with a Hann-windowed sinc: 6 zero crossings, cut-off at 0.99 of the lower Nyquist.

    Args:
        wav: samples on the last axis, any leading axes; float32 or float64.
        old, new: rates in Hz.
    Returns:
        ceil(T * new / old) samples. Differentiable; rows do not influence each other.
    Raises:
        ValueError: for rates that are not positive integers.
    Source: torchaudio's default rule (sinc_interp_hann, width 6, rolloff 0.99), which the released models were trained
        behind; fixture audio_frontends. Only the taps inside the window are stored, so unrelated rates stay small.
    """
    if int(old) != old or int(new) != new or old <= 0 or new <= 0:
        raise ValueError(f"sampling rates must be positive whole numbers of Hz, got {old} and {new}")
    if old == new or wav.shape[-1] == 0:
        return wav
    common = math.gcd(int(old), int(new))
    old, new = int(old) // common, int(new) // common
    length = -(-wav.shape[-1] * new // old)
    start_J, weight_JK = _taps(old, new, wav.dtype, wav.device)
    taps, left = weight_JK.shape[1], -int(start_J[0])
    periods = -(-length // new)
    right = (periods - 1) * old + int(start_J[-1]) + taps - wav.shape[-1]
    padded = torch.nn.functional.pad(wav, (left, max(0, right)))
    windows = padded.unfold(-1, taps, 1)
    row_PJ = torch.arange(periods, device=wav.device)[:, None] * old + start_J + left
    out = []
    for rows in row_PJ.split(max(1, (1 << 22) // weight_JK.numel())):  # bounds the gathered copy to 16 MB a row
        taken = windows.index_select(-2, rows.flatten()).unflatten(-2, rows.shape)
        out.append(torch.einsum("...pjk,jk->...pj", taken, weight_JK))
    return torch.cat(out, -2).flatten(-2)[..., :length]
