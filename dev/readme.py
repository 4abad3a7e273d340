"""Fill the generated blocks of README.md from the code, and make docs/plan.md: python -m dev.readme

A block stands between `<!-- made: NAME -->` and `<!-- end -->`; a test says when one is out of date.
"""

import re
import sys
from pathlib import Path

from dev import planning
from gamut.cli import COMMANDS
from gamut.io.files import atomic_write
from gamut.io.source import read
from gamut.papers import PAPERS, measured

README = Path(__file__).resolve().parent.parent / "README.md"


def recipes() -> str:
    """The papers: what runs today, minutes on two cores, claims passed in the last recorded run."""
    rows = ["| paper | recipe | what runs today | minutes | claims |", "|---|---|---|--:|--:|"]
    seen = measured()
    for paper in PAPERS:
        link = f"[{paper.title}](https://arxiv.org/abs/{paper.arxiv})"
        if not paper.built:
            rows.append(f"| {link} | {paper.name} | not yet: {paper.line} | | |")
        for name in ([paper.name] if paper.built else []) + paper.parts:
            recipe = read(name)
            what = recipe.doc.partition("\n")[0].partition(": ")[2].rstrip(".")
            record = seen.get(name)
            minutes, passed = (f"{max(1, record['minutes']):.0f}", f"{record['passed']} of ") if record else ("", "")
            cells = [link if name == paper.name else "the same", f"[{name}](gamut/recipes/{name}.py)", what]
            rows.append(f"| {' | '.join([*cells, minutes, passed + str(len(recipe.claims))])} |")
    return "\n".join(rows)


def commands() -> str:
    """Every command with its line."""
    lines = [(f"gamut {name}", (command.__doc__ or "").strip().split("\n")[0]) for name, command in COMMANDS.items()]
    return "```\n" + "\n".join(f"{name:<14} {text}" for name, text in lines) + "\n```"


BLOCKS = {"recipes": recipes, "commands": commands}


def filled(text: str) -> str:
    """``text`` with every block made anew.

    Raises:
        ValueError: if a block is named that nothing here makes.
    """

    def fill(found: re.Match[str]) -> str:
        if found[1] not in BLOCKS:
            raise ValueError(f"README.md asks for block '{found[1]}'; there is: {', '.join(BLOCKS)}")
        return f"<!-- made: {found[1]} -->\n{BLOCKS[found[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- made: (\w+) -->\n.*?<!-- end -->", fill, text, flags=re.S)


def examples(text: str) -> list[tuple[str, str]]:
    """(language, code) of the code blocks that stand below a line `<!-- runs -->`: those are executed by the tests."""
    return re.findall(r"<!-- runs -->\n```(\w+)\n(.*?)```", text, flags=re.S)


if __name__ == "__main__":
    before = README.read_text(encoding="utf-8")
    after = filled(before)
    if after != before:
        atomic_write(README, after)
    planning.write()
    print("README.md: " + ("written" if after != before else "up to date"), file=sys.stderr)
