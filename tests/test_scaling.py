"""Scaling laws: derivatives, published constants, hold-outs, round trips. Others' tables are read from $GAMUT_DATA."""

import math
import os
import re
import warnings

import numpy as np
import pytest

from gamut.plan import public
from gamut.plan.compare import advise, compare
from gamut.plan.fitting import RIDGE, doubts, fit_theta, prepare, rerun_noise
from gamut.plan.holdout import largest_sizes, percent, standard, top_compute
from gamut.plan.laws import LAWS, Runs, farseer_constants, farseer_theta
from gamut.plan.piecewise import piecewise
from gamut.plan.rules import all_rules, step_law
from gamut.plan.scaling import ScalingTable, compare_laws, fit
from gamut.plan.surface import CHINCHILLA, FARSEER, Surface, published

needs_tables = pytest.mark.skipif(
    not os.environ.get("GAMUT_DATA"), reason="reads published run tables: set GAMUT_DATA to the data folder"
)
# OLMo 2 ladder (allenai/OLMo-ladder, Apache-2.0), loss on C4: (N, losses at 10, 20, 20 again, 40, 100 and 200 tokens
# per parameter)
OLMO = (
    (190354176, (3.747477, 3.599919, 3.600973, 3.496522, 3.390454, 3.336689)),
    (371262464, (3.531852, 3.394845, 3.394256, 3.287907, 3.188007, 3.132577)),
    (758220288, (3.331524, 3.201113, 3.202027, 3.104255, 3.004539, 2.954929)),
    (1279395840, (3.182976, 3.063538, 3.063071, 2.971169, 2.878463, 2.832282)),
    (3169537280, (2.994955, 2.873722, 2.874346, 2.787972, 2.705716, 2.664399)),
)
# Farseer's grid (arXiv 2506.10972, Table 4): N, token counts, first token count in 1e9; each next one is sqrt(2)
# times more
GRID = (
    (201228288, 17, 1.41), (239005312, 18, 1.19), (284207616, 18, 1.00), (336994944, 18, 1.19), (397772800, 17, 1.41),
    (476931840, 18, 1.19), (568468736, 18, 1.00), (676012032, 18, 1.19), (798470400, 18, 1.41), (956354688, 18, 1.19),
    (1125938688, 18, 1.00), (1338278400, 18, 1.19), (1608122368, 17, 1.41), (1911894528, 17, 1.19),
    (2273495040, 14, 1.41),
    (2697992704, 15, 1.68), (3184435200, 13, 2.00), (3816352512, 13, 2.38), (4504118400, 12, 2.00),
    (5354047488, 11, 3.36),
    (6369572352, 11, 2.00),
)  # fmt: skip
THETA = {
    "chinchilla": [0.5, -0.4, -0.3, 0.35, 0.37],
    "kappa": [0.5, -0.4, -0.3, 0.35, 0.37, -0.7],
    "farseer": [-1, -0.1, 0.12, -0.5, -0.2, -0.1, 0.3, -0.05, 0.17],
    "repeated": [0.5, -0.4, -0.3, 0.35, 0.37, 2.0, 1.0],
}


def olmo() -> ScalingTable:
    N = np.repeat([float(n) for n, _ in OLMO], 6)
    D = N * np.tile([10, 20, 20, 40, 100, 200], 5)
    return ScalingTable(
        N, D, [loss for _, row in OLMO for loss in row], convention="no input embedding", name="OLMo ladder"
    )


def farseer_grid(noise: float = 1e-3) -> ScalingTable:
    N = np.repeat([float(n) for n, _, _ in GRID], [count for _, count, _ in GRID])
    D = np.concatenate([start * 1e9 * 2 ** (np.arange(count) / 2) for _, count, start in GRID])
    loss = published("farseer", FARSEER).predict(N, D)
    loss = loss * np.exp(noise * np.random.default_rng(0).standard_normal(len(N)))
    return ScalingTable(N, D, loss, convention="non-embedding", unit="bits/character", name="Farseer's surface")


def runs(count: int = 9) -> Runs:
    rng = np.random.default_rng(0)
    return Runs(
        rng.normal(size=count), rng.normal(size=count), (20.0, 23.0), np.array([1.0, 1, 1, 2, 4, 8, 1.3, 1, 3][:count])
    )


@pytest.mark.parametrize("name", LAWS)
def test_derivatives_are_those_of_finite_differences(name):
    law, theta, at, h = LAWS[name], np.array([THETA[name]], dtype=float), runs(), 1e-6
    _, jac, by_x, by_y = law.terms(theta, at)
    for p, unit in enumerate(np.eye(theta.shape[1])):
        slope = (law.terms(theta + h * unit, at)[0] - law.terms(theta - h * unit, at)[0]) / (2 * h)
        assert np.allclose(slope, jac[:, :, p], atol=1e-7)
    for axis, found in (("x", by_x), ("y", by_y)):
        moved = [Runs(**{**vars(at), axis: getattr(at, axis) + step}) for step in (h, -h)]
        slope = (law.terms(theta, moved[0])[0] - law.terms(theta, moved[1])[0]) / (2 * h)
        assert np.allclose(slope, found, atol=1e-7)


def test_kappa_one_is_chinchilla_and_one_epoch_is_no_repetition():
    at = Runs(runs().x, runs().y, (20.0, 23.0))
    five = np.array([THETA["chinchilla"]])
    plain = LAWS["chinchilla"].terms(five, at)[0]
    assert np.allclose(LAWS["kappa"].terms(np.c_[five, [[0.0]]], at)[0], plain)
    assert np.allclose(
        LAWS["repeated"].terms(np.c_[five, [[2.0, 30.0]]], at)[0], plain
    )  # R_N large: no excess parameters


def test_farseer_constants_go_to_parameters_and_back():
    centre = (20.5, 24.0)
    back = farseer_constants(farseer_theta(FARSEER, centre), centre)
    assert all(math.isclose(back[name], value, rel_tol=1e-9) for name, value in FARSEER.items())


def test_farseer_surface_reads_like_figure_2():
    """Sheet section 1: the digitised curve at N = 6.37e9, within the 0.16% that de-rounding left."""
    D = np.array([2.00, 2.83, 4.00, 5.66, 8.00, 11.3, 32.0, 45.3, 90.5]) * 1e9
    curve = np.array([0.6017, 0.5842, 0.5677, 0.5526, 0.5384, 0.5253, 0.4905, 0.4811, 0.4636])
    assert np.abs(published("farseer", FARSEER).predict(6369572352, D) / curve - 1).max() < 0.0017


@pytest.mark.parametrize("log_c, ratio", [(19.8, 26), (20.55, 25), (21.05, 27), (22.05, 42), (23.05, 88), (24.05, 237)])
def test_farseer_optimal_ratio_follows_figure_1b(log_c, ratio):
    best = published("farseer", FARSEER).optimal(10**log_c)
    assert abs(best.D / best.N / ratio - 1) < 0.18 and math.isclose(6 * best.N * best.D, 10**log_c, rel_tol=1e-9)


def test_no_optimum_is_refused_with_its_reason():
    surface = published("farseer", FARSEER)
    with pytest.raises(ValueError, match=r"no compute-optimal point at C = 1e\+26 .* keeps falling towards D/N"):
        surface.optimal(1e26)
    with pytest.raises(ValueError, match="no compute-optimal point"):
        published("chinchilla", CHINCHILLA).optimal(1e22, (100, 1000))
    with pytest.raises(ValueError, match="0 < low < high"):
        surface.optimal(1e21, (10, 5))


def test_chinchilla_optimum_is_the_closed_form():
    c = CHINCHILLA
    best = published("chinchilla", c).optimal(1e23)
    ratio = (c["alpha"] * c["A"] / (c["beta"] * c["B"])) ** (1 / (c["alpha"] + c["beta"]))
    assert math.isclose(best.N, ratio * (1e23 / 6) ** (c["beta"] / (c["alpha"] + c["beta"])), rel_tol=1e-5)


def test_gradient_and_iso_loss_agree_with_predictions():
    surface = published("farseer", FARSEER)
    N, D = np.array([3e8, 2e9]), np.array([1e10, 9e10])
    by_n, by_d = surface.gradient(N, D)
    assert np.allclose(by_n, (surface.predict(N * 1.0001, D) - surface.predict(N * 0.9999, D)) / (2e-4 * N), rtol=1e-5)
    assert np.allclose(by_d, (surface.predict(N, D * 1.0001) - surface.predict(N, D * 0.9999)) / (2e-4 * D), rtol=1e-5)
    assert surface.falls(N, D)
    assert np.allclose(surface.predict(N, surface.iso_loss(0.55, N)), 0.55, rtol=1e-9)
    assert np.isnan(published("chinchilla", CHINCHILLA).iso_loss(1.9, 1e6)).all()


def test_joint_and_piecewise_farseer_extrapolate_where_chinchilla_cannot():
    """The yardstick of the published grid: 0.1% noise, top 15% of compute held out."""
    table = farseer_grid()
    assert len(table) == 337 and len(table.sizes) == 21
    split = top_compute(table)
    left, kept = table.take(~split.test), table.take(split.test)
    ready = prepare(left)
    at = Runs.at(kept.N, kept.D, ready.runs.centre)
    error = {law: percent(np.exp(LAWS[law].terms(fit_theta(left, law, ready)[0][None], at)[0][0]), kept.loss)
             for law in ("chinchilla", "farseer")}  # fmt: skip
    error["piecewise"] = percent(published("farseer", piecewise(left)).predict(kept.N, kept.D), kept.loss)
    assert error["farseer"] <= 0.15 and error["piecewise"] <= 0.30 and error["chinchilla"] > 2


def test_piecewise_refuses_a_table_without_its_grid():
    with pytest.raises(ValueError, match="piecewise fit needs four sizes with three token counts"):
        rng = np.random.default_rng(0)
        piecewise(ScalingTable(np.repeat([1e8, 2e8, 4e8, 8e8], 4), 1e9 * rng.uniform(1, 9, 16), np.full(16, 3.0)))


def test_kappa_on_olmo_holds_the_yardstick():
    """0.29% and 0.64% in the sheet; at most 0.30 and 0.65."""
    rows = compare_laws(olmo(), ("kappa",), splits=standard(olmo()))
    assert rows[0]["kappa"] <= 0.30 and rows[1]["kappa"] <= 0.65 and [row["test"] for row in rows] == [4, 6]


def test_auto_fits_with_an_interval_and_survives_json():
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        surface = fit(olmo(), seed=0, draws=30)
    assert any("only 5 model sizes" in str(one.message) for one in said)
    split = top_compute(olmo())
    assert all(row["auto"] < 2 for row in surface.holdouts) and {"held out", "kappa", "farseer"} <= set(
        surface.holdouts[0]
    )
    N, D = np.array([1e9, 7e10]), np.array([2e10, 1.4e12])
    low, high = surface.interval(N, D)
    loss = surface.predict(N, D)
    assert ((low < loss) & (loss < high)).all() and split.test.sum() == 4
    assert surface.deviation(N, D)[1] > surface.deviation(N, D)[0]
    back = Surface.from_json(surface.to_json())
    assert np.array_equal(back.predict(N, D), loss) and np.array_equal(back.interval(N, D), (low, high))
    assert back.holdouts == surface.holdouts and back.seen == surface.seen and back.notes == surface.notes
    again = fit(olmo(), seed=0, draws=30, check=False)
    assert np.array_equal(again.interval(N, D), (low, high))
    rows = advise(surface, 7e9, 4e11)
    assert len(rows) == 5 and rows[-1]["left"] <= rows[0]["left"] <= 1


def test_predictions_do_not_depend_on_units_or_row_order():
    table = olmo()
    shuffled = table.take(np.random.default_rng(1).permutation(len(table)))
    million = ScalingTable(table.N / 1e6, table.D / 1e6, table.loss)
    a = fit(table, draws=0, check=False).predict(7e9, 1e12)
    assert np.isclose(a, fit(shuffled, draws=0, check=False).predict(7e9, 1e12), rtol=1e-4)
    assert np.isclose(a, fit(million, draws=0, check=False).predict(7e3, 1e6), rtol=1e-4)


def test_repeated_data_law_finds_what_made_the_table():
    rng = np.random.default_rng(0)
    N, U, epochs = (
        rng.choice(v, 120) for v in (np.geomspace(1e8, 4e9, 8), np.geomspace(1e9, 3e10, 8), np.array([1, 2, 4, 8, 30]))
    )
    centre = (float(np.log(N).mean()), float(np.log(U * epochs).mean()))
    truth = np.array([[0.55, -0.6, -0.5, 0.35, 0.36, math.log(15.4), math.log(5.3)]])
    loss = np.exp(LAWS["repeated"].terms(truth, Runs.at(N, U * epochs, centre, epochs.astype(float)))[0][0])
    table = ScalingTable(N, U * epochs, loss * np.exp(1e-3 * rng.standard_normal(120)), unique=U)
    surface = fit(table, "repeated", draws=0, check=False)
    assert abs(surface.constants()["R_D"] / 15.4 - 1) < 0.15
    assert surface.predict(1e9, 4e10, epochs=40) > surface.predict(1e9, 4e10, epochs=4) > surface.predict(1e9, 4e10)


def test_doubts_name_what_a_table_cannot_say():
    table = olmo()
    assert any("only 5 model sizes" in note for note in doubts(table))
    line = ScalingTable(
        np.geomspace(1e8, 1e10, 9), 20 * np.geomspace(1e8, 1e10, 9), np.linspace(3, 2, 9), convention="total"
    )
    assert any("nearly collinear" in note for note in doubts(line)) and not any(
        "sizes" in note for note in doubts(line)
    )
    assert 1e-4 < rerun_noise(table) < 4e-4  # the sheet: 0.02-0.03%


def test_farseer_far_outside_its_table_warns():
    surface = fit(olmo(), "farseer", draws=0, check=False)
    with pytest.warns(UserWarning, match="ten times beyond the table"):
        surface.predict(1e9, 1e13)


def test_bad_requests_say_what_is_allowed():
    with pytest.raises(ValueError, match="unknown law 'chinchila'; laws: auto, chinchilla"):
        fit(olmo(), "chinchila")
    with pytest.raises(ValueError, match=r"has 4 rows, 1 sizes N and 3 .* needs 5 rows, and two sizes or two token"):
        fit(olmo().take(slice(0, 4)))
    with pytest.raises(ValueError, match="law 'kappa' needs two of each; law='auto' leans on"):
        fit(olmo().take(slice(0, 6)), "kappa", check=False)
    with pytest.raises(ValueError, match="repeats no data"):
        fit(olmo(), "repeated")
    with pytest.raises(ValueError, match="N must be finite and above 0"):
        published("chinchilla", CHINCHILLA).predict(-1, 1e9)
    with pytest.raises(ValueError, match="no bootstrap draws"):
        published("chinchilla", CHINCHILLA).interval(1e9, 1e10)
    with pytest.raises(ValueError, match="this JSON is no scaling surface"):
        Surface.from_json("{}")


def test_two_surfaces_are_compared_over_the_plane():
    a, b = (
        published("chinchilla", {**CHINCHILLA, "A": A, "E": E}, name=n)
        for A, E, n in ((400, 1.9, "a"), (600, 1.8, "b"))
    )
    found = compare(a, b, N=np.geomspace(1e7, 1e11, 30), D=np.geomspace(1e9, 1e12, 30))
    assert found.winner[0, -1] == -1 and found.winner[-1, -1] == 1  # a wins small, b wins large
    edge = found.border()
    assert "a wins on" in found.verdict() and np.isnan(edge[0])
    with pytest.raises(ValueError, match="cannot compare"):
        compare(a, published("farseer", FARSEER, unit="bits/character"))


def test_step_law_and_its_rivals():
    """Sheet section 5: N = 1e9, D = 1e11 gives 1.63e-3 and 1.11e6 tokens, 541 sequences of 2,048."""
    lr, batch = step_law(1e9, 1e11)
    assert round(lr, 5) == 1.63e-3 and round(batch / 2048) == 541
    rules = {rule.rule: rule for rule in all_rules(1e9, 1e11, 2.3)}
    assert math.isclose(rules["Kaplan (OpenAI)"].lr, 3.239e-3 - 1.395e-4 * math.log(1e9)) and rules["MiniCPM"].batch > 0
    assert abs(rules["Step Law, mean of bootstraps"].lr / lr - 1) < 0.05
    with pytest.raises(ValueError, match="D must be above 0"):
        all_rules(1e9, 0)


@needs_tables
def test_chinchilla_on_the_240_digitised_runs():
    """E 1.817 +- .002, alpha .347 +- .002, beta .367 +- .002."""
    table = public.chinchilla()
    found = fit(table, "chinchilla", draws=0, check=False).constants()
    assert len(table) == 240
    assert (
        abs(found["E"] - 1.817) < 0.002 and abs(found["alpha"] - 0.347) < 0.002 and abs(found["beta"] - 0.367) < 0.002
    )


@needs_tables
def test_constrained_farseer_on_chinchilla_compute():
    table = public.chinchilla()
    row = compare_laws(table, ("farseer", "kappa"), splits=[top_compute(table)])[0]
    assert row["fit on"] == 204 and row["farseer"] <= 0.30 < row["kappa"]


def grid_with_offsets(own: float, noise: float = 5e-4) -> tuple[ScalingTable, np.ndarray]:
    """10 sizes of 8 token counts, each size off the law by its own share; and those shares, a row each."""
    N, D = (v.ravel() for v in np.meshgrid(np.geomspace(1e8, 4e9, 10), np.geomspace(2e9, 3e11, 8), indexing="ij"))
    rng = np.random.default_rng(0)
    off = np.repeat(own * rng.standard_normal(10), 8)
    loss = published("chinchilla", CHINCHILLA).predict(N, D) * np.exp(off + noise * rng.standard_normal(80))
    return ScalingTable(N, D, loss, convention="total"), off


def test_a_longer_run_of_a_size_repeats_what_its_shorter_ones_showed():
    table, off = grid_with_offsets(0.02)
    surface = fit(table, draws=0, check=False)
    assert surface.residuals is not None and surface.residuals.own_share > 0.8
    N, first = np.unique(table.N, return_index=True)
    truth = published("chinchilla", CHINCHILLA).predict(N, 1e12) * np.exp(off[first])
    alone = np.exp(surface._logs(N, 1e12, 1.0, False))
    assert percent(surface.predict(N, 1e12), truth) < 0.5 * percent(alone, truth)
    far = surface.predict(4e10, 1e12)  # no run is near: the law alone
    assert np.isclose(far, np.exp(surface._logs(4e10, 1e12, 1.0, False)), rtol=1e-9)
    assert any("runs of one size miss the law together" in note for note in surface.residuals.doubts())
    back = Surface.from_json(surface.to_json())
    assert np.array_equal(back.predict(N, 1e12), surface.predict(N, 1e12))


def test_nothing_is_remembered_where_sizes_share_nothing():
    table, _ = grid_with_offsets(0.0, noise=5e-3)
    learned = fit(table, draws=0, check=False).residuals
    assert learned is not None and learned.own_share < 0.3 and not learned.doubts()
    assert fit(table, "kappa", draws=0, check=False).residuals is None


def test_declared_shapes_are_told_from_size():
    """A bowl of 0.006 s + 0.004 s^2 in s = ln(aspect / usual) is found and added back."""
    table, _ = grid_with_offsets(0.0)
    aspect = np.repeat(np.exp(np.random.default_rng(1).uniform(np.log(8), np.log(300), 10)), 8)
    usual = float(np.median(aspect[::8]))

    def bowl(aspect):
        s = np.log(aspect / usual)
        return 0.006 * s + 0.004 * s * s

    table = ScalingTable(table.N, table.D, table.loss * np.exp(bowl(aspect)), aspect=aspect, convention="total")
    surface = fit(table, draws=0, check=False)
    assert abs(surface.shape.slope - 0.006) < 2e-3 and abs(surface.shape.bend - 0.004) < 1.5e-3
    ratio = surface.predict(8e9, 2e11, aspect=250.0) / surface.predict(8e9, 2e11, aspect=30.0)
    assert abs(np.log(ratio) - (bowl(250.0) - bowl(30.0))) < 4e-3
    assert np.isclose(surface.predict(8e9, 2e11), surface.predict(8e9, 2e11, aspect=usual))
    assert Surface.from_json(surface.to_json()).shape == surface.shape
    with pytest.raises(ValueError, match="aspect is width / depth, finite and above 0"):
        surface.predict(8e9, 2e11, aspect=0)


def test_a_clean_table_of_another_law_is_followed():
    """No prior of other tables keeps "auto" from a law without a floor that it sees at 0.1% noise."""
    truth = published("kappa", {"E": 0.02, "A": 8.8e13**0.8, "B": 5.4e13, "alpha": 0.8, "beta": 1.0, "kappa": 0.095})
    N, D = (v.ravel() for v in np.meshgrid(np.geomspace(1e8, 3e9, 6), np.geomspace(2e9, 1e11, 6)))
    loss = truth.predict(N, D) * np.exp(1e-3 * np.random.default_rng(0).standard_normal(36))
    surface = fit(ScalingTable(N, D, loss), draws=0, check=False)
    assert percent(surface.predict([1e10, 3e10], [2e11, 6e11]), truth.predict([1e10, 3e10], [2e11, 6e11])) < 1


@needs_tables
def test_gemstones_by_the_routes_that_were_asked_for():
    """At most 0.80% on compute from N and D alone, 0.60% on sizes with the shapes declared."""
    table = public.gemstones()
    assert compare_laws(table, ("auto",), splits=[top_compute(table)])[0]["auto"] <= 0.30
    table = public.gemstones(shapes=True)
    assert table.aspect is not None and table.aspect.max() == 320
    assert compare_laws(table, ("auto",), splits=[largest_sizes(table)])[0]["auto"] <= 0.60


@needs_tables
def test_every_public_table_reads_and_splits_as_described():
    counts = {name: (len(make()), len(np.unique(make().N))) for name, make in public.REAL.items()}
    assert counts["chinchilla"] == (240, 140) and counts["gemstones"] == (770, 22) and counts["olmo"] == (30, 5)
    assert counts["step_law"] == (17, 5) and counts["datablations"] == (31, 19) and counts["gadre_rpj"] == (35, 6)
    assert largest_sizes(public.chinchilla()).test.sum() == 51 and largest_sizes(public.gemstones()).test.sum() == 140
    assert len(public.datablations(repeated=True)) > 150 and len(public.nanochat("all")) == 4
    assert np.isfinite(RIDGE.mean).all()


def test_two_tables_are_compared_from_the_command_line(tmp_path, capsys):
    """The second recipe is 3 % better throughout: the map says so, and the page holds both tables' runs."""
    from gamut.plan.scaling_command import main

    N, D = (v.ravel() for v in np.meshgrid(np.geomspace(1e8, 4e9, 6), np.geomspace(2e9, 2e11, 6)))
    rng = np.random.default_rng(0)
    for name, factor in (("first", 1.0), ("second", 0.97)):
        loss = factor * (1.7 + 400 / N**0.34 + 410 / D**0.28) * np.exp(1e-3 * rng.standard_normal(len(N)))
        rows = "".join(f"{n},{d},{y}\n" for n, d, y in zip(N, D, loss, strict=True))
        (tmp_path / f"{name}.csv").write_text("N,D,loss\n" + rows)
    out = tmp_path / "map.html"
    main(tmp_path / "first.csv", against=tmp_path / "second.csv", law="chinchilla", out=out)
    said, page = capsys.readouterr().out, out.read_text()
    assert "first wins on 0% of the plane" in said and str(out) in said
    assert "The lead never changes beyond doubt" in page
    places = {tuple(float(v) for v in found) for found in re.findall(r'x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', page)}
    left, width = np.array(sorted(places)).T
    assert len(left) == 60 and np.allclose(left[1:], (left + width)[:-1], atol=1e-6), "cells of the map leave no gap"
    assert "Who wins where" in page and page.count("<circle") >= 72 and "-3." in page.split("second above first")[1]
