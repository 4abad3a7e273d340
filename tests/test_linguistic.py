"""Linguistic tokens: a stream is a stream however it is cut; names, folders. Parity is in test_parity.py."""

import copy
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gamut.codecs.codec import Codec
from gamut.codecs.linguistic import LinguisticConfig, LinguisticStream, LinguisticTokenizer
from gamut.evals.fixtures import Fixture
from gamut.io.convert import convert
from gamut.io.folders import save_folder
from gamut.io.keys import linguistic as keys
from gamut.nn.fsmn import Memory

SMALL = LinguisticConfig(width=16, heads=2, ffn=32, layers=2, centroids=50)
CHUNK = 3840


@pytest.fixture(scope="module")
def tokenizer() -> LinguisticTokenizer:
    torch.manual_seed(0)
    model = LinguisticTokenizer(SMALL).eval()
    model.shift.fill_(-8.0)
    model.scale.fill_(0.2)
    return model


@pytest.fixture(scope="module")
def wav() -> torch.Tensor:
    return 0.1 * torch.randn(2, 3 * CHUNK + 2000, generator=torch.Generator().manual_seed(1))


@settings(max_examples=8)
@given(st.lists(st.integers(0, 6000), max_size=6))
def test_a_stream_does_not_depend_on_how_it_is_cut(tokenizer, wav, cuts):
    with_cuts, pieces, at = tokenizer.stream(2), [], 0
    for size in cuts:
        pieces.append(with_cuts.encode(wav[:, at : at + size]))
        at += size
    pieces += [with_cuts.encode(wav[:, at:]), with_cuts.flush()]
    assert torch.equal(torch.cat(pieces, 1), tokenizer.encode(wav))


def test_behind_a_flush_a_stream_begins_anew(tokenizer, wav):
    stream, want = tokenizer.stream(2), tokenizer.encode(wav)
    for _ in range(2):
        assert torch.equal(torch.cat([stream.encode(wav), stream.flush()], 1), want)
    assert not stream.flush().numel()


def test_rows_of_a_batch_are_their_own(tokenizer, wav):
    together = tokenizer.encode(wav)
    assert all(torch.equal(together[row], tokenizer.encode(wav[row : row + 1])[0]) for row in range(2))


def test_a_chunk_is_out_before_later_sound_is_in_and_never_changes(tokenizer, wav):
    stream = tokenizer.stream(2)
    early = [stream.encode(wav[:, :CHUNK]), stream.encode(wav[:, CHUNK : 2 * CHUNK + 1])]
    assert [part.shape for part in early] == [(2, 4), (2, 4)]
    assert torch.equal(torch.cat(early, 1), tokenizer.encode(wav)[:, :8])


@pytest.mark.parametrize(
    ("samples", "tokens"),
    # 25 ms frames every 10 ms, 3 copies of the first in front, a stack for every 6th; the last stacks of unfinished
    # sound are filled up, sound of whole chunks ends with what is full, and too little for a stack is dropped
    [(0, 0), (399, 0), (879, 0), (880, 1), (1360, 2), (CHUNK - 1, 4), (CHUNK, 4), (CHUNK + 879, 4), (CHUNK + 880, 5),
     (CHUNK + 1359, 5), (CHUNK + 1360, 6), (2 * CHUNK, 8)],
)  # fmt: skip
def test_how_many_tokens(tokenizer, samples, tokens):
    assert tokenizer.encode(torch.randn(1, samples) * 0.1).shape == (1, tokens)


def test_less_than_480_samples_behind_a_chunk_are_skipped_whatever_the_stacks():
    config = LinguisticConfig(width=16, heads=2, ffn=16, layers=1, centroids=20, side=5, skip=4, chunk=(0, 6, 7))
    torch.manual_seed(0)
    model = LinguisticTokenizer(config).eval()
    whole, over, more = (model.encode(torch.randn(1, count) * 0.1).shape[1] for count in (5760, 5760 + 479, 5760 + 480))
    assert whole == over < more


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_make_tokens_too(tokenizer, wav, dtype):
    """Sound, features and distances stay fp32; most tokens are the same."""
    other = copy.deepcopy(tokenizer).to(dtype)
    same = (other.encode(wav.to(dtype) if dtype == torch.float64 else wav) == tokenizer.encode(wav)).float().mean()
    assert same > (0.5 if dtype == torch.bfloat16 else 0.8)


def test_features_are_frames_side_by_side(tokenizer, wav):
    from gamut.codecs.fbank import fbank

    stream = LinguisticStream(tokenizer, 2, keep=True)
    stream.encode(wav)
    frames = fbank(wav * 32768, window="hamming")
    frames = torch.cat([frames[:, :1].repeat(1, 3, 1), frames], 1)
    by_hand = torch.stack([frames[:, 6 * i : 6 * i + 7].flatten(1) for i in range(12)], 1)
    torch.testing.assert_close(torch.cat(stream.features, 1), (by_hand - 8) * 0.2, atol=1e-4, rtol=0)


@pytest.mark.parametrize("look_back", [0, 1, -1])
def test_the_past_is_seen_as_far_as_it_is_kept(look_back, wav):
    torch.manual_seed(0)
    tokenizer = LinguisticTokenizer(LinguisticConfig(width=16, heads=2, ffn=32, layers=1, look_back=look_back)).eval()
    long, quiet = torch.cat([wav, wav], 1)[:1], torch.cat([wav, wav], 1)[:1].clone()
    quiet[:, :CHUNK] = 0.001
    ends = []
    for sound in (long, quiet):
        stream = LinguisticStream(tokenizer, keep=True)
        stream.encode(sound)
        ends.append(stream.encoded[-1])
    assert torch.equal(*ends) == (look_back != -1)


def test_memory_by_hand():
    memory = Memory(1, 3, shift=1)
    memory.weight.data[:] = torch.tensor([[[1.0, 10.0, 100.0]]])
    x = torch.tensor([[[1.0], [2.0], [3.0]]])
    assert memory(x).flatten().tolist() == [101, 212, 324]  # x + 1·x[-2] + 10·x[-1] + 100·x
    seen = torch.tensor([[True, True, False]])
    assert Memory.forward(memory, x, seen).flatten().tolist() == [101, 212, 0]
    with pytest.raises(ValueError, match="a shift within them, got taps=3, shift=2"):
        Memory(1, 3, shift=2)


def test_it_is_a_codec_that_only_encodes(tokenizer):
    assert isinstance(tokenizer, Codec) and tokenizer.stride == (960,) and tokenizer.vocab == 50
    with pytest.raises(ValueError, match="two further parts, a flow"):
        tokenizer.decode(torch.zeros(1, 3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"use stream\(batch\)"):
        tokenizer.streaming()


def test_saved_and_loaded_it_is_the_same(tokenizer, wav, tmp_path):
    tokenizer.save_pretrained(tmp_path / "t")
    again = LinguisticTokenizer.from_pretrained(tmp_path / "t")
    assert again.config == SMALL and torch.equal(again.encode(wav), tokenizer.encode(wav))


def test_official_names_there_and_back(golden, tmp_path):
    fixture = Fixture.read(golden / "sanm_linguistic_tokenizer.safetensors")
    official = fixture.weights | {name: fixture.inputs[name] for name in ("cmvn", "centroids")}
    ours = keys.to_ours(official)
    back = keys.to_official(ours)
    assert back.keys() == official.keys() and all(torch.equal(back[name], official[name]) for name in back)
    whole = {name if name in ("cmvn", "centroids") else f"encoder.{name}": t for name, t in official.items()}
    loaded = LinguisticTokenizer.from_pretrained(save_folder(tmp_path / "official", whole, fixture.config))
    assert torch.equal(loaded.encode(fixture.inputs["wav"][None])[0], fixture.outputs["code"].long())
    with pytest.raises(ValueError, match=r"\['decoder.weight'\] have no official name"):
        keys.to_official({"decoder.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="1 unexpected: predictor"):
        LinguisticTokenizer.from_pretrained(
            save_folder(tmp_path / "more", official | {"predictor": torch.zeros(1)}, fixture.config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frontend": {"dither": 1.0}}, r"frontend dither=1.0 is not built; allowed: 0.0"),
        ({"frontend": {"fs": 8000}}, "frontend fs=8000 is not built"),
        ({"encoder": None}, "has the parts encoder"),
    ],
)
def test_other_front_ends_are_refused(golden, change, message):
    config = Fixture.read(golden / "sanm_linguistic_tokenizer.safetensors").config
    with pytest.raises(ValueError, match=message):
        keys.config_from_official(config | change, {})


def test_impossible_chunks_are_refused():
    with pytest.raises(ValueError, match=r"chunk=\(0, 0, 5\)"):
        LinguisticConfig(chunk=(0, 0, 5))


def released_folder(fixture: Fixture, path):
    """Step-Audio-Tokenizer as it is laid out, with a fixture's weights and a decoder that is not wanted."""
    inner = path / "dengcunqin" / "paraformer-online"
    inner.mkdir(parents=True)
    shift, scale = fixture.inputs["cmvn"].tolist()
    (inner / "am.mvn").write_text("<Nnet>\n<Splice> 560 560\n[ 0 ]\n" + "".join(
        f"<{name}> 560 560\n<LearnRateCoef> 0 [ {' '.join(map(repr, row))} ]\n"
        for name, row in (("AddShift", shift), ("Rescale", scale))) + "</Nnet>\n")
    config = fixture.config
    (inner / "config.yaml").write_text(json.dumps({
        "encoder": "SANMEncoderChunkOpt", "encoder_conf": config["encoder"] | {"input_layer": "pe_online"},
        "frontend": "WavFrontendOnline", "frontend_conf": config["frontend"] | {"dither": 1.0}}))
    torch.save({f"encoder.{name}": tensor for name, tensor in fixture.weights.items()} | {
        "decoder.embed.weight": torch.zeros(3, 3)}, inner / "model.pt")
    np.save(path / "linguistic_tokenizer.npy", fixture.inputs["centroids"].numpy())
    return path, inner


def test_the_released_folder_is_converted(golden, tmp_path):
    fixture = Fixture.read(golden / "sanm_linguistic_tokenizer.safetensors")
    src, inner = released_folder(fixture, tmp_path / "src")
    tokenizer = LinguisticTokenizer.from_pretrained(convert(src, tmp_path / "ours"))
    assert torch.equal(tokenizer.encode(fixture.inputs["wav"][None])[0], fixture.outputs["code"].long())
    (inner / "am.mvn").write_text("<AddShift> 2 2\n<LearnRateCoef> 0 [ 1 2 ]\n")
    with pytest.raises(ValueError, match=r"is no normalisation: .* got \[2\]"):
        convert(src, tmp_path / "again")
    (inner / "am.mvn").write_text("<AddShift> [ 1 2 ] <Rescale> [ 1 2 ]")
    with pytest.raises(ValueError, match=r"2 numbers in am\.mvn and centroids of 32 do not fit 7 x 80 bins"):
        convert(src, tmp_path / "again")
    (inner / "model.pt").unlink()
    with pytest.raises(ValueError, match=r"has no model\.pt; the folder of the streaming Paraformer"):
        convert(src, tmp_path / "again")
