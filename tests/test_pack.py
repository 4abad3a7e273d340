"""Packing and buckets: nothing lost, nothing too long, little wasted; packed rows train as padded ones do."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gamut.data.pack import buckets, pack, packed, shuffled
from gamut.losses.next_token import next_token
from gamut.models.lm import LM, LMConfig

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=60)


@given(lengths=LENGTHS, room=st.integers(50, 120))
def test_pack_keeps_all_and_fills_rows(lengths, room):
    groups = pack(lengths, room)
    assert sorted(number for group in groups for number in group) == list(range(len(lengths)))
    sums = [sum(lengths[i] for i in group) for group in groups]
    assert max(sums) <= room and sum(total <= room / 2 for total in sums) <= 1  # two half-empty rows would be one


@given(lengths=LENGTHS, tokens=st.integers(50, 300))
def test_buckets_keep_all_within_the_budget(lengths, tokens):
    groups = buckets(lengths, tokens)
    assert sorted(number for group in groups for number in group) == list(range(len(lengths)))
    assert all(len(group) * max(lengths[i] for i in group) <= tokens for group in groups)
    order = [lengths[i] for group in groups for i in group]
    assert order == sorted(order)


def test_epochs_see_every_group_once_in_different_orders():
    batch = shuffled([[i] for i in range(20)], seed=3)
    epochs = [[batch(20 * epoch + i)[0] for i in range(20)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs) and epochs[0] != epochs[1] != epochs[2]
    assert [batch(i)[0] for i in range(20)] == epochs[0]  # a function of the index, whatever was asked before
    assert [shuffled([[i] for i in range(20)], seed=4)(i)[0] for i in range(20)] != epochs[0]


def test_packed_rows_by_hand():
    rows = packed([[[1, 2, 3], [4, 5]], [[6]]], room=6, pad=9)
    assert rows.ids_BT.tolist() == [[1, 2, 3, 4, 5, 9], [6, 9, 9, 9, 9, 9]]
    assert rows.segments_BT.tolist() == [[0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 1, 1]]
    assert rows.learn_BT.int().tolist() == [[0, 1, 1, 0, 1, 0], [0, 0, 0, 0, 0, 0]]


def test_packed_trains_as_padded_does():
    """The same loss and the same gradient, from half the tokens."""
    torch.manual_seed(0)
    model = LM(LMConfig(vocab=30, width=16, layers=2, heads=2, kv_heads=1, head_dim=8, ffn=32))
    documents = [torch.randint(1, 30, (n,)).tolist() for n in (9, 3, 4, 7, 2, 8)]
    groups = pack([len(d) for d in documents], room=12)
    rows = packed([[documents[i] for i in group] for group in groups], room=12)
    lone = packed([[document] for document in documents], room=9)
    assert rows.ids_BT.numel() == 36 and lone.ids_BT.numel() == 54
    losses, gradients = [], []
    for batch in (rows, lone):
        loss, _ = next_token(model(batch.ids_BT, segments_BT=batch.segments_BT), batch.ids_BT, batch.learn_BT)
        model.zero_grad()
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert torch.allclose(*gradients, atol=1e-6)


def test_documents_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="document 1 has 9 tokens, allowed are 1 to room=8; cut or drop it"):
        pack([3, 9], room=8)
    with pytest.raises(ValueError, match="document 0 has 0 tokens, allowed are 1 to tokens=8"):
        buckets([0], tokens=8)
    with pytest.raises(ValueError, match="no documents to group"):
        pack([], room=8)
    with pytest.raises(ValueError, match=r"row 0 holds more than room=3 tokens; group the documents with pack\(\)"):
        packed([[[1, 2], [3, 4]]], room=3)
