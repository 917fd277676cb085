"""The command line: mistakes in this process; exit codes, Ctrl-C, a kill and the first command in processes."""

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import time

import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, CommandLine
from material import nights

from sleepai.core import Recording
from sleepai.data import checksum
from sleepai.preprocessing.edf import write_edf
from sleepai.reporting.verify import check_numbers


def test_list(sleepai):
    out = sleepai("list", check=0).stdout
    for word in ("sleep", "simulated", "sleep-edf", "dreams", "edf-folder", "forest", "yasa"):
        assert word in out
    assert "5-fold" in sleepai("list", "protocols", check=0).stdout


def is_one_sentence(said, *words):
    """Standard error of a command that refused: all of the words, in a sentence, without a traceback."""
    assert all(w.lower() in said.lower() for w in words), said
    assert "Traceback" not in said and len(said.strip().splitlines()) <= 2, said


def nothing_written(reports):
    return not reports.exists() or not any(p.is_file() for p in reports.rglob("*"))


MISTAKEN = [
    (["run", "slep"], ["study 'slep'", "sleep"]),
    (["run", "--dataset", "simulatd"], ["dataset 'simulatd'", "Did you mean 'simulated'"]),
    (["run", "--model", "florest"], ["model 'florest'", "Did you mean 'forest'"]),
    (["run", "--protocol", "6-fold"], ["protocol '6-fold'", "5-fold"]),
    (["run", "--dataset", "dreams"], ["dreams", "sleepai fetch dreams"]),
    (["run", "--dataset", "sleep-edf"], ["sleep-edf", "sleepai fetch sleep-edf"]),
    (["run", "--dataset", "sleep-edf-features", "--model", "yasa"], ["'yasa' needs signals", "forest"]),
    (["run", "--dataset", "simulated", "--folder", "/tmp"], ["--folder"]),
    (
        ["run", "--dataset", "simulated", "--protocol", "trained-on-simulated"],
        ["trains on 'simulated' itself"],
    ),
    (["run", "--folder", "x"], ["--folder goes with exactly one --dataset"]),
    (["run", "--dataset", "edf-folder", "--folder", "/nowhere/at/all"], ["/nowhere/at/all"]),
    (["run", "--subjects", "1", "--model", "constant"], ["splitting by subject needs 2"]),
    (["run", "--analysis", "ladr"], ["analysis 'ladr'", "Did you mean 'ladder'"]),
    (["run", "--analysis", "human-ceiling"], ["sleepai fetch dod"]),
    (["report"], ["no finished evaluation", "sleepai run"]),
    (["verify"], ["no finished evaluation", "sleepai run"]),
    (["fetch"], ["name a dataset"]),
    (["fetch", "dreams", "--from", "/nowhere/at/all"], ["/nowhere/at/all", "no such folder"]),
    (["list", "moddels"], ["kind 'moddels'"]),
]


@pytest.mark.parametrize(
    "args, words", MISTAKEN, ids=lambda v: " ".join(v)[:50] if isinstance(v, list) else ""
)
def test_a_users_mistake_is_one_sentence_and_exit_code_2(sleepai, args, words):
    is_one_sentence(sleepai(*args, check=2).stderr, *words)
    assert nothing_written(sleepai.reports)


def test_the_same_in_a_process(sleepai):
    process = sleepai.process("run", "--model", "florest")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2 and out == "" and nothing_written(sleepai.reports)
    is_one_sentence(err, "model 'florest'", "Did you mean 'forest'")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The first command of the README in small, made once in a process: folder with data and reports."""
    base = tmp_path_factory.mktemp("finished")
    process = CommandLine(base).process("run", "--subjects", "3", "-m", "constant", "-m", "forest")
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0 and "pages rendered" in out, out + err
    return base


@pytest.fixture
def again(finished, sleepai):
    """The command line over a copy of that evaluation."""
    shutil.copytree(finished / "reports", sleepai.reports)
    shutil.copytree(finished / "data", sleepai.data)
    return sleepai


def test_run_writes_the_contracted_files(finished):
    cell = finished / "reports" / "sleep" / "simulated" / "forest"
    assert {p.name for p in cell.iterdir()} >= {
        "report.html",
        "report.ipynb",
        "run.json",
        "predictions.parquet",
        "scores.csv",
        "scores.json",
    }
    run, scores = (json.loads((cell / name).read_text()) for name in ("run.json", "scores.json"))
    pred = pd.read_parquet(cell / "predictions.parquet")
    assert list(pred) == [
        "fold",
        "subject",
        "record",
        "index",
        "y_true",
        "p_W",
        "p_N1",
        "p_N2",
        "p_N3",
        "p_R",
    ]
    assert {
        "study",
        "dataset",
        "model",
        "protocol",
        "params",
        "seed",
        "classes",
        "n_subjects",
        "n_examples",
        "exclusions",
        "data",
        "versions",
        "predictions_sha256",
    } <= run.keys()
    assert not {"metrics", "confusion", "inputs"} & run.keys(), "facts only; scores follow from predictions"
    assert {
        "accuracy",
        "kappa",
        "balanced_accuracy",
        "macro_f1",
        "mcc",
        "log_loss",
        "brier",
        "f1_N1",
        "sensitivity_R",
        "ppv_W",
    } <= scores["metrics"].keys()
    assert np.sum(scores["confusion"]) == run["n_examples"] == len(pred) and run["n_subjects"] == 3
    assert scores["metrics"]["accuracy"].keys() == {"value", "low", "high"}
    assert scores["predictions_sha256"] == run["predictions_sha256"] == checksum(cell / "predictions.parquet")
    assert not pred.duplicated(["record", "index"]).any()
    assert (
        "simulated" in run["title"] and "simulated" in (cell / "report.html").read_text().split("</title>")[0]
    )
    assert (finished / "reports" / "index.html").exists() and (
        finished / "reports" / "sleep" / "comparison.html"
    ).exists()


def test_a_finished_cell_is_skipped_and_a_changed_one_is_not(again):
    before = (again.reports / "sleep/simulated/forest/run.json").read_text()
    out = again("run", "--subjects", 3, "-m", "forest", check=0).stdout
    assert (
        "already finished" in out and (again.reports / "sleep/simulated/forest/run.json").read_text() == before
    )
    out = again("run", "--subjects", 3, "-m", "constant", "--seed", 1, "--no-report", check=0).stdout
    assert "already finished" not in out


def test_fresh_says_whether_it_is_the_same(again):
    assert (
        "reproduced: the same predictions"
        in again("run", "--subjects", 3, "-m", "forest", "--fresh", "--no-report", check=0).stdout
    )


def test_verify_agrees_and_finds_every_edited_digit(again):
    """Pages are executed again twice, by the command; the numbers beside them are compared at each edit."""
    out = again("verify", check=0).stdout
    assert "agree to every digit shown" in out and "2 of 2 runs are current" in out
    cell, other = (again.reports / "sleep" / "simulated" / name for name in ("constant", "forest"))
    keep = {p.name: p.read_bytes() for p in cell.iterdir()}
    run, scores = (json.loads(keep[name]) for name in ("run.json", "scores.json"))

    def broken_by(name, content):
        (cell / name).write_bytes(content)
        faults = check_numbers(cell)
        assert any(f.startswith(name) for f in faults), faults
        (cell / name).write_bytes(keep[name])

    accuracy = scores["metrics"]["accuracy"]["value"]
    scores["metrics"]["accuracy"]["value"] += 1e-6
    broken_by("run.json", json.dumps(run | dict(n_examples=run["n_examples"] + 1)).encode())
    broken_by("scores.json", json.dumps(scores).encode())
    broken_by(
        "scores.json", json.dumps(json.loads(keep["scores.json"]) | dict(confusion=[[1] * 5] * 5)).encode()
    )
    broken_by("scores.csv", keep["scores.csv"].replace(b"0.", b"0.9", 1))
    pred = pd.read_parquet(cell / "predictions.parquet")
    pred["y_true"] = pred["y_true"].to_numpy()[::-1]
    pred.to_parquet(again.reports / "other.parquet")
    broken_by("predictions.parquet", (again.reports / "other.parquet").read_bytes())

    # a digit of one page is edited, and the predictions of the other run are damaged: both are told
    assert (shown := f"{accuracy:.3f}".encode()) in keep["report.html"]
    (cell / "report.html").write_bytes(keep["report.html"].replace(shown, b"0.999"))
    (other / "predictions.parquet").write_bytes(b"half a file")
    out = again("verify", check=1).stdout
    assert "differs sleep/simulated/constant" in out and "report.html: does not match these predictions" in out, out
    assert "differs sleep/simulated/forest" in out and "predictions.parquet: cannot be read" in out, out


def wait_until(there, process, most_s=120):
    """Until something is there, or the process has ended without it."""
    began = time.monotonic()
    while not there() and process.poll() is None and time.monotonic() < began + most_s:
        time.sleep(0.05)


def test_a_killed_run_leaves_finished_cells_whole(sleepai):
    args = ["run", "--subjects", "3", "-m", "constant", "-m", "forest", "--no-report"]
    cells = sleepai.reports / "sleep" / "simulated"
    silent = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    process = sleepai.process(*args, **silent)
    wait_until(lambda: (cells / "constant" / "run.json").exists(), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # its workers, which would wait for their idle time to end
    assert (cells / "constant" / "run.json").exists() and not (cells / "forest" / "run.json").exists()
    out = sleepai(*args, check=0).stdout
    assert "simulated/constant: already finished" in out and (cells / "forest" / "run.json").exists()


def test_a_place_that_cannot_be_written_is_one_sentence(sleepai, tmp_path):
    (tmp_path / "reports").write_text("a file where a folder should be")
    is_one_sentence(sleepai("run", "--subjects", "2", "-m", "constant", check=2).stderr, "reports")


def test_a_damaged_record_is_one_sentence_and_is_run_again(again):
    (again.reports / "sleep" / "simulated" / "constant" / "run.json").write_bytes(b"\xff\xfe")
    is_one_sentence(again("verify", check=2).stderr, "run.json")
    assert "kappa" in again("run", "--subjects", 3, "-m", "constant", "--no-report", check=0).stdout


def test_ctrl_c_is_one_sentence_and_exit_code_130(sleepai):
    as_usual = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # ignored in the background
    process = sleepai.process("run", "--subjects", "6", start_new_session=True, preexec_fn=as_usual)
    wait_until(lambda: any(sleepai.data.rglob("*.*")), process)  # it has begun to work
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "the next run continues from there" in err, err
    assert "Traceback" not in err, err


def test_rendering_is_strict(again, tmp_path):
    evaluation = nbformat.read(ROOT / "nbs/templates/evaluation.ipynb", 4)
    place = ["--place", "sleep/simulated/constant"]
    html = (again.reports / "sleep/simulated/constant/report.html").read_bytes()
    done = again(
        "report", "--template", ROOT / "nbs/templates/evaluation.ipynb", *place, "-p", "sed=1", check=2
    )
    assert "unknown parameter 'sed'" in done.stderr
    for cell in evaluation.cells:
        cell.metadata.pop("tags", None)
    nbformat.write(evaluation, tmp_path / "untagged.ipynb")
    assert (
        "tagged `parameters`"
        in again("report", "--template", tmp_path / "untagged.ipynb", *place, check=2).stderr
    )
    evaluation = nbformat.read(ROOT / "nbs/templates/evaluation.ipynb", 4)
    evaluation.cells.append(nbformat.v4.new_code_cell("1 / 0"))
    nbformat.write(evaluation, tmp_path / "failing.ipynb")
    done = again("report", "--template", tmp_path / "failing.ipynb", *place, check=1)
    kept = again.reports / "sleep/simulated/constant/report.broken.ipynb"
    assert "ZeroDivisionError" in done.stderr and kept.exists() and "Traceback" not in done.stderr
    assert (again.reports / "sleep/simulated/constant/report.html").read_bytes() == html, (
        "a broken template must not touch the report"
    )


def truncate(f):
    (f / "bob.edf").write_bytes((f / "bob.edf").read_bytes()[:-5000])


def flat(f):
    write_edf(Recording(np.zeros((1, 120_000)), 100, ("C4-M1",), ("eeg",), "bob"), f / "bob.edf")


MISTAKES = {
    "truncated": (truncate, "bob.edf"),
    "header": (lambda f: (f / "bob.edf").write_bytes(b"not an edf at all"), "bob.edf"),
    "longer": (lambda f: (f / "bob.txt").write_text("N2\n" * 60 + "W\n"), "bob.txt"),
    "shorter": (lambda f: (f / "bob.txt").write_text("N2\nW\n" * 10), "bob.txt"),
    "unknown stage": (lambda f: (f / "bob.txt").write_text("N2\n" * 20 + "N7\n" * 20), "bob.txt"),
    "one class": (lambda f: (f / "bob.txt").write_text("N2\n" * 40), "bob"),
    "no sleep": (lambda f: (f / "bob.txt").write_text("W\n" * 40), "bob"),
    "flat": (flat, "bob"),
    "no channel": (lambda f: (f / "dataset.yml").write_text("channels: {eeg: Fpz}\n"), "Fpz"),
    "name of another": (lambda f: (f / "dataset.yml").write_text("name: dreams\n"), "dreams"),
    "other yaml": (lambda f: (f / "settings.yaml").write_text("name: x\n"), "settings.yaml"),
    "single subject": (lambda f: [p.unlink() for p in f.glob("bob*")], "needs 2"),
    "no hypnogram": (lambda f: (f / "bob.txt").unlink(), "bob"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_bad_recordings_are_one_sentence_and_exit_code_2(sleepai, tmp_path, mistake):
    folder = nights(tmp_path / "nights")
    spoil, word = MISTAKES[mistake]
    spoil(folder)
    done = sleepai("run", "-d", "edf-folder", "--folder", folder, "-m", "forest", check=2)
    is_one_sentence(done.stderr, word)
    assert nothing_written(sleepai.reports)


def test_a_users_own_folder_from_files_to_report(sleepai, tmp_path):
    folder = nights(tmp_path / "nights", ("ann", "bob", "cat"))
    (folder / "dataset.yml").write_text("name: my-clinic\ntitle: Nights of my clinic\nsimulated: true\n")
    sleepai("run", "-d", "edf-folder", "--folder", folder, "-m", "forest", check=0)
    cell = sleepai.reports / "sleep/my-clinic/forest"
    run = json.loads((cell / "run.json").read_text())
    assert run["n_subjects"] == 3 and run["about"]["title"] == "Nights of my clinic"
    for page in (cell / "report.html", sleepai.reports / "index.html"):
        assert "Nights of my clinic" in page.read_text()
    assert check_numbers(cell) == []


def test_audit_passes_an_honest_run_and_catches_a_shared_subject(again):
    assert "no problems found" in again("audit", "-m", "constant", "-m", "forest", check=0).stdout
    record = again.reports / "sleep" / "simulated" / "forest" / "run.json"
    run = json.loads(record.read_text())
    run["folds"][0]["train_subjects"] = run["folds"][1]["test_subjects"] + run["folds"][0]["test_subjects"]
    record.write_text(json.dumps(run))
    done = again("audit", "-m", "constant", check=1)
    assert run["folds"][0]["test_subjects"][0] in done.stdout and "forest" in done.stdout
