"""Renaming tensors by a table of patterns: ``blocks.{}.attn.q`` stands for that name in every block.

A pattern names a parameter, or a layer with weight and bias. Braces stand for numbers, in the same order on both sides.
"""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor


class Names:
    """A table official -> ours. Literal numbers (``conv.block.1``) are part of the name."""

    def __init__(self, table: Mapping[str, str]):
        self._ours = [(_pattern(theirs), ours) for theirs, ours in table.items()]
        self._theirs = [(_pattern(ours), theirs) for theirs, ours in table.items()]

    def to_ours(self, official: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every tensor by our name; one that is not in the table keeps its own: a strict load reports it."""
        return {_renamed(name, self._ours) or name: tensor for name, tensor in official.items()}

    def to_official(self, ours: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
        """The inverse. Raises ValueError for names that are not in the table (``where`` says which)."""
        if strange := [name for name in ours if _renamed(name, self._theirs) is None]:
            raise ValueError(f"{strange[:8]} have no official name; allowed: those of {where}")
        return {str(_renamed(name, self._theirs)): tensor for name, tensor in ours.items()}


def _pattern(template: str) -> re.Pattern:
    return re.compile(re.escape(template).replace(r"\{\}", r"(\d+)") + r"(\.(?:weight|bias))?")



def _renamed(name: str, rules: Iterable[tuple[re.Pattern, str]]) -> str | None:
    for pattern, template in rules:
        if match := pattern.fullmatch(name):
            *numbers, leaf = match.groups()
            return template.format(*numbers) + (leaf or "")
    return None
