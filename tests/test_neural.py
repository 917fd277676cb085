"""Networks: seeds, interruption, who is held out, missing channels, windows, and no word of one backend."""

import ast
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from sleepai.core import InputError
from sleepai.models import store
from sleepai.models.cnn import CNN, augmented, channels_of, read_signals
from sleepai.models.feature_sequence import FeatureSequence, with_ranks
from sleepai.models.neural import fit_temperature, held_out, log_loss, loss_weights, softmax
from sleepai.models.sequence import LONGEST, Sequence, covering, drawn, runs

SMALL = {
    CNN: dict(epochs=3, batch=32, width=4, shift=5),
    Sequence: dict(epochs=3, batch=4, width=4, window=8, units=8, shift=5),
    FeatureSequence: dict(epochs=3, batch=4, window=8, units=8, size=8),
}


def nights(family, n_people=5, n=40, seed=0):
    """Signals of a rhythm a stage, with an EMG that only some have, or two features a stage."""
    rng = np.random.default_rng(seed)
    y = np.repeat(rng.integers(0, 3, n_people * n // 4), 4)
    if family is FeatureSequence:
        X = pd.DataFrame(np.eye(3)[y][:, :2] * 2 + rng.normal(size=(len(y), 2)))
        X.columns = ["eeg__a__30s", "emg__b__30s"]
    else:
        t = np.arange(60) / 100
        eeg = np.sin(2 * np.pi * (3 + 9 * y[:, None]) * t) + rng.normal(0, 0.3, (len(y), 60))
        emg = rng.normal(size=(len(y), 60)) * (y[:, None] + 1)
        names = [f"{c}__s{k:02d}__30s" for c in ("eeg", "emg") for k in range(60)]
        X = pd.DataFrame(np.concatenate([eeg, emg], 1), columns=names, dtype=np.float32)
    people = np.repeat([f"P{k}" for k in range(n_people)], n)
    X.loc[people == "P1", [c for c in X if c.startswith("emg")]] = np.nan
    meta = pd.DataFrame(dict(subject=people, record=people, index=np.tile(np.arange(n), n_people)))
    return X, y, meta


@pytest.fixture(scope="module", params=SMALL, ids=lambda f: f.__name__)
def fitted(request):
    family = request.param
    X, y, meta = nights(family)
    make = lambda **more: family(**dict(seed=3, n_members=2) | SMALL[family] | more)  # noqa: E731
    return make, make().fit(X, y, meta), (X, y, meta)


def test_probabilities(fitted):
    _, model, (X, y, meta) = fitted
    p = model.predict_proba(X, meta)
    assert np.allclose(p.sum(1), 1) and (p >= 0).all() and list(model.classes_) == [0, 1, 2]


@pytest.mark.parametrize("share", [0.15, 0.7], ids=["first network", "second network"])
def test_interrupted_and_resumed_is_the_same(fitted, share, tmp_path):
    make, model, (X, y, meta) = fitted
    told = []

    def stop(step, done, total):
        told.append((done, total))
        if done > share * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make().fit(X, y, meta, progress=stop, checkpoint=tmp_path)
    again = []
    model_2 = make().fit(X, y, meta, progress=lambda *a: again.append(a[1:]), checkpoint=tmp_path)
    assert again[0][0] <= told[-1][0] and (share < 0.5 or again[0][0] > told[-1][1] // 2), "it began anew"
    assert all(d <= n for d, n in again) and [d for d, _ in again] == sorted(d for d, _ in again)
    assert np.array_equal(model_2.predict_proba(X, meta), model.predict_proba(X, meta))
    assert model_2.temperature_ == model.temperature_


def test_the_same_seed_gives_the_same_and_another_does_not(fitted, tmp_path):
    """Also where a checkpoint of other inputs lies in the way."""
    make, model, (X, y, meta) = fitted
    p = model.predict_proba(X, meta)
    assert not np.allclose(p, make(seed=9).fit(X, y, meta, checkpoint=tmp_path).predict_proba(X, meta))
    assert np.array_equal(p, make().fit(X, y, meta, checkpoint=tmp_path).predict_proba(X, meta))


def test_saved_and_loaded_is_the_same(fitted, tmp_path):
    _, model, (X, _, meta) = fitted
    loaded = store.load(store.save(model, tmp_path / "kept", ["a", "b", "c"], X, meta)).model
    assert np.array_equal(loaded.predict_proba(X, meta), model.predict_proba(X, meta))
    assert loaded.get_params() == model.get_params()


def test_a_channel_may_be_missing_and_rows_may_be_shuffled(fitted):
    _, model, (X, _, meta) = fitted
    p = model.predict_proba(X, meta)
    order = np.random.default_rng(0).permutation(len(X))
    assert np.allclose(model.predict_proba(X.iloc[order], meta.iloc[order]), p[order], atol=1e-4)
    only = model.predict_proba(X[[c for c in X if c.startswith("eeg")]], meta)
    holes = model.predict_proba(X.assign(**{c: np.nan for c in X if c.startswith("emg")}), meta)
    assert np.isfinite(only).all() and np.array_equal(only, holes)
    assert np.isfinite(model.predict_proba(X[:3], meta[:3])).all()
    assert np.isfinite(model.predict_proba(X[:1], meta[:1])).all() and len(model.predict_proba(X[:5])) == 5


def test_who_is_held_out_changes_no_weight_in_an_epoch(fitted):
    """Labels of held-out people decide when to stop and how sure to be, and nothing else."""
    make, _, (X, y, meta) = fitted
    out = held_out(meta["subject"], 0.15, 0, 3)
    other = np.where(out, (y + 1) % 3, y)
    assert out.any() and (np.bincount(other, minlength=3) > 0).all()
    a, b = (make(n_members=1, epochs=1, class_weight=None).fit(X, labels, meta) for labels in (y, other))
    assert all(np.array_equal(v, w) for v, w in zip(a.members_[0], b.members_[0], strict=True))


def test_three_people_are_too_few_to_hold_one_out(fitted):
    make, _, (X, y, meta) = fitted
    few = meta["subject"].isin(["P0", "P1", "P2"]).to_numpy()
    model = make(n_members=1, epochs=2, patience=0).fit(X[few], y[few], meta[few])
    assert (
        model.temperature_ == 1 and len(model.history_[0]) == 2 and model.history_[0]["held out"].isna().all()
    )


@pytest.mark.parametrize(
    "options",
    [dict(gamma=2.0), dict(class_weight="balanced"), dict(average=0.0), dict(smoothing=0.2)],
    ids=str,
)
def test_options_train(options):
    X, y, meta = nights(FeatureSequence)
    how = dict(epochs=8, batch=2, rate=1e-2, window=4, units=8, size=8, n_members=1, dropout=0.1)
    model = FeatureSequence(**how | options).fit(X, y, meta)
    assert (model.predict(X, meta) == y).mean() > 0.6


def test_what_a_user_can_get_wrong():
    X, y, meta = nights(CNN)
    with pytest.raises(InputError, match="class_weight: there is no 'equal'"):
        CNN(class_weight="equal", epochs=1).fit(X, y, meta)
    with pytest.raises(InputError, match="need one row for each of the 200 examples, found 3"):
        CNN(epochs=1).fit(X, y, meta[:3])
    with pytest.raises(InputError, match="found eeg 60, emg 59"):
        CNN(epochs=1).fit(X.iloc[:, :-1], y, meta)
    with pytest.raises(InputError, match=f"need 1 to {LONGEST} epochs, found 61"):
        Sequence(window=61).fit(X, y, meta)


def some_meta(rng):
    index = [np.sort(rng.choice(300, rng.integers(1, 120), replace=False)) for _ in range(4)]
    return pd.DataFrame(
        dict(record=np.repeat(list("abcd"), list(map(len, index))), index=np.concatenate(index))
    )


@pytest.mark.parametrize("seed", range(8))
def test_windows_are_full_of_real_epochs_of_one_run(seed):
    rng = np.random.default_rng(seed)
    meta, length = some_meta(rng), int(rng.integers(1, 30))
    stretches = [set(r) for r in runs(meta)]
    cover, weight = covering(meta, length, max(1, length // 4))
    assert len(weight) == length and weight.min() > 0 and np.allclose(weight, weight[::-1])
    for chosen in (drawn(meta, length, rng), cover):
        assert chosen.shape[1] == length and set(chosen.ravel()) == set(range(len(meta)))
        for w in chosen:
            at = [s for s in stretches if set(w) <= s]
            assert len(at) == 1, "a window crosses a border or a long gap"
            assert len(at[0]) < length or (np.diff(w) == 1).all(), (
                "only a run shorter than a window is reflected"
            )


def test_every_place_in_a_window_sees_the_same_share_of_wake():
    """Or the place would tell how far away the edge is; true as long as the wake is as long as the window."""
    y = np.r_[np.zeros(60), np.ones(300), np.zeros(60)]
    meta = pd.DataFrame(dict(record="n", index=np.arange(len(y))))
    places = [y[drawn(meta, 60, np.random.default_rng(s))].mean(0) for s in range(600)]
    assert np.ptp(np.mean(places, 0)) < 0.03


def test_channels_and_augmentation():
    assert channels_of(["a__1__s", "b__1__s", "a__2__s", "b__2__s"]) == dict(a=[0, 2], b=[1, 3])
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(5, 30, (6, 40)), columns=[f"eeg__{k}__30s" for k in range(40)])
    one = read_signals(X, pd.DataFrame(dict(record=["r"] * 6)), ["eeg", "eog"])
    big = read_signals(X * 1000, pd.DataFrame(dict(record=["r"] * 6)), ["eeg", "eog"])
    assert np.array_equal(one, big) and one.dtype == np.float16 and not one[..., 1].any()
    flat = read_signals(X * 0 + 7, pd.DataFrame(dict(record=["r"] * 6)), ["eeg"])
    assert not flat.any()
    x = one.astype(np.float32)
    flipped = augmented(x, rng, scale=0, shift=0, noise=0, flip=1, drop=0)
    assert np.allclose(flipped, -x) and np.array_equal(augmented(x, rng, 0, 0, 0, 0, 0), x)
    windows = np.repeat(x[:, None], 3, 1) + 1
    gone = augmented(windows, np.random.default_rng(1), drop=0.5).any(axis=(1, 2))
    assert gone.any(1).all() and not gone.all(), "a channel is dropped for a whole window, never all of them"


def test_weights_temperature_and_who_is_held_out():
    codes = np.repeat([0, 1, 2], [50, 30, 20])
    for how in (None, "sqrt", "balanced"):
        assert loss_weights(codes, how)[codes].mean() == pytest.approx(1)
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (3000, 4))
    truth = (logits + rng.gumbel(size=logits.shape)).argmax(1)
    t = fit_temperature(logits * 0.5, truth)
    assert t == pytest.approx(0.5, abs=0.05) and log_loss(logits * 0.5 / t, truth) < log_loss(
        logits * 0.5, truth
    )
    assert (softmax(logits / t).argmax(1) == logits.argmax(1)).all()
    people = np.repeat([f"P{k}" for k in range(10)], 3)
    each = [frozenset(people[held_out(people, 0.2, m, 7)]) for m in range(5)]
    assert all(len(e) == 2 for e in each) and len(frozenset.union(*each)) == 10
    assert not held_out(people, 0.0).any() and not held_out(people[:9], 0.5).any()


def test_ranks_look_at_one_record_and_survive_any_gain():
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(1500, 2)), columns=["eeg__log_beta__30s", "eeg__x__30s"])
    a, b = with_ranks(X, np.arange(1500)), with_ranks(np.exp(3 * X + 1), np.arange(1500))
    assert list(a)[:2] == list(X) and len(set(a)) == 6 and all(c.count("__") == 2 for c in a)
    assert np.array_equal(a.iloc[:, 2:], b.iloc[:, 2:]) and np.isfinite(a).all(axis=None)


def test_no_backend_is_named():
    for name in ("neural", "cnn", "sequence", "feature_sequence"):
        tree = ast.parse((ROOT / "sleepai" / "models" / f"{name}.py").read_text())
        names = [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
        names += [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
        assert not [n for n in names if n.split(".")[0] in ("tensorflow", "jax", "torch", "pickle", "joblib")]
        used = [n.id for n in ast.walk(tree) if isinstance(n, ast.Name)]
        assert "tf" not in used and "tensorflow" not in used


def test_importing_is_light_and_training_is_quiet():
    code = (
        "import sys, sleepai.models.feature_sequence as m, sleepai.models.cnn\n"
        "assert not {'keras', 'tensorflow'} & set(sys.modules)\n"
        "import numpy as np; y = np.arange(40) % 2\n"
        "m.FeatureSequence(epochs=1, n_members=1, window=4).fit(np.eye(40), y).predict_proba(np.eye(40))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "" and done.stderr == "", done.stdout + done.stderr
