"""Mammography: tags and muscle gone, people on one side, normal pieces chosen by rule, broken files answered in a sentence."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from material import films

from sleepai import registry
from sleepai.core import InputError, Predictions
from sleepai.datasets.cbis_ddsm import CbisDDSM, read_marks
from sleepai.datasets.mammograms import Film, Grid, WholeFilms, film_pixels, pieces, write_png
from sleepai.datasets.mini_mias import MiniMIAS, MiniMIASPatches, read_list
from sleepai.datasets.simulated_mammography import SimulatedFilms, SimulatedPieces, simulated_film
from sleepai.evaluation.cells import models_for
from sleepai.evaluation.folds import make_folds
from sleepai.features.texture import texture
from sleepai.models.balanced_trees import BalancedTrees, drawn_rows
from sleepai.models.base import fit
from sleepai.preprocessing.images import as_pixels
from sleepai.preprocessing.mammograms import apart, cut_out
from sleepai.studies.mammography_sections import levels, raised, show_curves, show_levels

FEW = SimulatedPieces().subjects()[:16]


# Films -------------------------------------------------------------------------------------------------------


def test_a_tag_and_a_side_leave_no_trace():
    """The same breast with the tag elsewhere, or mirrored, gives the same tissue."""
    film, _ = simulated_film([1, 2, 3], False, False)
    other = film.copy()
    other[12:40, 200:240], other[200:228, 200:240] = 4, 225
    assert np.array_equal(apart(film).tissue, apart(other).tissue)
    turned = apart(np.ascontiguousarray(film[:, ::-1]))
    assert turned.turned and (turned.tissue != apart(film).tissue).mean() < 0.01


def test_the_muscle_is_cut_and_the_breast_kept():
    gone = []
    for f in SimulatedFilms().films()[:20]:
        m = apart(film_pixels(f.file), f.name)
        gone.append(m.muscle.sum() / m.breast.sum())
        for x, y, _ in f.lesions:
            column, row = m.place(x * 256, y * 256)
            assert m.tissue[int(row), int(column)], f"{f.name}: its lesion was cut away"
    assert 0.03 < np.median(gone) < 0.25 and max(gone) < 0.5


def test_a_lesion_is_where_the_list_says(tmp_path):
    """From the bottom left, in pixels of 1024, whatever the size of the file."""
    y, x = np.mgrid[:512, :512]
    film = np.where((x / 300) ** 2 + ((y - 256) / 250) ** 2 < 1, 90.0, 2)
    film[np.hypot(x - 100, y - 400) < 12] = 220
    for name in ("mdb001.png", "mdb002.pgm"):
        from PIL import Image

        Image.fromarray(film.astype(np.uint8)).save(tmp_path / name)
    (tmp_path / "Info.txt").write_text(f"mdb001 G CIRC M 200 {1023 - 800} 24\nmdb002 D NORM\n")
    ds = MiniMIASPatches(tmp_path)
    t, stack = pieces(ds.films()[0], Grid())
    on = (t["y"] == 1).to_numpy()
    assert on.any() and (stack[on].reshape(on.sum(), -1).max(1) > 200).all()
    assert not (stack[(t["y"] == 0).to_numpy()] > 200).any(), "a normal piece shows a part of the lesion"


def test_pieces_hold_tissue_and_films_of_both_kinds():
    ds = SimulatedPieces()
    ex = ds.load(FEW)
    share = [(film_pixels(f) > 0).mean() for f in ex.X["image"][::25]]
    assert min(share) > 0.75
    ill = set(ex.meta["record"][ex.y == 1])
    assert ill and all((ex.y[ex.meta["record"] == r] == 0).sum() > 3 for r in ill), (
        "normal pieces come from ill films too"
    )


def test_sixteen_bits_are_not_black(tmp_path):
    from PIL import Image

    film, _ = simulated_film([1, 2, 3], False, False)
    Image.fromarray(film.astype(np.uint16) * 16).save(tmp_path / "deep.png")
    assert np.abs(film_pixels(tmp_path / "deep.png").astype(int) - film).max() <= 2
    assert film_pixels(tmp_path / "deep.png", 128).shape == (128, 128)


def test_texture_of_flat_and_tiny_pictures_is_finite():
    for stack in (
        np.full((2, 32, 32), 90),
        np.zeros((1, 32, 32)),
        np.random.default_rng(0).integers(1, 255, (1, 20, 17)),
    ):
        assert np.isfinite(texture(stack.astype(np.uint8), "x", stack.shape[1] == 32).to_numpy()).all()


# People ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", [SimulatedFilms, SimulatedPieces])
def test_both_breasts_are_on_one_side(dataset):
    ds = dataset()
    ex = ds.load(ds.subjects()[:20])
    assert (ex.meta.groupby("subject")["record"].nunique() == 2).all()
    for fold in make_folds(ex.subjects, 5):
        assert not set(ex.subjects[fold.train]) & set(ex.subjects[fold.test])
    assert ds.load(ds.subjects()[3]).X.equals(ex.take(ex.subjects == ds.subjects()[3]).X)


# Models ------------------------------------------------------------------------------------------------------


def test_logs_for_tensorboard(tmp_path):
    ds = SimulatedPieces()
    ex = as_pixels(ds.load(FEW[:8]), 16)
    model = registry.models["mammography/patch-cnn"]
    made = model.build().set_params(epochs=1, size=16, width=2, n_a_class=24, logs=str(tmp_path))
    fit(made, ex.X, ex.y, ex.meta, checkpoint=tmp_path / "kept")
    assert list(tmp_path.rglob("*tfevents*")) and list((tmp_path / "kept").glob("*.npz"))


def test_models_go_with_what_a_dataset_holds():
    names = lambda d: [m.name for m in models_for(registry.datasets[d], [], "mammography")]  # noqa: E731
    assert names("wisconsin") == ["constant", "linear", "boosted"] and "cnn" in names("mini-mias")
    assert "patch-cnn" in names("mini-mias-patches") and "cnn" not in names("mini-mias-patches")
    with pytest.raises(InputError, match="cannot use the data of dataset 'wisconsin'"):
        models_for(registry.datasets["wisconsin"], ["cnn"], "mammography")


def test_sampling_happens_in_training_only():
    y = np.repeat([0, 1], [95, 5])
    with pytest.raises(InputError, match="sampling"):
        drawn_rows(y, "smote", 2, None)
    X, made = (
        pd.DataFrame(dict(a=np.arange(100.0) + 40 * y, b=0.0)),
        BalancedTrees(n_members=2, n_trees=5, leaves=2),
    )
    made.fit(X, y)
    assert abs(made.predict_proba(X)[:, 1].mean() - 0.05) < 0.05, (
        "probabilities are at the shares of the training set"
    )


# Levels ------------------------------------------------------------------------------------------------------


def test_levels_go_up_by_rule():
    frame = pd.DataFrame(
        dict(
            fold="f",
            subject=list("AAAAAABB"),
            record=["a1"] * 4 + ["a2"] * 2 + ["b1"] * 2,
            index=[0, 1, 2, 3, 0, 1, 0, 1],
        )
    ).assign(y_true=[0, 0, 1, 0, 0, 0, 0, 0], p_lesion=[0.1, 0.2, 0.9, 0.4, 0.3, 0.5, 0.2, 0.2])
    pred = Predictions(
        "mammography", "d", "m", ("normal", "lesion"), frame.assign(p_normal=1 - frame["p_lesion"])
    )
    image = raised(pred, "record", 3).frame.set_index("record")
    assert np.allclose(image["p_lesion"], [0.5, 0.4, 0.2]) and image["y_true"].tolist() == [1, 0, 0]
    person = levels(pred)["person"].frame.set_index("subject")
    assert np.allclose(person["p_lesion"], [0.5, 0.2]) and person["y_true"].tolist() == [1, 0]
    assert (
        any("three" in str(s) or "3 most" in str(s) for s in show_levels(pred, None))
        and len(show_curves(pred, None)) == 2
    )


def test_every_report_disclaims():
    note = registry.studies["mammography"].note
    assert "Not a medical device" in note and "research and education" in note


# Broken files ------------------------------------------------------------------------------------------------


def folder_of(place, listed="mdb001 G CIRC M 200 200 24\nmdb002 D NORM\n"):
    return MiniMIAS(films(place, listed))


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (dict(listed=""), "no Info.txt"),
        (dict(listed="nothing here\n"), "contains no line of the published list"),
        (dict(listed="mdb001 G CIRC M 200 2000 24\nmdb002 D NORM\n"), "lies outside a film"),
        (dict(listed="mdb001 G CIRC M 200 200 0\nmdb002 D NORM\n"), "lies outside a film"),
        (dict(listed="mdb001 G CIRC\nmdb002 D NORM\n"), "line 1"),
        (dict(listed="mdb001 G CIRC M 200 200 24\n"), "has no line for mdb002"),
        (dict(listed="mdb001 G NORM\nmdb002 D NORM\n"), "every example is 'rest'"),
    ],
)
def test_mini_mias_says_what_is_wrong(broken, said, tmp_path):
    with pytest.raises(InputError, match=said) as e:
        folder_of(tmp_path, **broken).load(["p001"])
    assert "\n" not in str(e.value)


def test_bad_films_are_left_out_or_stop(tmp_path):
    listed = "mdb001 G CIRC M 200 200 24\nmdb002 D NORM\nmdb003 D NORM\nmdb004 D NORM\nmdb005 D NORM\n"
    ds = folder_of(tmp_path, listed)
    (tmp_path / "mdb003.png").write_bytes((tmp_path / "mdb001.png").read_bytes()[:2000])
    (tmp_path / "mdb004.png").write_bytes(b"\0" * 128 + b"DICM")
    write_png(np.zeros((256, 256), np.uint8), tmp_path / "mdb005.png")
    ex = MiniMIAS(tmp_path).load(ds.subjects())
    assert (
        ex.y.tolist() == [1, 0]
        and sum(ex.exclusions.values()) == 3
        and "no breast found on it" in ex.exclusions
    )
    with pytest.raises(InputError, match="2 of 5 files cannot be used"):
        MiniMIAS(tmp_path, on_bad="stop").load(["p001"])
    with pytest.raises(InputError, match="on_bad"):
        MiniMIAS(tmp_path, on_bad="ignore")
    assert not MiniMIAS(tmp_path / "nowhere").available()


def test_published_lists_are_read(tmp_path):
    (tmp_path / "Info.txt").write_text(
        "mdb216 D CALC M *NOTE 3*\nmdb005 F CIRC B 477 133 30\nmdb005 F CIRC M 500 168 26\nmdb059 F CIRC B\n"
    )
    found = read_list(tmp_path / "Info.txt")
    assert (
        found["mdb216"] == [("malignant", None)]
        and len(found["mdb005"]) == 2
        and found["mdb059"][0][1] is None
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2\n", "column 'patient_id' is missing"),
        ("patient_id,pathology,cropped image file path\nP_1,LUMP,a/b/c/d.dcm\n", "pathology 'LUMP'"),
        ("patient_id,pathology,cropped image file path\nP_1,BENIGN,\n", "row 2: names no crop"),
    ],
)
def test_cbis_says_what_is_wrong(text, said, tmp_path):
    (tmp_path / "mass_case_description_train_set.csv").write_text(text)
    with pytest.raises(InputError, match=said):
        read_marks(tmp_path / "mass_case_description_train_set.csv")
    assert not CbisDDSM(tmp_path / "nowhere").available()


def test_a_film_without_a_breast_is_named(tmp_path):
    with pytest.raises(InputError, match="film 9: no breast"):
        apart(np.full((200, 200), 2, np.uint8), "film 9")


def test_a_dataset_of_films_is_a_listing(tmp_path):
    class Two(WholeFilms):
        name = "two"

        def films(self):
            return [
                Film(n, n, Path(self.folder) / f"{n}.png", f)
                for n, f in dict(a="normal", b="malignant").items()
            ]

    for k, n in enumerate("ab"):
        write_png(simulated_film([9, k], False, k == 1)[0], tmp_path / f"{n}.png")
    ex = Two(tmp_path).load(["a", "b"])
    assert ex.y.tolist() == [0, 1] and cut_out(apart(film_pixels(tmp_path / "a.png"))).shape[1] < 200


# Real data, where it is in place -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "counts"),
    [("mini-mias", [270, 52]), ("mini-mias-lesion", [207, 115]), ("wisconsin", [357, 212])],
)
def test_real_counts(name, counts):
    ds = registry.datasets[name]
    if not ds.available():
        pytest.skip(f"the files of {name} are not in place")
    assert np.bincount(ds.load(ds.subjects()).y).tolist() == counts
