"""FSQ: its digits, its gradient, its range."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gamut.nn.quantise import FSQ, VQ


@given(st.lists(st.integers(2, 9), min_size=1, max_size=4))
def test_every_id_comes_back(levels):
    """ids -> codes -> ids for the whole codebook: codes are fixed points of the rounding."""
    fsq = FSQ(levels)
    ids = torch.arange(fsq.vocab)[None]
    codes = fsq.ids_to_codes(ids)
    half = (fsq.levels - 1) * 0.5005
    shift = torch.where(fsq.levels % 2 == 0, 0.5, 0.0)
    latent = torch.atanh((codes * (fsq.levels // 2) + shift) / half) - torch.atanh(shift / half)
    again, found = fsq(latent)
    assert torch.equal(found, ids)
    assert torch.allclose(again, codes)
    assert codes.abs().max() <= 1


def test_hand_computed_codes():
    """Levels (3, 3): coordinates -1, 0, 1 each; the first digit is the fast one."""
    _, ids = FSQ((3, 3))(torch.tensor([[[-9.0, -9.0], [9.0, -9.0], [0.0, 0.0], [9.0, 9.0]]]))
    assert ids.tolist() == [[0, 2, 4, 8]]


def test_gradient_passes_straight_through():
    z = torch.zeros(1, 1, 2, requires_grad=True)
    FSQ((3, 5))(z)[0].sum().backward()
    assert torch.allclose(z.grad, torch.tensor([[[1.001, 2.002 / 2]]]), atol=1e-5)


def test_ids_outside_the_codebook_are_refused():
    with pytest.raises(ValueError, match=r"must lie in \[0, 9\), got 0..9"):
        FSQ((3, 3)).ids_to_codes(torch.tensor([[0, 9]]))
    with pytest.raises(ValueError, match="at least 2 levels"):
        FSQ((3, 1))
    with pytest.raises(ValueError, match=r"2 levels are not reached with a spread of 0\.4995.*a spread above 0\.5"):
        FSQ((3, 2), 0.4995)
    with pytest.raises(ValueError, match=r"a spread above 0\.166667"):
        FSQ((4,), 0.1)


def test_the_s3_tokenizers_thresholds():
    """round(0.999 tanh z): ±1 beyond |tanh z| = 0.5005, first digit the fast one (fact sheet §5)."""
    edge = torch.atanh(torch.tensor(0.5 / 0.9990000128746033))
    z = torch.stack([edge * 0.999, edge * 1.001, -edge * 1.001, torch.tensor(0.0)]).repeat(2)[None, None]
    codes, ids = FSQ((3,) * 8, 0.9990000128746033 / 2)(z)
    assert codes[0, 0].tolist() == [0, 1, -1, 0] * 2
    assert ids.item() == sum(d * 3**i for i, d in enumerate([1, 2, 0, 1] * 2))


def test_the_nearest_codeword_by_hand_and_its_gradient():
    vq = VQ(3, 2)
    vq.words.data = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-0.6, -0.8]])
    z = torch.tensor([[[5.0, 0.1], [0.1, 3.0], [-1.0, -1.0]]], requires_grad=True)
    codes, ids = vq(z)
    assert ids.tolist() == [[0, 1, 2]]  # inputs are scaled to length 1: (0.03, 1) lies 1.4 from word 0, 1.0 from word 1
    codes[0, 2].sum().backward()
    assert z.grad[0, :2].abs().sum() == 0 and z.grad[0, 2].isfinite().all()
    with pytest.raises(ValueError, match=r"must lie in \[0, 3\), got 0..3"):
        vq.ids_to_codes(torch.tensor([[0, 3]]))
