"""A model that hears and speaks, as one thing: its weights, its words, its voice and its tools."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gamut.codecs.audio import MelCodec
from gamut.codecs.text import Tokenizer
from gamut.generate.sampling import Sampling
from gamut.generate.tools import Toolbox, calculator
from gamut.generate.voices import Voice, four_tools, library, write_library
from gamut.models.omni import Omni

TAUGHT, MENU, VOICES = "taught.json", "menu.json", "voices"
SMALL = 10**7  # parameters; below, threads wait for one another longer than they work: 40 s for 0.6 on a busy machine
LEVEL = 0.05  # RMS a question is brought to: a small model has not heard whispers. Ours
SAMPLING = Sampling(temperature=0.3, max_new=400)  # ours; the released chat uses 0.7


@dataclass(frozen=True)
class Speaker:
    """Load it, talk to it: ``Talk(Speaker.load(folder), "Say the sum of the two numbers.").ask(wav, rate)``."""

    model: Omni
    words: Tokenizer
    codec: MelCodec
    tools: Toolbox
    taught: Mapping[str, Mapping[str, bool]] = field(default_factory=dict)
    """Requests a small model was taught, each with how it answers (``aloud``, ``tools``); a large one takes any."""

    @classmethod
    def load(cls, path: str | Path) -> "Speaker":
        """From a folder that ``save`` wrote, or the run folder around it.

        Its tools are those of ``four_tools`` where voices or a menu lie beside the weights, else the calculator.
        """
        path = Path(path)
        path = path / "model" if (path / "model" / "config.json").exists() else path
        codec, taught = MelCodec.from_pretrained(path / "melcodec"), path / TAUGHT
        tools = Toolbox([calculator()])
        if (path / VOICES).is_dir():
            menu = json.loads((path / MENU).read_text()) if (path / MENU).exists() else {}
            tools = four_tools(library(path / VOICES), menu)
        return cls(
            Omni.from_pretrained(path), Tokenizer.from_pretrained(path), codec, tools,
            json.loads(taught.read_text()) if taught.exists() else {},
        )  # fmt: skip

    def save(
        self, path: Path, card: str = "", *, voices: Sequence[Voice] = (),
        menu: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """The folder that ``load`` reads; ``voices`` (their clips with it) and ``menu`` are what its tools know."""
        taught = json.dumps(dict(self.taught), ensure_ascii=False, indent=1)
        files = self.words.files() | {TAUGHT: taught}
        if menu:
            files |= {MENU: json.dumps(menu, ensure_ascii=False, indent=1)}
        self.model.save_pretrained(path, card=card, files=files)
        self.codec.save_pretrained(path / "melcodec", card="The codec of the model in the folder above.\n")
        if voices:
            write_library(path / VOICES, voices)

    def how(self, system: str = "") -> "How":
        """What to ask for with a request; the first that is answered aloud if empty.

        Raises:
            ValueError: a request that this model was not taught.
        """
        system = system or next((name for name, how in self.taught.items() if how["aloud"]), "")
        if self.taught and system not in self.taught:
            listed = "\n  ".join(self.taught)
            raise ValueError(f"this model was not taught to {system!r}; --system must be one of\n  {listed}")
        return How(system, **self.taught.get(system, {}))


@dataclass(frozen=True)
class How:
    """A request, whether it is answered aloud, and whether tools are shown with it."""

    system: str
    aloud: bool = True
    tools: bool = False
