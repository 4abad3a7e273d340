"""Dense against mixtures: equal N, equal counted FLOPs, equal text, from shapes to claims; held-out load by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from gamut.data.characters import Corpus, encode
from gamut.evals.claims import Result, check
from gamut.io.runs import Run
from gamut.losses.balance import load
from gamut.recipes import moe_vs_dense
from gamut.recipes.moe_vs_dense import CLAIMS, PAPER, TINY, cells, config_of, measure, plan, shapes
from gamut.train.pretrain import measured_flops, sized

SMALL = replace(TINY, parameters=6e4, dense_tokens=1e3, rates=(0.27, 0.5), new_text=0.5, length=16, seeds=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("text")
    words = np.random.default_rng(0).choice(["one ", "two ", "three ", "six "], 40_000)
    (path / "a.txt").write_text("".join(words))
    return path


def test_contestants_share_parameters_and_measured_flops_and_mixtures_a_backbone():
    known = shapes(TINY)
    costs = {name: measured_flops(config_of(shape, TINY)) for name, shape in known.items()}
    for name, shape in known.items():
        config, mixture = config_of(shape, TINY), shape.layers - shape.dense_layers
        assert sized(config) == shape.parameters
        beside = shape.width * (TINY.vocab + (shape.experts + 1) * mixture)  # head, routers, gates of shared experts
        assert costs[name] == shape.flops(TINY.length) + 6 * beside, "torch counts what the equations say"
    assert max(s.parameters for s in known.values()) < 1.01 * min(s.parameters for s in known.values())
    assert len({(s.width, s.layers, s.heads, s.ffn) for name, s in known.items() if name != "dense"}) == 1
    assert [round(shape.activation_rate, 2) for shape in known.values()] == [1, 0.14, 0.2, 0.33, 0.48]
    spent = [cell.steps * cell.batch * costs[name.partition(",")[0]] for name, cell in cells(TINY, costs)]
    assert len(spent) == 18 and max(spent) < 1.005 * min(spent)


def test_large_products_are_counted_too():
    """In single precision some of them would run in a kernel that torch does not count."""
    config = config_of(shapes(replace(TINY, parameters=4e6, rates=(0.2,)))["dense"], TINY)
    attention = 12 * config.width * TINY.length * config.layers
    assert measured_flops(config) == 6 * (sized(config) + config.width * config.vocab) + attention


def test_paper_size_has_the_papers_shapes():
    """Table 10's first row: 16 layers of width 1408, 89 experts of which one is chosen, 5.41e11 tokens at 9.1e20."""
    assert shapes(PAPER)["0.087"].expert_ffn == 352
    found = plan(PAPER)
    assert (found["0.087: width"], found["0.087: layers"], found["0.087: experts"]) == (1408, 16, 89)
    assert abs(found["0.087: tokens"] / 5.41e11 - 1) < 0.05 and abs(found["0.2: epochs"] - 4.6) < 0.1
    for name in shapes(PAPER):
        assert abs(found[f"{name}: parameters N"] / 2.15e9 - 1) < 0.01
        assert 1.05 < found[f"{name}: built, with vocabulary"] / found[f"{name}: parameters N"] < 1.16


def test_from_text_to_claims_and_not_twice(tmp_path, folder):
    cfg, run = replace(SMALL, text=str(folder)), Run.create(tmp_path, "moe", {})
    result = moe_vs_dense.main(cfg, run)
    lines = [json.loads(line) for line in (run.path / "cells.jsonl").read_text().splitlines()]
    assert [(one.get("top_k", 0) > 0, one["unique"]) for one in lines] == [
        (False, 1000), (True, 1000), (True, 1000), (True, 0)
    ]  # fmt: skip
    assert lines[2]["D"] == lines[3]["D"] and lines[2]["loss"] != lines[3]["loss"]
    assert result.metrics["apart/N"] <= 0.02 and "reread" in result.metrics and "optimum" not in result.metrics
    page = "".join(block.html() for block in result.notes["report"])
    assert page.count("<circle") == 4 and "outside the rates tried" in page
    stamp = {path: path.stat().st_mtime_ns for path in (run.path / "checkpoints").rglob("*") if path.is_file()}
    again = moe_vs_dense.main(cfg, run)
    assert again.metrics == result.metrics and len((run.path / "cells.jsonl").read_text().splitlines()) == 4
    assert stamp == {path: path.stat().st_mtime_ns for path in (run.path / "checkpoints").rglob("*") if path.is_file()}


def test_the_rate_of_new_text_is_one_that_is_tried():
    with pytest.raises(ValueError, match=r"new_text must be one of the rates .* or 0; got 0.3"):
        moe_vs_dense.main(replace(SMALL, new_text=0.3))


def rows(*losses: float, D: float = 1e6, **more: float) -> list[dict[str, float]]:
    return [{"loss": loss, "N": 2e5, "D": D, "flops": 1e12, **more} for loss in losses]


def test_what_is_measured_by_hand():
    """Least loss at 20 % of four rates; the dense model is beaten by it with both seeds."""
    even = {"balance": 1.1, "busiest": 1.5, "dead": 0.0}
    groups = {"dense": rows(1.501, 1.50), "0.1": rows(1.6, 1.6, **even), "0.2": rows(1.40, 1.401, **even),
              "0.4": rows(1.6, 1.6, **even), "0.3": rows(1.5, 1.5, **(even | {"busiest": 4.0})),
              "0.2, new text": rows(1.39, 1.391, **even)}  # fmt: skip
    found = measure(groups, {"dense": 1.0, "0.1": 0.1, "0.2": 0.2, "0.4": 0.4, "0.3": 0.3})
    assert found["best/rate"] == 0.2 and found["best/gain"] == pytest.approx(0.1) and found["best/seeds"] == 1
    assert 0.18 < found["optimum"] < 0.25 and found["reread"] == pytest.approx(0.01)
    assert found["apart/N"] == found["apart/flops"] == 0 and found["busiest"] == 4 and found["dead"] == 0
    verdicts = [passed for _, passed in check(CLAIMS, Result(found))]
    assert verdicts == [True, True, True, True, False, True, True, True]


def test_without_an_optimum_or_new_text_their_claims_fail():
    even, rates = {"balance": 1.1, "busiest": 1.5, "dead": 0.0}, {f"{rate:g}": rate for rate in (0.1, 0.2, 0.3, 0.4)}
    groups = {name: rows(2 - rate, 2.001 - rate, **even) for name, rate in rates.items()}
    found = measure({"dense": rows(1.0, 1.001)} | groups, {"dense": 1.0} | rates)
    assert "optimum" not in found and "reread" not in found and found["best/gain"] == pytest.approx(-0.6)
    assert [passed for _, passed in check(CLAIMS, Result(found))] == [True] * 5 + [False] * 3


def test_load_by_hand():
    """Two of three experts a token: the third is never chosen."""
    logits_LNE = torch.tensor([[[2.0, 1, 0]] * 4, [[2.0, 1, 0]] * 2 + [[0.0, 1, 2]] * 2])
    assert load(logits_LNE, 2).tolist() == [[1.5, 1.5, 0], [0.75, 1.5, 0.75]]


def test_unique_text_is_spread_over_the_corpus():
    """With a tenth of the windows allowed, the last quarter of the text is among them."""
    corpus = Corpus(encode("".join(chr(33 + i // 100) for i in range(8000))), encode("x" * 200), "steps")
    seen = torch.cat([corpus.rows(i, 4, 10, 0, unique=800) for i in range(20)])
    assert len(seen.unique()) == 80
