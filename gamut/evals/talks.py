"""Questions about spoken numbers put to a speech model, and what its answers are worth: beside them chance, the best
constant answer, the same questions without sound, and what the codec itself can carry."""

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from gamut.codecs.answer import parse_ta4, remember
from gamut.codecs.audio import MelCodec
from gamut.codecs.chat import ANSWER_SPEECH, ANSWER_TEXT, EOT, encode_chat
from gamut.codecs.mel import hear, pad_mels
from gamut.codecs.text import Tokenizer
from gamut.codecs.toolcall import parse_tool_calls
from gamut.codecs.weave import Marks
from gamut.data.spoken import RATE, TASKS, Digits, Task
from gamut.data.talks import call_arguments, question
from gamut.evals.judges import Sphinx
from gamut.evals.judges import hear as judged
from gamut.evals.metrics import error_rate
from gamut.generate.ar import Prompt, Sample, generate
from gamut.generate.sampling import Sampling
from gamut.generate.speaker import Speaker
from gamut.generate.tools import Toolbox, calculator
from gamut.io.progress import Progress, counting
from gamut.models.judge import DigitJudge
from gamut.models.omni import Omni

GREEDY = Sampling(temperature=0.0)
LONGEST = 120  # tokens of an answer: about four seconds of speech


@dataclass
class Answer:
    """One question and what became of it. ``text`` is what was written or, aloud, said beside the sound."""

    task: Task
    digits: tuple[int, ...]
    sound: Tensor
    wanted: str
    aloud: bool = False
    messages: list[dict[str, Any]] = field(default_factory=list)
    call: str = ""  # the tool call's arguments
    ids: list[int] = field(default_factory=list)
    text: str = ""
    wav: Tensor = field(default_factory=lambda: torch.zeros(0))

    @property
    def right(self) -> bool:
        return self.text == self.wanted


def answer_all(
    speaker: Speaker, answers: Sequence[Answer], sampling: Sampling = GREEDY, seen: Progress | None = None
) -> None:
    """Fill in the answers, many at once: a turn in text first where a tool is to be called, then the answer itself.

    ``seen`` is told of every turn that ends (``turns`` of them).
    """
    words, marks = speaker.words, Marks.of(speaker.words, speaker.codec.vocab)
    mels = [hear(answer.sound, RATE) for answer in answers]
    for answer, mel in zip(answers, mels, strict=True):
        answer.messages = question(answer.task, mel.shape[-1])
    asked = [i for i, answer in enumerate(answers) if answer.task.tool]
    for i, sample in zip(asked, _turn(speaker, answers, mels, asked, sampling, seen, first=True), strict=True):
        calls = parse_tool_calls(words.decode(sample.ids)).calls
        answers[i].call = calls[0].arguments if calls else ""
        answers[i].messages.append(remember(sample.ids, words))
        answers[i].messages += [result.message for result in speaker.tools.run(calls)]
    everyone = range(len(answers))
    samples = _turn(speaker, answers, mels, everyone, sampling, seen, first=False)
    for answer, sample in zip(answers, samples, strict=True):
        answer.ids = [i for i in sample.ids if i != words.id(EOT)]
        parts = parse_ta4(answer.ids, answer.aloud, marks)
        answer.text = words.decode(parts.text_ids if answer.aloud else parts.other_ids)
        if codes := marks.audio_codes(parts.audio_ids):
            answer.wav = speaker.codec.decode(torch.tensor([codes]))[0]


def _turn(
    speaker: Speaker, answers: Sequence[Answer], mels: list[Tensor], which: Sequence[int], sampling: Sampling,
    seen: Progress | None, *, first: bool,
) -> list[Sample]:
    prompts = []
    for i in which:
        answer = answers[i]
        prefill = ANSWER_SPEECH if answer.aloud and not first else ANSWER_TEXT
        schemas = speaker.tools.schemas if answer.task.tool else None
        ids = encode_chat(answer.messages, speaker.words, schemas, prefill=prefill, codes=speaker.codec.vocab)
        prompts.append(Prompt(ids, speaker.model.prompt(ids, *pad_mels([mels[i]]))))
    stop, lengths = speaker.words.id(EOT), Counter()

    def told(index: int, id: int, logprob: float) -> None:
        lengths[index] += 1
        if seen is not None and (id == stop or lengths[index] == LONGEST):
            seen.step()

    sampling = replace(sampling, max_new=LONGEST, stop=(stop,), logprobs=False)
    return generate(speaker.model.lm, prompts, sampling, on_token=told) if prompts else []


def turns(answers: Sequence[Answer]) -> int:
    """How many turns these answers take."""
    return sum(2 if answer.task.tool else 1 for answer in answers)


def questions(digits: Digits, each: int, seed: int, aloud: bool, tasks: Sequence[Task] = TASKS) -> list[Answer]:
    """``each`` questions per task, put together from these recordings."""
    rng = random.Random(f"questions {seed}")
    out = []
    for task in tasks:
        for _ in range(each):
            said = digits.say([rng.randrange(10) for _ in range(rng.choice(task.counts))], rng, vary=False)
            out.append(Answer(task, said.digits, said.wav, task.answer(said.digits), aloud))
    return out


TOOLS = Toolbox([calculator()])


def speaker_of(model: Omni, words: Tokenizer, codec: MelCodec) -> Speaker:
    """A trained model as one that can be asked, and knows what it was taught."""
    taught = {task.prompt: {"aloud": task != TASKS[0], "tools": bool(task.tool)} for task in TASKS}
    return Speaker(model.eval(), words, codec, TOOLS, taught)


def examine(
    speaker: Speaker, judge: DigitJudge, digits: Digits, voice: Digits, each: int = 50, seed: int = 0
) -> tuple[dict[str, float], list[Answer]]:
    """All scores, shares in [0, 1], and the answers given aloud.

    ``/no_sound``: the same model, the question silent. ``/constant``: the commonest right answer of each task, always.
    ``/ceiling``: the right answers said by held-out recordings of the voice, through the codec, to the same judge.
    """
    written = questions(digits, each, seed, aloud=False)
    silent = [replace(answer, sound=torch.zeros_like(answer.sound)) for answer in written]
    spoken = questions(digits, each, seed + 1, aloud=True, tasks=TASKS[1:])
    with counting("answers", turns([*written, *silent, *spoken])) as seen:
        answer_all(speaker, written, seen=seen)
        answer_all(speaker, silent, seen=seen)
        answer_all(speaker, spoken, Sampling(temperature=0.3, seed=seed), seen)
    metrics: dict[str, float] = {}
    transcripts, sums = _split(written)
    metrics["digits/wer"] = error_rate([a.wanted for a in transcripts], [a.text for a in transcripts])
    metrics["digits/wer/no_sound"] = error_rate([a.wanted for a in transcripts], [a.text for a in _split(silent)[0]])
    metrics["digits/wer/chance"] = 0.9  # as many digits as were said, each a guess
    metrics["arithmetic/text"] = _share(sums)
    metrics["arithmetic/text/no_sound"] = _share(_split(silent)[1])
    metrics["arithmetic/text/constant"] = _constant(sums)
    for task in TASKS[1:]:
        metrics[f"arithmetic/{task.name}"] = _share([answer for answer in sums if answer.task == task])
    called = [answer for answer in sums if answer.task.tool]
    exact = sum(json.loads(answer.call or "0") == call_arguments(answer.task, answer.digits) for answer in called)
    metrics["calculator/exact"] = exact / len(called)
    return metrics | _aloud(speaker.codec, judge, voice, spoken, seed), spoken


def _aloud(codec: MelCodec, judge: DigitJudge, voice: Digits, spoken: list[Answer], seed: int) -> dict[str, float]:
    rng = random.Random(f"ceiling {seed}")
    wanted = [[int(c) for c in answer.wanted] for answer in spoken]
    real = [voice.say(digits, rng, vary=False, gap=(0.04, 0.12)).wav for digits in wanted]
    ceiling = [codec.decode(codec.encode(wav[None]))[0] for wav in real]
    scores = {"arithmetic/aloud": [answer.wav for answer in spoken], "arithmetic/aloud/ceiling": ceiling,
              "arithmetic/aloud/recorded": real}  # fmt: skip
    out = {name: sum(judged(judge, wav)[0] == d for wav, d in zip(wavs, wanted, strict=True)) / len(spoken)
           for name, wavs in scores.items()}  # fmt: skip
    out["arithmetic/aloud/constant"] = _constant(spoken)
    out["arithmetic/spoken_text"] = _share(spoken)
    try:
        sphinx = Sphinx()
    except ImportError:
        return out
    for name, wavs in scores.items():
        asked = list(zip(wavs, wanted, strict=True))[::4]  # it is slow
        out[name.replace("aloud", "sphinx")] = sum(sphinx.hear(wav, len(d)) == d for wav, d in asked) / len(asked)
    return out


def _split(answers: Sequence[Answer]) -> tuple[list[Answer], list[Answer]]:
    return [a for a in answers if a.task == TASKS[0]], [a for a in answers if a.task != TASKS[0]]


def _share(answers: Sequence[Answer]) -> float:
    return sum(answer.right for answer in answers) / max(1, len(answers))


def _constant(answers: Sequence[Answer]) -> float:
    """What the commonest answer of each task would score: the best that can be done without listening."""
    by_task: dict[str, Counter] = {}
    for answer in answers:
        by_task.setdefault(answer.task.name, Counter())[answer.wanted] += 1
    return sum(max(counts.values()) for counts in by_task.values()) / len(answers)
