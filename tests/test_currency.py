"""A run is current while data, parameters and declared versions agree; scores follow from its predictions."""

import json
from dataclasses import replace

import numpy as np
import pytest

from sleepai import data as data_module
from sleepai.core import InputError
from sleepai.evaluation.cells import Cell
from sleepai.evaluation.results import data_checksums, finished, outdated, read_cell
from sleepai.evaluation.run import before_and_after, run_cell
from sleepai.provenance import Run
from sleepai.registry import datasets, features, metrics, models
from sleepai.reporting.verify import check_numbers


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A small evaluation, made once: its cell and the checksums of its data."""
    base = tmp_path_factory.mktemp("current")
    with pytest.MonkeyPatch.context() as m:
        m.setenv("SLEEPAI_DATA", str(base / "data"))
        m.setenv("SLEEPAI_REPORTS", str(base / "reports"))
        cell = Cell("sleep", datasets["simulated"].of_size(2), "constant", limit=2)
        run_cell(cell)
        yield cell, data_checksums(cell)


@pytest.fixture
def again(done):
    """The same; what is changed in its folder is put back."""
    cell, sums = done
    kept = {p: p.read_bytes() for p in cell.folder.iterdir()}
    yield cell, sums
    for p, content in kept.items():
        p.write_bytes(content)


def why(cell, sums):
    return outdated(cell, read_cell(cell.folder).run, sums)


def swapped(monkeypatch, registry, name, thing):
    """Something else under a name of a registry."""
    full = next(n for n, item in registry._items.items() if item is registry[name])
    monkeypatch.setitem(registry._items, full, thing)


def test_a_run_that_just_ended_is_current(again):
    assert why(*again) == [] and finished(*again)


def test_code_that_was_renamed_or_reformatted_changes_nothing(again, monkeypatch):
    """Currency looks at no source: reading any is an error here, and what computes stands in another module."""

    def refused(*a, **kw):
        raise AssertionError("currency must not depend on the text of code")

    def build(seed=0, jobs=1):
        return models["constant"].build(seed=seed, jobs=jobs)

    build.__module__ = "sleepai.models.renamed"
    for name in ("code_digest", "meaning"):
        monkeypatch.setattr(data_module, name, refused)
    cell, sums = again
    swapped(monkeypatch, models, "constant", replace(models["constant"], build=build, title="renamed"))
    assert outdated(cell, Run.read(cell.folder / "run.json"), sums) == [] and finished(cell, sums)


@pytest.mark.parametrize("kind", ["model", "features", "dataset"])
def test_a_raised_version_makes_it_stale(kind, again, monkeypatch):
    cell, sums = again
    if kind == "dataset":
        monkeypatch.setattr(type(cell.dataset), "version", 7)
        name = cell.dataset.name
    else:
        registry, name = (models, "constant") if kind == "model" else (features, cell.spec.features)
        swapped(monkeypatch, registry, name, replace(registry[name], version=7))
    assert why(cell, sums) == [f"version of {kind} {name} was 1, is 7"] and not finished(cell, sums)


def test_other_data_and_other_parameters_make_it_stale(again):
    cell, sums = again
    first, *rest = sums
    assert why(cell, sums | {first: "0" * 64}) == [f"data changed: {first}"]
    assert why(cell, {k: sums[k] for k in rest}) == [f"data changed: {first}"]
    assert why(replace(cell, seed=1), sums) == ["seed changed"]
    assert why(replace(cell, limit=1), sums) == ["limit changed"]
    changed = replace(cell, protocol="5-fold-no-trim")
    assert outdated(changed, read_cell(cell.folder).run, sums) == ["protocol changed"]
    (cell.folder / "predictions.parquet").write_bytes(b"other")
    assert not finished(cell, sums)


def test_what_is_run_again_is_compared_with_what_stood_there(again):
    cell, _ = again
    _, gap = before_and_after(cell, lambda: run_cell(cell))
    assert gap == 0
    other = replace(
        models["constant"], build=lambda seed=0, jobs=1: models["forest"].build(seed=seed, jobs=jobs)
    )
    with pytest.MonkeyPatch.context() as m:
        swapped(m, models, "constant", replace(other, version=2))
        _, gap = before_and_after(cell, lambda: run_cell(cell))
    assert gap > 0.01


def test_a_registered_metric_appears_without_training(again, monkeypatch):
    """Nothing of the run moves, nothing is trained, nothing is red; the scores hold the metric."""
    cell, sums = again
    facts = {n: (cell.folder / n).read_bytes() for n in ("run.json", "predictions.parquet")}
    before = json.loads((cell.folder / "scores.json").read_text())["metrics"]
    mine = replace(metrics["accuracy"], name="half_accuracy", fn=lambda C: metrics["accuracy"].fn(C) / 2)
    with pytest.MonkeyPatch.context() as m:
        m.setitem(metrics._items, "half_accuracy", mine)
        m.setitem(metrics._origins, "half_accuracy", __name__)
        now = read_cell(cell.folder).scores.metrics
        assert np.isclose(now["half_accuracy"].value, before["accuracy"]["value"] / 2)
        assert {k: v for k, v in now.items() if k != "half_accuracy"}.keys() == before.keys()
        stored = json.loads((cell.folder / "scores.json").read_text())["metrics"]
        assert stored.keys() == now.keys() and {k: stored[k] for k in before} == before
        assert finished(cell, sums) and check_numbers(cell.folder) == []
    assert facts == {n: (cell.folder / n).read_bytes() for n in facts}
    assert check_numbers(cell.folder) == [], "a metric that is gone is no fault"


def test_scores_are_computed_again_where_they_are_of_other_predictions(again):
    cell, _ = again
    path = cell.folder / "scores.json"
    whole = json.loads(path.read_text())
    for spoiled in ("half a file", json.dumps(whole | dict(predictions_sha256="0" * 64))):
        path.write_text(spoiled)
        assert read_cell(cell.folder).scores.metrics.keys() == whole["metrics"].keys()
        assert json.loads(path.read_text())["metrics"] == whole["metrics"]
    path.unlink()
    assert read_cell(cell.folder).scores.metrics["accuracy"].value == whole["metrics"]["accuracy"]["value"]


def test_a_folder_without_predictions_is_one_sentence(again):
    cell, _ = again
    (cell.folder / "predictions.parquet").unlink()
    with pytest.raises(InputError, match="predictions.parquet: cannot be read"):
        read_cell(cell.folder)
