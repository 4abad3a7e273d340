"""Scores against numbers worked out by hand, and against jiwer."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gamut.evals.metrics import cer, edit_distance, error_rate, mel_distance, wer, words

WORD = st.sampled_from(["one", "two", "three", "four"])
TEXT = st.lists(WORD, min_size=1, max_size=8).map(" ".join)


def test_edit_distance_by_hand():
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance([], [1, 2]) == edit_distance([1, 2], []) == 2
    assert edit_distance(["a", "b"], ["b"]) == 1


@given(st.lists(st.tuples(TEXT, st.lists(WORD, max_size=8).map(" ".join)), min_size=1, max_size=4))
def test_word_error_rate_equals_jiwer(pairs):
    jiwer = pytest.importorskip("jiwer")
    wanted, got = zip(*pairs, strict=True)
    assert wer(wanted, got) == pytest.approx(jiwer.wer(list(wanted), list(got)))


def test_texts_are_compared_without_case_and_punctuation():
    assert words("It's 3.5, OK?") == ["its", "3", "5", "ok"]
    assert words("\N{FULLWIDTH DIGIT THREE} b") == ["3", "b"]
    assert wer(["Three, four!"], ["three four"]) == 0
    assert cer(["\u4f60\u597d\u3002"], ["\u4f60 \u574f"]) == 0.5
    assert error_rate([[1, 2]], [[1, 2, 3, 4, 5]]) == 1.5


@pytest.mark.parametrize("wanted, got", [(["a"], []), ([], []), (["?"], ["a"])])
def test_no_rate_without_references(wanted, got):
    with pytest.raises(ValueError, match="as many answers as references"):
        wer(wanted, got)


def test_mel_distance():
    wav = torch.randn(8000, generator=torch.Generator().manual_seed(0))
    assert mel_distance(wav, wav, 8000) == 0
    assert mel_distance(wav, wav * 0.5, 8000) == pytest.approx(0.6931, abs=1e-3)  # ln 2
    assert mel_distance(wav, torch.sin(torch.arange(8000) * 0.3), 8000) > 1
