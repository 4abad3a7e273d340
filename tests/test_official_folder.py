"""The released folder of Step-Audio 2, at small width with random weights: from convert to chat, tuning and export."""

import json
import shutil
import warnings

import pytest
import soundfile
import torch
from flows import lively
from test_token2wav import YAML

import gamut
from gamut.api import shipped
from gamut.cli import main
from gamut.codecs.flow import Flow, FlowConfig
from gamut.codecs.hift import HiFT, HiFTConfig
from gamut.codecs.mel import hear, pad_mels, patches
from gamut.data.talks import tokenizer
from gamut.generate.chatting import chat
from gamut.generate.sampling import Sampling
from gamut.generate.speaker import How, Speaker
from gamut.generate.tools import calculator
from gamut.generate.voice import SpeechCodec
from gamut.io.convert import convert, export
from gamut.io.folders import load_tensors
from gamut.io.keys import flow as flow_keys
from gamut.io.keys import hift as hift_keys
from gamut.io.media import read_audio, write_audio
from gamut.models.audio_encoder import AudioEncoderConfig
from gamut.models.lm import LMConfig
from gamut.models.omni import Omni, OmniConfig
from gamut.models.speaker import SpeakerNet, SpeakerNetConfig
from gamut.nn.int8 import Int8Linear

drawn = pytest.importorskip("test_convert_onnx")  # itself skipped without onnx
NAMES = {  # fact sheet §3, §4
    "encoder.conv1.weight", "encoder.positional_embedding.weight", "encoder.blocks.0.attn.query.weight",
    "encoder.blocks.0.mlp.2.bias", "encoder.after_norm.weight", "adapter.conv.weight", "adapter.linear2.bias",
    "model.embed_tokens.weight", "model.layers.1.self_attn.q_proj.bias", "model.layers.1.mlp.gate_proj.weight",
    "model.norm.weight", "lm_head.weight",
}  # fmt: skip
MODELING = "modeling_step_audio_2.py"
EXTRA = {"auto_map": {"AutoModelForCausalLM": "modeling_step_audio_2.StepAudio2ForCausalLM"}, "torch_dtype": "bfloat16"}


def token2wav(path) -> None:
    """flow.yaml, flow.pt, hift.pt and both .onnx files, as they are released."""
    path.mkdir()
    yaml = YAML.replace("vocab_size: 50", "vocab_size: 6561").replace("spk_embed_dim: 6", "spk_embed_dim: 12")
    (path / "flow.yaml").write_text(yaml)
    flow = FlowConfig(vocab=6561, speaker=12, mels=8, inputs=16, width=16, layers=2, up_layers=1, heads=2, ffn=24,
                      dit_width=16, dit_layers=2, dit_heads=2, dit_head_dim=8)  # fmt: skip
    torch.save(flow_keys.to_official(lively(Flow(flow)).state_dict()), path / "flow.pt")
    config = HiFTConfig(mels=8, width=16, pitch_width=8)
    hift = hift_keys.to_official(lively(HiFT(config), scale=0.3).state_dict(), vars(config))
    torch.save({f"generator.{name}": tensor for name, tensor in hift.items()}, path / "hift.pt")
    drawn.draw_s3(drawn.random_s3(2), path / "speech_tokenizer_v2_25hz.onnx")
    speaker = SpeakerNet(SpeakerNetConfig(embedding=12, head=4, width=8, growth=4, layers=(2,), dilations=(1,)))
    drawn.draw_speaker(speaker.eval(), path / "campplus.onnx")


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """Names, config.json, tokenizer and token2wav of Step-Audio-2-mini; bfloat16."""
    torch.manual_seed(0)
    home = tmp_path_factory.mktemp("official")
    words = tokenizer(6561, [calculator().schema])
    lm = LMConfig(words.vocab, 32, 2, 2, 1, 16, 48, qkv_bias=True, max_positions=16384)
    marks = {f"audio_{name}_id": words.id(f"<audio_{name}>") for name in ("start", "end", "patch")}
    model = Omni(OmniConfig(lm, AudioEncoderConfig(width=16, layers=1, heads=2, ffn=64), 24, **marks))
    model.to(torch.bfloat16).save_pretrained(home / "ours", files=words.files())
    path = export(home / "ours", home / "Step-Audio-2-mini")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | EXTRA))
    (path / "generation_config.json").write_text('{"eos_token_id": [900001, 900002]}')
    (path / MODELING).write_text("raise RuntimeError('remote code is never run')\n")
    token2wav(path / "token2wav")
    assert config["model_type"] == "step_audio_2" and set(load_tensors(path)) >= NAMES
    return path


@pytest.fixture(scope="module")
def converted(released):
    assert main(["convert", str(released), str(released.parent / "converted")]) == 0
    return released.parent / "converted"


@pytest.fixture(scope="module")
def data(released):
    """Two turns and a tool, an answer aloud, a thought, a transcript."""
    home, schema = released.parent / "data", calculator().schema
    for name, seconds in (("q", 0.5), ("a", 0.6)):
        write_audio(home / f"{name}.wav", torch.randn(int(16000 * seconds)) * 0.1, 16000)
    heard = {"role": "user", "content": [{"type": "audio", "file": "q.wav"}]}
    call = {"id": "1", "function": {"name": "calculator", "arguments": '{"expression": "3*4"}'}}
    tool = [{"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "12"}, {"role": "assistant", "content": "12"}]  # fmt: skip
    aloud = {"role": "assistant", "content": [{"type": "audio", "file": "a.wav", "text": "yes"}]}
    thought = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nno"}
    lines = [{"messages": [heard, *tool, heard, {"role": "assistant", "content": "again"}], "tools": [schema]},
             *({"messages": [heard, answer]} for answer in (aloud, thought, {"role": "assistant", "content": "one"}))]
    (home / "conversations.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return home


SHORT = Sampling(temperature=1.0, max_new=30, seed=2)


def test_it_is_converted_whole(converted, released):
    assert isinstance(SpeechCodec.from_pretrained(converted / "token2wav").network, SpeakerNet)
    assert json.loads((converted / "config.json").read_text())["official"]["auto_map"] == EXTRA["auto_map"]
    ours = gamut.load(released, dtype=None).state_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in load_tensors(converted).items())


def test_it_answers_in_writing_and_with_a_recording_in_its_voice(converted, released, data, capsys):
    for folder in (released, converted):
        assert Speaker.load(folder).ends == (900001, 900002)
        [figures] = chat(Speaker.load(folder), data / "q.wav", sampling=SHORT, transcript=False)
        assert "it answers in writing" in capsys.readouterr().out and not figures.seconds
    out, speaker = data.parent / "answer.wav", Speaker.load(converted, voice=data / "a.wav")
    [figures] = chat(speaker, data / "q.wav", out=out, sampling=SHORT, transcript=False)
    wav, rate = read_audio(out)
    assert rate == 24000 and figures.seconds == len(wav) / rate > 0 and not speaker.codec.wave.hift.config.norm
    with pytest.raises(ValueError, match="has no codec that takes on a voice; convert the released folder"):
        Speaker.load(released, voice=data / "a.wav")


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_it_answers_with_half_and_int8_weights(converted, released, data, weights, capsys):
    """Sound in, sound out, of the folder as it was downloaded and of the converted one: the same weights, the same
    answer, and close to what float32 hears."""
    out, heard = data.parent / f"{weights}.wav", []
    for folder in (released, converted):
        speaker = Speaker.load(folder, weights=weights)
        assert speaker.model.lm.norm.weight.dtype == speaker.model.encoder.conv1.weight.dtype == torch.bfloat16
        assert isinstance(speaker.model.lm.blocks[0].attn.q, Int8Linear) == (weights == "int8")
        assert speaker.weighs.startswith(f"weights: {weights} on the cpu, ")
        figures = chat(speaker, data / "q.wav", sampling=SHORT)
        heard.append((len(figures), capsys.readouterr().out.partition("answered in")[0]))
    assert heard[0] == heard[1]
    speaker = Speaker.load(converted, data / "a.wav", weights=weights)
    [figures] = chat(speaker, data / "q.wav", out=out, sampling=SHORT, transcript=False)
    wav, rate = read_audio(out)
    assert figures.seconds == len(wav) / rate > 0 and wav.isfinite().all()
    mel = hear(*read_audio(data / "q.wav"))
    ids = [speaker.model.config.audio_start_id, *[speaker.model.config.audio_patch_id] * patches(mel.shape[-1])]
    exact, close = (each.model.prompt(ids, *pad_mels([mel])).float() for each in (Speaker.load(converted), speaker))
    assert (close - exact).pow(2).mean() < 0.03**2 * exact.pow(2).mean()


def test_a_large_model_is_int8_where_there_is_no_gpu(converted, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Speaker.load(converted).model.lm.embed.weight.dtype == torch.float32 and Speaker.load(converted).small
    with pytest.raises(ValueError, match="weights must be one of auto, float32, bfloat16, int8; got 'fp8'"):
        Speaker.load(converted, weights="fp8")
    monkeypatch.setattr("gamut.generate.speaker.SMALL", 1000)
    speaker = Speaker.load(converted)
    assert isinstance(speaker.model.lm.head, Int8Linear) and not speaker.small
    size = sum(t.nbytes for t in speaker.model.state_dict().values())
    asked = ["chat", "--model", str(converted), "--text", "hm", "--system", "Be brief."]
    assert main(asked) == 0 and f"weights: int8 on the cpu, {size / 1e9:.3g} GB" in capsys.readouterr().out
    assert Speaker.load(converted, weights="float32").weighs.startswith("weights: float32 on the cpu")


def test_documents_and_voices_come_with_tools(converted, data, tmp_path, capsys):
    """A released model is shown them with whatever it is asked; a small one knows what it was taught, and says so."""
    (tmp_path / "lake.md").write_text("The lake is 31 metres deep.")
    clips = ({"file": name, "text": "one", "description": "calm"} for name in ("0.wav", "a.wav"))
    (tmp_path / "transcripts.jsonl").write_text("\n".join(map(json.dumps, clips)))
    soundfile.write(tmp_path / "0.wav", [float("nan")] * 16000, 16000, "FLOAT")  # its header is in order
    shutil.copy(data / "a.wav", tmp_path / "a.wav")
    asked = ["chat", "--model", str(converted), "--text", "How deep?", "--documents", str(tmp_path)]
    assert main(asked) == 0 and "answered in" in capsys.readouterr().out
    speaker = Speaker.load(converted, documents=tmp_path, voices=tmp_path)
    assert list(speaker.tools.tools) == ["calculator", "date_and_time", "search", "audio_search"]
    assert list(speaker.codec.voices) == ["a.wav"]  # where the codec has none: the first that gives one
    assert speaker.how("Be brief.") == How("Be brief.", aloud=True, tools=True)
    assert not Speaker.load(converted).how("Be brief.").tools
    with pytest.raises(ValueError, match="knows the tools it was taught and no others"):
        Speaker.load(shipped("step_audio_2"), documents=tmp_path)


def test_a_recording_is_the_usual_voice_whatever_its_name(data, tmp_path):
    """The shipped model has a voice called jackson; a recording of that name takes its place."""
    shutil.copy(data / "a.wav", tmp_path / "jackson.wav")
    before, after = (Speaker.load(shipped("step_audio_2"), voice).codec.voices
                     for voice in (None, tmp_path / "jackson.wav"))  # fmt: skip
    assert list(before) == list(after) == ["jackson"]
    assert not torch.equal(before["jackson"].speaker_S, after["jackson"].speaker_S)


def test_it_is_tuned_by_adapters_and_exported_merged(converted, released, data, tmp_path, capsys):
    asked = ["--init", str(converted), "--data", str(data), "--out", str(tmp_path), "--name", "t"]
    assert main(["run", "step_audio_2", *asked, "--steps", "2", "--lora-rank", "2", "--exam", "1", "--lr", "0.01"]) == 0
    run = tmp_path / "t"
    tuned = gamut.load(run, dtype=None)
    with pytest.warns(UserWarning, match=r"hf' is not whole. token2wav/: it is in gamut's layout and stays in"):
        assert main(["export", str(run / "model"), str(tmp_path / "hf")]) == 0
    assert "token2wav/: it is in gamut's layout" in (tmp_path / "hf" / "README.md").read_text()
    assert (tmp_path / "hf" / MODELING).read_text() == (released / MODELING).read_text()
    assert not (tmp_path / "hf" / "token2wav").exists()
    hf, merged = load_tensors(tmp_path / "hf"), load_tensors(
        export(converted, tmp_path / "merged", lora=run / "adapter", merge=True))  # fmt: skip
    before = load_tensors(released)
    assert hf.keys() == before.keys() == merged.keys() and all(t.dtype == torch.bfloat16 for t in hf.values())
    assert all(torch.equal(hf[name], tensor) for name, tensor in merged.items())
    moved = {name for name in hf if not torch.equal(hf[name], before[name])}
    assert "model.layers.0.self_attn.q_proj.weight" in moved and not any("encoder" in name for name in moved)
    configs = [json.loads((path / "config.json").read_text()) for path in (tmp_path / "hf", released)]
    assert configs[0] == configs[1]
    again = gamut.load(tmp_path / "hf", dtype=None).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in tuned.state_dict().items())
    speaker = Speaker.load(run, voice=data / "a.wav")
    [figures] = chat(speaker, data / "q.wav", out=tmp_path / "a.wav", sampling=SHORT, transcript=False)
    assert figures.took > 0


def test_the_folder_as_it_was_downloaded_is_tuned_whole(released, data, tmp_path):
    (tmp_path / "texts").mkdir()
    write_audio(tmp_path / "texts" / "q.wav", read_audio(data / "q.wav")[0], 16000)
    (tmp_path / "texts" / "transcripts.csv").write_text("file,text\nq.wav,one\n")
    result = gamut.run("step_audio_2", init=str(released), data=str(tmp_path / "texts"), out=tmp_path, steps=2,
                       lora_rank=0, lr=1e-2, exam=0)  # fmt: skip
    assert result.metrics["loss"] < result.metrics["loss/before"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export(result.run / "model", tmp_path / "hf")
    assert {MODELING, "token2wav", "tokenizer.json"} <= {file.name for file in (tmp_path / "hf").iterdir()}
    assert all((tmp_path / "hf" / "token2wav" / file.name).read_bytes() == file.read_bytes()
               for file in (released / "token2wav").iterdir())  # fmt: skip
    after, before = load_tensors(tmp_path / "hf"), load_tensors(released)
    assert not torch.equal(after["adapter.conv.weight"], before["adapter.conv.weight"])
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith("encoder."))
    with pytest.raises(ValueError, match="line 2 has a spoken answer, which takes a codec that encodes"):
        gamut.run("step_audio_2", init=str(released), data=str(data), out=tmp_path, steps=1)


def test_code_that_a_config_names_is_carried_as_data_or_said_to_be_missing(released, tmp_path):
    """Files beside config.json alone: nothing from elsewhere, nothing that is not named."""
    named = {"AutoConfig": "configuration_a.Config", "AutoModel": ["../b.Model", "modeling_c.Model", None],
             "AutoProcessor": "someone/else--d.Processor", "AutoTokenizer": "e"}  # fmt: skip
    config = json.loads((released / "config.json").read_text()) | {"auto_map": named}
    src = shutil.copytree(released, tmp_path / "src", ignore=shutil.ignore_patterns("token2wav"))
    (src / "config.json").write_text(json.dumps(config))
    for name in ("configuration_a", "b", "d", "e", "setup"):
        (src / f"{name}.py").write_text("raise RuntimeError('remote code is never run')\n")
    ours = convert(src, tmp_path / "ours")
    with pytest.warns(UserWarning, match=r"hf' is not whole. modeling_c\.py: named by auto_map in config\.json"):
        export(ours, tmp_path / "hf")
    for folder in (ours, tmp_path / "hf"):
        assert [file.name for file in folder.glob("*.py")] == ["configuration_a.py"]


def test_a_tokenizer_in_parts_is_the_one_transformers_reads(tmp_path):
    """vocab.json, merges.txt and added tokens, without a tokenizer.json."""
    transformers = pytest.importorskip("transformers")
    from gamut.codecs.text import Tokenizer

    base = Tokenizer.train(["Say it's 12 o'clock,  please!\n\n" * 4, "t\u00eate \u4e2d\u6587\u3002"], 320)
    base.inner.model.save(str(tmp_path))
    added = ["<|EOT|>", "<|BOT|>", "<tts_start>", "<audio_0>", "<audio_1>"]
    entries = {base.vocab + i: {"content": name, "lstrip": False, "normalized": False, "rstrip": False,
                                "single_word": False, "special": True} for i, name in enumerate(added)}  # fmt: skip
    told = {"added_tokens_decoder": entries, "tokenizer_class": "Qwen2Tokenizer", "unk_token": None,
            "eos_token": "<|EOT|>", "pad_token": "<|EOT|>"}  # fmt: skip
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(told))
    ours, theirs = Tokenizer.from_pretrained(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert ours.id("<audio_1>") == base.vocab + 4
    for text in ("It's 12:30,  okay?\n\n \n<|BOT|>human\nHI there<audio_1>", "cafe\u0301 \u4e2d\u6587 we'LL\t12345"):
        ids = ours.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False)
        assert Tokenizer.from_pretrained(_again(ours, tmp_path / "again")).encode(text) == ids


def _again(words, path):
    words.save_pretrained(path)
    return path
