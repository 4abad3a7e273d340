"""How well speech can be read from tokens, by the reader they were trained with and by a linear probe."""

from collections.abc import Callable

import torch
from torch import Tensor

from gamut.codecs.mel import WHISPER_RATE, whisper_mel
from gamut.codecs.s3_reader import S3Reader
from gamut.codecs.s3_tokenizer import S3Tokenizer
from gamut.data.spoken import RATE, Digits
from gamut.io.media import resample


@torch.no_grad()
def read_digits(reader: S3Reader, digits: Digits) -> dict[str, float]:
    """Recordings of one digit each, read by the reader: the digit that its tokens say most.

    Returns:
        ``tokens/read``: share that is right; ``tokens/codes``: codes in use.
    """
    right, used = 0, set()
    for wav, digit in zip(digits.wavs, digits.digits, strict=True):
        mel = whisper_mel(resample(wav, RATE, WHISPER_RATE), reader.tokenizer.config.mels)
        read = reader(mel[None])
        used |= set(read.ids[0].tolist())
        right += int(read.logits[0].softmax(-1)[:, :-1].sum(0).argmax()) == digit
    return {"tokens/read": right / len(digits), "tokens/codes": float(len(used))}


def probe(
    tokenizer: S3Tokenizer, train: Digits, test: Digits, of: Callable[[Digits], list], places: int = 8
) -> float:
    """Share of test clips whose property a linear classifier tells from their codes at ``places`` moments.

    Args:
        of: the property of every clip of a set: ``lambda d: d.digits``, ``lambda d: d.speakers``.
    """
    names = sorted(set(of(train)))
    x, y = _codes(tokenizer, train, places), torch.tensor([names.index(value) for value in of(train)])
    weight = torch.zeros(x.shape[1], len(names), requires_grad=True)
    optim = torch.optim.LBFGS([weight], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optim.zero_grad()
        value = torch.nn.functional.cross_entropy(x @ weight, y) + 1e-3 * weight.square().sum()
        value.backward()
        return value

    optim.step(loss)
    guess = (_codes(tokenizer, test, places) @ weight).argmax(-1).tolist()
    return sum(names[i] == value for i, value in zip(guess, of(test), strict=True)) / len(test)


@torch.no_grad()
def _codes(tokenizer: S3Tokenizer, digits: Digits, places: int) -> Tensor:
    rows = []
    for wav in digits.wavs:
        codes = tokenizer(whisper_mel(resample(wav, RATE, WHISPER_RATE), tokenizer.config.mels)[None])[0]
        rows.append(torch.nn.functional.interpolate(codes.transpose(1, 2), places, mode="linear")[0].flatten())
    return torch.nn.functional.pad(torch.stack(rows), (0, 1), value=1.0)
