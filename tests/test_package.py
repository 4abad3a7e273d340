"""The wheel: it builds, holds everything, and the command works from it."""

import subprocess
import sys
import time
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import gamut

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built without isolation: setuptools is here, and a network may not be. From a copy, so that no build/ is left."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in listed.stdout.splitlines():
        if name.startswith("gamut/") or "/" not in name:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_file():
                (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    [path] = out.glob("*.whl")
    return path


def test_the_wheel_holds_every_module_and_its_data_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert {name for name in names if name.endswith(".py")} == {
        str(path.relative_to(ROOT)) for path in (ROOT / "gamut").rglob("*.py")
    }
    assert "gamut/io/report.css" in names
    assert all(name.startswith("gamut/") for name in names), "tests, weights and benchmarks stay in the repository"
    assert wheel.stat().st_size < 1_000_000


def test_the_licence_travels_with_the_wheel(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.endswith("/LICENSE") for name in names) and any(name.endswith("/NOTICE") for name in names)


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """bin folder of a fresh environment with the wheel; its dependencies are those of this one, by a path file."""
    home = tmp_path_factory.mktemp("fresh")
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index", str(wheel)]
    done = subprocess.run(pip, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    [packages] = home.glob("lib/python3*/site-packages")
    mine = next(path for path in map(Path, sys.path) if (path / "tyro").is_dir())
    (packages / "dependencies.pth").write_text(f"{mine}\n")  # an editable gamut there comes after the wheel's own
    return home / "bin"


def ask(installed: Path, folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(installed / "gamut"), *args], cwd=folder, capture_output=True, text=True)


def test_the_command_works_from_the_wheel(installed, tmp_path):
    done = ask(installed, tmp_path, "--help")
    assert done.returncode == 0 and "gamut COMMAND" in done.stdout, done.stderr
    assert ask(installed, tmp_path, "--version").stdout == f"gamut {gamut.__version__}\n"
    assert "step_video_t2v" in ask(installed, tmp_path, "list").stdout


def test_a_run_from_the_wheel_writes_its_report(installed, tmp_path):
    done = ask(installed, tmp_path, "run", str(ROOT / "tests" / "toy_recipe.py"))
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "runs" / "toy_recipe" / "report.html").read_text()
    assert "prefers-color-scheme" in page and "not a checkout" in page


def test_weights_that_the_wheel_does_not_hold_are_explained(installed, tmp_path):
    done = ask(installed, tmp_path, "chat", "--text", "hello")
    assert done.returncode == 2 and "they come with the repository, not with the wheel" in " ".join(done.stderr.split())


def test_a_second_set_up_has_nothing_to_do(tmp_path):
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / ".venv").mkdir()
    for stamp in (".torch", ".demo"):
        (tmp_path / ".venv" / stamp).touch()
    began = time.monotonic()
    done = subprocess.run(["make", "setup", "PYTHON=false"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "install" not in done.stdout + done.stderr
    assert time.monotonic() - began < 2


def test_the_version_stands_in_one_place_only():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == gamut.__version__


def test_import_costs_nothing_and_the_public_names_are_there():
    code = "import sys, gamut; assert 'torch' not in sys.modules; print(sorted(gamut.__all__), 'load' in dir(gamut))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "['__version__', 'load', 'run', 'save'] True\n", done.stderr
    with pytest.raises(AttributeError, match="module 'gamut' has no attribute 'loads'; there is: load, run, save"):
        gamut.loads  # noqa: B018
