"""Who and what a small world is made of: recordings of people, their voices, orders, four tools, and a codec. One split
of it to learn from, another to be examined on.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import gamut
from gamut.codecs.text import Tokenizer
from gamut.data import corpora, sources
from gamut.data.orders import FOLDS, Orders, menu
from gamut.data.scripts import World
from gamut.data.spoken import Digits
from gamut.evals.conversations import library, taught
from gamut.generate.speaker import Speaker
from gamut.generate.tools import Toolbox
from gamut.generate.voice import SpeechCodec
from gamut.generate.voices import Voice, four_tools
from gamut.io.env import model_folder
from gamut.io.folders import KEPT_BACK, TAUGHT, json_object
from gamut.models.omni import Omni


@cache
def recorded_orders() -> Orders:
    return Orders(corpora.coffee())


@dataclass(frozen=True)
class Cast:
    """A split of the recordings. ``names``: everybody, the usual voice first; ``orders``: None where there are none."""

    spoken: sources.Speech
    digits: Digits
    orders: Orders | None
    names: Sequence[str]

    @classmethod
    def of(cls, split: str, source: str = "auto", voice: str = "", fold: int = 0, without: str = "") -> "Cast":
        """``split``: train or test. ``source``: as in ``sources.digits``. ``fold``: of the orders, kept to test.
        ``without``: nothing that this person says is in it.

        Raises:
            ValueError: ``without`` is nobody, or ``voice``.
        """
        spoken, orders = sources.digits(split, source), None
        try:
            orders = recorded_orders().fold(fold)[split == "test"]
        except (FileNotFoundError, ImportError) as error:
            warnings.warn(f"nothing about coffee: {error}", stacklevel=2)
        digits = Digits(spoken)
        if without:
            if without == voice or without not in digits.names:
                others = ", ".join(name for name in digits.names if name != voice)
                raise ValueError(f"nobody to leave out is called {without!r}; there are {others}")
            digits = Digits(digits.clips, [name for name in digits.names if name != without])
        return cls(spoken, digits, orders, sorted(digits.names, key=lambda name: (name != voice, name)))

    @property
    def world(self) -> World:
        return World(self.digits, self.names, self.orders)

    @cached_property
    def people(self) -> list[Voice]:
        """A clip of everybody, to be found and answered in the voice of."""
        return library(self.digits, self.names)

    @property
    def menu(self) -> dict[str, list[str]]:
        return menu(self.orders) if self.orders else {}

    @cached_property
    def tools(self) -> Toolbox:
        return four_tools(self.people, self.menu)

    @property
    def schemas(self) -> Sequence[Mapping]:
        return self.tools.schemas

    @property
    def origin(self) -> str:
        """Where the sound is from and under which licence, for a report."""
        told = [f"{self.spoken.origin} ({self.spoken.licence})", *([corpora.COFFEE] if self.orders else [])]
        return "; ".join(told)

    def codec(self, folder: Path) -> SpeechCodec:
        """The codec of a folder with a tokenizer and a token2wav, whose usual voice is the first of ``names``."""
        codec, name = SpeechCodec(gamut.load(folder / "tokenizer"), gamut.load(folder / "token2wav")), self.names[0]
        known = codec.voices.get(name)
        codec.wave.voices = {name: known if known is not None else codec.voice_of(*self.people[0].read())}
        return codec

    def speaker(self, model: Omni, words: Tokenizer, codec: SpeechCodec) -> Speaker:
        """A trained model as one that can be asked, and knows what it was taught."""
        return Speaker(model.eval(), words, codec, self.tools, taught())


def kept_back(seed: int, without: str) -> dict[str, int | str]:
    """What is learned from by nobody who begins with this seed."""
    return {"fold": seed % FOLDS, "without": without}


def kept_from(folder: Path) -> dict[str, Any]:
    """What the model of a folder did not learn from; nothing where it learned none of this.

    Raises:
        ValueError: it was taught these conversations, and does not say.
    """
    file, mend = folder / KEPT_BACK, 'write {"fold": 0, "without": ""} into it, the fold of orders that was held out'
    if not file.exists() and (folder / TAUGHT).exists():
        raise ValueError(f"'{folder}' does not say what it was not taught: there is no {KEPT_BACK}; {mend}")
    return json_object(file, mend) if file.exists() else {}


def unheard(init: str, seed: int, without: str) -> None:
    """Raises ValueError where the examination of a seed would ask what the model of ``init`` has learned from."""
    if not init or not (then := kept_from(model_folder(init))):
        return
    if (fold := then.get("fold")) != seed % FOLDS:
        raise ValueError(f"'{init}' learned from the orders that seed {seed} is examined on: it kept back fold {fold}; "
                         f"go on with --seed {fold} (or that and a multiple of {FOLDS})")
    if without not in ("", then.get("without")):
        raise ValueError(f"'{init}' knows {without!r}: leave --without away, or begin without --init")
