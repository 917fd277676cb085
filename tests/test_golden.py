"""Outputs of every feature set, model and dataset reader move only together with its version.

Tolerances, as a share of a column's standard deviation: 0.001 for readers and feature sets, 0.01 for models, 0.1 for
networks, whose sums depend a little on the processor."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from golden import settle, summary
from material import WRITERS
from trained import cases, is_network, trained

from sleepai.core import Examples, Recording
from sleepai.features.seed16 import seed16
from sleepai.models.base import probabilities
from sleepai.preprocessing.images import as_pixels, is_files
from sleepai.registry import datasets, features


@pytest.fixture
def record(request):
    return request.config.option.record


def night():
    """Twelve minutes of noise whose size follows the stage."""
    rng, stages = np.random.default_rng(0), np.repeat([0, 1, 2, 3, 4, 2], 4)
    x = np.concatenate([rng.normal(0, 10 + 8 * s, (3, 3000)) for s in stages], axis=1)
    return Recording(x, 100, ("EEG Fpz-Cz", "EOG horizontal", "EMG submental"), ("eeg", "eog", "emg"), "S1")


def check_features(fs, **how):
    settle("feature set", fs.name, fs.version, dict(table=summary(fs.compute(night()))), 1e-3, **how)


@pytest.mark.parametrize("name", features.names())
def test_feature_set(name, record):
    check_features(features[name], record=record)


@pytest.mark.parametrize("name", cases())
def test_model(name, record):
    one = trained(name)
    p = probabilities(one.fitted, one.ex.X, len(one.ex.classes), one.ex.meta)
    given = dict(X=summary(one.ex.X), y=summary(one.ex.y[:, None]))
    tolerance = 0.1 if is_network(one.model) else 0.01
    settle("model", name, one.model.version, dict(probabilities=summary(p)), tolerance, given, record)


def told(ex: Examples) -> dict:
    """Rows of a dataset of tables, pixels of one of images."""
    X = as_pixels(ex, 32).X if is_files(ex.X) else ex.X
    who = ex.meta[["subject", "record", "index"]].astype(str).agg(" ".join, axis=1)
    rows = dict(classes=list(ex.classes), left_out={k: int(v) for k, v in ex.exclusions.items()})
    if "split" in ex.meta:
        rows["split"] = ex.meta["split"].astype(str).value_counts().sort_index().to_dict()
    return rows | dict(X=summary(X), y=summary(ex.y[:, None]), rows=who.iloc[[0, len(who) // 2, -1]].tolist())


def read(ds) -> dict:
    """What a reader gives of its first two records, or of its first two subjects."""
    if not hasattr(ds, "read"):
        return told(ds.load(ds.subjects()[:2]))
    found = {}
    for record in ds.records()[:2]:
        one = ds.read(record)
        if isinstance(one, tuple):
            rec, hyp = one
            minute = rec.signals[:, : int(60 * rec.sfreq)].T
            found[record.name] = summary(minute)
            found[f"{record.name}, all"] = summary(np.stack([rec.signals.mean(1), rec.signals.std(1)]))
            found[f"{record.name}, stages"] = summary(hyp.stages[:, None])
            found[f"{record.name}, signals"] = [
                list(rec.ch_names),
                list(rec.ch_types),
                rec.sfreq,
                rec.subject,
            ]
        else:
            found[record.name] = summary(one.stages.T)
            found[f"{record.name}, raters"] = [list(one.raters), list(one.kinds), one.subject, one.recorded]
    return found


@pytest.mark.parametrize("name", datasets.names())
def test_dataset(name, record, tmp_path, monkeypatch):
    """Simulated datasets as they are, others on small files in their layout."""
    ds = datasets[name]
    monkeypatch.setenv("SLEEPAI_DATA", str(tmp_path / "data"))
    if name in WRITERS:
        (tmp_path / "raw").mkdir()
        ds = ds.at(WRITERS[name](tmp_path / "raw"))
    elif not ds.available():
        pytest.skip(f"no small files in the layout of {name}: add what writes them to tests/material.py")
    settle("dataset", name, ds.version, read(ds), 1e-3, record=record)


# The check itself


def louder(recording):
    return seed16(recording) * 1.01


def renamed(recording):
    return seed16(recording).rename(columns=lambda c: c.upper())


@pytest.mark.parametrize("changed", [louder, renamed])
def test_outputs_that_move_ask_for_a_version(changed, tmp_path):
    fs = features["seed16"]
    check_features(fs, record=True, folder=tmp_path)
    check_features(fs, folder=tmp_path)
    moved = replace(fs, compute=changed)
    for record in (False, True):  # recording does not get around it
        with pytest.raises(
            pytest.fail.Exception, match=r"outputs moved: raise the version of feature set 'seed16' \(now 1\)"
        ):
            check_features(moved, record=record, folder=tmp_path)
    raised = replace(moved, version=fs.version + 1)
    with pytest.raises(pytest.fail.Exception, match="pytest tests/test_golden.py --record"):
        check_features(raised, folder=tmp_path)
    check_features(raised, record=True, folder=tmp_path)
    check_features(raised, folder=tmp_path)


def test_one_value_that_moves_is_enough():
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(40, 300)))
    for row, column, by in ((0, 0, 0.01), (39, 299, 3), (20, 150, np.nan)):
        other = table.copy()
        other.iloc[row, column] += by
        from golden import difference

        assert difference(summary(table), summary(other), 1e-3), (row, column, by)
    assert difference(summary(table), summary(table * (1 + 1e-5)), 1e-3) == ""


def test_what_was_never_recorded_or_was_given_something_else_is_said(tmp_path):
    one, two = (dict(x=summary(np.full((3, 1), v))) for v in (1.0, 2.0))
    with pytest.raises(pytest.fail.Exception, match="has no golden outputs yet"):
        settle("model", "a/b", 1, one, 0.01, folder=tmp_path)
    settle("model", "a/b", 1, one, 0.01, one, record=True, folder=tmp_path)
    with pytest.raises(pytest.fail.Exception, match="what model 'a/b' is given here moved"):
        settle("model", "a/b", 1, two, 0.01, two, folder=tmp_path)
    assert json.loads((tmp_path / "model" / "a-b.json").read_text())["version"] == 1
