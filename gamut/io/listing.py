"""A folder of sound files with one table that says what is in them: found, read and checked, line by line."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TRANSCRIPTS = ("transcripts.csv", "transcripts.tsv", "transcripts.jsonl", "metadata.csv", "metadata.jsonl")
FILE_COLUMNS, TEXT_COLUMNS = (
    ("file", "file_name", "path", "audio", "wav", "id"), ("text", "transcript", "transcription", "sentence"))
SHOWN = 8  # problems that a message lists
SUFFIXES = ("", ".wav", ".flac", ".ogg", ".mp3")
Listed = tuple[Path, str, dict[str, Any]]


def listed(path: str | Path, *, textless: bool = False) -> list[Listed]:
    """(file, text, other columns) of every line of the table in a folder, or, where there is none, of every sound file
    with a text file of its name beside it; no sound is read.

    Args:
        textless: keep clips whose text is empty.
    Raises:
        ValueError: no folder, no or an empty table, not UTF-8; lines without file or text, with a quote that is not
            closed or more columns than the header, or that name a missing clip: all of them, the first few by name.
    """
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"'{path}' is not a folder; give one that holds sound files and {', '.join(TRANSCRIPTS)}")
    table = next((path / name for name in TRANSCRIPTS if (path / name).exists()), None)
    if table is None and (beside := _beside(path, textless)):
        return beside
    if table is None:
        raise ValueError(f"'{path}' holds no transcripts; allowed: {', '.join(TRANSCRIPTS)}, or a .txt beside each "
                         f"clip; write one line per clip, e.g. transcripts.csv with the columns file,text")
    rows, wrong = [], []
    for line, entry in entries(table):
        try:
            rows.append(_row(path, table, line, entry, textless))
        except ValueError as error:
            wrong.append(str(error))
    refuse(wrong)
    if not rows:
        raise ValueError(f"'{table}' lists no clips; write one line per clip")
    return rows


def _beside(path: Path, textless: bool) -> list[Listed]:
    """Clips with their texts in files of the same names; nothing where no clip has one."""
    clips = [clip for clip in (*sorted(path.iterdir()), *sorted((path / "wavs").glob("*")))
             if clip.suffix.lower() in SUFFIXES[1:] and not clip.name.startswith(".")]  # fmt: skip
    texts = {clip: clip.with_suffix(".txt") for clip in clips}
    there = {clip: "".join(read_lines(text)).strip() for clip, text in texts.items() if is_file(text)}
    refuse([f"'{clip}' needs a text in {text.name}, as other clips have; write what is said in it, or move the clip "
            f"elsewhere" for clip, text in texts.items() if there and not (there.get(clip) or textless)])  # fmt: skip
    return [(clip, there.get(clip, ""), {}) for clip in clips] if there else []


def refuse(wrong: Sequence[str]) -> None:
    """Raises ValueError with the problems there are, if there are any."""
    if wrong:
        more = f"\n... and {len(wrong) - SHOWN} more like these" if len(wrong) > SHOWN else ""
        raise ValueError("\n".join(wrong[:SHOWN]) + more)


def read_lines(file: Path) -> list[str]:
    """The lines of a text file, with their ends. Raises ValueError where it is not UTF-8."""
    data = file.read_bytes()
    try:
        text, wrong = data.decode("utf-8-sig"), data.find(0)  # UTF-16 without a mark is UTF-8, full of zeros
    except UnicodeDecodeError as error:
        text, wrong = "", error.start
    if wrong >= 0:
        line = data.count(b"\n", 0, wrong) + 1
        raise ValueError(f"'{file}' is not UTF-8 text; save it as UTF-8 (in Excel: CSV UTF-8); got byte "
                         f"{data[wrong]:#04x} in line {line}")
    return list(io.StringIO(text, newline=None))


def is_file(path: Path) -> bool:
    """Whether there is such a file; what is too long for a name (a sentence, sound as text) is none."""
    try:
        return path.is_file()
    except OSError:
        return False


def entries(table: Path) -> list[tuple[int, dict[str, Any]]]:
    """Line number and columns of each line of a transcript file; cells beyond the header are a list under ""."""
    lines = read_lines(table)
    if table.suffix == ".jsonl":
        out = []
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"'{table}' line {number} is not JSON ({getattr(error, 'msg', error)}); one "
                                 f"object a line") from error
            if not isinstance(entry, dict):
                raise ValueError(f"'{table}' line {number} is not a JSON object but {entry!r}; write one with the "
                                 f"keys file and text")
            out.append((number, entry))
        return out
    if table.name == "metadata.csv" and lines and "|" in lines[0]:  # LJ Speech
        split = [(number, line.strip().split("|")) for number, line in enumerate(lines, 1) if line.strip()]
        return [(number, {"file": parts[0], "text": parts[-1] if len(parts) > 1 else ""}) for number, parts in split]
    split = _cells(table, lines)
    header = [name.strip().lower() for name in split[0][1]] if split else []
    return [(n, dict(zip(header, cells, strict=False)) | {"": cells[len(header):]}) for n, cells in split[1:]]


def _cells(table: Path, lines: Sequence[str]) -> list[tuple[int, list[str]]]:
    """The number of the first line of each row of a CSV or TSV file, and its cells, none of which has several lines."""
    reader, out, wrong, number = csv.reader(lines, delimiter="\t" if table.suffix == ".tsv" else ","), [], [], 1
    try:
        for cells in reader:
            out += [(number, cells)] if cells else []
            if broken := next((cell for cell in cells if "\n" in cell), ""):
                wrong.append(f"'{table}' line {number} holds a line break: a quote is not closed, or a cell has "
                             f"several lines, {broken[:40]!r}; close it, or write the cell in one line")
            number = reader.line_num + 1
    except csv.Error as error:  # a cell of more than 128 KiB
        wrong.append(f"'{table}' line {number}: a quote is not closed ({error}); close it")
    refuse(wrong)
    return out


def _row(path: Path, table: Path, line: int, entry: dict[str, Any], textless: bool) -> Listed:
    where = f"'{table}' line {line}"
    surplus = entry.pop("", None)
    name = next((entry[key] for key in FILE_COLUMNS if entry.get(key)), None)
    text = next((entry[key] for key in TEXT_COLUMNS if entry.get(key) is not None), None)
    if not name or text is None:
        raise ValueError(f"{where} needs a file and a text, got columns {sorted(entry)}; name them "
                         f"{' or '.join(FILE_COLUMNS)}, and {' or '.join(TEXT_COLUMNS)}")
    if isinstance(surplus, list) and any(surplus):
        raise ValueError(f"{where} has more columns than the header, the first is {surplus[0]!r}; put a text that "
                         f"holds commas between quotes")
    if not isinstance(text, str) or not (text.strip() or textless):
        raise ValueError(f"{where} needs a text, got {text!r} for the clip '{str(name)[:80]}'; write what is "
                         f"said in it, or delete the line")
    for candidate in (base / f"{name}{suffix}" for base in (path, path / "wavs") for suffix in SUFFIXES):
        if is_file(candidate):
            return candidate, text, {k: v for k, v in entry.items() if k not in FILE_COLUMNS + TEXT_COLUMNS}
    raise ValueError(f"{where} names the clip '{str(name)[:80]}', which is neither in '{path}' nor in "
                     f"'{path / 'wavs'}'; add the file, or delete the line")
