"""Scorers against scorers: the consensus and its ties, the evidence, the page, and the known figures of DOD and BOAS."""

import itertools
import json
import zipfile

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score, f1_score

from sleepai.analyses.human_ceiling import band, gather, stored_band
from sleepai.analyses.scorer_consensus import (
    TIES,
    against_others,
    by_person,
    by_person_summary,
    consensus,
    evidence,
    made_up_night,
    mean_pairwise,
    pairwise,
    per_stage,
    soft_agreement,
    tie_rules,
    without,
)
from sleepai.core import InputError
from sleepai.datasets.scorers import BOAS, DOD, MODELS, Scorings, scored_part
from sleepai.evaluation.cells import models_for
from sleepai.registry import analyses, models


def simulated(cohort, nights=6, seed=1, error=0.25):
    """Simulated nights with the raters' names of a cohort."""
    rng, found = np.random.default_rng(seed), []
    for k in range(nights):
        s = made_up_night(k, rng, error)
        stages, raters, kinds = s.stages.copy(), s.raters, s.kinds
        stages[rng.integers(5), rng.integers(0, 800, 9)] = -1
        if cohort == "boas":
            raters = ("human consensus", "PSG model", "headband model")
            stages, kinds = stages[[6, 5, 0]], ("consensus", "model", "model")
        subject = f"S{k // 2}" if cohort == "boas" else s.subject
        found.append(Scorings(stages, raters, kinds, f"{cohort}-{k}", subject, cohort, 820))
    return found


@pytest.fixture(scope="module")
def nights():
    return [s for c in ("dod-h", "dod-o", "boas") for s in simulated(c)]


@pytest.fixture(scope="module")
def tables(nights):
    return evidence(nights)


# ---- the consensus


def slow_soft_agreement(stages, k):
    """Guillot et al. 2020, epoch by epoch."""
    total = 0
    for t in range(stages.shape[1]):
        votes = [int(np.sum(np.delete(stages, k, 0)[:, t] == c)) for c in range(5)]
        total += votes[stages[k, t]] / max(votes)
    return total / stages.shape[1]


def slow_consensus(stages, ranking, t):
    votes = [int(np.sum(stages[:, t] == c)) for c in range(5)]
    tied = [c for c in range(5) if votes[c] == max(votes)]
    return next(stages[r, t] for r in ranking if stages[r, t] in tied), len(tied) > 1


def test_consensus_epoch_by_epoch():
    rng = np.random.default_rng(0)
    for n in (2, 3, 4, 5):
        stages = rng.integers(0, 5, (n, 300))
        assert np.allclose(soft_agreement(stages), [slow_soft_agreement(stages, k) for k in range(n)])
        ranking = rng.permutation(n)
        label, tied = consensus(stages, ranking)
        assert [tuple(x) for x in zip(label, tied, strict=True)] == [
            slow_consensus(stages, ranking, t) for t in range(300)
        ]
        assert tied.any() and not tied.all()


def test_without_leaves_the_scorer_out():
    rng = np.random.default_rng(1)
    stages = rng.integers(0, 5, (5, 400))
    other = stages.copy()
    ranked_last = np.argmin(soft_agreement(stages[[0, 1, 3, 4]]))
    other[2] = stages[[0, 1, 3, 4][ranked_last]]  # somebody who resembles the one who decided least
    for ties in ("four", "left out", "lighter"):
        assert np.array_equal(without(stages, 2, ties), without(other, 2, ties)), ties
    assert not np.array_equal(without(stages, 2), without(other, 2)), (
        "the published ranking has seen the scorer"
    )
    out, four = without(stages, 2, "left out"), without(stages, 2, "four")
    assert (out[out >= 0] == four[out >= 0]).all() and 0.1 < (out < 0).mean() < 0.9


# ---- the evidence


def test_evidence_counts_every_epoch_once(nights, tables):
    counts = tables["confusions"].groupby(["record", "rater", "reference", "ties"])["count"].sum()
    counted = tables["epochs"].groupby("record")["counted"].first()
    whole = counts[counts.index.get_level_values("ties") != "left out"]
    assert (whole == counted.reindex(whole.index.get_level_values("record")).to_numpy()).all()
    assert (counts.xs("left out", level="ties") <= counted.max()).all()
    assert counted.to_dict() == {s.record: int((s.stages >= 0).all(0).sum()) for s in nights}
    assert counted.min() < 800, "epochs that somebody left blank do not count"


def test_kappa_is_that_of_the_labels(nights, tables):
    own = [s for s in nights if s.cohort == "dod-h"]
    t = against_others(tables["confusions"], "dod-h", n_boot=200)
    labels = [s.stages[:, s.counted].astype(int) for s in own]
    for k in range(5):
        reference = np.concatenate([without(x[:5], k) for x in labels])
        row = t.loc[f"scorer {k + 1}"]
        assert row["kappa"] == pytest.approx(
            cohen_kappa_score(reference, np.concatenate([x[k] for x in labels]))
        )
        assert row["low"] < row["kappa"] < row["high"]
    model = [
        cohen_kappa_score(
            np.concatenate([without(x[:5], k) for x in labels]), np.concatenate([x[5] for x in labels])
        )
        for k in range(5)
    ]
    assert t.loc["model", "kappa"] == pytest.approx(np.mean(model))
    people = t.loc[t["kind"] == "scorer", "kappa"].astype(float)
    assert t.loc["model", "over"] == pytest.approx(np.mean(model) - people.mean())
    square = pairwise(tables["confusions"], "dod-h")
    a, b = (np.concatenate([x[k] for x in labels]) for k in (0, 3))
    assert square.loc["scorer 1", "scorer 4"] == pytest.approx(cohen_kappa_score(a, b))
    pairs = [square.iat[i, j] for i, j in itertools.combinations(range(5), 2)]
    assert mean_pairwise(tables["confusions"], "dod-h")[0] == pytest.approx(np.mean(pairs))
    assert per_stage(tables["confusions"], "dod-h")[0].loc["scorer 1", "N2"] == pytest.approx(
        f1_score(
            np.concatenate([without(x[:5], 0) for x in labels]) == 2,
            np.concatenate([x[0] for x in labels]) == 2,
        )
    )


def test_nights_of_a_person_are_pooled(tables):
    each = by_person(tables["confusions"])
    assert each["nights"].tolist() == [2, 2, 2]
    assert each["PSG model vs. human consensus"].mean() > each["headband model vs. human consensus"].mean()
    assert len(by_person_summary(tables["confusions"])) == 3


def test_every_tie_rule_and_the_band(tables):
    t = tie_rules(tables["confusions"])
    assert len(t) == 2 * len(TIES)
    low, high, said = band(tables, "dod-o")
    row = t.loc[f"DOD-O: {TIES['published']}"]
    assert (low, high) == (row["lowest scorer"], row["highest"]) and "DOD-O (6 people)" in said
    with pytest.raises(InputError, match="No comparisons of 'dod-x'.*boas, dod-h, dod-o"):
        band(tables, "dod-x")


# ---- the page


def test_page_from_evidence(tables, tmp_path, monkeypatch):
    """The page over simulated evidence: what it says is what the functions say."""
    from dataclasses import replace

    from sleepai.reporting.analyses import gather as gather_evidence
    from sleepai.reporting.execute import execute
    from sleepai.reporting.html import to_html

    monkeypatch.setenv("SLEEPAI_REPORTS", str(tmp_path))
    assert stored_band() is None
    analysis = analyses["human-ceiling"]
    gather_evidence(replace(analysis, gather=lambda *a: (tables, {}), simulated=True))
    assert stored_band() == band(tables) and stored_band(dataset="dod-o") == band(tables, "dod-o")
    nb = execute(analysis.template, dict(study="sleep"), tmp_path / "broken.ipynb")
    html = to_html(nb, analysis.title, {})
    low, high, _ = band(tables)
    assert f"{low:.3f} to {high:.3f}" in html and html.count("<svg") >= 4


def test_without_data_the_page_says_what_to_fetch(tmp_path, monkeypatch):
    monkeypatch.setenv("SLEEPAI_DATA", str(tmp_path))
    with pytest.raises(InputError, match="sleepai fetch dod"):
        gather()


def test_no_model_runs_on_labels():
    for ds in (DOD(), BOAS()):
        with pytest.raises(InputError, match="no model can run on it"):
            models_for(ds, [], "sleep")
    assert len(models.names()) > 1


# ---- reading and fetching


def clone(folder, nights=2, epochs=30, length=None):
    """A made-up copy of the DOD repository."""
    rng = np.random.default_rng(5)
    for n in range(nights):
        for rater in [f"scorers/dodh/scorer_{k}" for k in range(1, 6)] + [
            f"results/dodh/base_models/{m}" for m in ("SimpleNet", "Chambon_et_Al")
        ]:
            size = length if length and rater.startswith("results") else epochs
            path = folder / rater / f"night-{n:02d}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(rng.integers(0, 5, size).tolist()))
    return folder


def test_scored_part_and_lights():
    stages = np.array([[-1, -1, 0, 1, 2, 2, -1], [0, 0, 1, -1, 2, 2, 2]])
    assert scored_part(stages) == slice(2, 6)
    assert scored_part(stages, (3, None)) == slice(3, 6) and scored_part(stages, (0, 5)) == slice(2, 5)
    with pytest.raises(InputError, match="staged no epoch"):
        scored_part(np.array([[-1, -1], [0, 0]]))


@pytest.mark.parametrize("how", ["clone", "parent", "archive"])
def test_dod_from_a_clone_or_an_archive(tmp_path, how):
    source = clone(tmp_path / "away" / "dod-scorers")
    if how == "archive":
        with zipfile.ZipFile(tmp_path / "away" / "dod-scorers.zip", "w") as z:
            for p in sorted(source.rglob("*.json")):
                z.write(p, p.relative_to(source.parent))
        for p in sorted(source.rglob("*"), reverse=True):
            p.unlink() if p.is_file() else p.rmdir()
        source.rmdir()
    ds = DOD(tmp_path / "here")
    came = ds.fetch(str(source if how == "clone" else source.parent))
    assert len(came) == 14 and ds.fetch(str(source.parent if how != "clone" else source)) == []
    night = ds.read(ds.records()[0])
    assert night.raters[:2] == ("scorer 1", "scorer 2") and set(night.raters[5:]) <= set(MODELS.values())
    assert night.kinds.count("scorer") == 5 and night.cohort == "dod-h" and len(ds.checksums()) == 2


def test_dod_refuses_what_is_not_dod(tmp_path):
    with pytest.raises(InputError, match="git clone"):
        DOD(tmp_path).fetch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="neither dod-scorers.zip nor a folder with scorers/dodh"):
        DOD(tmp_path / "here").fetch(str(tmp_path / "empty"))
    with pytest.raises(InputError, match="not the published ones"):
        DOD(tmp_path / "here").fetch(str(clone(tmp_path / "other", nights=25)))


@pytest.mark.parametrize(
    "text, said",
    [
        ("[0, 1", "not a JSON list"),
        ("[0, 1, 7]", "holds the code 7"),
        ("[0.5, 1]", "list of integers"),
        ("[]", "list of integers"),
        ("[0, 1]", "differ in length"),
    ],
)
def test_damaged_labels_are_named(tmp_path, text, said):
    ds = DOD(clone(tmp_path))
    (tmp_path / "scorers/dodh/scorer_3/night-01.json").write_text(text)
    with pytest.raises(InputError, match=said) as e:
        ds.read(ds.records()[1])
    assert "night-01" in str(e.value)


def test_an_output_of_unknown_place_is_refused(tmp_path):
    ds = DOD(clone(tmp_path, length=29))
    with pytest.raises(InputError, match="29 epochs, but the scored part has 30"):
        ds.read(ds.records()[0])


def bids(folder, stage=2):
    """A made-up BOAS of two recordings of one person."""
    t = pd.DataFrame(dict(onset=30 * np.arange(20), duration=30, stage_hum=stage, stage_ai=2))
    for name in ("sub-1", "sub-2"):
        (folder / name / "eeg").mkdir(parents=True)
        for what in ("psg", "headband"):
            shown = t if what == "psg" else t.drop(columns="stage_hum")
            shown.to_csv(
                folder / name / "eeg" / f"{name}_task-Sleep_acq-{what}_events.tsv", sep="\t", index=False
            )
    people = dict(participant_id=["sub-1", "sub-2"], age=["n/a", 30], sex="F", bmi=20, pid=7)
    pd.DataFrame(people).to_csv(folder / "participants.tsv", sep="\t", index=False)
    return folder


def test_boas_people_are_pid(tmp_path):
    ds = BOAS(tmp_path / "here")
    assert len(ds.fetch(str(bids(tmp_path / "away")))) == 5
    assert ds.subjects() == ["P007"] and [r.night for r in ds.records()] == [1, 2]
    assert [r.age for r in ds.records()] == [None, 30.0]
    assert ds.read(ds.records()[0]).counted.all()


@pytest.mark.parametrize("stage, counted", [(8, 0), (-2, 0), (4, 20)])
def test_boas_disconnections_are_no_stage(tmp_path, stage, counted):
    ds = BOAS(bids(tmp_path / "b", stage))
    assert ds.read(ds.records()[0]).counted.sum() == counted


@pytest.mark.parametrize(
    "damage, said", [("stage", "must be 0 to 4"), ("onset", "every 30 s"), ("column", "events file")]
)
def test_boas_damage_is_named(tmp_path, damage, said):
    ds = BOAS(bids(tmp_path / "b"))
    path = ds.records()[1].files[0]
    t = pd.read_csv(path, sep="\t")
    if damage == "stage":
        t.loc[3, "stage_hum"] = 6
    elif damage == "onset":
        t = t.drop(index=4)
    else:
        t = t.drop(columns="stage_ai")
    t.to_csv(path, sep="\t", index=False)
    with pytest.raises(InputError, match=said):
        ds.read(ds.records()[1])


# ---- the real nights


def real(ds):
    if not ds.available():
        pytest.skip(f"{ds.name} is not in place; `sleepai fetch {ds.name}` brings it")
    return [ds.read(r) for r in ds.records()]


def test_dod_human_ceiling():
    """Pooled kappa of each scorer against the other four, and of the pairs."""
    found = evidence(real(DOD()))
    size = found["epochs"].drop_duplicates("record").groupby("dataset")["counted"].agg(["size", "sum"])
    assert size.to_numpy().tolist() == [[25, 24_651], [55, 53_115]]
    for name, least, most, pair, first in (
        ("dod-h", 0.711, 0.798, 0.703, "DeepSleepNet 2017"),
        ("dod-o", 0.719, 0.775, 0.679, "SimpleSleepNet 2020"),
    ):
        low, high, _ = band(found, name)
        assert low == pytest.approx(least, abs=6e-4) and high == pytest.approx(most, abs=6e-4)
        assert mean_pairwise(found["confusions"], name)[0] == pytest.approx(pair, abs=6e-4)
        t = against_others(found["confusions"], name, n_boot=2)
        assert len(t) == 11 and t.index[0] == first and t.loc[first, "above"] == "5 of 5"


def test_dod_as_published():
    """With the authors' weights (share of scorers behind the consensus) and mean over nights, their F1 comes out.

    Guillot et al. 2020 print 86.8 % and 84.8 % for the scorers, 89.9 % and 88.3 % for SimpleSleepNet."""
    nights, of = real(DOD()), {}
    for s in nights:
        x = s.stages[:, s.counted].astype(int)
        ranking = np.argsort(-soft_agreement(x[:5]), kind="stable")
        simple = x[s.raters.index("SimpleSleepNet 2020")]
        for judged, keep in [(x[k], [r for r in ranking if r != k]) for k in range(5)] + [
            (simple, ranking[:4])
        ]:
            label, _ = consensus(x[keep], range(4))
            weight = (x[keep] == label).mean(0)
            f = f1_score(
                label, judged, labels=range(5), average="weighted", sample_weight=weight, zero_division=0
            )
            of.setdefault((s.cohort, judged is simple), []).append(f)
    found = {k: 100 * np.mean(v) for k, v in of.items()}
    assert found["dod-h", False] == pytest.approx(86.8, abs=0.1) and found["dod-h", True] == pytest.approx(
        89.9, abs=0.1
    )
    assert found["dod-o", False] == pytest.approx(84.8, abs=0.3) and found["dod-o", True] == pytest.approx(
        88.3, abs=0.1
    )


def test_boas_as_published():
    """Its README prints accuracies of 87.08 % (PSG) and 86.64 % (headband), each on its own epochs."""
    nights = real(BOAS())
    assert len(nights) == 128 and len({s.subject for s in nights}) == 100
    for row, want in ((1, 87.08), (2, 86.64)):
        human, model = (np.concatenate([s.stages[k] for s in nights]) for k in (0, row))
        both = (human >= 0) & (model >= 0)
        assert 100 * (human == model)[both].mean() == pytest.approx(want, abs=0.03)
    t = by_person_summary(evidence(nights)["confusions"])
    assert t["kappa"].astype(float).round(3).tolist() == [0.780, 0.768, 0.811]
