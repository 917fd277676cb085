"""What every registered model promises, and what it saw; test_store.py and test_golden.py look at the same fits."""

import numpy as np
import pytest
from trained import SIDE, cases, examples_for, is_network, short_training, trained

from sleepai.audit.counterfactual import audit_model
from sleepai.core import InputError
from sleepai.models.base import fit, probabilities
from sleepai.preprocessing.images import is_files
from sleepai.registry import features, models

MEMBERS = [m.listed_as for m in models if m.members]
SIZED = [m.listed_as for m in models if not m.members and is_network(m) and "size" in m.build().get_params()]


@pytest.fixture(params=cases())
def one(request):
    return trained(request.param)


def answers(one, estimator=None):
    """Probabilities of every example."""
    n = len(one.ex.classes)
    return probabilities(estimator or one.fitted, one.ex.X, n, one.ex.meta)


def test_contract(one):
    """Probabilities of all classes; fitting twice is compared bit by bit by the audit."""
    model, p, seen = one.model, answers(one), np.isin(range(len(one.ex.classes)), one.ex.y)
    assert model.needs in ("features", "signals") and model.features in features
    assert p.shape == (len(one.ex), len(one.ex.classes)) and np.allclose(p.sum(1), 1) and (p >= 0).all()
    if model.fitted:
        assert (p[:, ~seen] == 0).all(), "a class that was never seen cannot be predicted"
        assert (p[:, seen] > 0).any(0).all(), "a class that was seen is possible"
    if short_training(model).get("weights") == "":
        assert one.fitted.best_params_["weights"] == "from scratch"


def test_nothing_saw_a_test_subject(one):
    """Fitted and asked by the project's own runner, while all about the test subjects changes."""
    assert one.audit.passed, one.audit.frame.to_string()
    assert any("fitted twice" in f.check for f in one.audit.findings)


@pytest.mark.parametrize("name", MEMBERS)
def test_an_average_is_audited_by_its_members(name):
    model = models[name]
    assert not any(models.of(model.study, m).members for m in model.members)
    with pytest.raises(InputError, match="audit those"):
        audit_model(model, None)


@pytest.mark.thorough
@pytest.mark.parametrize("name", SIZED)
def test_networks_of_images_at_their_own_size(name):
    """One epoch at the size they are used at, twice the same."""
    model, ex = models[name], examples_for(models[name])
    if not is_files(ex.X):
        pytest.skip("takes no images")
    few = ex.take(np.arange(0, len(ex), 2))
    build = lambda: model.build(seed=3, jobs=1).set_params(**short_training(model))  # noqa: E731
    a, b = (
        probabilities(fit(build(), few.X, few.y, few.meta), few.X, len(ex.classes), few.meta)
        for _ in range(2)
    )
    assert build().get_params()["size"] != SIDE
    assert a.shape == (len(few), len(ex.classes)) and np.allclose(a.sum(1), 1) and np.array_equal(a, b)
