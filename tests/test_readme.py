"""The shop window: generated blocks are those of the code, links lead somewhere, and the examples run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dev.claims import finished, summary
from dev.readme import examples, filled

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_generated_blocks_are_up_to_date():
    assert filled(README) == README, "run: make readme"


def test_an_unknown_block_is_named():
    with pytest.raises(ValueError, match=r"README\.md asks for block 'weather'; there is: recipes, commands"):
        filled("<!-- made: weather -->\n<!-- end -->")


def test_a_claim_counts_when_it_held_with_every_seed_of_the_newest_commit():
    def line(seed: int, commit: str, minutes: float, *passed: bool) -> dict:
        claims = [{"passed": one} for one in passed]
        return {"recipe": "a", "seed": seed, "commit": commit, "minutes": minutes, "date": "d", "claims": claims}

    lines = [line(0, "old", 9.0, False, False), line(0, "new", 3.0, True, True), line(1, "new", 4.0, True, False)]
    assert summary(lines) == {
        "a": {"minutes": 4.0, "passed": 1, "claims": 2, "seeds": [0, 1], "commit": "new", "date": "d"}
    }


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text(encoding="utf-8"))
    missing = [link for link in links if not link.startswith("https://") and not (ROOT / link).exists()]
    assert not missing, f"{page} links to {missing}"


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    """A folder with what the examples name: a tiny checkpoint under the name of a released one, and a text."""
    import torch
    import transformers

    from gamut.codecs.text import Tokenizer

    folder = tmp_path_factory.mktemp("readme")
    text = "One, two, three, four, five. " * 40
    words = Tokenizer.train([text], 300)
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=words.vocab, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256,
    )  # fmt: skip
    transformers.Qwen2ForCausalLM(config).save_pretrained(folder / "Qwen2.5-0.5B")
    words.save_pretrained(folder / "Qwen2.5-0.5B")
    _speech_model(folder)
    (folder / "my_notes").mkdir()
    (folder / "my_notes" / "lake.md").write_text("The lake is 31 metres deep.")
    (folder / "mine.txt").write_text(" ".join(str(number) for number in range(400)))
    return folder


def _speech_model(folder: Path) -> None:
    """A tiny model in the released layout of Step-Audio 2, and two recordings with transcripts."""
    import torch

    from gamut.data.talks import tokenizer
    from gamut.io.convert import export
    from gamut.io.media import write_audio
    from gamut.models.audio_encoder import AudioEncoderConfig
    from gamut.models.lm import LMConfig
    from gamut.models.omni import Omni, OmniConfig

    words = tokenizer(9)
    lm = LMConfig(words.vocab, 16, 1, 2, 1, 8, 32, qkv_bias=True)
    marks = {f"audio_{name}_id": words.id(f"<audio_{name}>") for name in ("start", "end", "patch")}
    model = Omni(OmniConfig(lm, AudioEncoderConfig(width=16, layers=1, heads=2, ffn=64), 16, **marks))
    model.save_pretrained(folder / "ours", files=words.files())
    export(folder / "ours", folder / "Step-Audio-2-mini")
    for name in ("one", "two"):
        write_audio(folder / "my_recordings" / f"{name}.wav", torch.randn(8000) * 0.1, 8000)
    (folder / "my_recordings" / "transcripts.csv").write_text("file,text\none.wav,One.\ntwo.wav,Two.\n")


@pytest.mark.parametrize("number", range(len(examples(README))))
def test_the_examples_run(released, number):
    language, code = examples(README)[number]
    command = {"python": [sys.executable, "-c"], "bash": ["bash", "-euc"]}[language]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, code], cwd=released, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_finished_run_is_recorded_with_the_minutes_of_all_its_updates(tmp_path):
    env = dict.fromkeys(("cpu", "cores", "torch", "torch threads"), "x") | {"commit": "abc"}
    env["started"] = "2026-01-02 03:04:05"
    (tmp_path / "env.json").write_text(json.dumps(env))
    (tmp_path / "config.json").write_text(json.dumps({"recipe": "toy", "config": {"seed": 3}}))
    update = {"data": 30.0, "forward": 60.0, "backward": 25.0, "optimiser": 5.0, "loss": 1e9}
    (tmp_path / "metrics.jsonl").write_text(2 * (json.dumps(update) + "\n"))
    (tmp_path / "result.json").write_text(json.dumps({"minutes": 0.5, "metrics": {"a": 1.0}, "claims": []}))
    line = finished(tmp_path)
    assert (line["minutes"], line["recipe"], line["seed"], line["date"]) == (4.0, "toy", 3, "2026-01-02")
    assert line["metrics"] == {"a": 1.0} and line["commit"] == "abc"
