"""The study of sleep apnea: beats, features, both layouts of Apnea-ECG, models, and what its reports add up."""

import numpy as np
import pandas as pd
import pytest
import wfdb
from material import apnea_nights, heart_rates

from sleepai import registry
from sleepai.audit.counterfactual import sample
from sleepai.core import InputError, Predictions, concat
from sleepai.datasets.apnea_ecg import HR_FILE, ONE_RECORDING, ApneaECG, half, night_of, person
from sleepai.datasets.simulated_apnea import SimulatedApnea
from sleepai.evaluation.folds import make_folds
from sleepai.evaluation.run import dataset_examples
from sleepai.features.hrv import hrv_table
from sleepai.models.base import fit, probabilities
from sleepai.models.heart_rate_context import in_its_night, with_neighbours
from sleepai.preprocessing.heart_rate import check_beats, clean_beats
from sleepai.studies.apnea_sections import (
    a_night,
    apnea_index,
    class_table,
    index_limits,
    night_class,
    nights_of,
)

NIGHTS = apnea_nights()

OFFICIAL = registry.protocols["official"]


def archive(folder, **changed):
    return ApneaECG(heart_rates(folder, **changed))


def waveform(folder, name="a01", seconds=600, qrs=False, labels="NANAN" * 2):
    """A record as PhysioNet lays it out."""
    t = NIGHTS["a01"][0]
    at, n = (t[t < seconds] * 100).astype(int), seconds * 100
    ecg = np.random.default_rng(0).normal(0, 0.02, n)
    for k in at[at < n - 5]:
        ecg[k - 2 : k + 3] += np.array([0.2, 0.7, 1, 0.7, 0.2])
    wfdb.wrsamp(name, 100, ["mV"], ["ECG"], ecg[:, None], fmt=["16"], write_dir=str(folder))
    minutes = np.arange(len(labels)) * 6000
    wfdb.wrann(name, "apn", minutes, list(labels), fs=100, write_dir=str(folder))
    if qrs:
        wfdb.wrann(name, "qrs", at, ["N"] * len(at), fs=100, write_dir=str(folder))
    return at


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SLEEPAI_DATA", str(tmp_path / "data"))


def wild():
    t, hr, _ = NIGHTS["a01"]
    return np.where(np.arange(len(hr)) == np.flatnonzero(t % 60 > 30)[99], 900, hr)


@pytest.mark.parametrize(
    "changed, said",
    [
        (dict(a01_t=None), "a01 lacks a01_t"),
        (dict(a01_hr=wild()), "heart rate of 900"),
        (dict(a01_hr=np.where(np.arange(len(NIGHTS["a01"][1])) == 7, "fast", "60")), "must be numbers"),
        (dict(a01_apn=np.full(240, 2)), "labels must be 0 or 1"),
        (dict(a01_apn=np.zeros(100, bool)), "of the same night"),
        (dict(a01_t=NIGHTS["a01"][0][::-1]), "must increase"),
        (dict(a01_hr=NIGHTS["a01"][1][:-5]), "both for every beat"),
        (dict(b99x_hr=np.ones(3), b99x_t=np.ones(3), b99x_apn=np.ones(3)), "not named"),
        ({f"a21_{k}": v for k, v in zip(("t", "hr", "apn"), NIGHTS["a01"], strict=True)} | {f"a01_{k}": v for k, v in zip(("t", "hr", "apn"), NIGHTS["a01"], strict=True)}, "the same night"),
        ({f"{n}_apn": np.zeros(240, bool) for n in NIGHTS}, "two classes are needed"),
    ],
)  # fmt: skip
def test_broken_archive(tmp_path, changed, said):
    with pytest.raises(InputError) as e:
        ds = archive(tmp_path / "raw", **changed)
        ds.checksums()
        for s in ds.subjects():
            ds.load(s)
    message = str(e.value)
    assert said in message and message.count("\n") == 0 and message.endswith(".") and len(message) < 400


def test_not_an_archive(tmp_path):
    (tmp_path / HR_FILE).write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(InputError, match="not an archive"):
        ApneaECG(tmp_path).subjects()
    assert not ApneaECG(tmp_path / "empty").available()
    with pytest.raises(InputError, match="sleepai fetch apnea-ecg"):
        ApneaECG(tmp_path / "empty").load("a01")


def test_archive_and_halves(tmp_path):
    ds = archive(tmp_path / "raw")
    exs = [ds.load(s) for s in ds.subjects()]
    assert [half(r) for r in NIGHTS] == ["train", "train", "test", "test"]
    assert {e.meta["record"][0]: e.meta["split"][0] for e in exs} == {r: half(r) for r in NIGHTS}
    assert all(np.isfinite(e.X).all().all() and len(e) == 240 for e in exs)
    fold = OFFICIAL.split(concat(exs))[0]
    assert set(fold.subjects[fold.test]) == {"a21", "c11"}
    again = ApneaECG(tmp_path / "raw")
    assert again.load("a01").X.equals(exs[0].X) and again.checksums() == ds.checksums()


def test_pairs_are_one_person_and_never_across_the_halves():
    assert all(person(a) == person(b) and half(a) == half(b) for a, b in ONE_RECORDING.items())


def test_detector_errors_are_cleaned_not_refused():
    t, hr, _ = NIGHTS["a01"]
    at = np.flatnonzero(t % 60 > 30)[5]
    extra = np.insert(t, at + 1, t[at] + 0.05)
    times, rates = check_beats(extra[1:], 60 / np.diff(extra), "night")
    assert rates.max() > 1000 and clean_beats(times, rates)[1].max() < 220


@pytest.mark.parametrize("qrs", [True, False])
def test_physionet_layout(tmp_path, qrs):
    at = waveform(tmp_path, qrs=qrs)
    ds = ApneaECG(tmp_path)
    ex = ds.load("a01")
    assert len(ex) == 10 and ex.y.tolist() == [0, 1, 0, 1, 0] * 2
    assert any(c.startswith("edr__") for c in ex.X) and np.isfinite(ex.X).all().all()
    assert abs(len(night_of(ds.records()[0])[0]) - len(at)) < 8


def test_physionet_trouble(tmp_path):
    waveform(tmp_path, qrs=True)
    waveform(tmp_path, "a02", qrs=True)
    with pytest.raises(InputError, match="the same night"):
        ApneaECG(tmp_path).checksums()
    (tmp_path / "a02.dat").unlink()
    with pytest.raises(InputError, match="cannot be read|no such file"):
        ApneaECG(tmp_path).load("a02")
    (tmp_path / "a01.apn").write_bytes(b"\x01")
    with pytest.raises(InputError):
        ApneaECG(tmp_path).load("a01")


def test_views_are_of_one_record_and_see_no_label():
    X = hrv_table(*NIGHTS["a01"][:2], 240)
    gaps = np.delete(np.arange(240), [10, 11, 12])
    for view in (in_its_night, with_neighbours):
        made = view(X.iloc[gaps].reset_index(drop=True), gaps)
        assert len(made) == 237 and np.isfinite(made).all().all() and not made.columns.duplicated().any()
        assert not any("__at" in c for c in made)


def test_simulated_nights_are_neither_trivial_nor_hopeless():
    model = registry.models.of("apnea", "boosted")
    ds, plan = SimulatedApnea(), registry.protocols["5-fold"]
    made = dataset_examples(ds, registry.features[model.features], plan, 6, transform=model.transform)
    ex = sample(made, 6, 40)
    fold = make_folds(ex.subjects, 3)[0]
    train, test = ex.take(fold.train), ex.take(fold.test)
    p = probabilities(fit(model.build(), train.X, train.y, train.meta), test.X, 2)
    assert 0.6 < (p.argmax(1) == test.y).mean() < 0.99


def made_up(wrong=0.1):
    parts, rng = [], np.random.default_rng(0)
    for k, (name, (_, _, y)) in enumerate(NIGHTS.items()):
        p = np.where(rng.random(len(y)) < wrong, ~y, y) * 0.8 + 0.1
        parts.append(
            pd.DataFrame(
                dict(
                    fold="f",
                    subject=f"P{k}",
                    record=name,
                    index=np.arange(len(y)),
                    y_true=y.astype(int),
                    p_normal=1 - p,
                    p_apnea=p,
                )
            )
        )
    return Predictions("apnea", "simulated-apnea", "made up", ("normal", "apnea"), pd.concat(parts, ignore_index=True))  # fmt: skip


def test_index_and_classes():
    pred = made_up(0)
    nights = nights_of(pred)
    assert (nights["expert"] == nights["predicted"]).all() and np.allclose(index_limits(nights)["value"], 0)
    assert np.trace(class_table(nights).to_numpy()) == len(nights)
    assert nights.loc["a01", "expert"] == pytest.approx(60 * NIGHTS["a01"][2].mean())
    minutes = np.arange(600)
    assert [night_class(minutes < n, minutes) for n in (0, 4, 5, 99, 100)] == ["C", "C", "B", "B", "A"]


def test_sections_show_tables_and_figures():
    pred = made_up()
    for part in [*apnea_index(pred, None), *a_night(pred, None)]:
        assert isinstance(part, str) or hasattr(part, "savefig") or len(part._repr_html_()) > 50


def test_real_nights():
    import os

    os.environ.pop("SLEEPAI_DATA", None)
    ds = registry.datasets["apnea-ecg"]
    if not ds.available():
        pytest.skip("the files of apnea-ecg are not in place")
    assert len(ds.records()) == 70 and len(ds.subjects()) == 67
    t, hr, y, _ = night_of(next(r for r in ds.records() if r.name == "a01"))
    assert len(y) == 487 and y.sum() == 469 and len(t) == len(hr) > 29_000
