"""Checkpoint folders: what is written is read back, damage is named, and a failed save loses nothing."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from gamut.io import folders
from gamut.io.folders import (
    INDEX,
    WEIGHTS,
    load_config,
    load_strict,
    load_tensors,
    read_tensors,
    save_folder,
    tensor_files,
)


def some_tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "a": torch.randn(100),
        "b": torch.randn(10, 10).to(torch.bfloat16),
        "c.d": torch.arange(50),
        "e": torch.randn(6, 8).T,
    }


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def damaged(path, size: int) -> None:
    """Truncate by replacing the file: mappings of the old one stay valid."""
    data = path.read_bytes()[:size]
    path.unlink()
    path.write_bytes(data)


@pytest.mark.parametrize("shard_bytes", [1 << 30, 500, 1])
def test_round_trip_sharded_or_not(tmp_path, shard_bytes):
    tensors = some_tensors()
    (tmp_path / "vocab.txt").write_text("hello")
    files = {"a.json": "{}", "b.bin": b"\0\1", "c.txt": tmp_path / "vocab.txt"}
    path = save_folder(tmp_path / "ck", tensors, {"x": 1}, card="# Card", files=files, shard_bytes=shard_bytes)
    assert same(load_tensors(path), tensors) and load_config(path) == {"x": 1}
    assert (path / "README.md").read_text() == "# Card" and (path / "c.txt").read_text() == "hello"
    assert (path / "b.bin").read_bytes() == b"\0\1"
    assert (path / INDEX).exists() == (shard_bytes < 1 << 30)
    for file in tensor_files(path):
        held = read_tensors(file)
        assert len(held) == 1 or sum(t.nbytes for t in held.values()) <= shard_bytes


def test_tensors_outlive_the_mapping_they_came_from(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "MAPPED_BYTES", 1)
    path = save_folder(tmp_path / "ck", some_tensors(), {})
    assert same(load_tensors(path), some_tensors())


def test_sharded_folder_is_laid_out_as_transformers_expects(tmp_path):
    path = save_folder(tmp_path / "ck", some_tensors(), {}, shard_bytes=500)
    index = json.loads((path / INDEX).read_text())
    assert index["metadata"]["total_size"] == 400 + 200 + 400 + 192
    assert set(index["weight_map"].values()) == {file.name for file in tensor_files(path)}
    assert sorted(set(index["weight_map"].values()))[0].startswith("model-00001-of-0000")


def test_dtype_casts_floats_only(tmp_path):
    path = save_folder(tmp_path / "ck", some_tensors(), {})
    loaded = load_tensors(path, torch.float16)
    assert {t.dtype for k, t in loaded.items() if k != "c.d"} == {torch.float16} and loaded["c.d"].dtype == torch.int64


def test_tied_weights_are_written_under_each_name(tmp_path):
    a = torch.randn(4, 4)
    assert same(load_tensors(save_folder(tmp_path / "ck", {"x": a, "y": a}, {})), {"x": a, "y": a})


def test_saving_over_the_folder_the_tensors_are_mapped_from(tmp_path):
    path = save_folder(tmp_path / "ck", some_tensors(), {})
    mapped = load_tensors(path)
    save_folder(path, {k: t for k, t in mapped.items() if k != "a"}, {})
    assert same(load_tensors(path), {k: t for k, t in some_tensors().items() if k != "a"})


@pytest.mark.parametrize("size, promised", [(300, r", its header promises \d+"), (40, ""), (3, ""), (0, "")])
def test_truncated_shard_is_named(tmp_path, size, promised):
    path = save_folder(tmp_path / "ck", some_tensors(), {}, shard_bytes=500)
    damaged(path / "model-00001-of-00004.safetensors", size)
    match = (
        rf"model-00001-of-00004.safetensors' is truncated .* got {size} bytes{promised} .*; download or save it again"
    )
    with pytest.raises(ValueError, match=match):
        load_tensors(path)


def test_missing_shard_and_missing_key_are_named(tmp_path):
    path = save_folder(tmp_path / "ck", some_tensors(), {}, shard_bytes=500)
    index = json.loads((path / INDEX).read_text())
    index["weight_map"]["ghost"] = "model-00001-of-00004.safetensors"
    (path / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"ghost not in model-00001-of-00004.safetensors"):
        load_tensors(path)
    (path / "model-00001-of-00004.safetensors").unlink()
    with pytest.raises(ValueError, match=r"1 of 4 shards missing: model-00001-of-00004.safetensors; copy"):
        load_tensors(path)


def test_index_may_not_leave_the_folder(tmp_path):
    path = save_folder(tmp_path / "ck", some_tensors(), {}, shard_bytes=500)
    (path / INDEX).write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    with pytest.raises(ValueError, match=r"outside its folder: ../other"):
        load_tensors(path)
    (path / INDEX).write_text("{}")
    with pytest.raises(ValueError, match=r"is not a shard index .* download it again"):
        load_tensors(path)


def test_foreign_formats_point_to_convert(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(ValueError, match=f"got pytorch_model.bin; use: gamut convert {tmp_path} NEW_FOLDER"):
        load_tensors(tmp_path)


def test_folders_that_are_not_checkpoints(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere' not found; give the path of a folder"):
        load_config(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"has no config.json, got an empty folder"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text("{'x'")
    with pytest.raises(ValueError, match=r"config.json' is not JSON"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"must hold a JSON object, got list"):
        load_config(tmp_path)
    with pytest.raises(ValueError, match=r"model.safetensors' not found"):
        read_tensors(tmp_path / WEIGHTS)


class Counter(nn.Linear):
    def __init__(self, width: int, out: int):
        super().__init__(width, out)
        self.register_buffer("count", torch.zeros(1, dtype=torch.int64))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_load_strict_fills_real_and_meta_modules(device):
    with torch.device(device):
        module = Counter(3, 4)
    wanted = {"weight": torch.randn(4, 3), "bias": torch.randn(4), "count": torch.tensor([7])}
    load_strict(module, wanted, "here")
    assert same(module.state_dict(), wanted) and module.weight.requires_grad
    shares = module.weight.data_ptr() == wanted["weight"].data_ptr()
    assert shares == (device == "meta")  # a big model is never held twice


def test_load_strict_keeps_a_real_modules_dtype():
    module = nn.Linear(3, 4)
    load_strict(module, {"weight": torch.ones(4, 3).half(), "bias": torch.ones(4).bfloat16()}, "here")
    assert module.weight.dtype == torch.float32


def test_load_strict_names_every_kind_of_misfit():
    module = Counter(3, 4)
    before = {k: t.clone() for k, t in module.state_dict().items()}
    bad = {"weight": torch.ones(3, 3), "bias": torch.ones(4, dtype=torch.int32), "bas": torch.ones(4)}
    with pytest.raises(
        ValueError,
        match=r"checkpoint 'there' does not fit Counter: 1 missing: count; 1 unexpected: bas; "
        r"1 mis-shaped: weight \(3, 3\) instead of \(4, 3\); 1 wrong dtype: bias int32 instead of float32",
    ):
        load_strict(module, bad, "there")
    assert same(module.state_dict(), before)


def test_load_strict_counts_what_it_does_not_list():
    with pytest.raises(ValueError, match=r"20 unexpected: x0, .*, x7 ... and 12 more"):
        load_strict(nn.Linear(1, 1), {f"x{i}": torch.ones(1) for i in range(20)}, "here")


FULL = """
import resource, signal, sys, torch
from gamut.io.folders import save_folder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
save_folder(sys.argv[1], {"a": torch.ones(10_000), "b": torch.ones(1_000_000)}, {"new": 1}, shard_bytes=50_000)
"""


def test_full_disk_leaves_the_old_checkpoint(tmp_path):
    """A real refusal by the system (a file size limit) half-way through a sharded save."""
    path = save_folder(tmp_path / "ck", some_tensors(), {"old": 1})
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"could not save checkpoint '{path}': File too large; what was there before is untouched" in done.stderr
    assert same(load_tensors(path), some_tensors()) and load_config(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["ck"]


def test_disk_without_space_leaves_the_old_checkpoint(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    try:
        path = save_folder(disk / "ck", some_tensors(), {"old": 1})
        with pytest.raises(OSError, match="No space left on device; what was there before is untouched") as caught:
            save_folder(path, {"a": torch.ones(1_000_000)}, {"new": 1})
        assert caught.value.errno == 28
        assert same({k: t.clone() for k, t in load_tensors(path).items()}, some_tensors())
        assert os.listdir(disk) == ["ck"]
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
