"""Features against known answers, published implementations, changes of scale, and missing channels."""

from dataclasses import replace

import antropy
import numpy as np
import pandas as pd
import pytest

from sleepai.core import InputError, Recording
from sleepai.features import events, rhythms, waves
from sleepai.features.catalogue import CATALOGUE, Channel, feature_table, psg, roles
from sleepai.features.context import with_context
from sleepai.features.raw import raw_psg
from sleepai.preprocessing.signals import bandpass, resample
from sleepai.registry import datasets, features

T = np.arange(3000) / 100
NAMES, TYPES = ("EEG Fpz-Cz", "EEG Pz-Oz", "EOG horizontal", "EMG submental"), ("eeg", "eeg", "eog", "emg")


def recording(minutes=6, seed=0, names=NAMES, types=TYPES, sfreq=100):
    "Brown and white noise of an EEG's size; simulated, no brain."
    rng = np.random.default_rng(seed)
    n = round(minutes * 60 * sfreq)
    brown = bandpass(np.cumsum(rng.normal(0, 3, (len(names), n)), axis=1), sfreq, 0.3, None)
    return Recording(brown + rng.normal(0, 5, brown.shape), sfreq, names, types, "S1")


def psd_of(x, window_s=30):
    "Frequencies and power density of epochs in a row."
    x = np.atleast_2d(x).astype(np.float32)
    freqs, power = rhythms.pieces(x.ravel(), 100)
    return freqs, rhythms.windowed(rhythms.running(power), len(x), window_s)


# --- the waveform


def test_agreement_with_antropy():
    x = recording().signals[0].reshape(-1, 3000)[:5]
    wide = x.astype(float)
    ours = waves.order(x) | waves.higuchi(x) | waves.hjorth(x) | waves.crossings(x)
    theirs = dict(
        permutation=[antropy.perm_entropy(e, order=3, delay=1, normalize=True) for e in wide],
        petrosian=antropy.petrosian_fd(wide, axis=1),
        higuchi=[antropy.higuchi_fd(e, kmax=10) for e in wide],
        mobility=antropy.hjorth_params(wide, axis=1)[0],
        complexity=antropy.hjorth_params(wide, axis=1)[1],
        crossings=antropy.num_zerocross(wide, axis=1) / 2999,
    )
    for name, values in theirs.items():
        assert np.allclose(ours[name], values, rtol=1e-3, atol=1e-4), name


@pytest.mark.parametrize("step", [1, -1])
def test_a_monotone_line_has_one_order_and_dimension_one(step):
    x = (step * np.arange(3000, dtype=np.float32))[None]
    found = waves.order(x) | waves.higuchi(x)
    assert found["permutation"] == 0 and found["petrosian"] == 1 and abs(found["higuchi"] - 1) < 1e-3


def test_permutation_entropy_with_ties():
    x = np.round(recording(1).signals[0].reshape(-1, 3000) / 8)
    theirs = [antropy.perm_entropy(e.astype(float), normalize=True) for e in x]
    assert np.allclose(waves.order(x)["permutation"], theirs, atol=1e-3)


@pytest.mark.parametrize("hz", [1, 5, 13])
def test_hjorth_of_a_sine(hz):
    found = waves.hjorth(np.sin(2 * np.pi * hz * T).astype(np.float32)[None])
    assert abs(found["mobility"][0] / (2 * np.sin(np.pi * hz / 100)) - 1) < 0.01
    assert abs(found["complexity"][0] - 1) < 0.02


# --- rhythms


@pytest.mark.parametrize("hz", [0.6, 2.4, 6, 10, 13.4, 20])
def test_a_sine_is_in_its_band_and_at_its_frequency(hz):
    f, p = psd_of(20 * np.sin(2 * np.pi * hz * T))
    band = next(b for b, (low, high) in rhythms.BANDS.items() if low <= hz < high)
    assert rhythms.shares(f, p)[band][0] > 0.95 and abs(rhythms.powers(f, p)[band][0] / 200 - 1) < 0.1
    look = rhythms.shape(f, p)
    assert abs(look["centroid"][0] - hz) < 0.1 and look["spread"][0] < 0.5 and look["entropy"][0] < 0.3


@pytest.mark.parametrize("exponent", [0, 1, 2, 3])
def test_slope_of_one_over_f_noise(exponent):
    rng = np.random.default_rng(exponent)
    f = np.fft.rfftfreq(90000, 0.01)
    x = 40 * np.fft.irfft(np.fft.rfft(rng.normal(size=90000)) * np.maximum(f, 0.3) ** (-exponent / 2))
    slope = rhythms.aperiodic(*psd_of(x.reshape(-1, 3000)))["slope"]
    assert abs(np.median(slope) + exponent) < 0.12


@pytest.mark.parametrize("sfreq", [100, 200, 256])
def test_the_filter_does_not_bend_the_slope(sfreq):
    rng = np.random.default_rng(0)
    rec = Recording(rng.normal(0, 20, (1, 300 * sfreq)), sfreq, ("C4-M1",), ("eeg",), "S1")
    table = psg(rec)
    assert abs(table["eeg__slope__90s"].median()) < 0.1 and table["eeg__entropy__30s"].median() > 0.96


def test_windows_are_means_over_their_pieces_and_cut_short_at_the_ends():
    x = np.random.default_rng(0).normal(0, 20, 9 * 3000).astype(np.float32)
    power = rhythms.pieces(x, 100)[1]
    for window_s, first, last in ((30, 48, 59), (60, 42, 65), (90, 36, 71)):
        got = rhythms.windowed(rhythms.running(power), 9, window_s)
        assert np.allclose(got[4], power[first:last].mean(0), rtol=1e-4), window_s
    assert np.allclose(got[0], power[:23].mean(0), rtol=1e-4)


# --- events


def test_detectors_on_made_events():
    rng = np.random.default_rng(0)
    x = bandpass(np.cumsum(rng.normal(0, 2, (4, 3000)), axis=1), 100).astype(np.float32)
    x[1] += sum(
        25 * np.exp(-(((T - c) / 0.4) ** 2)) * np.sin(2 * np.pi * 13 * T) for c in (4, 12, 20)
    ).astype("f4")
    x[2, :1500] -= 70 * np.sin(2 * np.pi * T[:1500]).astype("f4")
    assert events.spindles(x, 100)["spindles"].tolist() == [0, 6, 0, 0]
    share = events.slow_waves(x, 100)["slow_share"]
    assert abs(share[2] - 0.5) < 0.07 and share[[0, 1, 3]].max() < 0.05
    eog = np.tile(np.repeat([0.0, 100.0], 250), 6).reshape(1, 3000)
    assert events.eye_movements(eog, 100)["saccades"][0] == 22  # eleven jumps in half a minute


# --- the whole table


def test_ten_times_the_gain_shifts_logarithms_and_changes_nothing_else():
    rec = recording()
    table, louder = psg(rec), psg(replace(rec, signals=10 * rec.signals))
    for c in table:
        name = c.split("__")[1]
        if name in ("spindles", "slow_waves", "slow_share", "saccades"):
            continue  # thresholds in microvolts, on purpose
        power = (
            name.startswith("log_")
            and name not in ("log_std", "log_iqr")
            or name in ("slow_eye", "rapid_eye")
        )
        size = name in ("log_std", "log_iqr", "tone", "tone_low", "max_slope")
        assert np.allclose(louder[c], table[c] + 2 * power + size, atol=5e-3), c


def test_flat_epochs_have_finite_values():
    rec = recording(20)
    rec.signals[:, 30000:60000] = 0
    table = psg(rec)
    assert np.isfinite(table.to_numpy()).all() and set(table.dtypes) == {np.dtype("float32")}
    floors = table[["eeg__log_total__30s", "emg__tone__30s"]].iloc[15]
    assert np.allclose(floors, [-3, -2])


@pytest.mark.parametrize("sfreq", [50, 128, 256])
def test_rates(sfreq):
    rec = recording()
    table, other = psg(rec), psg(resample(rec, sfreq))
    assert list(other) == list(table) and len(other) == len(table) and np.isfinite(other.to_numpy()).all()
    alike = [c for c in table if "delta_theta" in c or "alpha_theta" in c]
    assert alike and np.allclose(other[alike], table[alike], atol=0.02)


def test_a_band_that_was_not_recorded_is_empty():
    table = psg(resample(recording(names=NAMES[:1], types=TYPES[:1]), 30))
    assert table["eeg__log_beta__30s"].isna().all() and table["eeg__log_alpha__30s"].notna().all()


def test_dreams_at_50_hz():
    dreams = datasets["dreams"]
    found = [r for r in dreams.records() if r.name == "excerpt3"] if dreams.available() else []
    if not found:
        pytest.skip("the DREAMS excerpts are not in place")
    rec, hyp = dreams.read(found[0])
    table = psg(rec)
    assert rec.sfreq == 50 and len(table) == len(hyp) and np.isfinite(table.to_numpy()).all()
    assert {c.split("__")[0] for c in table} == {"eeg"}
    assert with_context(table, np.arange(len(table))).notna().all(axis=None)


def test_missing_channels_have_no_columns():
    rec = recording()
    every = psg(rec)
    for lacking in NAMES[1:]:
        table = psg(rec.pick([n for n in NAMES if n != lacking]))
        assert set(table) < set(every) and np.allclose(table, every[list(table)], atol=1e-4)
    sets = {n: list(features[n].compute(rec)) for n in ("eeg", "eeg-eog", "psg")}
    assert set(sets["eeg"]) < set(sets["eeg-eog"]) < set(sets["psg"]) == set(every)
    assert {c.split("__")[0] for c in sets["eeg-eog"]} == {"eeg", "eog"}


def test_broken_channels():
    rec = recording()
    rec.signals[1], rec.signals[2, 5] = 0, np.nan
    assert set(roles(rec)) == {"eeg", "emg"} and {c.split("__")[0] for c in psg(rec)} == {"eeg", "emg"}
    for bad in (0, np.nan):
        rec.signals[0] = bad
        with pytest.raises(InputError, match="EEG Fpz-Cz"):
            psg(rec)
    with pytest.raises(InputError, match="no EEG channel"):
        psg(rec.pick(NAMES[2:]))
    with pytest.raises(InputError, match="less than one epoch"):
        psg(replace(recording(), signals=recording().signals[:, :2000]))


def test_an_envelope_is_tone_and_nothing_else():
    """Sleep-EDF's cassettes: one value a second, held, typed misc."""
    rec = recording()
    second = np.sqrt((bandpass(rec.signals[3], 100, 10, 45).reshape(-1, 100) ** 2).mean(1))
    signals = rec.signals.copy()
    signals[3] = np.repeat(second, 100)
    cassette = replace(rec, signals=signals, ch_types=("eeg", "eeg", "eog", "misc"))
    wave, held = psg(rec), psg(cassette)
    tone = [c for c in held if c.startswith("emg__")]
    assert [c.split("__")[1] for c in tone] == ["tone", "tone_low", "burst", "burst_share"]
    assert np.allclose(held[tone[:3]], wave[tone[:3]], atol=0.02)
    assert raw_psg(cassette).shape == (12, 9000)


def test_features_are_data():
    """A table of other rows gives other columns, at the channels and windows it names."""
    row = next(r for r in CATALOGUE if r.function is rhythms.shares)
    table = feature_table(recording(), catalogue=(replace(row, channels=("eog",), window_s=120),))
    assert list(table) == [f"eog__{b}__120s" for b in rhythms.BANDS]
    assert np.allclose(table.sum(axis=1), 1, atol=1e-5)
    assert Channel(recording(), NAMES[0], "eeg", 20).x.shape == (18, 2000)


# --- context


def context_of(n=60, seed=0, index=None):
    rng = np.random.default_rng(seed)
    X = pd.DataFrame(
        rng.normal(size=(n, 3)), columns=[f"eeg__{k}__30s" for k in ("delta", "beta", "mobility")]
    )
    return X, np.arange(n) if index is None else index


def test_context_sees_one_record_only():
    """What comes after or before in a table of several nights changes nothing, nor does a label exist to be seen."""
    (a, i), (b, j) = context_of(seed=1), context_of(seed=2)
    before = with_context(a, i)
    with_context(b, j)
    pd.testing.assert_frame_equal(with_context(a, i), before)
    assert list(before)[: a.shape[1]] == list(a) and np.array_equal(before[list(a)], a.astype("f4"))
    with pytest.raises(InputError, match="one record"):
        with_context(pd.concat([a, b]), np.r_[i, j])


def test_context_means_are_those_of_pandas():
    X, index = context_of(80)
    out = with_context(X, index, scaled=False)
    tri = X.rolling(15, center=True, min_periods=1, win_type="triang").mean()
    past = X.rolling(4, min_periods=1).mean()
    for c in X:
        name = c.split("__")[1]
        assert np.allclose(out[f"eeg__{name}_past__120s"], past[c], atol=1e-5)
        assert np.allclose(out[f"eeg__{name}_tri__450s"].iloc[7:-7], tri[c].iloc[7:-7], atol=1e-5)


def test_context_respects_gaps():
    X, _ = context_of(40)
    whole, cut = with_context(X, np.arange(40), scaled=False), np.r_[0:20, 1000:1020]
    gap = with_context(X, cut, scaled=False)
    assert gap["eeg__delta_past__120s"].iloc[20] == X["eeg__delta__30s"].astype("f4").iloc[20]
    halves = [
        with_context(X.iloc[s].reset_index(drop=True), np.arange(20), scaled=False)
        for s in (slice(0, 20), slice(20, 40))
    ]
    assert np.allclose(gap, pd.concat(halves), atol=1e-5) and not np.allclose(whole, gap)


def test_context_of_a_feature_that_is_missing_or_constant():
    X, index = context_of()
    X["eeg__gamma__30s"], X["eeg__flat__30s"] = np.nan, 4.0
    out = with_context(X, index)
    for c in out:
        assert out[c].isna().all() if "gamma" in c else np.isfinite(out[c]).all(), c
