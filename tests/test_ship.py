"""Weights as they are kept in the repository: half as large, and as good to rounding."""

import pytest
import torch
from speeches import codec

from dev.ship import ship
from gamut.generate.voice import SpeechCodec


def test_shipped_weights_are_half_as_large_and_say_the_same(tmp_path):
    whole, ids = codec(), torch.arange(9)[None]
    whole.save_pretrained(tmp_path / "run")
    before = sum(file.stat().st_size for file in (tmp_path / "run").rglob("model.safetensors"))
    ship(tmp_path / "run", tmp_path / "kept")
    after = sum(file.stat().st_size for file in (tmp_path / "kept").rglob("model.safetensors"))
    assert 0.45 * before < after < 0.6 * before
    again = SpeechCodec.from_pretrained(tmp_path / "kept")
    assert next(again.wave.parameters()).dtype == torch.float32
    assert torch.allclose(again.decode(ids), whole.decode(ids), atol=2e-3)
    assert torch.equal(again.voices["a"].speaker_S, whole.voices["a"].speaker_S)


def test_what_cannot_be_kept_is_named(tmp_path):
    from gamut.io.folders import write_tensors

    with pytest.raises(ValueError, match=r"holds no model\.safetensors; give the folder of a run"):
        ship(tmp_path, tmp_path / "kept")
    write_tensors(tmp_path / "model.safetensors", {"a.weight": torch.tensor([1e6])})
    with pytest.raises(ValueError, match=r"a\.weight has values that float16 cannot hold"):
        ship(tmp_path, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
