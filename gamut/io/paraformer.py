"""The linguistic half of the released Step-Audio-Tokenizer folder -> one folder of ours.

    linguistic_tokenizer.npy                               centroids
    dengcunqin/…-online/{config.yaml, am.mvn, model.pt}    FunASR's streaming Paraformer, of which the encoder is used
    speech_tokenizer_v1.onnx                               the semantic half: `gamut convert` that file on its own

Source: fact sheet step_audio §2.2, §8. The folder was not at hand; the layout of its files is FunASR's.
"""

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import gamut
from gamut.io.folders import save_folder
from gamut.io.keys import linguistic as keys
from gamut.io.pickles import unpickled
from gamut.io.token2wav import read_yaml

CENTROIDS, NEEDED = "linguistic_tokenizer.npy", ("config.yaml", "am.mvn", "model.pt")


def looks(folder: Path) -> bool:
    """Whether a folder has the centroids of a linguistic tokenizer."""
    return (folder / CENTROIDS).is_file()


def convert(src: Path, dst: Path) -> Path:
    """Write ``dst``: `LinguisticTokenizer.from_pretrained(dst)` loads it. Dither, if the config asks for any, is left
    out: tokens of one sound are the same each time.

    Raises:
        ValueError: no recogniser's folder inside, or files that do not fit together.
    """
    inner = next((file.parent for file in sorted(src.rglob("am.mvn"))), src)
    if lost := [name for name in NEEDED if not (inner / name).is_file()]:
        raise ValueError(f"'{inner}' has no {', '.join(lost)}; the folder of the streaming Paraformer belongs inside "
                         f"'{src}', download it again")
    stored = read_yaml(inner / "config.yaml")
    front = dict(stored.get("frontend_conf") or {}) if isinstance(stored, dict) else {}
    official = {"encoder_conf": stored.get("encoder_conf") if isinstance(stored, dict) else None,
                "frontend_conf": front | {"dither": 0.0}}  # fmt: skip
    tensors = {name: t for name, t in unpickled(inner / "model.pt").items() if name.startswith("encoder.")}
    tensors["cmvn"] = read_cmvn(inner / "am.mvn")
    tensors["centroids"] = torch.from_numpy(np.load(src / CENTROIDS)).float()
    ours, config = keys.to_ours(tensors), keys.config_from_official(official, tensors)
    keys.to_official(ours)  # raises for a name that does not belong, before anything is written
    if ours["shift"].numel() != config["mels"] * config["side"] or tensors["centroids"].shape[1] != config["width"]:
        raise ValueError(f"'{src}': {ours['shift'].numel()} numbers in am.mvn and centroids of "
                         f"{tensors['centroids'].shape[1]} do not fit {config['side']} x {config['mels']} bins and an "
                         f"encoder {config['width']} wide; download the folder again")
    card = (f"# {src.resolve().name}, converted\n\nStep-Audio's linguistic tokens: `LinguisticTokenizer.from_pretrained"
            f"(folder)`. Weights, licence and training are those of the original.\n")  # fmt: skip
    wrapped = {"gamut": gamut.__version__, "class": "LinguisticTokenizer", "config": config}
    return save_folder(dst, ours, wrapped, card=card)


def read_cmvn(file: Path) -> Tensor:
    """(2, I): what is added, then what is multiplied, of Kaldi's text of a normalisation.

    Raises:
        ValueError: another text.
    """
    text = file.read_text(errors="replace")
    rows = [re.search(rf"<{name}>[^\[]*\[([^\]]*)\]", text) for name in ("AddShift", "Rescale")]
    values = [list(map(float, row[1].split())) for row in rows if row]
    if len(values) != 2 or len(values[0]) != len(values[1]) or not values[0]:
        raise ValueError(f"'{file}' is no normalisation: it has <AddShift> and <Rescale> with as many numbers each in "
                         f"brackets, got {[len(row) for row in values]}")
    return torch.tensor(values)
