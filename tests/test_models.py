"""Classical models and the options around them: what they learn from, what they give back, what they refuse."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import cohen_kappa_score, log_loss
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sleepai import registry
from sleepai.audit.counterfactual import audit_pipeline, through_runner
from sleepai.core import STAGES, Examples, InputError
from sleepai.evaluation.folds import make_folds
from sleepai.models.base import fit, probabilities
from sleepai.models.boosted import Boosted
from sleepai.models.calibration import Calibrated, at_temperature, best_temperature, out_of_fold
from sleepai.models.imbalance import Smote, Weighted, class_weights, filled_up, oversampled, row_weights
from sleepai.models.linear import Linear, TunedLinear
from sleepai.models.smoothing import Smoothed, smoothed, stationary, steps_of, transitions
from sleepai.models.store import load, save

CHAIN = np.array(
    [
        [0.93, 0.06, 0.01, 0.00, 0.00],
        [0.12, 0.60, 0.25, 0.00, 0.03],
        [0.01, 0.03, 0.92, 0.03, 0.01],
        [0.01, 0.00, 0.07, 0.92, 0.00],
        [0.01, 0.03, 0.01, 0.00, 0.95],
    ]
)


def nights(n_people=6, n=200, noise=1.2, seed=0, gaps=True, n_noise=4):
    """Made-up people whose stages follow CHAIN; some numbers are missing."""
    rng, y = np.random.default_rng(seed), []
    for _ in range(n_people):
        stages = [0]
        for _ in range(n - 1):
            stages.append(rng.choice(5, p=CHAIN[stages[-1]]))
        y += stages
    y = np.array(y)
    own = np.repeat(rng.normal(0, 0.4, (n_people, 3)), n, axis=0)
    centre = np.array([[2, 0, 1], [1, 0, 0], [-1, 0, 0], [-2, -1, 0], [0, 1, -1]])
    told = 1.5 * centre[y] + own + rng.normal(0, noise, (len(y), 3))
    X = pd.DataFrame(np.c_[told, rng.normal(size=(len(y), n_noise))])
    X.columns = [f"eeg__x{k}__30s" for k in range(X.shape[1])]
    X = X.mask(rng.random(X.shape) < 0.02) if gaps else X
    who = np.repeat([f"P{k}" for k in range(n_people)], n)
    meta = pd.DataFrame(dict(subject=who, record=who, index=np.tile(np.arange(n), n_people)))
    return Examples(X.astype(np.float32), y, STAGES, meta)


OPTIONS = {
    "linear": lambda: TunedLinear(penalties=(1e-2, 1e-1), n_folds=2),
    "boosted": lambda: Boosted(n_trees=8),
    "weighted": lambda: Weighted(make_pipeline(StandardScaler(), GaussianNB()), "balanced"),
    "smote": lambda: Smote(Boosted(n_trees=8, weights="none")),
    "calibrated": lambda: Calibrated(Boosted(n_trees=8), n_folds=2),
    "smoothed": lambda: Smoothed(Linear()),
    "viterbi": lambda: Smoothed(Smote(Linear()), "viterbi"),
    "all of them": lambda: Smoothed(Calibrated(Smote(Linear(weights="none"), "sqrt"), n_folds=2)),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_only_training_rows_are_learned_from(name):
    """Nothing moves by one bit when labels, features and number of the test rows change."""
    ex = nights(5, 100, gaps=name != "weighted")
    audit = audit_pipeline(through_runner(OPTIONS[name]), ex, make_folds(ex.subjects, 3)[0], n_rows=60)
    assert audit.passed, audit.frame.to_string()


@pytest.mark.parametrize("name", OPTIONS)
def test_estimators_are_like_those_of_sklearn(name):
    ex = nights(3, 80, gaps=name != "weighted")
    model = OPTIONS[name]()
    params = model.get_params()
    p = probabilities(fit(model, ex.X, ex.y, ex.meta), ex.X, 5, ex.meta)
    twin = clone(model)
    assert not hasattr(twin, "classes_") and len(repr(model)) < 200
    assert repr(twin) == repr(model) and set(twin.get_params()) == set(params)
    again = probabilities(fit(twin, ex.X, ex.y, ex.meta), ex.X, 5, ex.meta)
    assert np.array_equal(p, again) and np.allclose(p.sum(1), 1)
    json.dumps(getattr(model, "best_params_", {}))


@pytest.mark.parametrize("name", OPTIONS)
def test_a_class_that_was_never_seen(name):
    ex = nights(3, 80, gaps=name != "weighted")
    ex = ex.take(~np.isin(ex.y, [1, 3]))
    p = probabilities(fit(OPTIONS[name](), ex.X, ex.y, ex.meta), ex.X, 5, ex.meta)
    assert (p[:, [1, 3]] == 0).all() and (p[:, [0, 2, 4]] > 0).all()


@pytest.mark.parametrize("name", ["linear", "boosted"])
def test_registered(name):
    model = registry.models[name]
    assert model.features == "psg" and model.transform is registry.models["boosted"].transform
    ex = nights(4)
    train = ex.subjects < "P3"
    fitted = fit(model.build(seed=0, jobs=1), ex.X[train], ex.y[train], ex.meta[train])
    p = probabilities(fitted, ex.X[~train], 5, ex.meta[~train])
    assert cohen_kappa_score(ex.y[~train], p.argmax(1)) > 0.4


def test_a_column_that_is_empty_and_a_channel_that_breaks():
    """Columns without any value in training are taken, and huge values do not tilt what else is known."""
    ex = nights(4)
    X = ex.X.assign(eog__x0__30s=np.nan)
    for model in (Linear(), Boosted(n_trees=20)):
        p = model.fit(X, ex.y).predict_proba(X)
        assert np.isfinite(p).all()
        for wild in (X.assign(eog__x0__30s=1e18), X.assign(eeg__x6__30s=-1e18)):
            assert np.isfinite(model.predict_proba(wild)).all()
            assert cohen_kappa_score(ex.y, model.predict(wild)) > 0.9 * cohen_kappa_score(ex.y, p.argmax(1))


# class weights and SMOTE


def test_weights():
    y = np.repeat([0, 2, 4], [100, 25, 4])
    assert class_weights(y, "none") == {0: 1, 2: 1, 4: 1}
    balanced, root = class_weights(y, "balanced"), class_weights(y, "sqrt")
    assert np.isclose(balanced[2] / balanced[0], 4) and np.isclose(root[2] / root[0], 2)
    assert np.isclose(balanced[4] / balanced[0], 25) and np.isclose(root[4] / root[0], 5)
    for how in ("none", "sqrt", "balanced"):
        assert np.isclose(row_weights(y, how).mean(), 1)
    with pytest.raises(InputError, match="Unknown class weights 'inverse'. Available: none, sqrt, balanced"):
        class_weights(y, "inverse")
    with pytest.raises(InputError, match="KNeighborsClassifier accepts no sample_weight"):
        Weighted(KNeighborsClassifier()).fit(np.zeros((len(y), 2)), y)


def test_weighted_is_what_sklearn_calls_balanced():
    ex = nights(3, gaps=False)
    ours = Weighted(LogisticRegression(max_iter=1000), "balanced").fit(ex.X, ex.y)
    theirs = LogisticRegression(max_iter=1000, class_weight="balanced").fit(ex.X, ex.y)
    assert np.allclose(ours.predict_proba(ex.X), theirs.predict_proba(ex.X), atol=1e-4)


def test_smote_makes_rows_between_those_of_the_class():
    rng = np.random.default_rng(0)
    X = np.r_[rng.normal(0, 1, (50, 2)), rng.normal(20, 1, (8, 2)), rng.normal(-20, 1, (3, 2))]
    y = np.repeat([0, 1, 3], [50, 8, 3])
    full, labels = oversampled(X, y)
    assert np.array_equal(full[:61], X) and np.array_equal(labels[:61], y)
    assert (
        {int(c): int((labels == c).sum()) for c in np.unique(labels)} == filled_up(y) == {0: 50, 1: 50, 3: 50}
    )
    for c in (1, 3):
        made = full[61:][labels[61:] == c]
        assert (made >= X[y == c].min(0) - 1e-9).all() and (made <= X[y == c].max(0) + 1e-9).all()
    assert filled_up(y, "sqrt") == {0: 50, 1: 20, 3: 12}
    assert not np.array_equal(full, oversampled(X, y, seed=1)[0])
    with pytest.raises(InputError, match="class 3 has 1 of 59 training rows"):
        oversampled(X[:59], y[:59])
    assert len(oversampled(X[:50], y[:50])[0]) == 50, "a single class needs nothing"


def test_smote_counts_training_rows_only():
    ex = nights(3)
    train = ex.subjects < "P2"
    n = np.bincount(ex.y[train])
    model = Smote(Linear(weights="none")).fit(ex.X[train], ex.y[train])
    assert model.n_made_ == (n.max() - n[n > 0]).sum()
    assert np.allclose(model.prior_, 1 / len(n[n > 0]))
    weighted = Smote(Boosted(n_trees=3, weights="sqrt"), to="sqrt").fit(ex.X[train], ex.y[train])
    assert np.allclose(weighted.prior_, np.sqrt(w := np.sqrt(n[n > 0])) / np.sqrt(w).sum(), atol=0.01)


def test_smote_refuses_what_needs_a_subject_or_a_place():
    ex = nights(2)
    for inner in (TunedLinear(), Smoothed(Linear()), Calibrated(Linear())):
        with pytest.raises(InputError, match="put Smote around the classifier inside it"):
            Smote(inner).fit(ex.X, ex.y)


# linear


def test_penalty_is_chosen_by_subject():
    """Where a column tells people apart and nothing else, only folds by subject see that it is worthless."""
    rng = np.random.default_rng(0)
    who = np.repeat([f"P{k}" for k in range(8)], 60)
    y = np.repeat(rng.integers(0, 2, 8), 60)
    y[:120] = np.repeat([0, 1], 60)
    X = np.eye(8).repeat(60, axis=0) + rng.normal(0, 0.05, (480, 8))
    model = TunedLinear(penalties=(1e-5, 1e-1, 1e2)).fit(X, y, who)
    assert model.best_params_["penalty"] == 1e2
    assert model.losses_[1e-1] > 1.5 * model.losses_[1e2]
    assert 1e-5 not in model.losses_, "weaker penalties are not tried once the loss has risen"


def test_the_penalty_is_that_of_the_mean_loss():
    ex = nights(3, gaps=False)
    model = Linear(0.05, "none").fit(ex.X, ex.y)
    ready = model.prepare_.transform(ex.X.to_numpy())
    p, W = model.predict_proba(ex.X), model.regression_.coef_
    slope = (p - np.eye(5)[ex.y]).T @ ready / len(ex.y) + 0.05 * W
    assert np.abs(slope).max() < 2e-3


def test_thinning_bounds_what_is_tuned_on(monkeypatch):
    import sleepai.models.linear as module

    seen, was = [], module.regressed

    def counted(X, y, penalty, weights):
        seen.append(len(y))
        return was(X, y, penalty, weights)

    monkeypatch.setattr(module, "regressed", counted)
    ex = nights(6)
    TunedLinear(penalties=(0.1, 1), most=300).fit(ex.X, ex.y, ex.subjects)
    assert max(seen[:-1]) <= 300 and seen[-1] == len(ex)


# boosted


def test_boosted_is_a_matter_of_the_seed():
    ex = nights(3)
    ask = lambda **kw: Boosted(n_trees=12, **kw).fit(ex.X, ex.y).predict_proba(ex.X)  # noqa: E731
    assert np.array_equal(ask(seed=1), ask(seed=1)) and np.array_equal(ask(seed=1), ask(seed=1, jobs=2))
    assert not np.array_equal(ask(seed=1), ask(seed=2))


@pytest.mark.parametrize("kind", ["frame", "array", "numbered"])
def test_boosted_is_kept_and_read_again(kind, tmp_path):
    ex = nights(3)
    X = dict(frame=ex.X, array=ex.X.to_numpy(), numbered=pd.DataFrame(ex.X.to_numpy()))[kind]
    y = np.where(ex.y == 1, 2, ex.y)
    model = Boosted(n_trees=12, seed=4).fit(X, y)
    kept = load(save(model, tmp_path / "kept", STAGES, X, ex.meta)).model
    assert any(f.suffix == ".txt" for f in (tmp_path / "kept").iterdir()), "trees as LightGBM writes them"
    assert np.array_equal(kept.predict_proba(X), model.predict_proba(X))
    assert np.array_equal(kept.classes_, [0, 2, 3, 4]) and np.allclose(kept.prior_, model.prior_)
    assert kept.get_params() == model.get_params() and np.array_equal(kept.predict(X), model.predict(X))


def test_boosted_knows_its_columns():
    ex = nights(3)
    model = Boosted(n_trees=5).fit(ex.X, ex.y)
    p = model.predict_proba(ex.X)
    assert np.array_equal(p, model.predict_proba(ex.X[list(ex.X)[::-1]].assign(more=0)))
    with pytest.raises(InputError, match="X: column 'eeg__x1__30s' is missing"):
        model.predict_proba(ex.X.drop(columns="eeg__x1__30s"))
    assert np.isclose(model.gain_.sum(), 1) and list(model.gain_.index) == list(ex.X)


def test_boosted_with_one_class_only():
    p = Boosted(n_trees=3).fit(np.zeros((50, 2)), np.full(50, 2)).predict_proba(np.zeros((4, 2)))
    assert p.shape == (4, 1) and np.allclose(p, 1)


# calibration


def test_temperature_is_found_and_mends_the_log_loss():
    rng = np.random.default_rng(0)
    honest = rng.dirichlet(np.ones(5), 6000)
    truth = np.array([rng.choice(5, p=row) for row in honest])
    for t in (0.5, 1, 2.5):
        said = at_temperature(honest, 1 / t)
        assert abs(best_temperature(said, truth) / t - 1) < 0.1
    assert np.array_equal(at_temperature(honest, 4).argmax(1), honest.argmax(1))


def test_out_of_fold_never_asks_a_model_about_its_own_people():
    seen = []

    class Memory(ClassifierMixin, BaseEstimator):
        def fit(self, X, y, groups):
            self.classes_, self.known = np.unique(y), set(groups)
            return self

        def predict_proba(self, X, meta):
            seen.append((self.known, set(meta["subject"])))
            return np.full((len(X), len(self.classes_)), 1 / len(self.classes_))

    ex = nights(5, 40)
    p = out_of_fold(Memory, ex.X, ex.y, ex.meta, 3)
    assert np.allclose(p.sum(1), 1) and len(seen) == 3
    assert all(not known & asked for known, asked in seen)
    assert set.union(*(asked for _, asked in seen)) == set(ex.subjects)
    with pytest.raises(InputError, match="at least two training subjects, found 1"):
        out_of_fold(Memory, ex.X[:40], ex.y[:40], ex.meta[:40])


def test_calibrated_says_less_and_decides_the_same():
    ex = nights(8, 100, noise=2.5, n_noise=20)
    train, trees = ex.subjects < "P5", Boosted(n_trees=150, rate=0.3, weights="none")
    plain = clone(trees).fit(ex.X[train], ex.y[train])
    model = Calibrated(trees).fit(ex.X[train], ex.y[train], ex.meta[train])
    p, q = (m.predict_proba(ex.X[~train]) for m in (plain, model))
    assert model.temperature_ > 1.3 and np.array_equal(p.argmax(1), q.argmax(1))
    assert log_loss(ex.y[~train], q, labels=model.classes_) < log_loss(ex.y[~train], p, labels=model.classes_)


def test_what_is_inside_is_handed_everything(tmp_path):
    told, folders = [], []

    class Asks(ClassifierMixin, BaseEstimator):
        def fit(self, X, y, groups, meta, progress, checkpoint):
            assert len(X) == len(y) == len(groups) == len(meta) and set(groups) == set(meta["subject"])
            progress("training", 1, 1)
            folders.append(checkpoint.relative_to(tmp_path))
            self.classes_ = np.unique(y)
            return self

        def predict_proba(self, X, meta):
            assert len(X) == len(meta)
            return np.full((len(X), len(self.classes_)), 1 / len(self.classes_))

    ex = nights(3, 40)
    tell = lambda *said: told.append(said)  # noqa: E731
    model = Smoothed(Calibrated(Asks(), n_folds=2))
    fit(model, ex.X, ex.y, ex.meta, progress=tell, checkpoint=tmp_path)
    assert folders == [Path("inner-0"), Path("inner-1"), Path("all")], "no two trainings share a folder"
    assert told == [
        ("inner fold 1/2, training", 1, 1),
        ("inner fold 2/2, training", 1, 1),
        ("training", 1, 1),
    ]
    assert probabilities(model, ex.X, 5, ex.meta).shape == (120, 5)


# smoothing


def test_transitions_respect_records_and_gaps():
    y = np.array([0, 0, 1, 2, 2, 2])
    meta = pd.DataFrame(dict(record=list("aaabbb"), index=[4, 5, 6, 10, 11, 14]))
    steps = steps_of(meta)
    assert steps.tolist() == [0, 1, 1, 0, 1, 3]
    assert np.allclose(transitions(y, steps, 3) * [[5], [3], [4]], [[2, 2, 1], [1, 1, 1], [1, 1, 2]])
    with pytest.raises(InputError, match="epochs of a are not in order, found 5 after 6"):
        steps_of(meta.iloc[[0, 2, 1]])


def test_smoothing_recovers_a_planted_chain():
    ex = nights(8, 400, noise=2.5, gaps=False)
    train = ex.subjects < "P4"
    asked = ex.meta[~train].reset_index(drop=True)
    plain = GaussianNB().fit(ex.X[train], ex.y[train])
    kappa = {"plain": cohen_kappa_score(ex.y[~train], plain.predict(ex.X[~train]))}
    for how in ("posterior", "viterbi"):
        model = Smoothed(GaussianNB(), how).fit(ex.X[train], ex.y[train], ex.meta[train])
        assert np.abs(model.transitions_ - CHAIN).max() < 0.1
        p = model.predict_proba(ex.X[~train], asked)
        kappa[how] = cohen_kappa_score(ex.y[~train], p.argmax(1))
        alone = asked["record"] == "P5"
        assert np.array_equal(model.predict_proba(ex.X[~train][alone.to_numpy()], asked[alone]), p[alone])
    assert min(kappa["posterior"], kappa["viterbi"]) > kappa["plain"] + 0.1, kappa


@pytest.mark.parametrize("how", ["posterior", "viterbi"])
def test_smoothing_is_that_of_all_paths(how):
    rng, A = np.random.default_rng(0), transitions(np.array([0, 1, 1, 2, 0, 0, 1]), np.ones(7, int), 3)
    steps = np.array([0, 1, 2, 1, 1])
    far = [np.linalg.matrix_power(A, max(s, 1)) for s in steps]
    for _ in range(10):
        e = rng.dirichlet(np.ones(3) / 2, 5) + 1e-6
        total = np.zeros((5, 3))
        for path in product(range(3), repeat=5):
            worth = stationary(A)[path[0]] * e[range(5), path].prod()
            worth *= np.prod([far[t][path[t - 1], path[t]] for t in range(1, 5)])
            here = total[range(5), path]
            total[range(5), path] = here + worth if how == "posterior" else np.maximum(here, worth)
        assert np.allclose(smoothed(e, steps, A, how), total / total.sum(1, keepdims=True))


def test_a_record_does_not_begin_awake_because_windows_do():
    """Every window is cut before sleep; a chain that starts where training nights start would know it."""
    ex = nights(6, 300)
    assert (ex.y[ex.meta["index"] == 0] == 0).all()
    model = Smoothed(Linear()).fit(ex.X, ex.y, ex.meta)
    nothing = smoothed(np.ones((50, 5)), np.r_[0, np.ones(49, int)], model.transitions_)
    assert np.allclose(nothing, stationary(model.transitions_))


def test_shares_do_not_count_twice():
    """Weights change what the stager takes for common; divided out, they leave the smoothed answer nearly alone."""
    ex = nights(8, 300, noise=2, gaps=False)
    train = ex.subjects < "P5"
    said = [
        Smoothed(Weighted(LogisticRegression(max_iter=500), how)).fit(
            ex.X[train], ex.y[train], ex.meta[train]
        )
        for how in ("none", "balanced")
    ]
    a, b = (m.predict_proba(ex.X[~train], ex.meta[~train].reset_index(drop=True)) for m in said)
    plain = [m.fitted_.predict_proba(ex.X[~train]) for m in said]
    assert (a.argmax(1) == b.argmax(1)).mean() > 0.97
    assert np.abs(a - b).mean() < np.abs(plain[0] - plain[1]).mean() / 3


def test_smoothing_says_what_it_lacks():
    ex = nights(2, 50)
    model = Smoothed(Linear()).fit(ex.X, ex.y, ex.meta)
    with pytest.raises(InputError, match="smoothing needs the record"):
        model.predict_proba(ex.X)
    with pytest.raises(InputError, match="Available: posterior, viterbi"):
        Smoothed(Linear(), "median").fit(ex.X, ex.y, ex.meta)


def test_a_class_that_one_person_has_alone_leaves_the_penalty_untuned():
    X, who = np.random.default_rng(0).normal(size=(60, 3)), np.repeat(["A", "B"], 30)
    model = TunedLinear().fit(X, (who == "A").astype(int), who)
    assert model.best_params_ == {"penalty": 1e-2} and model.predict_proba(X).shape == (60, 2)
