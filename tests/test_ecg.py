"""The ECG study: beats, datasets, models and what a user may get wrong. Real files where they are in place."""

import material
import numpy as np
import pandas as pd
import pytest
from trained import examples_for

from sleepai import registry
from sleepai.core import InputError, concat
from sleepai.datasets import ecg5000, ecg_csv, mitdb
from sleepai.evaluation.folds import make_folds
from sleepai.evaluation.run import dataset_examples
from sleepai.features.beat_features import beat_table, samples_in
from sleepai.preprocessing.beats import check_peaks, cut_beats, rr_table


@pytest.fixture
def table():
    return material.beats_table()


OFFICIAL = registry.protocols["official"]


# beats


def test_early_beat_stands_out_at_any_heart_rate():
    for rr in (0.5, 0.8, 1.1):
        gaps = np.full(40, rr)
        gaps[20:22] *= 0.7, 1.3
        t = rr_table(np.round(360 * np.cumsum(gaps)).astype(int), 360)
        assert t["rr__pre_local__10beats"].idxmin() == 20
        assert np.isclose(t["rr__pre_local__10beats"][20], np.log(0.7), atol=0.02)


def test_features_do_not_depend_on_gain_offset_or_rate():
    from sleepai.datasets.simulated_ecg import SFREQ, signal
    from sleepai.preprocessing.signals import to_rate

    x, peaks, _ = signal(1)
    usual = beat_table(x, peaks, SFREQ, "MLII")
    louder = beat_table(5 * x + 3, peaks, SFREQ, "MLII")
    faster = beat_table(to_rate(x, SFREQ, 500), 2 * peaks, 500, "MLII")
    assert np.abs(usual - louder).max(axis=None) < 0.02
    samples = samples_in(usual.columns)
    assert np.abs(usual[samples] - faster[samples]).to_numpy()[5:-5].mean() < 0.02


def test_beats_at_the_ends_are_kept():
    x = np.sin(np.arange(1000) / 20)
    assert cut_beats(x, np.array([3, 500, 998]), 250).shape == (3, 100)


@pytest.mark.parametrize(
    "peaks, said", [(np.arange(0, 4000, 24), "900 beats/min is impossible"), (np.array([5, 3, 9]), "in increasing order")]
)
def test_impossible_beats(peaks, said):
    with pytest.raises(InputError, match=said):
        check_peaks(peaks, 360, 4000, "record")


# datasets


def test_simulated_is_called_simulated_and_has_people():
    ds = registry.datasets["simulated-ecg"]
    assert ds.info.simulated and "simulated" in ds.info.title.lower() and len(ds.subjects()) >= 10
    ex = dataset_examples(ds, None, registry.protocols["5-fold"])
    assert all(len(set(ex.y[f.test])) == 4 for f in make_folds(ex.subjects, 5))


def test_split_of_de_chazal():
    assert len(mitdb.DS1) == len(mitdb.DS2) == 22 and len(mitdb.files()) == 132
    assert all(len(f.hash) == 71 and f.url.startswith("https://physionet.org/") for f in mitdb.files())
    assert len({f.hash for f in mitdb.files()}) == 132
    assert [mitdb.aami(s) for s in "NLRejAaJSVEF/fQ+~|"] == [0] * 5 + [1] * 4 + [2] * 2 + [3] + [4] * 3 + [
        -1
    ] * 3


@pytest.fixture
def tape(tmp_path):
    return material.tape(tmp_path)


def test_one_man_is_on_one_side(tape, monkeypatch, tmp_path):
    monkeypatch.setenv("SLEEPAI_DATA", str(tmp_path / "data"))
    ds = mitdb.MITDB(tape)
    assert ds.subjects() == ["114", mitdb.PERSON] and {r.name for r in ds.records()} == {"114", "202"}
    ex = concat([ds.load(s) for s in ds.subjects()])
    assert ds.exclusions() == {"record 201: the same man as 202, who is tested": 68}
    assert ds.examples().exclusions == ds.exclusions(), "what was left out is told with the examples"
    assert len(ex) == 136, "rhythm changes and noise are no beats"
    (fold,) = OFFICIAL.split(ex)
    assert set(ex.subjects[fold.train]) == {"114"} and set(ex.subjects[fold.test]) == {mitdb.PERSON}
    whole = ds.load("114").X
    assert whole["MLII__s037__beat"].median() > 0.7, "MLII is chosen by name"


def test_bad_records(tape):
    (tape / "202.atr").write_bytes(b"no")
    with pytest.raises(InputError, match="cannot be read|check the annotation file"):
        mitdb.MITDB(tape).load(mitdb.PERSON)
    text = (tape / "114.hea").read_text().replace("MLII", "V1")
    (tape / "114.hea").write_text(text)
    with pytest.raises(InputError, match="has no lead MLII"):
        mitdb.MITDB(tape).load("114")
    with pytest.raises(InputError, match="sleepai fetch mitdb"):
        mitdb.MITDB(tape / "empty").load("100")


def test_header_checksums_ignore_line_ends(tmp_path):
    import hashlib

    text = b"100 2 360\r\n# 69 M\r\n"
    f = mitdb.TextFile("100.hea", hash="sha256:" + hashlib.sha256(text).hexdigest())
    for found in (text, text.replace(b"\r\n", b"\n")):
        (tmp_path / "100.hea").write_bytes(found)
        f.check(tmp_path)
    (tmp_path / "100.hea").write_bytes(b"101 2 360\n")
    with pytest.raises(InputError, match="not the published file"):
        f.check(tmp_path)


def test_ecg5000_beats_are_their_own_pseudo_subjects(table, tmp_path):
    t = material.ecg5000_table()
    t.to_csv(tmp_path / ecg5000.TABLE, index=False)
    five, two = ecg5000.ECG5000(tmp_path), ecg5000.ECG5000Binary(tmp_path)
    assert len(five.subjects()) == 20 and "no claim about new patients" in five.info.note
    ex = dataset_examples(five, None, registry.protocols["official"])
    (fold,) = OFFICIAL.split(ex)
    assert (len(fold.train), len(fold.test)) == (8, 12) and len(set(ex.subjects)) == 20
    assert two.load("beat-0002").y[0] == 1 and two.load("beat-0001").y[0] == 0
    with pytest.raises(InputError, match="unknown subject 'beat-9999'"):
        five.load("beat-9999")
    t.drop(columns="t7").to_csv(tmp_path / ecg5000.TABLE, index=False)
    with pytest.raises(InputError, match="column t7 is missing"):
        ecg5000.ECG5000(tmp_path).load("beat-0001")


BROKEN = {
    "no label column": lambda t: t.drop(columns="label"),
    "column t3 is missing": lambda t: t.drop(columns="t3"),
    "is 'high', not a finite number": lambda t: t.astype({"t2": object}).replace(
        {"t2": {t["t2"][4]: "high"}}
    ),
    "is 'nan'": lambda t: t.assign(t1=[np.nan, *t["t1"][1:]]),
    "only the class 1": lambda t: t.assign(label=1),
    "need 2 to 20 classes": lambda t: t.assign(label=np.arange(len(t))),
    "patients A and G are the same beat": lambda t: pd.concat([t, t.head(1).assign(patient="G")]),
    "is in both training and test set": lambda t: t.assign(split=["train", "test"] * 30),
    "must contain train and test": lambda t: t.assign(split="learn"),
    "is 900, which is impossible": lambda t: t.assign(heart_rate=[900] + [70] * 59),
    "has no label": lambda t: t.assign(label=[None, *t["label"][1:]]),
    "has no patient": lambda t: t.assign(patient=[None, *t["patient"][1:]]),
    "need numbered columns": lambda t: t.rename(columns=lambda c: c.replace("t", "x")),
    "has no rows": lambda t: t.head(0),
}


@pytest.mark.parametrize("said", BROKEN)
def test_broken_table_gets_one_sentence(said, table, tmp_path):
    BROKEN[said](table).to_csv(tmp_path / "mine.csv", index=False)
    with pytest.raises(InputError, match=said) as e:
        ecg_csv.EcgCsv().at(tmp_path / "mine.csv").load("A")
    assert "\n" not in str(e.value) and "mine.csv" in str(e.value)


def test_table_of_beats(table, tmp_path):
    table.to_csv(tmp_path / "mine.csv", index=False)
    ds = ecg_csv.EcgCsv().at(tmp_path)
    assert ds.subjects() == list("ABCDEF") and ds.classes == ("0", "1", "2")
    assert "Found 3 classes" in ds.info.note and "6 patients" in ds.info.note
    table.drop(columns="patient").assign(label=np.arange(60) % 2).to_csv(tmp_path / "two.csv", index=False)
    two = ecg_csv.EcgCsv().at(tmp_path / "two.csv")
    assert (
        "a binary task" in two.info.note
        and len(two.subjects()) == 60
        and "separate person" in two.info.note
    )
    with pytest.raises(InputError, match="found 2 tables"):
        ds.at(tmp_path).load("A")
    with pytest.raises(InputError, match="no .csv file found"):
        ds.at(tmp_path / "none").load("A")


def test_table_runs_from_the_command_line(sleepai, table, tmp_path):
    table.to_csv(tmp_path / "mine.csv", index=False)
    asked = ("run", "ecg", "-d", "ecg-csv", "--folder", tmp_path / "mine.csv", "-m", "boosted", "--no-report")
    sleepai(*asked, check=0)
    assert (sleepai.reports / "ecg" / "ecg-csv" / "boosted" / "run.json").exists()
    table.assign(label=1).to_csv(tmp_path / "mine.csv", index=False)
    assert "only the class 1" in sleepai(*asked, check=2).stderr


# models


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_one_sigmoid_unit_for_two_classes(name):
    model = registry.models.of("ecg", name)
    ex = examples_for(model)
    fitted = model.build(seed=0).set_params(epochs=1, least=64).fit(ex.X, ex.y > 0, ex.meta)
    assert fitted.network_.weights[-1].shape == (1,), "the last layer has one unit"
    p = fitted.predict_proba(ex.X, ex.meta)
    assert p.shape == (len(ex), 2) and np.allclose(p.sum(1), 1)
    with pytest.raises(InputError, match="column .* is missing"):
        fitted.predict_proba(ex.X.drop(columns=ex.X.columns[0]), ex.meta)


def test_plain_network_is_128_and_64():
    model = registry.models.of("ecg", "mlp")
    ex = examples_for(model)
    fitted = model.build(seed=0).set_params(epochs=1, least=64).fit(ex.X, ex.y, ex.meta)
    assert [w.shape[-1] for w in fitted.network_.weights if len(w.shape) == 2] == [128, 64, 4]


# real data


@pytest.mark.skipif(not mitdb.MITDB().available(), reason="the records are not in place")
def test_real_beats():
    ds = mitdb.MITDB()
    assert len(ds.subjects()) == 43 and len(ds.load("114").y) == 1879
    ex = concat([ds.load(s) for s in (mitdb.PERSON, "114", "232")])
    assert np.bincount(ex.y[ex.subjects == "232"], minlength=5)[1] == 1382
    assert ds.exclusions() and np.isfinite(ex.X.to_numpy()).all()


@pytest.mark.skipif(not ecg5000.ECG5000().available(), reason="the file is not in place")
def test_real_ecg5000():
    ds = ecg5000.ECG5000()
    X, kinds, tested = ds._table()
    assert np.bincount(kinds)[1:].tolist() == [2919, 1767, 96, 194, 24] and tested.sum() == 4500
