"""A folder of sound files with one table that says what is in them: found, read and checked, line by line."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TRANSCRIPTS = ("transcripts.csv", "transcripts.tsv", "transcripts.jsonl", "metadata.csv")
FILE_COLUMNS, TEXT_COLUMNS = ("file", "file_name", "path", "audio", "wav", "id"), ("text", "transcript", "sentence")
SHOWN = 8  # problems that a message lists
SUFFIXES = ("", ".wav", ".flac", ".ogg", ".mp3")
Listed = tuple[Path, str, dict[str, Any]]


def listed(path: str | Path) -> list[Listed]:
    """(file, text, other columns) of every line of the table in a folder; no sound is read.

    Raises:
        ValueError: no folder, no or an empty table; lines without file or text, or that name a missing clip: all of
            them, the first few by name.
    """
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"'{path}' is not a folder; give one that holds sound files and {', '.join(TRANSCRIPTS)}")
    table = next((path / name for name in TRANSCRIPTS if (path / name).exists()), None)
    if table is None:
        raise ValueError(f"'{path}' holds no transcripts; allowed: {', '.join(TRANSCRIPTS)}; write one line per clip, "
                         f"e.g. transcripts.csv with the columns file,text")
    rows, wrong = [], []
    for line, entry in entries(table):
        try:
            rows.append(_row(path, table, line, entry))
        except ValueError as error:
            wrong.append(str(error))
    refuse(wrong)
    if not rows:
        raise ValueError(f"'{table}' lists no clips; write one line per clip")
    return rows


def refuse(wrong: Sequence[str]) -> None:
    """Raises ValueError with the problems there are, if there are any."""
    if wrong:
        more = f"\n... and {len(wrong) - SHOWN} more like these" if len(wrong) > SHOWN else ""
        raise ValueError("\n".join(wrong[:SHOWN]) + more)


def entries(table: Path) -> list[tuple[int, dict[str, Any]]]:
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
