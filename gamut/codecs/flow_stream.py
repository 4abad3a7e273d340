"""Step-Audio 2's flow piece by piece: each piece of tokens becomes mel frames once, within all that came before it.

B streams of a call, one a row · N tokens · T mel frames · M mel bins
A piece sees itself and the past, so the result is not the offline one; it depends on where the pieces end, never on
how a caller slices its calls (``FlowStream`` cuts the pieces). Source: fact sheet step_audio_2 §6.3; fixture
step_audio_2_flow.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gamut.codecs.flow import Flow, Voice, start
from gamut.nn.conformer import EncoderPast
from gamut.nn.conv_dit import Past


@dataclass(frozen=True)
class Rules:
    """How a stream is computed.

    Of a long stream the estimator remembers ``keep`` frames beside as many as the prompt has. As released, new keys lie
    in front of old ones and the cut takes the prompt's number from the front: what stays is the prompt, what directly
    followed it, and a little of the newest piece; the noise begins where memory ends, so later pieces share one.
    By that rule a voice without a prompt, which no release has, would remember its first frames for ever: it remembers
    its newest, and its noise runs on (ours).
    """

    steps: int
    guidance: float
    keep: int  # frames

    @classmethod
    def of(cls, flow: Flow, *, steps: int | None = None) -> "Rules":
        """Those of the flow's config. Raises ValueError for fewer than one step."""
        c = flow.config
        if steps is not None and steps < 1:
            raise ValueError(f"a solver needs at least 1 step, got {steps}; Step-Audio 2 takes 10")
        return cls(c.steps if steps is None else steps, c.guidance, c.keep)


@dataclass
class FlowState:
    """All that one stream has behind it; ``copy.deepcopy`` forks it, after a voice has been read say."""

    rules: Rules
    speaker_1M: Tensor
    encoder: EncoderPast
    solver: list[Past]  # one for each step
    prompt: int = 0  # frames
    frames: int = 0  # so far, the prompt's among them


@torch.no_grad()
def begin(flow: Flow, voice: Voice, rules: Rules, noise_MT: Float[Tensor, "M _"] | None = None) -> FlowState:
    """A stream that has read the voice's prompt. What the prompt's last tokens look ahead to is the prompt's own
    beginning, as released: what follows is not known yet."""
    c, like = flow.config, flow.project.weight
    voice.fitting(c.speaker, c.mels, c.factor)
    speaker_1M = flow.spoken_by(voice.speaker_S[None].to(like))
    solver = [Past(flow.estimator, 2, turned=not len(voice.ids_N)) for _ in range(rules.steps)]
    state = FlowState(rules, speaker_1M, EncoderPast(flow.encoder), solver)
    if len(voice.ids_N):
        ids_N = torch.cat([voice.ids_N, voice.ids_N.repeat(c.ahead)[: c.ahead]]).to(like.device)
        prompt_1TM = ((voice.mel_MT.T - c.mean) / c.std)[None].to(like)
        _piece(flow, [state], ids_N[None], False, prompt_1TM, noise_MT)
        state.prompt = state.frames
    return state


@torch.no_grad()
def advance(
    flow: Flow, states: Sequence[FlowState], ids_BN: Int[Tensor, "B N"], last: bool,
    noise_MT: Float[Tensor, "M _"] | None = None,
) -> Float[Tensor, "B M T"]:
    """The next piece of streams, one a row; their pasts may differ in length.

    Args:
        ids_BN: the piece and, unless it is the ``last``, ``config.ahead`` more tokens that are only looked at.
    Returns:
        ``factor`` mel frames per token of the piece.
    Raises:
        ValueError: streams with different rules, or a piece of no token.
    """
    c = flow.config
    if len({state.rules for state in states}) != 1 or len(states) != len(ids_BN):
        raise ValueError(f"rows of one call must be one stream each, all with the same rules; got {len(ids_BN)} rows "
                         f"and {len(states)} streams with {len({s.rules for s in states})} rules")
    new = ids_BN.shape[1] - (0 if last else c.ahead)
    if new < 1:
        raise ValueError(f"a piece needs at least 1 token, and {c.ahead} more unless it is the last; got "
                         f"{ids_BN.shape[1]} (last: {last})")
    prompt_BTM = flow.project.weight.new_zeros(len(states), new * c.factor, c.mels)
    x_BTM = _piece(flow, states, ids_BN.to(prompt_BTM.device), last, prompt_BTM, noise_MT)
    for state in states:
        for past in state.solver:
            past.cut(*((state.prompt, state.rules.keep) if state.prompt else (state.rules.keep, 0)))
    return x_BTM.transpose(1, 2) * c.std + c.mean


def _piece(flow: Flow, states: Sequence[FlowState], ids_BN: Tensor, last: bool, prompt_BTM: Tensor,
           noise_MT: Tensor | None) -> Tensor:  # fmt: skip
    (rules, *_), frames = [state.rules for state in states], prompt_BTM.shape[1]
    mu_BTM = flow.project(flow.encoder.advance(flow.embedded(ids_BN), [state.encoder for state in states], last))
    at = [state.solver[0].length if state.prompt else state.frames for state in states]
    x_BTM = torch.stack([start(noise_MT, mu_BTM.shape[-1], first, frames).T for first in at]).to(mu_BTM.device)
    conditions = mu_BTM, torch.cat([state.speaker_1M for state in states]), prompt_BTM
    pasts = list(zip(*(state.solver for state in states), strict=True))
    x_BTM = flow.solve(x_BTM, conditions, pasts=pasts, steps=rules.steps, guidance=rules.guidance)
    for state in states:
        state.frames += frames
    return x_BTM


class FlowStream:
    """Rows of streams in step that take tokens as they come and give mel frames a piece at a time.

    A piece leaves when its tokens and the ``ahead`` tokens after them are there; ``flush`` gives the rest as one piece.
    Frames add up to ``factor`` times the tokens.

    Args:
        chunk: tokens of a piece, or of the first, second ... piece, the last number for all that follow; None: the
            config's. A smaller first piece is heard sooner.
    """

    def __init__(
        self, flow: Flow, states: Sequence[FlowState], chunk: int | Sequence[int] | None = None,
        noise_MT: Float[Tensor, "M _"] | None = None,
    ):
        self.flow, self.states, self.noise_MT, self.done, self.broken = flow, list(states), noise_MT, 0, False
        self.chunks = (chunk or flow.config.chunk,) if isinstance(chunk, int | None) else tuple(chunk)
        if chunk == 0 or min(self.chunks, default=0) < 1 or not states:
            raise ValueError(f"a stream needs chunks of at least 1 token, and a row; got {chunk}, {len(states)}")
        self.ids_BN = torch.zeros(len(states), 0, dtype=torch.long)

    def decode(self, ids_BN: Int[Tensor, "B N"]) -> Float[Tensor, "B M T"]:
        """Take more tokens, return the frames that are ready (often none)."""
        return torch.cat(self.pieces(ids_BN), 2)

    def flush(self) -> Float[Tensor, "B M T"]:
        """The frames of the tokens still held back: those of a piece and ``ahead``, or fewer, or none."""
        return torch.cat(self.pieces(self.ids_BN[:, :0], end=True), 2)

    def pieces(self, ids_BN: Int[Tensor, "B N"], end: bool = False) -> list[Float[Tensor, "B M _"]]:
        """As ``decode``, and with ``end`` as ``flush`` behind it, piece by piece; the first of them is empty."""
        return together([self], [ids_BN], end)[0]

    def due(self, end: bool) -> tuple[int, bool] | None:
        """Tokens of the next piece with those it looks ahead at, and whether it is the last; None: not yet."""
        size = self.chunks[min(self.done, len(self.chunks) - 1)] + self.flow.config.ahead
        held = self.ids_BN.shape[1]
        return (size, False) if held >= size else (held, True) if end and held else None


def together(
    streams: Sequence[FlowStream], ids: Sequence[Int[Tensor, "_ _"]], end: bool = False
) -> list[list[Float[Tensor, "_ M _"]]]:
    """``pieces`` of streams that need not be in step: those whose next pieces have one length are computed as a batch.

    Returns:
        the pieces of each stream; the first of each is empty.
    Raises:
        ValueError: rows that a stream does not have, or an id out of range (no stream has then taken anything), or a
            stream that was interrupted inside a piece.
    """
    for stream, ids_BN in zip(streams, ids, strict=True):
        if len(ids_BN) != len(stream.states):
            raise ValueError(f"the stream has {len(stream.states)} rows, got tokens for {len(ids_BN)}")
        stream.flow.known(ids_BN)
    with unbroken(streams):
        return _together(streams, ids, end)


@contextmanager
def unbroken(streams: Sequence[Any]) -> Iterator[None]:
    """Streams that are ``broken`` once what is done with them here was cut short. Raises ValueError where one is."""
    if any(stream.broken for stream in streams):
        raise ValueError("a stream was interrupted in the middle of a piece, and what it remembers is half of it; open "
                         "another")
    for stream in streams:
        stream.broken = True
    yield
    for stream in streams:
        stream.broken = False


def _together(
    streams: Sequence[FlowStream], ids: Sequence[Int[Tensor, "_ _"]], end: bool
) -> list[list[Float[Tensor, "_ M _"]]]:
    made = []
    for stream, ids_BN in zip(streams, ids, strict=True):
        stream.ids_BN = torch.cat([stream.ids_BN, ids_BN.cpu()], 1)
        device, mels = stream.flow.project.weight.device, stream.flow.config.mels
        made.append([torch.zeros(len(stream.states), mels, 0, device=device)])
    while waiting := [(i, due) for i, stream in enumerate(streams) if (due := stream.due(end))]:
        first, (count, last) = waiting[0]
        like = streams[first]
        batch = [
            i for i, due in waiting
            if due == (count, last) and streams[i].flow is like.flow and streams[i].noise_MT is like.noise_MT
            and streams[i].states[0].rules == like.states[0].rules
        ]  # fmt: skip
        ids_BN = torch.cat([streams[i].ids_BN[:, :count] for i in batch])
        mel_BMT = advance(like.flow, [s for i in batch for s in streams[i].states], ids_BN, last, like.noise_MT)
        for i, mel in zip(batch, mel_BMT.split([len(streams[i].states) for i in batch]), strict=True):
            stream = streams[i]
            stream.ids_BN = stream.ids_BN[:, count if last else count - stream.flow.config.ahead :]
            stream.done += 1
            made[i].append(mel)
    return made
