"""A package of a user's own registers its things by an entry point, without touching this one."""

import subprocess
import sys

PLUGIN = """
from sleepai.evaluation.metrics import Metric
from sleepai.models.base import Model
from sleepai.registry import metrics, models

metrics.add(Metric("diagonal", "share on the diagonal", lambda C: C.trace(axis1=-2, axis2=-1) / C.sum((-2, -1))))
models.add(Model("lab-stager", "a stager from another package", lambda seed=0, jobs=1: None, study=""))
"""


def package(folder, code):
    """A tiny installed package, as pip leaves one behind."""
    (folder / "lab_plugin.py").write_text(code)
    info = folder / "lab_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lab-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sleepai]\nlab = lab_plugin\n")


def ask(folder, code):
    import os

    env = os.environ | dict(PYTHONPATH=os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)


def test_a_package_of_a_users_own_registers(tmp_path):
    package(tmp_path, PLUGIN)
    done = ask(
        tmp_path,
        "from sleepai.registry import metrics, models\n"
        "print(metrics['diagonal'].title, '|', models.of('ecg', 'lab-stager').title)",
    )
    assert done.stdout.strip() == "share on the diagonal | a stager from another package", done.stderr


def test_a_plugin_that_cannot_be_imported_is_named(tmp_path):
    package(tmp_path, "import a_module_that_is_not_there")
    done = ask(tmp_path, "from sleepai.registry import metrics\nmetrics.names()")
    assert "plugin 'lab' (lab_plugin) cannot be imported: ModuleNotFoundError" in done.stderr
