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


def study_sample(model):
    """A few rows of a dozen people of a study's first dataset, which needs no files, as the model sees them."""
    from sleepai import registry
    from sleepai.audit.counterfactual import sample
    from sleepai.evaluation.examples import dataset_examples

    study = registry.studies[model.study]
    dataset = registry.datasets[study.datasets[0]]
    plan = registry.protocols[dataset.info.protocol or study.protocol]
    ex = dataset_examples(dataset, registry.features[model.features], plan, transform=model.transform)
    return sample(ex, 120 if len(ex) == len(set(ex.subjects)) else 12, 30)


def short_training(model):
    """Settings that make a training quick without changing its way: one epoch for networks, ten trees for forests."""
    options = model.build(seed=0, jobs=1).get_params()
    short = {k: 1 for k in ("epochs", "n_members", "n_thresholds") if k in options}
    return short | {k: 10 for k in options if k.endswith("n_estimators")}
