"""Synthetic speech from espeak-ng: what trains when there is neither a recording nor a network. Never a stand-in for
people in a claim: whatever uses it carries ``ORIGIN``.
"""

import ctypes
import functools
import importlib.util
import threading

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gamut.io.media import resample

ORIGIN = "espeak-ng synthetic voices, not recordings of people"
VOICES = ("en-us", "en-us+f2", "en+m3", "en-gb-scotland+f4", "en-us+m7", "en+f5")  # stand in for six speakers
_LOCK = threading.Lock()  # libespeak-ng has one voice per process
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
_SYNCHRONOUS, _UTF8, _SPEED, _PITCH, _DEFAULT_SPEED = 2, 1, 1, 3, 175  # from espeak-ng's speak_lib.h


@functools.cache
def _library() -> tuple[ctypes.CDLL, int]:
    """libespeak-ng, initialised, and its sampling rate in Hz."""
    data = None
    if importlib.util.find_spec("espeakng_loader"):
        import espeakng_loader

        names, data = [espeakng_loader.get_library_path()], espeakng_loader.get_data_path().encode()
    else:
        names = ["libespeak-ng.so.1", "libespeak-ng.dylib", "libespeak-ng.dll"]
    for name in names:
        try:
            library = ctypes.CDLL(str(name))
        except OSError:
            continue
        rate = library.espeak_Initialize(_SYNCHRONOUS, 0, data, 0)
        if rate > 0:
            return library, rate
    raise ImportError("synthetic speech needs espeak-ng, which is not installed; "
                      "run: pip install 'gamut[voice]' (or: apt install espeak-ng)")


def say(text: str, *, rate: int, voice: str = "en-us", speed: float = 1.0, pitch: int = 50) -> Float[Tensor, " T"]:
    """Speak a text.

    Args:
        rate: Hz of the result. voice: an espeak-ng name, with an optional ``+variant``.
        speed: 1 is 175 words a minute. pitch: 0 to 99.
    Returns:
        wav in [-1, 1], silence at both ends removed. Saying it again differs a little: espeak-ng keeps a state from
        call to call that no seed resets, so what must repeat is stored.
    Raises:
        ImportError: if espeak-ng is not installed. ValueError: for a voice it does not know, or a text without sound.
    """
    library, native = _library()
    parts: list[np.ndarray] = []

    @_CALLBACK
    def take(samples, count, _events) -> int:
        if samples and count:
            parts.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    with _LOCK:
        if library.espeak_SetVoiceByName(voice.encode()):
            raise ValueError(f"espeak-ng has no voice {voice!r}; used here: {', '.join(VOICES)}; "
                             f"list all: espeak-ng --voices")
        library.espeak_SetSynthCallback(take)
        library.espeak_SetParameter(_SPEED, round(_DEFAULT_SPEED * speed), 0)
        library.espeak_SetParameter(_PITCH, pitch, 0)
        data = text.encode() + b"\0"
        library.espeak_Synth(data, ctypes.c_size_t(len(data)), 0, 1, 0, _UTF8, None, None)
        library.espeak_Synchronize()
    wav = torch.from_numpy(np.concatenate(parts).astype(np.float32)) / 32768 if parts else torch.zeros(0)
    loud = (wav.abs() > 1e-2).nonzero()
    if not len(loud):
        raise ValueError(f"espeak-ng says nothing for {text!r}; give a text with words in it")
    return resample(wav[int(loud[0]):int(loud[-1]) + 1], native, rate)
