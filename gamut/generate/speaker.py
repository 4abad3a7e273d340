"""A model that hears and speaks, as one thing: its weights, its words, its voice and its tools."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import gamut
from gamut.codecs.text import Tokenizer
from gamut.generate.retrieval import web_search
from gamut.generate.sampling import Sampling
from gamut.generate.tools import Toolbox, calculator, date_and_time
from gamut.generate.voice import SpeechCodec
from gamut.generate.voices import Voice, audio_search, four_tools, library, write_library
from gamut.io.env import has_bfloat16, model_folder
from gamut.io.folders import CODEC, MENU, TAUGHT, VOICES, WRITTEN
from gamut.io.media import read_audio
from gamut.models.int8 import load_int8
from gamut.models.omni import Omni

SMALL = 10**7  # parameters; below, threads wait for one another longer than they work: 40 s for 0.6 on a busy machine
WEIGHTS = ("auto", "float32", "bfloat16", "int8")
LEVEL = 0.05  # RMS a question is brought to: a small model has not heard whispers. Ours
SAMPLING = Sampling(temperature=0.3, max_new=400)  # ours, of a small model
RELEASED = Sampling(temperature=0.7, top_p=0.9, repetition_penalty=1.05, max_new=2048)  # fact sheet §4.3


@dataclass(frozen=True)
class Speaker:
    """Load it, talk to it: ``Talk(Speaker.load(folder), "Say the sum of the two numbers.").ask(wav, rate)``."""

    model: Omni
    words: Tokenizer
    codec: Any  # None: it answers in writing
    tools: Toolbox
    taught: Mapping[str, Mapping[str, bool]] = field(default_factory=dict)
    """Requests a small model was taught, each with how it answers (``aloud``, ``tools``), "" where it answers without
    one; a large model takes any."""
    offers: bool = False
    """Whether a large model is shown its tools, whatever is asked."""
    written: frozenset[str] = frozenset()
    """Requests that a large model was tuned to answer in writing."""
    ends: tuple[int, ...] = ()
    """Tokens that end an answer, besides ``<|EOT|>``: a released model has three in all (fact sheet §4)."""

    @classmethod
    def load(
        cls, path: str | Path, voice: str | Path | None = None, *, documents: str | Path = "", voices: str | Path = "",
        weights: str = "auto",
    ) -> "Speaker":
        """From a folder that ``save`` or ``gamut convert`` wrote, the run folder around it, or the released folder.

        It speaks if a codec lies beside the weights; a token2wav that came without voices needs one.
        Its tools are those of ``tools_of`` where nothing to search in is given.

        Args:
            voice: a recording, to be answered in its voice.
            documents: a folder or an endpoint to search in (``web_search``); calculator and clock come with it.
            voices: a folder of clips and what they are like (``voices.library``), to be found and answered in; its
                first is the usual voice of a codec that has none.
            weights: how the model is held. "bfloat16": all of it (norms are computed in float32). "int8": the linear
                layers of encoder, adaptor and decoder, on the CPU; embeddings, norms, convolutions and activations in
                bfloat16. "auto": a small model float32; a large one bfloat16 on a GPU that has it, else int8. A large
                one that is not int8 is on the GPU if there is one, its codec with it (written without one: not
                measured); the codec is float32 always.
        Raises:
            ValueError: other weights; a voice for a model whose codec takes none, and what ``SpeechCodec.voice_of``
                says of it; further tools for a small model, which knows those that it was taught.
        """
        path = model_folder(path)
        taught = json.loads((path / TAUGHT).read_text()) if (path / TAUGHT).exists() else {}
        given = bool(documents or voices)
        if given and taught:
            raise ValueError(f"'{path}' knows the tools it was taught and no others; documents and voices to search in "
                             f"are for a model that reads schemas, as the released one")
        clips = library(voices) if voices else []
        found = [*([web_search(documents)] if documents else []), *([audio_search(clips)] if clips else [])]
        tools = Toolbox([calculator(), date_and_time(), *found]) if given else tools_of(path)
        model, codec = _model(path, weights), codec_of(path)
        if codec is not None:
            codec.to(model.lm.norm.weight.device)
        if clips and voice is None and isinstance(codec, SpeechCodec) and not codec.voices:
            codec.wave.voices = _first(clips, codec)
        words, codec = Tokenizer.from_pretrained(path), _voiced(codec, voice, path)
        return cls(model, words, codec, tools, taught, given, written(path), _ends(path))

    def save(
        self, path: Path, card: str = "", *, voices: Sequence[Voice] = (),
        menu: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """The folder that ``load`` reads; ``voices`` (their clips with it) and ``menu`` are what its tools know."""
        taught = json.dumps(dict(self.taught), ensure_ascii=False, indent=1)
        files = self.words.files() | {TAUGHT: taught}
        if menu:
            files |= {MENU: json.dumps(menu, ensure_ascii=False, indent=1)}
        if self.codec is not None:
            files |= {CODEC: lambda part: self.codec.save_pretrained(part, card="The codec of the model above it.\n")}
        self.model.save_pretrained(path, card=card, files=files)
        if voices:
            write_library(path / VOICES, voices)

    @property
    def small(self) -> bool:
        return sum(t.numel() for t in self.model.state_dict().values()) < SMALL  # int8 weights are no parameters

    @property
    def weighs(self) -> str:
        """A sentence: how the model's weights are held, and what they take."""
        tensors, norm = list(self.model.state_dict().values()), self.model.lm.norm.weight
        kind = "int8" if any(t.dtype == torch.int8 for t in tensors) else str(norm.dtype).removeprefix("torch.")
        return f"weights: {kind} on the {norm.device.type}, {sum(t.nbytes for t in tensors) / 1e9:.3g} GB"

    def how(self, system: str = "") -> "How":
        """What to ask for with a request. If empty: no request where the model was taught to answer without, otherwise
        the first that is answered aloud.

        Raises:
            ValueError: a request that this model was not taught.
        """
        if not system and "" not in self.taught:
            system = next((name for name, how in self.taught.items() if how["aloud"]), "")
        system = next((name for name in self.taught if name.strip() == system.strip()), system)  # one ends in "\n"
        if self.taught and system not in self.taught:
            listed = "\n  ".join(name.strip() or "(nothing)" for name in self.taught)
            raise ValueError(f"this model was not taught to {system!r}; --system must be one of\n  {listed}")
        return How(system, **self.taught.get(system, {"aloud": system not in self.written, "tools": self.offers}))


def written(path: Path) -> frozenset[str]:
    """The requests that the model of a folder was tuned to answer in writing."""
    return frozenset(json.loads((path / WRITTEN).read_text())) if (path / WRITTEN).exists() else frozenset()


def _ends(path: Path) -> tuple[int, ...]:
    """The end tokens that a released folder names, in generation_config.json or in its config.json."""
    for name in ("generation_config.json", "config.json"):
        stored = json.loads((path / name).read_text()) if (path / name).exists() else {}
        found = (stored | stored.get("official", {})).get("eos_token_id")
        if found is not None:
            return tuple(found) if isinstance(found, list) else (found,)
    return ()


def _model(path: Path, weights: str) -> Omni:
    """See ``Speaker.load``. The files are mapped, so that counting what is in them reads nothing."""
    if weights not in WEIGHTS:
        raise ValueError(f"weights must be one of {', '.join(WEIGHTS)}; got {weights!r}")
    model = Omni.from_pretrained(path, None)
    large = sum(p.numel() for p in model.parameters()) >= SMALL
    gpu = large and torch.cuda.is_available()
    if weights == "auto":
        weights = "bfloat16" if gpu and has_bfloat16() else "int8" if large else "float32"
    if weights == "int8":
        return load_int8(path)
    return model.to("cuda" if gpu else "cpu", getattr(torch, weights))


def tools_of(path: Path) -> Toolbox:
    """The tools of a model's folder: ``four_tools`` where voices lie beside the weights, else a calculator."""
    if not (path / VOICES).is_dir():
        return Toolbox([calculator()])
    menu = json.loads((path / MENU).read_text()) if (path / MENU).exists() else {}
    return four_tools(library(path / VOICES), menu)


def codec_of(path: Path) -> Any:
    """The codec beside a model's weights, to speak with; None if there is none."""
    folder = path / CODEC
    if not (folder / "config.json").exists():
        return None
    if not (folder / "tokenizer").is_dir():
        return gamut.load(folder)
    codec = SpeechCodec.from_pretrained(folder)
    codec.wave.hift.fold()  # it only speaks
    return codec


def _first(clips: Sequence[Voice], codec: SpeechCodec) -> dict[str, Any]:
    """The voice of the first clip that has one. Raises ValueError: none has."""
    wrong = []
    for clip in clips:
        try:
            return {clip.name: codec.voice_of(*clip.read())}
        except (ValueError, OSError) as error:
            wrong.append(f"{clip.name}: {error}")
    raise ValueError(f"not one of {len(clips)} clips gives a voice; {'; '.join(wrong[:3])}")


def _voiced(codec: Any, voice: str | Path | None, path: Path) -> Any:
    """A codec that can speak, in the voice of a recording if there is one; None if it has no voice."""
    if voice is not None:
        if not isinstance(codec, SpeechCodec):
            raise ValueError(f"'{path}' has no codec that takes on a voice; convert the released folder with its "
                             f"token2wav and the .onnx files in it: gamut convert RELEASED {path}-converted")
        name, others = Path(voice).stem, codec.wave.voices
        usual = {name: codec.voice_of(*read_audio(voice))}
        codec.wave.voices = usual | {other: kept for other, kept in others.items() if other != name}
    return codec if getattr(codec, "voices", True) else None


@dataclass(frozen=True)
class How:
    """A request, whether it is answered aloud, and whether tools are shown with it."""

    system: str
    aloud: bool = True
    tools: bool = False
