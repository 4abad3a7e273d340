"""Your own speech: a folder with sound files and one file of transcripts."""

import csv
import json
from pathlib import Path
from typing import Any

from gamut.data.sources import Clip, Speech
from gamut.io.media import read_audio

TRANSCRIPTS = ("transcripts.csv", "transcripts.tsv", "transcripts.jsonl", "metadata.csv")
FILE_COLUMNS, TEXT_COLUMNS = ("file", "file_name", "path", "audio", "wav", "id"), ("text", "transcript", "sentence")
SUFFIXES = ("", ".wav", ".flac", ".ogg", ".mp3")


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
        ValueError: no folder, no or an empty transcript file, a line without file or text, a line that names a missing
            clip. All are found at once, by line, before any sound is read.
    """
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"'{path}' is not a folder; give one that holds sound files and {', '.join(TRANSCRIPTS)}")
    table = next((path / name for name in TRANSCRIPTS if (path / name).exists()), None)
    if table is None:
        raise ValueError(f"'{path}' holds no transcripts; allowed: {', '.join(TRANSCRIPTS)}; write one line per clip, "
                         f"e.g. transcripts.csv with the columns file,text")
    rows = [_row(path, table, line, entry) for line, entry in _entries(table)]
    if not rows:
        raise ValueError(f"'{table}' lists no clips; write one line per clip")

    def read(i: int) -> Clip:
        file, text, labels = rows[i]
        wav, found = read_audio(file, rate)
        return Clip(wav, found, text, str(labels.get("speaker", "")), file.stem, labels)

    return Speech(path.name, origin or f"recordings in {path}", licence, read, range(len(rows)))


def _entries(table: Path) -> list[tuple[int, dict[str, Any]]]:
    """Line number and columns of each line of a transcript file."""
    lines = table.read_text(encoding="utf-8-sig").splitlines(keepends=True)
    if table.suffix == ".jsonl":
        out = []
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line) if line.strip() else None
            except json.JSONDecodeError as error:
                raise ValueError(f"'{table}' line {number} is not JSON ({error.msg}); one object a line") from error
            if entry is not None and not isinstance(entry, dict):
                raise ValueError(f"'{table}' line {number} is not a JSON object but {entry!r}; write one with the "
                                 f"keys file and text")
            out += [(number, entry)] if entry else []
        return out
    if table.name == "metadata.csv" and lines and "|" in lines[0]:  # LJ Speech
        split = [(number, line.strip().split("|")) for number, line in enumerate(lines, 1) if line.strip()]
        return [(number, {"file": parts[0], "text": parts[-1] if len(parts) > 1 else ""}) for number, parts in split]
    reader = csv.DictReader(lines, delimiter="\t" if table.suffix == ".tsv" else ",")
    return [(reader.line_num, {k.strip().lower(): v for k, v in entry.items() if k}) for entry in reader]


def _row(path: Path, table: Path, line: int, entry: dict[str, Any]) -> tuple[Path, str, dict[str, Any]]:
    name = next((entry[key] for key in FILE_COLUMNS if entry.get(key)), None)
    text = next((entry[key] for key in TEXT_COLUMNS if entry.get(key) is not None), None)
    if not name or text is None:
        raise ValueError(f"'{table}' line {line} needs a file and a text, got columns {sorted(entry)}; name them "
                         f"{' or '.join(FILE_COLUMNS)}, and {' or '.join(TEXT_COLUMNS)}")
    for candidate in (base / f"{name}{suffix}" for base in (path, path / "wavs") for suffix in SUFFIXES):
        if candidate.is_file():
            return candidate, text, {k: v for k, v in entry.items() if k not in FILE_COLUMNS + TEXT_COLUMNS}
    raise ValueError(f"'{table}' line {line} names the clip '{name}', which is neither in '{path}' nor in "
                     f"'{path / 'wavs'}'; add the file, or delete the line")
