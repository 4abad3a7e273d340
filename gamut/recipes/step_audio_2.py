"""Step-Audio 2 (arXiv 2507.16632): it hears continuous features and answers in text and interleaved speech tokens.

    gamut run step_audio_2                      # tiny preset: real recordings of digits, CPU, no download
    gamut run step_audio_2 --size paper --plan  # parameters and memory of Step-Audio 2 mini; trains nothing
    gamut chat question.wav --system "Say the sum of the two numbers."

Sound -> log-mel -> encoder (25 a second) -> adaptor (12.5) -> decoder -> "<tts_start> [1 text, 4 audio] ... <tts_end>"
-> codec -> sound (§3.1). Stages as in §4, shortened: an encoder that has learned to hear (the paper starts from
Qwen2-Audio's); alignment of the adaptor alone; everything but the encoder on transcripts, reading aloud and questions
in writing; at last spoken questions, answered in text and in speech, and a calculator called as a tool.
"""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import gamut
from gamut.codecs.mel import hear, pad_mels
from gamut.codecs.text import Tokenizer
from gamut.data import sources
from gamut.data.load import Batches
from gamut.data.spoken import RATE, TASKS, Digits, noisy
from gamut.data.talks import TalkBatch, Talks, Voice, clearest, tokenizer
from gamut.evals.claims import Claim, Result
from gamut.evals.talk_report import MEASURED, provenance, samples
from gamut.evals.talks import TOOLS, Speaker, examine, speaker_of
from gamut.io.files import atomic_write
from gamut.io.runs import Run
from gamut.losses.next_token import next_token_from_hidden
from gamut.models.audio_encoder import AudioEncoder, AudioEncoderConfig
from gamut.models.decoder import LMConfig
from gamut.models.omni import Omni, OmniConfig
from gamut.train.loop import fit
from gamut.train.optim import Group, Optim, Phase


@dataclass(frozen=True)
class Config:
    """Sizes of the model, then how long and how fast each stage learns."""

    width: int = 128  # paper 3584 (released config.json); channels of the decoder
    layers: int = 4  # paper 28 (released config.json)
    heads: int = 4  # paper 28 (released config.json)
    kv_heads: int = 2  # paper 4 (released config.json)
    ffn: int = 384  # paper 18944 (released config.json)
    encoder_width: int = 128  # paper 1280 (released config.json)
    encoder_layers: int = 3  # paper 32 (released config.json)
    encoder_heads: int = 4  # paper 20 (released config.json)
    adapter: int = 256  # paper 2048 (released config.json); hidden channels
    hear_steps: int = 1500  # ours; updates of the encoder, where the paper takes a trained one
    align_steps: int = 100  # paper 12000 (§4.1); updates of the adaptor alone
    main_steps: int = 2500  # not found in the paper (800B tokens); ours
    sft_steps: int = 2500  # not found in the paper (4B tokens, one epoch); ours
    batch: int = 16  # ours; conversations per update
    lr: float = 1e-3  # paper 2e-5 (§4.3); peak of the main stage, the others in proportion
    init: str = ""  # ours; folder of a model to start from, whose sizes then count; stages of 0 steps are left out
    voice: str = "jackson"  # ours; who of the recorded people answers
    codec: str = "weights/step_audio_2_codec"  # ours; folder with a codec and a judge
    source: str = "auto"  # ours; recordings, synthetic (espeak-ng), or auto: recordings if they can be had
    seed: int = 0  # ours


TINY = Config()
PAPER = replace(TINY, width=3584, layers=28, heads=28, kv_heads=4, ffn=18944, encoder_width=1280, encoder_layers=32,
                encoder_heads=20, adapter=2048, align_steps=12000, lr=2e-5)  # fmt: skip
PAPER_VOCAB = 158720
PARTS = {"hear": 2.0, "align": 2.0, "main": 1.0, "sft": 1.0}  # of lr; paper (§4): align 5, main 1, sft 0.5
WEIGHTS = "weights/step_audio_2"
TAKES = 10  # recordings of each digit that the answering voice learns from: those the codec carries best. Ours


def model_config(cfg: Config, vocab: int, **ids: int) -> OmniConfig:
    lm = LMConfig(vocab, cfg.width, cfg.layers, cfg.heads, cfg.kv_heads, cfg.width // cfg.heads, cfg.ffn,
                  qkv_bias=True, max_positions=16384)  # fmt: skip
    audio = AudioEncoderConfig(width=cfg.encoder_width, layers=cfg.encoder_layers, heads=cfg.encoder_heads,
                               ffn=4 * cfg.encoder_width, edge="closed")  # fmt: skip
    return OmniConfig(lm, audio, cfg.adapter, **ids)


def build(cfg: Config, codec: Voice) -> tuple[Omni, Tokenizer]:
    """The model and its words: of ``cfg.init``, or new."""
    torch.manual_seed(cfg.seed)
    if cfg.init:
        return gamut.load(shipped(cfg.init)), Tokenizer.from_pretrained(shipped(cfg.init))
    words = tokenizer(codec.vocab, TOOLS.schemas)
    marks = {f"audio_{name}_id": words.id(f"<audio_{name}>") for name in ("start", "end", "patch")}
    return Omni(model_config(cfg, words.vocab, **marks)), words


def heard_frames(digits: Digits, size: int, index: int, seed: int):
    """Noisy strings of digits, and which digit (10: none) each encoder frame of 40 ms lies in; -100 behind the end."""
    rng = random.Random(f"hear {seed} {index}")
    count = rng.choice((1, 2, 3, 4, 6))
    mels, spans = [], []
    for _ in range(size):
        said = digits.say([rng.randrange(10) for _ in range(count)], rng)
        mels.append(hear(noisy(said.wav, rng), RATE))
        spans.append([(round(a / 320), round(b / 320), d) for (a, b), d in zip(said.spans, said.digits, strict=True)])
    mels_NMF, lens_N = pad_mels(mels)
    labels_NT = torch.full((size, (mels_NMF.shape[-1] + 1) // 4), -100)
    for row, length, parts in zip(labels_NT, lens_N.tolist(), spans, strict=True):
        row[: (length + 1) // 4] = 10
        for start, end, digit in parts:
            row[start : max(end, start + 1)] = digit
        row[(length + 1) // 4 :] = -100
    return mels_NMF, lens_N, labels_NT


def learn_to_hear(cfg: Config, encoder: AudioEncoder, digits: Digits, run: Run | None) -> None:
    """Stands where the paper takes Qwen2-Audio's encoder (App. B): which digit is being said, frame by frame. Ours."""
    head = nn.Linear(encoder.config.width, 11)

    def step(batch, phase: str):
        mels, lens, labels = batch
        logits = head(encoder(mels, lens)[0])
        right = (logits.argmax(-1) == labels)[labels >= 0].float().mean()
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        return loss, {"accuracy": right, "audio_s": float(lens.sum()) / 100}

    data = Batches(lambda index: heard_frames(digits, cfg.batch, index, cfg.seed))
    optim = Optim(cfg.lr * PARTS["hear"], warmup=cfg.hear_steps // 8, weight_decay=0.02)
    fit(step, Phase("encoder", {"encoder": encoder, "head": head}, optim), data, steps=cfg.hear_steps, run=run,
        stage="hear", seed=cfg.seed, save_every=250)  # fmt: skip


def learn_to_talk(cfg: Config, model: Omni, talks: Talks, origin: str, run: Run | None) -> None:
    """§4: the adaptor alone; all but the encoder on transcripts, reading aloud and writing; then spoken questions."""

    def step(batch, phase: str):
        """Words and sound count alike: by the token, the one digit that matters would drown among its fifteen codes."""
        x_BTD = model.lm.hidden(embeds_BTD=model.embed(batch.ids_BT, batch.mels_NMF, batch.lens_N))
        sound_BT = (batch.ids_BT >= talks.marks.audio) | (batch.ids_BT == talks.marks.text_pad)
        masks = {"text_loss": batch.learn_BT & ~sound_BT, "speech_loss": batch.learn_BT & sound_BT}
        losses = {name: next_token_from_hidden(x_BTD, model.lm.head.weight, batch.ids_BT, mask)[0]
                  for name, mask in masks.items() if mask.any()}  # fmt: skip
        stats = {name: loss.detach() for name, loss in losses.items()}
        return torch.stack(list(losses.values())).sum(), stats | {"tokens": batch.ids_BT.numel()}

    def stage(name: str, steps: int, batch: Callable[[int], TalkBatch], fixed: Sequence[str], **optim) -> None:
        groups = tuple(Group(f"{part}.*", 0) for part in fixed)
        fit(step, model, Batches(batch), steps=steps, optim=Optim(cfg.lr * PARTS[name], groups=groups, **optim),
            run=run, stage=name, seed=cfg.seed, save_every=250)  # fmt: skip

    def transcripts(index: int) -> TalkBatch:
        return talks.batch(index, cfg.batch, TASKS[:1], read=0.0)

    def both_ways(index: int) -> TalkBatch:
        return talks.batch(index, cfg.batch, TASKS[:1], read=0.25, written=0.4)

    def questions(index: int) -> TalkBatch:
        return talks.batch(index, cfg.batch)

    usual = {"weight_decay": 0.02, "betas": (0.9, 0.98)}
    if steps := cfg.align_steps:
        stage("align", steps, transcripts, ("lm", "encoder"), schedule="linear", warmup=steps // 10, final=0.2)
    if steps := cfg.main_steps:
        stage("main", steps, both_ways, ("encoder",), warmup=steps // 20, final=0.1, **usual)
    if run is not None:
        model.save_pretrained(run.path / "base", card=BASE.format(origin), files=talks.words.files())
    if steps := cfg.sft_steps:
        stage("sft", steps, questions, ("encoder",), warmup=steps // 20, **usual)


def main(cfg: Config = TINY, run: Run | None = None) -> Result:
    codec = gamut.load(shipped(cfg.codec) / "melcodec")
    spoken = sources.digits("train", cfg.source)
    voice = cfg.voice if cfg.voice in {clip.speaker for clip in spoken} else spoken[0].speaker
    digits, answers_in = Digits(spoken), clearest(Digits(spoken, (voice,)), codec, TAKES)
    model, words = build(cfg, codec)
    if cfg.hear_steps:
        learn_to_hear(cfg, model.encoder, digits, run)
    talks = Talks(digits, answers_in, codec, words, TOOLS.schemas, cfg.seed)
    learn_to_talk(cfg, model, talks, spoken.origin, run)
    speaker = speaker_of(model, words, codec)
    result = measured(cfg, speaker, voice)
    if run is not None:
        facts = "\n".join(f"- {name}: {value:.4g}" for name, value in result.metrics.items())
        speaker.save(run.path / "model", card=CARD.format(spoken.origin, spoken.licence, voice, cfg.seed, facts))
        atomic_write(run.path / "model" / MEASURED, json.dumps(result.metrics, indent=1))
    return result


def measured(cfg: Config, speaker: Speaker, voice: str) -> Result:
    """Held-out recordings ask, the judge listens."""
    judge = gamut.load(shipped(cfg.codec) / "digitjudge")
    held_out = sources.digits("test", cfg.source)
    metrics, answers = examine(speaker, judge, Digits(held_out), Digits(held_out, (voice,)), seed=cfg.seed)
    stages = {"encoder": cfg.hear_steps, "transcripts and reading aloud": cfg.main_steps, "questions": cfg.sft_steps}
    made = provenance(held_out.origin, stages, metrics, shipped(WEIGHTS))
    return Result(metrics, notes={"report": [*made, *samples(speaker, judge, answers)]})


def evaluate(folder: Path) -> Result:
    """The same examination again, for a run or a saved model."""
    return measured(TINY, Speaker.load(folder), TINY.voice)


def shipped(folder: str) -> Path:
    """The folder as given, or as it lies in the repository."""
    return Path(folder) if Path(folder).exists() else Path(__file__).parents[2] / folder


BASE = """# Step-Audio 2, tiny, before it learns to answer

Transcribes, reads aloud, does sums in writing. Trained on: {}.
"""
CARD = """# Step-Audio 2, tiny

Hears strings of spoken digits and answers in text or aloud. Trained by `gamut run step_audio_2` on: {} ({});
it answers in the voice of {}. Seed {}.

{}
"""


def plan(cfg: Config) -> dict[str, int | float]:
    """Parameters and bytes, without building anything."""
    with torch.device("meta"):
        model = Omni(model_config(cfg, PAPER_VOCAB if cfg.width == PAPER.width else 1800))
    count = sum(p.numel() for p in model.parameters())
    return {"parameters": count, "bf16 weights, GB": count * 2 / 1e9, "training with AdamW, fp32, GB": count * 16 / 1e9}


CLAIMS = [
    Claim("word error rate on 1-6 held-out spoken digits <= 10 %", lambda r: r.metrics["digits/wer"] <= 0.10),
    Claim("spoken arithmetic is right in text >= 90 %", lambda r: r.metrics["arithmetic/text"] >= 0.90),
    Claim("the calculator is called exactly right >= 90 %", lambda r: r.metrics["calculator/exact"] >= 0.90),
    Claim("spoken answers are heard right, within 10 points of the codec's own ceiling",
          lambda r: r.metrics["arithmetic/aloud"] >= r.metrics["arithmetic/aloud/ceiling"] - 0.10),
]
