"""Intensive care: no look ahead, patients on one side, broken files answered in a sentence, models kept and found again."""

import material
import numpy as np
import pandas as pd
import pytest

from sleepai import registry
from sleepai.audit.counterfactual import sample
from sleepai.core import InputError, Predictions
from sleepai.datasets.eicu import Hypotension, Mortality
from sleepai.datasets.mimic_csv import MimicStroke, is_stroke
from sleepai.datasets.physionet2012 import PhysioNet2012
from sleepai.datasets.simulated_icu import SimulatedHypotension, SimulatedICU, simulated_stays
from sleepai.datasets.stays import pressure_ahead
from sleepai.evaluation.folds import make_folds
from sleepai.evaluation.run import dataset_examples
from sleepai.features.stays import stay_rows
from sleepai.models.base import fit
from sleepai.models.stay_networks import StayNetwork
from sleepai.preprocessing.stays import VARIABLES, hourly, plausible


@pytest.fixture(scope="module")
def ex():
    return sample(SimulatedICU().load(SimulatedICU().subjects()), 90, 5)


# No look ahead -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", [SimulatedICU, SimulatedHypotension])
def test_the_future_moves_nothing(dataset):
    """What a dataset makes of a stay at an hour does not depend on one bit of what comes after it."""
    ds = dataset()
    hours, statics, _ = simulated_stays(2, 36)
    signs = [c for c in hours if c not in ("stay", "hour")]
    asked = pd.DataFrame([(s, h, 0) for s in statics.index for h in range(36)], columns=["stay", "hour", "y"])
    how = dict(ds.windows), list(ds.shown), ds.length
    whole, _ = stay_rows(hours, statics, asked, *how)
    for now in (0, 7, 20):
        other = hours.astype(dict.fromkeys(signs, float))
        other.loc[other["hour"] > now, signs] = np.random.default_rng(now).normal(
            0, 1e4, ((other["hour"] > now).sum(), len(signs))
        )
        known = (asked["hour"] <= now).to_numpy()
        pd.testing.assert_frame_equal(stay_rows(other, statics, asked, *how)[0][known], whole[known])


def test_labels_lie_ahead():
    stay = pd.DataFrame(dict(stay="A", hour=range(5), map=[80, 70, 60, 64, 66]))
    assert pressure_ahead(stay)[["hour", "y"]].values.tolist() == [[0, 1], [1, 1]]


def test_hours_are_full_hours():
    long = pd.DataFrame(
        [("A", 0.99, "hr", 80), ("A", 1.0, "hr", 90), ("A", 48.0, "hr", 70)],
        columns=["stay", "hours", "variable", "value"],
    )
    grid = hourly(long, 48)
    assert grid["hr"].dropna().tolist() == [80, 90, 70] and grid["hr"].dropna().index.tolist() == [0, 1, 47]


# Patients --------------------------------------------------------------------------------------------------


def test_a_patient_is_on_one_side():
    ds = SimulatedHypotension()
    ex = ds.load(ds.subjects())
    twice = ex.meta.groupby("subject")["record"].nunique()
    assert (twice > 1).sum() > 10, "some patients have two stays"
    for fold in make_folds(ex.subjects, 5):
        assert not set(ex.subjects[fold.train]) & set(ex.subjects[fold.test])


def test_one_by_one_is_the_same_as_all_at_once():
    ds = SimulatedICU()
    few = ds.subjects()[:4]
    at_once = dataset_examples(ds, registry.features["seed16"], registry.protocols["5-fold"], limit=4)
    one = pd.concat([ds.load(s).X for s in few], ignore_index=True)
    pd.testing.assert_frame_equal(
        at_once.X.sort_values(list(one)[:3], ignore_index=True),
        one.sort_values(list(one)[:3], ignore_index=True),
    )


# Models ------------------------------------------------------------------------------------------------------


def test_networks_say_what_they_lack(ex):
    with pytest.raises(InputError, match="needs hourly columns"):
        fit(StayNetwork(), ex.X[["hr__mean__48h"]], ex.y, ex.meta)


# Broken files -----------------------------------------------------------------------------------------------

STAY = material.STAY


def physionet(folder, **changed):
    return PhysioNet2012(material.challenge(folder, **changed))


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (dict(one=STAY.format(age=60, hr=900)), "1.txt: heart rate of 900 is impossible"),
        (dict(one=STAY.format(age=60, hr="fast")), "1.txt: the line"),
        (dict(one=STAY.format(age=460, hr=80)), "1.txt: age at admission of 460"),
        (dict(one="a,b\n1,2\n"), "1.txt: its first line"),
        (dict(one=STAY.format(age=60, hr=80) + "00:20,Pulse,80\n"), "no parameter 'Pulse'"),
        (dict(one=STAY.format(age=60, hr=80) + "00:20,HR\n"), "does not hold three values"),
        (dict(outcomes="RecordID,In-hospital_death\n1,0\n2,0\n"), "every outcome is 0"),
        (dict(outcomes="RecordID,In-hospital_death\n1,0\n1,1\n2,1\n"), "stay 1 is in it twice"),
        (dict(outcomes="RecordID,Death\n1,0\n2,1\n"), "column 'In-hospital_death' is missing"),
        (dict(outcomes="RecordID,In-hospital_death\n1,yes\n2,1\n"), "'yes' is not a number"),
        (dict(outcomes="RecordID,In-hospital_death\n2,1\n"), "no outcome for it"),
    ],
)
def test_physionet_says_what_is_wrong(broken, said, tmp_path, monkeypatch):
    monkeypatch.setenv("SLEEPAI_DATA", str(tmp_path / "data"))
    with pytest.raises(InputError, match=said) as e:
        physionet(tmp_path / "raw", **broken).examples()
    assert "\n" not in str(e.value)


def test_physionet_reads_a_good_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SLEEPAI_DATA", str(tmp_path / "data"))
    ds = physionet(tmp_path / "raw")
    assert ds.available() and ds.subjects() == ["1", "2"] and ds.load("2").y.tolist() == [1]
    assert PhysioNet2012(tmp_path).available() is False and PhysioNet2012(tmp_path).subjects() == []


def eicu(folder, kind=Hypotension, **changed):
    return kind(material.eicu(folder, kind.task, **changed))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (dict(dyn=lambda t: t.assign(hr=900.0)), "dyn.parquet: heart rate of 900 is impossible"),
        (dict(dyn=lambda t: t.assign(hr="x")), "'x' is not a number"),
        (dict(dyn=lambda t: t.drop(columns="map")), "column 'map' is missing"),
        (dict(dyn=lambda t: pd.concat([t, t])), "hour twice"),
        (dict(sta=lambda t: pd.concat([t, t])), "more than once"),
        (dict(sta=lambda t: t.assign(sex="diverse")), "sex must be"),
        (dict(dyn=lambda t: t.assign(map=80.0)), "every outcome is 0"),
    ],
)
def test_eicu_says_what_is_wrong(changed, said, tmp_path, monkeypatch):
    monkeypatch.setenv("SLEEPAI_DATA", str(tmp_path / "data"))
    with pytest.raises(InputError, match=said):
        eicu(tmp_path / "raw", **changed).examples()


def test_eicu_knows_its_people(tmp_path, monkeypatch):
    monkeypatch.setenv("SLEEPAI_DATA", str(tmp_path / "data"))
    ds = eicu(tmp_path / "raw")
    assert len(ds.subjects()) == 2 and {r.sex for r in ds.records()} == {"F", "M"}
    (tmp_path / "raw" / "patient.csv").write_text("patientunitstayid,uniquepid\n1,002-1\n2,002-1\n")
    assert ds.at(tmp_path / "raw").subjects() == ["002-1"]
    one = eicu(tmp_path / "more", Mortality)
    assert one.examples().y.tolist() == [0, 1] and one.examples().meta["index"].tolist() == [24, 24]


def test_stroke_codes():
    assert (
        is_stroke("43411")
        and is_stroke("4329")
        and is_stroke("I63.511", 10)
        and not is_stroke("4359")
        and not is_stroke("I69.30", 10)
    )
    assert "lacks the table" in str(MimicStroke("nowhere").missing())


def test_bounds_are_wide_enough_for_the_sick():
    for name, value in dict(hr=220, temp=41.5, lact=25, crea=18, ph=6.8, glu=1100, gcs=3).items():
        assert plausible([value], name, "")[0] == value
    assert VARIABLES["unit"].notna().all()


# Real data, where it is in place -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "n", "positive"),
    [("physionet2012", 4000, 554), ("eicu-mortality", 1367, 70), ("eicu-hypotension", 84_445, 5_688)],
)
def test_real_counts(name, n, positive):
    ds = registry.datasets[name]
    if not ds.available():
        pytest.skip(f"the files of {name} are not in place")
    ex = ds.examples()
    assert (len(ex), int(ex.y.sum())) == (n, positive)


def test_predictions_of_hours_are_told_apart():
    ds = SimulatedHypotension()
    ex = ds.load(ds.subjects())
    frame = ex.meta.assign(fold="f", y_true=ex.y, p_stable=0.5, p_hypotension=0.5)
    assert len(Predictions("icu", ds.name, "m", ex.classes, frame)) == len(ex)
