"""A fitted model comes back from the store as it was, in another process too, and anything odd is refused."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from trained import cases, trained

from sleepai.core import InputError
from sleepai.models import store
from sleepai.models.base import probabilities


@pytest.fixture(params=cases())
def one(request):
    return trained(request.param)


def kept(one, folder):
    ex = one.ex
    return store.save(one.fitted, folder, list(ex.classes), ex.X, ex.meta, dict(name=one.model.name))


def test_a_model_comes_back_as_it_was(one, tmp_path):
    """Every registered model: equal probabilities, nothing pickled, the same after storing it again."""
    ex, folder = one.ex, kept(one, tmp_path / "kept")
    p = probabilities(one.fitted, ex.X, len(ex.classes), ex.meta)
    again = store.load(folder)
    assert np.allclose(again.predict_proba(ex.X, ex.meta), p, atol=1e-6)
    assert {f.suffix for f in folder.iterdir()} <= {".json", ".npz", ".txt", ".skops"}
    assert all(b"\x80\x04\x95" not in f.read_bytes()[:64] for f in folder.iterdir()), "no pickle"
    twice = store.save(again.model, tmp_path / "twice", list(ex.classes), ex.X, ex.meta)
    assert np.allclose(store.load(twice).predict_proba(ex.X, ex.meta), p, atol=1e-6)


@pytest.mark.parametrize("name", ["boosted", "cnn"])
def test_a_fresh_process_gives_the_same(name, tmp_path):
    """Trees and a network."""
    one = trained(name)
    folder = kept(one, tmp_path / "kept")
    ask = f"from sleepai.models.store import load; m = load({str(folder)!r}); print(len(m.classes), m.about['name'])"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"})
    assert done.stdout.split() == [str(len(one.ex.classes)), one.model.name], done.stderr


def test_what_is_refused(tmp_path):
    """Each in one sentence that names the folder."""
    folder = kept(trained("boosted"), tmp_path / "kept")
    honest = json.loads((folder / "model.json").read_text())

    def broken(name, change=None, then=None):
        copy = tmp_path / name
        shutil.copytree(folder, copy)
        if change:
            (copy / "model.json").write_text(json.dumps(honest | change))
        if then:
            then(copy)
        return copy

    def flip(path):
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes(bytes(raw))

    golden = honest["golden"] | {"p": {"array": honest["golden"]["X"]["frame"][0][1]["array"]}}
    model = honest["model"] | {"estimator": "os:system"}
    for case, said in (
        (broken("a", then=lambda f: flip(f / "arrays.npz")), "is missing or was changed"),
        (broken("b", then=lambda f: (f / "0.txt").unlink()), "is missing or was changed"),
        (broken("c", dict(format=99)), "has format 99"),
        (broken("d", dict(model=model)), "is not part of this package"),
        (broken("e", dict(files=honest["files"] | {"../kept/model.json": "0"})), "is missing or was changed"),
        (broken("f", dict(model={"surprise": 1})), "unknown entry 'surprise'"),
        (broken("g", dict(golden=golden)), "cannot be|no longer reproduces"),
        (broken("h", then=lambda f: (f / "model.json").write_text("{")), "not the record"),
        (tmp_path / "nowhere", "no model.json"),
    ):
        with pytest.raises(InputError, match=said) as e:
            store.load(case)
        assert "\n" not in str(e.value)
    with pytest.raises(InputError, match="already exists"):
        kept(trained("boosted"), folder)
    assert not list(tmp_path.glob("*.partial")), "nothing half-written is left"
