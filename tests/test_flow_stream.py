"""Streams of Step-Audio 2's flow: the same however calls are cut, whoever shares the batch, up to what they hold."""

import copy

import pytest
import torch
from flows import flow, ids, voice
from hypothesis import given, settings
from hypothesis import strategies as st

from gamut.codecs.flow import Voice
from gamut.codecs.flow_stream import FlowStream, Rules, advance, begin, together
from gamut.nn.conformer import UpsamplingConformer
from gamut.nn.conv_dit import Past

MODEL = flow()
READ = begin(MODEL, voice(4), Rules.of(MODEL))  # a voice is read once and forked


def stream(chunk: int | tuple = 5, rows: int = 1) -> FlowStream:
    return FlowStream(MODEL, [copy.deepcopy(READ) for _ in range(rows)], chunk)


def streamed(row: torch.Tensor, cuts: list[int], **how) -> torch.Tensor:
    one = stream(**how)
    pieces = [one.decode(row[None, a:b]) for a, b in zip([0, *cuts], [*cuts, len(row)], strict=True)]
    return torch.cat([*pieces, one.flush()], 2)[0]


@settings(max_examples=12)
@given(st.integers(1, 30), st.integers(2, 6), st.data())
def test_how_calls_are_cut_does_not_matter(count, chunk, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, count), max_size=6)))
    row = ids(count, count)
    once = streamed(row, [], chunk=chunk)
    assert once.shape == (8, 2 * count)
    assert torch.equal(streamed(row, cuts, chunk=chunk), once)


def test_what_is_ready_leaves_and_nothing_twice():
    one = stream(chunk=5)
    sizes = [one.decode(ids(1, n)[None]).shape[-1] for n in range(14)]
    assert [n for n, size in enumerate(sizes) if size] == [7, 12] and sum(sizes) == 20  # 5 tokens and 3 ahead
    assert one.flush().shape[-1] == 8 and one.flush().shape[-1] == 0


def test_a_whole_utterance_as_one_piece_without_a_prompt_is_the_offline_one():
    """One piece cuts nothing off from what follows; causal convolutions and attention then give the offline mel."""
    row, plain = ids(9), Voice.of(torch.ones(6), 8)
    state = begin(MODEL, plain, Rules.of(MODEL))
    assert torch.allclose(advance(MODEL, [state], row[None], True)[0], MODEL.mels([row], [plain])[0], atol=1e-4)


def test_pieces_are_the_chunk_mask():
    """The streamed encoder is the offline one under a mask of the same chunks: training with it is training for it."""
    row, rows = ids(12), []
    state = begin(MODEL, Voice.of(torch.ones(6), 8), Rules.of(MODEL))
    for at in range(0, 12, 4):
        last = at == 8
        x = MODEL.embedded(row[None, at : at + (4 if last else 7)])
        rows.append(MODEL.project(MODEL.encoder.advance(x, [state.encoder], last)))
    assert torch.allclose(torch.cat(rows, 1), MODEL.mu(row[None], chunk=4), atol=2e-5)


def test_streams_of_one_batch_do_not_feel_each_other():
    """Also where they began at different times: one is 10 tokens ahead."""
    a, b = ids(35), ids(25, 1)
    alone = streamed(a, []), streamed(b, [])
    ahead, behind = stream(), stream()
    first = ahead.decode(a[None, :13])
    both = FlowStream(MODEL, [*ahead.states, *behind.states], 5)
    both.ids_BN = torch.stack([a[10:13], b[:3]])
    rest = torch.cat([both.decode(torch.stack([a[13:], b[3:]])), both.flush()], 2)
    assert torch.allclose(torch.cat([first[0], rest[0]], 1), alone[0], atol=5e-5)
    assert torch.allclose(rest[1], alone[1], atol=5e-5)


def test_streams_out_of_step_share_their_batches():
    """Three streams that are fed unevenly, one call for all: each gives what it gives alone."""
    rows, feeds = [ids(31), ids(18, 1), ids(25, 2)], [(9, 9, 13), (2, 15, 1), (20, 0, 5)]
    streams, made, at = [stream() for _ in rows], [[], [], []], [0, 0, 0]
    calls = []
    for turn in range(3):
        parts = [row[None, a : a + feed[turn]] for row, a, feed in zip(rows, at, feeds, strict=True)]
        at = [a + feed[turn] for a, feed in zip(at, feeds, strict=True)]
        calls.append(together(streams, parts))
    calls.append(together(streams, [row[None, :0] for row in rows], end=True))
    for k, row in enumerate(rows):
        made = torch.cat([piece for call in calls for piece in call[k]], 2)[0]
        assert torch.allclose(made, streamed(row, []), atol=5e-5)
    with pytest.raises(ValueError, match="the stream has 1 rows, got tokens for 2"):
        stream().decode(ids(4).expand(2, -1))


def test_a_bad_id_is_refused_before_any_stream_takes_anything():
    rows, streams = [ids(20), ids(20, 1)], [stream(), stream()]
    with pytest.raises(ValueError, match=r"must lie in \[0, 50\), got 0\.\.99"):
        together(streams, [rows[0][None], torch.tensor([[0, 99]])])
    made = together(streams, [row[None] for row in rows], end=True)
    for row, pieces in zip(rows, made, strict=True):
        assert torch.allclose(torch.cat(pieces, 2)[0], streamed(row, []), atol=5e-5)


def test_a_stream_that_was_interrupted_says_so(monkeypatch):
    """Half a piece is remembered: what would come is neither what was asked nor whole."""
    one, two, solve = stream(), stream(), MODEL.solve
    calls = iter(range(9))

    def stopped(*given, **more):
        if next(calls) == 1:
            raise KeyboardInterrupt
        return solve(*given, **more)

    monkeypatch.setattr(MODEL, "solve", stopped)
    with pytest.raises(KeyboardInterrupt):
        one.decode(ids(20)[None])
    with pytest.raises(ValueError, match="interrupted in the middle of a piece"):
        one.flush()
    assert torch.cat([two.decode(ids(20)[None]), two.flush()], 2).shape[-1] == 40


def test_a_smaller_first_piece_is_heard_sooner():
    one = stream(chunk=(2, 5))
    sizes = [one.decode(ids(1, n)[None]).shape[-1] for n in range(14)]
    assert [n for n, size in enumerate(sizes) if size] == [4, 9] and sum(sizes) == 14


def test_a_fork_leaves_the_voice_as_it_was():
    before = READ.solver[0].length
    assert torch.equal(streamed(ids(20), []), streamed(ids(20), [])) and READ.solver[0].length == before == 8


def remembered(turned: bool, pieces: tuple[int, ...], front: int, back: int) -> list[int]:
    past, at = Past(MODEL.estimator, 2, turned), 0
    for size in pieces:
        past.begin(size)
        frames = torch.arange(at, at + float(size))[:, None].expand(2, 2, size, 8)
        past.put(0, frames, frames)
        past.cut(front, back)
        at += size
    return past.kv_L2RHSC[0, 0, 0, 0, past.first :, 0].int().tolist()


def test_what_a_long_stream_remembers():
    """As released the newest piece's front and the oldest frames; without a prompt the newest, however pieces fall."""
    assert remembered(False, (4, 4, 4), 4, 6) == [8, 9, 10, 11, 6, 7, 0, 1, 2, 3]
    assert remembered(True, (6, 6, 6, 6), 10, 0) == [23, 22, 21, 20, 19, 18, 17, 16, 15, 14]
    assert remembered(True, (6, 16), 10, 0) == [*range(21, 11, -1)]
    one, plain = stream(), FlowStream(MODEL, [begin(MODEL, Voice.of(torch.ones(6), 8), Rules.of(MODEL))], 5)
    for some, length in ((one, 8 + MODEL.config.keep), (plain, MODEL.config.keep)):
        some.decode(ids(60)[None])
        assert some.states[0].solver[0].length == length and some.states[0].solver[0].turned is (some is plain)


def test_short_prompts_and_no_prompt():
    for spoken in (voice(1), voice(2), Voice.of(torch.ones(6), 8)):
        one = FlowStream(MODEL, [begin(MODEL, spoken, Rules.of(MODEL))], 5)
        assert torch.cat([one.decode(ids(9)[None]), one.flush()], 2).shape == (1, 8, 18)
    silent = stream()
    assert silent.flush().shape == (1, 8, 0)


def test_what_a_stream_refuses():
    with pytest.raises(ValueError, match="chunks of at least 1 token, and a row; got 0, 1"):
        stream(chunk=0)
    with pytest.raises(ValueError, match="a piece needs at least 1 token, and 3 more unless it is the last; got 3"):
        advance(MODEL, stream().states, ids(3)[None], False)
    with pytest.raises(ValueError, match="2 streams with 2 rules"):
        other = begin(MODEL, voice(4), Rules.of(MODEL, steps=1 + MODEL.config.steps))
        advance(MODEL, [*stream().states, other], ids(9).expand(2, -1), False)
    with pytest.raises(ValueError, match="at least 1 step, got 0"):
        Rules.of(MODEL, steps=0)


def test_released_sizes_need_no_buffer_of_the_reference():
    """The reference fails beyond 1000 frames or 16 layers; here the past grows."""
    encoder = UpsamplingConformer(6, 16, 1, 1, 2, 24)
    assert encoder(torch.randn(1, 600, 6)).shape == (1, 1200, 16)
    one = begin(MODEL, voice(520), Rules.of(MODEL, steps=1))
    assert one.solver[0].length == 1040
