"""Every registered model fitted once, in its audit; contracts, store and golden outputs look at that very fit."""

import functools
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest

from sleepai import registry
from sleepai.audit.counterfactual import PIXELS as SIDE
from sleepai.audit.counterfactual import Audit, audit_model, sample
from sleepai.core import STAGES, Examples, concat
from sleepai.datasets.recordings import transformed
from sleepai.evaluation.folds import make_folds
from sleepai.evaluation.run import dataset_examples
from sleepai.models.image_network import ImageNetwork
from sleepai.preprocessing.images import as_pixels, is_files

K = len(STAGES)


def is_network(model) -> bool:
    return any(k.split("__")[-1] == "epochs" for k in model.build().get_params())


@functools.cache
def first_of_families() -> set:
    """The first network of each family in each study: image networks are one, others go by their class."""
    first = {}
    for model in (m for m in registry.models if not m.members and is_network(m)):
        family = next((c for c in type(model.build()).__mro__ if c is ImageNetwork), type(model.build()))
        first.setdefault((model.study, family), model.listed_as)
    return set(first.values())


def cases() -> list:
    """A test parameter for each model that fits something; conftest.py lets one worker run all tests of a model."""
    found = [m for m in registry.models if not m.members]
    later = {m.listed_as for m in found if is_network(m)} - first_of_families()
    return [
        pytest.param(m.listed_as, marks=[pytest.mark.thorough] if m.listed_as in later else []) for m in found
    ]


# What they are fitted on


def table(people=6, rows=60, columns=8, nights=1, seed=0, names=None):
    """People who differ, with classes that show in the features and a few missing numbers."""
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(people), rows)
    y = np.concatenate(
        [
            rng.permutation(np.repeat(np.arange(K), rows // 60 * np.array([16, 5, 23, 7, 9])))
            for _ in range(people)
        ]
    )
    effect, person = rng.normal(size=(K, columns)), rng.normal(size=(people, columns))
    X = effect[y] + person[who] + rng.normal(0, 1.5, (len(y), columns))
    X[rng.random(X.shape) < 0.03] = np.nan
    name = np.array([f"P{k + 1}" for k in range(people)] if names is None else names)[who]
    night = np.tile(np.arange(rows) * nights // rows + 1, people)
    record = [f"{n}N{k}" for n, k in zip(name, night, strict=True)]
    meta = pd.DataFrame(dict(subject=name, record=record, index=np.tile(np.arange(rows), people)))
    columns = [f"eeg__f{j}__30s" for j in range(columns)]
    return Examples(pd.DataFrame(X, columns=columns), y, STAGES, meta)


def made_up(model) -> Examples:
    """Five made-up people in the form a model of nights takes; deep sleep never occurs."""
    ex = table(people=5, columns=10)
    ex, rng = ex.take(ex.y != 3), np.random.default_rng(0)
    if model.features == "yasa-hypnodensity":
        return replace(ex, X=pd.DataFrame(rng.dirichlet(np.ones(K), len(ex)), columns=list(STAGES)))
    if model.features.startswith("raw-"):
        X = pd.DataFrame(rng.normal(size=(len(ex), 300)) * (1 + ex.y[:, None]))
        return replace(ex, X=X.add_prefix("eeg__s").add_suffix("__30s"))
    nights = [ex.take(ex.subjects == s) for s in dict.fromkeys(ex.subjects)]
    made = [transformed(model.transform, n.X, n.meta["index"].to_numpy(), "a night") for n in nights]
    return concat([replace(n, X=X) for n, X in zip(nights, made, strict=True)])


@functools.cache
def simulated(dataset: str, features: str, protocol: str, transform) -> Examples:
    """A few rows of a dozen people, or of more who have one or two each, of a dataset that needs no files."""
    ds, fs, plan = registry.datasets[dataset], registry.features[features], registry.protocols[protocol]
    ex = dataset_examples(ds, fs, plan, 12, transform=transform)
    if len(ex) < 30:
        ex = dataset_examples(ds, fs, plan, 30, transform=transform)
    return sample(ex, 30, max(1, 300 // len(set(ex.subjects))))


def examples_for(model) -> Examples:
    """What a model is fitted on here."""
    study = registry.studies[model.study] if model.study else None
    if study is None or study.default:
        return made_up(model)
    dataset = registry.datasets[study.datasets[0]]
    return simulated(dataset.name, model.features, dataset.info.protocol or study.protocol, model.transform)


# How


SHORT = dict(epochs=1, n_members=1, n_thresholds=1, n_estimators=10, n_trees=10)


def short_training(model) -> dict:
    """Settings that make a training quick without changing its way: one epoch, ten trees, nothing downloaded."""
    options = model.build().get_params()
    short = {k: SHORT[last] for k in options if (last := k.split("__")[-1]) in SHORT}
    return short | ({"weights": ""} if options.get("weights") == "imagenet" else {})


@dataclass(frozen=True)
class Trained:
    model: object  # as registered
    ex: Examples
    audit: Audit
    fitted: object  # the estimator of the audit's first fit


@functools.cache
def trained(name: str) -> Trained:
    """A model, audited, and what it was when it had been fitted for the first time."""
    model, made = registry.models[name], []

    def build(seed=0, jobs=1):
        made.append(model.build(seed=seed, jobs=jobs))
        return made[-1]

    ex, short = examples_for(model), short_training(model)
    if is_files(ex.X):
        ex, short = as_pixels(ex, SIDE), short | dict(size=SIDE)
    fold = make_folds(ex.subjects, 3)[:1]
    audit = audit_model(replace(model, build=build), ex, fold, quick=is_network(model), **short)
    return Trained(model, ex, audit, next(e for e in made if hasattr(e, "classes_")))
