"""S3 tokenizers: batches, long sound, names, folders. Parity with the released code is in test_parity.py."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from gamut.codecs.codec import Codec
from gamut.codecs.s3_tokenizer import OVERLAP, WINDOW, S3Config, S3Tokenizer, windows
from gamut.evals.fixtures import Fixture
from gamut.io.folders import save_folder
from gamut.io.keys import s3_tokenizer as keys

SMALL = S3Config(width=32, layers=2, heads=2, ffn=64, mels=20)
OLD = S3Config(version=1, width=32, layers=1, heads=2, ffn=64, mels=20, codebook=30, norm_eps=(1e-5, 1e-5))


@pytest.fixture(scope="module", params=[SMALL, OLD], ids=["v2", "v1"])
def tokenizer(request) -> S3Tokenizer:
    torch.manual_seed(0)
    return S3Tokenizer(request.param).eval()


def test_a_clip_does_not_depend_on_its_batch(tokenizer):
    torch.manual_seed(1)
    mels, lens = torch.randn(4, 20, 101), torch.tensor([101, 100, 57, 1])
    together, counts = tokenizer.hidden(mels, lens)
    assert counts.tolist() == [26, 25, 15, 1] == tokenizer.lengths(lens).tolist()
    for row, (frames, steps) in enumerate(zip(lens.tolist(), counts.tolist(), strict=True)):
        alone, _ = tokenizer.hidden(mels[row : row + 1, :, :frames])
        torch.testing.assert_close(together[row, :steps], alone[0], atol=1e-5, rtol=0)


def test_an_empty_clip_has_no_tokens_and_no_nan(tokenizer):
    hidden, counts = tokenizer.hidden(torch.randn(2, 20, 9), torch.tensor([9, 0]))
    assert counts.tolist() == [3, 0] and hidden.isfinite().all()
    lens = torch.tensor([*8 * [0], 3100])  # a batch of empty windows, and a long clip
    assert tokenizer.tokens(torch.randn(9, 20, 3100), lens)[1].tolist() == [*8 * [0], 775]


def test_codes_are_ids_spelt_out(tokenizer):
    codes, ids = tokenizer(torch.randn(2, 20, 300))
    assert 0 <= ids.min() and ids.max() < tokenizer.vocab
    torch.testing.assert_close(tokenizer.codes.ids_to_codes(ids), codes.detach())


def test_the_gradient_passes_through_the_codes(tokenizer):
    codes, _ = tokenizer(torch.randn(1, 20, 40))
    grad = torch.autograd.grad(codes.square().sum() + codes.sum(), tokenizer.conv1.weight)[0]
    assert grad.abs().sum() > 0


@given(st.integers(1, 40000))
def test_windows_cover_a_clip_and_give_every_token_once(frames):
    found = list(windows(frames))
    assert found[0][0] == 0 and found[-1][1] == frames
    assert all(end - start == WINDOW for start, end in found[:-1]) and found[-1][1] - found[-1][0] <= WINDOW
    assert all(a[1] - b[0] == OVERLAP for a, b in pairwise(found))
    half, counts = OVERLAP // 2 // 4, [-(-(end - start) // 4) for start, end in found]
    assert sum(counts) - 2 * half * (len(found) - 1) == -(-frames // 4)


def test_long_sound_is_its_windows_with_half_of_each_overlap(tokenizer):
    torch.manual_seed(2)
    mels, lens = torch.randn(2, 20, 5300), torch.tensor([5300, 90])
    ids, counts = tokenizer.tokens(mels, lens)
    assert counts.tolist() == [1325, 23] and ids.shape == (2, 1325) and not ids[1, 23:].any()
    first, second = (tokenizer(mels[:1, :, a:b])[1][0] for a, b in ((0, 3000), (2600, 5300)))
    assert torch.equal(ids[0], torch.cat([first[:-50], second[50:]]))
    assert torch.equal(ids[1, :23], tokenizer(mels[1:, :, :90])[1][0])
    assert tokenizer.tokens(mels, lens, cut_tail=True)[1].tolist() == [1275, 23]  # what old releases lose


def test_it_is_a_codec_that_only_encodes(tokenizer):
    assert isinstance(tokenizer, Codec) and tokenizer.stride == (640,) and tokenizer.channels == 1
    assert tokenizer.encode(torch.randn(2, 16001)).shape == (2, 25)
    with pytest.raises(ValueError, match="two further parts, a flow"):
        tokenizer.decode(torch.zeros(1, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="stream the flow and vocoder"):
        tokenizer.streaming()


def test_wrong_input_is_named(tokenizer):
    with pytest.raises(ValueError, match="takes 20 mel channels and at least 1 frame, got 80 and 5"):
        tokenizer.hidden(torch.zeros(1, 80, 5))
    with pytest.raises(ValueError, match="got 20 and 0"):
        tokenizer.hidden(torch.zeros(1, 20, 0))
    with pytest.raises(ValueError, match=r"positions for 1500 steps, got 2000; use tokens\(\)"):
        S3Tokenizer(OLD).hidden(torch.zeros(1, 20, 8000))
    with pytest.raises(ValueError, match="a clip of 101 frames cannot lie in mels of 100"):
        tokenizer.tokens(torch.zeros(1, 20, 100), torch.tensor([101]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"version": 3}, "must be 1 or 2, got 3"), ({"stride": 3}, "25 Hz"), ({"heads": 3}, "heads must divide width")],
)
def test_impossible_configs_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        S3Config(**{"width": 32, "heads": 2} | fields)


def test_saved_and_loaded_it_is_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "s3", card="# tokens\n")
    again = S3Tokenizer.from_pretrained(tmp_path / "s3")
    mels = torch.randn(1, 20, 50)
    assert again.config == tokenizer.config and torch.equal(again(mels)[1], tokenizer(mels)[1])


@pytest.mark.parametrize(("version", "released"), [(2, 496_082_973), (1, 522_624_269)])
def test_the_released_size(version, released):
    """In float32 within 0.3 % of the released ONNX files (speech_tokenizer_v2.onnx, _v1.onnx), which hold nodes too."""
    with torch.device("meta"):
        tokenizer = S3Tokenizer(S3Config(version=version))
    assert 0 <= released - 4 * sum(p.numel() for p in tokenizer.parameters()) < 0.003 * released


@pytest.mark.parametrize("name", ["s3_tokenizer_v1", "s3_tokenizer_v2"])
def test_official_names_there_and_back(golden, tmp_path, name):
    fixture = Fixture.read(golden / f"{name}.safetensors")
    ours = keys.NAMES.to_ours(fixture.weights)
    back = keys.NAMES.to_official(ours, "the table")
    assert {name: t.shape for name, t in back.items()} == {name: t.shape for name, t in fixture.weights.items()}
    with safe_open(golden / f"{name}.safetensors", "pt") as file:
        assert len(ours) == sum(key.startswith("w.") for key in file.keys())
    folder = save_folder(tmp_path / "official", fixture.weights, fixture.config)
    loaded = S3Tokenizer.from_pretrained(folder)
    ids, _ = loaded.tokens(fixture.inputs["mel"], fixture.inputs["mel_len"])
    count = int(fixture.outputs["code_len"][1])
    assert torch.equal(ids[1, :count], fixture.outputs["code"][1, :count].long())


def test_names_that_do_not_belong_are_named(golden, tmp_path):
    fixture = Fixture.read(golden / "s3_tokenizer_v2.safetensors")
    with pytest.raises(ValueError, match=r"\['head.weight'\] have no official name"):
        keys.NAMES.to_official({"head.weight": torch.zeros(1)}, "the table")
    folder = save_folder(tmp_path / "more", fixture.weights | {"decoder.weight": torch.zeros(1)}, fixture.config)
    with pytest.raises(ValueError, match=r"1 unexpected: decoder\.weight"):
        S3Tokenizer.from_pretrained(folder)
    less = {k: v for k, v in fixture.weights.items() if k != "encoder.blocks.1.attn.key.weight"}
    with pytest.raises(ValueError, match=r"1 missing: blocks.1.attn.k.weight"):
        S3Tokenizer.from_pretrained(save_folder(tmp_path / "less", less, fixture.config))
    with pytest.raises(ValueError, match="no S3 tokenizer among 1 tensors"):
        S3Tokenizer.from_pretrained(save_folder(tmp_path / "none", {"a": torch.zeros(1)}, fixture.config))
