"""Training of a HiFT vocoder: spectra first, then critics. Source: fact sheet step_audio_2 §6.5; what is ours is said.

    hift = HiFT(config)
    crops = Crops(clips, config.rate, config.hop, hift.encode)
    train_reconstruction(hift, crops, run, steps=4000)
    train_against_critics(hift, Critics(fraction=1 / 8), crops, run, steps=1000)
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gamut.codecs.hift import HiFT
from gamut.codecs.vocoder_mel import vocoder_mel
from gamut.data.crops import Crop, Crops
from gamut.data.load import Batches
from gamut.io.runs import Run
from gamut.losses.reconstruct import feature_matching, fool, mel_l1, relative, stft_distance, tell_apart
from gamut.nn.critics import Critics
from gamut.train.loop import Fit, fit
from gamut.train.optim import Optim, Phase

SIZES = (240, 512, 1024, 2048)  # of spectra compared, samples: 10 to 85 ms at 24 kHz
FLOOR = 3e-5  # of full scale, -90 dB: quieter than that is silence
FEATURES, MEL, SPECTRA, PITCH = 2.0, 45.0, 5.0, 1.0  # weights of the generator's losses; SPECTRA is ours


def sung(hift: HiFT, crop: Crop, *, teach: bool) -> tuple[Tensor, Tensor]:
    """The vocoder's sound of a crop, and the pitch that it predicts.

    Args:
        teach: sing at the crop's own pitch, not the predicted one: what is not yet predicted cannot mislead.
    """
    guess = hift.pitch(crop.mel).float()  # bfloat16 would sing in steps of 1 Hz
    source = hift.source(crop.f0 if teach else guess, hift.noise(*guess.shape, seed=None))
    return hift(crop.mel, source), guess


def reconstruction(hift: HiFT, crop: Crop, made: Tensor, guess: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """(loss, stats): how far sound and pitch that were made of a crop are from the crop.

    L1 of the whole band's log-mel as in the release; beside it spectra at four resolutions, whose frames are shorter
    than the mel's (ours), and L1 of the pitch.
    """
    hop, rate, mels = hift.config.hop, hift.config.rate, hift.config.mels
    mel, stats = mel_l1(made, crop.wav, lambda wav: vocoder_mel(
        wav, rate=rate, n_fft=4 * hop, hop=hop, mels=mels, fmax=None).clamp(min=-7))
    spectra, more = stft_distance(made, crop.wav, SIZES, FLOOR)
    f0 = (guess - crop.f0).abs().mean()
    loss = MEL / SPECTRA * mel + spectra + PITCH / SPECTRA * f0 / 10
    return loss, stats | more | {"pitch_l1": f0.detach(), "audio_s": torch.tensor(crop.wav.numel() / rate)}


def train_reconstruction(
    hift: HiFT, crops: Crops, run: Run | None, *, steps: int, batch: int = 8, frames: int = 17, lr: float = 1e-3,
    seed: int = 0, stage: str = "vocoder",
) -> Fit:
    """Without critics; the source sings at the measured pitch. ``frames`` 17 are 0.34 s."""

    def step(crop: Crop, phase: str):
        return reconstruction(hift, crop, *sung(hift, crop, teach=True))

    optim = Optim(lr=lr, warmup=min(100, steps // 10), final=0.1, betas=(0.8, 0.99), weight_decay=0.0, clip=5.0)
    data = Batches(lambda index: crops.batch(index, batch, frames, seed))
    return fit(step, hift, data, steps=steps, optim=optim, run=run, stage=stage, seed=seed, save_every=250)


def train_against_critics(
    hift: HiFT, critics: Critics, crops: Crops, run: Run | None, *, steps: int, batch: int = 8, frames: int = 17,
    lr: float = 2e-4, seed: int = 0, stage: str = "vocoder_critics",
) -> Fit:
    """Losses of the release, the source now at the predicted pitch: least squares, features, mel, relative.

    Their weights are ours. The reconstruction is that of the stage before, a fifth of what is published; what critics
    say and hold are means over critics and layers where the public code has sums. So with 8 critics of 5 layers the mel
    weighs 1.6 times as much against least squares as is published, 16 times as much against features.
    """

    def step(crop: Crop, phase: str):
        if phase == "critics":
            with torch.no_grad():
                made, _ = sung(hift, crop, teach=False)
            said, real = critics(made)[0], critics(crop.wav)[0]
            parts = [tell_apart(said, real), relative(said, real)]
            return _sum(parts, (1.0, 1.0))
        made, guess = sung(hift, crop, teach=False)
        near, stats = reconstruction(hift, crop, made, guess)
        said, features = critics(made)
        with torch.no_grad():
            real, wanted = critics(crop.wav)
        parts = [fool(said), feature_matching(features, wanted), relative(real, said)]
        loss, more = _sum(parts, (1.0, FEATURES, 1.0))
        return loss + near, stats | more

    optim = Optim(lr=lr, warmup=min(50, steps // 10), final=0.1, betas=(0.8, 0.99), weight_decay=0.0, clip=5.0)
    phases = [Phase("critics", critics, optim), Phase("vocoder", hift, optim)]
    data = Batches(lambda index: crops.batch(index, batch, frames, seed + 1))
    return fit(step, phases, data, steps=steps, run=run, stage=stage, seed=seed, save_every=100)


def _sum(parts: Sequence[tuple[Tensor, Mapping[str, Tensor]]], weights: Sequence[float]) -> tuple[Tensor, dict]:
    loss = sum(weight * part for (part, _), weight in zip(parts, weights, strict=True))
    return loss, {name: value for _, stats in parts for name, value in stats.items()}  # type: ignore[return-value]
