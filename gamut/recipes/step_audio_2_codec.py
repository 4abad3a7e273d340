"""The codec of Step-Audio 2 (arXiv 2507.16632 §3.1): sound to 25 tokens a second, and back in any voice

    gamut run step_audio_2_codec       # tokenizer, flow and vocoder, and two judges; tiny, CPU, real recordings

Sound -> S3 tokenizer (the first half of a recogniser, FSQ) -> tokens -> flow (a speaker's timbre joins here) -> mel ->
HiFT -> sound at 24 kHz, which here holds recordings made at 8 kHz. Each part is trained alone and measured at its own
cut. The judges of what is said and of who says it are trained first, apart.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import gamut
from gamut.codecs.flow import Flow, FlowConfig
from gamut.codecs.flow_training import flow_loss
from gamut.codecs.hift import HiFT, HiFTConfig
from gamut.codecs.s3_reader import S3Reader
from gamut.codecs.s3_tokenizer import S3Config, S3Tokenizer
from gamut.data import sources
from gamut.data.crops import Crops
from gamut.data.listening import digit_batch
from gamut.data.load import Batches
from gamut.data.reading import strings
from gamut.data.spoken import Digits
from gamut.data.voiced import Voiced, levels, timbres, varied, voiced
from gamut.evals.claims import Claim, Result, facts
from gamut.evals.codec_report import assembled, at_every_cut, listen, switched
from gamut.evals.judges import trust, trust_speakers
from gamut.io.env import ROOT
from gamut.io.runs import Run
from gamut.models.judge import DigitJudge, DigitJudgeConfig, ctc
from gamut.nn.critics import Critics
from gamut.train import dist
from gamut.train.judging import train_speaker_judge
from gamut.train.loop import fit
from gamut.train.optim import Optim
from gamut.train.tokenizing import train_tokenizer
from gamut.train.vocoding import train_against_critics, train_reconstruction


@dataclass(frozen=True)
class Config:
    """Sizes of the parts, then how long each learns; a stage of 0 updates takes the shipped part."""

    levels: tuple[int, ...] = (3,) * 6  # paper 3^8 (repo S3Tokenizer); ours: 729 codes for 20 minutes of speech
    width: int = 128  # paper 1280 (repo S3Tokenizer); channels of the tokenizer
    layers: int = 2  # paper 6 (repo S3Tokenizer); of the tokenizer, and again of the reader behind it
    flow_width: int = 128  # paper 512 (released flow.yaml); channels of both halves of the flow
    flow_layers: int = 4  # paper 16 (released flow.yaml); of the estimator
    vocoder_width: int = 128  # paper 512 (released flow.yaml)
    judge_width: int = 64  # ours; channels of the judges
    judge_steps: int = 2000  # ours; updates of the judge of digits, 6 in 10 as many of the judge of speakers
    tokenizer_steps: int = 1000  # not found in the paper; ours
    flow_steps: int = 5000  # not found in the paper; ours
    vocoder_steps: int = 3000  # not found in the paper; ours, on spectra alone
    flow_more: int = 2500  # ours; on whole strings, some as if somebody else had spoken them
    critic_steps: int = 400  # not found in the paper; ours, against critics at 1/8 of their width
    batch: int = 12  # not found in the paper; ours, strings of digits per update
    source: str = "auto"  # ours; recordings, synthetic (espeak-ng), or auto: recordings if they can be had
    seed: int = 0  # ours


TINY = Config()
WEIGHTS = ROOT / "weights" / "step_audio_2_codec"
TOKENS = 37  # of a training crop of the flow: a second and a half
GUIDANCE = 1.5  # of the flow, released 0.7: so small a flow follows its tokens too loosely without


def train_judge(cfg: Config, digits: Digits, run: Run | None) -> DigitJudge:
    torch.manual_seed(cfg.seed)
    judge = DigitJudge(DigitJudgeConfig(width=cfg.judge_width)).to(dist.device())

    def step(batch, phase: str):
        mel, frames, labels = batch
        return ctc(judge(mel), frames, labels), {"audio_s": mel.shape[0] * mel.shape[2] / 100}

    data = Batches(lambda index: digit_batch(digits, 32, index, cfg.seed))
    optim = Optim(lr=3e-3, warmup=cfg.judge_steps // 4, weight_decay=0.02)
    fit(step, judge, data, steps=cfg.judge_steps, optim=optim, run=run, stage="judge", seed=cfg.seed, save_every=500)
    return judge.cpu().eval()


def learn_tokens(cfg: Config, digits: Digits, run: Run | None) -> S3Tokenizer:
    """What is said must be readable from the tokens (arXiv 2412.10117 §2.1): digit by digit, token by token."""
    torch.manual_seed(cfg.seed)
    config = S3Config(mels=80, width=cfg.width, layers=cfg.layers, heads=4, ffn=4 * cfg.width, levels=cfg.levels)
    reader = S3Reader(S3Tokenizer(config), labels=10, layers=cfg.layers).to(dist.device())
    return train_tokenizer(
        reader, lambda index: strings(digits, cfg.batch, index, cfg.seed), run, steps=cfg.tokenizer_steps, seed=cfg.seed
    ).cpu()


def flow_step(flow: Flow) -> Callable:
    def step(batch: Voiced, phase: str):
        loss, stats = flow_loss(flow, batch.ids, batch.mel, batch.timbre, batch.counts, prior=1.0)
        return loss, stats | {"audio_s": int(batch.counts.sum()) / 25}

    return step


def learn_flow(cfg: Config, tokenizer: S3Tokenizer, digits: Digits, run: Run | None) -> Flow:
    """Tokens and a timbre to mels, by flow matching (fact sheet §6.5: dropped conditions, prompts, chunks)."""
    torch.manual_seed(cfg.seed)
    mean, std = levels(digits.wavs[::10])
    w = cfg.flow_width
    flow = Flow(FlowConfig(
        vocab=tokenizer.vocab, speaker=160, inputs=w, width=w, layers=2, up_layers=2, heads=4, ffn=2 * w, dit_width=w,
        dit_layers=cfg.flow_layers, dit_heads=4, dit_head_dim=w // 4, mean=mean, std=std,
        guidance=GUIDANCE)).to(dist.device())  # fmt: skip
    data = Batches(lambda index: voiced(digits, tokenizer.encode, cfg.batch, TOKENS, index, cfg.seed))
    optim = Optim(lr=3e-3, warmup=cfg.flow_steps // 20, weight_decay=0.01, betas=(0.9, 0.98))
    fit(flow_step(flow), flow, data, steps=cfg.flow_steps, optim=optim, run=run, stage="flow", seed=cfg.seed,
        save_every=250)  # fmt: skip
    return flow.cpu().eval()


def learn_voices(cfg: Config, flow: Flow, tokenizer: S3Tokenizer, digits: Digits, run: Run | None) -> Flow:
    """The same on whole strings, often as if somebody else had spoken them; the mean of the last weights is kept."""
    known, flow = timbres(digits, 40), flow.to(dist.device())
    data = Batches(lambda index: varied(digits, tokenizer, known, cfg.batch, TOKENS, index, cfg.seed))
    optim = Optim(lr=1.5e-3, schedule="constant", warmup=60, weight_decay=0.01, betas=(0.9, 0.98), ema=0.999)
    done = fit(flow_step(flow), flow, data, steps=cfg.flow_more, optim=optim, run=run, stage="flow_more",
               seed=cfg.seed, save_every=250)  # fmt: skip
    with done.averaged():
        return copy.deepcopy(flow).cpu().eval()


def learn_sound(cfg: Config, clips: sources.Speech, run: Run | None) -> HiFT:
    """Mels to sound: first spectra and pitch, then critics too (fact sheet §6.5)."""
    torch.manual_seed(cfg.seed)
    hift = HiFT(HiFTConfig(width=cfg.vocoder_width, block_kernels=(3, 7), source_kernels=(7, 7, 7), dilations=(1, 3),
                           pitch_width=cfg.judge_width))  # fmt: skip
    crops = Crops(clips, hift.config.rate, hift.config.hop, hift.encode)
    train_reconstruction(hift.to(dist.device()), crops, run, steps=cfg.vocoder_steps, seed=cfg.seed)
    if cfg.critic_steps:
        critics = Critics(fraction=1 / 8).to(dist.device())
        train_against_critics(hift, critics, crops, run, steps=cfg.critic_steps, seed=cfg.seed)
    return hift.cpu().eval()


def made(steps: int, shipped: str, make: Callable) -> Any:
    """What ``make()`` gives, or the shipped part (``folder`` or ``folder.half``) where it is to have no updates."""
    if steps:
        return make()
    folder, _, half = shipped.partition(".")
    part = gamut.load(WEIGHTS / folder)
    return getattr(part, half) if half else part


def main(cfg: Config = TINY, run: Run | None = None) -> Result:
    clips, held_out = sources.digits("train", cfg.source), sources.digits("test", cfg.source)
    train, test = Digits(clips), Digits(held_out)
    judge = made(cfg.judge_steps, "digitjudge", lambda: train_judge(cfg, train, run))
    ear = made(cfg.judge_steps, "speakerjudge",
               lambda: train_speaker_judge(train, run, steps=cfg.judge_steps * 6 // 10, seed=cfg.seed))  # fmt: skip
    tokenizer = made(cfg.tokenizer_steps, "tokenizer", lambda: learn_tokens(cfg, train, run))
    flow = made(cfg.flow_steps, "token2wav.flow", lambda: learn_flow(cfg, tokenizer, train, run))
    hift = made(cfg.vocoder_steps, "token2wav.hift", lambda: learn_sound(cfg, clips, run))
    if cfg.flow_more:
        flow = learn_voices(cfg, flow, tokenizer, train, run)
    codec = assembled(flow, hift, train)
    metrics = trust(judge, test) | trust_speakers(ear, test)
    metrics |= at_every_cut(judge, tokenizer, codec, test) | switched(judge, ear, tokenizer, codec, test)
    if run is not None:
        card = CARD.format("{}", held_out.origin, held_out.licence, cfg.seed, facts(metrics))
        parts = {"digitjudge": judge, "speakerjudge": ear, "tokenizer": tokenizer, "token2wav": codec}
        for name, part in parts.items():
            part.save_pretrained(run.path / name, card=card.format(name))
    return Result(metrics, notes={"origin": held_out.origin, "report": listen(tokenizer, codec, test)})


CARD = """# {}, a part of Step-Audio 2's codec, tiny

Trained on: {} ({}). Seed {}. Made by `gamut run step_audio_2_codec`, whose scores are

{}"""

CLAIMS = [
    Claim("the judge hears >= 97 % of held-out recordings right", lambda r: r.metrics["judge/accuracy"] >= 0.97),
    Claim("<= 15 % of backwards speech, noise and silence convince it", lambda r: r.metrics["judge/fooled"] <= 0.15),
    Claim("who speaks is told right >= 97 %, and <= 15 % of what is no speech convinces that judge",
          lambda r: r.metrics["speakers/accuracy"] >= 0.97 and r.metrics["speakers/fooled"] <= 0.15),
    Claim("digits through tokens, flow and vocoder are heard right >= 90 %, within 5 points of the recordings",
          lambda r: r.metrics["chain/accuracy"] >= max(0.90, r.metrics["recorded/accuracy"] - 0.05)),
    Claim("a requested voice is recognised >= 85 %, whether or not its digits are heard (switched/voice/both)",
          lambda r: r.metrics["switched/voice"] >= 0.85),
]  # fmt: skip
