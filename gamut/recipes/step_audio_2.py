"""Step-Audio 2 (arXiv 2507.16632): it hears continuous features and answers in text and interleaved speech tokens.

    gamut run step_audio_2                      # tiny preset: real recordings (16 MB are fetched once), CPU
    gamut run step_audio_2 --size paper --plan  # parameters and memory of Step-Audio 2 mini; trains nothing
    gamut run step_audio_2 --data FOLDER        # learns from your own conversations (step_audio_2_tune)
    gamut chat question.wav --system "Say the sum of the two numbers."

Sound -> log-mel -> encoder (25 a second) -> adaptor (12.5) -> decoder -> "<tts_start> [1 text, 4 audio] ... <tts_end>"
-> flow, in the voice that was asked for -> vocoder -> sound (§3.1). Stages as in §4, shortened: an encoder that has
learned to hear (the paper starts from Qwen2-Audio's); alignment of the adaptor alone; everything but the encoder on
transcripts, reading aloud and questions in writing; at last conversations about spoken numbers, with four tools, coffee
orders, voices that are searched for, and what was said before.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch

import gamut
from gamut.codecs.text import Tokenizer
from gamut.data.conversations import Conversations, vocabulary
from gamut.data.load import Batches
from gamut.data.machine import helped, others
from gamut.data.orders import FOLDS, Orders
from gamut.data.scripts import LEARNED, Script, mix
from gamut.data.spoken import Digits
from gamut.data.talks import TalkBatch
from gamut.evals.cast import Cast, Speaker, kept_back, kept_from, unheard
from gamut.evals.claims import Claim, Result, facts
from gamut.evals.conversations import examine
from gamut.evals.talk_report import MEASURED, provenance, samples
from gamut.io.env import model_folder, shipped
from gamut.io.files import atomic_write
from gamut.io.folders import KEPT_BACK
from gamut.io.keys.step_audio_2 import described
from gamut.io.runs import Run
from gamut.losses.from_hidden import next_token_from_hidden
from gamut.models.audio_encoder import AudioEncoderConfig
from gamut.models.decoder import LMConfig
from gamut.models.omni import Omni, OmniConfig
from gamut.plan.omni import cost
from gamut.train import dist
from gamut.train.hearing import learn_to_hear
from gamut.train.loop import fit
from gamut.train.optim import Group, Optim


@dataclass(frozen=True)
class Config:
    """Sizes of the model, then how long and how fast each stage learns."""

    width: int = 128  # paper 3584 (released config.json); channels of the decoder
    layers: int = 4  # paper 28 (released config.json)
    heads: int = 4  # paper 28 (released config.json)
    kv_heads: int = 2  # paper 4 (released config.json)
    ffn: int = 384  # paper 18944 (released config.json)
    encoder: tuple[int, int, int] = (128, 3, 4)  # paper: 1280 wide, 32 layers, 20 heads (released)
    adapter: int = 256  # paper 2048 (released config.json); hidden channels
    hear_steps: int = 6000  # ours; updates of the encoder, where the paper takes a trained one
    align_steps: int = 100  # paper 12000 (§4.1); updates of the adaptor alone
    main_steps: int = 2000  # not found in the paper (800B tokens); ours
    sft_steps: int = 8000  # not found in the paper (4B tokens, one epoch); ours
    batch: int = 16  # ours; conversations per update
    lr: float = 1e-3  # paper 2e-5 (§4.3); peak of the main stage, the others in proportion
    init: str = ""  # ours; folder of a model to start from, whose sizes then count; stages of 0 steps are left out
    each: int = 50  # ours; conversations of every kind in the examination
    codec: str = "weights/step_audio_2_codec"  # ours; folder with a codec and its judges
    without: str = ""  # ours; nothing this person says is learned from; asks in an examination of its own
    source: str = "auto"  # ours; recordings, synthetic (espeak-ng), or auto: recordings if they can be had
    seed: int = 0  # ours; also says which fifth of the coffee orders is kept for the examination


TINY = Config()
PAPER = replace(TINY, width=3584, layers=28, heads=28, kv_heads=4, ffn=18944, encoder=(1280, 32, 20),
                adapter=2048, align_steps=12000, lr=2e-5)  # fmt: skip
PAPER_VOCAB = 158720
MAIN = mix(transcribe=0.35, dictation=0.15, read=0.2, written=0.15, count_on=0.05, who=0.1)  # ours
HEARD = mix(transcribe=1, sum=1, difference=1, maximum=1, reverse=1, calculator=1, memory=1)  # asked by a stranger
PARTS = {"hear": 1.5, "align": 2.0, "main": 1.0, "sft": 1.0}  # of lr; paper (§4): align 5, main 1, sft 0.5
WEIGHTS = "weights/step_audio_2"
VOICE = "jackson"  # who of the recorded people answers; ours
TAKES = 12  # recordings of each digit that answers in a voice are put together from. Ours


def model_config(cfg: Config, vocab: int, **ids: int) -> OmniConfig:
    lm = LMConfig(vocab, cfg.width, cfg.layers, cfg.heads, cfg.kv_heads, cfg.width // cfg.heads, cfg.ffn,
                  qkv_bias=True, max_positions=16384)  # fmt: skip
    width, layers, heads = cfg.encoder
    audio = AudioEncoderConfig(width=width, layers=layers, heads=heads, ffn=4 * width, edge="closed")
    return OmniConfig(lm, audio, cfg.adapter, **ids)


def build(cfg: Config, codes: int, tools: Sequence[Mapping], orders: Orders | None) -> tuple[Omni, Tokenizer]:
    """The model and its words: of ``cfg.init``, or new."""
    torch.manual_seed(cfg.seed)
    if cfg.init:
        init = model_folder(cfg.init)
        return gamut.load(init).to(dist.device()), Tokenizer.from_pretrained(init)
    words = vocabulary(codes, tools, orders)
    marks = {f"audio_{name}_id": words.id(f"<audio_{name}>") for name in ("start", "end", "patch")}
    return Omni(model_config(cfg, words.vocab, **marks)).to(dist.device()), words


def learn_to_talk(cfg: Config, model: Omni, talks: Conversations, origin: str, run: Run | None) -> None:
    """§4: the adaptor alone; all but the encoder on transcripts, reading aloud and writing; then conversations."""

    def step(batch: TalkBatch, phase: str):
        """Words and sound count alike: by the token, the one digit that matters would drown among its fifteen codes."""
        x_BTD = model.hidden(batch.ids_BT, batch.mels_NMF, batch.lens_N)
        sound_BT = (batch.ids_BT >= talks.marks.audio) | (batch.ids_BT == talks.marks.text_pad)
        masks = {"text_loss": batch.learn_BT & ~sound_BT, "speech_loss": batch.learn_BT & sound_BT}
        losses = {name: next_token_from_hidden(x_BTD, model.lm.head.weight, batch.ids_BT, mask)[0]
                  for name, mask in masks.items() if mask.any()}  # fmt: skip
        stats = {name: loss.detach() for name, loss in losses.items()}
        return torch.stack(list(losses.values())).sum(), stats | {"tokens": batch.ids_BT.numel()}

    def stage(name: str, steps: int, scripts: Sequence[Script], fixed: Sequence[str], **optim) -> None:
        groups = tuple(Group(f"{part}.*", 0) for part in fixed)
        fit(step, model, Batches(lambda index: talks.batch(index, cfg.batch, scripts)), steps=steps,
            optim=Optim(cfg.lr * PARTS[name], groups=groups, **optim), run=run, stage=name, seed=cfg.seed,
            save_every=250)  # fmt: skip

    usual = {"weight_decay": 0.02, "betas": (0.9, 0.98)}
    if steps := cfg.align_steps:
        stage("align", steps, mix(transcribe=1), ("lm", "encoder"), schedule="linear", warmup=steps // 10, final=0.2)
    if steps := cfg.main_steps:
        stage("main", steps, MAIN, ("encoder",), warmup=steps // 20, final=0.1, **usual)
    if run is not None:
        files = talks.words.files() | {KEPT_BACK: json.dumps(kept_back(cfg.seed, cfg.without))}
        model.save_pretrained(run.path / "base", card=BASE.format(origin), files=files)
    if steps := cfg.sft_steps:
        stage("sft", steps, LEARNED, ("encoder",), warmup=steps // 20, **usual)


def main(cfg: Config = TINY, run: Run | None = None) -> Result:
    unheard(cfg.init, cfg.seed, cfg.without)
    cast = Cast.of("train", cfg.source, VOICE, cfg.seed % FOLDS, cfg.without)
    world, codec = cast.world, cast.codec(shipped(cfg.codec))
    if cast.orders:
        world = replace(world, orders=helped(cast.orders))
    model, words = build(cfg, codec.vocab, cast.schemas, world.orders)
    machine = others() if cfg.hear_steps else None
    if cfg.hear_steps:
        learn_to_hear(model.encoder, world.digits, machine, world.orders, run, steps=cfg.hear_steps,
                      lr=cfg.lr * PARTS["hear"], batch=cfg.batch, seed=cfg.seed)  # fmt: skip
    voices = {name: Digits(world.digits.clips, (name,)).first(TAKES) for name in cast.names}
    dice = f"{cfg.seed} {cfg.init}".strip()  # who goes on with a model does not have it learn the same again
    talks = Conversations(world, voices, codec, words, cast.schemas, dice)
    spoken = machine is not None or bool(world.orders and world.orders.written)
    origin = cast.origin + "; the like spoken by espeak-ng" * spoken
    learn_to_talk(cfg, model, talks, origin, run)
    result = measured(cfg, speaker := cast.speaker(model, words, codec), cast)
    if run is not None:
        began = f"began as `{cfg.init}`; " if cfg.init else ""
        updates = f"{cfg.hear_steps:,}, {cfg.align_steps:,}, {cfg.main_steps:,} and {cfg.sft_steps:,} updates"
        card = CARD.format(len(cast.schemas), cast.names[0], began, updates, origin, cfg.seed, cfg.each,
                           facts(result.metrics))
        speaker.save(run.path / "model", card, voices=cast.people, menu=cast.menu)
        atomic_write(run.path / "model" / MEASURED, json.dumps(result.metrics, indent=1))
        atomic_write(run.path / "model" / KEPT_BACK, json.dumps(kept_back(cfg.seed, cfg.without)))
    return result


def measured(cfg: Config, speaker: Speaker, cast: Cast) -> Result:
    """Held-out recordings ask, judges listen; the voices to be found are those of ``cast``."""
    judge, ear = (gamut.load(shipped(cfg.codec) / name) for name in ("digitjudge", "speakerjudge"))
    asking = Cast.of("test", cfg.source, VOICE, cfg.seed % FOLDS, cfg.without)
    exam = partial(examine, speaker, judge, voices=cast.people, menu=cast.menu, each=cfg.each, seed=cfg.seed)
    metrics, played = exam(ear, asking.world)
    if cfg.without:
        world = replace(asking.world, digits=Digits(cast.spoken, (cfg.without,)))
        found, _ = exam(None, world, scripts=HEARD)
        metrics |= {f"stranger/{name}": value for name, value in found.items()}
    steps = {"encoder": cfg.hear_steps, "transcripts and reading aloud": cfg.main_steps, "conversations": cfg.sft_steps}
    others = {"began as": shipped(cfg.init)} if cfg.init else {}
    made = provenance(asking.origin, steps, metrics, others | {"shipped": shipped(WEIGHTS)}, init=cfg.init,
                      codec=cfg.codec, asked=f"{cfg.each} conversations a kind, drawn by seed {cfg.seed}")  # fmt: skip
    return Result(metrics, notes={"report": [*made, *samples(speaker, judge, played)]})


def evaluate(folder: Path) -> Result:
    """The same examination again, for a run or a saved model."""
    if (folder / "env.json").exists():
        cfg = Config(**Run.open(folder).config["config"])
    else:
        then = kept_from(folder)
        cfg = replace(TINY, seed=then["fold"], without=then["without"])
    cast = Cast.of("train", cfg.source, VOICE, cfg.seed % FOLDS, cfg.without)
    return measured(cfg, Speaker.load(folder), cast)


BASE = """# Step-Audio 2, tiny, before it learns to answer

Transcribes, reads aloud, does sums in writing. Trained on: {}.
"""
CARD = """# Step-Audio 2, tiny

Hears what is said, and answers in text or aloud, with {} tools, in a voice that it finds; its usual voice is {}.
`gamut run step_audio_2`: {}{} of encoder, adaptor, all of the decoder, conversations. Learned from: {}. Seed {}.

Held-out recordings ask, {} conversations a kind:

{}
"""


def plan(cfg: Config) -> dict[str, int | float]:
    """Parameters, memory and FLOPs, without building anything."""
    if cfg.init:
        return cost(described(model_folder(cfg.init)))
    return cost(asdict(model_config(cfg, PAPER_VOCAB if cfg.width == PAPER.width else 1572)))


CLAIMS = [
    Claim("word error rate on 1-6 held-out spoken digits <= 5 %", lambda r: r.metrics["digits/wer"] <= 0.05),
    Claim("spoken arithmetic is right in text >= 95 %", lambda r: r.metrics["arithmetic/text"] >= 0.95),
    Claim("and right aloud, as the judge hears it, >= 85 %", lambda r: r.metrics["arithmetic/aloud"] >= 0.85),
    Claim("the right one of four tools, or none, >= 90 % (requests are mostly in writing: see no_sound)",
          lambda r: r.metrics["tools/choice"] >= 0.90),
    Claim("the calculator is called exactly right >= 95 %", lambda r: r.metrics["calculator/exact"] >= 0.95),
    Claim("the voice that was asked for is recognised >= 85 %", lambda r: r.metrics["voice/recognised"] >= 0.85),
    Claim("what was said before is remembered >= 85 %", lambda r: r.metrics["memory/text"] >= 0.85),
    Claim("the drink of a held-out coffee order is right at least twice as often as the commonest drink",
          lambda r: r.metrics["order/drink"] >= 2 * r.metrics["order/drink/majority"]),
]
