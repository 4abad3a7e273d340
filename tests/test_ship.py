"""Weights as they are kept in the repository: half as large, and as good to rounding."""

import json
from types import SimpleNamespace

import pytest
import torch
from speeches import codec

from dev.ship import measured, ship
from gamut import api
from gamut.evals.claims import Result
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


def test_what_is_measured_anew_stands_in_the_card(tmp_path, monkeypatch):
    (tmp_path / "README.md").write_text("# A\n\n- a wish\n\n| score |  |\n| old | 1 |\n\nThe end: | b | 2\n")
    recipe = SimpleNamespace(evaluate=lambda folder: Result({"digits/wer": 0.25, "sum/text": 1.0}))
    monkeypatch.setattr(api, "maker", lambda folder: recipe)
    monkeypatch.setattr(api, "module", lambda recipe: recipe)
    assert measured(tmp_path) == json.loads((tmp_path / "metrics.json").read_text())
    rows = "| score |  |\n| --- | --: |\n| digits/wer | 0.25 |\n| sum/text | 1 |\n"
    assert (tmp_path / "README.md").read_text() == f"# A\n\n- a wish\n\n{rows}\nThe end: | b | 2\n"


def test_what_cannot_be_kept_is_named(tmp_path):
    from gamut.io.folders import write_tensors

    with pytest.raises(ValueError, match=r"holds no model\.safetensors; give the folder of a run"):
        ship(tmp_path, tmp_path / "kept")
    write_tensors(tmp_path / "model.safetensors", {"a.weight": torch.tensor([1e6])})
    with pytest.raises(ValueError, match=r"a\.weight has values that float16 cannot hold"):
        ship(tmp_path, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
