"""All features of four channels take less time than yasa's of three, on the same night in the same process."""

import time

import mne
import yasa

from sleepai.features.catalogue import psg
from sleepai.features.context import with_context
from sleepai.registry import datasets


def seconds(call, times):
    """Best processor time, which other processes on the machine hardly change."""
    taken = []
    for _ in range(times):
        began = time.process_time()
        call()
        taken.append(time.process_time() - began)
    return min(taken)


def test_a_night_takes_less_time_than_in_yasa():
    simulated = datasets["simulated"]
    rec, _ = simulated.read(simulated.records()[0])
    names = ("EEG Fpz-Cz", "EOG horizontal", "EMG submental")
    raw = mne.io.RawArray(
        rec.pick(names).signals.astype(float) * 1e-6,
        mne.create_info(list(names), 100, "eeg"),
        verbose="ERROR",
    )

    def theirs():
        yasa.SleepStaging(raw, eeg_name=names[0], eog_name=names[1], emg_name=names[2]).fit()

    theirs()  # compiles
    table = psg(rec)
    assert len(table) == int(rec.duration_s // 30) and table.shape[1] > 100
    index = range(len(table))
    ours, with_all = seconds(lambda: psg(rec), 2), seconds(lambda: with_context(table, index), 2)
    yardstick = seconds(theirs, 2)
    assert ours < yardstick, f"{ours:.2f} s, yasa {yardstick:.2f} s"
    assert with_all < yardstick / 2, f"context takes {with_all:.2f} s, all of yasa {yardstick:.2f} s"
