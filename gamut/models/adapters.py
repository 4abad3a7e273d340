"""Adapters of a model, saved and loaded as folders that peft reads and writes too."""

from dataclasses import asdict
from pathlib import Path

from torch import nn

from gamut.io.adapters import read_adapter, write_adapter
from gamut.io.convert import keys_of
from gamut.nn.lora import attach_lora, lora_state


def save_lora(model: nn.Module, path: str | Path, base: str = "") -> Path:
    """Write a model's adapters; ``base`` says where the base model is, for tools that load both.

    Raises:
        ValueError: the model has no adapters, or no official layout to name them by.
    """
    tensors, alphas = lora_state(model)
    if not alphas:
        raise ValueError(f"this {type(model).__name__} has no adapters to save; add them with gamut.nn.lora.add_lora")
    return write_adapter(path, tensors, alphas, *_layout(model), base=base)


def load_lora(model: nn.Module, path: str | Path) -> None:
    """Put an adapter folder, ours or peft's, beside a model's weights; only the adapters require gradients then.

    Raises:
        ValueError: no adapter there, another kind than plain LoRA, or one for a model of other shapes.
    """
    attach_lora(model, *read_adapter(path, *_layout(model)))


def _layout(model: nn.Module):
    config = asdict(model.config)  # pyright: ignore[reportArgumentType]
    return keys_of(type(model).__name__, config), config
