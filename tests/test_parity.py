"""The parity command: it passes on the recorded fixtures, and fails on anything that is not as recorded."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gamut.evals import parity
from gamut.evals.fixtures import Ours, compare


def rewritten(source, target, change=lambda tensors: None, config=lambda config: config):
    """A copy of a fixture with its tensors or config changed."""
    tensors = load_file(source)
    with safe_open(source, "pt") as file:
        metadata = dict(file.metadata())
    change(tensors)
    metadata["config"] = json.dumps(config(json.loads(metadata["config"])))
    save_file(tensors, target, metadata=metadata)
    return target


@pytest.mark.parametrize("name", parity.FAMILIES)
def test_every_finished_family_passes_on_its_fixture(golden, name):
    """No skip here: a finished family without its fixture is a failure."""
    path = next(golden.glob(f"{name}.*"))
    report = parity.check(path)
    assert report.state == "PASS", report
    assert {row.name for row in report.rows} >= (
        {"logits"} if name.startswith("qwen") and "audio" not in name else set()
    )


def test_the_command_passes_on_all_of_them(golden):
    done = subprocess.run(
        [sys.executable, "-m", "gamut.evals.parity", str(golden), "--complete"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASS") == len(parity.FAMILIES) and "0 failed, 0 unknown" in done.stdout
    assert re.search(r"ok +logits +\d\.\de-\d+ +allowed 1e-04", done.stdout)


def test_a_finished_family_without_a_fixture_fails_when_completeness_is_asked(golden, capsys):
    assert parity.main((golden / "qwen2.safetensors",)) == 0
    assert parity.main((golden / "qwen2.safetensors",), complete=True) == 1
    assert "FAIL      no fixture of: qwen2_tied, qwen3" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name, key",
    [
        ("qwen2", "w.model.layers.1.mlp.up_proj.weight"),
        ("qwen3_moe", "w.model.layers.2.mlp.gate.weight"),
        ("qwen2_moe", "out.aux_loss"),
        ("step1_lm", "out.slopes.6"),
        ("step_audio_2_lm", "w.encoder.blocks.0.attn.key.weight"),
        ("step_audio_2_lm", "out.adapter_len"),
        ("whisper_encoder", "out.embeddings"),
        ("qwen2_audio_encoder", "out.output_lengths"),
        ("audio_frontends", "out.resample_24000_16000"),
        ("s3_tokenizer_v2", "w.encoder.blocks.0.attn.fsmn_block.weight"),
        ("s3_tokenizer_v1", "out.long.code"),
        ("sanm_linguistic_tokenizer", "out.chunk_frames"),
        ("step_audio_2_flow", "w.decoder.estimator.blocks.1.conv.block.6.bias"),
        ("step_audio_2_flow", "out.stream.mel.3"),
        ("step_audio_flow", "w.length_regulator.model.12.bias"),
        ("step_audio_flow", "out.loss"),
    ],
)
def test_one_changed_number_fails(golden, tmp_path, name, key):
    def change(tensors):
        tensors[key].view(-1)[0] += 1 if tensors[key].dtype != torch.float32 else 0.05

    path = rewritten(golden / f"{name}.safetensors", tmp_path / f"{name}.safetensors", change)
    report = parity.check(path)
    wrong = {row.name for row in report.rows if not row.passed}
    assert report.state == "FAIL" and wrong and (not key.startswith("out.") or wrong == {key[4:]})
    assert parity.main((path,)) == 1


@pytest.mark.parametrize(
    "name, cases, expected",
    [
        ("step_audio_2_ta4", "build", "ids"),
        ("step_audio_2_ta4", "parse", "audio_ids"),
        ("step_audio_2_ta4", "stream", "events"),
        ("step_audio_2_ta4", "is_ta4_prompt", "is_ta4"),
        ("step_audio_2_ta4", "chat_template", "text"),
        ("step_audio_2_ta4", "chat_template_ta4", "ids"),
        ("step_audio_2_tool_calls", "complete", "content"),
        ("step_audio_2_tool_calls", "stream", "events"),
        ("step_audio_2_tool_calls", "stream_chunked", "aggregate"),
    ],
)
def test_one_changed_case_fails(golden, tmp_path, name, cases, expected):
    content = json.loads((golden / f"{name}.json").read_text())
    field = content[cases][1]
    if expected == "events":
        field, expected = field["events"][0], "text_ids" if name.endswith("ta4") else "message"
    field[expected] = "changed"
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps(content))
    report = parity.check(path)
    assert [(row.name, row.text[-9:]) for row in report.rows if not row.passed] == [(cases, ", not [1]")]


def test_what_padding_holds_does_not_count(golden, tmp_path):
    def change(tensors):
        tensors["out.logits"][tensors["in.attention_mask"] == 0] += 9

    assert parity.check(rewritten(golden / "qwen2.safetensors", tmp_path / "qwen2.safetensors", change)).state == "PASS"

    def spoil(tensors):
        tensors["out.encoder"][1, tensors["out.encoder_len"][1] :] += 9

    path = rewritten(golden / "step_audio_2_lm.safetensors", tmp_path / "step_audio_2_lm.safetensors", spoil)
    assert parity.check(path).state == "PASS"


@pytest.mark.parametrize(
    "name, family",
    [
        ("qwen2_wide", "qwen2"),
        ("qwen2_tied_wide", "qwen2_tied"),
        ("qwen2-7b", "qwen2"),
        ("qwen2_audio_encoder_long", "qwen2_audio_encoder"),
        ("qwen2_5_vl_small", "qwen2_5_vl"),
        ("hift_24k_stream", "hift_24k_stream"),
        ("step_audio_2_lm.seed7", "step_audio_2_lm"),
        ("qwen25", None),
        ("model", None),
    ],
)
def test_the_longest_name_at_the_beginning_decides(name, family):
    assert parity.family_of(name) == family


def test_a_family_is_inferred_where_the_config_leaves_no_doubt(golden, tmp_path):
    for file in golden.iterdir():
        path = tmp_path / f"case{file.suffix}"
        shutil.copy(file, path)
        report = parity.check(path)
        assert (report.state, report.family) == ("PASS", file.stem)
    rewritten(golden / "qwen2.safetensors", path := tmp_path / "case.safetensors", config=lambda c: {"depth": 3})
    assert parity.check(path).state == "unknown" and parity.main((path,)) == 1


def test_other_lengths_and_missing_optional_outputs(golden, tmp_path):
    """Nothing in a family depends on the stored case's sizes."""

    def shorten(tensors):
        tensors["in.wav22"] = tensors["in.wav22"][:9000].clone()
        for name in ("mel22", "resample_22050_16000", "sa2_token_num"):
            del tensors[f"out.{name}"]
        tensors["in.sa2_token_num_frames"] = torch.tensor([100])
        tensors["out.resample_16000_8000"] = torch.zeros(13280 // 2)

    path = rewritten(golden / "audio_frontends.safetensors", tmp_path / "audio_frontends_b.safetensors", shorten)
    report = parity.check(path)
    assert [row.name for row in report.rows if not row.passed] == ["resample_16000_8000"]


def test_families_not_built_are_no_pass_and_no_failure(golden, tmp_path, capsys):
    (tmp_path / "bert.safetensors").write_bytes(b"")
    assert parity.check(tmp_path / "bert.safetensors").state == "not built"
    assert parity.main((tmp_path, golden / "qwen3.safetensors")) == 0
    assert "1 passed, 0 failed, 0 unknown, 1 not built" in capsys.readouterr().out


def test_truncated_fixtures_are_reported(golden, tmp_path):
    data = (golden / "qwen2.safetensors").read_bytes()
    (tmp_path / "qwen2.safetensors").write_bytes(data[:-100])
    (tmp_path / "step_audio_2_ta4.json").write_text((golden / "step_audio_2_ta4.json").read_text()[:-9])
    (tmp_path / "qwen3.safetensors").write_bytes(data[:5])
    reports = {name: parity.check(tmp_path / name) for name in ("qwen2.safetensors", "qwen3.safetensors")}
    assert re.search(rf"is truncated .* got {len(data) - 100:,} bytes", reports["qwen2.safetensors"].problem)
    assert "got 5 bytes" in reports["qwen3.safetensors"].problem
    assert "is not JSON" in parity.check(tmp_path / "step_audio_2_ta4.json").problem
    assert parity.main((tmp_path,)) == 1


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop("w.model.norm.weight"), "1 missing: norm.weight"),
        (lambda t: t.update({"w.extra": torch.ones(1)}), "1 unexpected: extra"),
        (lambda t: t.update({"w.lm_head.weight": torch.ones(2, 64)}), "mis-shaped: head.weight"),
        (lambda t: t.pop("in.input_ids"), "KeyError: 'input_ids'"),
    ],
)
def test_keys_are_loaded_strictly(golden, tmp_path, change, message):
    path = rewritten(golden / "qwen2.safetensors", tmp_path / "qwen2.safetensors", change)
    report = parity.check(path)
    assert report.state == "FAIL" and message in report.problem


def test_an_output_we_do_not_compute_fails(golden, tmp_path):
    def change(tensors):
        tensors["out.new"] = torch.ones(2)

    report = parity.check(rewritten(golden / "qwen2.safetensors", tmp_path / "qwen2.safetensors", change))
    assert [(row.name, row.text) for row in report.rows if not row.passed] == [("new", "not computed")]


def test_dumps_hold_our_outputs_under_the_fixtures_names(golden, tmp_path):
    names = ("qwen2_moe.safetensors", "audio_frontends.safetensors", "step_audio_2_ta4.json")
    assert parity.main(tuple(golden / name for name in names), dump=tmp_path / "dump") == 0
    for name in names[:2]:
        wanted = {k: t for k, t in load_file(golden / name).items() if k.startswith("out.")}
        ours = load_file(tmp_path / "dump" / name)
        assert ours.keys() == wanted.keys()
        assert all(ours[k].shape == t.shape and ours[k].dtype == t.dtype for k, t in wanted.items())
    torch.testing.assert_close(ours["out.mel24"], wanted["out.mel24"], atol=1e-3, rtol=0)
    wanted = json.loads((golden / names[2]).read_text())
    ours = json.loads((tmp_path / "dump" / names[2]).read_text())
    assert ours == {k: v for k, v in wanted.items() if isinstance(v, list)}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_number_that_is_none_never_passes(bad):
    ours, wanted = Ours(torch.tensor([bad])), torch.zeros(1)
    assert not compare("x", ours, wanted, 1e9).passed or bad == float("-inf")
    assert not compare("x", Ours(torch.zeros(2)), wanted, 1.0).passed
    hidden = Ours(torch.tensor([bad, 0.0]), torch.tensor([False, True]))
    assert compare("x", hidden, torch.zeros(2), 1e-9).passed


def test_bad_arguments(tmp_path):
    run = [sys.executable, "-m", "gamut.evals.parity"]
    done = subprocess.run([*run, str(tmp_path / "nothing")], capture_output=True, text=True)
    assert done.returncode == 2 and "not found; give fixture files, or folders of them" in done.stderr
    with pytest.raises(ValueError, match=r"holds no .safetensors or .json; give the folder"):
        parity.files([tmp_path])
    (tmp_path / "qwen2.safetensors").write_bytes(b"")
    save_file({"a": torch.ones(1)}, tmp_path / "qwen2.safetensors")
    assert "is no parity fixture" in parity.check(tmp_path / "qwen2.safetensors").problem


def test_every_fixture_of_the_shared_folder_is_known():
    """Where the whole collection is at hand ($GAMUT_PARITY), each of its files has a family, built or not."""
    folder = os.environ.get("GAMUT_PARITY")
    if not folder:
        pytest.skip("set GAMUT_PARITY to the folder of all fixtures")
    names = [path.stem for path in Path(folder).iterdir() if path.suffix in (".safetensors", ".json")]
    assert sorted(names) == sorted([*parity.FAMILIES, *parity.NOT_BUILT])
