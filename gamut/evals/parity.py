"""Run parity fixtures: official weights and inputs through our modules, beside the official outputs.

    python -m gamut.evals.parity tests/golden               # every fixture of a folder
    python -m gamut.evals.parity qwen2_wide.safetensors --dump out/

A fixture's family is the longest family name that its file name begins with. Exit status: 0 when all that is built
passed, 1 when something did not, 2 for bad arguments. A family that is not built is no pass and no failure.
"""

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from safetensors.torch import save

from gamut.evals.fixtures import Fixture, Ours, Row, compare
from gamut.evals.parity_audio import run_encoder, run_frontends, run_step_audio_2
from gamut.evals.parity_flow import run_flow, run_flow_v1
from gamut.evals.parity_lm import run_qwen, run_step1
from gamut.evals.parity_text import run_ta4, run_tool_calls
from gamut.evals.parity_tokenizers import run_linguistic, run_s3
from gamut.evals.parity_vocoder import run_hift, run_hift_stream
from gamut.io.files import atomic_write

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Family:
    """How a family is run; tolerances by the beginning of an output's name ("" = any other); how its config looks."""

    run: Callable[[Fixture], Mapping[str, Ours | list]]
    tolerance: Mapping[str, float] = field(default_factory=lambda: {"": 1e-4})
    looks: Callable[[Config], bool] = lambda config: False


def _qwen(kind: str, tied: bool | None = None) -> Family:
    def looks(config: Config) -> bool:
        return config.get("model_type") == kind and tied in (None, bool(config.get("tie_word_embeddings")))

    return Family(run_qwen, looks=looks)


def _hift(c: Config, cumulative: bool = False) -> bool:
    return "upsample_rates" in c and (c["sampling_rate"] == 22050) == cumulative


FAMILIES = {
    "qwen2": _qwen("qwen2", tied=False),
    "qwen2_tied": _qwen("qwen2", tied=True),
    "qwen3": _qwen("qwen3"),
    "qwen2_moe": _qwen("qwen2_moe"),
    "qwen3_moe": _qwen("qwen3_moe"),
    "step1_lm": Family(run_step1, {"": 1e-4, "slopes.": 1e-6}, lambda c: "num_attention_groups" in c),
    "step_audio_2_lm": Family(run_step_audio_2, looks=lambda c: "audio_encoder_config" in c),
    "whisper_encoder": Family(run_encoder, looks=lambda c: c.get("model_type") == "whisper"),
    "qwen2_audio_encoder": Family(run_encoder, looks=lambda c: c.get("model_type") == "qwen2_audio_encoder"),
    "audio_frontends": Family(
        run_frontends, {"": 1e-4, "mel2": 1e-3, "fbank80": 1e-3, "resample": 1e-5}, lambda c: {"sa2", "mel24"} <= set(c)
    ),
    "s3_tokenizer_v2": Family(run_s3, looks=lambda c: "n_audio_layer" in c and "n_codebook_size" not in c),
    "s3_tokenizer_v1": Family(run_s3, looks=lambda c: "n_audio_layer" in c and "n_codebook_size" in c),
    "step_audio_2_flow": Family(run_flow, looks=lambda c: {"chunk_tokens", "estimator"} <= set(c)),
    "step_audio_flow": Family(run_flow_v1, looks=lambda c: {"input_frame_rate", "estimator"} <= set(c)),
    "hift_24k": Family(
        run_hift, {"": 1e-4, "f0": 5e-4, "source": 2e-3, "full.": 5e-3}, lambda c: _hift(c) and "mel_cache_len" not in c
    ),
    "hift_24k_stream": Family(run_hift_stream, {"": 64}, lambda c: _hift(c) and "mel_cache_len" in c),
    "hift_22k": Family(
        run_hift, {"": 1e-4, "f0": 5e-4, "source": 5e-4, "full.": 2e-3}, lambda c: _hift(c, cumulative=True)
    ),
    "sanm_linguistic_tokenizer": Family(
        run_linguistic, {"": 1e-3, "lfr_feats": 2e-3}, lambda c: "encoder_chunk_look_back" in c
    ),
    "step_audio_2_ta4": Family(run_ta4, looks=lambda c: {"build", "tokenizer"} <= set(c)),
    "step_audio_2_tool_calls": Family(run_tool_calls, looks=lambda c: {"complete", "stream_chunked"} <= set(c)),
}
NOT_BUILT = (
    "step_video_t2v_dit", "step_video_ti2v_dit", "step_video_vae",
    "step1x_3d_vae", "step1x_3d_vae_uniform", "step1x_3d_dit", "step1x_3d_dit_label", "step1x_3d_dit_proj",
    "step1x_3d_sampling", "step1x_3d_label", "step1x_3d_volume", "step1x_3d_mv_attention", "step1x_3d_t2i_adapter",
    "step1x_3d_snr_shift", "qwen2_5_vl", "dinov2_with_registers", "clip_vision", "bert",
)  # fmt: skip


@dataclass(frozen=True)
class Report:
    """What became of one file. ``state`` is PASS, FAIL, or the reason why nothing was compared."""

    path: Path
    family: str
    state: str
    rows: tuple[Row, ...] = ()
    problem: str = ""


def family_of(name: str) -> str | None:
    """The longest family name that ``name`` (a file's, without its ending) begins with, built or not."""
    known = [n for n in (*FAMILIES, *NOT_BUILT) if re.match(rf"{n}(?![a-zA-Z0-9])", name)]
    return max(known, key=len, default=None)


def check(path: str | Path, dump: str | Path | None = None) -> Report:
    """Run one fixture; with ``dump`` write our outputs there under the fixture's names."""
    path = Path(path)
    name = family_of(path.stem)
    if name in NOT_BUILT:
        return Report(path, name or "", "not built")
    try:
        fixture = Fixture.read(path)
        if name is None:
            alike = [n for n, family in FAMILIES.items() if family.looks(fixture.config)]
            if len(alike) != 1:
                return Report(path, "", "unknown", problem=f"its name begins with no family; its config fits {alike}")
            name = alike[0]
        with torch.no_grad():
            ours = FAMILIES[name].run(fixture)
        rows = _cases(fixture, ours) if path.suffix == ".json" else _outputs(fixture, ours, FAMILIES[name].tolerance)
        if dump is not None:
            _dump(Path(dump), fixture, ours)
    except Exception as error:  # whatever a family raises on a fixture is that fixture's failure; the others still run
        return Report(path, name or "", "FAIL", problem=f"{type(error).__name__}: {error}")
    return Report(path, name, "PASS" if rows and all(row.passed for row in rows) else "FAIL", tuple(rows))


def _outputs(fixture: Fixture, ours: Mapping[str, Any], tolerance: Mapping[str, float]) -> list[Row]:
    def allowed(name: str) -> float:
        return tolerance[max((start for start in tolerance if name.startswith(start)), key=len)]

    return [compare(name, ours.get(name), wanted, allowed(name)) for name, wanted in fixture.outputs.items()]


def _cases(fixture: Fixture, ours: Mapping[str, Any]) -> list[Row]:
    rows = []
    for name, cases in fixture.config.items():
        if isinstance(cases, list):
            got = ours.get(name, [None] * len(cases))
            wrong = [i for i, (a, b) in enumerate(zip(got, cases, strict=True)) if a != b]
            text = f"{len(cases) - len(wrong)} of {len(cases)} cases" + (f", not {wrong[:8]}" if wrong else "")
            rows.append(Row(name, text, "equal", not wrong))
    return rows


def _dump(folder: Path, fixture: Fixture, ours: Mapping[str, Any]) -> None:
    if fixture.path.suffix == ".json":
        atomic_write(folder / fixture.path.name, json.dumps(dict(ours), ensure_ascii=False, indent=1))
        return
    found = {name: wanted for name, wanted in fixture.outputs.items() if name in ours}
    tensors = {f"out.{name}": ours[name].value.to(wanted.dtype).contiguous() for name, wanted in found.items()}
    atomic_write(folder / fixture.path.name, save({name: tensor.clone() for name, tensor in tensors.items()}))


def files(paths: Sequence[Path]) -> list[Path]:
    """The fixtures that paths name: files as they are, of folders every .safetensors and .json.

    Raises:
        ValueError: a path that does not exist, or a folder without any.
    """
    found = []
    for path in paths:
        if not path.exists():
            raise ValueError(f"'{path}' not found; give fixture files, or folders of them")
        inside = sorted(f for f in path.iterdir() if f.suffix in (".safetensors", ".json")) if path.is_dir() else [path]
        if not inside:
            raise ValueError(f"'{path}' holds no .safetensors or .json; give the folder of the fixtures")
        found += inside
    return found


def show(report: Report) -> None:
    """Print one fixture: a line, and one per output."""
    print(f"{report.state:9} {report.path.name}" + (f"  ({report.family})" if report.family else ""))
    if report.problem:
        print(f"          {report.problem}")
    for row in report.rows:
        print(f"  {'ok' if row.passed else 'WRONG':5}   {row.name:24} {row.text:>16}   allowed {row.allowed}")


def main(
    paths: Annotated[tuple[Path, ...], tyro.conf.Positional],
    dump: Path | None = None,
    complete: bool = False,
) -> int:
    """Compare our modules with official ones on recorded fixtures.

    Args:
        paths: fixture files, or folders of them.
        dump: folder to write our outputs to, under the fixtures' names.
        complete: fail as well when a family that is built has no fixture among the files.
    """
    reports = []
    for path in files(paths):
        reports.append(check(path, dump))
        show(reports[-1])
    left_out = [n for n in FAMILIES if complete and n not in {report.family for report in reports}]
    if left_out:
        print(f"FAIL      no fixture of: {', '.join(left_out)}")
    count = {state: sum(r.state == state for r in reports) for state in ("PASS", "FAIL", "unknown", "not built")}
    print(f"{count['PASS']} passed, {count['FAIL']} failed, {count['unknown']} unknown, {count['not built']} not built")
    return int(bool(count["FAIL"] or count["unknown"] or left_out))


if __name__ == "__main__":
    try:
        sys.exit(tyro.cli(main))
    except ValueError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
