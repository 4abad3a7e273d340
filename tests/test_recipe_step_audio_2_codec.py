"""The codec's recipe whole on tones that stand for digits, at a size of seconds; what timbre and shipped parts say."""


import pytest
import torch
from test_spoken import clips

import gamut
from gamut.codecs.s3_tokenizer import S3Config, S3Tokenizer
from gamut.codecs.timbre import timbre
from gamut.codecs.vocoder_mel import mel24
from gamut.data import sources
from gamut.data.sources import Speech
from gamut.data.spoken import Digits
from gamut.data.voiced import TOKEN, timbres, varied, voiced, voices
from gamut.evals.codec_report import without_vocoder
from gamut.io.runs import Run
from gamut.recipes import step_audio_2_codec as recipe

SMALL = recipe.Config(levels=(3, 3), width=16, layers=1, flow_width=16, flow_layers=1, vocoder_width=16, judge_width=8,
                      judge_steps=5, tokenizer_steps=3, flow_steps=3, vocoder_steps=3, critic_steps=2,
                      flow_more=2, batch=2)  # fmt: skip


@pytest.fixture
def tones(monkeypatch) -> None:
    def digits(split: str, source: str = "auto") -> Speech:
        made = clips()
        return Speech("digits", "tones", "made here", made.__getitem__, list(range(len(made))))

    monkeypatch.setattr(sources, "digits", digits)


def test_every_part_is_trained_measured_at_its_cut_and_saved(tones, tmp_path):
    run = Run.create(tmp_path, "codec", {})
    result = recipe.main(SMALL, run)
    shares = [value for name, value in result.metrics.items() if name.endswith(("accuracy", "voice", "digits"))]
    assert len(shares) == 8 and all(0 <= share <= 1 for share in shares)
    assert 1 <= result.metrics["tokens/used"] <= 9 and result.metrics["switched/chance"] == 0.5
    codec, tokenizer = gamut.load(run.path / "token2wav"), gamut.load(run.path / "tokenizer")
    ids = tokenizer.encode(torch.randn(1, 16000) * 0.1)
    assert sorted(codec.voices) == ["a", "b"] and codec.decode(ids, "b").shape == (1, 25 * 960)
    again = recipe.main(SMALL, Run.open(run.path))  # every stage is done: nothing is learned a second time
    assert again.metrics == result.metrics


def test_tokens_mels_and_timbre_are_of_the_same_people():
    digits = Digits(clips())

    def encode(wav_BT):
        return torch.zeros(len(wav_BT), wav_BT.shape[1] // (2 * TOKEN), dtype=torch.long)

    batch = voiced(digits, encode, 3, 10, 0, 0)
    assert batch.ids.shape == (3, 10) and batch.mel.shape == (3, 80, 20) and batch.timbre.shape == (3, 160)
    assert voices(digits, 2)["a"].speaker_S.shape == (160,)


def test_whole_strings_are_shorter_rows_and_more_of_them():
    config = S3Config(mels=80, width=16, layers=1, heads=2, ffn=16, levels=(3,))
    digits, tokenizer = Digits(clips()), S3Tokenizer(config)
    known = timbres(digits, 2)
    assert sorted(known) == ["a", "b"] and known["a"].shape == (2, 160)
    sizes = set()
    for index in range(6):
        batch = varied(digits, tokenizer, known, 2, 12, index, 0)
        rows, longest = batch.ids.shape
        sizes.add(rows)
        assert batch.mel.shape == (rows, 80, 2 * longest) and batch.timbre.shape == (rows, 160)
        assert int(batch.counts.max()) == longest <= 12 and int(batch.counts.min()) >= 1
        again = varied(digits, tokenizer, known, 2, 12, index, 0)
        assert all(torch.equal(a, b) for a, b in zip(batch, again, strict=True))
    assert len(sizes) > 1 and sizes <= {2, 4, 6}


def test_sound_without_a_vocoder_is_in_step():
    """The middle of a burst stays where it is; half a hop would be 240 samples."""
    wav = torch.randn(24000, generator=torch.Generator().manual_seed(0)) * 0.1 * torch.hann_window(24000) ** 8
    at = torch.arange(24000.0)
    middle, again = (float((at * x.square()).sum() / x.square().sum()) for x in (wav, without_vocoder(mel24(wav))))
    assert abs(again - middle) < 60


def test_timbre_does_not_hear_loudness_or_silence():
    wav = torch.randn(1, 24000, generator=torch.Generator().manual_seed(0)) * 0.1
    mel, louder = mel24(wav), mel24(torch.cat([wav * 5, torch.zeros(1, 24000)], 1))
    torch.testing.assert_close(timbre(mel)[:, :80], timbre(louder)[:, :80], atol=0.05, rtol=0)
    low = timbre(mel24(torch.cumsum(wav, 1) * 0.1))
    assert (low - timbre(mel)).abs().mean() > 0.3  # another colour is another timbre
