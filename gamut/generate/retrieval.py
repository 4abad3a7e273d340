"""Texts found by their words: a BM25 index over passages, and web search as retrieval from a folder of documents.

Ours; the released model's search goes to a service. The ranking is the bm25s package's (Lucene's variant of BM25).
"""

import html.parser
import json
import time
import urllib.parse
import urllib.request
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gamut.codecs.prompts import SUMMARISE_RESULT
from gamut.generate.tools import Tool

SUFFIXES = (".txt", ".md", ".html", ".htm")
LARGEST = 4 << 20  # bytes of one document, and of one answer of a service
PASSAGE = 800  # characters of a passage


class Index:
    """Which of some texts a query means. Words are compared without case; no stop words, no stems: any language."""

    def __init__(self, texts: Sequence[str]):
        if not texts:
            raise ValueError("an index needs at least one text, got none")
        try:
            import bm25s
        except ImportError as error:
            raise ImportError("search needs bm25s; run: pip install 'gamut[retrieval]'") from error
        self._library, self.count = bm25s, len(texts)
        self._index = bm25s.BM25()
        self._index.index([words(text) or [""] for text in texts], show_progress=False)

    def best(self, query: str, most: int = 3) -> list[int]:
        """Places of the texts that share a word with the query, best first."""
        if not (wanted := words(query)):
            return []
        found: Any = self._index.retrieve([wanted], k=min(most, self.count), show_progress=False)
        return [int(i) for i, score in zip(found.documents[0], found.scores[0], strict=True) if score > 0]


def words(text: str) -> list[str]:
    """Lower-case runs of letters and digits; each character of a script without spaces is a word of its own."""
    out, run = [], ""
    for c in text.casefold() + " ":
        alone = "\u2e80" <= c <= "\u9fff" or "\uf900" <= c <= "\ufaff"
        if c.isalnum() and not alone:
            run += c
            continue
        out += [run] if run else []
        out += [c] if alone and c.isalnum() else []
        run = ""
    return out


class _Plain(html.parser.HTMLParser):
    """The text of a page, scripts and styles left out."""

    def __init__(self):
        super().__init__()
        self.parts: list[str] = []
        self.hidden = 0

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.hidden += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self.hidden = max(0, self.hidden - (tag in ("script", "style")))  # pages close what they never opened
        if tag in ("p", "div", "li", "h1", "h2", "h3", "tr", "title", "br"):
            self.parts.append("\n\n")

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.parts.append(data)


def plain(page: str) -> str:
    """HTML as text."""
    parser = _Plain()
    parser.feed(page)
    return "".join(parser.parts)


def passages(text: str, most: int = PASSAGE) -> list[str]:
    """Paragraphs joined up to ``most`` characters; a longer paragraph is cut."""
    out = [""]
    for paragraph in (" ".join(block.split()) for block in text.split("\n\n")):
        for part in [paragraph[i : i + most] for i in range(0, len(paragraph), most)]:
            if out[-1] and len(out[-1]) + len(part) >= most:
                out.append("")
            out[-1] = f"{out[-1]}\n{part}".strip()
    return [one for one in out if one]


def documents(folder: str | Path) -> list[tuple[str, str]]:
    """(file, passage) of every text, Markdown and HTML file under a folder; what cannot be read is named in a warning.

    Raises:
        ValueError: no folder, or nothing readable in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"'{folder}' is not a folder; web search reads {', '.join(SUFFIXES)} files out of one")
    out, bad = [], []
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() not in SUFFIXES or not file.is_file():
            continue
        try:
            if file.stat().st_size > LARGEST:
                raise ValueError(f"over {LARGEST >> 20} MB")
            text = file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            bad.append(f"{file.relative_to(folder)} ({error})")
            continue
        text = plain(text) if file.suffix.lower().startswith(".htm") else text
        out += [(str(file.relative_to(folder)), part) for part in passages(text)]
    if bad:
        warnings.warn(f"{len(bad)} documents in '{folder}' are left out: {'; '.join(bad[:3])}", stacklevel=2)
    if not out:
        raise ValueError(f"'{folder}' holds nothing to search in; put {', '.join(SUFFIXES)} files there")
    return out


def web_search(source: str | Path, *, most: int = 3, seconds: float = 10.0) -> Tool:
    """Search for the model: over the documents of a folder, or at an endpoint.

    Args:
        source: a folder, or a URL with ``%s`` where the query goes (http or https); what it answers is passed on as
            text, HTML without its tags.
        most: passages of documents in a result. seconds: deadline of a call.
    Raises:
        ValueError: as ``documents``, or a URL without ``%s``.
    """
    text = {"type": "string", "description": "what to look for"}
    parameters = {"type": "object", "properties": {"query": text}, "required": ["query"]}
    description, ending = "Search for information on the web.", SUMMARISE_RESULT
    if str(source).startswith(("http:", "https:")):
        url = str(source)
        if url.count("%s") != 1:
            raise ValueError(f"a search endpoint has one %s where the query goes, got {url!r}")
        return Tool("search", description, parameters, lambda query: fetch(url, query, seconds), seconds, ending)
    found = documents(source)
    index = Index([f"{name} {passage}" for name, passage in found])

    def run(query: str) -> str:
        best = index.best(query, most)
        return "\n\n".join(f"[{found[i][0]}]\n{found[i][1]}" for i in best) or f"nothing found for {query[:80]!r}"

    return Tool("search", description, parameters, run, seconds, ending)


def fetch(url: str, query: str, seconds: float) -> str:
    """What an endpoint answers.

    Raises:
        ValueError: an answer that is no text, too long, too slow, or JSON that is broken; told to the model.
    """
    ends = time.monotonic() + seconds
    with urllib.request.urlopen(url.replace("%s", urllib.parse.quote(query, safe="")), timeout=seconds) as answer:
        kind, data = answer.headers.get_content_type(), b""
        while block := answer.read1(1 << 16):
            data += block
            if len(data) > LARGEST:
                raise ValueError(f"the search service answered with over {LARGEST >> 20} MB; ask for less")
            if time.monotonic() > ends:
                raise ValueError(f"the search service was still sending after {seconds:g} s")
    text = data.decode(answer.headers.get_content_charset() or "utf-8", "replace")
    if kind.endswith("json"):
        try:
            return json.dumps(json.loads(text), ensure_ascii=False)
        except ValueError as error:
            raise ValueError(f"the search service answered with broken JSON ({error}): {text[:200]!r}") from error
    if not kind.startswith("text/"):
        raise ValueError(f"the search service answered with {kind}, not with text")
    return plain(text) if kind == "text/html" else text
