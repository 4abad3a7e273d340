"""Public sets of speech: read from ``$GAMUT_DATA``, or, where that is not set, from the checkout; never fetched."""

import json

from gamut.data.sources import Clip, Speech
from gamut.io import fsdd
from gamut.io.env import ROOT
from gamut.io.media import read_audio

COFFEE = "crowd-sourced spoken coffee orders (Picovoice speech-to-intent benchmark; Apache-2.0)"


def coffee(rate: int | None = None) -> Speech:
    """530 spoken coffee orders of over 50 people, 16 kHz: no transcript; ``labels`` hold ``intent`` and ``slots``."""
    rows = _parquet("coffee_commands_16k.parquet")

    def read(i: int) -> Clip:
        wav, found = read_audio(rows[i]["opus"], rate)
        labels = {"intent": rows[i]["intent"], "slots": json.loads(rows[i]["slots"])}
        return Clip(wav, found, "", name=str(rows[i]["id"]), labels=labels)

    return Speech("coffee orders", COFFEE, "Apache-2.0", read, range(len(rows)))


def ljspeech(rate: int | None = None) -> Speech:
    """Eight sentences of LJ Speech, one reader, 22.05 kHz; ``text`` is the normalised transcript."""
    rows = _parquet("ljspeech_8.parquet")

    def read(i: int) -> Clip:
        wav, found = read_audio(rows[i]["flac"], rate)
        return Clip(wav, found, rows[i]["text_norm"], "LJ", str(rows[i]["id"]), {"raw": rows[i]["text"]})

    return Speech("LJ Speech, 8 sentences", "LJ Speech, recordings of one reader", "public domain", read,
                  range(len(rows)))


def _parquet(name: str) -> list[dict]:
    root = fsdd.data_root()
    file = (root or ROOT / "data") / "speech" / name
    if not file.exists():
        raise FileNotFoundError(f"speech/{name} is not under GAMUT_DATA ({root or 'not set'}), and it is not fetched "
                                f"from elsewhere; set GAMUT_DATA to the folder that holds it")
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("Parquet files need pyarrow; run: pip install pyarrow") from error
    return pyarrow.parquet.read_table(file).to_pylist()
