"""Tokens to sound: lengths, slicing, voices, and the released folder's layout."""

import warnings
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from flows import CONFIG, ids, lively, voice
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import gamut
from gamut.codecs import token2wav
from gamut.codecs.codec import Codec
from gamut.codecs.flow import FlowConfig, Voice
from gamut.codecs.hift import HiFTConfig
from gamut.codecs.s3_tokenizer import S3Config, S3Tokenizer
from gamut.codecs.token2wav import Token2Wav, Token2WavConfig, decode_together, read_voices
from gamut.generate.voice import SpeechCodec
from gamut.io.convert import convert
from gamut.io.folders import read_tensors
from gamut.io.keys import flow as flow_keys
from gamut.io.keys import hift as hift_keys
from gamut.io.token2wav import read_yaml
from gamut.models.speaker import SpeakerNet, SpeakerNetConfig

YAML = """
# HyperPyYAML: tags name classes, which nothing here builds
__set_seed: !apply:random.seed [1986]
mels: 8
flow: !new:cosyvoice2.flow.flow.CausalMaskedDiffWithXvec
    input_size: 16
    output_size: !ref <mels>
    spk_embed_dim: 6
    output_type: 'mel'
    vocab_size: 50
    encoder: !new:cosyvoice2.transformer.upsample_encoder_v2.UpsampleConformerEncoderV2
        input_size: 16
        output_size: 16
        input_layer: 'linear'
        pre_lookahead_len: 3
        num_blocks: 2
        num_up_blocks: 1
        up_scale_factor: 2
        attention_heads: 2
        linear_units: 24
        normalize_before: True
    decoder: !new:cosyvoice2.flow.flow_matching.CausalConditionalCFM
        inference_cfg_rate: 0.7
        estimator: !new:cosyvoice2.flow.decoder_dit.DiT
            in_channels: 32
            out_channels: !ref <mels>
            mlp_ratio: 4.0
            depth: 2
            num_heads: 2
            head_dim: 8
            hidden_size: 16
"""
HIFT = HiFTConfig(mels=8, width=16, pitch_width=8)


def made() -> Token2Wav:
    codec = Token2Wav(Token2WavConfig(FlowConfig(**vars(CONFIG) | {"steps": 1, "chunk": 25}), HIFT))
    lively(codec.flow)
    lively(codec.hift, scale=0.3)
    codec.voices = {"a": voice(4), "b": voice(3, 1)}
    return codec.eval()


CODEC = made()
READ = CODEC.read("a")
TOKENIZER = S3Tokenizer(S3Config(width=16, layers=1, heads=2, ffn=16, levels=(3,) * 3)).eval()


def test_it_fits_the_socket():
    assert isinstance(CODEC, Codec) and CODEC.stride == (960,) and CODEC.rate == 24000 and CODEC.vocab == 50
    with pytest.raises(ValueError, match=r"only decodes; S3Tokenizer\.encode makes the tokens"):
        CODEC.encode(torch.zeros(1, 960))


def test_offline_lengths_and_rows():
    rows = torch.stack([ids(9), ids(9, 1)])
    wav = CODEC.decode(rows)
    assert wav.shape == (2, 9 * 960) and float(wav.abs().max()) <= 0.9901
    assert torch.allclose(CODEC.decode(rows[1:]), wav[1:], atol=1e-4)
    assert CODEC.decode(ids(0)[None]).shape == (1, 0)


@pytest.mark.parametrize("count", [3, 27, 28, 53, 80])
def test_the_released_sample_counts(count):
    """25 tokens at a time: 20,160 samples first, then 24,000, the rest at the end; 960 a token in all."""
    stream = CODEC.open(voice=READ)
    sizes = [size for i in range(count) if (size := stream.decode(ids(1, i)[None]).shape[1])]
    middle = (count - 3) // 25
    assert sizes == [20160, 24000, 24000][:middle]
    assert stream.flush().shape[1] == count * 960 - sum(sizes) and stream.flush().shape[1] == 0


def test_a_stream_goes_on_after_its_end():
    """An answer may speak, write, and speak again: each part has the sound of its own tokens."""
    stream = CODEC.open(voice=READ)
    for count in (7, 40, 2):
        sound = torch.cat([stream.decode(ids(count)[None]), stream.flush()], 1)
        assert sound.shape == (1, count * 960) and sound.isfinite().all()


def test_streams_together_are_streams_alone():
    rows = [ids(30)[None], ids(21, 1)[None]]
    alone = []
    for row, name in zip(rows, ("a", "b"), strict=True):
        with CODEC.streaming(1, 10, name) as stream:
            alone.append(torch.cat([stream.decode(row), stream.flush()], 1))
    streams = [CODEC.open(1, 10, "a"), CODEC.open(1, 10, "b")]
    first = decode_together(streams, [rows[0][:, :17], rows[1]])
    rest = decode_together(streams, [rows[0][:, 17:], rows[1][:, :0]], end=True)
    for k in range(2):
        assert torch.allclose(torch.cat([first[k], rest[k]], 1), alone[k], atol=2e-4)


def test_voices_are_chosen_and_kept(tmp_path):
    row = ids(6)[None]
    assert torch.equal(CODEC.decode(row), CODEC.decode(row, "a"))
    assert (CODEC.decode(row, "a") - CODEC.decode(row, "b")).abs().max() > 1e-4
    gamut.save(CODEC, tmp_path / "codec")
    again = gamut.load(tmp_path / "codec")
    assert list(again.voices) == ["a", "b"]
    assert torch.allclose(again.decode(row, "b"), CODEC.decode(row, "b"), atol=1e-3)
    with pytest.raises(ValueError, match="no voice 'c'; there is a, b"):
        CODEC.decode(row, "c")
    silent = Token2Wav(CODEC.config)
    with pytest.raises(ValueError, match=r"no default voice; there is none: make one with Token2Wav\.voice"):
        silent.decode(row)
    spoken = CODEC.voice(ids(4), torch.randn(9000), torch.ones(6))
    assert spoken.mel_MT.shape == (8, 8)  # of the 18 frames, as many as the tokens stand for
    torch.save({}, tmp_path / "v.pt")
    with pytest.raises(ValueError, match="truncated or not a safetensors file"):
        read_voices(tmp_path / "v.pt")


def test_what_was_read_is_opened_as_it_was_read():
    other = CODEC.read("a", steps=2)
    for rules in ({}, {"steps": 2}):
        assert CODEC.open(voice=other, **rules).flow.states[0].rules == other.rules
    with pytest.raises(ValueError, match=r"read for steps=2, got steps=3; read it for those: read\(voice, steps=3\)"):
        CODEC.open(voice=other, steps=3)


def test_voices_that_do_not_fit_are_named_where_they_are_read(tmp_path):
    codec = Token2Wav.of(CODEC.flow, CODEC.hift, {"a": voice(2), "b": replace(voice(3), mel_MT=torch.randn(8, 4))})
    codec.save_pretrained(tmp_path / "codec")
    with pytest.raises(ValueError, match=r"voice 'b' of .*voices\.safetensors.*3 tokens, a mel of 8 x 6 frames; got 6"):
        Token2Wav.from_pretrained(tmp_path / "codec")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_speak(tmp_path, dtype):
    CODEC.save_pretrained(tmp_path / "codec")
    other, row = Token2Wav.from_pretrained(tmp_path / "codec", dtype), ids(12)[None]
    assert other.hift.dtype == other.flow.project.weight.dtype == dtype
    stream = other.open(chunk=5)
    for sound in (other.decode(row), torch.cat([stream.decode(row), stream.flush()], 1)):
        assert sound.shape == (1, 12 * 960) and sound.dtype == torch.float32 and sound.isfinite().all()


def test_a_codec_with_a_folded_vocoder_loads(tmp_path):
    codec, row = made(), ids(4)[None]
    sound = codec.decode(row)
    codec.hift.fold()
    codec.save_pretrained(tmp_path / "codec")
    again = Token2Wav.from_pretrained(tmp_path / "codec")
    assert not again.config.hift.norm and torch.allclose(again.decode(row), sound, atol=1e-4)


def test_the_first_voice_stays_the_default(tmp_path):
    """In any order, through save and load; a file that was written before the order was kept is read by name."""
    codec = Token2Wav.of(CODEC.flow, CODEC.hift, {"zed": voice(2), "a.b": voice(3), "jackson": voice(4)})
    codec.save_pretrained(tmp_path / "codec")
    again = Token2Wav.from_pretrained(tmp_path / "codec")
    assert list(again.voices) == ["zed", "a.b", "jackson"]
    assert torch.equal(again.chosen(None).mel_MT, voice(2).mel_MT)
    file = tmp_path / "codec" / "voices.safetensors"
    save_file(read_tensors(file), file, metadata={"format": "pt"})
    assert list(read_voices(file)) == ["a.b", "jackson", "zed"]


def spoken(codec, voice=None):
    with codec.streaming(1, voice=voice) as stream:
        return torch.cat([stream.decode(ids(30)[None]), stream.flush()], 1)


def test_a_voice_is_read_once_for_all_turns(monkeypatch):
    """The sound of each turn is bit for bit that of a stream that read its voice anew; two voices are kept."""
    wave = Token2Wav.of(CODEC.flow, CODEC.hift, {"a": voice(4), "b": voice(3, 1), "c": voice(2, 2)})
    fresh = {}
    for name in wave.voices:
        fresh[name] = spoken(wave, name)
    codec, read, begin = SpeechCodec(TOKENIZER, wave), [], token2wav.begin

    def counted(flow, one, rules):
        read.append(next(name for name, each in wave.voices.items() if torch.equal(each.ids_N, one.ids_N)))
        return begin(flow, one, rules)

    monkeypatch.setattr(token2wav, "begin", counted)
    for _ in range(2):
        assert torch.equal(spoken(codec), fresh["a"])
    assert read == ["a"]
    again = voice(3, 1)  # made again of the same clip, it is the same voice
    for name, one in [("b", wave.voices["b"]), ("a", None), ("b", again), ("c", wave.voices["c"]), ("b", again)]:
        assert torch.equal(spoken(codec, one), fresh[name])
    assert read == ["a", "b", "c"]
    spoken(codec)
    assert read[3:] == ["a"]
    codec.to("cpu")
    assert torch.equal(spoken(codec), fresh["a"]) and read[4:] == ["a"]


def test_a_long_recording_gives_its_first_ten_seconds():
    codec, wav = SpeechCodec(TOKENIZER, CODEC), torch.randn(12 * 8000) * 0.1
    with pytest.warns(UserWarning, match=r"first 10 s of a recording; this one has 12\.0 s, the rest is left out"):
        long = codec.voice_of(wav, 8000, torch.ones(6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        short = codec.voice_of(wav[:80000], 8000, torch.ones(6))
    assert len(long.ids_N) == 250 and torch.equal(long.ids_N, short.ids_N) and torch.equal(long.mel_MT, short.mel_MT)


def released(path, leave_out: str = "", yaml: str = YAML):
    """A token2wav folder as it is released, with random weights."""
    path.mkdir()
    flow = flow_keys.to_official(CODEC.flow.state_dict())
    hift = hift_keys.to_official(CODEC.hift.state_dict(), vars(HIFT))
    torch.save(flow, path / "flow.pt")
    torch.save({f"generator.{name}": tensor for name, tensor in hift.items()}, path / "hift.pt")
    (path / "flow.yaml").write_text(yaml)
    if leave_out:
        (path / leave_out).unlink()
    return path


def test_a_released_folder_becomes_a_codec(tmp_path):
    folder = convert(released(tmp_path / "src"), tmp_path / "ours")
    codec = gamut.load(folder)
    assert isinstance(codec, Token2Wav) and codec.config.flow.steps == 10
    plain = Voice.of(torch.ones(6), 8)
    assert torch.allclose(codec.decode(ids(5)[None], plain, steps=1), CODEC.decode(ids(5)[None], plain), atol=1e-3)
    card = (folder / "README.md").read_text()
    assert "needed to make new voices: `speech_tokenizer_v2_25hz.onnx`, `campplus.onnx`" in card
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_its_onnx_files_become_folders_inside(tmp_path):
    drawn = pytest.importorskip("test_convert_onnx")  # itself skipped without onnx
    src = released(tmp_path / "src")
    drawn.draw_s3(drawn.random_s3(2), src / "speech_tokenizer_v2_25hz.onnx")
    drawn.draw_speaker(drawn.random_speaker(), src / "campplus.onnx")
    folder = convert(src, tmp_path / "ours")
    assert isinstance(gamut.load(folder / "tokenizer"), S3Tokenizer) and isinstance(gamut.load(folder), Token2Wav)
    assert isinstance(gamut.load(folder / "speaker"), SpeakerNet)
    assert "Not there" not in (folder / "README.md").read_text()
    (src / "campplus.onnx").write_bytes(b"no graph")
    with pytest.raises(ValueError, match=r"campplus\.onnx"):
        convert(src, tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_a_voice_out_of_a_recording(tmp_path):
    torch.manual_seed(0)
    tokenizer = S3Tokenizer(S3Config(width=16, layers=1, heads=2, ffn=16, levels=(3, 3, 3))).eval()
    speaker = SpeakerNet(SpeakerNetConfig(embedding=6, head=4, width=8, growth=4, layers=(2,), dilations=(1,))).eval()
    wav = torch.randn(16000) * 0.1
    codec = SpeechCodec(tokenizer, CODEC, speaker)
    spoken = codec.voice_of(wav, 8000)
    assert spoken.ids_N.shape == (50,) and spoken.mel_MT.shape == (8, 100) and spoken.speaker_S.shape == (6,)
    assert codec.decode(ids(4)[None], spoken).shape == (1, 3840) and codec.voices is CODEC.voices
    assert isinstance(codec, Codec) and codec.stride == (960,)
    with pytest.raises(ValueError, match=r"at least 0\.5 s, got 0\.25 s"):
        codec.voice_of(wav[:2000], 8000)
    again = SpeechCodec.from_pretrained(codec.save_pretrained(tmp_path / "codec"))
    assert torch.equal(again.voice_of(wav, 8000).speaker_S, spoken.speaker_S)
    lone = SpeechCodec(tokenizer, CODEC)
    given = lone.voice_of(wav, 8000, torch.ones(6))
    assert torch.equal(given.ids_N, spoken.ids_N) and given.speaker_S.tolist() == [1] * 6
    with pytest.raises(ValueError, match="speaker vectors of 6 numbers, got 5"):
        lone.voice_of(wav, 8000, torch.ones(5))
    with pytest.raises(ValueError, match=r"speaker vectors of 6 numbers and has no speaker network; gamut convert"):
        lone.voice_of(wav, 8000)
    CODEC.save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match=r"has no tokenizer; convert a token2wav folder with its \.onnx files"):
        SpeechCodec.from_pretrained(tmp_path / "bare")
    big = S3Tokenizer(S3Config(width=16, layers=1, heads=2, ffn=16, levels=(3,) * 4))
    with pytest.raises(ValueError, match="the tokenizer has 81 tokens, the flow knows 50"):
        SpeechCodec(big, CODEC)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no whole token2wav folder: hift\.pt missing, got flow"):
        convert(released(tmp_path / "a", "hift.pt"), tmp_path / "out")
    with pytest.raises(ValueError, match=r"describes no flow: looked for an entry with an encoder.*got mels"):
        convert(released(tmp_path / "b", yaml="mels: 8\n"), tmp_path / "out")
    with pytest.raises(ValueError, match="describes no flow"):
        yaml = YAML.partition("estimator:")[0] + "estimator: dit"
        convert(released(tmp_path / "e", yaml=yaml), tmp_path / "out")
    other = YAML.replace("normalize_before: True", "normalize_before: False")
    with pytest.raises(ValueError, match="encoder normalize_before=False is not built; allowed: True"):
        convert(released(tmp_path / "f", yaml=other), tmp_path / "out")
    with pytest.raises(ValueError, match="is not YAML"):
        convert(released(tmp_path / "c", yaml="a: [1"), tmp_path / "out")
    (tmp_path / "d.pt").write_bytes(b"")
    broken = released(tmp_path / "d")
    tensors = torch.load(broken / "flow.pt")
    torch.save(tensors | {"extra.weight": torch.ones(1)}, broken / "flow.pt")
    with pytest.raises(ValueError, match=r"\['extra.weight'\] have no official name"):
        convert(broken, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_yaml_tags_are_dropped_and_nothing_is_built(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("a: !new:os.system\n  command: 'false'\nb: !ref <c>\nc: 4\nd: !apply:os.remove ['x']\ne: !x '5'\n")
    assert read_yaml(file) == {"a": {"command": "false"}, "b": 4, "c": 4, "d": ["x"], "e": 5}


def test_mels_must_agree():
    with pytest.raises(ValueError, match="flow and vocoder must have the same mels, got 8 and 80"):
        Token2WavConfig(CONFIG, HiFTConfig())


def without(part):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


def changed(path, file, change):
    folder = released(path)
    torch.save(change(torch.load(folder / file)), folder / file)
    return folder


def test_every_spelling_of_a_normed_weight_is_the_same_vocoder(tmp_path):
    """Both pairs of names, some of each, no prefix, and the norm removed for inference."""
    older = dict(zip(hift_keys.PAIRS[1], hift_keys.PAIRS[0], strict=True))

    def renamed(tensors, only=""):
        return {next((n.replace(new, old) for new, old in older.items() if n.endswith(new) and only in n), n): t
                for n, t in tensors.items()}  # fmt: skip

    def folded(tensors):
        length, direction = hift_keys.PAIRS[1]
        stems = [name.removesuffix(length) for name in tensors if name.endswith(length)]
        plain = {n: t for n, t in tensors.items() if not n.endswith((length, direction))}
        return plain | {f"{s}weight": torch._weight_norm(tensors[s + direction], tensors[s + length]) for s in stems}

    ways = [renamed, lambda t: renamed(t, "conv_pre"), folded,
            lambda t: {name.removeprefix("generator."): tensor for name, tensor in t.items()}]  # fmt: skip
    plain, row = Voice.of(torch.ones(6), 8), ids(5)[None]
    for k, way in enumerate(ways):
        codec = gamut.load(convert(changed(tmp_path / f"{k}", "hift.pt", way), tmp_path / f"ours{k}"))
        assert torch.allclose(codec.decode(row, plain, steps=1), CODEC.decode(row, plain), atol=1e-5)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("flow.pt", without("affine_layer.bias"), "missing: flow.speaker.bias"),
        ("flow.pt", lambda t: t | {"encoder.after_norm.weight": torch.ones(9)}, r"norm\.weight \(9,\) instead of"),
        ("hift.pt", without("conv_pre.bias"), "missing: hift.pre.bias"),
        ("hift.pt", lambda t: t | {"generator.f0_predictor.classifier.bias": torch.ones(4)}, "mis-shaped: hift.pitch"),
    ],
)
def test_weights_that_do_not_fit_are_named_before_anything_is_written(tmp_path, file, change, message):
    with pytest.raises(ValueError, match=f"is no whole codec.*{message}.*Nothing was written"):
        convert(changed(tmp_path / "src", file, change), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_a_flow_yaml_that_says_something_else_is_refused(tmp_path):
    for k, (old, new, message) in enumerate([("depth: 2", "depth: 3", r"missing: flow\.estimator\.blocks\.2"),
                                             ("num_blocks: 2", "num_blocks: many", "is no whole codec")]):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            convert(released(tmp_path / f"{k}", yaml=YAML.replace(old, new)), tmp_path / "out")
    broken = released(tmp_path / "bytes")
    (broken / "flow.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ValueError, match="is not YAML"):
        convert(broken, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@settings(max_examples=8)
@given(st.integers(0, 60), st.sampled_from([1, 2, 3, 25, 60, (1, 60)]), st.integers(1, 3), st.data())
def test_any_chunk_any_rows_with_empty_and_single_slices(count, chunk, rows, data):
    """Chunks of 1 to 60 tokens: whole, token by token, and cut anywhere with calls that bring nothing."""
    tokens = torch.stack([ids(count, k) for k in range(rows)])
    cuts = sorted(data.draw(st.lists(st.integers(0, count), max_size=4)))
    sounds = []
    for ends in ([], range(count), cuts + cuts):
        stream = CODEC.open(rows, chunk, "b")
        at = [0, *sorted(ends), count]
        pieces = [stream.decode(tokens[:, a:b]) for a, b in pairwise(at)]
        sounds.append(torch.cat([*pieces, stream.flush()], 1))
        assert not stream.flush().numel()
    assert sounds[0].shape == (rows, count * 960) and all(torch.equal(sounds[0], sound) for sound in sounds[1:])
