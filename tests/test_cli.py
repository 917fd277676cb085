"""The command line through real processes."""

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
from conftest import ROOT, SLEEPAI

from sleepai.core import Recording
from sleepai.preprocessing.edf import write_edf


def test_list(sleepai):
    out = sleepai("list", check=0).stdout
    for word in ("sleep", "simulated", "sleep-edf", "dreams", "edf-folder", "forest", "yasa"):
        assert word in out
    assert "5-fold" in sleepai("list", "protocols", check=0).stdout


@pytest.mark.parametrize(
    "args, words",
    [
        (["run", "slep"], ["no study 'slep'", "sleep"]),
        (["run", "--dataset", "simulatd"], ["no dataset 'simulatd'", "did you mean 'simulated'"]),
        (["run", "--model", "florest"], ["no model 'florest'", "did you mean 'forest'"]),
        (["run", "--protocol", "6-fold"], ["no protocol '6-fold'", "5-fold"]),
        (["run", "--dataset", "dreams"], ["dreams", "sleepai fetch dreams"]),
        (["run", "--dataset", "sleep-edf"], ["sleep-edf", "sleepai fetch sleep-edf"]),
        (["run", "--dataset", "sleep-edf-features", "--model", "yasa"], ["'yasa' needs signals", "forest"]),
        (["run", "--dataset", "simulated", "--folder", "/tmp"], ["leave --folder out"]),
        (
            ["run", "--dataset", "simulated", "--protocol", "trained-on-simulated"],
            ["trains on 'simulated' itself"],
        ),
        (["run", "--folder", "x"], ["--folder goes with exactly one --dataset"]),
        (["run", "--dataset", "edf-folder", "--folder", "/nowhere/at/all"], ["/nowhere/at/all"]),
        (["run", "--subjects", "1", "--model", "constant"], ["splitting by subject needs 2"]),
        (["run", "--page", "ladr"], ["no page 'ladr'", "did you mean 'ladder'"]),
        (["run", "--page", "human-ceiling"], ["sleepai fetch dod"]),
        (["report"], ["no finished evaluation", "sleepai run"]),
        (["verify"], ["no finished evaluation", "sleepai run"]),
        (["fetch"], ["name a dataset"]),
        (["fetch", "dreams", "--from", "/nowhere/at/all"], ["/nowhere/at/all", "no such folder"]),
        (["list", "moddels"], ["no kind 'moddels'"]),
    ],
    ids=lambda v: " ".join(v)[:50] if isinstance(v, list) else "",
)
def test_a_users_mistake_is_one_sentence_and_exit_code_2(sleepai, args, words):
    done = sleepai(*args, check=2)
    assert all(w in done.stderr for w in words), done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) <= 2
    assert not sleepai.reports.exists() or not any(p.is_file() for p in sleepai.reports.rglob("*")), (
        "something was written"
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small evaluation on simulated nights, made once: folder with data and reports."""
    base = tmp_path_factory.mktemp("finished")
    env = os.environ | dict(SLEEPAI_DATA=str(base / "data"), SLEEPAI_REPORTS=str(base / "reports"))
    done = subprocess.run(
        [SLEEPAI, "run", "--subjects", "3", "-m", "constant", "-m", "forest"],
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
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
    }
    run, pred = json.loads((cell / "run.json").read_text()), pd.read_parquet(cell / "predictions.parquet")
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
        "metrics",
        "confusion",
        "exclusions",
    } <= run.keys()
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
    } <= run["metrics"].keys()
    assert np.sum(run["confusion"]) == run["n_examples"] == len(pred) and run["n_subjects"] == 3
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
        "finished before" in out and (again.reports / "sleep/simulated/forest/run.json").read_text() == before
    )
    out = again("run", "--subjects", 3, "-m", "constant", "--seed", 1, "--no-report", check=0).stdout
    assert "finished before" not in out


def test_fresh_says_whether_it_is_the_same(again):
    assert (
        "reproduced: the same predictions"
        in again("run", "--subjects", 3, "-m", "forest", "--fresh", "--no-report", check=0).stdout
    )


def test_verify_agrees_and_finds_every_edited_digit(again):
    assert "agree to every digit shown" in again("verify", check=0).stdout
    cell = again.reports / "sleep" / "simulated" / "constant"
    keep = {p.name: p.read_bytes() for p in cell.iterdir()}

    def broken_by(name, change):
        (cell / name).write_bytes(change(keep[name]))
        out = again("verify", check=1).stdout
        assert "differs sleep/simulated/constant" in out and name in out, out
        (cell / name).write_bytes(keep[name])

    run = json.loads(keep["run.json"])
    run["metrics"]["accuracy"]["value"] += 1e-6
    broken_by("run.json", lambda b: json.dumps(run).encode())
    accuracy = f"{json.loads(keep['run.json'])['metrics']['accuracy']['value']:.3f}".encode()
    broken_by("report.html", lambda b: b.replace(accuracy, b"0.999"))
    broken_by("report.ipynb", lambda b: b.replace(accuracy, b"0.999"))
    broken_by("scores.csv", lambda b: b.replace(b"0.", b"0.9", 1))
    pred = pd.read_parquet(cell / "predictions.parquet")
    pred["y_true"] = pred["y_true"].to_numpy()[::-1]
    pred.to_parquet(again.reports / "other.parquet")
    broken_by("predictions.parquet", lambda b: (again.reports / "other.parquet").read_bytes())


def test_a_killed_run_leaves_finished_cells_whole(sleepai):
    env = os.environ | dict(SLEEPAI_DATA=str(sleepai.data), SLEEPAI_REPORTS=str(sleepai.reports))
    args = ["run", "--subjects", "3", "-m", "constant", "-m", "forest", "--no-report"]
    cells = sleepai.reports / "sleep" / "simulated"
    silent = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    process = subprocess.Popen([SLEEPAI, *args], env=env, **silent)
    until = time.time() + 120
    while not (cells / "constant" / "run.json").exists() and time.time() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # its workers, which would wait for their idle time to end
    assert (cells / "constant" / "run.json").exists() and not (cells / "forest" / "run.json").exists()
    out = sleepai(*args, check=0).stdout
    assert "simulated/constant: finished before" in out and (cells / "forest" / "run.json").exists()


def test_a_place_that_cannot_be_written_is_one_sentence(sleepai, tmp_path):
    (tmp_path / "reports").write_text("a file where a folder should be")
    done = sleepai("run", "--subjects", "2", "-m", "constant", check=2)
    assert (
        "reports" in done.stderr
        and "Traceback" not in done.stderr
        and len(done.stderr.strip().splitlines()) <= 2
    )


def test_damaged_files_are_one_sentence(again):
    cell = again.reports / "sleep" / "simulated" / "constant"
    (cell / "predictions.parquet").write_bytes(b"half a file")
    out = again("verify", check=1).stdout
    assert "differs sleep/simulated/constant" in out and "agrees  sleep/simulated/forest" in out
    (cell / "run.json").write_bytes(b"\xff\xfe")
    assert "run.json" in again("verify", check=2).stderr
    assert "kappa" in again("run", "--subjects", 3, "-m", "constant", "--no-report", check=0).stdout


def test_ctrl_c_is_one_sentence_and_exit_code_130(sleepai):
    env = os.environ | dict(SLEEPAI_DATA=str(sleepai.data), SLEEPAI_REPORTS=str(sleepai.reports))
    process = subprocess.Popen(
        [SLEEPAI, "run", "--subjects", "6"],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=functools.partial(
            signal.signal, signal.SIGINT, signal.SIG_DFL
        ),  # tests in the background ignore it
    )
    began = time.monotonic()
    while not any(sleepai.data.rglob("*.*")) and time.monotonic() < began + 60:  # until it has begun to work
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (
        process.returncode == 130 and "the next run goes on from there" in err and "Traceback" not in err
    ), err


def test_rendering_is_strict(again, tmp_path):
    evaluation = nbformat.read(ROOT / "nbs/templates/evaluation.ipynb", 4)
    place = ["--place", "sleep/simulated/constant"]
    html = (again.reports / "sleep/simulated/constant/report.html").read_bytes()
    done = again(
        "report", "--template", ROOT / "nbs/templates/evaluation.ipynb", *place, "-p", "sed=1", check=2
    )
    assert "knows no parameter 'sed'" in done.stderr
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


def nights(folder, people=("ann", "bob"), channel="C4-M1"):
    folder.mkdir()
    for k, person in enumerate(people):
        rng, stages = np.random.default_rng(k), np.repeat(["W", "N1", "N2", "N3", "R"], 8)
        x = np.concatenate([rng.normal(0, 8 + 6 * i, 3000) for i in range(5) for _ in range(8)])
        write_edf(Recording(x[None], 100, (channel,), ("eeg",), person), folder / f"{person}.edf")
        (folder / f"{person}.txt").write_text("\n".join(stages) + "\n")
    return folder


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
    assert (
        word in done.stderr and "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) <= 2
    ), done.stderr
    assert not any(p.is_file() for p in sleepai.reports.rglob("*")), "something was written"


def test_a_users_own_folder_from_files_to_report(sleepai, tmp_path):
    folder = nights(tmp_path / "nights", ("ann", "bob", "cat"))
    (folder / "dataset.yml").write_text("name: my-clinic\ntitle: Nights of my clinic\nsimulated: true\n")
    sleepai("run", "-d", "edf-folder", "--folder", folder, "-m", "constant", "-m", "forest", check=0)
    run = json.loads((sleepai.reports / "sleep/my-clinic/forest/run.json").read_text())
    assert run["n_subjects"] == 3 and run["about"]["title"] == "Nights of my clinic"
    assert "Nights of my clinic" in (sleepai.reports / "index.html").read_text()
    sleepai("verify", check=0)


def test_audit_passes_an_honest_run_and_catches_a_shared_subject(again):
    assert "nothing found" in again("audit", "-m", "constant", "-m", "forest", check=0).stdout
    record = again.reports / "sleep" / "simulated" / "forest" / "run.json"
    run = json.loads(record.read_text())
    run["folds"][0]["train_subjects"] = run["folds"][1]["test_subjects"] + run["folds"][0]["test_subjects"]
    record.write_text(json.dumps(run))
    done = again("audit", "-m", "constant", check=1)
    assert run["folds"][0]["test_subjects"][0] in done.stdout and "forest" in done.stdout
