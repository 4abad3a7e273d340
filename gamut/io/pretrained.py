"""Saving and loading for modules that are a config and weights, and nothing else."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args, get_type_hints

import torch
from torch import Tensor

import gamut
from gamut.io.convert import family
from gamut.io.folders import Content, load_config, load_strict, load_tensors, save_folder
from gamut.io.learners import first, gathered

C = TypeVar("C", bound="Plain")  # typing.Self would need the whole class under the shape checker, not its methods
T = TypeVar("T", bound="Pretrained")


class Plain:
    """Base of configs: a frozen dataclass of plain values, tuples of them, and further configs."""

    called = ""  # in messages; the class's name without Config if empty

    @classmethod
    def from_dict(cls: type[C], values: Mapping, where: str | Path = "") -> C:
        """From plain values, as config.json holds them: lists become tuples, mappings the configs they stand for.

        Raises:
            ValueError: an unknown field; the message names ``where``, the folder.
        """
        known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        if unknown := set(values) - set(known):
            name, place = cls.called or cls.__name__.removesuffix("Config"), f" in '{where}'" if where else ""
            raise ValueError(f"unknown {name} config fields {sorted(unknown)}{place}; allowed: {known}")
        kinds = get_type_hints(cls)
        return cls(**{name: _value(kinds[name], value) for name, value in values.items()})


def _value(kind: Any, value: Any) -> Any:
    if isinstance(value, Mapping):
        return next(k for k in (kind, *get_args(kind)) if hasattr(k, "from_dict")).from_dict(value)
    return tuple(value) if isinstance(value, list) else value


class Pretrained:
    """Beside ``nn.Module``: the class names its ``Plain`` dataclass as ``Config`` and is built as ``Class(config)``.

    ``inside`` is what it is built inside to be loaded: ``io.meta.meta`` where every weight and buffer is in the file.
    """

    Config: type
    inside: ClassVar[Any] = nullcontext  # () -> context manager

    @classmethod
    def released(cls, stored: dict, tensors: dict[str, Tensor], path: str | Path) -> tuple[Any, dict[str, Tensor]]:
        """Config and tensors out of an official folder's, through the tables of names in ``io/keys``.

        Raises:
            ValueError: a family it does not read.
        """
        kind, keys = family(stored, path)
        if kind != cls.__name__:
            raise ValueError(_other(cls, kind, path))
        config = cls.Config.from_dict(keys.config_from_official(stored), path)  # type: ignore[attr-defined]
        return config, keys.to_ours(tensors, asdict(config))

    @classmethod
    def from_pretrained(cls: type[T], path: str | Path, dtype: torch.dtype | None = torch.float32) -> T:
        """From a folder that ``save_pretrained`` wrote, or an official one; the module is in evaluation mode.

        Args:
            dtype: of the weights, whatever the file's; None keeps that.
        Raises:
            ValueError: another class or family, unknown config fields, and what ``io/folders.py`` says of the files.
        """
        stored, tensors = load_config(path), load_tensors(path, dtype)
        if "gamut" not in stored:
            config, tensors = cls.released(stored, tensors, path)
        elif stored.get("class") != cls.__name__:
            raise ValueError(_other(cls, stored.get("class"), path))
        else:
            config = cls.Config.from_dict(stored["config"], path)
        with cls.inside():
            module = cls(config)  # type: ignore[call-arg]
        load_strict(module, tensors, path)  # type: ignore[arg-type]
        return module.eval()  # type: ignore[attr-defined]

    def save_pretrained(
        self, path: str | Path, card: str = "", files: Mapping[str, Content] | None = None
    ) -> Path:
        """A checkpoint folder that ``from_pretrained`` reads, written by rank 0; with sharded weights every rank calls.

        Args:
            card: becomes its README.md. files: further ones, the tokenizer's say.
        """
        config = {"gamut": gamut.__version__, "class": type(self).__name__, "config": asdict(self.config)}  # type: ignore
        tensors = gathered(self.state_dict())  # type: ignore[attr-defined]
        return save_folder(path, tensors, config, card=card, files=files) if first() else Path(path)


def _other(cls: type, found: str | None, path: str | Path) -> str:
    article = "an" if cls.__name__[0] in "AEIO" or cls.__name__ == "LM" else "a"
    return f"'{path}' holds a {found}, not {article} {cls.__name__}; load it with that class"
