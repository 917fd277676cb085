"""A newcomer's path for every kind of addition is one notebook that `sleepai new` writes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

BIN = Path(sys.executable).parent
KINDS = dict(
    dataset="assert 'my-own' in datasets and datasets['my-own'].available()",
    feature="assert 'my-own' in features",
    model="assert models.of('sleep', 'my-own').version == 1",
    metric="assert 'my_own' in metrics",
    study="assert studies['my-own'].primary == 'auroc' and 'simulated-my-own' in datasets",
    analysis="assert analyses['my-own'].template.is_file()",
)
USE = dict(
    dataset=["run", "-d", "my-own", "-m", "constant", "-j", "1"],
    model=["run", "-d", "my-own", "-m", "my-own", "-j", "1", "--no-report"],
    study=["run", "my-own", "-j", "1", "--no-report"],
    analysis=["run", "--analysis", "my-own", "--no-report"],
)

EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
for path in sys.argv[1:]:
    NotebookClient(nbformat.read(path, 4), timeout=300, kernel_name="python3").execute()
"""
COMMANDS = """
import json, sys
from sleepai.cli.app import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["sleepai", *words]
    try:
        main()
    except SystemExit as e:
        assert not e.code, words
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """The project without data, reports and environment, and how to call things in it."""
    to = tmp_path_factory.mktemp("clone") / "sleepai"
    left_out = (".venv*", ".git", "data", "reports", "tests", "__pycache__", ".ipynb_checkpoints")
    shutil.copytree(ROOT, to, ignore=shutil.ignore_patterns(*left_out))
    places = dict(PYTHONPATH=str(to), SLEEPAI_DATA=str(to / "data"), SLEEPAI_REPORTS=str(to / "reports"))
    env = os.environ | places | dict(OMP_NUM_THREADS="1", TF_CPP_MIN_LOG_LEVEL="3")

    def call(*command):
        done = subprocess.run([*map(str, command)], cwd=to, env=env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    call.root = to
    return call


def test_every_kind_of_addition_is_one_notebook(clone):
    """Written, run from top to bottom, exported, found by name, and used."""
    commands = lambda all: clone(sys.executable, "-c", COMMANDS, json.dumps(all))  # noqa: E731
    commands([["new", kind, "my-own"] for kind in KINDS])
    written = sorted(p for p in (clone.root / "nbs").rglob("*_my_own.ipynb"))
    assert len(written) == len(KINDS)
    for path in written:
        assert "my-name" not in path.read_text() and "MyName" not in path.read_text()
    clone(sys.executable, "-c", EXECUTE, *written)  # before they are exported, as their authors would
    clone(BIN / "nbdev_export")
    names = "from sleepai.registry import analyses, datasets, features, metrics, models, studies\n"
    clone(sys.executable, "-c", names + "\n".join(KINDS.values()))
    commands(list(USE.values()))
    page = (clone.root / "reports" / "sleep" / "my-own" / "constant" / "report.html").read_text()
    assert "my own, as shown in reports" in page, "the new metric stands in the report"


def test_what_new_refuses(sleepai):
    """An unknown kind, a name that cannot be a module, and a name that is taken."""
    for words, said in (
        (["new", "modelx", "x"], "Did you mean 'model'"),
        (["new", "model", "Two Words"], "lower case with dashes"),
        (["new", "dataset", "simulated"], "already"),
    ):
        done = sleepai(*words, check=2)
        assert said in done.stderr and done.stderr.count("\n") == 1
