"""Markup that cannot be broken by what it shows: every string is escaped unless it was made here."""

from html import escape
from pathlib import Path
from typing import Any

VOID = {"meta", "img", "br", "hr"}
STYLE = Path(__file__).with_name("report.css")


class Raw(str):
    """Markup that is complete and safe; `tag` leaves it as it is."""


def tag(name: str, /, *inside: Any, **attributes: Any) -> Raw:
    """``<name attributes>inside</name>``; ``class_`` means class, ``stroke_width`` stroke-width; None is left out."""
    shown = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Raw(f"<{name}{shown}>" if name in VOID else f"<{name}{shown}>{join(*inside)}</{name}>")


def join(*parts: Any) -> Raw:
    """The parts one after another, escaped unless they are Raw; None is left out."""
    return Raw("".join(part if isinstance(part, Raw) else escape(str(part)) for part in parts if part is not None))


def page(title: str, *body: Any) -> str:
    """A whole document that needs nothing from anywhere else."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Raw(STYLE.read_text(encoding="utf-8"))),
    )
    return "<!doctype html>\n" + tag("html", head, tag("body", tag("main", *body)), lang="en") + "\n"
