"""HiFT vocoders: sizes of the releases, both spellings of normed weights, folding, streams, saving."""

import copy
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file

from gamut.codecs.hift import HiFT, HiFTConfig
from gamut.codecs.hift_stream import HiFTStream, streaming
from gamut.io.folders import load_strict
from gamut.io.keys import hift as keys
from gamut.io.meta import meta
from gamut.nn.vocoder import HarmonicSource, Noise, Snake, SnakeBlock, fold

OLD = HiFTConfig(rate=22050, upsample=(8, 8), kernels=(16, 16), source_kernels=(7, 11), smooth=False)
TINY = HiFTConfig(width=16, pitch_width=8, block_kernels=(3, 7), dilations=(1, 3))


def tiny(config: HiFTConfig = TINY, seed: int = 0) -> HiFT:
    torch.manual_seed(seed)
    model = HiFT(config).eval()
    for p in model.parameters():
        p.data += 0.05 * torch.randn_like(p)
    return model


def mel(frames: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 80, frames, generator=torch.Generator().manual_seed(seed)) - 4


@pytest.mark.parametrize("config, tensors, parameters", [(HiFTConfig(), 328, 20_821_295), (OLD, 227, 20_460_591)])
def test_released_sizes(config, tensors, parameters):
    with meta():
        model = HiFT(config)
    state = model.state_dict()
    assert (len(state), sum(p.numel() for p in model.parameters())) == (tensors, parameters)
    official = keys.to_official(state, asdict(config))
    assert len(official) == tensors
    assert official["f0_predictor.classifier.weight"].shape == (1, 512)
    up = "ups.0.parametrizations.weight.original1" if config.smooth else "ups.0.weight_v"
    assert official[up].shape == (512, 256, 16)
    assert official["source_downs.0.weight"].shape == ((256, 18, 30) if config.smooth else (256, 18, 16))


@pytest.mark.parametrize("name", ["hift_24k", "hift_24k_stream", "hift_22k"])
def test_official_names_there_and_back_in_both_spellings(golden, name):
    official = {k[2:]: t for k, t in load_file(golden / f"{name}.safetensors").items() if k.startswith("w.")}
    fields = keys.config_from_shapes({f"generator.{k}": t for k, t in official.items()})
    assert fields["width"] == 48 and fields["pitch_width"] == 32
    config = HiFTConfig.from_dict(fields)
    assert config.hop == (256 if name == "hift_22k" else 480)
    ours = keys.to_ours(official, asdict(config))
    load_strict(HiFT(config), ours, "golden")
    back = keys.to_official(ours, asdict(config))
    assert back.keys() == official.keys() and all(torch.equal(back[k], t) for k, t in official.items())
    other = keys.to_official(ours, asdict(config), keys.PAIRS[name == "hift_22k"])
    assert other.keys() != official.keys()
    again = keys.to_ours({f"generator.{k}": t for k, t in other.items()}, asdict(config))
    assert again.keys() == ours.keys() and all(torch.equal(again[k], t) for k, t in ours.items())


def test_names_that_do_not_belong_are_reported():
    model = tiny()
    official = keys.to_official(model.state_dict(), asdict(TINY))
    del official["conv_pre.bias"]
    ours = keys.to_ours(official | {"resblocks.99.convs1.0.bias": torch.zeros(1)}, asdict(TINY))
    with pytest.raises(ValueError, match=r"1 missing: pre.bias; 1 unexpected: resblocks.99.convs1.0.bias"):
        load_strict(model, ours, "somewhere")
    with pytest.raises(ValueError, match=r"\['extra'\] have no official name"):
        keys.to_official(model.state_dict() | {"extra": torch.zeros(1)}, asdict(TINY))
    with pytest.raises(ValueError, match=r"no HiFT vocoder among 1 tensors \(a …\): without conv_pre"):
        keys.config_from_shapes({"a": torch.zeros(1)})
    whole = keys.to_official(model.state_dict(), asdict(TINY))
    for part in ("conv_pre", "conv_post", "resblocks", "source_resblocks", "f0_predictor", "m_source", "ups"):
        with pytest.raises(ValueError, match=f"no HiFT vocoder among .*: without {part}"):
            keys.config_from_shapes({name: tensor for name, tensor in whole.items() if not name.startswith(part)})


def test_a_copy_is_folded_alone():
    model, mel = tiny(), torch.randn(1, TINY.mels, 6)
    want = model.decode(mel)
    for one in (copy.deepcopy(model), copy.deepcopy(model)):
        fold(one)
        assert torch.allclose(one.decode(mel), want, atol=1e-5)
    assert torch.equal(model.decode(mel), want)


def test_a_channel_of_zeros_stays_one():
    """Where the norm was removed it has no direction."""
    weight = torch.randn(4, 3, 5).index_fill(0, torch.tensor([1]), 0)
    length, direction = keys.to_ours({"conv_pre.weight": weight}, asdict(TINY)).values()
    assert torch.allclose(torch._weight_norm(direction, length, 0), weight, atol=1e-6)


def test_config_from_official_and_back():
    for config in (HiFTConfig(), OLD, TINY):
        fields = asdict(config)
        official = keys.config_to_official(fields)
        again = HiFTConfig.from_dict(fields | keys.config_from_official(official))
        assert again == config
    assert HiFTConfig.from_dict(keys.config_from_official({})) == OLD
    with pytest.raises(ValueError, match=r"hop must be 256 .* got 300"):
        keys.config_from_official({"hop": 300})
    with pytest.raises(ValueError, match=r"must have the same dilations here, got \[\(1, 2\), \(1, 3, 5\)\]"):
        keys.config_from_official({"resblock_dilation_sizes": [[1, 3, 5], [1, 2]]})


def test_folded_weights_give_the_same_sound_and_go_back_to_the_official_layout():
    model, x = tiny(), mel(6)
    before, official = model.decode(x), keys.to_official(model.state_dict(), asdict(model.config))
    model.fold()
    assert not model.config.norm and "pre.weight" in model.state_dict()
    torch.testing.assert_close(model.decode(x), before, atol=1e-5, rtol=0)
    again = keys.to_official(model.state_dict(), asdict(model.config))
    assert again.keys() == official.keys()
    other = HiFT(TINY).eval()
    load_strict(other, keys.to_ours(again, asdict(TINY)), "folded")
    torch.testing.assert_close(other.decode(x), before, atol=1e-5, rtol=0)


def test_saved_and_loaded_normed_or_folded(tmp_path):
    model, x = tiny(), mel(5)
    model.save_pretrained(tmp_path / "a")
    torch.testing.assert_close(HiFT.from_pretrained(tmp_path / "a").decode(x), model.decode(x), atol=0, rtol=0)
    model.fold().save_pretrained(tmp_path / "b")
    torch.testing.assert_close(HiFT.from_pretrained(tmp_path / "b").decode(x), model.decode(x), atol=0, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_are_near(dtype):
    """Pitch, source and spectra are fp32, and so is the sound, offline and in a stream."""
    x, other = mel(24), tiny().to(dtype)
    sound = tiny().decode(x)
    stream = streaming(other, chunk=20)
    for made in (other.decode(x), torch.cat([stream.decode(x), stream.flush()], 1)):
        assert made.dtype == torch.float32 and made.shape == sound.shape and made.isfinite().all()
    window, both = torch.ones(512), (sound, other.decode(x))
    spectra = [torch.stft(wav, 512, window=window, return_complex=True).abs() for wav in both]
    assert (spectra[0] - spectra[1]).abs().mean() < 0.1 * spectra[0].mean()


def test_its_mel_is_as_wide_as_its_sound():
    two = {"upsample": (5, 4), "kernels": (11, 8), "source_kernels": (7, 7)}
    narrow = HiFT(HiFTConfig(rate=8000, width=8, pitch_width=8, **two))
    assert narrow.encode(torch.randn(1, 800)).shape == (1, 80, 10)
    odd = HiFT(replace(narrow.config, upsample=(5, 3), kernels=(11, 7), fft_hop=3, n_fft=12))
    with pytest.raises(ValueError, match=r"even n_fft - hop and at least 1 sample, got n_fft=180, hop=45"):
        odd.encode(torch.randn(1, 900))


def test_what_a_vocoder_refuses():
    with pytest.raises(ValueError, match=r"exceed their rates by an even number; got .*kernels=\(16, 11, 6\)"):
        HiFTConfig(kernels=(16, 11, 6))
    with pytest.raises(ValueError, match=r"a kernel and a source kernel for each rate.*got upsample=\(8, 5\)"):
        HiFTConfig(upsample=(8, 5))
    with pytest.raises(ValueError, match="at least 1 mel frame, got none"):
        tiny().decode(mel(0))
    with pytest.raises(ValueError, match="and 0 samples"):
        tiny().encode(torch.zeros(1, 0))


def test_its_mel_and_back():
    model = tiny()
    assert model.stride == (480,)
    wav = torch.randn(2, 4900) * 0.1
    x = model.encode(wav)
    assert x.shape == (2, 80, 10) and model.decode(x).shape == (2, 4800)
    assert model.decode(x).abs().max() <= 0.99


def test_rows_do_not_influence_each_other_and_the_default_noise_repeats():
    model, x = tiny(), mel(7, batch=3)
    together = model.decode(x)
    torch.testing.assert_close(together, torch.cat([model.decode(row[None]) for row in x]), atol=1e-5, rtol=0)
    assert torch.equal(together, model.decode(x))
    other = model.decode(x, model.noise(3, 7, seed=1))
    assert not torch.equal(other, together)


@pytest.mark.parametrize("config", [TINY, replace(TINY, rate=22050, upsample=(8, 8), kernels=(16, 16),
                                                  source_kernels=(7, 11), smooth=False)])  # fmt: skip
@pytest.mark.parametrize("frames", [3, 16, 20, 47])
def test_a_stream_does_not_depend_on_slices_and_adds_up(config, frames):
    model, x = tiny(config).fold(), mel(frames, batch=2)

    def spoken(cuts):
        with streaming(model, 2, chunk=10) as stream:
            parts = [stream.decode(part) for part in x.split(cuts, -1)] + [stream.flush()]
        assert not stream.flush().numel()
        return torch.cat(parts, -1), [part.shape[-1] for part in parts]

    whole, _ = spoken([frames])
    single, lengths = spoken([1] * frames)
    odd, _ = spoken([2, frames - 2])
    assert torch.equal(whole, single) and torch.equal(whole, odd)
    assert whole.shape == (2, frames * config.hop)
    if frames == 47:  # first chunk less the seam, then whole chunks; the rest when it ends
        assert [n // config.hop for n in lengths if n] == [2, 10, 10, 10, 15]


def test_chunks_of_the_released_wrapper():
    """Sample counts of fact sheet step_audio_2 §6.3 for chunks of 25 tokens."""
    model = tiny().fold()
    stream = streaming(model)
    counts = [stream.decode(mel(50, seed=k)).shape[-1] for k in range(3)]
    assert [*counts, stream.flush().shape[-1]] == [20160, 24000, 24000, 3840]


def test_a_stream_of_one_chunk_is_the_offline_sound():
    model, x = tiny().fold(), mel(20)
    stream = streaming(model, chunk=None)
    noise = model.noise(1, 20)
    sound = torch.cat([stream.decode(x, noise), stream.flush()], -1)
    torch.testing.assert_close(sound, model.decode(x, noise), atol=0, rtol=0)


def test_a_short_call_is_a_chunk_of_its_own_where_calls_are_chunks():
    model, x = tiny().fold(), mel(19)
    stream = streaming(model, chunk=None)
    counts = [stream.decode(part).shape[-1] // 480 for part in x.split([5, 4, 7, 3], -1)]
    assert [*counts, stream.flush().shape[-1] // 480] == [0, 1, 7, 3, 8]


def test_joints_are_faded():
    """Chunk k is the constant k: each joint goes from the old value to the new along the Hamming window, and the source
    of a chunk begins with the end of the one before."""
    before = []

    def decode(mel, noise, source):
        before.append(source)
        wav = torch.full((1, mel.shape[-1] * 4), float(len(before)))
        return wav, wav * 10

    stream = HiFTStream(decode, lambda frames, number: None, 4, torch.zeros(1, 2, 0), 3, 2)
    sound = torch.cat([stream.decode(torch.zeros(1, 2, 6)), stream.flush()], -1)[0]
    rise = torch.hamming_window(16, periodic=False)[:8]
    fade = rise * 2 + rise.flip(0)
    torch.testing.assert_close(sound, torch.cat([torch.ones(4), fade, torch.full((12,), 2.0)]))
    assert before[0] is None and torch.equal(before[1], torch.full((1, 8), 10.0))


def test_stream_errors():
    model = tiny()
    with pytest.raises(ValueError, match=r"needs 1 <= context <= chunk frames, got context 8, chunk 4"):
        streaming(model, chunk=4)
    with pytest.raises(ValueError, match=r"open it with chunk=None to give noise"):
        streaming(model).decode(mel(8), model.noise(1, 8))
    with pytest.raises(ValueError, match=r"kernels of snake blocks must be odd, got 4"):
        SnakeBlock(4, 4, (1,), norm=False)


def test_the_source_sings_at_its_pitch_and_hisses_without():
    source = HarmonicSource(480, 24000, 2, smooth=True)
    source.mix.weight.data[:] = torch.tensor([[1.0, 0, 0]])
    source.mix.bias.data.zero_()
    f0 = torch.full((1, 50), 200.0)
    noise = Noise.draw(1, 24000, 3, torch.Generator().manual_seed(0))
    wav = source(f0, noise)[0].detach()
    spectrum = torch.fft.rfft(wav).abs()
    assert int(spectrum.argmax()) == 200 and 0.09 < float(wav.abs().max()) < 0.12
    hiss = source(f0 * 0, noise)[0].detach()
    assert abs(float(hiss.std()) - 0.1 / 3) < 1e-3


def test_both_sources_agree_on_a_steady_pitch():
    """Sines of one frequency, whatever their beginning: the same strongest bin and strength."""
    f0, noise = torch.full((1, 40), 150.0), Noise(torch.zeros(1, 40 * 240, 4), torch.zeros(1, 4))
    peaks = []
    for smooth in (True, False):
        torch.manual_seed(0)
        spectrum = torch.fft.rfft(HarmonicSource(240, 12000, 3, smooth=smooth)(f0, noise)[0, 2400:7200].detach()).abs()
        peaks.append((int(spectrum.argmax()), float(spectrum.max())))
    assert peaks[0][0] == peaks[1][0] and abs(peaks[0][1] - peaks[1][1]) < 0.05 * peaks[0][1]


def test_snake_by_hand():
    snake = Snake(1)
    snake.alpha.data.fill_(2.0)
    x = torch.tensor([[[0.5]]])
    torch.testing.assert_close(snake(x), 0.5 + torch.sin(torch.tensor(1.0)).square().view(1, 1, 1) / 2)
