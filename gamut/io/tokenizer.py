"""The files of a tokenizer in a checkpoint folder, read through the `tokenizers` package."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

QWEN = (  # how Qwen2's tokenizers cut text before merging; released folders without a tokenizer.json rely on it
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CARRIED = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json")


def library() -> ModuleType:
    """The tokenizers package, or an ImportError that names the extra."""
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError("text needs the `tokenizers` package; install it with: pip install 'gamut[text]'") from error
    return tokenizers


def read_tokenizer(path: str | Path) -> tuple[Any, dict[str, str]]:
    """tokenizer.json (or Qwen2's vocab.json and merges.txt) as a ``tokenizers.Tokenizer``, and the text of the files
    beside it by name.

    Tokens named only in those are added.
    Raises:
        ValueError: no such file, a damaged one, or an added token whose id cannot be honoured.
    """
    tokenizers, path = library(), Path(path)
    file, parts = path / "tokenizer.json", (path / "vocab.json", path / "merges.txt")
    file = file if file.is_file() or not all(part.is_file() for part in parts) else parts[0]
    if not file.is_file():
        raise ValueError(f"'{path}' has no tokenizer.json; copy the one released with the model into the folder")
    try:
        inner = tokenizers.Tokenizer.from_file(str(file)) if file is not parts[0] else _of_parts(*map(str, parts))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"'{file}' is not a tokenizer ({error}); download it again") from error
    files = {name: (path / name).read_text() for name in CARRIED if (path / name).is_file()}
    listed = json.loads(files.get("tokenizer_config.json", "{}")).get("added_tokens_decoder") or {}
    for number, entry in sorted(listed.items(), key=lambda item: int(item[0])):
        if inner.token_to_id(entry["content"]) is None:
            inner.add_tokens([tokenizers.AddedToken(**entry)])
        name = entry["content"]
        if (got := inner.token_to_id(name)) != int(number):
            raise ValueError(
                f"'{path}': tokenizer_config.json gives {name!r} the id {number}, tokenizer.json {got}; "
                f"the two files must come from the same release"
            )
    return inner, files


def _of_parts(vocab: str, merges: str) -> Any:
    tokenizers = library()
    inner = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(vocab, merges))
    inner.normalizer, pre = tokenizers.normalizers.NFC(), tokenizers.pre_tokenizers
    cut = pre.Split(tokenizers.Regex(QWEN), "isolated")
    inner.pre_tokenizer = pre.Sequence([cut, pre.ByteLevel(add_prefix_space=False, use_regex=False)])
    inner.decoder = tokenizers.decoders.ByteLevel()
    return inner
