"""The mel codec: lengths, folders, streams."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gamut.codecs.audio import MelCodec, MelCodecConfig, MelStream
from gamut.codecs.codec import Codec

SMALL = MelCodecConfig(width=16, blocks=1, levels=(3, 3))


@pytest.fixture(scope="module")
def codec() -> MelCodec:
    torch.manual_seed(0)
    return MelCodec(SMALL).eval()


@pytest.mark.parametrize(("samples", "tokens"), [(320, 1), (321, 2), (8000, 25), (8001, 26)])
def test_25_tokens_a_second(codec, samples, tokens):
    ids = codec.encode(torch.randn(2, samples))
    assert ids.shape == (2, tokens)
    assert codec.decode(ids).shape == (2, tokens * 320)
    assert isinstance(codec, Codec)


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(1, 30), max_size=6))
def test_a_stream_does_not_depend_on_how_it_is_cut(codec, cuts):
    ids = torch.arange(60)[None] % 9
    with codec.streaming(1) as whole, codec.streaming(1) as cut:
        once = torch.cat([whole.decode(ids), whole.flush()], 1)
        pieces, at = [], 0
        for size in cuts:
            pieces.append(cut.decode(ids[:, at : at + size]))
            at += size
        pieces += [cut.decode(ids[:, at:]), cut.flush()]
    assert torch.equal(once, torch.cat(pieces, 1))
    assert once.shape == (1, 60 * 320)


def test_the_first_sound_comes_before_the_last_token(codec):
    with codec.streaming(1) as stream:
        early = stream.decode(torch.zeros(1, 12 + MelStream.AHEAD, dtype=torch.long))
    assert early.shape == (1, 12 * 320)


def test_a_streams_mel_is_the_offline_mel_away_from_its_edges(codec):
    """The context of a chunk covers what the decoder's convolutions see to the left."""
    ids = torch.arange(80)[None] * 7 % 9
    whole = codec.decode_mel(ids)
    part = codec.decode_mel(ids[:, 20 - MelStream.BACK : 60])
    inner = part[..., MelStream.BACK * 4 : -MelStream.BACK * 4]
    assert torch.allclose(inner, whole[..., 80 : 80 + inner.shape[-1]], atol=1e-4)


def test_saved_and_loaded_it_is_the_same(codec, tmp_path):
    codec.save_pretrained(tmp_path / "codec", card="# a codec\n")
    again = MelCodec.from_pretrained(tmp_path / "codec")
    wav = torch.randn(1, 4000)
    assert again.config == SMALL
    assert torch.equal(again.encode(wav), codec.encode(wav))
    assert (tmp_path / "codec" / "README.md").read_text() == "# a codec\n"


def test_wrong_folders_are_named(codec, tmp_path):
    from gamut.models.judge import DigitJudge

    codec.save_pretrained(tmp_path / "codec")
    with pytest.raises(ValueError, match="holds a MelCodec, not a DigitJudge"):
        DigitJudge.from_pretrained(tmp_path / "codec")
    config = tmp_path / "codec" / "config.json"
    config.write_text(config.read_text().replace('"hop"', '"hopp"'))
    with pytest.raises(ValueError, match=r"unknown MelCodec config fields \['hopp'\]"):
        MelCodec.from_pretrained(tmp_path / "codec")
    with pytest.raises(ValueError, match="chunk >= 1"), codec.streaming(1, chunk=0):
        pass
