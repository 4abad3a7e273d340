"""Training of the judge of speakers: who of a few known people is heard, or nobody."""

import torch
import torch.nn.functional as F

from gamut.data.listening import speaker_batch
from gamut.data.load import Batches
from gamut.data.spoken import Digits
from gamut.io.runs import Run
from gamut.models.judge import DigitJudge, DigitJudgeConfig
from gamut.train import dist
from gamut.train.loop import fit
from gamut.train.optim import Optim


def train_speaker_judge(
    digits: Digits, run: Run | None, *, steps: int = 1200, batch: int = 32, lr: float = 3e-3, width: int = 64,
    seed: int = 0,
) -> DigitJudge:
    """The network of the digit judge with people as classes, trained frame by frame; ``config.names`` are the people.

    Ours. Cross entropy on frames rather than CTC: who speaks when is known, the strings being put together here.
    """
    torch.manual_seed(seed)
    names = tuple(digits.names)
    judge = DigitJudge(DigitJudgeConfig(width=width, classes=len(names), names=names)).to(dist.device())

    def step(data, phase: str):
        mel, labels = data
        logp = judge(mel)
        loss = F.nll_loss(logp.flatten(0, 1), labels.flatten(), ignore_index=-100)
        right = (logp.argmax(-1) == labels)[labels >= 0].float().mean()
        return loss, {"accuracy": right, "audio_s": mel.shape[0] * mel.shape[2] / 100}

    data = Batches(lambda index: speaker_batch(digits, names, batch, index, seed))
    optim = Optim(lr=lr, warmup=steps // 8, weight_decay=0.02)
    fit(step, judge, data, steps=steps, optim=optim, run=run, stage="speakerjudge", seed=seed, save_every=300)
    return judge.cpu().eval()
