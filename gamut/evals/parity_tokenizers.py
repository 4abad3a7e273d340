"""Parity of the speech tokenizers: S3 versions 1 and 2, Step-Audio's linguistic branch."""

import math
import re

import torch
from torch import Tensor

from gamut.codecs.linguistic import LinguisticConfig, LinguisticStream, LinguisticTokenizer
from gamut.codecs.s3_tokenizer import S3Config, S3Tokenizer
from gamut.evals.fixtures import Fixture, Ours, below
from gamut.io.folders import load_strict
from gamut.io.keys import linguistic as linguistic_keys
from gamut.io.keys import s3_tokenizer as s3_keys


def run_s3(fixture: Fixture) -> dict[str, Ours]:
    """Rows count below their lengths. The fixtures' windows are those of the public package's release 0.2."""
    config = S3Config.from_dict(s3_keys.config_from_official(fixture.config, fixture.weights))
    model, given = S3Tokenizer(config).eval(), fixture.inputs
    load_strict(model, s3_keys.NAMES.to_ours(fixture.weights), fixture.path)
    hidden, counts = model.hidden(given["mel"], given["mel_len"])
    where = below(counts, hidden.shape[1])
    ids, lens = model.tokens(given["mel"], given["mel_len"], cut_tail=True)
    ours = {"hidden": Ours(hidden, where), "code": Ours(ids, where[..., 0]), "code_len": Ours(lens)}
    if "long.mel_len" in given:
        ids, lens = model.tokens(_long(fixture), given["long.mel_len"], cut_tail=True)
        ours |= {"long.code": Ours(ids, below(lens, ids.shape[1])[..., 0]), "long.code_len": Ours(lens)}
    return ours


def _long(fixture: Fixture) -> Tensor:
    """A long log-mel is stored as a tile: repeated along time, times a ramp over the whole, as config.note says."""
    given, note = fixture.inputs, fixture.config.get("note", "")
    if "long.mel" in given:
        return given["long.mel"]
    tile, ramp = given["long.mel_tile"], re.search(r"linspace\(([\d.]+), ([\d.]+), (\d+)\)", note)
    first, last, frames = ramp.groups() if ramp else (0.5, 1.5, int(given["long.mel_len"].max()))
    times = math.ceil(int(frames) / tile.shape[-1])
    return tile.repeat(1, 1, times)[..., : int(frames)] * torch.linspace(float(first), float(last), int(frames))


def run_linguistic(fixture: Fixture) -> dict[str, Ours]:
    """The waveform is fed in uneven pieces: how it is cut must not show."""
    given = fixture.inputs
    weights = fixture.weights | {name: given[name] for name in ("cmvn", "centroids")}
    config = LinguisticConfig.from_dict(linguistic_keys.config_from_official(fixture.config, weights))
    model = LinguisticTokenizer(config).eval()
    load_strict(model, linguistic_keys.to_ours(weights), fixture.path)
    stream, wav = LinguisticStream(model, keep=True), given["wav"].reshape(1, -1)
    ids = [stream.encode(piece) for piece in wav.split(5000, 1)] + [stream.flush()]
    return {
        "lfr_feats": Ours(torch.cat(stream.features, 1)),
        "encoder": Ours(torch.cat(stream.encoded, 1)),
        "code": Ours(torch.cat(ids, 1)[0]),
        "chunk_frames": Ours(torch.tensor([part.shape[1] for part in stream.features])),
    }
