"""Run tables: column maps, what is refused, and the command that turns one into a page."""

import json

import numpy as np
import pytest

from gamut.plan import public, scaling_command
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
