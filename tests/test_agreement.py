"""Comparing, agreement and uncertainty against cases whose answer is known."""

import io
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from sleepai.core import STAGES, InputError, Predictions
from sleepai.evaluation import agreement, compare, uncertainty
from sleepai.registry import datasets
from sleepai.reporting import agreement as agreement_shown
from sleepai.reporting import calibration, differences, tables

CYCLE = np.repeat([1, 2, 3, 2, 4], [20, 28, 30, 30, 24])


def predictions(people, classes=STAGES, model="m", sure=0.8, study="sleep", dataset="planted"):
    "Predictions from {subject: [(y_true, y_pred) of every night]}."
    rows, K = [], len(classes)
    for subject, nights in people.items():
        for k, (y, z) in enumerate(nights):
            p = np.full((len(y), K), (1 - sure) / (K - 1))
            p[np.arange(len(y)), z] = sure
            who = dict(fold="f", subject=subject, record=f"{subject}n{k}", index=np.arange(len(y)), y_true=y)
            rows.append(pd.DataFrame(who).assign(**{f"p_{c}": p[:, i] for i, c in enumerate(classes)}))
    return Predictions(study, dataset, model, tuple(classes), pd.concat(rows, ignore_index=True))


def night(onset=20, cycles=4, wake=20):
    return np.r_[np.zeros(onset, int), np.tile(CYCLE, cycles), np.zeros(wake, int)]


def noisy(y, share, rng):
    return np.where(rng.random(len(y)) < share, rng.integers(0, 5, len(y)), y)


def model(name, share, people=8, seed=0, change=lambda z: z):
    rng = np.random.default_rng(seed)
    truth = [night(20 + 5 * k, 3 + k % 3) for k in range(people)]
    return predictions(
        {f"S{k}": [(y, change(noisy(y, share, rng)))] for k, y in enumerate(truth)}, model=name
    )


def cell(pred, dataset="planted", protocol="5-fold", simulated=False):
    return SimpleNamespace(
        dataset_shown=dataset, protocol=protocol, model=pred.model, simulated=simulated
    ), pred


# comparing


@pytest.mark.parametrize("metric", ["kappa", "log_loss", "f1_N1"])
def test_a_model_does_not_differ_from_itself(metric):
    d = compare.paired(model("a", 0.3), model("b", 0.3), metric)
    assert (d.difference, d.low, d.high, d.p, d.a_better, d.b_better) == (0, 0, 0, 1, 0, 0)


@pytest.mark.parametrize("metric,sign", [("kappa", 1), ("accuracy", 1), ("log_loss", -1), ("f1_R", 1)])
def test_a_better_model_is_better(metric, sign):
    d = compare.paired(model("a", 0.2), model("b", 0.4, seed=1), metric)
    assert sign * d.difference > 0 and sign * d.low > 0 and sign * d.high > 0
    assert d.p < 0.05 and d.a_better == d.subjects == 8


def test_order_of_rows_does_not_matter():
    a, b = model("a", 0.2), model("b", 0.4, seed=1)
    shuffled = Predictions("sleep", "planted", "b", STAGES, b.frame.sample(frac=1, random_state=0))
    assert compare.paired(a, b) == compare.paired(a, shuffled)


def test_few_people_cannot_show_much():
    one, three = ({"people": n} for n in (1, 3))
    d = compare.paired(model("a", 0.1, **three), model("b", 0.6, seed=1, **three))
    assert d.p == 2**-2 and d.low > 0
    alone = compare.paired(model("a", 0.1, **one), model("b", 0.6, seed=1, **one))
    assert np.isnan([alone.p, alone.low, alone.high]).all() and alone.difference > 0


def test_other_examples_are_refused():
    a, b = model("a", 0.2), model("b", 0.4, seed=1)
    less = Predictions("sleep", "planted", "less", STAGES, b.frame.iloc[11:])
    with pytest.raises(InputError, match="11 are only in a's, 0 only in less's"):
        compare.paired(a, less)
    other = b.frame.copy()
    other.loc[:4, "y_true"] = 3
    with pytest.raises(InputError, match="and 5 of "):
        compare.paired(a, Predictions("sleep", "planted", "b", STAGES, other))
    with pytest.raises(InputError, match="f1_W"):
        compare.paired(a, b, "f1")


def test_holm_by_hand():
    """0.01 x 4, 0.02 x 3, then 0.03 x 2 = 0.06, and 0.04 x 1 may not fall below it."""
    assert np.allclose(compare.holm([0.04, 0.01, 0.03, 0.02]), [0.06, 0.04, 0.06, 0.06])
    assert np.allclose(compare.holm([0.5, np.nan, 0.9]), [1, np.nan, 1], equal_nan=True)
    assert len(compare.holm([])) == 0


def test_only_what_is_comparable_is_compared():
    a, b, c = model("a", 0.2), model("b", 0.4, seed=1), model("c", 0.3, seed=2)
    fewer = Predictions("sleep", "planted", "fewer", STAGES, a.frame.iloc[5:])
    cells = [cell(a), cell(b), cell(c), cell(fewer), cell(a, protocol="other"), cell(b, "elsewhere")]
    pairs = compare.compare_all(cells)
    assert {frozenset(p) for p in pairs[["a", "b"]].to_numpy()} == {frozenset(p) for p in ("ab", "ac", "bc")}
    assert (pairs["comparisons"] == 3).all() and (pairs["p_holm"] >= pairs["p"]).all()
    assert set(compare.against_best(pairs)["a"]) == {"a"}
    loss = compare.compare_all(cells, "log_loss")
    assert (loss["best"] == "a").all() and (loss["difference"] <= 0).all()


# drift


def test_drift_guard_flags_the_planted_model_and_not_the_honest_one():
    old = model("old", 0.35)
    no_n1 = model("no-N1", 0.1, seed=1, change=lambda z: np.where(z == 1, 2, z))
    honest = model("honest", 0.1, seed=1)
    guard = compare.drift_guard(old, no_n1)
    assert guard.kappa_new > guard.kappa_old and guard.table.loc["share of N1", "verdict"] == "drifted"
    assert any("share of N1 drifted" in f and "tolerance 2." in f for f in guard.flags)
    assert compare.drift_guard(old, honest).flags == []
    assert compare.drift_guard(no_n1, old).flags == [], "kappa fell: there is nothing to guard"


def test_drift_guard_sees_rem_that_comes_late():
    def late(z):
        first = np.flatnonzero(z == 4)[0]
        return np.r_[
            z[:first], np.where(z[first : first + 60] == 4, 2, z[first : first + 60]), z[first + 60 :]
        ]

    old = model("old", 0.0, change=lambda z: np.where(np.arange(len(z)) % 6 == 1, 0, z))
    new = model("late", 0.0, change=late)
    guard = compare.drift_guard(old, new)
    assert guard.kappa_new > guard.kappa_old and guard.table.loc["REM latency", "verdict"] == "drifted"
    steps = compare.drift_all([cell(old), cell(new)])
    assert set(differences.drift_table(steps)["statistic"]) >= {
        "REM latency"
    } and "1 step" in differences.drift_note(steps)


def test_drift_guard_reads_shares_only_outside_sleep():
    two = {f"S{k}": [(np.tile([0, 1], 50), np.tile([0, 0, 0, 1], 25))] for k in range(4)}
    same = {k: [(y, y) for y, _ in v] for k, v in two.items()}
    a, b = (predictions(p, ("no", "yes"), n, study="apnea") for n, p in (("old", two), ("new", same)))
    assert list(compare.drift_guard(a, b).table.index) == ["share of no", "share of yes"]


# agreement


def shifted(minutes=5, people=6):
    "Every sleep onset is predicted so many minutes late, and nothing else is wrong."
    k, found = int(minutes * 2), {}
    for s in range(people):
        y = night(20 + s, 3 + s % 2)
        found[f"S{s}"] = [(y, np.where(np.arange(len(y)) < 20 + s + k, 0, y))] * (1 + s % 2)
    return predictions(found)


def test_bland_altman_finds_the_shift():
    nights = agreement.sleep_statistics(shifted(5))
    t = agreement.bland_altman(nights)
    assert (
        t.loc["sleep onset", "bias"] == 5
        and t.loc["TST", "bias"] == -5
        and t.loc["REM latency", "bias"] == -5
    )
    assert t.loc["N3", "bias"] == 0 and t.loc["WASO", "bias"] == 0
    assert t.loc["TST", ["bias low", "bias high", "lower", "upper"]].tolist() == [-5] * 4
    assert (t["nights"] == 9).all() and (t["subjects"] == 6).all()


def test_bland_altman_by_hand():
    d = np.array([-4.0, 0, 2, 10])
    nights = pd.DataFrame(
        dict(record=list("abcd"), subject=list("ABCD"), statistic="TST", scored=400.0, predicted=400 + d)
    )
    t = agreement.bland_altman(nights).loc["TST"]
    assert t["bias"] == 2 and np.isclose(t["upper"], 2 + 1.96 * d.std(ddof=1))
    assert t["bias low"] < 2 < t["bias high"] and t["bias t low"] < 2 < t["bias t high"]


def test_statistics_that_do_not_exist_are_nan():
    awake = predictions(
        {"S0": [(night(), np.zeros(len(night()), int))], "S1": [(night(30), np.zeros(len(night(30)), int))]}
    )
    nights = agreement.sleep_statistics(awake).set_index("statistic")["predicted"]
    assert nights["REM latency"].isna().all() and nights["WASO"].isna().all() and (nights["TST"] == 0).all()
    t = agreement.bland_altman(agreement.sleep_statistics(awake))
    assert t.loc["WASO", "nights"] == 0 and np.isnan(t.loc["WASO", "bias"]) and t.loc["TST", "nights"] == 2
    excerpt = predictions({"S0": [(np.full(60, 2), np.full(60, 2))]})
    t = agreement.bland_altman(agreement.sleep_statistics(excerpt))
    assert (
        t.loc["TST", "bias"] == 0
        and np.isnan(t.loc["TST", "bias low"])
        and t.loc["REM latency", "nights"] == 0
    )


def test_holes_are_unscored_time():
    whole = predictions({"S0": [(night(), night())]})
    holed = Predictions(
        "sleep", "planted", "m", STAGES, whole.frame.drop(index=range(40, 50)).sample(frac=1, random_state=1)
    )
    a, b = (agreement.sleep_statistics(p).set_index("statistic")["scored"] for p in (whole, holed))
    assert a["REM latency"] == b["REM latency"] == 54 and a["TST"] - b["TST"] == 5 and a["WASO"] == b["WASO"]
    assert (agreement.hypnograms(holed)["S0n0"].hypno == "UNS").sum() == 10


def test_hypnograms_are_of_sleep_only():
    two = predictions({"S0": [(np.tile([0, 1], 9), np.tile([0, 1], 9))]}, ("no", "yes"), study="apnea")
    with pytest.raises(InputError, match="no, yes"):
        agreement.sleep_statistics(two)


def test_pabak_by_hand():
    """Byrt 1993: agreement of 85 % is a PABAK of 0.70 in two classes, whatever the prevalence."""
    rare, even = np.array([[80, 10], [5, 5]]), np.array([[45, 10], [5, 40]])
    assert np.isclose(agreement.pabak(rare), 0.7) and np.isclose(agreement.pabak(even), 0.7)
    assert np.isclose(agreement.pabak(np.array([[2, 1, 0], [0, 2, 1], [1, 0, 2]])), 0.5)
    assert agreement.one_against_rest(np.array([[1, 2], [3, 4]])).tolist() == [
        [[4, 3], [2, 1]],
        [[1, 2], [3, 4]],
    ]


def test_subgroups():
    pred = model("m", 0.3, people=6)
    people = pd.DataFrame(
        dict(age=[20, 30, 40, 66, 70, 90], sex=list("FFMMMM")), index=[f"S{k}" for k in range(6)]
    )
    t = agreement.subgroups(pred, people)
    assert t.loc["women", "subjects"] == 2 and t.loc["men", "subjects"] == 4
    assert t.loc["65 to 79 years", "subjects"] == 2 and "50 to 64 years" not in t.index
    assert np.isnan(t.loc["80 and over years", ["low", "high"]].astype(float)).all()
    assert t.loc["everyone", "low"] < t.loc["everyone", "kappa"] < t.loc["everyone", "high"]
    unknown = agreement.subgroups(pred, people[:0])
    assert list(unknown.index) == ["everyone"]
    assert datasets["sleep-edf"].people().loc["SC4161E0", ["subject", "sex"]].tolist() == ["SC416", "M"]


# uncertainty


def confident(conf, right, subjects=None):
    "Two-class predictions: the confidence of each and whether it is right; the truth alternates."
    y = np.arange(len(conf)) % 2
    z = np.where(right, y, 1 - y)
    p1 = np.where(z == 1, conf, 1 - np.asarray(conf))
    who = subjects if subjects is not None else ["A"] * len(conf)
    f = pd.DataFrame(
        dict(fold="f", subject=who, record=who, index=np.arange(len(conf)), y_true=y, p_no=1 - p1, p_yes=p1)
    )
    return Predictions("apnea", "planted", "m", ("no", "yes"), f)


def test_calibration_by_hand():
    """Ten at 0.75 of which six are right, ten at 0.95 of which all are: off by 0.15 and 0.05, half each."""
    conf, right = np.repeat([0.75, 0.95], 10), np.r_[np.arange(10) < 6, np.ones(10, bool)]
    pred = confident(conf, right)
    t = uncertainty.calibration(pred)["value"]
    assert np.isclose(t["expected calibration error"], 0.10) and np.isclose(
        t["confidence minus accuracy"], 0.05
    )
    bins = uncertainty.reliability(pred)
    assert bins["examples"].tolist() == [10, 10] and np.allclose(bins["accuracy"], [0.6, 1])
    assert uncertainty.calibration(pred)[["low", "high"]].isna().all(axis=None), "one subject has no interval"


def test_review_budget_by_hand():
    """Twenty epochs, balanced; the four least sure are wrong: kappa 0.6, and each review adds 0.1."""
    conf = np.linspace(0.55, 0.99, 20)
    pred = confident(conf, np.arange(20) >= 4, np.repeat(list("ABCD"), 5))
    t = uncertainty.review_budget(pred, (0.5, 0.6, 0.7, 0.8, 0.9, 1.0))
    assert t["examples"].tolist() == [0, 0, 1, 2, 3, 4]
    assert np.allclose(t["per_record"], t["examples"] / 4)
    curve = uncertainty.review_curve(pred)
    assert len(curve) == 21 and np.isclose(curve["risk"].iloc[2], 2 / 18) and curve["risk"].iloc[4] == 0
    risks = [4 / 20, 3 / 19, 2 / 18, 1 / 17] + [0] * 16
    assert np.isclose(uncertainty.order_value(pred)["value"].iloc[0], np.mean(risks))


def test_review_budget_where_nothing_or_everything_is_to_do():
    right = predictions({f"S{k}": [(night(), night())] for k in range(3)})
    assert (uncertainty.review_budget(right)["share"] == 0).all()
    assert set(calibration.budget_table(uncertainty.review_budget(right))["share to review"]) == {
        "not needed"
    }
    one = predictions({"S0": [(np.full(30, 2), np.full(30, 2))]})
    assert uncertainty.review_budget(one)["share"].isna().all()
    assert set(calibration.budget_table(uncertainty.review_budget(one))["share to review"]) == {"undefined"}
    flat = predictions({f"S{k}": [(night(), np.full(len(night()), 2))] for k in range(6)})
    t = uncertainty.review_budget(flat)
    assert np.allclose(t["share"], t["blind"], atol=0.03), (
        "equal confidence is worth no more than blind picking"
    )


def test_a_useless_order_gains_nothing():
    rng = np.random.default_rng(0)
    t = uncertainty.order_value(confident(rng.uniform(0.5, 1, 4000), rng.random(4000) < 0.8))["value"]
    assert abs(t["area under risk-coverage"] - t["error rate"]) < 0.02


# figures and tables


def test_everything_can_be_drawn_twice_alike():
    pred = model("a", 0.3)
    cells = [
        cell(pred),
        cell(model("b", 0.4, seed=1)),
        cell(model("c", 0.2, people=3), "other", simulated=True),
    ]
    nights, pairs = agreement.sleep_statistics(pred), compare.compare_all(cells)
    makers = [
        lambda: calibration.reliability_figure(
            uncertainty.reliability(pred), uncertainty.class_reliability(pred)
        ),
        lambda: calibration.review_figure(uncertainty.review_curve(pred), uncertainty.review_budget(pred)),
        lambda: agreement_shown.bland_altman_figure(nights, agreement.bland_altman(nights)),
        lambda: differences.differences_figure(pairs),
        lambda: differences.models_figure(cells, band=(0.68, 0.76, "two scorers")),
    ]
    for make in makers:
        drawn = []
        for fig in (make(), make()):
            assert isinstance(fig.table, pd.DataFrame) and len(fig.table)
            fig.savefig(to := io.StringIO(), format="svg", metadata=dict(Date=None))
            drawn.append(to.getvalue())
        assert drawn[0] == drawn[1]
        assert ("two scorers" in drawn[0]) == (make is makers[-1])


def test_other_studies_and_single_subjects_are_drawn_too():
    rng = np.random.default_rng(1)
    for who in (None, np.repeat(list("ABCD"), 25)):
        pred = confident(rng.uniform(0.5, 1, 100), rng.random(100) < 0.7, who)
        calibration.reliability_figure(uncertainty.reliability(pred), uncertainty.class_reliability(pred))
        calibration.review_figure(uncertainty.review_curve(pred), uncertainty.review_budget(pred), "minute")
        assert len(tables.with_brackets(agreement.class_agreement(pred))) == 3
        assert ("–" in set(calibration.sureness(pred).pipe(tables.with_brackets)["95 %"])) == (who is None)
        assert len(agreement_shown.groups_table(pred)) == 0
        differences.models_figure([cell(pred)])
