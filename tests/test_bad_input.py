"""What a user gets wrong is answered with one sentence that names the file and the fix."""

import numpy as np
import pytest

from sleepai.core import InputError, Recording, SleepStage
from sleepai.datasets.edf_folder import EdfFolder
from sleepai.preprocessing.edf import edf_channels, read_edf, write_edf
from sleepai.preprocessing.hypnogram import (
    from_annotations,
    read_edf_hypnogram,
    read_text_hypnogram,
    stage_code,
    wake_trim,
)
from sleepai.preprocessing.signals import check_signal, choose

CHANNELS = ("C4-M1", "E1-M2", "Chin1-Chin2")
TYPES = ("eeg", "eog", "emg")
STAGES = ["W"] * 4 + ["N1"] * 4 + ["N2"] * 4 + ["N3"] * 4 + ["R"] * 4


def recording(minutes=10, seed=0):
    "A simulated recording: noise of an EEG's size."
    x = np.random.default_rng(seed).normal(0, 20, (3, round(minutes * 6000)))
    return Recording(x, 100, CHANNELS, TYPES, "S1")


@pytest.fixture
def folder(tmp_path):
    "One night that is right: S1.edf with S1.txt."
    write_edf(recording(), tmp_path / "S1.edf")
    (tmp_path / "S1.txt").write_text("\n".join(STAGES))
    return tmp_path


def read_all(folder):
    ds = EdfFolder(folder)
    return [ds.read(r) for r in ds.records()]


def refused(call, *words):
    "The one sentence of the `InputError` that `call` raises; it must hold all `words`."
    with pytest.raises(InputError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and len(text) < 500 and text.endswith((".", "?", ")")), text
    for word in words:
        assert word in text, f"{word!r} is not in: {text}"
    return text


def test_the_good_night_is_read(folder):
    ((rec, hyp),) = read_all(folder)
    assert rec.ch_names == CHANNELS and rec.signals.shape == (3, 60000)
    assert [SleepStage(s).name for s in hyp.stages] == STAGES


@pytest.mark.parametrize("share", [0.9, 0.5, 0.02])
def test_truncated_edf(folder, share):
    path = folder / "S1.edf"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refused(lambda: read_all(folder), "S1.edf", "truncated", "copy or export")


def test_a_truncated_hypnogram_is_not_shortened(tmp_path):
    notes = [(30 * k, 30, "Sleep stage W") for k in range(20)]
    path = write_edf(recording(), tmp_path / "S1.edf", annotations=notes)
    path.write_bytes(path.read_bytes()[:-20000])
    refused(lambda: read_edf_hypnogram(path), "S1.edf", "truncated")


def test_records_not_counted_in_the_header_are_no_truncation(folder):
    path = folder / "S1.edf"
    whole = path.read_bytes()
    path.write_bytes(whole[:236] + b"-1      " + whole[244:])
    assert read_edf(path).signals.shape == (3, 60000)


@pytest.mark.parametrize(
    ("at", "text", "word"),
    [
        (0, b"PSG", "not an EDF"),
        (0, b"\xffBIOSEMI", "BDF"),
        (184, b"12345   ", "invalid header"),
        (236, b"many    ", "records"),
        (244, b"-1      ", "invalid header"),
        (252, b"no  ", "n_signals"),
        (256 + 3 * 216, b"none    ", "samples per record"),
        (256 + 3 * 104, b"low     ", "invalid header"),
        (236, b"5       ", "longer"),
    ],
)
def test_wrong_header(folder, at, text, word):
    path = folder / "S1.edf"
    whole = path.read_bytes()
    path.write_bytes(whole[:at] + text + whole[at + len(text) :])
    refused(lambda: read_all(folder), "S1.edf", word, "export")


def test_not_an_edf_at_all(tmp_path):
    (tmp_path / "S1.edf").write_text("time,stage\n")
    refused(lambda: read_edf(tmp_path / "S1.edf"), "S1.edf", "not an EDF")
    (tmp_path / "S2.edf").write_bytes(b"")
    refused(lambda: read_edf(tmp_path / "S2.edf"), "S2.edf", "empty")
    refused(lambda: read_edf(tmp_path / "S3.edf"), "S3.edf", "no such file")


def test_no_such_channel(folder):
    refused(
        lambda: read_edf(folder / "S1.edf", ["C4-M2"]), "S1.edf", "'C4-M2'", "did you mean 'C4-M1'", "E1-M2"
    )
    refused(lambda: choose(recording(), "ecg"), "no ECG channel", "C4-M1")
    (folder / "dataset.yml").write_text("channels: {eeg: F4-M1}")
    refused(lambda: read_all(folder), "S1.edf", "'F4-M1'", "C4-M1")


def test_two_channels_of_one_name(tmp_path):
    x = np.random.default_rng(0).normal(0, 20, (2, 6000))
    path = write_edf(Recording(x, 100, ["EEG", "EEG"], ["eeg", "eeg"], "S1"), tmp_path / "S1.edf")
    refused(lambda: read_edf(path, ["EEG"]), "S1.edf", "'EEG #1'", "'EEG #2'")
    assert read_edf(path, ["EEG #2"]).signals.shape == (1, 6000)


def test_hypnogram_longer_than_the_signal(folder):
    (folder / "S1.txt").write_text("\n".join(STAGES + ["N2"] * 3))
    refused(
        lambda: read_all(folder),
        "S1.txt",
        "3 scored epochs",
        "0.17 h",
        "20 epochs",
        "23 epochs",
        "option cut",
    )
    (folder / "dataset.yml").write_text("cut: true")
    assert len(read_all(folder)[0][1]) == 20


def test_an_unscored_tail_is_cut_silently(folder):
    (folder / "S1.txt").write_text("\n".join(STAGES + ["?"] * 30))
    assert len(read_all(folder)[0][1]) == 20


def test_hypnogram_shorter_than_the_signal(folder):
    (folder / "S1.txt").write_text("\n".join(STAGES[:-3]))
    refused(
        lambda: read_all(folder),
        "S1.txt",
        "ends 1.5 min before the signal",
        "20 epochs",
        "17 epochs",
        "option pad",
    )
    (folder / "dataset.yml").write_text("pad: true")
    assert read_all(folder)[0][1].stages[-3:].tolist() == [-1] * 3


@pytest.mark.parametrize("label", ["N5", "Stage X", "Dreaming", "NREM", "light"])
def test_unknown_stage_names(folder, label):
    (folder / "S1.txt").write_text("\n".join([*STAGES[:-1], label]))
    refused(lambda: read_all(folder), "S1.txt", repr(label), "W, N1, N2, N3, R", "vocabulary")


def test_a_nearest_stage_is_named():
    refused(lambda: stage_code("Waking", where="S1.txt"), "S1.txt", "did you mean WAKE?")


def test_bare_numbers_are_never_guessed(folder):
    (folder / "S1.txt").write_text("\n".join(np.repeat(["0", "1", "2", "4", "5"], 4)))
    said = refused(lambda: read_all(folder), "S1.txt", "only a number", "dataset.yml", "W in aasm")
    line = said.split("`")[1]
    assert line == "vocabulary: compumedics"
    (folder / "dataset.yml").write_text(line)  # what it says can be pasted
    assert read_all(folder)[0][1].stages.tolist() == np.repeat([0, 1, 2, 3, 4], 4).tolist()


def test_a_number_of_no_vocabulary_is_mended_by_a_table(folder):
    (folder / "S1.txt").write_text("\n".join(["0"] * 10 + ["8"] * 10))
    (folder / "dataset.yml").write_text("vocabulary: compumedics")
    line = refused(lambda: read_all(folder), "S1.txt", "'8'", "in no vocabulary").split("`")[1]
    assert line == 'vocabulary: {"0": W, "8": N2}'
    (folder / "dataset.yml").write_text(line)
    assert read_all(folder)[0][1].stages.tolist() == [0] * 10 + [2] * 10


@pytest.mark.parametrize(("sfreq", "kind"), [(100, "emg"), (10, "emg"), (5, "misc"), (1, "misc")])
def test_a_channel_too_slow_for_a_waveform_is_no_emg(tmp_path, sfreq, kind):
    rec = recording()
    x = np.abs(rec.signals[2, :: 100 // sfreq])
    path = write_edf(Recording(x[None], sfreq, ["EMG submental"], ["emg"], "S1"), tmp_path / "S1.edf")
    assert read_edf(path).ch_types == read_edf(path, {"EMG submental": "emg"}).ch_types == (kind,)
    assert edf_channels(path)["type"].tolist() == [kind]


def test_an_unread_stage_among_annotations_is_no_event():
    notes = [(0, 30, "W"), (30, 30, "Sleep stage N9"), (35, 11.5, "Hypopnea")]
    refused(lambda: from_annotations(*zip(*notes, strict=True), where="S1.edf"), "S1.edf", "'Sleep stage N9'")
    refused(
        lambda: from_annotations([0], [0], ["Lights off"], where="S1.edf"),
        "S1.edf",
        "none of its 1 annotations",
    )
    refused(lambda: from_annotations([0, 30], [60, 30], ["W", "N1"], where="S1.edf"), "S1.edf", "overlap")
    refused(lambda: from_annotations([-60], [90], ["W"], where="S1.edf"), "S1.edf", "before the recording")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "empty"),
        ("time,stage\n22:30:00,W\n", "not a number of seconds"),
        ("a,b\n1,2\n", "no stage columns"),
        ("onset,duration,stage\n0,30,\n", "has no stage"),
        ("epoch,stage\n1,W\n3,W\n", "not numbered"),
        ("onset,stage\n0,W\n30,W,N1\n", "table"),
    ],
)
def test_text_hypnograms_that_cannot_be_read(tmp_path, text, word):
    (tmp_path / "S1.csv").write_text(text)
    refused(lambda: read_text_hypnogram(tmp_path / "S1.csv"), "S1.csv", word)


def test_a_binary_hypnogram(tmp_path):
    (tmp_path / "S1.csv").write_bytes(bytes(range(256)))
    refused(lambda: read_text_hypnogram(tmp_path / "S1.csv"), "S1.csv", "not a text file")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_missing_samples_are_named_by_second(bad):
    rec = recording()
    rec.signals[0, 4210:4300] = bad
    refused(lambda: check_signal(rec, "C4-M1", "S1.edf"), "S1.edf", "'C4-M1'", "90 samples", "42.1 s")


def test_missing_samples_cannot_be_written(tmp_path):
    rec = recording()
    rec.signals[0, 0] = np.nan
    refused(lambda: write_edf(rec, tmp_path / "S1.edf"), "S1.edf", "not a number")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("share", [1.0, 0.97])
def test_flat_channel(folder, share):
    rec = recording(60)
    rec.signals[0, : int(share * rec.signals.shape[1])] = 3
    refused(lambda: check_signal(rec, "C4-M1", "S1.edf"), "S1.edf", "'C4-M1'", "flat", "E1-M2")
    rec = recording()
    rec.signals[0] = 0
    write_edf(rec, folder / "S1.edf")
    refused(lambda: read_all(folder), "S1.edf", "flat")


def test_volts_read_as_microvolts(folder):
    rec = recording()
    write_edf(
        Recording(rec.signals * 1e-3, 100, CHANNELS, TYPES, "S1"), folder / "S1.edf"
    )  # millivolts called uV
    refused(lambda: read_all(folder), "S1.edf", "SD of 0.02", "option unit")
    (folder / "dataset.yml").write_text("unit: mV")
    assert 19 < read_all(folder)[0][0].signals[1].std() < 21


def test_one_class_night(folder):
    (folder / "S1.txt").write_text("\n".join(["W"] * 20))
    refused(lambda: read_all(folder), "S1.txt", "only stage in 20 epochs is W")
    (folder / "S1.txt").write_text("\n".join(["?"] * 20))
    refused(lambda: read_all(folder), "S1.txt", "all 20 epochs are unscored")
    refused(lambda: wake_trim(np.zeros(960, int), where="S1.txt"), "S1.txt", "no sleep")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("channls: {eeg: C4-M1}", ["'channls'", "Did you mean 'channels'"]),
        ("channels: {eyes: E1-M2}", ["'eyes'", "eeg, eog, emg, ecg"]),
        ("channels: C4-M1", ["'channels'"]),
        ("epoch_s: long", ["'epoch_s'", "'long'"]),
        ("epoch_s: -30", ["'epoch_s'", "greater than 0"]),
        ("name: my clinic", ["'name'", "letters"]),
        ("vocabulary: profusion", ["'profusion'", "compumedics"]),
        ("vocabulary: {Q: N9}", ["'N9'"]),
        ("unit: furlong", ["'furlong'", "mV"]),
        ('subject: "("', ["regular expression"]),
        ('subject: "^P"', ["'^P'", "'S1'"]),
        ("records: [{signal: S1.edf}]", ["'signal'", "Did you mean 'signals'"]),
        ("records: [{signals: S1.edf, night: 0}]", ["'night'"]),
        ("records: [{signals: S1.edf}]\nsubject: S", ["'subject' cannot be combined with 'records'"]),
        ("- a list", ["key: value"]),
        ('title: "open', ["not valid YAML", "line 1"]),
        ("pad: perhaps", ["'pad'"]),
    ],
)
def test_yaml_mistakes(folder, text, words):
    (folder / "dataset.yml").write_text(text)
    refused(lambda: read_all(folder), "dataset.yml", *words)
    assert (
        EdfFolder(folder).info.title and not EdfFolder(folder).available()
    )  # a list of datasets does not stop at it


def test_files_that_the_yaml_names_must_be_there(folder):
    (folder / "dataset.yml").write_text("records: [{signals: S1.edf, hypnogram: S9.csv}]")
    refused(lambda: read_all(folder), "S9.csv", "S1.edf needs it", "dataset.yml")
    (folder / "dataset.yml").write_text('hypnogram: "{stem}.stages"')
    refused(lambda: read_all(folder), "S1.stages", "no such file")
    (folder / "dataset.yml").write_text(
        "records: [{signals: S1.edf, hypnogram: S1.txt}, {signals: S1.edf, hypnogram: S1.txt}]"
    )
    refused(lambda: read_all(folder), "S1.edf", "listed twice")


def test_two_hypnograms_for_one_recording(folder):
    (folder / "S1-Hypnogram.csv").write_text("\n".join(STAGES))
    refused(lambda: read_all(folder), "S1.edf", "2 hypnograms", "S1-Hypnogram.csv", "dataset.yml")


def test_no_hypnogram(folder):
    (folder / "S1.txt").unlink()
    refused(lambda: read_all(folder), "S1.edf", "no hypnogram", "S1.csv")


def test_empty_folder(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        refused(lambda folder=folder: EdfFolder(folder).records(), "no recordings", str(folder))
        assert not EdfFolder(folder).available()


def test_a_single_subject_is_read(folder):
    assert EdfFolder(folder).subjects() == ["S1"] and len(list(EdfFolder(folder).load("S1"))) == 1
