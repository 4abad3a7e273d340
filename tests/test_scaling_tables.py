"""Run tables: column maps, what is refused, and the command that turns one into a page."""

import json

import numpy as np
import pytest

from gamut.plan import public, scaling_command
from gamut.plan.fitting import doubts
from gamut.plan.scaling import fit
from gamut.plan.surface import CHINCHILLA, Surface, published
from gamut.plan.tables import ScalingTable


def csv(tmp_path, text: str):
    path = tmp_path / "runs.csv"
    path.write_text(text)
    return path


def test_columns_are_guessed_mapped_and_filtered(tmp_path):
    path = csv(tmp_path, "set,params,tokens,flops,val_loss,x\na,1e8,2e9,1.2e18,3.5,9\nb,2e8,4e9,4.8e18,3.2,8\n")
    table = ScalingTable.read(path, convention="total")
    assert table.N.tolist() == [1e8, 2e8] and table.loss.tolist() == [3.5, 3.2] and table.convention == "total"
    assert ScalingTable.read(path, loss="x", where={"set": "b"}).loss.tolist() == [8.0]
    assert np.allclose(ScalingTable.read(path, flops="flops").D, [2e9, 4e9])
    back = ScalingTable.read(table.write(tmp_path / "again.csv"))
    assert np.array_equal(back.N, table.N) and np.array_equal(back.loss, table.loss)


def test_parquet_reads_like_csv(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"N": [1e8, 2e8], "D": [2e9, 4e9], "loss": [3.5, 3.2]}), tmp_path / "runs.parquet")
    assert ScalingTable.read(tmp_path / "runs.parquet").D.tolist() == [2e9, 4e9]


@pytest.mark.parametrize(
    "text, match",
    [
        ("N,D,loss\n1e8,2e9,3\n1e8,4e9,-1\n", "loss = -1 in row 2 .* above 0"),
        ("N,D,loss\n1e8,2e9,nan\n", "loss = nan in row 1"),
        ("N,D,loss\n0,2e9,3\n", "N = 0 in row 1"),
        ("N,D,loss\n1e8,2e9,oops\n", "row 2, column loss: 'oops' is no number"),
        ("N,D,bleu\n1e8,2e9,3\n", "no column that looks like loss; it has: N, D, bleu; say which: --loss"),
        ("N,D,loss\n", "has no rows"),
    ],
)
def test_wrong_tables_name_row_and_column(tmp_path, text, match):
    with pytest.raises(ValueError, match=match):
        ScalingTable.read(csv(tmp_path, text))


def test_wrong_words_are_answered_with_the_right_ones(tmp_path):
    path = csv(tmp_path, "N,D,loss\n1e8,2e9,3\n")
    with pytest.raises(ValueError, match="unknown N convention 'all'; give one of: non-embedding"):
        ScalingTable.read(path, convention="all")
    with pytest.raises(ValueError, match="unknown unit of loss 'bits'; give one of: nats/token"):
        ScalingTable.read(path, unit="bits")
    with pytest.raises(ValueError, match="has no column 'los'"):
        ScalingTable.read(path, loss="los")
    with pytest.raises(ValueError, match="unknown column role 'los'"):
        ScalingTable.read(path, los="loss")
    with pytest.raises(ValueError, match=r"no row of .* is left"):
        ScalingTable.read(path, where={"N": "7"})
    with pytest.raises(ValueError, match="no file"):
        ScalingTable.read(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="every column needs a value a row"):
        ScalingTable([1e8, 2e8], [1e9], [3.0, 2.9])


def made(count: int = 40, noise: float = 3e-3, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    N = np.exp(rng.uniform(np.log(1e8), np.log(5e9), count))
    D = N * np.exp(rng.uniform(np.log(5), np.log(200), count))
    return N, D, published("chinchilla", CHINCHILLA).predict(N, D) * np.exp(noise * rng.standard_normal(count))


def quick(N, D, loss, law: str = "kappa") -> Surface:
    return fit(ScalingTable(N=N, D=D, loss=loss), law, draws=0, check=False)


def test_lists_columns_and_single_precision_are_all_numbers():
    N, D, loss = made()
    want = quick(N, D, loss).predict(1e10, 2e11)
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"N": N, "D": D, "loss": loss}, index=range(7, 47))
    ways = [
        (N.tolist(), D.tolist(), loss.tolist()),
        (frame.N, frame.D, frame.loss),
        (N[:, None], D[:, None], loss[:, None]),
    ]
    for way in ways:
        assert quick(*way).predict(1e10, 2e11) == want
    single = quick(*(v.astype(np.float32) for v in (N, D, loss)))
    assert np.isclose(single.predict(1e10, 2e11), want, rtol=1e-5)
    assert single.predict(frame.N, frame.D).shape == (40,) and single.predict(1e9, D[:4].reshape(2, 2)).shape == (2, 2)
    given = loss.copy()
    table = ScalingTable(N, D, loss)
    loss[0] = 9.0  # a caller's array stays the caller's
    assert table.loss[0] == given[0] and loss.flags.writeable


@pytest.mark.parametrize(
    "change, match",
    [
        ({"N": None}, r"column N .* got None; N, D and loss are all needed"),
        ({"N": ["1B"] * 40}, "column N of a ScalingTable must hold one number per run"),
        ({"D": made()[1] + 0j}, "complex128 values"),
        ({"loss": np.ones((20, 2))}, r"got an array of shape \(20, 2\)"),
        ({"N": made()[0] / 1e9}, "N of table is at most 4.9.*multiply by 1e6 or 1e9"),
        ({"D": made()[1] / 1e6}, "tokens per parameter; allowed: 0.0001 to 1e.07; are N and D in one unit"),
        ({"N": [], "D": [], "loss": []}, "table has no rows"),
        ({"aspect": np.zeros(40)}, "aspect = 0 in row 1"),
    ],
)
def test_wrong_columns_say_what_is_allowed(change, match):
    N, D, loss = made()
    with pytest.raises(ValueError, match=match):
        ScalingTable(**{"N": N, "D": D, "loss": loss, **change})


def test_wrong_calls_say_what_is_allowed():
    N, D, loss = made()
    table = ScalingTable(N, D, loss)
    for given, options, match in (
        ({"N": N}, {}, r"fit takes a ScalingTable\(N=..., D=..., loss=...\), got dict"),
        (table, {"seed": -1}, "seed must be a whole number at or above 0, got -1"),
        (table, {"draws": 2.5}, "draws must be a whole number"),
        (ScalingTable(N, D, np.full(40, 2.0)), {}, "every loss of table is 2: nothing to fit"),
        (table.take(slice(3)), {}, "table has 3 rows.*needs 5 rows"),
    ):
        with pytest.raises(ValueError, match=match):
            fit(given, **options)
    surface = quick(N, D, loss)
    for args, match in (
        ((7, 2e11), "N = 7, but the table's N begin at .*for 7 billion write 7e9"),
        ((N[:3], D[:2]), r"one shape, or one of them be a single number; got N \(3,\), D \(2,\)"),
        (("seven", 1e9), "N must be a number or an array of numbers, got 'seven'"),
        ((np.nan, 1e9), "N must be finite and above 0"),
    ):
        with pytest.raises(ValueError, match=match):
            surface.predict(*args)


@pytest.mark.parametrize(
    "change, match",
    [
        (lambda N, D, y: (D, N, y), "are the columns N and D swapped"),
        (lambda N, D, y: (N, D, 1 / y), "does not fall with compute"),
        (lambda N, D, y: (N / 1e6, D / 1e6, y), "if these are millions"),
        (lambda N, D, y: (N, D, 1000 * y), "a perplexity is fitted better as its log"),
        (lambda N, D, y: (np.r_[N, N], np.r_[D, D], np.r_[y, 1.05 * y]), "several recipes or data sets in one table"),
        (lambda N, D, y: (N, 0 * D + 1e10, y), "same token count, so the effect of D is taken from other tables"),
    ],
)
def test_odd_tables_are_doubted(change, match):
    assert any(match in note for note in doubts(ScalingTable(*change(*made()))))


def test_losses_of_any_size_are_fitted_alike():
    N, D, loss = made()
    want = quick(N, D, loss, "auto").predict(1e10, 2e11)
    for factor in (1e-4, 1e3):
        assert np.isclose(quick(N, D, factor * loss, "auto").predict(1e10, 2e11), factor * want, rtol=1e-3)


def test_equal_token_counts_are_no_end():
    """The effect of D comes from other tables' priors then; sizes still count."""
    N, _, _ = made(20)
    D = np.full(20, 2e10)
    loss = published("chinchilla", CHINCHILLA).predict(N, D)
    surface = quick(N, D, loss, "auto")
    assert np.abs(surface.predict(N, D) / loss - 1).max() < 0.01
    assert surface.predict(1e9, 4e11) < surface.predict(1e9, 2e10) < surface.predict(1e8, 2e10)


def test_a_hundred_thousand_rows_take_seconds_and_their_order_does_not_matter():
    N, D, loss = made(100_000)
    order = np.random.default_rng(1).permutation(len(N))
    surface = quick(N, D, loss, "kappa")
    assert surface.seen.rows == 100_000
    assert np.isclose(surface.predict(1e10, 2e11), published("chinchilla", CHINCHILLA).predict(1e10, 2e11), rtol=5e-3)
    assert quick(N[order], D[order], loss[order]).predict(1e10, 2e11) == surface.predict(1e10, 2e11)
    assert surface.predict(N, D).shape == (100_000,)


def test_every_topic_of_plan_has_a_main_and_a_page():
    import importlib

    from gamut.plan.topics import TOPICS, overview

    for name, topic in TOPICS.items():
        assert callable(importlib.import_module(topic.module).main) and topic.example.startswith(f"gamut plan {name} ")
        assert topic.example in overview()


def test_rows_are_filtered_from_the_command_line(tmp_path, capsys):
    N, D, loss = made(60)
    rows = [f"{'ab'[i % 2]},{n},{d},{y * (1 + i % 2)}" for i, (n, d, y) in enumerate(zip(N, D, loss, strict=True))]
    path = csv(tmp_path, "kind,N,D,loss\n" + "\n".join(rows) + "\n")
    told = {"target_n": 1e10, "target_d": 2e11, "law": "chinchilla", "out": tmp_path / "p.html"}
    scaling_command.main(path, where="kind=a", **told)
    said = capsys.readouterr().out
    assert "30 runs" in said and "loss 2.1" in said
    with pytest.raises(ValueError, match="--where takes COLUMN=VALUE, several joined by commas, got 'kind'"):
        scaling_command.main(path, where="kind", **told)
    with pytest.raises(ValueError, match="--target-n is a plain count of at least 1000, got 7; as 1e22 or 7e9"):
        scaling_command.main(path, **{**told, "target_n": 7})


@pytest.mark.parametrize("swap, match", [(False, "N and D are nearly collinear"), (True, "N and D swapped")])
def test_a_budget_without_an_optimum_says_what_is_odd_about_the_table(tmp_path, swap, match):
    N = np.geomspace(1e8, 3e9, 10)
    D = 20 * N * (1 + 0.01 * (-1) ** np.arange(10))
    table = ScalingTable(N=D if swap else N, D=N if swap else D, loss=1.7 + 400 / N**0.34 + 410 / D**0.28)
    with pytest.raises(ValueError, match=f"no compute-optimal point .* careful: .*{match}"):
        scaling_command.main(table.write(tmp_path / "line.csv"), target_flops=1e22, dn_range=(9e3, 1e4))


def test_public_tables_say_where_they_are_looked_for(monkeypatch):
    monkeypatch.delenv("GAMUT_DATA", raising=False)
    with pytest.raises(ValueError, match="set GAMUT_DATA"):
        public.olmo()


def test_the_command_writes_a_page_and_a_surface(tmp_path, capsys):
    N, D = (v.ravel() for v in np.meshgrid(np.geomspace(1e8, 3e9, 9), np.geomspace(2e9, 2e11, 6)))
    loss = published("chinchilla", CHINCHILLA).predict(N, D) * np.exp(
        2e-3 * np.random.default_rng(0).standard_normal(len(N))
    )
    path = ScalingTable(N, D, loss, name="made").write(tmp_path / "runs.csv")
    scaling_command.main(
        path, target_flops=1e22, out=tmp_path / "page.html", json=tmp_path / "surface.json", convention="total"
    )
    said = capsys.readouterr().out
    page = (tmp_path / "page.html").read_text()
    assert "80% interval" in said and said.strip().endswith("page.html")
    for words in ("The answer", "auto", "held out", "Tokens per parameter", "Five runs", "Step Law", "<circle"):
        assert words in page
    surface = Surface.from_json((tmp_path / "surface.json").read_text())
    best = surface.optimal(1e22)
    truth = published("chinchilla", CHINCHILLA).predict(best.N, best.D)
    assert (
        abs(float(surface.predict(best.N, best.D)) / truth - 1) < 0.02
        and json.loads(surface.to_json())["law"] == "auto"
    )
    with pytest.raises(ValueError, match="say what to predict: --target-flops"):
        scaling_command.main(path, out=tmp_path / "page.html")
