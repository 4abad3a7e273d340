"""Turns that go on from the keys and values of the turns before: the same answers as from nothing, for less work."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gamut.generate.ar import Prompt, Stream, generate
from gamut.generate.past import Past
from gamut.generate.sampling import Sampling
from gamut.models.lm import LM, LMConfig

torch.manual_seed(0)
CONFIG = LMConfig(vocab=40, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=48, max_positions=600)
MODEL = LM(CONFIG).eval()
SIZES = []
MODEL.blocks[0].register_forward_pre_hook(lambda _, given: SIZES.append(given[0].shape[1]))  # ids run in a pass
GREEDY = Sampling(temperature=0.0, max_new=6)


def turns(seed: int, count: int) -> list[list[int]]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(40, (5 + 7 * k,), generator=draw).tolist() for k in range(count)]


@pytest.mark.parametrize("positions", ["rope", "sqrt_alibi"])
def test_a_conversation_with_a_past_is_one_without(positions):
    """Five turns, each behind all questions and answers before it: equal ids, log-probabilities to rounding."""
    torch.manual_seed(0)
    model = LM(LMConfig(**(vars(CONFIG) | {"positions": positions}))).eval()
    past, ids = Past(model), []
    for question in turns(1, 5):
        ids = ids + question
        [fresh] = generate(model, [ids], GREEDY)
        [kept] = generate(model, [Prompt(ids, past=past)], GREEDY)
        assert kept.ids == fresh.ids
        torch.testing.assert_close(torch.tensor(kept.logprobs), torch.tensor(fresh.logprobs), atol=1e-5, rtol=1e-5)
        assert past.ids == [*ids, *kept.ids[:-1]]  # the newest id was not run yet
        ids = ids + kept.ids


def test_only_what_is_new_is_run():
    """20 ids, then 30 of which 20 are those: 20 and 10; the third shares 12, is cut there and runs 8."""
    past, ids = Past(MODEL), [k % 40 for k in range(30)]
    for prompt, new in ((ids[:20], 20), (ids, 10), ([*ids[:12], *[39] * 8], 8), ([*ids[:12], *[39] * 8], 1)):
        SIZES.clear()
        generate(MODEL, [Prompt(prompt, past=past)], Sampling(temperature=0.0, max_new=1))
        assert SIZES == [new] and past.ids == prompt and past.cache.lengths == [len(prompt)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.lists(st.integers(0, 3), min_size=1, max_size=12)), min_size=2,
                max_size=5))  # fmt: skip
def test_wherever_the_next_prompt_parts_from_the_last(edits):
    """Cut somewhere, go on otherwise: the logits behind every prompt are those of a model that has no past."""
    past, ids = Past(MODEL), []
    for cut, more in edits:
        ids = ids[:cut] + more
        want = MODEL(torch.tensor([ids]))[0, -1].log_softmax(-1)
        held = past.ids
        kept = past.keep(ids)
        assert ids[:kept] == held[:kept] and (kept in (len(ids) - 1, len(held)) or ids[kept] != held[kept])
        [got] = generate(MODEL, [Prompt(ids, past=past)], Sampling(temperature=0.0, max_new=2))
        assert abs(got.logprobs[0] - want.max().item()) < 1e-5


def test_many_conversations_in_one_batch():
    """Three pasts of unlike length and one prompt without, in two rows, with embeddings for one."""
    pasts = [Past(MODEL) for _ in range(3)]
    first = turns(2, 4)
    generate(MODEL, [Prompt(ids, past=past) for ids, past in zip(first, pasts, strict=False)], GREEDY)
    then = [ids + more for ids, more in zip(first, turns(3, 4), strict=True)]
    prompts = [Prompt(ids, past=past) for ids, past in zip(then, [*pasts, None], strict=True)]
    kept = pasts[1].keep(then[1])
    assert kept == len(first[1])
    prompts[1] = Prompt(then[1], MODEL.embed(torch.tensor(then[1][kept:])), pasts[1])
    got = generate(MODEL, prompts, GREEDY, rows=2)
    assert [s.ids for s in got] == [s.ids for s in generate(MODEL, then, GREEDY)]
    assert [past.ids[:-5] for past in pasts] == then[:3]


def test_what_was_said_before_a_stop_is_kept():
    past, ids = Past(MODEL), turns(4, 1)[0]
    stream = Stream(MODEL, rows=1)
    [index] = stream.add(Prompt(ids, past=past), Sampling(temperature=0.0, max_new=50))
    said = [next(stream).id for _ in range(4)]
    stream.stop(index)
    assert past.ids == [*ids, *said[:3]]
    left = Stream(MODEL, rows=1)  # and one that nobody listens to any more leaves its prompt
    left.add(Prompt([*ids, 1], past=past), Sampling())
    next(left)
    assert past.ids == [*ids, 1]


def test_a_past_that_went_elsewhere_is_left_alone():
    """Whoever goes on last has it; the one before still answers right, one that has not begun is refused."""
    past, ids = Past(MODEL), turns(5, 2)
    first, second, late = (Stream(MODEL, rows=1) for _ in range(3))
    first.add(Prompt(ids[0], past=past), GREEDY)
    begun = next(first).id
    late.add(Prompt(ids[0], past=past), GREEDY)
    second.add(Prompt(ids[1], past=past), GREEDY)
    next(second)
    [want] = generate(MODEL, [ids[0]], GREEDY)
    assert [begun, *(token.id for token in first)] == want.ids and past.ids == ids[1]
    with pytest.raises(ValueError, match="used by two prompts at once; give each conversation its own"):
        next(late)
    with pytest.raises(ValueError, match=r"prompt\.past is that of another model"):
        second.add(Prompt(ids[1], past=Past(LM(CONFIG))))
    past.keep(ids[1])
    with pytest.raises(ValueError, match=r"embeds must be \(1, 32\), one per id that its past does not keep; got \(12"):
        second.add(Prompt(ids[1], torch.zeros(12, 32), past))
