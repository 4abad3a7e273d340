"""Step-Audio 2, tiny, five times, each without another fifth of the coffee orders, four without another person, too.

    python -m benchmarks.folds             # makes what is missing: one and a half to two hours of two cores each
    python -m benchmarks.folds --folds 3 4
    python -m benchmarks.folds --table     # only writes docs/conversations.md from what is known

A run lies in runs/fold-N; one that was stopped goes on. Each finished one is a line of results/
step_audio_2_folds.jsonl. Fold 0 is the recipe as it is, which knows everybody.
"""

import json
from pathlib import Path
from statistics import mean

import gamut
from benchmarks.record import RESULTS, parser
from dev.claims import finished
from dev.planning import markdown
from gamut.io.files import atomic_write

ROOT = Path(__file__).resolve().parent.parent
RECORD, PAGE = RESULTS / "step_audio_2_folds.jsonl", ROOT / "docs" / "conversations.md"
WITHOUT = {0: "", 1: "george", 2: "lucas", 3: "theo", 4: "yweweler"}  # fold, which is the seed too -> who is kept out
SCORES = {  # name -> what a reader calls it
    "digits/wer": "word error rate, 1-6 digits", "arithmetic/text": "arithmetic in text",
    "arithmetic/aloud": "arithmetic aloud", "tools/choice": "the right tool, or none",
    "calculator/exact": "calculator called exactly", "voice/recognised": "voice that was asked for",
    "memory/text": "what was said before",
}  # fmt: skip
ORDERS = {
    "order/drink": "drink", "order/drink/majority": "commonest drink", "order/slots": "all slots",
    "order/slots/majority": "commonest order",
}  # fmt: skip
SAID = ("tools/choice",)  # of which a stranger is asked too little to tell: only where one tool is right


def made(fold: int, out: Path) -> dict:
    """The line of one fold: trained, gone on with, or only read."""
    folder = out / f"fold-{fold}"
    if not (folder / "config.json").exists():
        gamut.run("step_audio_2", out=out, name=folder.name, seed=fold, without=WITHOUT[fold])
    elif not (folder / "result.json").exists():
        gamut.run(resume=folder)
    updates = json.loads((folder / "config.json").read_text())["config"]["sft_steps"]
    how = f"the recipe, {updates:,} updates of the last stage"
    return {"fold": fold, "without": WITHOUT[fold], "how": how, **finished(folder)}


def known() -> dict[int, dict]:
    """Fold -> its newest line."""
    lines = [json.loads(line) for line in RECORD.read_text().splitlines()] if RECORD.exists() else []
    return {line["fold"]: line for line in lines}


def table(names: dict[str, str], columns: list[tuple[str, dict[str, float]]]) -> list[str]:
    """Scores in percent, a column each."""
    rows = [["", *(head for head, _ in columns)]]
    for name, said in names.items():
        rows.append([said, *(f"{100 * metrics[name]:.1f}" for _, metrics in columns)])
    return markdown(rows)


def averaged(lines: list[dict]) -> list[tuple[str, dict[str, float]]]:
    """A column of means over those that were made as the first was, where there are several."""
    alike = [line for line in lines if line["how"] == lines[0]["how"]]
    names = [name for name in SCORES | ORDERS if all(name in line["metrics"] for line in alike)]
    head = "mean of " + ", ".join(str(line["fold"]) for line in alike)
    return [(head, {name: mean(line["metrics"][name] for line in alike) for name in names})] if len(alike) > 1 else []


def told(line: dict) -> str:
    left_out = f"; nothing by {line['without']} is learned from" if line["without"] else ""
    return f"{line['how']}{left_out} (commit {line['commit'][:7]}{', ' + line['note'] if 'note' in line else ''})"


def page() -> str:
    folds = known()
    columns = [(f"fold {fold}", folds[fold]["metrics"]) for fold in sorted(folds)]
    columns += averaged([folds[fold] for fold in sorted(folds)])
    strangers = [folds[fold] for fold in sorted(folds) if folds[fold]["without"]]
    lines = [
        "# Step-Audio 2, tiny, on what it has not heard", "",
        "Made by `python -m benchmarks.folds`. Shares are percent; questions are recordings 20 dB over noise that no "
        "training saw, the same examination as in the report of `gamut run step_audio_2`. Sizes, mixes and rates were "
        "chosen while looking at that of fold 0, so fold 0 flatters; the others were only ever measured.", "",
        "## Coffee orders over folds", "",
        f"{len(folds)} of 5 trainings, each without another fifth (106) of the 530 recorded orders. The set does not "
        "say who speaks, so one person may be on both sides. Seed = fold.", "",
        *(f"- fold {fold}: {told(folds[fold])}" for fold in sorted(folds)), "", *table(ORDERS, columns), "",
        "## The claims with every seed", "", *table(SCORES, columns), "",
    ]  # fmt: skip
    if strangers:
        both: dict[str, str] = {}
        for name, said in SCORES.items():
            if f"stranger/{name}" in strangers[0]["metrics"] and name not in SAID:
                both |= {name: f"{said}, people it knows", f"stranger/{name}": f"{said}, a stranger"}
        lines += [
            "## A speaker it has never heard", "",
            "Folds 1 to 4 leave out one of the six people each, too: nothing that this person says is learned from, by "
            "encoder or decoder (the codec that speaks is the shipped one, which knows all six). The first line of "
            "each pair asks in the voices of the other five, the second in the voice of that person alone.", "",
            *table(both, [(line["without"], line["metrics"]) for line in strangers]), "",
        ]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--folds", type=int, nargs="+", default=list(WITHOUT), choices=list(WITHOUT))
    arguments.add_argument("--out", type=Path, default=ROOT / "runs", help="folder of run folders")
    arguments.add_argument("--table", action="store_true", help="train nothing")
    asked = arguments.parse_args()
    for fold in [] if asked.table else asked.folds:
        if fold not in known():
            line = made(fold, asked.out)
            if not asked.dry:
                with open(RECORD, "a") as file:
                    file.write(json.dumps(line) + "\n")
    if asked.dry:
        print(page())
    else:
        atomic_write(PAGE, page())
        print(PAGE)


if __name__ == "__main__":
    main()
