"""`gamut.load`, `gamut.run` and `gamut.save`: what the command line does, as three functions."""

import difflib
import importlib
import importlib.util
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from gamut.evals.claims import Claim, Result, check
from gamut.io.env import ROOT, model_folder
from gamut.io.runs import Run
from gamut.io.source import Recipe, read, tuned
from gamut.papers import RECIPES

SPEAKERS = {"Omni": "step_audio_2", "step_audio_2": "step_audio_2"}  # class or model_type -> the recipe that runs it
WEIGHTS = ROOT / "weights"  # shipped with the repository, not with the wheel


class _Asked(dict):
    """Metrics that remember which of them a claim looked at, so that a report can show those beside it."""

    def __init__(self, values: dict[str, float]):
        super().__init__(values)
        self.names: list[str] = []

    def __getitem__(self, name: str) -> float:
        self.names.append(name)
        return super().__getitem__(name)


def verdicts(claims: Iterable[Claim], result: Result) -> list[dict[str, Any]]:
    """One row a claim: text, passed, measured (what it looked at), beside (NAME/chance, NAME/ceiling, ... of those)."""
    rows = []
    for claim in claims:
        asked = _Asked(result.metrics)
        [(text, passed)] = check([claim], replace(result, metrics=asked))
        looked = [name for name in dict.fromkeys(asked.names) if name in result.metrics]
        beside = [name for name in result.metrics if any(name.startswith(f"{seen}/") for seen in looked)]
        measured = {name: result.metrics[name] for name in looked if name not in beside}
        rows.append({"text": text, "passed": passed, "measured": measured,
                     "beside": {name: result.metrics[name] for name in beside}})  # fmt: skip
    return rows


def configure(recipe: Recipe, values: dict[str, Any], overrides: dict[str, Any]) -> Any:
    """The recipe's real Config from a preset's values and overrides by name. Imports the recipe.

    Raises:
        ValueError: if an override names no field, with the closest names; or asks for less than no updates.
    """
    names = [field.name for field in recipe.fields]
    for name, value in overrides.items():
        if name not in names:
            raise ValueError(unknown(recipe, name))
        if name.endswith("steps") and value < 0:
            raise ValueError(f"{name} must be 0 or more, got {value}. See: gamut show {recipe.typed}")
    return module(recipe).Config(**(values | overrides))


def unknown(recipe: Recipe, name: str, more: Iterable[str] = ()) -> str:
    """The message for a field that a recipe does not have."""
    near = difflib.get_close_matches(name, [*(field.name for field in recipe.fields), *more], n=3, cutoff=0.6)
    return f"unknown field '{name}'; closest: {', '.join(near) or 'none'}. See: gamut show {recipe.typed}"


def module(recipe: Recipe) -> Any:
    """The recipe itself, imported: by name if it is one of ours, as a file of its own if not."""
    if recipe.path.parent == RECIPES:
        return importlib.import_module(f"gamut.recipes.{recipe.name}")
    spec = importlib.util.spec_from_file_location(recipe.path.stem, recipe.path)
    assert spec is not None and spec.loader is not None
    body = sys.modules.setdefault(recipe.path.stem, importlib.util.module_from_spec(spec))
    spec.loader.exec_module(body)
    return body


def begin(recipe: Recipe, config: Any, size: str, out: str | Path, name: str | None) -> Run:
    """A new run folder that says enough of itself to be resumed. Processes that torchrun started share one."""
    from gamut.train import dist

    dist.start()
    which = recipe.name if recipe.path.parent == RECIPES else str(recipe.path)
    stored = {"recipe": which, "size": size, "config": asdict(config)}
    made = Run.create(out, name or recipe.name, stored) if dist.rank() == 0 else None
    [path, *_] = dist.gather(made and made.path)
    return made or Run.open(path)


def asked(run: Run) -> tuple[Recipe, str, dict[str, Any]]:
    """What a run folder was asked for: recipe, size, values of the fields. A recipe of the user's own may be named, but
    not one that came inside of the folder.

    Raises:
        ValueError: if it does not say.
    """
    stored = run.config
    if not {"recipe", "size", "config"} <= set(stored):
        raise ValueError(f"'{run.path}/config.json' names no recipe; resume a folder that gamut run made")
    recipe = read(stored["recipe"])
    if recipe.path.is_relative_to(run.path.resolve()):
        raise ValueError(f"'{run.path}' brings its own recipe, {recipe.path.name}, which may do anything; read it, and "
                         f"put it elsewhere if it is to be run")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in stored["config"].items()}
    return recipe, stored["size"], values  # tuples again: JSON has none, a frozen Config no lists


def reopen(run: Run, overrides: dict[str, Any], recipe: str | None = None) -> tuple[Recipe, Any]:
    """Recipe and config of a run that goes on.

    Raises:
        ValueError: if it is no run of ``recipe``, or an override would change its config.
    """
    source, _, values = asked(run)
    if recipe is not None and read(recipe).path != source.path:
        raise ValueError(f"'{run.path}' is a run of {source.name}, not of {recipe}; use gamut run --resume {run.path}")
    config = configure(source, values, {})
    changed = asdict(configure(source, values, overrides))
    moved = [name for name in overrides if changed[name] != values[name]]
    if moved:
        raise ValueError(f"a resumed run keeps its config, but {', '.join(moved)} would change; start a new run")
    return source, config


def run(
    recipe: str | None = None,
    size: str = "tiny",
    *,
    out: str | Path = "runs",
    name: str | None = None,
    resume: str | Path | None = None,
    **overrides: Any,
) -> Result:
    """Run a recipe from its first stage to its report, or go on with a run that was stopped.

    Args:
        recipe: its name as in `gamut list`; may be left out with ``resume``.
        size: "tiny" (two cores, minutes), "small" (one GPU) or "paper", as far as the recipe has them.
        out: folder of run folders.
        name: of the run folder; the recipe's name if None. Never overwritten: a taken name gets -2, -3, ...
        resume: a run folder; its config is kept, its finished stages are not repeated.
        overrides: fields of the recipe's Config. With ``data`` what the recipe makes is fine-tuned on that.
    Returns:
        the recipe's result, with ``run`` set to the folder. report.html and result.json lie in it.
    Raises:
        ValueError: for an unknown recipe, size or field.
    """
    recipe = tuned(recipe) if recipe and "data" in overrides else recipe
    if resume is not None:
        folder = Run.open(resume)
        source, config = reopen(folder, overrides, recipe)
    elif recipe is None:
        raise ValueError("name a recipe, or a run to resume. See: gamut list")
    else:
        source = read(recipe)
        config = configure(source, source.preset(size), overrides)
        folder = begin(source, config, size, out, name)
    return execute(source, config, folder)


def execute(recipe: Recipe, config: Any, run: Run) -> Result:
    """main, then the claims, then result.json and report.html (written by the first process, if there are several)."""
    from gamut.io.report import Claims, Heading, run_report
    from gamut.train.dist import rank
    from gamut.train.log import COUNTS, PARTS

    body, began = module(recipe), time.monotonic()
    try:
        result = replace(body.main(config, run), run=run.path)
    except ValueError:
        run.forget()
        raise
    finally:
        run.close()
    rows = verdicts(getattr(body, "CLAIMS", ()), result)
    minutes = round((time.monotonic() - began) / 60, 2)
    if rank() == 0:
        run.finish({"metrics": result.metrics, "claims": rows, "minutes": minutes})
        blocks = [Heading("What is claimed, and whether it holds"), Claims(rows)] if rows else []
        blocks += result.notes.get("report", [])
        run_report(run, recipe, blocks, minutes=minutes, parts=list(PARTS), counts=COUNTS)
    return replace(result, notes=result.notes | {"claims": rows})


def maker(folder: Path) -> Recipe:
    """The recipe that measures a run folder, or a checkpoint that was taught what it asks.

    A checkpoint names no file to be run, whatever its config.json says.

    Raises:
        ValueError: if the folder does not say, or is a model that the recipe's examination is not for.
    """
    from gamut.io.folders import TAUGHT, load_config

    if (folder / "env.json").exists():
        return asked(Run.open(folder))[0]
    if (folder.resolve().parent / "env.json").exists():
        raise ValueError(f"'{folder}' is the model of a run, which knows what it was asked; give that: "
                         f"gamut eval {folder.parent}")
    config = load_config(folder)
    name = SPEAKERS.get(config.get("class", config.get("model_type")))
    if name is None:
        raise ValueError(f"'{folder}' is neither a run of a recipe nor a model of one; give a folder of runs/ or "
                         f"weights/")
    if not (folder / TAUGHT).exists():
        raise ValueError(f"'{folder}' was not taught what {name} asks in its examination; ask it with gamut chat, or "
                         f"measure it on what you hold out: gamut run {name} --init {folder} --data FOLDER")
    return read(name)


def load(name: str | Path, size: str = "tiny", *, dtype: Any = ...) -> Any:
    """A model or codec with its weights: of a recipe that ships them, of a run, of a folder of ours or a released one.

    Args:
        dtype: of the weights, a torch.dtype; None keeps the file's. Float32 if left out.
    Raises:
        ValueError: if there is no such folder and no such shipped recipe, or nothing of that size is shipped.
    """
    from gamut.io.convert import family
    from gamut.io.folders import load_config

    try:
        folder = model_folder(name if Path(name).is_dir() else shipped(str(name), size))
    except ValueError as error:
        raise ValueError(f"there is no folder '{name}', and no weights come under that name: {error}") from None
    described = folder / "config.json"
    if not described.exists():
        raise ValueError(f"'{folder}' holds no config.json, so it is not a checkpoint; there is: {_children(folder)}")
    config = load_config(folder)
    kind = _class(config.get("class") or family(config, folder)[0])
    return kind.from_pretrained(folder) if dtype is ... else kind.from_pretrained(folder, dtype)


def shipped(name: str, size: str = "tiny") -> Path:
    """Folder of the weights that come with the repository for a recipe.

    Raises:
        ValueError: if there is none, with the ways to get one.
    """
    recipe = read(name).name
    if size != "tiny":
        raise ValueError(f"only tiny weights are shipped, not {size}; give the folder of a checkpoint instead")
    if not (WEIGHTS / recipe).is_dir():
        raise ValueError(
            f"no weights of {recipe} at {WEIGHTS / recipe}: they come with the repository, not with the wheel; "
            f"give a folder, or train them with gamut run {recipe}"
        )
    return WEIGHTS / recipe


def _children(folder: Path) -> str:
    return ", ".join(sorted(child.parent.name for child in folder.glob("*/config.json"))) or "nothing that is one"


def _class(name: str) -> Any:
    """The class of that name, from whichever file of models/ or codecs/ defines it."""
    package = Path(__file__).parent
    for file in sorted([*package.glob("models/*.py"), *package.glob("codecs/*.py")]):
        if f"\nclass {name}(" in file.read_text():
            return getattr(importlib.import_module(f"gamut.{file.parent.name}.{file.stem}"), name)
    raise ValueError(f"no model or codec is called '{name}'; the folder may be of a newer gamut")


def save(model: Any, folder: str | Path, card: str = "") -> Path:
    """Write a model or codec with its config as a folder that `load` reads. ``card`` becomes its README.md."""
    model.save_pretrained(folder, card=card)
    return Path(folder)
