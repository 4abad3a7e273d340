"""Your own speech: a folder with sound files and one file of transcripts."""

from pathlib import Path

from gamut.data.sources import Clip, Speech
from gamut.io.listing import listed
from gamut.io.media import read_audio


def folder(path: str | Path, rate: int | None = None, *, origin: str = "", licence: str = "not stated") -> Speech:
    """Your own recordings: a folder with sound files and one file of transcripts.

    Args:
        path: holds transcripts.csv or .tsv (a header with a file and a text column), transcripts.jsonl (the same as
            keys), or metadata.csv as in LJ Speech (``id|raw text|normalised text``, no header; or with a header and
            commas). Files are named relative to the folder or its ``wavs``, suffix optional. Columns ``speaker`` and
            others are kept.
        rate: resample to this many Hz; None keeps each file's own.
        origin: what reports say about the recordings; default names the folder.
    Raises:
        ValueError: no folder, no or an empty transcript file, one that is not UTF-8; a line without file or text, with
            an open quote or too many columns, or that names a missing clip: all of them at once, before sound is read.
    """
    path, rows = Path(path), listed(path)

    def read(i: int) -> Clip:
        file, text, labels = rows[i]
        wav, found = read_audio(file, rate)
        return Clip(wav, found, text, str(labels.get("speaker", "")), file.stem, labels)

    return Speech(path.name, origin or f"recordings in {path}", licence, read, range(len(rows)))
