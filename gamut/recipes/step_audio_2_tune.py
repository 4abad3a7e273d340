"""Step-Audio 2 fine-tuned (arXiv 2507.16632 §4.4): on your own conversations, by adapters or whole.

    gamut run step_audio_2 --data FOLDER                                 # the shipped tiny model, by adapters
    gamut run step_audio_2 --data FOLDER --init DIR --size small         # DIR: Step-Audio-2-mini; one GPU
    torchrun --nproc-per-node 8 -m gamut run step_audio_2 --data FOLDER --init DIR --size paper --accumulate 8  # whole
    gamut run step_audio_2_tune                                          # an example, made of real recordings

FOLDER holds sound files with transcripts.csv (columns file, text), or conversations.jsonl: turns with sound in and out,
tool calls, thoughts (gamut/data/own.py). Part of it is held out, examined while the model learns, and before and after
(its first 64 answers, the loss of its first 16 batches); the weights with the lowest loss there are kept.
runs/NAME/model then goes to `gamut chat` and `gamut export`, runs/NAME/adapter to anything that reads peft's layout.
DIR may be a folder that `gamut convert` wrote (with the codec, for spoken answers), a released one as it was
downloaded, or a run.
"""

import hashlib
import json
import warnings
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch

from gamut.codecs.prompts import TRANSCRIBE
from gamut.data.own import read_conversations
from gamut.data.own_example import example
from gamut.data.own_rows import Own
from gamut.evals import own as exam
from gamut.evals.claims import Claim, Result, facts
from gamut.io.env import has_bfloat16, model_folder
from gamut.io.files import atomic_write, sampled
from gamut.io.folders import tensor_files
from gamut.io.keys.step_audio_2 import described
from gamut.io.learners import gathered
from gamut.io.runs import Run
from gamut.io.tuned import save_tuned
from gamut.plan.omni import MINI, cost
from gamut.train import dist
from gamut.train.tuning import finetune, mean_loss, own_data


@dataclass(frozen=True)
class Config:
    """From what, on what, and how long it learns."""

    init: str = "weights/step_audio_2"  # ours; the model: a folder of ours, of a run, or released
    data: str = ""  # ours; folder or .jsonl to learn from; empty: an example, of real recordings
    check: str = ""  # ours; folder or .jsonl that is held out, instead of a share of the data
    share: float = 0.1  # ours; of the data, held out
    lora_rank: int = 16  # paper 0 (§4.4); of the adapters; 0 trains adaptor and decoder whole, as the paper does
    steps: int = 150  # not found in the paper (4B tokens, one epoch); updates
    tokens: int = 1024  # paper 16384 (§4.2); positions of a micro-batch
    accumulate: int = 1  # ours; micro-batches of an update, all processes together
    lr: float = 3e-3  # paper 1e-5 (§4.4); peak, it falls to a tenth
    every: int = 25  # ours; updates between examinations
    exam: int = 32  # ours; held-out conversations answered by an examination on the way, 0: loss alone
    packed: bool = True  # ours; several conversations in a row; otherwise a row each, beside its like
    checkpointing: bool = False  # ours; less memory for a second forward pass
    prompt: str = ""  # ours; asks for a transcript where data is clips and transcripts; empty: as released
    seed: int = 0  # ours


TINY = Config()
SMALL = replace(TINY, init="Step-Audio-2-mini", tokens=8192, lr=1e-4, every=100, checkpointing=True)
PAPER = replace(SMALL, lora_rank=0, tokens=16384, lr=1e-5)
LARGE, MOST = 10**9, 3e-4  # parameters from which a peak learning rate above this is pointed out


def checked(cfg: Config) -> None:
    """Raises ValueError for what no run can be made of, before anything is loaded."""
    wrong = {
        "steps must be 1 or more": cfg.steps < 1, "lora_rank must be 0 (the whole model) or more": cfg.lora_rank < 0,
        "exam must be 0 (the loss alone) or more": cfg.exam < 0, "every must be 0 or more": cfg.every < 0,
        "share must be at least 0 and below 1": not 0 <= cfg.share < 1,
        f"accumulate must be a multiple of the {dist.world()} processes": cfg.accumulate % dist.world() != 0,
    }  # fmt: skip
    for text, holds in wrong.items():
        if holds:
            raise ValueError(f"{text}; got {text.split()[0]}={getattr(cfg, text.split()[0])}")


def half() -> torch.dtype:
    """What weights that do not learn are kept in."""
    return torch.bfloat16 if has_bfloat16() else torch.float32


def data(cfg: Config, run: Run | None, speaker: exam.Pupil) -> tuple[Own, Own]:
    """What is trained on and what is held out (the same, where nothing can be held out)."""
    make = partial(Own, words=speaker.words, tokens=cfg.tokens, codec=speaker.codec, packed=cfg.packed,
                   level=speaker.level, context=speaker.model.config.lm.max_positions, seed=cfg.seed)  # fmt: skip
    if not cfg.data:
        home = (run.path if run else Path("runs")) / "data"
        if dist.rank() == 0:
            example(home / "train", "train", 500, cfg.seed)
            example(home / "check", "test", 100, cfg.seed)
        dist.gather(None)
        cfg = replace(cfg, data=str(home / "train"), check=str(home / "check"))
    talked = read_conversations(cfg.data, cfg.prompt or TRANSCRIBE)
    if cfg.check:
        return make(talked), make(read_conversations(cfg.check, cfg.prompt or TRANSCRIBE))
    train, held_out = own_data(talked, make, cfg.share, cfg.seed)
    return train, held_out or train


def same_data(train: Own, held_out: Own, run: Run, init: Path) -> None:
    """Raises ValueError where a resumed run does not find what it began with: weights (parts of their bytes), words,
    sizes of files."""
    told = json.dumps([[one.told for one in own.talked] for own in (train, held_out)])
    now = {"conversations": len(train.talked), "positions": sum(train.lengths),
           "sha256": hashlib.sha256(told.encode()).hexdigest(), "weights": sampled(tensor_files(init))}  # fmt: skip
    file = run.path / "data.json"
    then = json.loads(file.read_text()) if file.exists() else now
    if then.get("weights", now["weights"]) != now["weights"]:
        raise ValueError(f"the weights in '{init}' changed since this run began; put them back, or start a new run")
    if then | {"weights": now["weights"]} != now:
        raise ValueError(f"the data changed since this run began: {then['conversations']} conversations of "
                         f"{then['positions']} positions then, {now['conversations']} of {now['positions']} now, "
                         f"with other words or sounds, held out or not; put it back, or start a new run")  # fmt: skip
    if dist.rank() == 0:
        atomic_write(file, json.dumps(now))


def main(cfg: Config = TINY, run: Run | None = None) -> Result:
    dist.start()
    checked(cfg)
    init = model_folder(cfg.init)
    pupil = exam.Pupil.load(init, half() if cfg.lora_rank else None)
    model = pupil.model.to(dist.device()) if cfg.lora_rank else dist.shard(pupil.model, ["hidden"]).to(dist.device())
    if cfg.lr > MOST and sum(p.numel() for p in model.parameters()) > LARGE:
        warnings.warn(f"lr {cfg.lr:g} is for a tiny model; for one of this size --size small has 1e-4", stacklevel=1)
    train, held_out = data(cfg, run, pupil)
    if run is not None:
        same_data(train, held_out, run, init)
    with dist.gathered(model):
        before, start = exam.answered(model, held_out), mean_loss(model, held_out)
    finetune(
        model, train, held_out, run, steps=cfg.steps, lr=cfg.lr, rank=cfg.lora_rank, accumulate=cfg.accumulate,
        every=cfg.every, seed=cfg.seed, checkpointing=cfg.checkpointing,
        score=partial(exam.examined, model, held_out, cfg.exam) if cfg.exam else None,
    )  # fmt: skip
    with dist.gathered(model):
        after, end = exam.answered(model, held_out), mean_loss(model, held_out)
    metrics = {"loss": end, "loss/before": start} | exam.scored(after)
    metrics |= {f"{name}/before": value for name, value in exam.scored(before).items()}
    counts = [("conversations to learn from", len(train.talked)), ("positions of them", sum(train.lengths)),
              ("rows an epoch", train.batches), ("epochs", round(cfg.steps * cfg.accumulate / train.batches, 2)),
              ("conversations held out", 0 if held_out is train else len(held_out.talked))]  # fmt: skip
    tensors = gathered(model.state_dict())
    if run is not None and dist.rank() == 0:
        card = CARD.format(cfg.init, cfg.data or "an example", cfg.lora_rank, cfg.steps, cfg.seed, facts(metrics))
        files = exam.learned(train.talked, init)
        save_tuned(run.path / "model", "Omni", asdict(model.config), tensors, init, files, card)
    return Result(metrics, notes={"report": exam.report(counts, before, after)})


def evaluate(folder: Path) -> Result:
    """What a run made of its held-out conversations, again."""
    run = Run.open(folder)
    cfg = Config(**run.config["config"])
    pupil = exam.Pupil.load(run.path / "model", half())
    pupil.model.to(dist.device())
    _, held_out = data(cfg, run, pupil)
    answers = exam.answered(pupil.model, held_out)
    recorded = json.loads((run.path / "result.json").read_text())["metrics"]
    again = exam.scored(answers) | {"loss": mean_loss(pupil.model, held_out)}
    return Result(again | {name: value for name, value in recorded.items() if name.endswith("/before")})


CARD = """# A fine-tuned Step-Audio 2

Began as `{}`, learned from `{}`: adapters of rank {} (0: whole), {} updates, seed {}. On what was held out:

{}
"""


def plan(cfg: Config) -> dict[str, int | float]:
    """Parameters, bytes and FLOPs of the model at ``cfg.init``, of Step-Audio 2 mini where there is none."""
    init = model_folder(cfg.init)
    known = cfg.init == SMALL.init and not init.exists()
    return cost(MINI if known else described(init), cfg.tokens, cfg.lora_rank or 16)


CLAIMS = [
    Claim("the loss on what is held out is lower than before", lambda r: r.metrics["loss"] < r.metrics["loss/before"]),
    Claim("at least half of the held-out answers that were wrong as a whole are right",
          lambda r: 1 - r.metrics["exact"] <= (1 - r.metrics["exact/before"]) / 2),
]
