"""The command line: what is printed, what a wrong word gets for an answer, and what a run leaves behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import gamut
from gamut import cli
from gamut.api import shipped
from gamut.io.source import find, read
from gamut.papers import PAPERS

ROOT = Path(__file__).resolve().parent.parent
TOY = str(ROOT / "tests" / "toy_recipe.py")


@pytest.fixture
def call(capsys, monkeypatch, tmp_path):
    """gamut(*args) -> (exit code, standard output, standard error), in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")

    def run(*args: str) -> tuple[int, str, str]:
        try:
            code = cli.main(list(args))
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return run


def test_help_names_every_command_with_a_line(call):
    code, out, _ = call("--help")
    assert code == 0
    for name in ("list", "show", "run", "eval", "chat", "convert", "export", "env"):
        assert f"  {name} " in out
    assert call()[1] == out


def test_list_has_the_fifteen_papers_once_each(call):
    code, out, _ = call("list")
    assert code == 0 and len(PAPERS) == 15 and len({paper.arxiv for paper in PAPERS}) == 15
    for paper in PAPERS:
        [line] = [line for line in out.splitlines() if line.split()[:1] == [paper.name]]
        assert paper.arxiv in line and ("not yet" in line) != paper.built


def test_show_prints_text_values_sources_and_claims(call):
    code, out, _ = call("show", TOY)
    assert code == 0 and "a recipe of a few milliseconds" in out
    [heads] = [line for line in out.splitlines() if line.startswith("heads")]
    assert heads.split()[:3] == ["heads", "4", "48"] and "paper 48 (section 2.1)" in heads
    assert "the loss is below a tenth of chance" in out and "gamut run" in out


def test_show_metrics_defines_the_names_in_the_log(call):
    code, out, _ = call("show", "metrics")
    assert code == 0 and "grad_norm" in out and "tokens/s" in out


def test_help_of_a_run_documents_every_field_with_its_source(call):
    code, out, _ = call("run", TOY, "--help")
    assert code == 0
    for words in ("--heads INT", "paper 48 (section 2.1)", "(default: 4)", "--size {tiny,paper}", "not found"):
        assert words in out


def test_help_of_a_run_shows_the_values_of_the_size_that_was_named(call):
    assert "(default: 48)" in call("run", TOY, "--size", "paper", "--help")[1]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["lst"], "unknown command 'lst'; closest: list. See: gamut --help"),
        (["show", "step-audio3"], "unknown recipe 'step-audio3'; closest: step_audio"),
        (["run", "farser"], "unknown recipe 'farser'; closest: farseer. See: gamut list"),
        (["run", "dgae"], "recipe 'dgae' is not built yet; built:"),
        (["run"], "gamut run needs a recipe: gamut run step_audio_2. See: gamut list"),
        (["run", TOY, "--stps", "3"], "unknown field 'stps'; closest: steps. See: gamut show "),
        (["run", TOY, "--head", "3"], "unknown field 'head'; closest: heads"),
        (["run", TOY, "--steps=-3"], "steps must be 0 or more, got -3. See: gamut show "),
        (["run", TOY, "--size", "big"], "toy_recipe has no size 'big'; it has: tiny, paper"),
        (["run", "nowhere.py"], "no recipe file 'nowhere.py'; copy one from"),
        (["run", "step_audio_2", "--data"], "--data needs a value behind it"),
        (["run", "--size", "--resume"], "--resume needs a value behind it"),
        (["run", "--resume", "runs/x"], "no run folder 'runs/x'; there is: none beside it"),
        (["eval", "nowhere"], "checkpoint folder 'nowhere' not found"),
        (["chat", "--text", "hi", "--model", "nowhere"], "'nowhere"),
        # before a model, which may take minutes, is looked for
        (["chat", "none.wav", "--model", "nowhere"], "'none.wav' does not exist; give a sound file (.wav"),
        (["chat", "--text", "hi", "--out", "a.mp3", "--model", "nowhere"], "must go to a .wav, got 'a.mp3'"),
        (["chat", "--model", "nowhere"], "nothing is asked: give a recording"),
        (["plan", "nothing"], "unknown topic 'nothing'"),
    ],
)
def test_a_wrong_word_is_answered_with_the_right_one(call, args, message):
    code, _, err = call(*args)
    assert code == 2 and message in " ".join(err.split()) and "Traceback" not in err


@pytest.mark.parametrize("args", [["run", TOY, "--steps", "x"], ["chat", "q.wav", "--mod", "x"], ["run", TOY, "7"]])
def test_the_parser_refuses_bad_values_abbreviations_and_leftovers(call, args):
    code, _, err = call(*args)
    assert code == 2 and "--help" in err


def test_hyphens_and_capitals_count_as_the_recipe_name():
    built = next(paper.name for paper in PAPERS if paper.built)
    assert find(built.replace("_", "-")) == find(built.upper()) == built


def test_a_run_leaves_config_metrics_result_and_report(call):
    code, out, _ = call("run", TOY, "--heads", "48", "--rates", "0.5", "0.125", "--no-fast")
    assert code == 0
    assert "pass  the loss is below a tenth of chance   loss 0.05, loss/chance 1" in out
    assert "FAIL  something is measured [not measured: nothing]" in out
    path = Path(out.splitlines()[-1])
    assert path == Path("runs/toy_recipe/report.html") and path.exists()
    asked = json.loads((path.parent / "config.json").read_text())
    assert asked["config"] == {"steps": 20, "heads": 48, "rates": [0.5, 0.125], "fast": False, "fail": ""}
    result = json.loads((path.parent / "result.json").read_text())
    assert result["metrics"]["loss"] == 0.05 and [row["passed"] for row in result["claims"]] == [True, True, False]
    page = path.read_text()
    assert "&lt;script&gt;" in page and "<script" not in page
    for words in ("paper 48 (section 2.1)", "changed", "Where the time went", "Environment", "does not hold"):
        assert words in page


def test_a_second_run_gets_a_folder_of_its_own(call):
    for name in ("mine", "mine-2"):
        assert call("run", TOY, "--name", "mine", "--out", "here")[1].splitlines()[-1] == f"here/{name}/report.html"


def test_resuming_keeps_the_config_and_refuses_another(call):
    call("run", TOY, "--heads", "8", "--rates", "0.125")
    code, out, _ = call("run", "--resume", "runs/toy_recipe")
    assert code == 0 and out.splitlines()[-1] == "runs/toy_recipe/report.html"
    assert json.loads(Path("runs/toy_recipe/result.json").read_text())["metrics"]["heads"] == 8
    assert call("run", TOY, "--resume", "runs/toy_recipe", "--heads", "8")[0] == 0
    code, _, err = call("run", "--resume", "runs/toy_recipe", "--heads", "4")
    assert code == 2 and "a resumed run keeps its config, but heads would change; start a new run" in err
    code, _, err = call("run", "--resume", "runs/toy_recipe", "--size", "paper")
    assert code == 2 and "is of size tiny, not paper" in err


def test_plan_prints_and_trains_nothing(call):
    code, out, _ = call("run", TOY, "--size", "paper", "--plan")
    assert code == 0 and out.split() == ["parameters", "48,000"] and not Path("runs").exists()


def test_eval_measures_a_run_again(call):
    call("run", TOY)
    code, out, _ = call("eval", "runs/toy_recipe")
    assert code == 0 and "loss           0.5" in out and "FAIL  the loss is below a tenth" in out


def test_a_downloaded_folder_names_no_code_to_run(call):
    """Neither a checkpoint, nor a run that brings its own recipe; a user's own recipe lies elsewhere (above)."""
    evil = "raise SystemExit('it ran')\n" + Path(TOY).read_text()
    for folder, config in (("model", {"gamut": "0", "class": "Net", "config": {}}), ("runs/x", {"size": "tiny"})):
        Path(folder).mkdir(parents=True)
        Path(folder, "evil.py").write_text(evil)
        Path(folder, "config.json").write_text(json.dumps({"recipe": f"{folder}/evil.py", **config, "config": {}}))
    assert "is neither a run of a recipe nor a model of one" in call("eval", "model")[2]
    Path("runs/x/env.json").write_text("{}")
    code, out, err = call("eval", "runs/x")
    assert code == 2 and "'runs/x' brings its own recipe, evil.py, which may do anything" in err and "it ran" not in out
    code, out, err = call("run", "--resume", "runs/x")
    assert code == 2 and "'runs/x' brings its own recipe, evil.py" in err and "it ran" not in out + err


def test_eval_of_the_wrong_folder_says_which_is_right(call):
    call("run", TOY)
    Path("runs/toy_recipe/model").mkdir()
    Path("runs/toy_recipe/model/config.json").write_text('{"class": "Omni"}')
    assert "is the model of a run, which knows what it was asked; give that: gamut eval runs/toy_recipe" in (
        call("eval", "runs/toy_recipe/model")[2])
    Path("large").mkdir()
    Path("large/config.json").write_text('{"model_type": "step_audio_2"}')
    assert "gamut run step_audio_2 --init large --data FOLDER" in call("eval", "large")[2]
    Path("large/config.json").write_text("{")
    assert "'large/config.json' is not JSON" in call("eval", "large")[2]


def test_a_file_where_runs_should_be_is_named(call):
    Path("here").write_text("")
    for out in ("here", "here/there"):
        code, _, err = call("run", TOY, "--out", out)
        assert code == 2 and "but a file is in the way; choose another with --out" in " ".join(err.split())


def test_a_mistake_found_while_running_is_one_message(call):
    code, _, err = call("run", TOY, "--name", "a b")
    assert code == 2 and err.count("\n") == 1 and "choose one with --name" in err


def test_notes_of_an_error_are_printed_below_it(call):
    code, _, err = call("run", TOY, "--fail", "note")
    assert code == 2 and err.splitlines()[-2:] == [
        "error: pad_mels needs at least one log-mel, got none", "while making batch 0 of the data"]
    assert Path("runs/toy_recipe/metrics.jsonl").exists()  # it had begun


def test_a_run_that_is_refused_before_it_begins_leaves_no_folder(call):
    code, _, err = call("run", "step_audio_2", "--data", "nowhere", "--init", str(shipped("step_audio_2")))
    assert code == 2 and "'nowhere' does not exist; give a folder of recordings" in " ".join(err.split())
    assert not list(Path("runs").iterdir())


def test_a_reader_that_goes_away_is_no_error():
    """`gamut plan scaling --help | head -1`"""
    command = [sys.executable, "-m", "gamut", "plan", "scaling", "--help"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 141


@pytest.mark.skipif(not Path("/sys/kernel").exists(), reason="no /sys here")
def test_a_place_that_nobody_may_write_to(call):
    code, _, err = call("run", TOY, "--out", "/sys/gamut_runs")
    assert code == 2 and err.startswith("error: [Errno 1") and "see who may read and write there" in err


def test_a_bug_keeps_its_traceback(call):
    with pytest.raises(ValueError, match="not from gamut"):
        call("run", TOY, "--fail", "bug")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_says_what_is_safe_and_how_to_go_on(call):
    code, _, err = call("run", TOY, "--fail", "disk")
    message = " ".join(err.split())
    assert code == 2 and "No space left on device" in message and "Traceback" not in message
    assert "what was saved before is whole; make room, then: gamut run --resume runs/toy_recipe" in message


def test_traceback_on_request(call, monkeypatch):
    monkeypatch.setenv("GAMUT_TRACEBACK", "1")
    with pytest.raises(ValueError, match="unknown command"):
        call("lst")


def test_ctrl_c_says_how_to_go_on(call):
    code, _, err = call("run", TOY, "--fail", "stop")
    assert code == 130 and "go on with: gamut run --resume runs/toy_recipe" in err


def test_ctrl_c_on_the_real_command(tmp_path):
    """A process of its own, stopped from outside: exit code 130 and no traceback."""
    recipe = tmp_path / "slow.py"
    recipe.write_text(Path(TOY).read_text().replace("    blocks =", "    __import__('time').sleep(60)\n    blocks ="))
    command = [sys.executable, "-m", "gamut", "run", str(recipe), "--out", str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + 60
    while not (tmp_path / "slow" / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and f"gamut run --resume {tmp_path}/slow" in err and "Traceback" not in err


def test_env_names_versions_machine_and_data(call, monkeypatch, tmp_path):
    monkeypatch.setenv("GAMUT_DATA", str(tmp_path))
    (tmp_path / "speech").mkdir()
    code, out, _ = call("env")
    facts = {line[:16].strip(): line[17:] for line in out.splitlines()}
    assert code == 0 and facts["gamut"] == gamut.__version__ and facts["torch"].startswith("2.")
    assert facts["GAMUT_DATA"] == f"{tmp_path} (speech)"


def test_env_works_without_torch(tmp_path):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('No module named torch')")
    code = "import sys; from gamut.cli import main; sys.exit(main(['env']))"
    env = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0 and "torch import" in done.stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", "has no class Config; a recipe states its fields in a frozen dataclass"),
        ("def f(:\n", "line 1: .*python cannot read this recipe"),
        ("import torch\nfrom dataclasses import dataclass\n@dataclass\nclass Config:\n    a: int = torch.uint8\n",
         "Config and presets may use literals and the standard library; name 'torch' is not defined"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_recipe_says_why(tmp_path, text, message):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ValueError, match=message):
        read(str(tmp_path / "mine.py"))


def test_the_python_door_is_the_same(tmp_path):
    result = gamut.run(TOY, out=tmp_path, heads=6)
    assert result.metrics["heads"] == 6 and (result.run / "report.html").exists()
    with pytest.raises(ValueError, match=r"unknown field 'head'; closest: heads\. See: gamut show .*toy_recipe\.py"):
        gamut.run(TOY, out=tmp_path, head=6)
    again = gamut.run(resume=result.run)
    assert again.metrics == result.metrics
    with pytest.raises(ValueError, match="name a recipe, or a run to resume"):
        gamut.run()


def test_load_and_save_are_one_another_s_way_back(tmp_path):
    import torch

    from gamut.models.judge import DigitJudge, DigitJudgeConfig

    torch.manual_seed(0)
    model = DigitJudge(DigitJudgeConfig(width=16)).eval()
    again = gamut.load(gamut.save(model, tmp_path / "judge", card="# A judge"))
    assert type(again) is DigitJudge
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    with pytest.raises(ValueError, match=r"holds no config.json, so it is not a checkpoint; there is: judge"):
        gamut.load(tmp_path)
    with pytest.raises(ValueError, match="only tiny weights are shipped, not paper; give the folder"):
        gamut.load(next(paper.name for paper in PAPERS if paper.built), "paper")
