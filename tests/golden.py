"""Golden outputs: what a feature set, a model or a reader gave when its version was recorded.

A summary holds the shape, the mean and the standard deviation of columns (of blocks of columns, where there are
very many) and a few raw values. It has moved when a number differs by more than a share `tolerance` of the
standard deviation of its column, plus the same share of itself."""

import hashlib
import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

HERE = Path(__file__).with_name("golden")
BLOCKS, ROWS = 120, 5  # columns that are told apart; raw rows of them that are kept
HOW = "`pytest tests/test_golden.py --record`"


def short(values) -> list:
    """Six digits are kept; NaN becomes None, since JSON has none."""
    flat = np.asarray(values, float)
    return [[None if np.isnan(v) else float(f"{v:.6g}") for v in row] for row in np.atleast_2d(flat)]


def summary(table) -> dict:
    """Of a table or array of numbers, rows first."""
    names = list(map(str, table)) if isinstance(table, pd.DataFrame) else []
    x = np.asarray(table, float).reshape(len(table), -1)
    blocks = np.array_split(np.arange(x.shape[1]), min(BLOCKS, x.shape[1]) or 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a column may be empty
        mean, sd = ([np.nanmean(x[:, b]) for b in blocks], [np.nanstd(x[:, b]) for b in blocks])
    rows = np.unique(np.linspace(0, len(x) - 1, min(ROWS, len(x))).astype(int))
    return dict(
        shape=list(x.shape),
        columns=hashlib.sha256("\n".join(names).encode()).hexdigest()[:16] if names else "",
        missing=int(np.isnan(x).sum()),
        mean=short(mean),
        sd=short(sd),
        raw=short(x[rows][:, [b[0] for b in blocks]]),
    )


def as_array(rows) -> np.ndarray:
    return np.array([[np.nan if v is None else v for v in row] for row in rows], float)


def difference(old: dict, new: dict, tolerance: float) -> str:
    """Where two summaries differ; '' where they agree."""
    for what in ("shape", "columns", "missing"):
        if old[what] != new[what]:
            return f"{what} was {old[what]}, is {new[what]}"
    sd = np.nan_to_num(as_array(old["sd"]))
    for what in ("mean", "sd", "raw"):
        a, b = as_array(old[what]), as_array(new[what])
        far = np.nan_to_num(np.abs(a - b)) - tolerance * (sd + np.nan_to_num(np.abs(a)))
        if (np.isnan(a) != np.isnan(b)).any() or (far > 1e-9).any():
            worst = np.unravel_index(np.argmax(far), far.shape)
            return f"{what} of column {worst[1]} was {a[worst]:.6g}, is {b[worst]:.6g}"
    return ""


def differences(old: dict, new: dict, tolerance: float) -> list:
    """The same of several summaries and plain facts by name."""
    found = []
    for name in sorted(old.keys() | new.keys()):
        a, b = old.get(name), new.get(name)
        if isinstance(a, dict) and isinstance(b, dict) and "raw" in a and "raw" in b:
            said = difference(a, b, tolerance)
        else:
            said = "" if a == b else f"was {a}, is {b}"
        found += [f"{name}: {said}"] if said else []
    return found


def settle(
    kind: str,  # 'feature set', 'model' or 'dataset'
    name: str,
    version: int,  # declared now
    outputs: dict,  # name -> summary or plain fact
    tolerance: float,
    given: dict | None = None,  # the same of what it was given, where that is made by others
    record: bool = False,  # write what is new, or has another version
    folder: Path = HERE,
):
    """Fails when outputs moved and the version did not, or when the version did and was not recorded."""
    path, what = folder / kind.replace(" ", "-") / f"{name.replace('/', '-')}.json", f"{kind} {name!r}"
    now = json.loads(json.dumps(dict(version=version, given=given or {}, outputs=outputs)))
    old = json.loads(path.read_text()) if path.exists() else None
    moved = differences(old["outputs"], now["outputs"], tolerance) if old else []
    elsewhere = differences(old["given"], now["given"], tolerance) if old else []
    if moved and not elsewhere and old["version"] == version:
        pytest.fail(f"outputs moved: raise the version of {what} (now {version}); {moved[0]}")
    if record and (old is None or moved or elsewhere or old["version"] != version):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(now, separators=(",", ":")) + "\n")
    elif old is None:
        pytest.fail(f"{what} has no golden outputs yet; {HOW} writes them")
    elif old["version"] != version:
        pytest.fail(
            f"{what} has version {version}, its golden outputs are of {old['version']}; {HOW} writes them anew"
        )
    elif elsewhere:
        pytest.fail(
            f"what {what} is given here moved ({elsewhere[0]}): once datasets and feature sets pass, {HOW} writes its "
            "golden outputs anew"
        )
