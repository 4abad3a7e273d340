"""Parity of the HiFT vocoders: pitch, source, sound, and the streaming wrapper."""

import math

import torch

from gamut.codecs.hift import HiFT, HiFTConfig
from gamut.codecs.hift_stream import streaming
from gamut.evals.fixtures import Fixture, Ours
from gamut.io.folders import load_strict
from gamut.io.keys import hift as keys
from gamut.nn.vocoder import Noise


def _vocoder(fixture: Fixture) -> HiFT:
    """The fixture's model. Its noise tells which source it has: phases with a time axis are the 22.05 kHz one's."""
    fields = keys.config_from_official(fixture.config)
    phases = [t for name, t in fixture.inputs.items() if "noise.phase" in name]
    if phases:
        fields["smooth"] = phases[0].ndim == 2
    layers = sum(name.startswith("f0_predictor.condnet.") and name.endswith("bias") for name in fixture.weights)
    model = HiFT(HiFTConfig.from_dict(fields | {"pitch_layers": layers}))
    load_strict(model.eval(), keys.to_ours(fixture.weights, fields | {"pitch_layers": layers}), fixture.path)
    return model.fold()


def _noise(fixture: Fixture, start: str = "", end: str = "") -> Noise:
    sine, phase = (fixture.inputs[f"{start}noise.{name}{end}"] for name in ("sine", "phase"))
    if phase.ndim == 2:
        return Noise(sine, phase)
    phase = phase[..., 0] / (2 * math.pi)
    phase[:, 0] = 0
    return Noise(sine.transpose(1, 2), phase)


def run_hift(fixture: Fixture) -> dict[str, Ours]:
    """Each part alone on the fixture's inputs, then all of it with the beginning of the source replaced."""
    model, given, noise = _vocoder(fixture), fixture.inputs, _noise(fixture)
    mel = given["mel"]
    wav, source = model.decode_with_source(mel, noise, given["cache_source"][:, 0])
    return {
        "f0": Ours(model.pitch(mel)),
        "source": Ours(model.source(given["f0"], noise)[:, None]),
        "wav": Ours(model(mel, given["source"][:, 0])),
        "full.wav": Ours(wav),
        "full.source": Ours(source[:, None]),
    }


def run_hift_stream(fixture: Fixture) -> dict[str, Ours]:
    """A chunk per call; what the last call holds back belongs to its output. As int16, cut off, like the released."""
    model, c = _vocoder(fixture), fixture.config
    context = c["mel_cache_len"]
    if c["source_cache_len"] != context * model.config.hop:
        raise ValueError(f"source_cache_len must be mel_cache_len frames of {model.config.hop} samples, got "
                         f"{c['source_cache_len']} for {context}")
    count = sum(name.startswith("stream.mel.") for name in fixture.inputs)
    stream, ours = streaming(model, chunk=None, context=context), {}
    for k in range(count):
        wav = stream.decode(fixture.inputs[f"stream.mel.{k}"], _noise(fixture, "stream.", f".{k}"))
        if k == count - 1:
            wav = torch.cat([wav, stream.flush()], -1)
        ours[f"stream.pcm.{k}"] = Ours((wav[0].clamp(-1, 1) * 32767).to(torch.int16))
    return ours
