"""A report on a speech model: where it comes from, how it does beside the shipped one, and what it sounds like."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gamut.data.spoken import RATE
from gamut.evals.judges import hear as judged
from gamut.evals.talks import Answer
from gamut.generate.speaker import Speaker
from gamut.io.report import Audio, Card, Columns, Heading, Mel, Table, Tokens
from gamut.models.judge import DigitJudge

MEASURED = "metrics.json"  # beside the weights: what they scored when they were saved


def provenance(origin: str, steps: Mapping[str, int], metrics: Mapping[str, float], shipped: Path) -> list[Any]:
    """What was learned in this run, in how many updates; what came ready made; scores beside those shipped."""
    ready = "shipped ready made, in weights/"
    rows = [(part, f"learned in this run: {count} updates, on: {origin}" if count else ready)
            for part, count in steps.items()]  # fmt: skip
    rows += [("codec and judge", ready), ("examination", "put together from recordings that no training saw")]
    blocks = [Heading("What was made when"), Table(("part", "made"), rows)]
    if (shipped / MEASURED).exists():
        theirs = json.loads((shipped / MEASURED).read_text())
        scores = [(name, f"{value:.3f}", f"{theirs.get(name, float('nan')):.3f}") for name, value in metrics.items()]
        blocks += [Heading("This run beside the shipped model", "What is in weights/, examined in the same way."),
                   Table(("score", "this run", "shipped"), scores)]  # fmt: skip
    return blocks


def samples(speaker: Speaker, judge: DigitJudge, answers: Sequence[Answer], count: int = 10) -> list:
    """Blocks of a report: questions and answers to listen to, taken evenly from all, right or wrong."""
    chosen = answers[:: max(1, len(answers) // count)][:count]
    cards = []
    for answer in chosen:
        heard = "".join(map(str, judged(judge, answer.wav)[0])) or "nothing"
        said = " ".join(map(str, answer.digits))
        strip = [(speaker.words.inner.id_to_token(i) or "", i, _kind(speaker, i)) for i in answer.ids]
        blocks = [Audio(f"question: {said}", answer.sound, RATE)]
        if len(answer.wav):
            mel = speaker.codec.mel(answer.wav[None])[0]
            blocks += [Audio(f"answer: {answer.text}, heard as {heard}", answer.wav, RATE),
                       Mel("mel of the answer", mel, len(answer.wav) / RATE)]  # fmt: skip
        cards.append(Card(f"{answer.task.prompt} → {answer.wanted}", [*blocks, Tokens("tokens", strip)]))
    return [Heading("Listen", "Held-out recordings ask; the answers are drawn evenly, right or wrong."), Columns(cards)]


def _kind(speaker: Speaker, id: int) -> str:
    first = speaker.words.id("<audio_0>")
    return "audio" if id >= first else "special" if id >= speaker.words.id("<|BOT|>") else "text"
