"""A recipe's docstring, fields, presets and claims, read from its source in milliseconds: nothing is imported."""

import ast
import contextlib
import dataclasses
import difflib
import io
import os
import re
import tokenize
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gamut.papers import PAPERS, RECIPES

SIZES = ("tiny", "small", "paper")
STANDARD = {"__future__", "collections.abc", "dataclasses", "math", "pathlib", "typing"}


@dataclass(frozen=True)
class Field:
    """One field of a recipe's Config. ``note`` is the comment that stands behind it: paper value, source, meaning."""

    name: str
    type: Any
    note: str

    @property
    def paper(self) -> str:
        """The paper's value as the comment states it ("paper 48 (section 2)" gives "48"), or an empty string."""
        found = re.match(r"paper:?\s+([^(;,]+)", self.note)
        return found.group(1).strip() if found else ""


@dataclass(frozen=True)
class Recipe:
    """What can be known of a recipe before it is imported."""

    name: str
    path: Path
    doc: str
    fields: tuple[Field, ...]
    presets: dict[str, Any]  # size -> an instance of a dataclass with these fields
    claims: tuple[str, ...]
    functions: frozenset[str]  # names of its functions: main, and maybe plan, evaluate

    @property
    def typed(self) -> str:
        """What a command line calls it: its name, or the path of a file that is not one of ours."""
        return self.name if self.path.parent == RECIPES else os.path.relpath(self.path)

    def preset(self, size: str) -> dict[str, Any]:
        """Field -> value of one size.

        Raises:
            ValueError: if the recipe has no such size.
        """
        if size not in self.presets:
            raise ValueError(f"{self.name} has no size '{size}'; it has: {', '.join(self.presets)}")
        return {field.name: getattr(self.presets[size], field.name) for field in self.fields}


def find(name: str) -> str:
    """The recipe's own name for what was typed: hyphens count as underscores.

    Raises:
        ValueError: if it is unknown, with the closest names, or if it is not built yet.
    """
    typed = name.replace("-", "_").lower()
    built = sorted(path.stem for path in RECIPES.glob("*.py") if not path.stem.startswith("_"))
    if typed in built:
        return typed
    known = sorted({paper.name for paper in PAPERS} | set(built))
    if typed in known:
        raise ValueError(f"recipe '{typed}' is not built yet; built: {', '.join(built) or 'none'}. See: gamut list")
    near = difflib.get_close_matches(typed, known, n=3, cutoff=0.6)
    raise ValueError(f"unknown recipe '{name}'; closest: {', '.join(near) or 'none'}. See: gamut list")


def tuned(name: str) -> str:
    """The recipe that ``name --data FOLDER`` runs: NAME_tune, where there is one.

    Raises:
        ValueError: as `find`; or if what the recipe makes is not tuned on data of one's own.
    """
    if name.endswith(".py"):
        return name
    other = f"{find(name).removesuffix('_tune')}_tune"
    if not (RECIPES / f"{other}.py").exists():
        able = sorted(path.stem.removesuffix("_tune") for path in RECIPES.glob("*_tune.py"))
        raise ValueError(f"recipe {name} takes no data of your own; --data goes with: {', '.join(able)}")
    return other


def read(name: str) -> Recipe:
    """Read gamut/recipes/<name>.py, or any recipe file: a name that ends in .py is a path.

    Raises:
        ValueError: as `find`; or if the file has no Config, or a preset that needs more than literals and the
            standard library.
    """
    if not name.endswith(".py"):
        name = find(name)
        return parse(name, RECIPES / f"{name}.py")
    if not Path(name).is_file():
        raise ValueError(f"no recipe file '{name}'; copy one from {RECIPES}, or see: gamut list")
    return parse(Path(name).stem, Path(name).resolve())


def parse(name: str, path: Path) -> Recipe:
    """A recipe file under the name that its runs get."""
    text = path.read_text(encoding="utf-8")
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise ValueError(f"{path}, line {error.lineno}: {error.msg}; python cannot read this recipe") from None
    config = next((node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Config"), None)
    if config is None:
        raise ValueError(f"{path} has no class Config; a recipe states its fields in a frozen dataclass of that name")
    found = _evaluate(tree, path)
    body = text.splitlines(keepends=True)[config.lineno - 1 : config.end_lineno]
    comments = _comments("".join(body))
    fields = []
    for node in config.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            line = (node.end_lineno or node.lineno) - config.lineno + 1
            fields.append((node.target.id, comments.get(line, "")))
    types = {field.name: field.type for field in dataclasses.fields(found["Config"])}
    return Recipe(
        name=name,
        path=path,
        doc=ast.get_docstring(tree) or "",
        fields=tuple(Field(name, types[name], note) for name, note in fields),
        presets={size: found[size.upper()] for size in SIZES if size.upper() in found},
        claims=tuple(_claims(tree)),
        functions=frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef)),
    )


def _evaluate(tree: ast.Module, path: Path) -> dict[str, Any]:
    """Run only the lines that define Config and the presets, with nothing but the standard library in reach."""
    wanted = []
    for node in tree.body:
        names = {target.id for target in getattr(node, "targets", []) if isinstance(target, ast.Name)}
        if isinstance(node, ast.ImportFrom) and node.module in STANDARD:
            wanted.append(node)
        elif isinstance(node, ast.Import) and all(alias.name in STANDARD for alias in node.names):
            wanted.append(node)
        elif isinstance(node, ast.ClassDef) and node.name == "Config":
            wanted.append(node)
        elif names & {size.upper() for size in SIZES}:
            wanted.append(node)
        elif names and all(name.isupper() for name in names) and isinstance(node, ast.Assign):
            with contextlib.suppress(ValueError):  # a constant that a preset may name
                ast.literal_eval(node.value)
                wanted.append(node)
    space: dict[str, Any] = {"__name__": f"gamut.recipes.{path.stem}"}
    try:
        exec(compile(ast.Module(wanted, []), str(path), "exec", dont_inherit=True), space)
    except NameError as error:
        raise ValueError(f"{path}: Config and presets may use literals and the standard library; {error}") from None
    return space


def _comments(text: str) -> dict[int, str]:
    """Line number -> the comment on it."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {token.start[0]: token.string.lstrip("# ").rstrip() for token in tokens if token.type == tokenize.COMMENT}


def _claims(tree: ast.Module) -> list[str]:
    """First argument of every Claim(...) in CLAIMS; of an f-string, its source."""
    found = []
    stated = [node for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CLAIMS"]
    for node in [part for assignment in stated for part in ast.walk(assignment)]:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Claim" and node.args:
            text = node.args[0]
            plain = text.value if isinstance(text, ast.Constant) else ast.unparse(text).removeprefix("f").strip("'\"")
            found.append(str(plain))
    return found
