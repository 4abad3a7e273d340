"""A report on a speech model: where it comes from, how it does beside the shipped one, and what it sounds like."""

import json
import re
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from gamut.data.spoken import RATE
from gamut.data.voiced import speech_mel
from gamut.evals.conversations import Played
from gamut.evals.judges import hear as judged
from gamut.generate.speaker import Speaker
from gamut.io.report import Audio, Card, Columns, Heading, Mel, Table, Tokens
from gamut.models.judge import DigitJudge

BESIDE = "/(constant|chance|majority|no_sound|pauses|[0-9]+dB)$"  # told with the claims
MEASURED = "metrics.json"  # beside the weights: what they scored when they were saved


def provenance(
    origin: str, steps: Mapping[str, int], metrics: Mapping[str, float], others: Mapping[str, Path], *, init: str,
    codec: str, asked: str,
) -> list:
    """What was learned in this run, in how many updates; what was there before; scores beside those of other models.

    Args:
        others: column -> folder, whose scores were kept beside its weights.
        init: what the run began as; empty: nothing. asked: how many questions the examination has, and which.
    """
    rows = [(part, f"learned in this run: {count} updates, on: {origin}" if count else
             f"not in this run: as it lies in {init}" if init else "not learned") for part, count in steps.items()]
    rows += [(name, f"what lies in {folder.name}/; its scores are below") for name, folder in others.items()]
    rows += [("codec and judges", f"not in this run: as they lie in {codec}"),
             ("examination", f"recordings that no training saw; {asked}")]  # fmt: skip
    blocks = [Heading("What was made when"), Table(("part", "made"), rows)]
    theirs = {name: json.loads((folder / MEASURED).read_text()) for name, folder in others.items()
              if (folder / MEASURED).exists()}  # fmt: skip
    if theirs:
        scores = [(name, f"{value:.3f}", *(f"{their[name]:.3f}" if name in their else "" for their in theirs.values()))
                  for name, value in metrics.items() if not re.search(BESIDE, name)]  # fmt: skip
        how = f"Examined in the same way: this run by {asked}, the others as their cards say."
        blocks += [Heading("This run beside other models", how),
                   Table(("score", "this run", *theirs), scores)]  # fmt: skip
    return blocks


def samples(speaker: Speaker, judge: DigitJudge, played: Sequence[Played], count: int = 12) -> list:
    """Blocks of a report: turns to listen to, answered aloud, as many of every kind as fit; right or wrong."""
    by_kind: dict[str, list[Played]] = {}
    for one in played:
        if len(one.wav):
            by_kind.setdefault(one.turn.kind, []).append(one)
    rounds = zip_longest(*by_kind.values())
    chosen = [one for some in rounds for one in some if one is not None][:count]
    cards = []
    for one in chosen:
        turn, heard = one.turn, "".join(map(str, judged(judge, one.wav)[0])) or "nothing"
        strip = [(speaker.words.inner.id_to_token(i) or "", i, _kind(speaker, i)) for i in one.ids]
        blocks: list[Any] = [Audio("question", turn.wav, turn.rate)] if turn.wav is not None else []
        called = [(f"{call.name} {call.arguments}", result) for call, result in zip(one.calls, one.results)]  # noqa: B905
        blocks += [Table(("called", "told"), called)] if called else []
        mel = speech_mel(one.wav)
        blocks += [Audio(f"answer: {one.text}, heard as {heard}", one.wav, RATE),
                   Mel("mel of the answer", mel, len(one.wav) / RATE), Tokens("tokens", strip)]  # fmt: skip
        asked = " ".join(part for part in (one.dialogue.system, turn.request) if part)
        cards.append(Card(f"{asked} → {turn.answer}", blocks))
    return [Heading("Listen", "Held-out recordings ask; every kind of conversation in turn, right or wrong."),
            Columns(cards)]  # fmt: skip


def _kind(speaker: Speaker, id: int) -> str:
    first = speaker.words.id("<audio_0>")
    return "audio" if id >= first else "special" if id >= speaker.words.id("<|BOT|>") else "text"
