"""The command `gamut`. It starts in a fraction of a second; torch is imported only when something must run."""

import difflib
import itertools
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gamut.io.source import Recipe, read
from gamut.papers import PAPERS, measured

WIDE = 132  # columns of a table that goes to a file or a pipe


def console() -> Console:
    """Standard output, wide enough for a table where there is no terminal to ask."""
    found = Console()
    return found if found.is_terminal else Console(width=WIDE)


def papers() -> None:
    """The fifteen papers, a line each: what runs here and how long it takes."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("recipe", "paper", "arXiv", "what it does"):
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    table.add_column("minutes", justify="right", no_wrap=True)
    table.add_column("claims", justify="right", no_wrap=True)
    seen = measured()
    for paper in PAPERS:
        row = [paper.name, paper.title, paper.arxiv, paper.line]
        if paper.built:
            known = seen.get(paper.name, {})
            claims = str(len(read(paper.name).claims))
            row += [f"{known['minutes']:.0f}", f"{known['passed']}/{claims}"] if known else ["-", claims]
            row[0] = f"[bold cyan]{row[0]}[/]"
        table.add_row(*row, *([] if paper.built else ["not yet", ""]), style=None if paper.built else "bright_black")
    console().print(table)
    console().print("\nminutes: tiny size, two cores. Next: [cyan]gamut show RECIPE[/], then [cyan]gamut run RECIPE[/]")


def show(what: str, /) -> None:
    """A recipe: its text, every field with paper value and source, its claims. `show metrics`: what logged names mean.

    Args:
        what: a recipe of `gamut list`, or the word metrics.
    """
    out = console()
    if what == "metrics":
        return _show_metrics(out)
    recipe = read(what)
    out.print(Text(recipe.doc), "")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    sizes = list(recipe.presets)
    for name in ("field", *sizes):
        table.add_column(name, justify="left" if name == "field" else "right", no_wrap=name == "field")
    table.add_column("source and meaning")
    presets = [recipe.preset(size) for size in sizes]
    for field in recipe.fields:
        values = [str(preset[field.name]) for preset in presets]
        table.add_row(f"[bold]{field.name}[/]", *(Text(value) for value in values), Text(field.note))
    out.print(table)
    if recipe.claims:
        out.print("\n[dim]claims, checked at tiny size[/]")
        for claim in recipe.claims:
            out.print(Text(f"  - {claim}"))
    out.print(f"\nNext: [cyan]gamut run {recipe.name}[/]   fields: [cyan]gamut run {recipe.name} --help[/]")


def _show_metrics(out: Console) -> None:
    from gamut.train.log import METRICS

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("name", "unit", "meaning"):
        table.add_column(name)
    for name, (unit, text) in METRICS.items():
        table.add_row(f"[bold]{name}[/]", unit, text)
    out.print(table)
    out.print("\nA prefix says where (eval/loss: on held-out data), a suffix compares (wer/chance: what luck gives).")


def run(args: Sequence[str]) -> None:
    """Run a recipe, from its data to report.html; or go on with a run that was stopped."""
    from gamut import api

    name = args[0] if args and not args[0].startswith("-") else None
    rest = list(args[1:] if name else args)
    stopped = _value_of(rest, "--resume")
    if name is None and stopped is None:
        if {"-h", "--help"} & set(rest):
            return _usage()
        raise ValueError("gamut run needs a recipe: gamut run step_audio_2. See: gamut list")
    recipe = read(name or _recipe_of(stopped or ""))
    size = _value_of(rest, "--size") or "tiny"
    overrides, options = _parse(recipe, size, rest)
    if options["plan"]:
        return _plan(recipe, api.configure(recipe, recipe.preset(size), overrides))
    try:
        if options["resume"]:
            recipe, config, folder = api.reopen(options["resume"], overrides, name)
        else:
            config = api.configure(recipe, recipe.preset(size), overrides)
            folder = api.begin(recipe, config, size, options["out"], options["name"])
        _finished(api.execute(recipe, config, folder))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; go on with: gamut run --resume {folder.path}") from None


def _usage() -> None:
    console().print(
        "usage: gamut run RECIPE [--size tiny|small|paper] [--FIELD VALUE ...] [--name N] [--out runs] [--plan]\n"
        "       gamut run --resume runs/NAME\n\nThe fields of a recipe: gamut run RECIPE --help",
        markup=False,
    )


def _value_of(args: Sequence[str], flag: str) -> str | None:
    """What follows ``flag``, before the parser knows which recipe's fields to expect."""
    for here, after in itertools.zip_longest(args, args[1:]):
        if here == flag:
            return after
        if here.startswith(f"{flag}="):
            return here.partition("=")[2]
    return None


def _recipe_of(folder: str) -> str:
    from gamut.io.runs import Run

    return Run.open(folder).config.get("recipe", "")


def _parse(recipe: Recipe, size: str, args: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(fields that differ from the preset, options) of a command line, by tyro; misspelt fields get a suggestion."""
    from dataclasses import make_dataclass

    import tyro

    from gamut.api import unknown

    preset = recipe.preset(size)
    options = {
        "size": (Literal[tuple(recipe.presets)], size, "which preset to start from"),
        "name": (str, recipe.name, "of the run folder; a taken one gets -2, -3, ..."),
        "out": (str, "runs", "folder of run folders"),
        "resume": (str, "", "a run folder to go on with; its config is kept"),
        "plan": (tyro.conf.FlagCreatePairsOff[bool], False, "print parameters, memory, FLOPs and GPUs; train nothing"),
    }
    for word in args:
        if word.startswith("--"):
            field = word[2:].partition("=")[0].replace("-", "_")
            if field not in {*preset, *options, "help"} and field.removeprefix("no_") not in preset:
                raise ValueError(unknown(recipe, field, options))
    fields = [(f.name, Annotated[f.type, tyro.conf.arg(help=f.note)], preset[f.name]) for f in recipe.fields]
    asked = [(key, Annotated[kind, tyro.conf.arg(help=text)], value) for key, (kind, value, text) in options.items()]
    Fields = make_dataclass("Fields", fields, frozen=True)
    Options = make_dataclass("Options", asked, frozen=True)

    def command(options: Annotated[Options, tyro.conf.arg(name="")], fields: Annotated[Fields, tyro.conf.arg(name="")]):
        chosen = {name: getattr(fields, name) for name in preset}
        return {name: value for name, value in chosen.items() if value != preset[name]}, vars(options)

    return tyro.cli(command, args=args, prog=f"gamut run {recipe.name}", description=recipe.doc.partition("\n")[0])


def _plan(recipe: Recipe, config: Any) -> None:
    from gamut.api import module

    if "plan" not in recipe.functions:
        raise ValueError(f"recipe {recipe.name} has no plan; it runs with gamut run {recipe.name}")
    planned = module(recipe).plan(config)
    if planned is not None:
        console().print(planned)


def _finished(result: Any) -> None:
    """Claims and numbers as tables, and the path of the report as the last line."""
    out = console()
    for row in result.notes.get("claims", ()):
        values = ", ".join(f"{name} {value:.4g}" for name, value in (row["measured"] | row["beside"]).items())
        mark = Text("pass  ", "green") if row["passed"] else Text("FAIL  ", "bold red")
        out.print(mark + Text(row["text"]) + Text(f"   {values}", "dim"))
    if result.run is not None:
        out.print(Text(str(result.run / "report.html")), soft_wrap=True)


def env() -> None:
    """What a bug report needs: versions, processor, threads, memory, commit, extras, data folders."""
    from gamut.io.env import environment

    for name, value in environment().items():
        print(f"{name:<16} {value}")


COMMANDS: dict[str, Callable[..., Any]] = {"list": papers, "show": show, "run": run, "env": env}


def _help() -> None:
    out = console()
    out.print("gamut: fifteen papers as fifteen short recipes\n\nusage: gamut COMMAND ...\n")
    for name, command in COMMANDS.items():
        out.print(Text(f"  {name:<10}", "cyan") + Text((command.__doc__ or "").strip().split("\n")[0]))
    out.print("\nStart with: gamut list. More on a command: gamut COMMAND --help")


def dispatch(args: Sequence[str]) -> None:
    """Run one command line.

    Raises:
        ValueError: for whatever the user typed wrong, with what to type instead.
    """
    name, rest = (args[0], list(args[1:])) if args else ("--help", [])
    if name in ("-h", "--help", "help"):
        return _help()
    if name in ("-V", "--version"):
        from gamut import __version__

        return print(f"gamut {__version__}")
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=2, cutoff=0.5)
        raise ValueError(f"unknown command '{name}'; closest: {', '.join(near) or 'none'}. See: gamut --help")
    if name == "run":
        return run(rest)
    import tyro

    return tyro.cli(COMMANDS[name], args=rest, prog=f"gamut {name}")


def _ours(error: BaseException) -> bool:
    """Raised by a line of gamut itself, so that its text is meant for the person who typed."""
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    return Path(last).is_relative_to(Path(__file__).parent)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, 2 for a mistake in what was typed or given, 130 when stopped by Ctrl-C."""
    errors = Console(stderr=True, soft_wrap=True)
    try:
        dispatch(sys.argv[1:] if argv is None else argv)
    except (ValueError, ImportError) as error:
        if os.environ.get("GAMUT_TRACEBACK") or not _ours(error):
            raise
        errors.print(Text(f"error: {error}", "bold red"))
        return 2
    except KeyboardInterrupt as stop:
        errors.print(Text(f"\n{stop}" if str(stop) else "\nstopped"))
        return 130
    return 0
