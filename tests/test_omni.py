"""The audio encoder and the language model that hears, against the published ones and against themselves."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from safetensors import safe_open
from torch.nn import functional as F

from gamut.codecs.mel import pad_mels, patches, step_audio_2_mel
from gamut.generate.ar import Prompt, Sampling, generate
from gamut.io.convert import export
from gamut.io.folders import load_strict, save_folder
from gamut.io.keys import step_audio_2 as keys
from gamut.io.meta import meta
from gamut.losses.from_hidden import next_token_from_hidden
from gamut.models.audio_encoder import AudioEncoder, AudioEncoderConfig
from gamut.models.lm import LMConfig
from gamut.models.omni import Omni, OmniConfig
from gamut.nn.encoder import sinusoids

MINI = OmniConfig(
    lm=LMConfig(vocab=158720, width=3584, layers=28, heads=28, kv_heads=4, head_dim=128, ffn=18944, qkv_bias=True,
                max_positions=16384)
)  # fact sheet §3-4


def patches_of(model: Omni, lens: torch.Tensor) -> list[int]:
    """What the layers themselves make of clips of so many usable frames."""
    return model.adapter.lengths(model.encoder.lengths(lens)).tolist()


def fixture(folder, name):
    with safe_open(folder / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        config = json.loads(file.metadata()["config"])
    weights = {key[2:]: value for key, value in tensors.items() if key.startswith("w.")}
    return config, weights, tensors


def hearing(folder):
    config, weights, tensors = fixture(folder, "step_audio_2_lm")
    model = Omni(OmniConfig.from_dict(keys.config_from_official(config)))
    load_strict(model, keys.to_ours(weights, asdict(model.config)), "fixture")
    return config, weights, tensors, model.eval()


def tiny(edge="closed", seed=0) -> Omni:
    torch.manual_seed(seed)
    lm = LMConfig(vocab=50, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=64, qkv_bias=True)
    audio = AudioEncoderConfig(mels=16, width=24, layers=2, heads=2, ffn=96, positions=100, edge=edge)
    return Omni(OmniConfig(lm, audio, adaptor_hidden=40, audio_start_id=47, audio_end_id=48, audio_patch_id=49)).eval()


def block(count: int) -> list[int]:
    return [47] + [49] * count + [48]


@torch.no_grad()
def test_whisper_encoder(golden):
    config, weights, data = fixture(golden, "whisper_encoder")
    encoder = AudioEncoder(AudioEncoderConfig.from_dict(keys.encoder_config_from_official(config)))
    load_strict(encoder, keys.encoder_to_ours(weights), "fixture")
    assert torch.allclose(encoder.embed(data["in.input_features"]), data["out.embeddings"], atol=1e-4, rtol=0)
    hidden, count = encoder(data["in.input_features"])
    assert torch.allclose(hidden, data["out.last_hidden_state"], atol=1e-4, rtol=0)
    assert count.tolist() == [data["out.last_hidden_state"].shape[1]] * 2
    assert encoder.positions.shape == (config["max_source_positions"], config["d_model"])


@torch.no_grad()
def test_qwen2_audio_encoder(golden):
    config, weights, data = fixture(golden, "qwen2_audio_encoder")
    encoder = AudioEncoder(AudioEncoderConfig.from_dict(keys.encoder_config_from_official(config)))
    load_strict(encoder, keys.encoder_to_ours(weights), "fixture")
    hidden, count = encoder(data["in.input_features"], data["in.mel_lengths"])
    assert count.tolist() == data["out.output_lengths"].tolist()
    for row, want, length in zip(hidden, data["out.last_hidden_state"], count.tolist(), strict=True):
        assert torch.allclose(row[:length], want[:length], atol=1e-4, rtol=0)


@torch.no_grad()
def test_step_audio_2(golden):
    _, _, data, model = hearing(golden)
    mels, lens, ids = data["in.mels"], data["in.mel_lens"], data["in.input_ids"]
    for got, count, name in [(*model.encoder(mels, lens), "encoder"), (*model.features(mels, lens), "adapter")]:
        assert count.tolist() == data[f"out.{name}_len"].tolist()
        for row, want, length in zip(got, data[f"out.{name}"], count.tolist(), strict=True):
            assert torch.allclose(row[:length], want[:length], atol=1e-4, rtol=0)
    assert torch.allclose(model.embed(ids, mels, lens), data["out.inputs_embeds"], atol=1e-4, rtol=0)
    logits, mask = model(ids, mels, lens, mask_BT=data["in.attention_mask"]), data["in.attention_mask"].bool()
    assert torch.allclose(logits[mask], data["out.logits"][mask], atol=1e-4, rtol=0)


def test_names_and_configs_go_both_ways(golden):
    for name in ("whisper_encoder", "qwen2_audio_encoder"):
        config, weights, _ = fixture(golden, name)
        assert keys.encoder_to_official(keys.encoder_to_ours(weights)).keys() == weights.keys()
        ours = keys.encoder_config_from_official(config)
        assert keys.encoder_config_from_official(keys.encoder_config_to_official(ours)) == ours
    config, weights, _, model = hearing(golden)
    ours = asdict(model.config)
    back = keys.to_official(model.state_dict(), ours)
    assert back.keys() == weights.keys() and all(torch.equal(back[key], weights[key]) for key in back)
    assert keys.config_from_official(keys.config_to_official(ours)) == keys.config_from_official(config)


@pytest.mark.parametrize("prefix", ["model.encoder.", "audio_tower.", "encoder."])
def test_the_encoder_is_found_in_whole_checkpoints(golden, prefix):
    _, weights, _ = fixture(golden, "whisper_encoder")
    whole = {prefix + key: value for key, value in weights.items()} | {"proj_out.weight": torch.zeros(2)}
    assert keys.encoder_to_ours(whole).keys() == keys.encoder_to_ours(weights).keys()
    with pytest.raises(ValueError, match=r"no audio encoder among 1 tensors \(proj_out.weight …\)"):
        keys.encoder_to_ours({"proj_out.weight": torch.zeros(2)})


def test_mini_has_the_released_size_and_names():
    """8,315,179,264 parameters under the released names (fact sheet §3-4)."""
    with meta():
        model = Omni(MINI)
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert sizes["encoder"] == 636_968_960 and sizes["adapter"] == 14_883_584
    assert sizes["lm"] - model.lm.head.weight.numel() == 7_094_474_240
    assert model.lm.head.weight.numel() == 568_852_480 and sum(sizes.values()) == 8_315_179_264
    shapes = {name: tuple(t.shape) for name, t in keys.to_official(model.state_dict(), asdict(MINI)).items()}
    assert shapes.keys() == set(released_names())
    assert shapes["encoder.positional_embedding.weight"] == (1500, 1280)
    assert shapes["encoder.conv1.weight"] == (1280, 128, 3) and shapes["encoder.conv2.weight"] == (1280, 1280, 3)
    assert shapes["adapter.linear1.weight"] == (2048, 1280) and shapes["adapter.linear2.weight"] == (3584, 2048)
    assert shapes["encoder.blocks.31.mlp.0.weight"] == (5120, 1280)
    assert shapes["model.layers.27.self_attn.k_proj.bias"] == (512,) and shapes["lm_head.weight"] == (158720, 3584)


def released_names():
    for stem in ("conv1", "conv2", "after_norm"):
        yield from (f"encoder.{stem}.weight", f"encoder.{stem}.bias")
    yield "encoder.positional_embedding.weight"
    for i in range(32):
        for stem in ("attn.query", "attn.value", "attn.out", "attn_ln", "mlp.0", "mlp.2", "mlp_ln"):
            yield from (f"encoder.blocks.{i}.{stem}.weight", f"encoder.blocks.{i}.{stem}.bias")
        yield f"encoder.blocks.{i}.attn.key.weight"
    for stem in ("conv", "linear1", "linear2"):
        yield from (f"adapter.{stem}.weight", f"adapter.{stem}.bias")
    for i in range(28):
        for stem in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
            yield from (f"model.layers.{i}.{stem}.weight", f"model.layers.{i}.{stem}.bias")
        for stem in ("self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm",
                     "post_attention_layernorm"):
            yield f"model.layers.{i}.{stem}.weight"
    yield from ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")


def test_patch_counts_agree_with_the_front_end():
    """The model and codecs/mel.py count patches apart from each other; a prompt needs both to agree."""
    model = tiny()
    for frames in range(3, 200):
        assert patches_of(model, torch.tensor([frames - 2])) == [patches(frames)]


@torch.no_grad()
@pytest.mark.parametrize("frames", [[40, 31], [41, 12], [37, 38]])
def test_with_a_closed_edge_a_clip_does_not_feel_its_batch(frames):
    model, clips = tiny("closed"), [torch.randn(16, f) for f in frames]
    together, counts = model.features(*pad_mels(clips))
    for row, clip, count in zip(together, clips, counts.tolist(), strict=True):
        alone, (length,) = model.features(*pad_mels([clip]))
        assert count == length and torch.allclose(row[:count], alone[0, :count], atol=1e-5)


@torch.no_grad()
def test_the_released_edge_lets_the_padding_in():
    """The same clips through the released arithmetic differ in their last patch; an even length masks a step more."""
    model = tiny("parity")
    long, short = torch.randn(16, 41), torch.randn(16, 31)
    together, counts = model.features(*pad_mels([long, short]))
    alone, _ = model.features(*pad_mels([short]))
    gap = (together[1, : counts[1]] - alone[0, : counts[1]]).abs().amax(-1)
    assert gap[:-1].max() < 1e-5 < gap[-1]
    odd, even = (F.pad(short[None], (0, extra)) for extra in (0, 1))
    a, b = (model.encoder(mels, torch.tensor([29]))[0][0, :7] for mels in (odd, even))
    assert (a - b).abs().max() > 1e-5
    model.encoder.config = replace(model.encoder.config, edge="open")
    a, b = (model.encoder(mels, torch.tensor([29]))[0][0, :7] for mels in (odd, even))
    assert torch.allclose(a, b, atol=1e-5)


@torch.no_grad()
def test_injection_goes_to_the_right_places():
    """Clips follow the row-major order of their <audio_start>; every other embedding stays bitwise."""
    model = tiny()
    mels, lens = pad_mels([torch.randn(16, f) for f in (20, 36, 12)])
    one, two, three = (block(n) for n in patches_of(model, lens))
    rows = [[1, *one, 2, *two, 3], [*three, 4, 5]]
    ids = torch.tensor([row + [0] * (max(map(len, rows)) - len(row)) for row in rows])
    out, plain, (features, counts) = model.embed(ids, mels, lens), model.lm.embed(ids), model.features(mels, lens)
    heard = ids == 49
    assert torch.equal(out[~heard], plain[~heard])
    wanted = torch.cat([features[n, : counts[n]] for n in range(3)])
    assert torch.equal(out[heard], wanted)


@pytest.mark.parametrize(
    "ids, clips, message",
    [
        ([block(3), [1] * 5], [], "got 0 clips for 1 <audio_start> tokens in 2 rows; give one clip per"),
        ([[1] * 5], [24], "got 1 clips for 0 <audio_start> tokens in 1 rows"),
        ([block(2)], [24], r"clip 0 has 3 patches, but 2 <audio_patch> tokens follow its .* \(row 0, token 0\)"),
        ([[5, *block(4)]], [24], r"clip 0 has 3 patches, but 4 .* \(row 0, token 1\); write as many as codecs.mel"),
        ([[1, 1, 47, 49], [49, 49, 48, 1]], [24], "clip 0 has 3 patches, but 1 <audio_patch>"),
    ],
)
def test_counts_that_do_not_fit_are_named(ids, clips, message):
    model = tiny()
    width = max(map(len, ids))
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in ids])
    mels, lens = pad_mels([torch.randn(16, f) for f in clips]) if clips else (None, None)
    with pytest.raises(ValueError, match=message):
        model.embed(tokens, mels, lens)


def test_what_the_encoder_cannot_take():
    encoder = tiny().encoder
    with pytest.raises(ValueError, match=r"takes 16 mel channels and 1 to 200 frames \(2 s\), got 128 and 50; cut"):
        encoder(torch.zeros(1, 128, 50))
    with pytest.raises(ValueError, match="got 16 and 201; cut longer sound with"):
        encoder(torch.zeros(1, 16, 201))
    with pytest.raises(ValueError, match=r"edge must be one of open, parity, alone, closed, got 'half'"):
        AudioEncoderConfig(edge="half")
    with pytest.raises(ValueError, match=r"heads must divide an even width.*width=30, heads=4"):
        AudioEncoderConfig(width=30, heads=4)
    with pytest.raises(ValueError, match="without lens_N"):
        tiny().embed(torch.tensor([block(3)]), torch.zeros(1, 16, 20))


def test_silence_and_the_shortest_sound_are_heard():
    """A silent question, and one of a single sample, give finite numbers."""
    torch.manual_seed(0)
    model = Omni(replace(tiny().config, audio=AudioEncoderConfig(width=24, layers=1, heads=2, ffn=96)))
    mels, lens = pad_mels([step_audio_2_mel(torch.zeros(8000)), step_audio_2_mel(torch.zeros(1))])
    ids = [block(n) for n in patches_of(model, lens)]
    assert [len(row) - 2 for row in ids] == [6, 0]
    tokens = torch.tensor([ids[0], ids[1] + [0] * 6])
    assert model(tokens, mels, lens).isfinite().all()


def test_loss_is_the_cross_entropy_of_the_answers():
    model = tiny()
    mels, lens = pad_mels([torch.randn(16, f) for f in (20, 36)])
    rows = [[1, *block(n), 7, 8, 9] for n in patches_of(model, lens)]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    target = torch.zeros_like(ids)
    for row, tokens in zip(target, rows, strict=True):
        row[len(tokens) - 3 : len(tokens)] = 1
    x = model.lm.hidden(embeds_BTD=model.embed(ids, mels, lens))
    loss, stats = next_token_from_hidden(x, model.lm.head.weight, ids, target)
    logp = model(ids, mels, lens).log_softmax(-1)
    wanted = [-logp[b, t - 1, ids[b, t]] for b in range(2) for t in range(width) if target[b, t]]
    assert stats["targets"] == 6 and torch.allclose(loss, torch.stack(wanted).mean(), atol=1e-5)
    loss.backward()
    assert model.encoder.conv1.weight.grad.abs().sum() > 0 and model.adapter.conv.weight.grad.abs().sum() > 0
    assert model.encoder.positions.grad is None
    assert model.lm.embed.weight.grad[49].abs().sum() == 0  # the patch's own embedding is never seen


@torch.no_grad()
def test_a_prompt_with_sound_is_continued_as_without_a_cache():
    model = tiny()
    mels, lens = pad_mels([torch.randn(16, 36)])
    ids = [1, *block(*patches_of(model, lens)), 2]
    (sample,) = generate(model.lm, [Prompt(ids, model.prompt(ids, mels, lens))], Sampling(temperature=0.0, max_new=6))
    for step, token in enumerate(sample.ids):
        logits = model(torch.tensor([ids + list(sample.ids[:step])]), mels, lens)
        assert int(logits[0, -1].argmax()) == token


@torch.no_grad()
@pytest.mark.parametrize("layout", ["ours", "official"])
def test_saved_and_loaded(golden, tmp_path, layout):
    _, weights, data, model = hearing(golden)
    model.save_pretrained(tmp_path / "ours", "a card")
    export(tmp_path / "ours", tmp_path / "official")
    again = Omni.from_pretrained(tmp_path / layout)
    assert again.config == model.config and not again.encoder.positions.requires_grad
    inputs = data["in.input_ids"], data["in.mels"], data["in.mel_lens"]
    assert torch.equal(again(*inputs), model(*inputs))
    with safe_open(tmp_path / layout / "model.safetensors", "pt") as file:
        assert (set(file.keys()) == set(weights)) == (layout == "official")


def test_an_encoder_out_of_a_hugging_face_folder(golden, tmp_path):
    config, weights, data = fixture(golden, "whisper_encoder")
    save_folder(tmp_path / "hf", {f"model.encoder.{k}": v for k, v in weights.items()}, config)
    encoder = AudioEncoder.from_pretrained(tmp_path / "hf")
    encoder.save_pretrained(tmp_path / "ours")
    again = AudioEncoder.from_pretrained(tmp_path / "ours")
    with torch.no_grad():
        assert torch.allclose(again(data["in.input_features"])[0], data["out.last_hidden_state"], atol=1e-4)
    with pytest.raises(ValueError, match="holds a AudioEncoder, not an Omni"):
        Omni.from_pretrained(tmp_path / "ours")


def test_a_checkpoint_that_does_not_fit_is_refused_by_name(golden, tmp_path):
    config, weights, _, _ = hearing(golden)
    lost = {k: v for k, v in weights.items() if k != "encoder.blocks.1.attn.key.weight"}
    odd = lost | {"adapter.linear1.weight": torch.zeros(3, 3), "encoder.blocks.9.mlp.0.weight": torch.zeros(2)}
    save_folder(tmp_path / "m", odd, config | {"model_type": "step_audio_2"})
    with pytest.raises(ValueError, match="does not fit Omni") as caught:
        Omni.from_pretrained(tmp_path / "m")
    for part in ("1 missing: encoder.blocks.1.attn.k.weight", "1 unexpected: encoder.blocks.9.mlp.up.weight",
                 r"adapter.up.weight (3, 3) instead of (64, 32)"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "llava"}, "must have model_type 'step_audio_2', text_config and audio_encoder_config; got"),
        ({"audio_encoder_config": None}, "must have model_type"),
        ({"text_config": {"num_attention_groups": 3}}, "num_attention_groups 3 must equal num_key_value_heads 2"),
        ({"audio_encoder_config": {"llm_dim": 9}}, "llm_dim 9 must equal the language model's hidden_size 48"),
    ],
)
def test_configs_that_contradict_themselves(golden, change, message):
    config, _, _ = fixture(golden, "step_audio_2_lm")
    for key, value in change.items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    with pytest.raises(ValueError, match=message):
        keys.config_from_official(config)


def test_configs_the_released_code_cannot_build():
    ours = asdict(tiny().config)
    with pytest.raises(ValueError, match="ffn = 4 x width and pool 2; got ffn 50"):
        keys.config_to_official(ours | {"audio": ours["audio"] | {"ffn": 50}})
    with pytest.raises(ValueError, match="both with edge 'open'; got pool 2 and edge 'closed'"):
        keys.encoder_config_to_official(ours["audio"])
    with pytest.raises(ValueError, match=r"\['strange'\] have no official name"):
        keys.to_official({"strange": torch.zeros(1)}, ours)
    with pytest.raises(ValueError, match=r"\['blocks.0.x'\] have no official name"):
        keys.encoder_to_official({"blocks.0.x": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"model_type must be 'whisper', 'qwen2_audio'"):
        keys.encoder_config_from_official({"model_type": "bert"})
    with pytest.raises(ValueError, match=r"activation_function='relu' in config.json is not built"):
        keys.encoder_config_from_official({"model_type": "whisper", "activation_function": "relu"})
    with pytest.raises(ValueError, match=r"unknown Omni config fields \['speed'\]"):
        OmniConfig.from_dict(ours | {"speed": 1})
    with pytest.raises(ValueError, match=r"unknown audio encoder config fields \['speed'\]"):
        OmniConfig.from_dict(ours | {"audio": ours["audio"] | {"speed": 1}})


def test_fresh_positions_are_whispers_sinusoids():
    table = sinusoids(50, 8)
    assert torch.allclose(table[0], torch.tensor([0.0] * 4 + [1.0] * 4))
    assert torch.allclose(table[3, [0, 4]], torch.tensor([0.14112, -0.98999]), atol=1e-5)  # sin 3, cos 3
    assert torch.allclose(table[7, 3], torch.tensor(7e-4).sin(), atol=1e-6)


@pytest.mark.parametrize("frames", [(61, 21), (60, 22), (63, 23), (62, 24), (61, 60, 9, 37)])
@torch.no_grad()
def test_tuned_alone_a_clip_gets_what_the_released_edge_gives_it_by_itself(frames):
    model, clips = tiny("parity"), [torch.randn(16, f) for f in frames]
    by_itself = [model.features(*pad_mels([clip])) for clip in clips]
    model.encoder.config = replace(model.encoder.config, edge="alone")
    together, counts = model.features(*pad_mels(clips))
    for row, count, (alone, (length,)) in zip(together, counts, by_itself, strict=True):
        assert count == length and torch.allclose(row[:count], alone[0, :count], atol=1e-5)
