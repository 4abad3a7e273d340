"""Foreign folders in, official ones out: equal bytes there and back, equal logits in transformers, no pickled code."""

import json
import re
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from gamut import cli
from gamut.codecs.text import Tokenizer
from gamut.io.convert import convert, export
from gamut.io.folders import load_config, load_tensors, save_folder
from gamut.models.adapters import save_lora
from gamut.models.lm import LM, LMConfig
from gamut.models.omni import Omni
from gamut.nn.lora import add_lora, fold_lora, lora_layers

QWEN = ["qwen2", "qwen2_tied", "qwen3", "qwen2_moe", "qwen3_moe"]
ALL = [*QWEN, "step1_lm", "step_audio_2_lm"]
TYPES = {"step1_lm": "step1", "step_audio_2_lm": "step_audio_2"}
IDS = torch.arange(30).view(2, 15) % 100


def official_folder(golden, name, path):
    """A released checkpoint as it would lie on disk, out of a fixture's weights and config."""
    with safe_open(golden / f"{name}.safetensors", "pt") as file:
        weights = {key[2:]: file.get_tensor(key) for key in file.keys() if key.startswith("w.")}
        config = json.loads(file.metadata()["config"])
    config = {"model_type": TYPES.get(name, name)} | config
    return save_folder(path, weights, config, files={"generation_config.json": '{"eos_token_id": [7]}'}), weights


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def holds(after, before):
    if not isinstance(before, dict):
        return after == before
    return all(key in after and holds(after[key], value) for key, value in before.items())


@pytest.mark.parametrize("name", ALL)
def test_there_and_back_is_byte_equal(golden, tmp_path, name):
    src, weights = official_folder(golden, name, tmp_path / "src")
    back = export(convert(src, tmp_path / "ours"), tmp_path / "back")
    assert same(load_tensors(back), weights)
    assert holds(load_config(back), load_config(src))  # fields we have no use for come back too
    assert (back / "generation_config.json").read_text() == (src / "generation_config.json").read_text()


@pytest.mark.parametrize("name", ALL)
def test_the_converted_folder_and_the_official_one_load_alike(golden, tmp_path, name):
    src, _ = official_folder(golden, name, tmp_path / "src")
    kind = Omni if name == "step_audio_2_lm" else LM
    ours = kind.from_pretrained(convert(src, tmp_path / "ours"))
    theirs = kind.from_pretrained(src)
    assert same(ours.state_dict(), theirs.state_dict()) and ours.config == theirs.config


@pytest.mark.parametrize("name", ["qwen2_moe", "step_audio_2_lm"])
def test_the_command_loads_what_it_wrote(golden, tmp_path, capsys, name):
    src, weights = official_folder(golden, name, tmp_path / "src")
    assert cli.main(["convert", str(src), str(tmp_path / "ours")]) == 0
    said, path = capsys.readouterr().out.splitlines()
    kind, count = ("Omni", "LM")[name == "qwen2_moe"], sum(w.numel() for w in weights.values())
    assert said.startswith(f"it loads as {kind}: {count:,} parameters") and path == str(tmp_path / "ours")


@pytest.mark.parametrize("name", QWEN)
def test_transformers_gives_equal_logits_on_our_export(golden, tmp_path, name):
    transformers = pytest.importorskip("transformers")
    src, _ = official_folder(golden, name, tmp_path / "src")
    model = LM.from_pretrained(src).eval()
    model.save_pretrained(tmp_path / "ours")  # without the official config beside it
    theirs = transformers.AutoModelForCausalLM.from_pretrained(export(tmp_path / "ours", tmp_path / "hf")).eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS).logits, model(IDS), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["qwen2", "qwen3_moe"])
def test_folders_that_transformers_wrote(golden, tmp_path, name):
    """Sharded, in bf16, with its own config fields."""
    transformers = pytest.importorskip("transformers")
    src, _ = official_folder(golden, name, tmp_path / "src")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(src, dtype=torch.bfloat16).eval()
    theirs.save_pretrained(tmp_path / "saved", max_shard_size="100KB")
    assert (tmp_path / "saved" / "model.safetensors.index.json").exists()
    model = LM.from_pretrained(convert(tmp_path / "saved", tmp_path / "ours"), torch.bfloat16).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).float(), theirs(IDS).logits.float(), atol=0.2, rtol=0)
        torch.testing.assert_close(model.float()(IDS), theirs.float()(IDS).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("layout", ["pytorch_model.bin", "model.pt", "sharded", "nested"])
def test_pickled_weights_convert_to_the_same(golden, tmp_path, layout):
    src, weights = official_folder(golden, "qwen2", tmp_path / "src")
    (src / "model.safetensors").unlink()
    if layout == "sharded":
        names = list(weights)
        halves = {"pytorch_model-00001-of-00002.bin": names[:20], "pytorch_model-00002-of-00002.bin": names[20:]}
        for file, part in halves.items():
            torch.save({name: weights[name] for name in part}, src / file)
        index = {name: file for file, part in halves.items() for name in part}
        (src / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    else:
        torch.save({"state_dict": weights} if layout == "nested" else weights, src / layout.replace("nested", "a.pt"))
    assert same(load_tensors(export(convert(src, tmp_path / "ours"), tmp_path / "back")), weights)


class Trap:
    """Unpickling this would create a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_pickle_that_holds_code_is_refused_and_not_run(golden, tmp_path):
    src, weights = official_folder(golden, "qwen2", tmp_path / "src")
    (src / "model.safetensors").unlink()
    torch.save(weights | {"extra": Trap(tmp_path / "touched")}, src / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model.bin' was refused: it holds more than tensors.*safetensors"):
        convert(src, tmp_path / "ours")
    assert not (tmp_path / "touched").exists() and not (tmp_path / "ours").exists()


def test_damaged_or_strange_pickles_are_named(golden, tmp_path):
    src, weights = official_folder(golden, "qwen2", tmp_path / "src")
    (src / "model.safetensors").unlink()
    file = src / "pytorch_model.bin"
    torch.save(weights, file)
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=rf"truncated or no PyTorch file: got {len(data) // 2:,} bytes .*again"):
        convert(src, tmp_path / "ours")
    torch.save([1, 2], file)
    with pytest.raises(ValueError, match=r"must hold a state dict .* got list"):
        convert(src, tmp_path / "ours")
    torch.save(weights | {"epoch": 3, "step": 4}, file)
    with pytest.raises(ValueError, match=r"must hold a state dict .* got others: epoch, step"):
        convert(src, tmp_path / "ours")
    file.unlink()
    with pytest.raises(ValueError, match=r"has no weights; looked for model.safetensors and .* got config.json"):
        convert(src, tmp_path / "ours")


def test_tokenizer_files_are_carried_both_ways(golden, tmp_path):
    src, _ = official_folder(golden, "qwen2", tmp_path / "src")
    Tokenizer.characters("abc", ["<eot>"]).save_pretrained(src)
    back = export(convert(src, tmp_path / "ours"), tmp_path / "back")
    for folder in (tmp_path / "ours", back):
        assert Tokenizer.from_pretrained(folder).encode("ab<eot>") == [0, 1, 3]


@pytest.mark.parametrize("merge", [True, False])
def test_export_with_an_adapter(golden, tmp_path, merge):
    """transformers (and peft, when the adapter stays apart) give the adapted model's logits."""
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    src, _ = official_folder(golden, "qwen3", tmp_path / "src")
    ours = convert(src, tmp_path / "ours")
    model = LM.from_pretrained(ours).eval()
    add_lora(model, rank=2)
    torch.manual_seed(0)
    for _, layer in lora_layers(model):
        torch.nn.init.normal_(layer.lora_B, std=0.05)
    save_lora(model, tmp_path / "adapter")
    out = export(ours, tmp_path / "hf", lora=tmp_path / "adapter", merge=merge)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    if not merge:
        theirs = peft.PeftModel.from_pretrained(theirs, out / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS).logits, model(IDS), atol=1e-5, rtol=0)
        fold_lora(model)
        torch.testing.assert_close(theirs(IDS).logits, model(IDS), atol=1e-5, rtol=0)


Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
FITS = {"A": torch.ones(2, 32), "B": torch.ones(32, 2)}


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize(
    ("settings", "pair", "message"),
    [
        ("{", FITS, r"adapter_config\.json' is not JSON"), ("[]", FITS, "must hold a JSON object, got list"),
        ('{"r": 2}', FITS, r"lora_alpha in .*adapter_config\.json' must be a number, got None; save the adapter again"),
        ('{"lora_alpha": 4, "alpha_pattern": {"q_proj": "x"}}', FITS, "alpha_pattern 'q_proj' in .* number, got 'x'"),
        ('{"lora_alpha": 4}', {"A": torch.ones(2, 99), "B": torch.ones(77, 2)},
         r"not fit this checkpoint: blocks.0.attn.q has A \(2, 99\) and B \(77, 2\) for a weight of \(32, 32\); give"),
        ('{"lora_alpha": 4}', FITS | {"B": torch.ones(32, 3)}, r"blocks\.0\.attn\.q has A \(2, 32\) and B \(32, 3\)"),
        ('{"lora_alpha": 4}', {"A": FITS["A"]}, r"has only one of lora_A, lora_B for blocks\.0\.attn\.q"),
        ('{"lora_alpha": 4}', FITS | {"A": torch.ones(2)}, r"lora_A.weight' in .* must have two axes, got shape \(2"),
        ('{"lora_alpha": 4}', {}, "holds no adapter; give the folder"),
    ],
)  # fmt: skip
def test_an_adapter_that_cannot_be_used_is_named_and_nothing_is_written(tmp_path, settings, pair, message, merge):
    """Once it can be, the same folder is exported to."""
    LM(LMConfig(50, 32, 1, 4, 2, 8, 48, qkv_bias=True)).save_pretrained(tmp_path / "ours")
    (tmp_path / "adapter").mkdir()
    with pytest.raises(ValueError, match=r"adapter' has no adapter_config\.json; give the folder that peft"):
        export(tmp_path / "ours", tmp_path / "hf", lora=tmp_path / "adapter", merge=merge)
    (tmp_path / "adapter" / "adapter_config.json").write_text(settings)
    save_file({f"{Q}{part}.weight": tensor for part, tensor in pair.items()},
              tmp_path / "adapter" / "adapter_model.safetensors")  # fmt: skip
    with pytest.raises(ValueError, match=message):
        export(tmp_path / "ours", tmp_path / "hf", lora=tmp_path / "adapter", merge=merge)
    assert {path.name for path in tmp_path.iterdir()} == {"ours", "adapter"}
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"lora_alpha": 4}')
    save_file({f"{Q}{part}.weight": t for part, t in FITS.items()}, tmp_path / "adapter" / "adapter_model.safetensors")
    out = export(tmp_path / "ours", tmp_path / "hf", lora=tmp_path / "adapter", merge=merge)
    before, after = load_tensors(tmp_path / "ours"), load_tensors(out)
    gained = after["model.layers.0.self_attn.q_proj.weight"] - before["blocks.0.attn.q.weight"]
    torch.testing.assert_close(gained, torch.full((32, 32), 4.0 * merge))
    assert (out / "adapter" / "adapter_model.safetensors").exists() != merge


def test_nothing_is_overwritten(golden, tmp_path):
    src, _ = official_folder(golden, "qwen2", tmp_path / "src")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"mine' exists already; nothing was written. Choose another"):
        convert(src, tmp_path / "mine")
    ours = convert(src, tmp_path / "ours")
    with pytest.raises(ValueError, match=r"mine' exists already; nothing was written"):
        export(ours, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_a_name_that_does_not_belong_stops_the_conversion(golden, tmp_path):
    src, weights = official_folder(golden, "qwen2", tmp_path / "src")
    save_file(weights | {"model.vision.weight": torch.ones(2)}, src / "model.safetensors")
    with pytest.raises(ValueError, match=r"'model.vision.weight' has no official name"):
        convert(src, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    ("name", "lost", "ours"),
    [("qwen2", "model.layers.1.mlp.up_proj.weight", r"blocks\.1\.mlp\.up\.weight"),
     ("step_audio_2_lm", "adapter.linear1.bias", r"adapter\.up\.bias")],
)  # fmt: skip
def test_a_failed_conversion_leaves_nothing_and_can_be_tried_again(golden, tmp_path, capsys, name, lost, ours):
    src, weights = official_folder(golden, name, tmp_path / "src")
    asked = ["convert", str(src), str(tmp_path / "ours")]
    spoilt = [({k: t for k, t in weights.items() if k != lost}, f"1 missing: {ours}"),
              (weights | {lost: torch.ones(3)}, rf"1 mis-shaped: {ours} \(3,\) instead of")]  # fmt: skip
    for tensors, message in spoilt:
        save_file(tensors, src / "model.safetensors")
        assert cli.main(asked) == 2 and [path.name for path in tmp_path.iterdir()] == ["src"]
        said = capsys.readouterr().err
        assert re.search(rf"src' is no whole (LM|Omni): what it holds .*{message}.*Nothing was written", said), said
    save_file(weights, src / "model.safetensors")
    assert cli.main(asked) == 0 and "it loads as" in capsys.readouterr().out


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_are_named(golden, tmp_path, bad):
    src, weights = official_folder(golden, "qwen2", tmp_path / "src")
    weights["model.norm.weight"] = weights["model.norm.weight"].clone().fill_(bad)
    save_file(weights, src / "model.safetensors")
    with pytest.raises(ValueError, match=r"src' holds nan or infinite weights in model\.norm\.weight; download"):
        convert(src, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_messages_say_what_is_possible(golden, tmp_path):
    src, weights = official_folder(golden, "qwen2", tmp_path / "src")
    ours = convert(src, tmp_path / "ours")
    with pytest.raises(ValueError, match="is a gamut checkpoint already; to write another layout: gamut export"):
        convert(ours, tmp_path / "x")
    with pytest.raises(ValueError, match=r"src' is not a gamut checkpoint; got config.json of 'qwen2'"):
        export(src, tmp_path / "x")
    with pytest.raises(ValueError, match="unknown layout 'onnx'; allowed: hf"):
        export(ours, tmp_path / "x", "onnx")
    with pytest.raises(ValueError, match="merge needs an adapter; give --lora"):
        export(ours, tmp_path / "x", merge=True)
    shutil.rmtree(src)
    save_folder(src, weights, {"model_type": "bloom"})
    with pytest.raises(ValueError, match=r"must be one of qwen2, .*step_audio_2; got 'bloom'"):
        convert(src, tmp_path / "x")
    save_folder(tmp_path / "codec", weights, {"gamut": "0", "class": "Token2Wav", "config": {}})
    with pytest.raises(ValueError, match="a Token2Wav has no official layout; exportable classes: LM, Omni"):
        export(tmp_path / "codec", tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda w: w.pop("model.layers.1.mlp.up_proj.weight"), "1 missing: blocks.1.mlp.up.weight"),
        (lambda w: w.update(extra=torch.ones(2)), "1 unexpected: extra"),
        (
            lambda w: w.update({"model.norm.weight": torch.ones(63)}),
            r"1 mis-shaped: norm.weight \(63,\) instead of \(64,\)",
        ),
        (
            lambda w: w.update({"model.norm.weight": torch.ones(64, dtype=torch.int64)}),
            "1 wrong dtype: norm.weight int64 instead of float32",
        ),
    ],
)
def test_loading_a_wrong_official_checkpoint_names_the_key(golden, tmp_path, change, message):
    src, weights = official_folder(golden, "qwen2", tmp_path / "src")
    change(weights)
    save_file(weights, src / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        LM.from_pretrained(src)
