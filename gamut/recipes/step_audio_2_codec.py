"""The codec of Step-Audio 2 (arXiv 2507.16632 §3.1): sound to 25 tokens a second and back. First form.

    gamut run step_audio_2_codec       # a judge of spoken digits, then the codec; tiny, CPU, real recordings

The paper's codec is the S3 tokenizer (FSQ 3^8), a flow and a HiFT vocoder. Here a mel autoencoder with an FSQ
bottleneck stands at the same rate, and Griffin-Lim where the vocoder will be. The judge that measures it is trained
first, apart, on other tasks: strings of digits, and sounds in which nobody speaks.
"""

import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gamut.codecs.audio import MelCodec, MelCodecConfig
from gamut.data import sources
from gamut.data.load import Batches
from gamut.data.noise import not_speech, padded
from gamut.data.spoken import RATE, Digits, noisy
from gamut.evals.claims import Claim, Result
from gamut.evals.judges import hear, judge_mel, trust
from gamut.io.report import Audio, Card, Columns, Heading, Mel
from gamut.io.runs import Run
from gamut.models.judge import DigitJudge, DigitJudgeConfig, ctc
from gamut.train.loop import fit
from gamut.train.optim import Optim


@dataclass(frozen=True)
class Config:
    """The codec that is trained, and the judge beside it."""

    levels: tuple[int, ...] = (8, 5, 5, 5)  # paper 3^8 (repo S3Tokenizer); ours: 1000 codes for 20 minutes of speech
    width: int = 160  # paper 1280 (repo S3Tokenizer); channels of the codec
    blocks: int = 2  # paper 6 (repo S3Tokenizer); ConvNeXt blocks on each side of a change of rate, ours
    judge_width: int = 64  # ours; channels of the judge
    judge_steps: int = 2000  # ours; updates
    codec_steps: int = 2500  # not found in the paper; ours
    judge_batch: int = 32  # ours; sounds per update
    codec_batch: int = 24  # not found in the paper; ours, crops of one second per update
    judge_lr: float = 3e-3  # ours; peak
    codec_lr: float = 1.5e-3  # not found in the paper; ours, peak
    source: str = "auto"  # ours; recordings, synthetic (espeak-ng), or auto: recordings if they can be had
    seed: int = 0  # ours


TINY = Config()
CROP = 8000  # samples of a training crop: one second


def judge_batch(digits: Digits, size: int, index: int, seed: int) -> tuple[Tensor, Tensor, list[list[int]]]:
    """Log-mels with bands and moments hidden, their frames after the judge's stride, and what is said, if anything."""
    rng = random.Random(f"judge {seed} {index}")
    wavs, labels = [], []
    for _ in range(size):
        if rng.random() < 0.3:
            said, wav = [], not_speech(digits, rng) * 10 ** rng.uniform(-0.25, 0.25)
        else:
            said = [rng.randrange(10) for _ in range(rng.choice((1, 1, 2, 3, 4)))]
            wav = digits.say(said, rng).wav
        wavs.append(noisy(wav, rng))
        labels.append(said)
    rows, lengths = padded(wavs, multiple=160)
    mel = judge_mel(rows)
    for row in mel:
        if rng.random() < 0.5:
            band, moment = rng.randrange(mel.shape[1] - 8), rng.randrange(mel.shape[2])
            row[band : band + 8], row[:, moment : moment + 5] = row.mean(), row.mean()
    return mel, (lengths + 159) // 160, labels


def train_judge(cfg: Config, digits: Digits, run: Run | None) -> DigitJudge:
    torch.manual_seed(cfg.seed)
    judge = DigitJudge(DigitJudgeConfig(width=cfg.judge_width))

    def step(batch, phase: str):
        mel, frames, labels = batch
        return ctc(judge(mel), frames, labels), {"audio_s": mel.shape[0] * mel.shape[2] / 100}

    data = Batches(lambda index: judge_batch(digits, cfg.judge_batch, index, cfg.seed))
    optim = Optim(lr=cfg.judge_lr, warmup=cfg.judge_steps // 4, weight_decay=0.02)
    fit(step, judge, data, steps=cfg.judge_steps, optim=optim, run=run, stage="judge", seed=cfg.seed, save_every=500)
    return judge.eval()


def codec_batch(digits: Digits, size: int, index: int, seed: int) -> Tensor:
    """One-second crops (B, T) out of strings of digits."""
    rng = random.Random(f"codec {seed} {index}")
    crops = []
    for _ in range(size):
        wav = digits.say([rng.randrange(10) for _ in range(5)], rng, gap=(0.0, 0.2)).wav
        wav = F.pad(wav, (0, max(0, CROP - len(wav))))
        start = rng.randrange(len(wav) - CROP + 1)
        crops.append(wav[start : start + CROP])
    return noisy(torch.stack(crops).flatten(), rng, -5, -4).view(size, CROP)


def train_codec(cfg: Config, digits: Digits, run: Run | None) -> MelCodec:
    torch.manual_seed(cfg.seed)
    codec = MelCodec(MelCodecConfig(width=cfg.width, blocks=cfg.blocks, levels=cfg.levels))

    def step(wav, phase: str):
        mel = codec.mel(wav)
        guess, _ = codec(mel)
        level = (guess - mel).abs().mean()
        change = (guess.diff(dim=-1) - mel.diff(dim=-1)).abs().mean()  # what moves is what is understood
        return level + 0.5 * change, {"mel_l1": level.detach(), "audio_s": wav.numel() / RATE}

    data = Batches(lambda index: codec_batch(digits, cfg.codec_batch, index, cfg.seed))
    optim = Optim(lr=cfg.codec_lr, warmup=cfg.codec_steps // 20, weight_decay=0.01, betas=(0.9, 0.98))
    fit(step, codec, data, steps=cfg.codec_steps, optim=optim, run=run, stage="codec", seed=cfg.seed, save_every=250)
    return codec.eval()


def resynthesis(codec: MelCodec, judge: DigitJudge, digits: Digits) -> dict[str, float]:
    """Recordings through the codec and back, against the recordings themselves."""
    right, used, distance = 0, set(), 0.0
    for wav, digit in zip(digits.wavs, digits.digits, strict=True):
        ids = codec.encode(wav[None])
        used |= set(ids[0].tolist())
        right += hear(judge, codec.decode(ids)[0])[0] == [digit]
        distance += codec.distance(wav[None]) / len(digits)
    return {"codec/accuracy": right / len(digits), "codec/mel_l1": distance, "codec/codes": float(len(used))}


def main(cfg: Config = TINY, run: Run | None = None) -> Result:
    train = Digits(sources.digits("train", cfg.source))
    held_out = sources.digits("test", cfg.source)
    test = Digits(held_out)
    judge = train_judge(cfg, train, run)
    codec = train_codec(cfg, train, run)
    metrics = trust(judge, test) | resynthesis(codec, judge, test)
    card = f"# {{}}\n\nTrained on: {held_out.origin} ({held_out.licence}). Seed {cfg.seed}.\n\n" + "\n".join(
        f"- {name}: {value:.4g}" for name, value in metrics.items()
    ) + "\n\nMade by `gamut run step_audio_2_codec`.\n"
    if run is not None:
        judge.save_pretrained(run.path / "digitjudge", card=card.format("Judge of spoken digits"))
        codec.save_pretrained(run.path / "melcodec", card=card.format("Speech codec, 25 tokens a second"))
    return Result(metrics, notes={"origin": held_out.origin, "report": _listen(codec, test)})


def _listen(codec: MelCodec, digits: Digits, count: int = 6) -> list:
    """Blocks of the report: recordings, and the same through the codec."""
    cards = []
    for i in range(0, len(digits), len(digits) // count):
        wav = digits.wavs[i]
        again = codec.decode(codec.encode(wav[None]))[0]
        blocks = []
        for title, sound in (("recorded", wav), ("through the codec", again)):
            blocks += [Audio(title, sound, RATE), Mel("", codec.mel(sound[None])[0], len(sound) / RATE)]
        cards.append(Card(f"{digits.digits[i]}, {digits.speakers[i]}", blocks))
    return [Heading("Listen", "Held-out recordings, drawn evenly."), Columns(cards)]


CLAIMS = [
    Claim("the judge hears >= 97 % of held-out recordings right", lambda r: r.metrics["judge/accuracy"] >= 0.97),
    Claim("<= 15 % of backwards speech, noise and silence convince it", lambda r: r.metrics["judge/fooled"] <= 0.15),
    Claim("resynthesised held-out digits are heard right >= 85 %", lambda r: r.metrics["codec/accuracy"] >= 0.85),
]
