"""Notebooks executed in forks of one process that has imported, once, what notebooks import.

Each notebook gets a fresh process, so nothing of one reaches the next; only the imports are shared."""

import multiprocessing
import os
import sys
import traceback
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import forkserver
from pathlib import Path

CAN_FORK = sys.platform == "linux"


def import_all():
    """What notebooks import, before any of it has been used: threads do not survive a fork."""
    import execnb.shell  # noqa: F401
    import keras  # noqa: F401
    import lightgbm  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import mne  # noqa: F401
    import nbformat  # noqa: F401
    import scipy.stats  # noqa: F401
    import yasa  # noqa: F401

    from sleepai import registry

    for found in [r for r in vars(registry).values() if isinstance(r, registry.Registry)]:
        found.walk()


def fault_of(path: Path) -> str:
    """The first cell that fails, with its source and what it said; '' where all run."""
    import nbformat
    from execnb.shell import CaptureShell

    os.chdir(path.parent)
    shell = CaptureShell(path.parent)
    for k, cell in enumerate(nbformat.read(path, 4).cells):
        if cell.cell_type == "code":
            done = shell.run_cell(cell.source)
            if e := done.exception:
                said = "".join(traceback.format_exception(type(e), e, e.__traceback__)[-8:])
                return f"{path.name}, cell {k}:\n{cell.source}\n\n{said}\n{done.stderr}"
    return ""


def forks() -> ProcessPoolExecutor:
    """Where to submit notebooks; a fork each."""
    context, path = multiprocessing.get_context("forkserver"), os.environ.get("PYTHONPATH")
    context.set_forkserver_preload(["notebooks_imported"])
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *([path] if path else [])])
    forkserver.ensure_running()
    os.environ.update(PYTHONPATH=path) if path else os.environ.pop("PYTHONPATH")
    return ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1)
