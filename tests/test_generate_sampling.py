"""Choosing a token: frequencies against probabilities, filters and penalties against numbers worked out by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gamut.generate.sampling import Sampling, choose


def frequencies(sampling, logits, draws=4000):
    """Share of each id among independent draws."""
    rows = torch.tensor([logits] * draws)
    noise = [sampling.noise([1], copy) for copy in range(draws)]
    ids, _ = choose(rows, [sampling] * draws, [[1]] * draws, noise)
    return np.bincount(ids, minlength=len(logits)) / draws


LOGITS = [0.0, 1.0, 2.0, -1.0, 0.5]


@pytest.mark.parametrize(
    "sampling, change",
    [
        (Sampling(), lambda p: p),
        (Sampling(temperature=2.0), lambda p: p**0.5),
        (Sampling(top_k=2), lambda p: p * (p >= sorted(p)[-2])),
        (Sampling(top_p=0.7), lambda p: p * (p >= sorted(p)[-2])),  # 0.54, then 0.20: the second reaches 0.7
        (Sampling(top_p=0.5), lambda p: p * (p >= max(p))),
        (Sampling(top_k=3, top_p=0.8), lambda p: p * (p >= sorted(p)[-2])),
    ],
)
def test_frequencies_follow_the_filtered_distribution(sampling, change):
    p = np.exp(LOGITS) / np.exp(LOGITS).sum()
    want = change(p) / change(p).sum()
    got = frequencies(sampling, LOGITS)
    assert (got[want == 0] == 0).all() and np.abs(got - want).max() < 0.03


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits():
    greedy = Sampling(temperature=0.0, repetition_penalty=2.0)
    draw = [greedy.noise([0], 0)]
    assert choose(torch.tensor([[3.0, 2.0, 1.0]]), [greedy], [[0]], draw)[0] == [1]  # 1.5, 2, 1
    assert choose(torch.tensor([[-1.0, -1.5, -3.0]]), [greedy], [[0, 0]], draw)[0] == [1]  # -2, -1.5, -3
    assert choose(torch.tensor([[3.0, 2.0, 1.0]]), [greedy], [[0, 1, 2]], draw)[0] == [0]


def test_impossible_tokens_are_never_drawn():
    logits = [-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]
    got = frequencies(Sampling(), logits, 500)
    assert got[1] + got[3] == 1 and min(got[1], got[3]) > 0.3


def test_noise_depends_on_seed_prompt_and_copy():
    draws = {
        Sampling(seed=seed).noise(ids, copy).random()
        for seed, ids, copy in [(0, [1], 0), (1, [1], 0), (1 << 40, [1], 0), (0, [2], 0), (0, [1], 1), (0, [1, 0], 0)]
    }
    assert len(draws) == 6
    assert Sampling(seed=3).noise([1], 2).random() == Sampling(seed=3).noise([1], 2).random()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 6), st.floats(0.05, 1.0), st.floats(0.0, 3.0), st.integers(1, 6))
def test_a_row_is_chosen_alike_alone_and_in_company(seed, top_k, top_p, temperature, rows):
    mine = Sampling(seed=seed, top_k=top_k, top_p=top_p, temperature=temperature)
    kinds = [mine] + [Sampling(seed=r, top_k=r, top_p=1 - r / 9) for r in range(rows)]
    logits = torch.randn(rows + 1, 20, generator=torch.Generator().manual_seed(seed))
    together = choose(logits, kinds, [[1]] * (rows + 1), [k.noise([1], 0) for k in kinds])
    alone = choose(logits[:1], [mine], [[1]], [mine.noise([1], 0)])
    assert together[0][0] == alone[0][0] and together[1][0] == pytest.approx(alone[1][0], abs=1e-6)
