"""Seeded copies of the usual mistakes: the audit catches every one, and passes the same code when it looks elsewhere."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from sklearn.decomposition import PCA
from sklearn.feature_selection import SelectKBest, f_classif
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.metrics import cohen_kappa_score, log_loss
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from trained import K, table

from sleepai.audit import counterfactual as auditing
from sleepai.audit.counterfactual import audit_pipeline, through_runner
from sleepai.audit.feature_leakage import audit_examples, audit_transform
from sleepai.audit.partition import audit_cell_folder, audit_records, check_fold
from sleepai.core import STAGES, Fold, Hypnogram, InputError, Predictions, Recording, concat
from sleepai.datasets.base import DatasetInfo, Record
from sleepai.datasets.recordings import Recordings
from sleepai.evaluation.fitting import predict_folds
from sleepai.evaluation.folds import make_folds
from sleepai.registry import datasets, features, models, protocols

EX = table()
FOLD = make_folds(EX.subjects, 3)[0]


# What a step may look at. The honest and the seeded pipeline are the same code with another choice.


def training(fold):
    return fold.train


def everybody(fold):
    return np.r_[fold.train, fold.test]


def split(ex, fold, honest):
    """Rows to learn from and rows to choose by: one training subject is set aside, or the test subjects are used."""
    aside = fold.train[ex.subjects[fold.train] == ex.subjects[fold.train][-1]]
    return np.setdiff1d(fold.train, aside), aside if honest else fold.test


def clean(X):
    return np.nan_to_num(np.asarray(X, float))


def logistic(X, y, **kw):
    return LogisticRegression(solver="newton-cholesky", **kw).fit(X, y)


# The steps. Each takes (ex, fold, honest) and gives back predict(X, meta).


def scaler(ex, fold, honest):
    rows = training(fold) if honest else everybody(fold)
    step, train = StandardScaler().fit(clean(ex.X)[rows]), ex.take(fold.train)
    model = logistic(step.transform(clean(train.X)), train.y)
    return lambda X, meta: model.predict_proba(step.transform(clean(X)))


def scaler_of_trees(ex, fold, honest):
    """Trees do not care for a scale, unless it eats the digits."""
    from sklearn.ensemble import RandomForestClassifier

    rows = training(fold) if honest else everybody(fold)
    step, train = StandardScaler().fit(clean(ex.X)[rows]), ex.take(fold.train)
    model = RandomForestClassifier(10, random_state=0).fit(step.transform(clean(train.X)), train.y)
    return lambda X, meta: model.predict_proba(step.transform(clean(X)))


def components(ex, fold, honest):
    rows = training(fold) if honest else everybody(fold)
    step, train = PCA(3).fit(clean(ex.X)[rows]), ex.take(fold.train)
    model = logistic(step.transform(clean(train.X)), train.y)
    return lambda X, meta: model.predict_proba(step.transform(clean(X)))


def imputer(ex, fold, honest):
    rows = training(fold) if honest else everybody(fold)
    step, train = SimpleImputer(strategy="median").fit(ex.X.iloc[rows]), ex.take(fold.train)
    model = logistic(step.transform(train.X), train.y)
    return lambda X, meta: model.predict_proba(step.transform(X))


def class_weights(ex, fold, honest):
    rows = training(fold) if honest else everybody(fold)
    n, train = np.bincount(ex.y[rows], minlength=K), ex.take(fold.train)
    model = logistic(clean(train.X), train.y, class_weight=dict(enumerate(n.sum() / np.maximum(n, 1))))
    return lambda X, meta: model.predict_proba(clean(X))


def smote(ex, fold, honest):
    """The mistake: oversample the whole table, then leave the test rows out and keep what was made of them."""
    from imblearn.over_sampling import SMOTE

    rows = training(fold) if honest else everybody(fold)
    few = max(1, min(3, np.unique(ex.y[rows], return_counts=True)[1].min() - 1))
    X, y = SMOTE(random_state=0, k_neighbors=few).fit_resample(clean(ex.X)[rows], ex.y[rows])
    keep = np.r_[np.arange(len(fold.train)), np.arange(len(rows), len(X))]
    model = logistic(X[keep], y[keep])
    return lambda X, meta: model.predict_proba(clean(X))


def selection(ex, fold, honest):
    rows = training(fold) if honest else everybody(fold)
    step, train = SelectKBest(f_classif, k=3).fit(clean(ex.X)[rows], ex.y[rows]), ex.take(fold.train)
    model = logistic(step.transform(clean(train.X)), train.y)
    return lambda X, meta: model.predict_proba(step.transform(clean(X)))


def calibration(ex, fold, honest):
    from scipy.optimize import minimize_scalar

    learn, look = split(ex, fold, honest)
    model = logistic(clean(ex.X)[learn], ex.y[learn])

    def warm(X, log_t):
        v = model.decision_function(clean(X)) / np.exp(log_t)
        p = np.exp(v - v.max(1, keepdims=True))
        return p / p.sum(1, keepdims=True)

    def loss(t):
        return log_loss(ex.y[look], warm(ex.X.iloc[look], t), labels=range(K))

    best = minimize_scalar(loss, bounds=(-3, 3), method="bounded").x
    return lambda X, meta: warm(X, best)


def passes(ex, learn, n):
    """A linear model after each of n passes over the training rows."""
    import copy

    X, model = (
        clean(ex.X)[learn],
        SGDClassifier(loss="log_loss", learning_rate="constant", eta0=0.002, random_state=0),
    )
    for _ in range(n):
        yield copy.deepcopy(model.partial_fit(X, ex.y[learn], classes=range(K)))


def early_stopping(ex, fold, honest):
    learn, look = split(ex, fold, honest)
    best, least, patience = None, np.inf, 3
    for model in passes(ex, learn, 25):
        p = np.clip(model.predict_proba(clean(ex.X)[look]), 1e-9, 1)
        loss = -np.log(p[np.arange(len(look)), ex.y[look]]).mean()
        best, least, patience = (
            (model, loss, 3) if best is None or loss < least else (best, least, patience - 1)
        )
        if not patience:
            break
    return lambda X, meta: best.predict_proba(clean(X))


def early_stopping_of_boosting(ex, fold, honest):
    from lightgbm import LGBMClassifier, early_stopping

    learn, look = split(ex, fold, honest)
    model = LGBMClassifier(
        n_estimators=25, num_leaves=4, verbose=-1, n_jobs=1, random_state=0, learning_rate=0.2
    )
    model.fit(
        clean(ex.X)[learn],
        ex.y[learn],
        eval_set=[(clean(ex.X)[look], ex.y[look])],
        callbacks=[early_stopping(2, verbose=False)],
    )
    return lambda X, meta: model.booster_.predict(clean(X), num_iteration=model.best_iteration_)


def checkpoint(ex, fold, honest):
    learn, look = split(ex, fold, honest)
    kept = list(passes(ex, learn, 12))
    best = max(
        kept, key=lambda m: cohen_kappa_score(ex.y[look], m.predict(clean(ex.X)[look]), labels=range(K))
    )
    return lambda X, meta: best.predict_proba(clean(X))


def parameter(ex, fold, honest):
    learn, look = split(ex, fold, honest)
    tried = [logistic(clean(ex.X)[learn], ex.y[learn], C=C) for C in (1e-4, 1e-2, 1, 100)]
    best = max(tried, key=lambda m: m.score(clean(ex.X)[look], ex.y[look]))
    return lambda X, meta: best.predict_proba(clean(X))


def threshold(ex, fold, honest, hard=True):
    """How willing to be to call N1, by the best kappa."""
    learn, look = split(ex, fold, honest)
    model = logistic(clean(ex.X)[learn], ex.y[learn])

    def willing(X, w):
        p = model.predict_proba(clean(X)) * [1, w, 1, 1, 1]
        return np.eye(K)[p.argmax(1)] if hard else p / p.sum(1, keepdims=True)

    grid = np.geomspace(0.05, 20, 15)
    best = max(
        grid,
        key=lambda w: cohen_kappa_score(ex.y[look], willing(ex.X.iloc[look], w).argmax(1), labels=range(K)),
    )
    return lambda X, meta: willing(X, best)


def soft_threshold(ex, fold, honest):
    return threshold(ex, fold, honest, hard=False)


def overlap(ex, fold, honest):
    rows = fold.train if honest else np.r_[fold.train, fold.test[::2]]
    model = logistic(clean(ex.X)[rows], ex.y[rows])
    return lambda X, meta: model.predict_proba(clean(X))


def split_by_epoch(ex, fold, honest):
    rows = fold.train if honest else train_test_split(np.arange(len(ex)), test_size=0.3, random_state=0)[0]
    model = logistic(clean(ex.X)[rows], ex.y[rows])
    return lambda X, meta: model.predict_proba(clean(X))


def person_memory(ex, fold, honest):
    """Centres every known person on that person's own mean; the mistake knows the test subjects, too."""
    train, rows = ex.take(fold.train), training(fold) if honest else everybody(fold)
    means = pd.DataFrame(clean(ex.X)[rows]).groupby(ex.subjects[rows]).mean()
    model = logistic(clean(train.X), train.y)

    def predict(X, meta):
        own = means.reindex(meta["subject"].astype(str)).fillna(means.mean()).to_numpy()
        return model.predict_proba(clean(X) - own + means.mean().to_numpy())

    return predict


MISTAKES = {
    scaler: "scaler",
    scaler_of_trees: "scaler",
    components: "PCA",
    imputer: "imputer",
    class_weights: "class weights",
    smote: "SMOTE",
    selection: "feature selection",
    calibration: "calibration",
    early_stopping: "early stopping",
    early_stopping_of_boosting: "early stopping",
    checkpoint: "checkpoint",
    parameter: "parameter choice",
    threshold: "threshold",
    soft_threshold: "threshold",
    overlap: "overlap",
    split_by_epoch: "split by epoch",
    person_memory: "scaler",
}


@pytest.mark.parametrize("step", MISTAKES, ids=lambda s: s.__name__)
def test_seeded_mistake_is_caught_and_named(step):
    audit = audit_pipeline(lambda ex, fold: step(ex, fold, honest=False), EX, FOLD, what=step.__name__)
    assert not audit.passed and MISTAKES[step] in audit.suspects, audit.frame.to_string()
    with pytest.raises(InputError, match=f"audit of {step.__name__}: "):
        audit.refuse()


@pytest.mark.parametrize("step", MISTAKES, ids=lambda s: s.__name__)
def test_honest_version_passes(step):
    audit = audit_pipeline(lambda ex, fold: step(ex, fold, honest=True), EX, FOLD, what=step.__name__)
    assert audit.passed and audit.suspects == "", audit.frame.to_string()
    audit.refuse()


@pytest.mark.parametrize("step", [scaler, class_weights, selection, threshold], ids=lambda s: s.__name__)
@pytest.mark.parametrize("seed", [1, 2])
def test_on_other_people_and_with_one_test_subject(step, seed):
    ex = table(people=4, seed=seed)
    fold = make_folds(ex.subjects)[seed]
    assert not audit_pipeline(lambda ex, fold: step(ex, fold, honest=False), ex, fold).passed
    assert audit_pipeline(lambda ex, fold: step(ex, fold, honest=True), ex, fold).passed


def test_signals_and_single_precision():
    """Examples may be arrays of signals, and a network counts in single precision."""
    ex = table()
    X = np.nan_to_num(ex.X.to_numpy(np.float32)).reshape(len(ex), 2, 4)
    ex = replace(ex, X=X)

    def pipeline(ex, fold, honest):
        flat = ex.X.reshape(len(ex), -1)
        rows = fold.train if honest else np.arange(len(ex))
        at, spread = flat[rows].mean(0), flat[rows].std(0)
        model = logistic((flat[fold.train] - at) / spread, ex.y[fold.train])
        return lambda X, meta: model.predict_proba(np.nan_to_num((X.reshape(len(X), -1) - at) / spread))

    assert audit_pipeline(lambda ex, fold: pipeline(ex, fold, True), ex, FOLD).passed
    assert "scaler" in audit_pipeline(lambda ex, fold: pipeline(ex, fold, False), ex, FOLD).suspects


# At prediction


def test_other_people_at_prediction():
    train = EX.take(FOLD.train)
    model = logistic(clean(train.X), train.y)

    def batch(ex, fold):
        return lambda X, meta: model.predict_proba((clean(X) - clean(X).mean(0)) / clean(X).std(0))

    def person(ex, fold):
        def predict(X, meta):
            own = pd.DataFrame(clean(X)).groupby(meta["record"].to_numpy()).transform("mean")
            return model.predict_proba(clean(X) - own.to_numpy())

        return predict

    failed = [f for f in audit_pipeline(batch, EX, FOLD).findings if not f.passed]
    assert [f.check for f in failed] == ["other people at prediction"] and "batch statistics" in failed[
        0
    ].suspects
    assert audit_pipeline(person, EX, FOLD).passed, "centring a night on itself looks at nobody else"


def test_what_cannot_be_judged_does_not_pass():
    def dice(ex, fold):
        return lambda X, meta: np.random.default_rng().dirichlet(np.ones(K), len(X))

    audit = audit_pipeline(dice, EX, FOLD)
    assert not audit.passed and "without a seed" in audit.suspects

    def broken(ex, fold):
        raise KeyError("no such column")

    with pytest.raises(InputError, match="KeyError.*no such column"):
        audit_pipeline(broken, EX, FOLD)


# Names, records and rows


def honest(ex, fold):
    return scaler(ex, fold, honest=True)


def failed(ex, fold, **kw):
    return [f.check for f in audit_pipeline(honest, ex, fold, **kw).findings if not f.passed]


def test_subject_overlap_under_a_fold_that_was_told_otherwise():
    names = np.char.add(EX.subjects, np.where(np.arange(len(EX)) % 2, "a", "b"))  # epochs as subjects
    assert "subjects" in failed(EX, Fold("odd and even", np.arange(0, 360, 2), np.arange(1, 360, 2), names))


@pytest.mark.parametrize("known", [True, False], ids=["with the dataset's list", "by the names alone"])
def test_nights_split_by_file(known):
    people = [f"SC4{k:02d}" for k in range(4)]
    ex = table(people=4, rows=120, nights=2, names=people)
    assert failed(ex, make_folds(ex.subjects)[0]) == []
    relabelled = replace(ex, meta=ex.meta.assign(subject=ex.meta["record"].str.replace("N", "")))
    assert len(set(relabelled.subjects)) == 8
    own = dict(zip(ex.meta["record"], ex.subjects, strict=True)) if known else None
    assert failed(relabelled, make_folds(relabelled.subjects)[0], people=own) == ["people"]


def test_names_that_only_look_alike_are_other_people():
    for names in (
        ["P1", "P2", "P3", "P4"],
        ["SC400", "SC401", "SC402", "SC403"],
        ["S11", "S12", "S21", "S22"],
    ):
        ex = table(people=4, names=names)
        assert failed(ex, make_folds(ex.subjects)[0]) == []


def test_a_night_under_two_names_and_a_record_cut_in_two():
    a, b = EX.take(EX.subjects == "P1"), EX.take(EX.subjects != "P1")
    again = replace(a, meta=a.meta.assign(subject="Q1", record="Q1N1"))
    twice = concat([a, b, again])
    assert failed(twice, make_folds(twice.subjects)[0]) == ["copies"]
    cut = replace(
        EX, meta=EX.meta.assign(subject=np.char.add(EX.subjects, np.where(EX.meta["index"] < 30, "x", "y")))
    )
    assert failed(cut, make_folds(cut.subjects)[0]) == ["records"]


def test_a_column_of_the_answer():
    told = replace(EX, X=EX.X.assign(eeg__note__30s=np.take([0.5, 2, 1, 4, 3], EX.y)))
    assert [f.check for f in check_fold(told, FOLD) if not f.passed] == ["labels among the features"]


# The runner and what every registered model makes of a night; test_every_model.py audits the models


def test_a_runner_that_looks_is_caught(monkeypatch):
    """The runner itself is under audit with every model: here one that scales before it splits."""
    proper = auditing.predict_fold

    def looks(ex, fold, model, **kw):
        scaled = StandardScaler().fit_transform(clean(ex.X))
        return proper(replace(ex, X=pd.DataFrame(scaled, columns=ex.X.columns)), fold, model, **kw)

    pipeline = through_runner(lambda: LogisticRegression(solver="newton-cholesky"))
    ex = replace(EX, X=EX.X.fillna(0))
    assert audit_pipeline(pipeline, ex, FOLD).passed
    monkeypatch.setattr(auditing, "predict_fold", looks)
    assert not audit_pipeline(pipeline, ex, FOLD).passed


@pytest.mark.parametrize(
    "name", [m.listed_as for m in models if m.transform is not None and m.study in ("", "sleep")]
)
def test_registered_transform(name):
    nights = [(EX.X[EX.subjects == s], np.arange(60)) for s in ("P1", "P2", "P3")]
    assert audit_transform(models[name].transform, nights).passed


class Naps(Recordings):
    """Two people, one of two naps with hours of wake on either side."""

    name, info = "naps", DatasetInfo("Naps", "made here", "MIT", "none", simulated=True)

    def records(self):
        return [Record("nap1", "A"), Record("nap2", "A", 2), Record("nap3", "B")]

    def read(self, record):
        rng, y = np.random.default_rng(int(record.name[-1])), np.repeat([0, 1, 2, 3, 0], [80, 4, 6, 4, 80])
        x = np.concatenate([rng.normal(0, 10 + 10 * s, 3000) for s in y])
        rec = Recording(x[None], 100, ["EEG Fpz-Cz"], ["eeg"], record.subject, record.night, record.name)
        return rec, Hypnogram(y)


class AfterTheTrim(Naps):
    """The mistake: what lies around an epoch is looked at once the window, which the scores decide, is cut."""

    def subject_examples(self, subject, features, protocol=None, transform=None):
        ex = super().subject_examples(subject, features, protocol)
        parts = [transform(X, None) for _, X in ex.X.groupby(ex.meta["record"].to_numpy(), sort=False)]
        return replace(ex, X=pd.concat(parts, ignore_index=True))


class AcrossNights(Naps):
    """The mistake: scaled over all nights of a person."""

    def subject_examples(self, subject, features, protocol=None, transform=None):
        ex = super().subject_examples(subject, features, protocol, transform)
        return replace(ex, X=(ex.X - ex.X.mean()) / ex.X.std())


def rolled(X, index):
    return X.rolling(9, center=True, min_periods=1).mean()


@pytest.mark.parametrize(
    "dataset, protocol, check, suspect",
    [
        (Naps, "5-fold", "", ""),
        (AfterTheTrim, "5-fold", "scores", "after the trim"),
        (AcrossNights, "5-fold-no-trim", "other records", "across records"),
    ],
)
def test_features_are_blind(dataset, protocol, check, suspect):
    audit = audit_examples(dataset(), features["seed16"], ["A"], protocols[protocol], transform=rolled)
    assert [f.check for f in audit.findings if not f.passed] == [check] * bool(check)
    assert suspect in audit.suspects


def test_features_that_cannot_be_audited():
    with pytest.raises(InputError, match="publishes features"):
        audit_examples(datasets["sleep-edf-features"], features["seed16"])
    with pytest.raises(InputError, match="two records"):
        audit_examples(Naps(), features["seed16"], ["B"])
    with pytest.raises(InputError, match="two records"):
        audit_transform(rolled, [])


# Finished runs


def finished(ex, folds):
    from types import SimpleNamespace

    frame, notes = predict_folds(ex, folds, lambda: models["constant"].build())
    return SimpleNamespace(folds=notes), Predictions("sleep", "toy", "constant", STAGES, frame)


def test_record_of_a_finished_run():
    run, pred = finished(EX, make_folds(EX.subjects, 3))
    assert audit_records(run, pred) == []
    run.folds[0]["n_train"] += 25  # rows added before the split
    run.folds[1]["train_subjects"] = sorted(
        {*run.folds[1]["train_subjects"], run.folds[1]["test_subjects"][0]}
    )
    found = audit_records(run, pred)
    assert (
        len(found) == 2
        and "265 rows to train, its subjects have 240" in found[0]
        and "on both sides" in found[1]
    )


def test_record_of_a_split_by_file():
    ex = table(people=4, rows=120, nights=2, names=[f"SC4{k:02d}" for k in range(4)])
    by_file = replace(ex, meta=ex.meta.assign(subject=ex.meta["record"].str.replace("N", "")))
    run, pred = finished(by_file, make_folds(by_file.subjects))
    assert len(audit_records(run, pred)) == 8

    class Listed:
        def people(self):
            return ex.meta[["record", "subject"]].drop_duplicates().set_index("record")

    found = audit_records(run, pred, Listed())
    assert found[0].startswith("8 records are filed under another person") and len(found) == 9


def test_a_record_in_two_folds():
    run, pred = finished(EX, make_folds(EX.subjects, 3))
    frame = pred.frame.copy()
    frame.loc[frame.index[:5], "fold"] = "fold-9"
    found = audit_records(run, replace(pred, frame=frame))
    assert any("is in 2 folds" in f for f in found) and any("is tested in 2 folds" in f for f in found)


@pytest.mark.parametrize(
    "folder", sorted(p.parent.relative_to(ROOT).as_posix() for p in (ROOT / "reports").rglob("run.json"))
)
def test_committed_runs(folder):
    assert audit_cell_folder(ROOT / folder) == []


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(InputError, match="sleepai run"):
        audit_cell_folder(tmp_path)
    assert datasets["simulated"].people()["subject"]["SIM01N2"] == "SIM01"
