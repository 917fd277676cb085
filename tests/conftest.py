import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SLEEPAI = Path(sys.executable).with_name("sleepai")


@pytest.fixture
def sleepai(tmp_path):
    """Calls the command line in a process of its own, with data and reports in a fresh folder."""

    def call(*args, check=None, **kw):
        env = os.environ | dict(
            SLEEPAI_DATA=str(tmp_path / "data"), SLEEPAI_REPORTS=str(tmp_path / "reports"), COLUMNS="200"
        )
        done = subprocess.run(
            [str(SLEEPAI), *map(str, args)], env=env, capture_output=True, text=True, timeout=900, **kw
        )
        if check is not None:
            assert done.returncode == check, done.stdout + done.stderr
        return done

    call.reports, call.data = tmp_path / "reports", tmp_path / "data"
    return call
