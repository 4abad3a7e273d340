"""Training of an S3 tokenizer: as the first half of a recogniser that has to read through its tokens.

    tokenizer = S3Tokenizer(SMALL)
    reader = S3Reader(tokenizer, labels=10)
    train_tokenizer(reader, lambda index: strings(digits, 16, index, seed), run, steps=600)
    tokenizer.save_pretrained(folder)  # the reader has done its work
"""

from collections.abc import Callable

from gamut.codecs.s3_reader import S3Reader
from gamut.codecs.s3_tokenizer import S3Config, S3Tokenizer
from gamut.data.load import Batches
from gamut.data.reading import Read
from gamut.io.runs import Run
from gamut.losses.tokenizer import tokenizer_loss
from gamut.train.loop import fit
from gamut.train.optim import Optim

SMALL = S3Config(mels=80, width=128, layers=2, heads=4, ffn=512)  # half a million parameters; with the paper's codes


def train_tokenizer(
    reader: S3Reader, make: Callable[[int], Read], run: Run | None = None, *, steps: int, lr: float = 2e-3,
    seed: int = 0, aligned: bool = True,
) -> S3Tokenizer:
    """Train both halves, return the first in evaluation mode.

    Args:
        make: batch number index.
        aligned: learn from the labels of tokens; else by CTC from what is said, as one must where nobody knows when.
    Raises:
        ValueError: a tokenizer of version 1, whose codewords nothing here teaches.
    """
    if reader.tokenizer.config.version == 1:
        raise ValueError("an S3 tokenizer of version 1 can be loaded and used, not trained: nothing teaches its "
                         "codewords; train one of version 2 (FSQ), S3Config(version=2)")

    def step(batch: Read, phase: str):
        read = reader(batch.mels, batch.lens)
        loss, stats = tokenizer_loss(read.logits, batch.labels if aligned else batch.said, read.counts, read.latent)
        return loss, stats | {"audio_s": batch.mels.shape[0] * batch.mels.shape[2] / 100}

    optim = Optim(lr=lr, warmup=max(1, steps // 10), weight_decay=0.01, betas=(0.9, 0.98))
    fit(step, reader, Batches(make), steps=steps, optim=optim, run=run, stage="tokenizer", seed=seed, save_every=300)
    reader.eval()
    return reader.tokenizer
