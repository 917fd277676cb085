"""Windows, their golden counts, and what is computed before a recording is cut."""

import numpy as np
import pandas as pd
import pytest

from sleepai.analyses import windows as page
from sleepai.core import STAGES, Examples, Hypnogram, InputError, Predictions, Recording
from sleepai.datasets.base import DatasetInfo, Record
from sleepai.datasets.real_hypnograms import LABELS, SimulatedSleepEDF, recorded_part, scored_nights
from sleepai.datasets.recordings import Recordings
from sleepai.datasets.sleep_edf import NIGHT_TIMES, SleepEDF, SleepEDFTelemetry, first_20, night_times
from sleepai.datasets.sleep_edf_features import SleepEDFFeatures
from sleepai.datasets.tables import Tables
from sleepai.evaluation.folds import Protocol
from sleepai.evaluation.run import dataset_examples
from sleepai.features.base import FeatureSet
from sleepai.preprocessing.hypnogram import wake_trim
from sleepai.registry import datasets, protocols
from sleepai.studies.sleep_windows import EXPECTED, WINDOWS, rescored, sleep_window, window_rows

W, N2, R, NO, MT = 0, 2, 4, -1, -2
NIGHT = np.array([W, W, W, W, N2, NO, R, MT, N2, W, W, W, W, NO])


def inside(window, stages=NIGHT, minutes=1, **how):
    return np.flatnonzero(sleep_window(stages, window, minutes, **how)).tolist()


@pytest.mark.parametrize(
    "window, kept",
    [
        ("inclusive", range(2, 11)),
        ("last-excluded", range(2, 10)),
        ("two-fewer", range(3, 10)),
        ("unscored-first", [2, 3, 4, 6, 8, 9, 10]),
        ("unscored-first-two-fewer", [2, 3, 4, 6, 8]),
        ("tinysleepnet", range(2, 14)),
        ("lights", range(3, 7)),
        ("none", range(14)),
    ],
)
def test_every_window_on_one_night(window, kept):
    "Two epochs either side; lights off at 3, on at 7."
    assert inside(window, lights=(3, 7)) == list(kept)
    assert set(WINDOWS) == set(EXPECTED) and window in WINDOWS


def test_a_gap_before_sleep_is_bridged_only_when_unscored_epochs_go_first():
    stages = np.array([W, W, W, NO, W, N2, W, W])
    assert inside("inclusive", stages, 1) == [3, 4, 5, 6, 7]
    assert inside("unscored-first", stages, 1) == [2, 4, 5, 6, 7]


def test_a_window_stops_at_the_ends_of_the_recording():
    stages = np.array([W, N2, W])
    assert inside("inclusive", stages, 30) == [0, 1, 2] == inside("last-excluded", stages, 30)


def test_the_default_window_is_the_trim_of_before():
    for minutes in (0, 1, 30):
        assert (sleep_window(NIGHT, "inclusive", minutes) == wake_trim(NIGHT, minutes)).all()


def test_index_counts_epochs_that_were_left_out():
    scored = NIGHT >= 0
    got = np.flatnonzero(scored)[sleep_window(NIGHT[scored], "inclusive", 1, np.flatnonzero(scored))]
    assert got.tolist() == [2, 3, 4, 6, 8, 9, 10]


@pytest.mark.parametrize("window", ["inclusive", "two-fewer", "unscored-first", "tinysleepnet"])
def test_a_night_without_sleep_is_refused(window):
    with pytest.raises(InputError, match="night1: there is no sleep in its 4 epochs"):
        sleep_window([W, W, NO, W], window, where="night1")


def test_what_cannot_be_cut_is_refused():
    with pytest.raises(InputError, match="Unknown window 'half'. Available: inclusive"):
        sleep_window(NIGHT, "half")
    with pytest.raises(InputError, match="night1: the window 'lights' needs lights-off and lights-on times, which are not known"):
        sleep_window(NIGHT, "lights", where="night1")
    with pytest.raises(InputError, match="Unknown window 'half'. Available: inclusive"):
        Days().examples(["A"], FS, Protocol("p", "p", window="half"))


def test_every_scheme_stands_under_every_window():
    for scheme in ("5-fold", "leave-one-subject-out", "sleep-edf-20", "sleep-edf-78"):
        names = [scheme + {"inclusive": "", "none": "-no-trim"}.get(w, f"-{w}") for w in WINDOWS]
        assert [protocols[n].window or "inclusive" for n in names] == list(WINDOWS)
        assert {(p.n_folds, p.first_subjects) for p in map(protocols.__getitem__, names)} == {
            (protocols[scheme].n_folds, protocols[scheme].first_subjects)
        }
    assert protocols["sleep-edf-20-tinysleepnet"].expected["sleep-edf"] == 44_220
    assert protocols["sleep-edf-78"].expected["simulated-sleep-edf"] == 195_469
    described = protocols["5-fold-lights"].describe()
    assert described["window"] == "lights" and described["scheme"] == "Protocol"


class Days(Recordings):
    "Two days with four epochs of sleep each; every feature is the number of the epoch."

    name, info = "days", DatasetInfo("Two days", "made here", "MIT", "none", simulated=True)

    def records(self):
        return [Record("A1", "A"), Record("B1", "B")]

    def read(self, record):
        stages = np.r_[[W] * 100, [1, N2, NO, R], [W] * 100]
        return Recording(
            np.zeros((1, 3000 * len(stages))), 100, ["EEG Fpz-Cz"], ["eeg"], record.subject, 1, record.name
        ), Hypnogram(stages)


class LitDays(Days):
    name = "lit-days"

    def lights(self, record):
        return (99, 102) if record.name == "A1" else (101, 110)


def numbers(recording):
    return pd.DataFrame({"eeg__number__30s": np.arange(int(recording.duration_s / 30), dtype=float)})


FS, PLAN = FeatureSet("numbers", "numbers", numbers, keep=False), Protocol("p", "p")


def rows_of_the_whole_record(X, index):
    "A transform: how many rows it was shown, and what lies 50 epochs ahead."
    assert (X["eeg__number__30s"].to_numpy() == index).all()
    return X.assign(eeg__rows__30s=len(X), eeg__ahead__1500s=X["eeg__number__30s"].shift(-50))


def test_a_transform_sees_the_record_before_it_is_cut():
    ex = Days().examples(["A"], FS, PLAN, transform=rows_of_the_whole_record)
    assert len(ex) == 60 + 3 + 60 and (ex.X["eeg__rows__30s"] == 204).all()
    assert (ex.X["eeg__ahead__1500s"].to_numpy() == ex.meta["index"].to_numpy() + 50)[:-20].all()
    assert ex.exclusions == {"outside the sleep window": 80, "unscored": 1, "movement": 0}


def test_a_transform_goes_to_worker_processes():
    plan = Protocol("p", "p", window="last-excluded")
    ex = dataset_examples(Days(), FS, plan, jobs=2, transform=rows_of_the_whole_record)
    assert len(ex) == 2 * (60 + 3 + 59) and (ex.X["eeg__rows__30s"] == 204).all()


class Published(Tables):
    """The same days as rows without the unscored epochs."""

    name, info = "published-days", DatasetInfo("Two days", "made here", "MIT", "none", simulated=True)

    def records(self):
        return Days().records()

    def load_subject(self, subject):
        y = np.r_[[W] * 100, [1, N2, R], [W] * 100]
        meta = pd.DataFrame(dict(subject=subject, record=f"{subject}1", index=np.arange(len(y))))
        return Examples(pd.DataFrame({"eeg__number__30s": np.arange(203.0)}), y, STAGES, meta)


def test_a_transform_of_published_features():
    ex = Published().examples(["B"], FS, PLAN, transform=rows_of_the_whole_record)
    assert len(ex) == 123 and (ex.X["eeg__rows__30s"] == 203).all()
    with pytest.raises(InputError, match="the window 'lights' needs lights-off and lights-on times, which are not known"):
        Published().examples(["B"], FS, Protocol("p", "p", window="lights"))


def test_a_transform_may_not_lose_rows():
    with pytest.raises(InputError, match="A1: the model's transform returned 203 rows for 204 epochs"):
        Days().examples(["A"], FS, PLAN, transform=lambda X, index: X[1:])


def test_lights_of_a_dataset_reach_the_window():
    plan = Protocol("p", "p", window="lights")
    ex = dataset_examples(LitDays(), FS, plan)
    assert ex.meta.groupby("record")["index"].agg(list).to_dict() == {
        "A1": [99, 100, 101],
        "B1": [101, 103, 104, 105, 106, 107, 108, 109],
    }
    with pytest.raises(InputError, match="A1: the window 'lights' needs lights-off and lights-on times, which are not known"):
        dataset_examples(Days(), FS, plan)


def predictions(stages, shuffle=False):
    kept = np.flatnonzero(stages >= 0)
    frame = pd.DataFrame(dict(fold="f", subject="A", record="A1", index=kept, y_true=stages[kept]))
    frame[[f"p_{s}" for s in STAGES]] = np.eye(5)[stages[kept]]
    return Predictions("sleep", "d", "m", STAGES, frame.sample(frac=1, random_state=0) if shuffle else frame)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("window", [w for w in WINDOWS if w != "tinysleepnet"])
def test_cutting_predictions_is_cutting_before_training(window, shuffle):
    rng = np.random.default_rng(0)
    stages = np.r_[[W] * 80, rng.integers(-1, 5, 50), [W] * 80]
    want = np.flatnonzero(sleep_window(stages, window, lights=(83, 110)) & (stages >= 0))
    got = rescored(predictions(stages, shuffle), window, lights={"A1": (83, 110)})
    assert sorted(got.frame["index"]) == want.tolist()


def test_predictions_do_not_know_unscored_epochs():
    with pytest.raises(InputError, match="'tinysleepnet' depends on unscored epochs"):
        rescored(predictions(NIGHT), "tinysleepnet")
    with pytest.raises(InputError, match="the window 'lights' needs lights-off and lights-on times, which are not known"):
        window_rows(predictions(NIGHT).frame, "lights")


# real labels


@pytest.fixture(scope="module")
def scoring():
    folder = SleepEDF().folder
    if not ((folder / LABELS).is_file() and (folder / NIGHT_TIMES).is_file()):
        pytest.skip("the scoring of all Sleep-EDF cassette nights is not in place; `sleepai fetch` brings it")
    return scored_nights(folder), night_times(folder / NIGHT_TIMES)


def count(scoring, window, cut=False):
    nights, times = scoring
    kept = {}
    for name, h in nights.items():
        t = times.loc[name]
        stages = recorded_part(h.stages, t.epochs) if cut else h.stages
        mask = sleep_window(stages, window, lights=(t.lights_off, t.lights_on), where=name)
        kept[name] = np.bincount(stages[mask & (stages >= 0)], minlength=5)
    return sum(first_20(kept).values()), sum(kept.values())


@pytest.mark.parametrize("window", WINDOWS)
def test_golden_counts(scoring, window):
    first, every = count(scoring, window, cut=EXPECTED[window][1] is None)
    assert first.sum() == EXPECTED[window][0] and EXPECTED[window][1] in (None, every.sum())


@pytest.mark.parametrize(
    "window, n, printed, wake",
    [
        ("unscored-first", 0, 42_308, 8_285),
        ("unscored-first-two-fewer", 0, 42_230, 8_207),
        ("tinysleepnet", 0, 44_220, 10_197),
        ("unscored-first", 1, 195_479, 65_951),
    ],
)
def test_counts_that_papers_print(scoring, window, n, printed, wake):
    got = count(scoring, window, cut=True)[n]
    sleep = [(2_804, 17_799, 5_703, 7_717), (21_522, 69_132, 13_039, 25_835)][n]
    assert got.tolist() == [wake, *sleep] and got.sum() == printed


def test_whole_days(scoring):
    first, every = count(scoring, "none", cut=True)
    assert (first.sum(), every.sum()) == (106_414, 415_465)
    assert count(scoring, "tinysleepnet", cut=True)[1].sum() == 197_442


def test_lights_of_the_cassette_nights(scoring):
    "The table agrees with the one MNE ships; telemetry nights are not in it."
    from sleepai.datasets.sleep_edf import _shipped

    t = _shipped("age_records.csv").query("`record type` == 'PSG'")
    off = pd.to_timedelta(t.set_index(t["fname"].str[:8])["lights off"])
    raw = pd.read_csv(SleepEDF().folder / NIGHT_TIMES, index_col="record")
    assert (pd.to_timedelta(raw["lights_off_time"]).reindex(off.index) == off).all() and len(off) == 153
    assert SleepEDF().lights(Record("SC4001E0", "SC400")) == (1010, 1772)
    assert SleepEDFTelemetry().lights(Record("ST7011J0", "ST701")) is None


def test_simulated_signals_on_real_hypnograms(scoring):
    ds = datasets["simulated-sleep-edf"]
    assert isinstance(ds, SimulatedSleepEDF) and ds.info.simulated and "Simulated" in ds.info.title
    assert len(ds.records()) == 153 and len(ds.subjects()) == 78 and ds.available()
    record = next(r for r in ds.records() if r.name == "SC4021E0")
    assert (record.subject, record.night, record.age, record.sex) == ("SC402", 1, 26.0, "F")
    recording, hypnogram = ds.read(record)
    nights, times = scoring
    assert np.array_equal(hypnogram.stages, nights["SC4021E0"].stages[: len(hypnogram)])
    assert recording.duration_s == 30 * len(hypnogram) and len(hypnogram) == times.epochs["SC4021E0"]
    assert recording.ch_types == ("eeg", "eeg", "eog", "emg") and recording.signals.dtype == np.float32
    assert np.isfinite(recording.signals).all() and 5 < recording.signals[0].std() < 100, "microvolts"
    assert ds.lights(record) == SleepEDF().lights(record)
    # the signals follow the stages: slow waves in N3, tone of the chin in wake
    sd = recording.signals[:, : len(hypnogram) * 3000].reshape(4, len(hypnogram), 3000).std(2)
    by_stage = {s: np.median(sd[:, hypnogram.stages == k], axis=1) for k, s in enumerate(STAGES)}
    assert by_stage["N3"][0] > 1.3 * by_stage["R"][0] and by_stage["W"][3] > 1.3 * by_stage["R"][3]


def test_simulated_signals_keep_every_count(scoring):
    ds, kept = datasets["simulated-sleep-edf"], {}
    for r in ds.records():
        stages, lights = ds.hypnogram(r).stages, ds.lights(r)
        kept[r.name] = {
            w: int((sleep_window(stages, w, lights=lights) & (stages >= 0)).sum()) for w in WINDOWS
        }
    every = pd.DataFrame(kept).T.sum()
    first = pd.DataFrame(first_20(kept)).T.sum()
    assert first.to_dict() == {w: n for w, (n, _) in EXPECTED.items()}
    assert all(n in (None, every[w]) for w, (_, n) in EXPECTED.items())


def test_simulated_signals_without_a_scoring(tmp_path):
    ds = SimulatedSleepEDF(tmp_path)
    assert not ds.available() and ds.records() == [] and ds.fetch() == []
    assert "sleepai fetch sleep-edf" in str(ds.missing()) and "\n" not in str(ds.missing())


def test_rows_of_published_features_find_their_place(scoring):
    ds = SleepEDFFeatures()
    if len(ds.records()) < 20:
        pytest.skip("sleep-edf-features is not in place; `sleepai fetch` brings it")
    ex, nights = ds.load("SC401"), {n: h.stages for n, h in scoring[0].items()}
    at = page.on_the_clock(ex, nights)
    for record, rows in ex.meta.groupby("record").indices.items():
        assert (np.diff(at[rows]) > 0).all() and np.array_equal(nights[record][at[rows]], ex.y[rows])


def test_the_page_explains_every_printed_count(scoring):
    nights, times = scoring
    parts = []
    for n, h in nights.items():
        stages = recorded_part(h.stages, times.epochs[n])
        inside = page.masks(stages, (times.lights_off[n], times.lights_on[n]), n)
        parts.append(page.count_night(stages, inside).assign(record=n, subject=n[:5]))
    table = page.literature(pd.concat(parts))
    assert (table["off by"] == 0).all() and table["published"].tolist() == [42_308, 42_230, 44_220, 195_479]
    assert table["more than inclusive"].tolist() == [1, -77, 1_913, 10]
