"""Training of a tokenizer: the loss by hand, labels where the digits lie, gradients through the codes, a short run."""

import random

import pytest
import torch

from gamut.codecs.s3_reader import S3Reader
from gamut.codecs.s3_tokenizer import S3Config, S3Tokenizer
from gamut.data.reading import strings
from gamut.data.sources import Clip
from gamut.data.spoken import Digits
from gamut.evals.tokens import probe, read_digits
from gamut.losses.tokenizer import tokenizer_loss
from gamut.train.tokenizing import train_tokenizer

TINY = S3Config(mels=32, width=32, layers=1, heads=2, ffn=64, levels=(3, 3, 3))


def tones(count: int = 40) -> Digits:
    """Recordings in which digit d is a tone of 300 · 1.28^d Hz: what a small tokenizer learns in seconds."""
    rng, clips = random.Random(0), []
    for i in range(count):
        at = torch.arange(rng.randint(1600, 3200)) / 8000
        wav = torch.sin(2 * torch.pi * 300 * 1.28 ** (i % 10) * at) * at.sub(at.mean()).abs().neg().exp()
        clips.append(Clip(wav, 8000, str(i % 10), f"speaker{i % 3}", labels={"digit": i % 10, "take": i}))
    return Digits(clips)


@pytest.fixture
def reader() -> S3Reader:
    torch.manual_seed(0)
    return S3Reader(S3Tokenizer(TINY), labels=10, layers=1)


def test_cross_entropy_and_room_by_hand():
    logits = torch.zeros(1, 3, 3)
    logits[0, 0, 1] = 2.0
    latent = torch.tensor([[[1.0], [3.0], [99.0]]])  # of the two that count: mean 2, deviation 1
    loss, stats = tokenizer_loss(logits, torch.tensor([[1, -100, 0]]), torch.tensor([2]), latent, room=0.5)
    wanted = -torch.tensor([0.0, 2.0, 0.0]).log_softmax(0)[1]
    torch.testing.assert_close(stats["read"], wanted)
    torch.testing.assert_close(stats["room"], torch.tensor(4.0))
    torch.testing.assert_close(loss, wanted + 2.0)
    assert stats["read_right"] == 1


def test_ctc_by_hand():
    """One symbol in two tokens of even odds: it comes by (s, s), (s, none) and (none, s), each with odds 1/9."""
    loss, stats = tokenizer_loss(torch.zeros(1, 4, 3), [[1]], torch.tensor([2]))
    torch.testing.assert_close(loss, -torch.tensor(3 / 9).log())
    assert set(stats) == {"read"}


def test_padding_does_not_count(reader):
    torch.manual_seed(1)
    mels, lens, labels = torch.randn(2, 32, 40), torch.tensor([40, 22]), torch.randint(0, 11, (2, 10))
    first = reader(mels, lens)
    mels[1, :, 22:], labels[1, 6:] = 9.0, 3
    again = reader(mels, lens)
    a, b = (tokenizer_loss(r.logits, labels, r.counts, r.latent)[0] for r in (first, again))
    torch.testing.assert_close(a, b)


def test_gradients_reach_the_first_convolution(reader):
    read = reader(torch.randn(2, 32, 40))
    tokenizer_loss(read.logits, [[1, 2], [3]], read.counts)[0].backward()  # through the rounding, without ``room``
    assert reader.tokenizer.conv1.weight.grad.abs().sum() > 0


def test_wrong_labels_are_named():
    logits, counts = torch.zeros(2, 4, 3), torch.tensor([4, 4])
    with pytest.raises(ValueError, match=r"must lie in 0\.\.2, got 0\.\.3"):
        tokenizer_loss(logits, torch.tensor([[0, 1, 2, 3]] * 2), counts)
    with pytest.raises(ValueError, match=r"symbols 0\.\.1 of each of 2 clips, got 2 clips with symbols \[0, 2\]"):
        tokenizer_loss(logits, [[0], [2]], counts)
    with pytest.raises(ValueError, match="got 1 clips"):
        tokenizer_loss(logits, [[0]], counts)


def test_labels_lie_where_the_digits_lie():
    read = strings(tones(), 6, 0, 0, mels=32)
    tokens = -(-read.lens // 4)
    assert read.mels.shape[1:] == (32, 4 * read.labels.shape[1]) and int(tokens.max()) <= read.labels.shape[1]
    for row, count, said in zip(read.labels, tokens.tolist(), read.said, strict=True):
        assert (row[count:] == -100).all() and (row[:count] >= 0).all() and row[0] in (10, said[0])
        heard = [label for label in row.tolist() if 0 <= label < 10]
        assert list(dict.fromkeys(heard)) == list(dict.fromkeys(said))
    assert torch.equal(strings(tones(), 6, 0, 0, mels=32).mels, read.mels)


def test_a_short_run_learns_to_read():
    torch.manual_seed(0)
    digits = tones()
    reader = S3Reader(S3Tokenizer(TINY), labels=10, layers=1)
    before = read_digits(reader.eval(), digits)["tokens/read"]
    tokenizer = train_tokenizer(reader.train(), lambda i: strings(digits, 8, i, 0, mels=32), steps=40, lr=5e-3)
    after = read_digits(reader, digits)
    assert not tokenizer.training and before < 0.2 and after["tokens/read"] >= 0.4 and after["tokens/codes"] >= 5
    assert probe(tokenizer, digits, digits, lambda d: d.digits, places=2) >= 0.4


def test_version_1_is_not_trained():
    config = S3Config(version=1, mels=32, width=32, layers=1, heads=2, ffn=64, codebook=30)
    with pytest.raises(ValueError, match="not trained: nothing teaches its codewords; train one of version 2"):
        train_tokenizer(S3Reader(S3Tokenizer(config), labels=10, layers=1), lambda index: None, steps=1)
