"""Images: bad files found and told, pixels as they are, networks that stop, resume, keep and choose their point on training patients."""

import struct
import zlib

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from sleepai.core import InputError
from sleepai.datasets.image_files import ImageDataset
from sleepai.models import store
from sleepai.models.grad_cam import grad_cam
from sleepai.models.image_network import ImageNetwork, trained
from sleepai.models.image_training import halved_where_stalled
from sleepai.models.operating_point import at_threshold, operating_point
from sleepai.preprocessing import images
from sleepai.preprocessing.augmentation import Augmentation, augmented_images


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("SLEEPAI_DATA", str(tmp_path / "data"))


def bomb(path, side=60_000):
    """A PNG of a few bytes whose header claims billions of pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    body = b"IDAT" + zlib.compress(b"\0" * 100)
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (head, body)]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


@pytest.fixture
def folder(tmp_path):
    place, rng = tmp_path / "pictures", np.random.default_rng(0)
    place.mkdir()
    for k in range(8):
        label = "light" if k % 2 else "dark"
        grey = (rng.integers(0, 60, (40, 56)) + 120 * (k % 2)).astype(np.uint8)
        Image.fromarray(grey).save(place / f"P{k // 2}-{k}-{label}.jpg")
    return place


class Shapes(ImageDataset):
    name, classes = "shapes", ("dark", "light")

    def listing(self):
        rows = [
            (str(p), p.stem, p.stem[:2], p.stem.rpartition("-")[2]) for p in sorted(self.folder.iterdir())
        ]
        return pd.DataFrame(rows, columns=["file", "record", "subject", "label"])

    def missing(self):
        return InputError("shapes: found none")


def spoil(folder):
    whole = (folder / "P0-0-dark.jpg").read_bytes()
    (folder / "P8-truncated-dark.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "P8-text-dark.jpg").write_text("no picture")
    (folder / "P8-empty-dark.jpg").touch()
    (folder / "P8-dicom-dark.jpg").write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 40)
    bomb(folder / "P8-bomb-dark.png")
    deep = (np.arange(40 * 56).reshape(40, 56) * 1.8).astype(np.uint16)
    Image.fromarray(deep).save(folder / "P9-deep-light.png")


def test_bad_files_are_told_and_left_out(folder):
    spoil(folder)
    ds = Shapes(folder)
    ex = ds.load(ds.subjects())
    assert len(ex) == 9 and sum(ex.exclusions.values()) == 5
    told = (
        ds.faults().assign(file=lambda t: t["file"].str.extract(r"P8-(\w+)-")[0]).set_index("file")["fault"]
    )
    assert set(told.index) == {"truncated", "text", "empty", "dicom", "bomb"}
    assert "DICOM" in told["dicom"] and "pixels" in told["bomb"] and "empty" in told["empty"]
    assert "not an image" in told["text"] and "damaged" in told["truncated"]
    x = images.read_image(folder / "P9-deep-light.png", 40)
    assert x.max() > 150, "twelve bits are not black"
    for name in ("truncated-dark.jpg", "text-dark.jpg", "bomb-dark.png"):
        with pytest.raises(InputError, match="leave it out"):
            images.read_image(folder / f"P8-{name}", 32)


def test_stops_when_asked(folder):
    spoil(folder)
    with pytest.raises(InputError, match="5 of 14 files cannot be used"):
        Shapes(folder, on_bad="stop").load(["P0"])
    with pytest.raises(InputError, match="on_bad"):
        Shapes(folder, on_bad="perhaps").load(["P0"])


def test_one_class_and_none(folder):
    for p in folder.glob("*light*"):
        p.unlink()
    with pytest.raises(InputError, match="only images of class dark"):
        Shapes(folder).load(["P0"])
    for p in folder.iterdir():
        p.write_text("")
    with pytest.raises(InputError, match="no readable image among 4"):
        Shapes(folder).load(["P0"])
    for p in folder.iterdir():
        p.unlink()
    assert not Shapes(folder).available()
    with pytest.raises(InputError, match="none of its files found"):
        Shapes(folder).load(["P0"])


def test_names_are_unique_and_labels_exist(folder):
    (folder / "P0-0-grey.jpg").write_bytes((folder / "P0-0-dark.jpg").read_bytes())
    with pytest.raises(InputError, match="label 'grey'"):
        Shapes(folder).load(["P0"])
    (folder / "P0-0-grey.jpg").unlink()
    (folder / "P0-0-dark.png").write_bytes((folder / "P0-0-dark.jpg").read_bytes())
    with pytest.raises(InputError, match="two images are named"):
        Shapes(folder).load(["P0"])


def test_pixels_are_padded_kept_and_few(folder, monkeypatch):
    files = sorted(folder.iterdir())
    x = images.pixels(files, 56)
    assert x.shape == (8, 56, 56, 1) and isinstance(x, np.memmap) and (x[:, :8] == 0).all()
    assert all(np.array_equal(x[k], images.read_image(f, 56)) for k, f in enumerate(files))
    assert images.pixels(files, 20, colour=True).shape == (8, 20, 20, 3)
    monkeypatch.setattr(images, "KEPT", 2)
    for size in range(10, 16):
        images.pixels(files, size)
    from sleepai.data import data_root

    assert len(list((data_root() / "cache" / "pixels").glob("*.npy"))) <= images.KEPT + 6
    with pytest.raises(InputError, match="no such file"):
        images.examine([folder / "gone.jpg"])


def test_augmentation_never_mirrors_unless_asked():
    x, rng = np.zeros((64, 40, 40, 1), np.uint8), np.random.default_rng(0)
    x[:, 5:35, 5:35], x[:, 10:30, 24:32] = 60, 220
    right = lambda v: (v[:, :, 20:].sum((1, 2, 3)) > v[:, :, :20].sum((1, 2, 3))).mean()  # noqa: E731
    assert right(augmented_images(x, rng)) == 1
    assert 0.2 < right(augmented_images(x, rng, Augmentation(mirror=True))) < 0.8


def test_operating_point():
    rng = np.random.default_rng(0)
    y = rng.random(500) < 0.6
    p = 1 / (1 + np.exp(-(2 * y - 1 + rng.normal(size=500))))
    for how in (0.9, 0.97):
        t = operating_point(p, y, how)
        q = at_threshold(np.stack([1 - p, p], 1), t)
        said = q.argmax(1) == 1
        assert np.array_equal(said, p >= t) and said[y].mean() >= how
        assert (p[y] > np.nextafter(t, 2)).mean() >= how and said[y].mean() < how + 0.01, (
            "no higher than needed"
        )
        assert roc_auc_score(y, q[:, 1]) == roc_auc_score(y, p) and np.allclose(q.sum(1), 1)
    assert operating_point(p, y, None) == 0.5 and operating_point(p, y | True, 0.9) == 0.5
    assert operating_point(np.full(500, 0.7), y, 0.95) < 0.7, "ties are all called"
    with pytest.raises(InputError, match="operating"):
        operating_point(p, y, "best")


@pytest.fixture
def blobs():
    rng, y = np.random.default_rng(0), np.repeat([0, 1], 20)
    x = rng.normal(90, 25, (40, 16, 16, 1))
    x[:, 5:11, 5:11] += 60 * y[:, None, None, None]
    meta = pd.DataFrame(dict(subject=[f"P{k // 2:02d}" for k in range(40)], record=range(40), index=0))
    return x.clip(0, 255).astype(np.uint8), y, meta


SMALL = dict(size=16, batch=8, width=4, blocks=2, epochs=2, validation=0.3, operating="youden")


def test_network_is_kept_resumed_and_the_same(blobs, tmp_path):
    x, y, meta = blobs
    whole = ImageNetwork(**SMALL).fit(x, y, meta)
    p = whole.predict_proba(x, meta)
    kept = store.load(store.save(whole, tmp_path / "kept", ["dark", "light"], x, meta))
    assert np.allclose(kept.predict_proba(x, meta), p, atol=1e-6)

    class Killed(Exception):
        pass

    def killer(step, done, total):
        if step == "training" and done > total * 0.7:
            raise Killed

    with pytest.raises(Killed):
        ImageNetwork(**SMALL).fit(x, y, meta, killer, tmp_path / "half")
    resumed = ImageNetwork(**SMALL).fit(x, y, meta, checkpoint=tmp_path / "half")
    assert np.array_equal(resumed.predict_proba(x, meta), p)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(ImageNetwork, "fit", None)  # it is found, not trained once more
        again = trained(ImageNetwork(**SMALL), x, y, meta)
    assert np.allclose(again.predict_proba(x, meta), p, atol=1e-6)
    assert again.best_params_["threshold"] == whole.best_params_["threshold"]
    heat = grad_cam(again, x[:3])
    assert heat.shape == (3, 8, 8) and 0 <= heat.min() and heat.max() <= 1


def test_network_options(blobs, tmp_path):
    x, y, meta = blobs
    logs = tmp_path / "logs"
    how = SMALL | dict(
        balanced=True, accumulate=2, plateau=1, gamma=2.0, logs=str(logs), mixed=True, epochs=3
    )
    model = ImageNetwork(**how).fit(x, y, meta)
    assert np.isfinite(model.predict_proba(x)).all() and list(logs.rglob("events*"))
    model.learned_["threshold"] = np.array(0.5)
    units = ImageNetwork(balanced=True)._units(
        meta.assign(code=np.arange(40) >= 35), np.random.default_rng(0)
    )
    assert len(units) == 40 and (units >= 35).mean() == 0.5
    history = [(1.0, 0.5), (1.0, 0.6)]
    rate = float(model.network_.optimizer.learning_rate.numpy())
    halved_where_stalled(model, model.network_, history)
    assert np.isclose(float(model.network_.optimizer.learning_rate.numpy()), rate / 2)


def test_network_says_what_it_needs(blobs):
    x, y, meta = blobs
    with pytest.raises(InputError, match="of one class"):
        ImageNetwork(**SMALL).fit(x, np.zeros(40, int), meta)
    with pytest.raises(InputError, match="set size to that of the images"):
        ImageNetwork(**SMALL | dict(size=20)).fit(x, y, meta)
