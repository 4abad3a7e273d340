"""The command `gamut`. It starts in a fraction of a second; torch is imported only when something must run."""

import difflib
import errno
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gamut import __version__
from gamut.io.source import Recipe, read, tuned
from gamut.papers import PAPERS, measured

ROOM, RIGHTS = "make room, then type the same again", "see who may read and write there"
Weights = Literal["auto", "float32", "bfloat16", "int8"]
HINTS = {errno.ENOSPC: ROOM, errno.EDQUOT: ROOM, errno.EACCES: RIGHTS, errno.EPERM: RIGHTS, errno.EROFS: RIGHTS}


def console() -> Console:
    """Standard output, wide enough for a table where there is no terminal to ask."""
    found = Console()
    return found if found.is_terminal else Console(width=132)


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
            table.add_row(f"[bold cyan]{paper.name}[/]", *row[1:], *_record(paper.name, seen))
        else:
            table.add_row(*row, "not yet", style="bright_black")
        for part in paper.parts:
            line = read(part).doc.partition("\n")[0].partition(": ")[2]
            table.add_row(f"[bold cyan]{part}[/]", "", "", line, *_record(part, seen))
    console().print(table)
    console().print("\nminutes: tiny size, two cores. Next: [cyan]gamut show RECIPE[/], then [cyan]gamut run RECIPE[/]")


def _record(recipe: str, seen: dict[str, dict]) -> tuple[str, str]:
    """Minutes and claims of the last recorded run, or how many claims there are to check."""
    claims = len(read(recipe).claims)
    if recipe not in seen:
        return "-", str(claims)
    return f"{max(1, seen[recipe]['minutes']):.0f}", f"{seen[recipe]['passed']}/{claims}"


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
    table.add_column("field", no_wrap=True)
    for size in sizes:
        table.add_column(size, justify="right", max_width=26, overflow="fold")
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
    out.print(f"\nNext: [cyan]gamut run {recipe.typed}[/]   fields: [cyan]gamut run {recipe.typed} --help[/]")


def _show_metrics(out: Console) -> None:
    from gamut.train.log import METRICS

    table = Table("name", "unit", "meaning", box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name, (unit, text) in METRICS.items():
        table.add_row(f"[bold]{name}[/]", unit, text)
    out.print(table)
    out.print("\nA prefix says where (eval/loss: on held-out data), a suffix compares (wer/chance: what luck gives).")


def run(args: Sequence[str]) -> None:
    """Run a recipe, from its data to report.html; or go on with a run that was stopped."""
    from gamut import api

    name = args[0] if args and not args[0].startswith("-") else None
    rest = list(args[1:] if name else args)
    stopped, size, data = (_value_of(rest, flag) for flag in ("--resume", "--size", "--data"))
    name = tuned(name) if name and data is not None else name
    if stopped is not None:
        folder = api.Run.open(stopped)
        recipe, kept, values = api.asked(folder)
        if size not in (None, kept):
            raise ValueError(f"'{stopped}' is of size {kept}, not {size}; drop --size, or start a new run")
        overrides, options = _parse(recipe, kept, values, rest)
        recipe, config = api.reopen(folder, overrides, name)
    elif name is not None:
        recipe, size = read(name), size or "tiny"
        overrides, options = _parse(recipe, size, recipe.preset(size), rest)
        config = api.configure(recipe, recipe.preset(size), overrides)
        if options["plan"]:
            return _plan(recipe, config)
        folder = api.begin(recipe, config, size, options["out"], options["name"])
    elif {"-h", "--help"} & set(rest):
        return _usage()
    else:
        raise ValueError("gamut run needs a recipe: gamut run step_audio_2. See: gamut list")
    try:
        _finished(api.execute(recipe, config, folder))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        again = f"make room, then: gamut run --resume {folder.path}"
        raise ValueError(f"{error}; what was saved before is whole; {again}") from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; go on with: gamut run --resume {folder.path}") from None


def _usage() -> None:
    console().print(
        "usage: gamut run RECIPE [--size tiny|small|paper] [--FIELD VALUE ...] [--name N] [--out runs] [--plan]\n"
        "       gamut run step_audio_2 --data FOLDER ...   # fine-tunes it on your own conversations\n"
        "       gamut run --resume runs/NAME\n\nThe fields of a recipe: gamut run RECIPE --help",
        markup=False,
    )


def _value_of(args: Sequence[str], flag: str) -> str | None:
    """What follows ``flag``, before the parser knows which recipe's fields to expect."""
    for here, after in zip(args, [*args[1:], "--"], strict=False):
        if here == flag:
            if after.startswith("--"):
                raise ValueError(f"{flag} needs a value behind it. See: gamut run --help")
            return after
        if here.startswith(f"{flag}="):
            return here.partition("=")[2]
    return None


def _parse(
    recipe: Recipe, size: str, preset: dict[str, Any], args: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(fields that differ from ``preset``, options) of a command line, by tyro; misspelt fields get a suggestion."""
    from dataclasses import make_dataclass

    import tyro

    from gamut.api import unknown

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
    entries = [(name, kind, value, text) for name, (kind, value, text) in options.items()]
    entries += [(field.name, field.type, preset[field.name], field.note) for field in recipe.fields]
    Line = make_dataclass(
        "Line", [(name, Annotated[kind, tyro.conf.arg(help=text)], value) for name, kind, value, text in entries]
    )
    summary = recipe.doc.partition("\n")[0]
    chosen = vars(tyro.cli(Line, args=args, prog=f"gamut run {recipe.typed}", description=summary))
    moved = {name: chosen[name] for name in preset if chosen[name] != preset[name]}
    return moved, {name: chosen[name] for name in options}


def _plan(recipe: Recipe, config: Any) -> None:
    from gamut.api import module

    _able(recipe, "plan")
    for name, value in module(recipe).plan(config).items():
        console().print(Text(f"{name:<40}") + Text(f"{value:>20,.3f}".rstrip("0").rstrip("."), "bold"))


def _finished(result: Any) -> None:
    """Claims and numbers as tables, and the path of the report as the last line."""
    from gamut.train.dist import rank

    if rank() == 0:
        _verdicts(result.notes["claims"])
        console().print(Text(str(result.run / "report.html")), soft_wrap=True)


def _verdicts(rows: Sequence[dict[str, Any]]) -> None:
    out = console()
    for row in rows:
        values = ", ".join(f"{name} {value:.4g}" for name, value in (row["measured"] | row["beside"]).items())
        mark = Text("pass  ", "green") if row["passed"] else Text("FAIL  ", "bold red")
        out.print(mark + Text(row["text"]) + Text(f"   {values}", "dim"))


def evaluate(folder: Path, /) -> None:
    """Measure a run or a checkpoint again: the recipe's metrics and claims.

    Args:
        folder: a run folder, or a checkpoint of a recipe.
    """
    from gamut import api

    recipe = api.maker(folder)
    _able(recipe, "evaluate")
    body = api.module(recipe)
    result = body.evaluate(folder)
    table = Table("metric", box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("value", justify="right")
    for name, value in result.metrics.items():
        table.add_row(name, f"{value:.4g}")
    console().print(table, "")
    _verdicts(api.verdicts(body.CLAIMS, result))


def chat(
    question: Path | None = None, /, *, model: Path | None = None, system: str = "", text: str = "",
    out: Path = Path("answer.wav"), voice: Path | None = None, voices: str = "", documents: str = "",
    thinks: bool = False, written: bool = False, transcript: bool = True, weights: Weights = "auto",
) -> None:
    """Ask a speech model: a recording in, its answer in text and as a sound file.

    Args:
        question: a sound file, one still being recorded, or a folder of them (turns); none where --text asks alone.
        model: a run folder or a checkpoint; the shipped tiny weights if left out.
        system: what the model is told to do with what it hears.
        text: what is said in writing, beside the sound.
        out: a .wav for the spoken answers.
        voice: a recording of 0.5 to 10 s, to be answered in its voice; a released model has to be converted for it.
        documents: a folder, or a URL with %s for the query, where a released model may search.
        voices: a folder of clips with transcripts.csv (file, text, description), to find a voice to answer in.
        thinks: ask for a thought before the answer.
        written: the answer in writing, even where the model could speak it.
        transcript: print what the model heard, too.
        weights: auto is int8 for a large model (bfloat16 on a GPU), a quarter of the memory of float32.
    """
    from gamut import api
    from gamut.generate.chatting import asked, chat
    from gamut.generate.speaker import Speaker

    kept = [Path(file) for file in (voice, *(Path(voices).rglob("*") if voices else ())) if file]
    asked(question, text, out, kept)
    more = {"documents": documents, "voices": voices, "weights": weights}
    speaker = Speaker.load(model or api.shipped("step_audio_2"), voice, **more)
    chat(speaker, question, system=system, text=text, out=out, thinks=thinks, written=written, transcript=transcript,
         kept=kept)  # fmt: skip


def _able(recipe: Recipe, what: str) -> None:
    if what not in recipe.functions:
        raise ValueError(f"recipe {recipe.name} has no {what}; it runs with gamut run {recipe.typed}")


def convert(src: Path, dst: Path, /) -> None:
    """Read an official checkpoint folder and write ours, then load that.

    Args:
        src: a released folder (config.json and weights), a token2wav or Step-Audio-Tokenizer folder, or one .onnx file.
        dst: a folder that does not exist yet.
    """
    from gamut import api
    from gamut.io.convert import convert

    model = api.load(convert(src, dst), dtype=None)  # strictly, as every use of it will
    count = sum(p.numel() for p in model.parameters())
    console().print(Text(f"it loads as {type(model).__name__}: {count:,} parameters, every name and shape as asked"))
    print(dst)


def export(src: Path, dst: Path, /, *, to: Literal["hf"] = "hf", lora: Path | None = None, merge: bool = False) -> None:
    """Write one of our checkpoints in the official layout, for transformers and other tools.

    Args:
        src: a checkpoint folder of ours, or a run.
        dst: a folder that does not exist yet.
        to: the layout.
        lora: an adapter folder (peft's layout) to write beside the weights.
        merge: add the adapter to the weights instead.
    """
    from gamut.io.convert import export

    print(export(src, dst, to, lora=lora, merge=merge))


def env() -> None:
    """What a bug report needs: versions, processor, threads, memory, commit, extras, data folders."""
    from gamut.io.env import environment

    for name, value in environment().items():
        print(f"{name:<16} {value}")


def plan(args: Sequence[str]) -> None:
    """Plan a run before paying for it, by arithmetic alone. The topics: gamut plan."""
    from gamut.plan.topics import TOPICS, overview

    name = args[0].replace("-", "_") if args else "__help"
    if name in ("_h", "__help"):
        return console().print(Text(overview()), soft_wrap=True)
    if name not in TOPICS:
        near = difflib.get_close_matches(name, TOPICS, n=2, cutoff=0.4)
        raise ValueError(f"unknown topic '{args[0]}'; closest: {', '.join(near) or 'none'}. See: gamut plan")
    entry = importlib.import_module(TOPICS[name].module).main
    if list(signature(entry).parameters) == ["args"]:  # it parses its words itself
        return entry(list(args[1:]))
    import tyro

    return tyro.cli(entry, args=list(args[1:]), prog=f"gamut plan {name}")


COMMANDS: dict[str, Callable[..., Any]] = {
    "list": papers, "show": show, "run": run, "eval": evaluate, "chat": chat, "plan": plan,
    "convert": convert, "export": export, "env": env,
}  # fmt: skip
RAW = ("run", "plan")  # these parse their own arguments


def _help() -> None:
    out = console()
    out.print("gamut: fifteen papers as short recipes, six of them built\n\nusage: gamut COMMAND ...\n")
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
        return print(f"gamut {__version__}")
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=2, cutoff=0.5)
        raise ValueError(f"unknown command '{name}'; closest: {', '.join(near) or 'none'}. See: gamut --help")
    if name in RAW:
        return COMMANDS[name](rest)
    if not rest and not signature(COMMANDS[name]).parameters:
        return COMMANDS[name]()
    import tyro

    return tyro.cli(COMMANDS[name], args=rest, prog=f"gamut {name}")


def _ours(error: BaseException) -> bool:
    """Raised by a line of gamut itself, so that its text is meant for the person who typed."""
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    return Path(last).is_relative_to(Path(__file__).parent)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, 2 for a mistake in what was typed or given, 130 when stopped by Ctrl-C, 141 by a closed pipe."""
    errors = Console(stderr=True, soft_wrap=True)
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"  # who types needs no line of ours
    try:
        try:
            dispatch(sys.argv[1:] if argv is None else argv)
        finally:
            sys.stdout.flush()  # here, where a reader that went away (`| head`) can be dealt with
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes when it ends
        return 141
    except (ValueError, ImportError, FloatingPointError, OSError) as error:
        hint = HINTS.get(getattr(error, "errno", None) or 0)
        if os.environ.get("GAMUT_TRACEBACK") or not (hint or _ours(error)):
            raise
        errors.print(Text(f"error: {error}", "bold red"))
        for note in [*getattr(error, "__notes__", ()), *filter(None, [hint])]:
            errors.print(Text(note, "red"))
        return 2
    except KeyboardInterrupt as stop:
        errors.print(Text(f"\n{stop}" if str(stop) else "\nstopped"))
        return 130
    return 0
