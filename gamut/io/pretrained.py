"""Saving and loading for modules that are a config and weights, and nothing else."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TypeVar

import gamut
from gamut.io.folders import load_config, load_strict, load_tensors, save_folder

T = TypeVar("T", bound="Pretrained")  # typing.Self would need the whole class under the shape checker, not its methods


class Pretrained:
    """Beside ``nn.Module``: the class names its frozen dataclass as ``Config`` and is built as ``Class(config)``."""

    Config: type

    @classmethod
    def from_pretrained(cls: type[T], path: str | Path) -> T:
        """From a folder that ``save_pretrained`` wrote; the module is in evaluation mode.

        Raises:
            ValueError: another class's folder, unknown config fields, and what ``io/folders.py`` says of the tensors.
        """
        stored = load_config(path)
        if stored.get("class") != cls.__name__:
            raise ValueError(f"'{path}' holds a {stored.get('class')}, not a {cls.__name__}; load it with that class")
        values, known = stored["config"], {field.name for field in fields(cls.Config)}
        if unknown := set(values) - known:
            raise ValueError(
                f"unknown {cls.__name__} config fields {sorted(unknown)} in '{path}'; allowed: {sorted(known)}"
            )
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        module = cls(cls.Config(**values))  # type: ignore[call-arg]
        load_strict(module, load_tensors(path), path)  # type: ignore[arg-type]
        return module.eval()  # type: ignore[attr-defined]

    def save_pretrained(
        self, path: str | Path, card: str = "", files: Mapping[str, str | bytes | Path] | None = None
    ) -> Path:
        """A checkpoint folder; ``card`` becomes its README.md."""
        config = {"gamut": gamut.__version__, "class": type(self).__name__, "config": asdict(self.config)}  # type: ignore
        return save_folder(path, self.state_dict(), config, card=card, files=files)  # type: ignore[attr-defined]
