"""The Step-Audio 2 recipe whole, at a size of seconds; stopped in every stage; the claims of the shipped weights."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gamut.codecs.prompts import READ_ALOUD
from gamut.evals import cast
from gamut.evals.cast import Cast
from gamut.evals.claims import Result, check
from gamut.generate.speaker import Speaker
from gamut.io.folders import KEPT_BACK, TAUGHT, read_tensors
from gamut.recipes import step_audio_2

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "weights" / "step_audio_2"
SMALL = {"width": 16, "layers": 1, "heads": 2, "kv_heads": 1, "ffn": 32, "encoder": (16, 1, 2), "adapter": 16,
         "batch": 2, "hear_steps": 8, "align_steps": 8, "main_steps": 8, "sft_steps": 8, "each": 1}  # fmt: skip
recordings = pytest.mark.skipif(
    not Path(os.environ.get("GAMUT_DATA", "/nowhere"), "speech", "fsdd_8k.npz").exists(),
    reason="needs the recorded digits: set GAMUT_DATA to a folder with speech/fsdd_8k.npz",
)


def start(*arguments: str, data: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "gamut", "run", *arguments]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "GAMUT_DATA": str(data)}
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture
def begin(tmp_path):
    """Starts runs on the digits alone (reading the coffee orders takes longer than these runs); none outlives it."""
    processes, data = [], tmp_path / "data"
    (data / "speech").mkdir(parents=True)
    (data / "speech" / "fsdd_8k.npz").symlink_to(Path(os.environ["GAMUT_DATA"], "speech", "fsdd_8k.npz").resolve())

    def started(*arguments: str) -> subprocess.Popen:
        processes.append(start(*arguments, data=data))
        return processes[-1]

    yield started
    for process in processes:
        process.kill()
        process.communicate()


def weights(run: Path) -> dict[str, torch.Tensor]:
    return read_tensors(sorted((run / "checkpoints" / "sft").glob("step_*"))[-1] / "model.safetensors")


def test_a_model_goes_on_only_where_its_examination_stays_unheard(tmp_path):
    """It learned from four of five folds: with another seed the orders asked would be among them."""
    cast.unheard(str(tmp_path), 1, "theo")  # a model that learned none of this
    (tmp_path / TAUGHT).write_text("{}")
    with pytest.raises(ValueError, match=r"does not say what it was not taught: there is no kept_back.json; write"):
        cast.unheard(str(tmp_path), 2, "")
    (tmp_path / KEPT_BACK).write_text('{"fold": 2, "without": "theo"}')
    for seed, without in ((2, "theo"), (7, "theo"), (12, "")):
        cast.unheard(str(tmp_path), seed, without)
    with pytest.raises(ValueError, match=r"seed 1 is examined on: it kept back fold 2; go on with --seed 2"):
        step_audio_2.main(step_audio_2.Config(init=str(tmp_path), seed=1, without="theo"))
    with pytest.raises(ValueError, match="knows 'lucas': leave --without away"):
        step_audio_2.main(step_audio_2.Config(init=str(tmp_path), seed=2, without="lucas"))


@recordings
def test_stopped_in_every_stage_and_resumed_it_is_the_same_run(begin, tmp_path):
    """Ctrl-C in every stage: each says how to go on, and the final weights are those of a run in one go."""
    options = [part for name, value in SMALL.items() for part in (f"--{name.replace('_', '-')}", *_words(value))]
    fresh = ["step_audio_2", *options, f"--out={tmp_path}"]
    whole = begin(*fresh, "--name=whole")
    cut, arguments = tmp_path / "cut", [*fresh, "--name=cut"]
    for stage in ("hear", "align", "main", "sft"):
        process = begin(*arguments)
        while not _begun(cut, stage):
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=240)
        assert process.returncode == 130, said
        assert f"of '{stage}'" in said and f"gamut run --resume {cut}" in said
        arguments = ["--resume", str(cut)]
    last = begin(*arguments)
    said, _ = last.communicate(timeout=400)
    assert last.returncode == 0, said
    while not list((tmp_path / "whole" / "checkpoints" / "sft").glob("step_00000008")):
        assert whole.poll() is None, whole.stdout.read()
        time.sleep(0.1)
    a, b = weights(tmp_path / "whole"), weights(cut)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    result = json.loads((cut / "result.json").read_text())
    assert {"digits/wer", "arithmetic/text", "tools/choice", "memory/text"} <= result["metrics"].keys()
    assert "order/drink" not in result["metrics"]
    report = (cut / "report.html").read_text()
    assert "<audio" in report and "Free Spoken Digit Dataset, recordings of six people" in report


def _words(value: object) -> list[str]:
    return [str(one) for one in (value if isinstance(value, tuple) else (value,))]


def _begun(run: Path, stage: str) -> bool:
    log = run / "metrics.jsonl"
    return log.exists() and f'"{stage}"' in log.read_text()


def test_paper_size_is_minis_size():
    """8,315,179,264 parameters, from the preset alone."""
    assert step_audio_2.plan(step_audio_2.PAPER)["parameters"] == 8_315_179_264
    begun = replace(step_audio_2.PAPER, init="weights/step_audio_2")  # whose sizes then count
    assert step_audio_2.plan(begun)["parameters"] == step_audio_2.plan(step_audio_2.TINY)["parameters"] == 2_191_488


def test_chat_refuses_what_the_tiny_model_was_not_taught():
    with pytest.raises(ValueError, match=r"was not taught to 'Sing\.'; --system must be one of\n  请"):
        Speaker.load(SHIPPED).how("Sing.")
    assert Speaker.load(SHIPPED).how(READ_ALOUD.strip()).system == READ_ALOUD  # as the list shows it


@recordings
def test_a_model_is_examined_on_what_it_kept_back(tmp_path, monkeypatch):
    folder = shutil.copytree(SHIPPED, tmp_path / "m")
    (folder / KEPT_BACK).write_text('{"fold": 3, "without": "theo"}')
    asked: list = []
    monkeypatch.setattr(step_audio_2, "measured", lambda *with_what: asked.extend(with_what) or Result({}))
    step_audio_2.evaluate(folder)
    assert (asked[0].seed, asked[0].without) == (3, "theo") and "theo" not in asked[2].names
    (folder / KEPT_BACK).unlink()
    with pytest.raises(ValueError, match="does not say what it was not taught"):
        step_audio_2.evaluate(folder)


def test_claims_of_the_shipped_weights():
    """They held for what was measured when they were saved, 50 conversations of every kind."""
    kept = Result(json.loads((SHIPPED / "metrics.json").read_text()))
    failed = [text for text, passed in check(step_audio_2.CLAIMS, kept) if not passed]
    assert not failed, failed


@recordings
def test_what_was_measured_is_what_the_shipped_weights_do():
    """A smaller examination: the same orders, within what so few conversations may differ."""
    kept, each = json.loads((SHIPPED / "metrics.json").read_text()), 6
    world = Cast.of("train", voice=step_audio_2.VOICE)
    found = step_audio_2.measured(replace(step_audio_2.TINY, each=each), Speaker.load(SHIPPED), world).metrics
    counts = {"arithmetic/text": 4 * each, "tools/choice": 4 * each, "calculator/exact": each, "memory/text": each,
              "voice/recognised": each, "order/drink": 106, "digits/wer": 3 * each}  # fmt: skip
    for name, count in counts.items():
        assert abs(found[name] - kept[name]) < 3 * (max(0.05, kept[name] * (1 - kept[name])) / count) ** 0.5, name


@recordings
def test_chat_answers_a_recording(tmp_path, capsys):
    from gamut.data import sources
    from gamut.generate.chatting import chat
    from gamut.io.media import read_audio, write_audio

    clips = {clip.labels["digit"]: clip.wav for clip in sources.digits("test") if clip.speaker == "theo"}
    question = write_audio(tmp_path / "q.wav", torch.cat([clips[3], torch.zeros(1600), clips[4]]), 8000)
    request, out = "Say the larger of the two numbers.", tmp_path / "a.wav"
    [figures] = chat(Speaker.load(SHIPPED), question, system=request, out=out)
    shown = capsys.readouterr().out
    assert "answer: 4\n" in shown and "heard: 34\n" in shown and "real-time factor" in shown
    wav, rate = read_audio(tmp_path / "a.wav")
    assert rate == 24000 and len(wav) > 6000
    assert figures.seconds == len(wav) / rate and 0 < figures.first < figures.took
