"""A model that hears and speaks, as one thing: its weights, its words, its voice and its tools."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from gamut.codecs.audio import MelCodec
from gamut.codecs.chat import ANSWER_SPEECH, ANSWER_TEXT, EOT
from gamut.codecs.mel import WHISPER_RATE, hear, levelled, pad_mels, patches, pieces
from gamut.codecs.text import Tokenizer
from gamut.generate.sampling import Sampling
from gamut.generate.speak import Asked, Event, Sound, Told, Words, decoder, respond
from gamut.generate.tools import Toolbox, calculator
from gamut.io.media import read_audio, resample, write_audio
from gamut.models.omni import Omni

TAUGHT = "taught.json"
SMALL = 10**7  # parameters; below, threads wait for one another longer than they work: 40 s for 0.6 on a busy machine
LEVEL = 0.05  # RMS a question is brought to: a small model has not heard whispers. Ours
SAMPLING = Sampling(temperature=0.3, max_new=400)  # ours; the released chat uses 0.7


@dataclass(frozen=True)
class Speaker:
    """Load it, ask it: ``Speaker.load(folder).ask(wav, rate, "Say the sum of the two numbers.")``."""

    model: Omni
    words: Tokenizer
    codec: MelCodec
    tools: Toolbox
    taught: Mapping[str, Mapping[str, bool]] = field(default_factory=dict)
    """Requests a small model was taught, each with how it answers (``aloud``, ``tools``); a large one takes any."""

    @classmethod
    def load(cls, path: str | Path) -> "Speaker":
        """From a folder that ``save`` wrote, or the run folder around it. Its tool is the calculator."""
        path = Path(path)
        path = path / "model" if (path / "model" / "config.json").exists() else path
        codec, taught = MelCodec.from_pretrained(path / "melcodec"), path / TAUGHT
        return cls(
            Omni.from_pretrained(path), Tokenizer.from_pretrained(path), codec, Toolbox([calculator()]),
            json.loads(taught.read_text()) if taught.exists() else {},
        )  # fmt: skip

    def save(self, path: Path, card: str = "") -> None:
        taught = json.dumps(dict(self.taught), ensure_ascii=False, indent=1)
        self.model.save_pretrained(path, card=card, files=self.words.files() | {TAUGHT: taught})
        self.codec.save_pretrained(path / "melcodec", card="The codec of the model in the folder above.\n")

    def ask(
        self, wav: Float[Tensor, " T"], rate: int, system: str, *, aloud: bool = True, tools: bool = False,
        history: Sequence[dict] = (), sampling: Sampling = SAMPLING,
    ) -> Iterator[Event]:
        """The events of an answer (``generate.speak``) to a recording.

        Args:
            system: what to do with what is heard. aloud: answer in speech, the text beside it.
            tools: show the model its tools; it then calls one silently before it answers.
        """
        wav = resample(levelled(wav, LEVEL), rate, WHISPER_RATE)
        mels = [hear(piece, WHISPER_RATE) for piece in pieces(wav)]
        sound = [{"type": "audio", "patches": [patches(mel.shape[-1]) for mel in mels]}]
        messages = [{"role": "system", "content": system}, *history, {"role": "human", "content": sound}]
        last = ANSWER_SPEECH if aloud else ANSWER_TEXT
        stop = (self.words.id(EOT),)
        decode = decoder(self.model, replace(sampling, stop=stop), *pad_mels(mels))
        return respond(
            messages, decode, self.words, codec=self.codec, tools=self.tools if tools else None,
            prefill=(ANSWER_TEXT, last) if tools else last,
        )  # fmt: skip

    def chat(self, question: str | Path, system: str = "", *, out: str | Path = "answer.wav") -> str:
        """Print the answer to a sound file while it comes, write what is said to ``out``; returns a line of figures.

        Raises:
            ValueError: a request that this model was not taught; what ``read_audio`` says of the file.
        """
        system = system or next((name for name, how in self.taught.items() if how["aloud"]), "")
        if self.taught and system not in self.taught:
            listed = "\n  ".join(self.taught)
            raise ValueError(f"this model was not taught to {system!r}; --system must be one of\n  {listed}")
        how = self.taught.get(system, {"aloud": True, "tools": False})
        wav, rate = read_audio(question)
        if sum(p.numel() for p in self.model.parameters()) < SMALL:
            torch.set_num_threads(1)
        began, first, spoken = time.perf_counter(), 0.0, []
        for event in self.ask(wav, rate, system, aloud=how["aloud"], tools=how["tools"]):
            match event:
                case Words(text):
                    print(text, end="", flush=True)
                case Sound(part):
                    first = first or time.perf_counter() - began
                    spoken.append(part)
                case Asked(call):
                    print(f"[{call.name} {call.arguments}", end="", flush=True)
                case Told(result):
                    print(f" = {result.content}] ", end="", flush=True)
        took = time.perf_counter() - began
        print()
        if not spoken:
            return f"answered in {took:.1f} s"
        answer = torch.cat(spoken)
        write_audio(out, answer, self.codec.config.rate)
        seconds = len(answer) / self.codec.config.rate
        return f"{out}: {seconds:.1f} s of speech, the first sound after {first:.1f} s, all of it after {took:.1f} s"
