"""The house rules that a machine can check: layers, sizes, reading cost, start-up time, core-only imports, words."""

import ast
import contextlib
import dataclasses
import importlib.metadata
import re
import resource
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from gamut.io.source import Recipe, parse

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "gamut"
ORDER = [
    {"papers"}, {"io"}, {"nn", "plan"}, {"losses"}, {"codecs", "models"}, {"data", "generate"}, {"train", "evals"},
    {"rl"}, {"serve", "recipes"}, {"api"}, {"cli"}, {"__main__"},
]  # fmt: skip
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
FREE = {"gamut.train.dist", "gamut.train.log"}  # beside io/ and evals/: not counted as what a recipe's reader must read
READING = {  # three networks and judges; conversations, tools and orders; a trainer and laws; both fusions
    "step_audio_2_codec": 4090, "step_audio_2": 3960, "farseer": 4250, "rlhfuse": 3050,
}  # fmt: skip
CORE = {"torch", "numpy", "scipy", "safetensors", "jaxtyping", "tyro", "rich"}
MODULES = sorted(PACKAGE.rglob("*.py"))
RECIPES = [path for path in MODULES if path.parent.name == "recipes" and path.stem != "__init__"]
WORDS = r"\b(TODO|FIXME|XXX|HACK)\b|raise NotImplementedError|\b(robust|seamless|comprehensive|powerful|blazing)(ly)?\b"


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(path: Path) -> frozenset[tuple[int, str]]:
    """(line, our module) of every import in a file, those inside functions too; the lazy root package is left out."""
    known, found = {dotted(module) for module in MODULES}, set()
    for node in ast.walk(tree(path)):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write it out from gamut"
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module or ""]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {(node.lineno, name) for name in names if name in known and name != "gamut"}
    return frozenset(found)


def test_imports_only_point_up():
    bad = []
    for path in MODULES:
        here = dotted(path).split(".")[1:2]
        for line, name in imports(path):
            there = name.split(".")[1]
            if here and there != here[0] and RANK.get(there, 99) >= RANK[here[0]]:
                bad.append(f"{path.relative_to(ROOT)}:{line}: {here[0]} must not import {there}")
    assert not bad, "\n".join(bad)


def test_no_import_cycles():
    """Function-level imports count: that is where cycles hide."""
    graph = {dotted(path): {name for _, name in imports(path)} for path in MODULES if dotted(path) != "gamut"}
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> None:
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for other in sorted(graph.get(name, ())):
                if not name.startswith(f"{other}."):  # its own package, whose __init__ is empty
                    visit(other, [*trail, name])
            done.add(name)

    for name in graph:
        visit(name, [])


def test_folders_have_empty_inits_and_something_in_them():
    for init in PACKAGE.rglob("__init__.py"):
        if init.parent != PACKAGE:
            assert not init.read_text().strip(), f"{init}: folder __init__ files are empty"
            assert len(list(init.parent.glob("*.py"))) > 1, f"{init.parent} has nothing in it"


def test_files_and_functions_fit_their_budget():
    """400 lines a file, 250 a recipe, 60 a function; nesting of at most two folders."""
    bad = []
    for path in MODULES:
        name, most = path.relative_to(ROOT), 250 if path in RECIPES else 400
        if (lines := len(path.read_text().splitlines())) > most:
            bad.append(f"{name}: {lines} lines, at most {most}")
        if len(name.parts) > 4:
            bad.append(f"{name}: more than two folders deep")
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > 60:
                    bad.append(f"{name}:{node.lineno}: {node.name} has {lines} lines, at most 60")
    assert not bad, "\n".join(bad)


@pytest.fixture(params=RECIPES, ids=lambda path: path.stem)
def recipe(request) -> Recipe:
    return parse(request.param.stem, request.param)


def test_reading_a_recipe_costs_at_most_3000_lines(recipe):
    """Everything of ours that it imports, directly or not; io/, evals/, train/dist and train/log are not counted."""
    seen, todo = set(), [recipe.path]
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        for _, name in imports(path):
            file = ROOT / (name.replace(".", "/") + ".py")
            if file.exists() and not name.startswith(("gamut.io", "gamut.evals")) and name not in FREE:
                todo.append(file)
    lines = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in seen}
    assert sum(lines.values()) <= READING.get(recipe.name, 3000), sorted(lines.items(), key=lambda item: -item[1])


def test_recipes_are_wiring(recipe):
    """At most 20 fields, each with a word on its source; presets, main and claims; no nn.Module of its own."""
    assert len(recipe.fields) <= 20
    assert "tiny" in recipe.presets and "main" in recipe.functions and recipe.claims
    assert re.search(r"arXiv \d{4}\.\d{5}", recipe.doc), "the docstring names the paper"
    unsourced = [field.name for field in recipe.fields if not re.search(r"paper|ours|not found", field.note)]
    assert not unsourced, f"{recipe.name}: fields without a paper value or 'ours' behind them: {unsourced}"
    options = {"size", "name", "out", "resume", "plan", "help"}
    assert not options & {field.name for field in recipe.fields}, "these names are options of gamut run"
    for node in ast.walk(tree(recipe.path)):
        if isinstance(node, ast.ClassDef):
            assert node.name == "Config", f"{recipe.name} defines {node.name}; classes belong to the parts"


def test_paper_values_in_comments_are_those_of_the_paper_preset(recipe):
    """`layers: int = 2  # paper 48` and PAPER must not disagree."""
    if "paper" not in recipe.presets:
        pytest.skip("no paper preset")
    preset = recipe.preset("paper")
    for field in recipe.fields:
        try:
            stated = ast.literal_eval(field.paper)
        except (ValueError, SyntaxError):
            continue  # words, or an expression such as 3^8
        assert preset[field.name] == stated, f"{recipe.name}.{field.name}: comment {stated}, PAPER {preset[field.name]}"


def test_source_reader_agrees_with_the_imported_recipe(recipe):
    """What `gamut show` prints without importing is what runs."""
    module = __import__(f"gamut.recipes.{recipe.name}", fromlist=["Config"])
    for size in recipe.presets:
        assert recipe.preset(size) == dataclasses.asdict(getattr(module, size.upper()))
    assert len(recipe.claims) == len(module.CLAIMS)


def cpu_seconds(code: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("args", ["--help", "list", "show step_audio_2", "show metrics", "plan"])
def test_the_command_starts_in_a_third_of_a_second_without_torch(args):
    code = (
        f"import sys; from gamut.cli import main; code = main({args.split()!r}); "
        "assert code == 0, code; assert 'torch' not in sys.modules, 'torch was imported'"
    )
    assert min(cpu_seconds(code) for _ in range(3)) < 0.3


def test_a_model_loads_without_the_compiler():
    """torch._dynamo takes seconds to import; one sum on the meta device is enough to ask for it."""
    code = (
        "import sys; from gamut.generate.speaker import Speaker; Speaker.load('weights/step_audio_2'); "
        "assert 'torch._dynamo' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def beyond_the_core() -> list[str]:
    """Top-level modules that are installed here but belong neither to CORE nor to what CORE depends on."""
    core, todo = set(), set(CORE)
    while todo:
        name = canonicalize_name(todo.pop())
        core.add(name)
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            wanted = [Requirement(line) for line in importlib.metadata.requires(name) or ()]
            needed = [item for item in wanted if item.marker is None or item.marker.evaluate({"extra": ""})]
            todo |= {canonicalize_name(item.name) for item in needed} - core
    owners = importlib.metadata.packages_distributions()
    return [name for name in owners if name != "gamut" and not core & set(map(canonicalize_name, owners[name]))]


HIDE = """
import importlib, importlib.machinery, sys

class Hidden(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {hidden!r} else super().find_spec(name, path, target)

sys.meta_path[:] = [importlib.machinery.BuiltinImporter, importlib.machinery.FrozenImporter, Hidden]
for name in {names!r}:
    importlib.import_module(name)
"""


def test_every_module_imports_with_the_core_dependencies_only():
    hidden = beyond_the_core()
    assert {"soundfile", "tensorboard", "pytest"} <= set(hidden)
    code = HIDE.format(hidden=hidden, names=[dotted(path) for path in MODULES if path.stem != "__main__"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]


def text_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    kinds = {".py", ".md", ".toml", ".yaml", ".css", ".txt", ""}
    return [path for name in listed.stdout.splitlines() if (path := ROOT / name).suffix in kinds and path.is_file()]


def test_no_unfinished_work_and_no_brochure_words():
    bad = []
    for path in text_files():
        if path.name in ("LICENSE", Path(__file__).name):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if found := re.search(WORDS, line):
                bad.append(f"{path.relative_to(ROOT)}:{number}: {found.group(0)}")
    assert not bad, "\n".join(bad)


def test_no_path_of_one_machine():
    pattern = re.compile(r"(?<![\w.])/(work|farm|root|home)/[a-z]")
    bad = [f"{path.relative_to(ROOT)}: {found.group(0)}" for path in text_files() if path.name != Path(__file__).name
           and (found := pattern.search(path.read_text(encoding="utf-8")))]  # fmt: skip
    assert not bad, "\n".join(bad)
