"""gamut: fifteen papers as short recipes. `gamut.load`, `gamut.run`, `gamut.save`; everything else by module.

Nothing is imported until it is asked for: `import gamut` costs no torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gamut.api import load, run, save

__version__ = "0.1.0"
__all__ = ["__version__", "load", "run", "save"]


def __getattr__(name: str) -> Any:
    if name in ("load", "run", "save"):
        from gamut import api

        return getattr(api, name)
    raise AttributeError(f"module 'gamut' has no attribute {name!r}; there is: load, run, save")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
