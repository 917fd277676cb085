"""What everything registered promises, checked on all of it."""

import ast
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, SLEEPAI

from sleepai import registry
from sleepai.core import STAGES, Examples, Hypnogram, Recording
from sleepai.datasets.base import Dataset
from sleepai.datasets.recordings import Recordings
from sleepai.datasets.tables import Tables
from sleepai.preprocessing.signals import resample


@pytest.fixture(scope="module")
def night():
    rng, stages = np.random.default_rng(0), np.repeat([0, 1, 2, 3, 4, 2], 4)
    x = np.concatenate([rng.normal(0, 10 + 8 * s, (3, 3000)) for s in stages], axis=1)
    return Recording(
        x, 100, ("EEG Fpz-Cz", "EOG horizontal", "EMG submental"), ("eeg", "eog", "emg"), "S1"
    ), stages


@pytest.mark.parametrize("name", registry.datasets.names())
def test_dataset(name):
    ds = registry.datasets[name]
    assert isinstance(ds, Dataset) and ds.name == name and ds.version >= 1
    assert (
        all([ds.info.title, ds.info.source, ds.info.licence, ds.info.citation])
        and ds.info.study in registry.studies
    )
    assert not ds.info.protocol or ds.info.protocol in registry.protocols
    assert list(ds.people().columns) == ["subject", "age", "sex"] and isinstance(ds.exclusions([]), dict)
    if not ds.available():
        pytest.skip(f"the files of {name} are not in place")
    subject = ds.subjects()[0]
    if isinstance(ds, Recordings):
        rec, hyp = next(iter(ds.load(subject)))
        assert isinstance(rec, Recording) and isinstance(hyp, Hypnogram) and rec.subject == subject
    elif isinstance(ds, Tables):
        loaded = ds.load([subject])
        assert isinstance(loaded, Examples) and set(loaded.subjects) == {subject}
        assert loaded.classes == ds.classes
    else:
        scorings = ds.read(next(r for r in ds.records() if r.subject == subject))
        assert scorings.subject == subject and len(scorings.raters) == len(scorings.stages)
        assert scorings.counted.any() and all(ds.refuses(m) for m in registry.models)
    sums = ds.checksums([subject])
    assert sums and all(len(v) == 64 for v in sums.values()) and sums == ds.checksums([subject])


@pytest.mark.parametrize("name", registry.features.names())
def test_feature_set(name, night):
    fs, (rec, stages) = registry.features[name], night
    table = fs.compute(rec)
    assert len(table) == len(stages) and np.isfinite(table.to_numpy(float)).all()
    assert all(len(c.split("__")) == 3 for c in table) or list(table) == list(STAGES)
    assert fs.key() == fs.key() and len(fs.key()) == 64
    pd.testing.assert_frame_equal(table, fs.compute(rec))


@pytest.mark.parametrize("sfreq", [50, 200, 256])
@pytest.mark.parametrize("name", registry.features.names())
def test_feature_set_at_other_rates(name, sfreq, night):
    """One row an epoch and the same columns at every rate a dataset comes in; only a band that cannot exist is empty."""
    fs, (rec, stages) = registry.features[name], night
    table, usual = fs.compute(resample(rec, sfreq)), fs.compute(rec)
    assert len(table) == len(stages) and list(table) == list(usual)
    empty = [c for c in table if table[c].isna().any()]
    assert all(sfreq == 50 and "gamma" in c for c in empty), empty


@pytest.mark.parametrize("name", registry.metrics.names())
def test_metric(name):
    m = registry.metrics[name]
    assert m.better in ("higher", "lower")
    if m.of == "probability":
        y = np.array([0, 1, 2])
        assert m.fn(y, np.eye(3)[y]).mean() < m.fn(y, np.full((3, 3), 1 / 3)).mean()
    elif m.of == "ranking":
        y, p = np.array([False, True, True]), np.array([0.1, 0.6, 0.9])
        assert m.fn(y, p, np.ones(3)) == 1 > m.fn(y, 1 - p, np.ones(3))
    else:
        good, bad = (np.asarray(m.fn(np.array(C))) for C in ([[9, 1], [1, 9]], [[6, 4], [4, 6]]))
        assert (good > bad).all()


@pytest.mark.parametrize("name", registry.studies.names())
def test_study(name):
    s = registry.studies[name]
    assert s.primary in registry.metrics and s.protocol in registry.protocols
    assert all(d in registry.datasets for d in s.datasets)
    assert all(registry.models.of(name, m).study in ("", name) for m in s.models)


LINE = """core registry data provenance preprocessing features models datasets evaluation audit reporting studies analyses
cli""".split()


def imports(path):
    """Modules of this package that a module imports, absolute or relative, e.g. ['evaluation', 'folds']."""
    here = path.relative_to(ROOT / "sleepai").parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            name = (node.module or "").split(".")
            if node.level:
                yield [*here[: len(here) - node.level + 1], *name]
            elif name[0] == "sleepai" and len(name) > 1:
                yield name[1:]


def study_of(module) -> str:
    """The study that a module of `studies` belongs to; '' for what several share, as image_sections."""
    name = module[1] if module[0] == "studies" and len(module) > 1 else ""
    return next((s for s in registry.studies.names() if name == s or name.startswith(f"{s}_")), "")


def test_imports_point_left():
    """File, recording, examples, predictions, scores, report: nothing knows what comes after it."""
    modules = list((ROOT / "sleepai").rglob("*.py"))
    assert sum(len(list(imports(path))) for path in modules) > 50, "imports were not found"
    wrong = []
    for path in modules:
        part = path.relative_to(ROOT / "sleepai").with_suffix("").parts
        for module in imports(path):
            back = part[0] in LINE and module[0] in LINE and LINE.index(module[0]) > LINE.index(part[0])
            other_study = study_of(part) and study_of(module) not in ("", study_of(part))
            if back or other_study:
                wrong.append(f"{'/'.join(part)} imports {'.'.join(module)}")
    assert wrong == [], "imports point left, and studies never import each other"


AT_HOME = ("studies", "datasets", "analyses")  # who may know the name of a study or of a dataset
ALSO_MEANS = {
    "ecg": ("preprocessing", "a type of channel, as eeg and emg are"),
    "simulated": ("", "the word that titles of simulated data must hold, and a field of run.json"),
}


def names_in(source: str, names: set) -> list:
    """String literals that are such a name or a path with one, with their lines; docstrings do not count."""
    tree, passed = ast.parse(source), set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            passed.add(id(body[0].value))
    texts = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return sorted(
        (n.lineno, n.value) for n in texts if id(n) not in passed and names & set(n.value.split("/"))
    )


DECIDES = """
def f(study, ours=Model(study="sleep")):
    "sleep"
    if study == "sleep":
        return {"sleep/comparison": "there is no sleep"}
"""


def test_names_are_found_where_they_decide_something():
    assert names_in(DECIDES, {"sleep"}) == [(2, "sleep"), (4, "sleep"), (5, "sleep/comparison")]


def test_only_studies_datasets_and_analyses_know_their_names():
    names, wrong = {*registry.studies.names(), *registry.datasets.names()}, []
    for path in sorted((ROOT / "sleepai").rglob("*.py")):
        part = path.relative_to(ROOT / "sleepai").parts
        if part[0] not in AT_HOME and path.name != "_modidx.py":
            known = {n for n, (where, _) in ALSO_MEANS.items() if where in ("", part[0])}
            found = names_in(path.read_text(), names - known)
            wrong += [f"{'/'.join(part)}:{line} {text!r}" for line, text in found]
    assert wrong == []


def test_light_imports():
    """The command line answers before anything heavy is imported."""
    heavy = "tensorflow numba papermill sklearn lightgbm mne yasa matplotlib scipy pandas".split()
    code = f"import sys, sleepai, sleepai.cli.app; sleepai.cli.app.with_commands(); print([m for m in {heavy} if m in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )
    walked = "import sys; from sleepai.registry import *; [r.walk() for r in (datasets, features, models, protocols, studies, analyses)]; "
    code = (
        walked
        + "print([m for m in ('tensorflow', 'numba', 'papermill', 'lightgbm', 'mne', 'yasa', 'matplotlib.pyplot') if m in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


@pytest.mark.parametrize(
    "command", [[sys.executable, "-c", "import sleepai"], [str(SLEEPAI), "--help"]], ids=["import", "help"]
)
def test_answers_within_a_second(command):
    def seconds():
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - began

    assert any(seconds() < 1 for _ in range(12)), (
        "the best of twelve starts, since the machine may be busy with other tests"
    )


def test_wheel_ships_the_notebooks_that_are_executed():
    import tomllib

    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert build["force-include"].keys() == {"nbs/templates", "nbs/analyses"}
    assert (ROOT / "nbs/templates/evaluation.ipynb").exists()
