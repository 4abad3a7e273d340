"""Run folders: never overwritten, readable after a kill, rewound on resuming."""

import json
import math
import time
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gamut.io.env import environment
from gamut.io.runs import BOARD, Run


def test_a_second_run_never_overwrites_the_first(tmp_path):
    first, second = (Run.create(tmp_path, "speech", {"number": n}) for n in (1, 2))
    assert (first.path.name, second.path.name) == ("speech", "speech-2")
    assert Run.open(first.path).config == {"number": 1}
    assert Run.open(second.path).config == {"number": 2}


def test_env_names_what_a_bug_report_needs(tmp_path):
    env = Run.create(tmp_path, "a", {}).env
    assert env["torch"].startswith("2.") and int(env["cores"]) >= 1 and env["commit"]
    assert {*environment(), "started"} == set(env)


def test_curves_give_back_what_was_logged(tmp_path):
    run = Run.create(tmp_path, "a", {})
    run.log("codec", 1, {"loss": 2.5, "eval/loss": 3})
    run.log("codec", 2, {"loss": torch.tensor(1.5)})
    run.log("speak", 1, {"loss": 9.0})
    assert run.curves() == {
        "codec": {"loss": [(1, 2.5), (2, 1.5)], "eval/loss": [(1, 3.0)]},
        "speak": {"loss": [(1, 9.0)]},
    }


def test_values_that_json_cannot_hold_survive(tmp_path):
    run = Run.create(tmp_path, "a", {})
    run.log("a", 1, {"loss": math.nan, "high": math.inf})
    for line in (run.path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    curves = run.curves()["a"]
    assert math.isnan(curves["loss"][0][1]) and curves["high"] == [(1, math.inf)]


@given(cut=st.integers(1, 60))
@settings(max_examples=20, deadline=None)
def test_a_half_written_last_line_costs_only_itself(tmp_path_factory, cut):
    run = Run.create(tmp_path_factory.mktemp("runs"), "a", {})
    for step in (1, 2, 3):
        run.log("a", step, {"loss": 1 / 8})
    run.close()
    file = run.path / "metrics.jsonl"
    whole = file.read_bytes()
    last = len(whole.splitlines()[-1])
    file.write_bytes(whole[: -min(cut, last)])
    again = Run.open(run.path)
    assert again.curves()["a"]["loss"] == [(1, 0.125), (2, 0.125)]
    again.log("a", 3, {"loss": 0.5})  # appending must not glue the new line to the broken one
    assert again.curves()["a"]["loss"] == [(1, 0.125), (2, 0.125), (3, 0.5)]


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    run = Run.create(tmp_path, "a", {})
    (run.path / "metrics.jsonl").write_text('{"stage": "a", "step": 1}\n{"stage"\n{"stage": "a", "step": 3}\n')
    with pytest.raises(ValueError, match="line 2, is not JSON; remove that line"):
        run.curves()


def test_truncate_forgets_only_later_steps_of_its_stage(tmp_path):
    run = Run.create(tmp_path, "a", {})
    for step in (1, 2, 3):
        run.log("codec", step, {"loss": step})
        run.log("speak", step, {"loss": step})
    run.truncate("speak", 1)
    run.log("speak", 2, {"loss": 20})
    assert run.curves()["codec"]["loss"] == [(1, 1), (2, 2), (3, 3)]
    assert run.curves()["speak"]["loss"] == [(1, 1), (2, 20)]


def test_tensorboard_shows_each_step_once_after_a_rewind(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = Run.create(tmp_path, "a", {})
    for step in (1, 2, 3):
        run.log("codec", step, {"loss": step})
    run.truncate("codec", 1)
    run.log("codec", 2, {"loss": 20})
    run.close()
    events = EventAccumulator(str(run.path / "tensorboard" / "codec")).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in events] == [(1, 1.0), (2, 20.0)]


def test_tensorboard_gets_a_step_a_second_and_the_last(tmp_path):
    """metrics.jsonl has them all."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = Run.create(tmp_path, "a", {})
    began = time.monotonic()
    for step in range(1, 201):
        run.log("codec", step, {"loss": step})
    seconds = time.monotonic() - began
    run.close()
    events = EventAccumulator(str(run.path / "tensorboard" / "codec")).Reload().Scalars("loss")
    steps = [event.step for event in events]
    assert steps[0] == 1 and steps[-1] == 200 and len(steps) <= 3 + seconds / BOARD
    assert len(run.curves()["codec"]["loss"]) == 200


def test_a_tensorboard_that_fails_does_not_stop_the_run(tmp_path):
    run = Run.create(tmp_path, "a", {})
    (run.path / "tensorboard").write_text("a file where a folder should be")
    with pytest.warns(UserWarning, match="tensorboard events of 'a' stop here"):
        run.log("a", 1, {"loss": 1})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.log("a", 2, {"loss": 1})
    assert len(run.curves()["a"]["loss"]) == 2


def test_folders_are_made_when_asked_for(tmp_path):
    run = Run.create(tmp_path, "a", {})
    assert not (run.path / "samples").exists()
    assert run.samples.is_dir() and run.checkpoints("codec").is_dir()
    assert run.checkpoints("codec") == run.path / "checkpoints" / "codec"


def test_finish_writes_the_result(tmp_path):
    run = Run.create(tmp_path, "a", {})
    run.finish({"metrics": {"wer": 0.25}, "where": tmp_path})
    assert json.loads((run.path / "result.json").read_text()) == {"metrics": {"wer": 0.25}, "where": str(tmp_path)}


@pytest.mark.parametrize("name", ["a/b", "", "..", "a b", "-x"])
def test_a_name_that_is_no_folder_name_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"a run name has only letters.*choose one with --name"):
        Run.create(tmp_path, name, {})


def test_opening_what_is_not_there_names_what_is(tmp_path):
    Run.create(tmp_path, "step_audio_2", {})
    with pytest.raises(ValueError, match=r"no run folder .*step_audio2'; there is: .*step_audio_2"):
        Run.open(tmp_path / "step_audio2")
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match=r"other' is not a run folder: it has no config\.json"):
        Run.open(tmp_path / "other")
