"""Facts about the real datasets that must never drift; where files are not in place, tests say so."""

import numpy as np
import pandas as pd
import pytest

from sleepai.core import Recording
from sleepai.data import checksum
from sleepai.datasets.dreams import Dreams
from sleepai.datasets.sleep_edf import (
    CHANNELS,
    SleepEDF,
    SleepEDFTelemetry,
    cassette_table,
    first_20,
    label_nights,
)
from sleepai.datasets.sleep_edf_features import SleepEDFFeatures
from sleepai.preprocessing.edf import write_edf
from sleepai.preprocessing.hypnogram import wake_trim

STAGES = ("W", "N1", "N2", "N3", "R")


def need(found, what):
    if not found:
        pytest.skip(f"{what} not in place; `sleepai fetch` brings it")


@pytest.fixture(scope="module")
def all_nights():
    table = SleepEDF().folder / "sleep-edf-78-hypnograms.csv.gz"
    need(table.is_file(), "the label table of all Sleep-EDF cassette nights is")
    return label_nights(table)


@pytest.fixture(scope="module")
def original_nights():
    folder = SleepEDF().folder
    nights = label_nights(folder) if folder.is_dir() else {}
    need(nights, "Sleep-EDF's *-Hypnogram.edf files are")
    return nights


def counts(nights, last=True):
    "(nights, epochs, epochs of each stage) inside the window of 30 min around sleep."
    total = np.zeros(5, int)
    for h in nights.values():
        kept = wake_trim(h.stages, 30)
        if not last:
            kept[np.flatnonzero(h.stages > 0)[-1] + 60 :] = False
        total += np.bincount(h.stages[kept & (h.stages >= 0)], minlength=5)
    return len(nights), int(total.sum()), *total.tolist()


def test_golden_counts_of_all_153_nights(all_nights):
    assert counts(all_nights) == (153, 195_469, 65_941, 21_522, 69_132, 13_039, 25_835)
    assert counts(all_nights, last=False)[1] == 195_325
    assert len({name[:5] for name in all_nights}) == 78


def test_golden_counts_of_the_first_20_subjects(all_nights):
    assert counts(first_20(all_nights)) == (39, 42_307, 8_284, 2_804, 17_799, 5_703, 7_717)
    assert counts(first_20(all_nights), last=False)[1] == 42_268


def test_the_counts_that_papers_print_leave_unscored_epochs_out_first(all_nights):
    from dataclasses import replace

    first = {n: replace(h, stages=h.stages[h.stages >= 0]) for n, h in all_nights.items()}
    assert counts(first)[1] == 195_479 and counts(first_20(first))[1] == 42_308
    assert counts(first)[3:] == counts(all_nights)[3:], "only wake differs"


def test_original_hypnograms_are_the_published_files(original_nights):
    from sleepai.datasets.sleep_edf import _edf_files

    table = cassette_table().set_index("record")
    paths = {
        f"{stem}0": path
        for stem, path in _edf_files(SleepEDF().folder, "Hypnogram").items()
        if stem.startswith("SC4")
    }
    assert set(paths) == set(original_nights)
    for name, path in paths.items():
        assert (
            path.name == table.hypnogram[name].split("/")[1]
            and checksum(path, "sha1") == table.hypnogram_sha1[name]
        )


def test_original_hypnograms_agree_with_the_label_table(original_nights, all_nights):
    for name, h in original_nights.items():
        assert np.array_equal(h.stages, all_nights[name].stages), name


def test_people_of_the_label_tables(all_nights):
    people = SleepEDF().folder / "sleep-edf-subjects.csv"
    need(people.is_file(), "the table of Sleep-EDF's people is")
    both = pd.read_csv(people).merge(cassette_table(), on="record")
    assert len(both) == 153 and (both.age_x == both.age_y).all() and (both.sex_x == both.sex_y).all()


@pytest.fixture(scope="module")
def features():
    ds = SleepEDFFeatures()
    need(len(ds.records()) >= 20, "sleep-edf-features is")
    return ds


def test_features_count_after_the_trim(features):
    kept = rows = 0
    for subject in [f"SC40{k}" for k in range(10)]:
        examples = features.load(subject)
        assert set(examples.meta.subject) == {subject} and np.isfinite(examples.X.to_numpy()).all()
        for rows_of_night in examples.meta.groupby("record").indices.values():
            rows += len(rows_of_night)
            kept += wake_trim(
                examples.y[rows_of_night], 30, examples.meta["index"].to_numpy()[rows_of_night]
            ).sum()
    assert (rows, kept) == (52_647, 20_230)


def test_features_carry_the_original_labels(features, original_nights):
    shorter = {}
    for subject in features.subjects():
        examples = features.load(subject)
        for name, rows in examples.meta.groupby("record").indices.items():
            scored = original_nights[name].stages if name in original_nights else np.array([])
            scored = scored[scored >= 0]
            if len(scored):
                assert np.array_equal(examples.y[rows], scored[: len(rows)]), name
                if len(rows) < len(scored):
                    shorter[name] = (len(rows), len(scored))
    assert shorter == {"SC4011E0": (951, 2802)}


def test_features_files_have_their_checksums(features):
    for f in features.info.files:
        f.check(features.folder)


@pytest.fixture(scope="module")
def dreams():
    ds = Dreams()
    need({"DREAMS1", "DREAMS3", "DREAMS5", "DREAMS7"} <= set(ds.subjects()), "DREAMS is")
    return ds


@pytest.mark.parametrize(
    "k, sfreq, stages",
    [
        (1, 100, (10, 1, 36, 13, 0)),
        (3, 50, (6, 12, 39, 3, 0)),
        (5, 200, (6, 2, 35, 17, 0)),
        (7, 200, (1, 6, 38, 10, 5)),
    ],
)
def test_dreams_excerpts(dreams, k, sfreq, stages):
    ((recording, hypnogram),) = dreams.load(f"DREAMS{k}")
    assert recording.sfreq == sfreq and recording.duration_s == 1800 and recording.ch_types == ("eeg",)
    assert 5 < recording.signals.std() < 100, "microvolts"
    assert tuple(hypnogram.counts()[s] for s in STAGES) == stages


@pytest.mark.parametrize("night", [0, 3])
def test_the_way_through_the_files_keeps_every_label(tmp_path, night):
    "Real annotations (simulated ones where none are in place) with simulated signals, in Sleep-EDF's form."
    from sleepai.datasets.simulated import Simulated, recording_for, rk_annotations, write_sleep_edf
    from sleepai.datasets.sleep_edf import _edf_files
    from sleepai.preprocessing.hypnogram import read_edf_hypnogram

    folder = SleepEDF().folder
    real = sorted(p for p in _edf_files(folder, "Hypnogram").values() if p.name.startswith("SC4"))
    if len(real) > night:
        annotations, name, scorer = (
            read_edf_hypnogram(real[night]),
            f"{real[night].name[:7]}0",
            real[night].name[7],
        )
        expected = label_nights(folder)[name].stages
    else:
        sim = Simulated(4)
        hypnogram = sim.hypnogram(sim.records()[night])
        annotations, name, scorer, expected = rk_annotations(hypnogram), "SC4001E0", "C", hypnogram.stages
    write_sleep_edf(recording_for(annotations, name), annotations, tmp_path / "sleep-cassette", name, scorer)

    ds = SleepEDF(tmp_path)
    (record,) = ds.records()
    recording, hypnogram = ds.read(record)
    assert (record.name, record.subject, record.night) == (name, name[:5], int(name[5]))
    assert recording.ch_names == ("EEG Fpz-Cz", "EEG Pz-Oz", "EOG horizontal", "EMG submental")
    assert recording.ch_types == ("eeg", "eeg", "eog", "misc"), "the 1-Hz envelope is no EMG"
    assert recording.signals.dtype == np.float32 and recording.duration_s == 30 * len(hypnogram)
    assert np.array_equal(hypnogram.stages, expected[: len(hypnogram)])
    assert (expected[len(hypnogram) :] < 0).all(), "what is cut off was never scored"
    assert counts({name: hypnogram})[1:] == counts({name: label_nights(tmp_path)[name]})[1:]


def test_the_emg_of_a_telemetry_night_is_a_signal(tmp_path):
    "At 100 Hz, as the telemetry study stored it: an EMG that a stager may use."
    x = np.random.default_rng(0).normal(0, 20, (4, 20 * 3000))
    notes = [(0, 300, "Sleep stage W"), (300, 300, "Sleep stage 2")]
    night = Recording(x, 100, CHANNELS, ("eeg", "eeg", "eog", "emg"), "ST701")
    write_edf(night, tmp_path / "ST7011J0-PSG.edf")
    write_edf(night, tmp_path / "ST7011JP-Hypnogram.edf", annotations=notes)
    ((recording, hypnogram),) = SleepEDFTelemetry(tmp_path).load("ST701")
    assert (
        recording.ch_types == ("eeg", "eeg", "eog", "emg")
        and hypnogram.stages.tolist() == [0] * 10 + [2] * 10
    )
