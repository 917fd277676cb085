"""Chest X-rays: patients on one side, layouts read, models that see no test patient, borrowed weights read without running anything."""

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from PIL import Image

from sleepai import registry
from sleepai.core import Examples, InputError, Predictions
from sleepai.datasets.chest_xray import ChestXray, ChestXraySubtype, patient_of
from sleepai.datasets.image_npz import ImageNpz
from sleepai.datasets.simulated_xray import SimulatedXray
from sleepai.evaluation.predict import finished_network, predict_folder
from sleepai.models import efficientnet, pretrained
from sleepai.preprocessing.images import as_pixels
from sleepai.studies.image_sections import gallery_figure, pictured, worst_errors
from sleepai.studies.xray_sections import point_table

OFFICIAL = registry.protocols["official"]


def test_real_images():
    ds = registry.datasets["chest-xray"]
    if not ds.available():
        pytest.skip("the chest X-rays are not in place")
    ex = ds.load(ds.subjects())
    assert isinstance(ex, Examples) and len(ex) == 5856 and len(set(ex.subjects)) == 4097
    fold = OFFICIAL.split(ex)[0]
    assert len(fold.test) == 624 and ex.y[fold.test].sum() == 390
    sub = registry.datasets["chest-xray-subtype"]
    assert len(sub.load(sub.subjects())) == 4273 and (ROOT / "sleepai").is_dir()


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    with pytest.MonkeyPatch.context() as m:
        m.setenv("SLEEPAI_DATA", str(tmp_path_factory.mktemp("data")))
        ds = SimulatedXray()
        yield ds, ds.load(ds.subjects())


def layout(folder, names, split="train"):
    for label, stems in names.items():
        place = folder / "chest_xray" / split / label
        place.mkdir(parents=True, exist_ok=True)
        for stem in stems:
            Image.fromarray(np.full((20, 30), 99, np.uint8)).save(place / f"{stem}.jpeg")


def test_patients_by_name():
    assert patient_of("person91_bacteria_448") != patient_of("person91_virus_12")
    assert patient_of("person91_bacteria_448")[0] == patient_of("person91_bacteria_449")[0]
    assert patient_of("NORMAL2-IM-0381-0001")[0] != patient_of("IM-0381-0001")[0]


def test_patient_on_both_sides_is_refused(tmp_path):
    layout(tmp_path, dict(NORMAL=["IM-0001-0001"], PNEUMONIA=["person1_virus_1", "person2_bacteria_1"]))
    layout(tmp_path, dict(NORMAL=["IM-0002-0001"], PNEUMONIA=["person1_bacteria_7"]), "test")
    ds = ChestXray(tmp_path)
    assert len(ds.load(ds.subjects())) == 5 and ChestXraySubtype(tmp_path).listing()["label"].tolist() == [
        "virus",
        "bacteria",
        "bacteria",
    ]
    layout(tmp_path, dict(PNEUMONIA=["person1_virus_2"]), "test")
    with pytest.raises(InputError, match="person1_virus is in training and test"):
        ds.load(["person1_virus"])


def test_a_folder_of_two_classes(tmp_path):
    for label in ("NORMAL", "PNEUMONIA"):
        (tmp_path / label).mkdir()
        for k in range(3):
            Image.fromarray(np.full((20, 30, 3), 9, np.uint8)).save(tmp_path / label / f"{label}{k}.png")
    ex = ChestXray(tmp_path).load(ChestXray(tmp_path).subjects())
    assert len(ex) == 6 and "split" not in ex.meta
    with pytest.raises(InputError, match="no division"):
        OFFICIAL.split(ex)
    assert not ChestXray(tmp_path / "nothing").available()


def test_predict_looks_at_the_folder_before_it_trains(sleepai, tmp_path):
    """A wrong folder is one sentence at once; the data that a training would need are not even asked for."""
    for folder, said in ((tmp_path / "nowhere", "there is no such folder"), (tmp_path, "holds no images")):
        refused = sleepai("predict", folder, check=2)
        assert said in refused.stderr and refused.stderr.count("\n") == 1 and not refused.stdout


def test_a_user_is_told_of_bad_files_and_may_stop_at_them(sleepai, tmp_path):
    folder, rng = tmp_path / "mine", np.random.default_rng(0)
    for k, split in enumerate(("train", "test")):
        for label, level in (("NORMAL", 60), ("PNEUMONIA", 160)):
            (folder / split / label).mkdir(parents=True)
            for i in range(12):
                pixels = rng.normal(level, 20, (30, 40)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{label}-{k}-{i}.png")
    cut = folder / "train" / "NORMAL" / "NORMAL-0-0.png"
    cut.write_bytes(cut.read_bytes()[:200])
    asked = ("run", "xray", "-d", "chest-xray", "-m", "linear", "--folder", folder, "--no-report")
    refused = sleepai(*asked, "--strict", check=2)
    assert "1 file cannot be used" in refused.stderr and cut.name in refused.stderr
    assert "Traceback" not in refused.stderr and not list(sleepai.reports.rglob("run.json"))
    done = sleepai(*asked, check=0)
    assert cut.name in done.stdout and "excluded" in done.stdout and "24 images" in done.stdout
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(folder / "test" / "NORMAL" / "NORMAL-0-1.png")
    crossed = sleepai(*asked, check=2)
    assert "NORMAL-0-1 is in training and test" in crossed.stderr


def test_npz(tmp_path, monkeypatch):
    monkeypatch.setenv("SLEEPAI_DATA", str(tmp_path / "data"))
    rng, parts = np.random.default_rng(0), {}
    for split, n in dict(train=6, val=2, test=4).items():
        parts[f"{split}_images"] = rng.integers(0, 255, (n, 28, 28), np.uint8)
        parts[f"{split}_labels"] = np.arange(n)[:, None] % 2
    file = tmp_path / "pneumoniamnist.npz"
    for change, said in (
        (dict(test_labels=parts["test_labels"] + 5), "must be 0 or 1"),
        (dict(test_images=parts["test_images"].astype(float)), "8-bit"),
        (dict(train_labels=parts["train_labels"][:3]), "a label each"),
    ):
        np.savez(file, **(parts | change))
        with pytest.raises(InputError, match=said):
            ImageNpz(tmp_path).load([])
    file.write_bytes(b"no archive")
    with pytest.raises(InputError, match="is not a file of images"):
        ImageNpz(tmp_path).load([])
    np.savez(file, **parts)
    ex = ImageNpz(tmp_path).load(ImageNpz(tmp_path).subjects())
    x = as_pixels(ex, 28).X.to_numpy().reshape(-1, 28, 28)
    assert len(ex) == 12 and np.array_equal(x[0], parts["train_images"][0])


@pytest.mark.parametrize("name", ["patient-split", "5-fold-even"])
def test_even_folds(name, simulated):
    _, ex = simulated
    folds = registry.protocols[name].split(ex)
    for f in folds:
        assert abs(ex.y[f.test].mean() - ex.y.mean()) < 0.12
    assert (
        sum(len(f.test) for f in folds) == len(ex)
        if name == "5-fold-even"
        else 0.1 < len(folds[0].test) / len(ex) < 0.2
    )
    few = ex.take(np.isin(ex.subjects, ex.subjects[:2]))
    with pytest.raises(InputError, match="patients or more"):
        registry.protocols[name].split(few)


def test_the_bigger_relatives_are_built():
    network = efficientnet.EfficientNet(size=32)._network(2)
    x = np.zeros((2, 32, 32, 1), np.float32)
    assert network.get_layer("map") and network.predict_on_batch(x).shape == (2, 2)


def test_unknown_variant():
    with pytest.raises(InputError, match="Unknown variant 'B9'"):
        efficientnet.EfficientNet(variant="B9")._body(None)


def test_weights_are_read_without_running_them(tmp_path, monkeypatch):
    class Harmful:
        def __reduce__(self):
            return exec, ("raise SystemExit",)

    with pytest.raises(InputError, match="refers to builtins.exec, which is not allowed"):
        pretrained.read_tensors(pickle.dumps(Harmful()))
    (tmp_path / "x.whl").write_text("nothing")
    with pytest.raises(InputError, match="contains no weights"):
        pretrained.lite0_tensors(tmp_path / "x.whl")


def test_errors_and_points(simulated):
    ds, ex = simulated
    rng = np.random.default_rng(0)
    p = np.clip(0.5 * ex.y + 0.5 * rng.random(len(ex)), 0.01, 0.99) * 0.9
    frame = pd.DataFrame(dict(fold="a", subject=ex.subjects, record=ex.meta["record"], index=0, y_true=ex.y))
    pred = Predictions("xray", ds.name, "cnn", ex.classes, frame.assign(p_normal=1 - p, p_pneumonia=p))
    t = point_table(pred)
    assert np.isclose(t.iloc[0]["sensitivity"], (p[ex.y == 1] > 0.5).mean())
    worst = worst_errors(pred, 6)
    assert (worst["true"] != worst["said"]).all() and worst["probability"].is_monotonic_decreasing
    model = registry.models.of("xray", "cnn").build(seed=0).set_params(epochs=1, size=16, width=4)
    few = ex.take(np.arange(40))
    model.fit(few.X, few.y, few.meta)
    drawn = pictured(worst, ex, model, side=24)
    assert all(len(b) == 24 * 24 for b in drawn["image"]) and len(gallery_figure(drawn).axes) >= len(worst)


def test_a_folder_of_new_images(simulated, tmp_path):
    _, ex = simulated
    few = ex.take(np.arange(40))
    model = registry.models.of("xray", "cnn").build(seed=0).set_params(epochs=1, size=16, width=4)
    model.fit(few.X, few.y, few.meta)
    with pytest.raises(InputError, match="holds no images"):
        predict_folder(model, ex.classes, tmp_path)
    (tmp_path / "deeper").mkdir()
    for k in range(3):
        (tmp_path / "deeper" / f"{k}.png").write_bytes(Path(ex.X["image"][k]).read_bytes())
    (tmp_path / "note.jpg").write_text("hello")
    t = predict_folder(model, ex.classes, tmp_path).set_index("file")
    assert t.loc["note.jpg", "says"] == "" and t.loc["note.jpg", "fault"]
    p = model.predict_proba(few.X[:3])[:, 1]
    assert np.allclose(t.loc[[f"deeper/{k}.png" for k in range(3)], "p_pneumonia"], p, atol=1e-5)
    with pytest.raises(InputError, match="no network of images"):
        finished_network("xray", "simulated-xray", "linear")
