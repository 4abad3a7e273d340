"""Parity of hearing: front-ends, Whisper's and Qwen2-Audio's encoders, Step-Audio 2."""

import re
from dataclasses import asdict

import torch

from gamut.codecs import mel
from gamut.codecs.fbank import fbank
from gamut.codecs.vocoder_mel import vocoder_mel
from gamut.evals.fixtures import Fixture, Ours, below
from gamut.io.folders import load_strict
from gamut.io.keys import step_audio_2 as keys
from gamut.io.media import resample
from gamut.models.audio_encoder import AudioEncoder, AudioEncoderConfig
from gamut.models.omni import Omni, OmniConfig


def run_encoder(fixture: Fixture) -> dict[str, Ours]:
    """Whisper (fixed length) and Qwen2-Audio (mel_lengths; rows end at output_lengths)."""
    encoder = AudioEncoder(AudioEncoderConfig.from_dict(keys.encoder_config_from_official(fixture.config)))
    load_strict(encoder.eval(), keys.encoder_to_ours(fixture.weights), fixture.path)
    mels, lens = fixture.inputs["input_features"], fixture.inputs.get("mel_lengths")
    hidden, counts = encoder(mels, lens)
    if lens is None:
        return {"embeddings": Ours(encoder.embed(mels)), "last_hidden_state": Ours(hidden)}
    where = below(counts, hidden.shape[1])
    return {"last_hidden_state": Ours(hidden, where), "output_lengths": Ours(counts)}


def run_step_audio_2(fixture: Fixture) -> dict[str, Ours]:
    """Encoder and adaptor rows count below their lengths, logits where the mask is 1."""
    model, given = Omni(OmniConfig.from_dict(keys.config_from_official(fixture.config))), fixture.inputs
    load_strict(model.eval(), keys.to_ours(fixture.weights, asdict(model.config)), fixture.path)
    ids, mask = given["input_ids"], given["attention_mask"]
    clips = given["mels"], given["mel_lens"]
    encoded, encoded_len = model.encoder(*clips)
    adapted, adapted_len = model.features(*clips)
    return {
        "encoder": Ours(encoded, below(encoded_len, encoded.shape[1])),
        "encoder_len": Ours(encoded_len),
        "adapter": Ours(adapted, below(adapted_len, adapted.shape[1])),
        "adapter_len": Ours(adapted_len),
        "inputs_embeds": Ours(model.embed(ids, *clips)),
        "logits": Ours(model(ids, *clips, mask_BT=mask), mask.bool()[..., None]),
    }


def run_frontends(fixture: Fixture) -> dict[str, Ours]:
    """Inputs are called wavKHZ or wavKHZ_NAME; resample_P_Q reads the one recorded at P Hz."""
    given, ours = fixture.inputs, {}
    mels = fixture.config.get("sa2", {}).get("n_mels", 128)
    names = sorted(name.removeprefix("wav16") for name in given if name.startswith("wav16"))
    heard = {name: mel.step_audio_2_mel(given[f"wav16{name}"], mels) for name in names}
    for name, value in heard.items():
        wav = given[f"wav16{name}"]
        ours |= {f"sa2_log_mel{name}": Ours(value), f"s3_log_mel{name}": Ours(mel.whisper_mel(wav))}
        ours |= {f"fbank80{name}": Ours(fbank(wav)), f"fbank80_centered{name}": Ours(fbank(wav, centred=True))}
    if heard:
        padded, lens = mel.pad_mels(list(heard.values()))
        ours |= {"sa2_padded": Ours(padded), "sa2_mel_len": Ours(lens)}
    if "sa2_token_num_frames" in given:
        counts = [mel.patches(frames) for frames in given["sa2_token_num_frames"].tolist()]
        ours["sa2_token_num"] = Ours(torch.tensor(counts))
    for name in fixture.outputs:
        if kilohertz := re.fullmatch(r"mel(2[24])", name):
            c = fixture.config[name]
            top = None if c["fmax"] is None else float(c["fmax"])
            value = vocoder_mel(
                given[f"wav{kilohertz[1]}"][None], rate=c["sampling_rate"], n_fft=c["n_fft"], hop=c["hop"],
                mels=c["num_mels"], fmin=float(c["fmin"]), fmax=top, win=c.get("win"),
            )  # fmt: skip
            ours[name] = Ours(value)
        elif rates := re.fullmatch(r"resample_(\d+)_(\d+)", name):
            old, new = map(int, rates.groups())
            ours[name] = Ours(resample(given[f"wav{old // 1000}"], old, new))
    return ours
