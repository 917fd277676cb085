"""Two tiers: what runs always, and what `--all` adds. The command line, called in this process or in one of its own."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SLEEPAI = Path(sys.executable).with_name("sleepai")
os.environ.setdefault("COLUMNS", "200")  # tables of the command line are not wrapped
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="also run the tests marked `thorough`")
    parser.addoption("--record", action="store_true", help="write the golden outputs of tests/golden anew")


def group_of(nodeid: str) -> str:
    """What runs in one worker: tests of a file that share a costly fixture, all tests of one model, else one test."""
    file, _, test = nodeid.partition("::")
    name = re.search(r"\[([\w/-]+)\]$", test)
    if file.endswith(("test_every_model.py", "test_store.py")) or test.startswith("test_model["):
        return f"model {name[1]}" if name else nodeid
    if file.endswith("test_neural.py") and (family := re.search(r"\[(CNN|Sequence|FeatureSequence)\b", test)):
        return family[0]
    return file if file.endswith(("test_cli.py", "test_currency.py")) else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return group_of(nodeid)

    return Groups(config, log)


def pytest_collection_modifyitems(config, items):
    """Without `--all`, tests marked `thorough` are deselected, and those marked `quick` stand for them."""
    other = "quick" if config.option.all else "thorough"
    left = [item for item in items if item.get_closest_marker(other)]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in set(left)]


class CommandLine:
    """The command line with data and reports in a folder of its own."""

    def __init__(self, base):
        self.data, self.reports = base / "data", base / "reports"
        self.places = dict(SLEEPAI_DATA=str(self.data), SLEEPAI_REPORTS=str(self.reports))

    def __call__(self, *args, check=None):
        """In this process, through typer's runner and in one job; gives exit code, standard output and error."""
        from typer.testing import CliRunner

        from sleepai.cli.app import with_commands

        stop = signal.getsignal(signal.SIGTERM)
        with pytest.MonkeyPatch.context() as m:
            for name, value in self.places.items():
                m.setenv(name, value)
            m.setattr(os, "cpu_count", lambda: 1)  # its workers would keep the folders of the first test
            done = CliRunner().invoke(with_commands(), [str(a) for a in args])
        signal.signal(signal.SIGTERM, stop)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception  # what a user would see as a traceback
        if check is not None:
            assert done.exit_code == check, done.stdout + done.stderr
        return done

    def process(self, *args, **how):
        """In a process of its own, as a user starts it."""
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        return subprocess.Popen([SLEEPAI, *map(str, args)], env=os.environ | self.places, **(pipes | how))


@pytest.fixture
def sleepai(tmp_path):
    return CommandLine(tmp_path)
