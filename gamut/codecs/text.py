"""Text <-> token ids through `tokenizers`: Hugging Face folders as they are, or a tiny character tokenizer."""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from gamut.io.files import atomic_write
from gamut.io.tokenizer import library, read_tokenizer


class Tokenizer:
    """Text <-> ids. Special strings inside a text become their own ids; nothing is added at either end."""

    def __init__(self, inner, files: Mapping[str, str] | None = None):
        self.inner = inner  # tokenizers.Tokenizer
        self.carried = dict(files or {})
        self.specials = {token.content: i for i, token in inner.get_added_tokens_decoder().items()}

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "Tokenizer":
        """Read tokenizer.json of a folder, ours or Hugging Face's; tokens named only in its other files are added.

        Raises:
            ValueError: no tokenizer.json, a damaged one, or an added token whose id cannot be honoured.
        """
        return cls(*read_tokenizer(path))

    @classmethod
    def characters(cls, alphabet: str, specials: Sequence[str] = ()) -> "Tokenizer":
        """One token per character of ``alphabet``, in its order, then the special strings."""
        tokenizers = library()
        vocab = {character: i for i, character in enumerate(dict.fromkeys(alphabet))}
        inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab))
        inner.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
        inner.decoder = tokenizers.decoders.Fuse()
        inner.add_special_tokens(list(specials))
        return cls(inner)

    @classmethod
    def train(cls, texts: Sequence[str], vocab: int, specials: Sequence[str] = ()) -> "Tokenizer":
        """Byte-level BPE learned from ``texts``; every digit stays a token of its own, as in Qwen2.

        Args:
            vocab: tokens before the special strings, at least 256 (the bytes).
            specials: get the ids behind them, in their order.
        """
        tokenizers = library()
        inner = tokenizers.Tokenizer(tokenizers.models.BPE())
        pre = tokenizers.pre_tokenizers
        inner.pre_tokenizer = pre.Sequence([pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)])
        inner.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab, initial_alphabet=pre.ByteLevel.alphabet(), show_progress=False)
        inner.train_from_iterator(texts, trainer)
        inner.add_special_tokens(list(specials))
        return cls(inner)

    @property
    def vocab(self) -> int:
        """Rows an embedding needs: the largest id plus one (released vocabularies have gaps)."""
        return max(self.inner.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``.

        Raises:
            ValueError: a character tokenizer meets a character outside its alphabet.
        """
        try:
            return self.inner.encode(text, add_special_tokens=False).ids
        except Exception as error:  # the library raises bare Exception, and only for an unknown token
            plain = re.sub("|".join(map(re.escape, self.specials)), "", text) if self.specials else text
            unknown = [c for c in dict.fromkeys(plain) if self.inner.token_to_id(c) is None]
            if not unknown:
                raise
            known = "".join(t for t in self.inner.get_vocab(with_added_tokens=False))
            raise ValueError(
                f"text {text[:40]!r} has characters this tokenizer does not know: {unknown[:8]}; "
                f"allowed: {''.join(sorted(known))!r}"
            ) from error

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``, special strings included; ids that name no token (padding rows) give nothing."""
        return self.inner.decode(list(ids), skip_special_tokens=False)

    def id(self, token: str) -> int:
        """The id of one token given as its string, e.g. ``<audio_start>``.

        Raises:
            ValueError: no such token.
        """
        if (found := self.inner.token_to_id(token)) is None:
            close = difflib.get_close_matches(token, self.specials, 3) or list(self.specials)[:8]
            raise ValueError(f"token {token!r} is not among the {self.vocab} of this tokenizer; closest: {close}")
        return found

    def files(self) -> dict[str, str]:
        """The tokenizer's files by name, for ``io.folders.save_folder``; transformers reads them too."""
        config = {"tokenizer_config.json": json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"})}
        return {"tokenizer.json": self.inner.to_str(), **config, **self.carried}

    def save_pretrained(self, path: str | Path) -> None:
        """Write the tokenizer's files into a folder."""
        for name, text in self.files().items():
            atomic_write(Path(path) / name, text)
