"""Every notebook runs from top to bottom, its own checks pass, and it can be read."""

import re
from textwrap import dedent

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient
from notebooks import CAN_FORK, fault_of, forks

NOTEBOOKS = sorted(
    p.relative_to(ROOT).as_posix()
    for p in (ROOT / "nbs").rglob("*.ipynb")
    if not {".ipynb_checkpoints", "templates"} & set(p.parts)
)
MOST_S = 600  # that a notebook may take
CELL, WALL, NOTEBOOK = 40, 80, 400  # exported lines: of a cell, without prose or output, of a notebook


@pytest.fixture(scope="session")
def forked():
    """Executes a notebook in a fork; where systems cannot fork, `--all` runs them."""
    if not CAN_FORK:
        pytest.skip("this system does not fork; --all runs every notebook in a kernel of its own")
    with forks() as pool:
        yield lambda path: pool.submit(fault_of, path).result(timeout=MOST_S)


@pytest.mark.quick
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook(name, forked):
    fault = forked(ROOT / name)
    assert not fault, fault


@pytest.mark.thorough
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_alone(name):
    """In a kernel of its own, which imports for itself."""
    path, nb = ROOT / name, nbformat.read(ROOT / name, 4)
    place = dict(metadata=dict(path=str(path.parent)))
    NotebookClient(nb, timeout=MOST_S, kernel_name="python3", resources=place).execute()


def failing(tmp_path, *sources):
    cells = [nbformat.v4.new_code_cell(s) for s in sources]
    path = tmp_path / "failing.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def test_a_failing_cell_is_named_and_shown(forked, tmp_path):
    fault = forked(
        failing(tmp_path, "%matplotlib inline\nx = 1", "print('so far')\nassert x == 2, 'x is off'")
    )
    assert "failing.ipynb, cell 1:" in fault and "assert x == 2" in fault and "x is off" in fault


def test_nothing_of_a_notebook_reaches_the_next(forked, tmp_path):
    leave = """
        import os, warnings, numpy as np, matplotlib.pyplot as plt
        from sleepai.registry import metrics
        from dataclasses import replace
        metrics.add(replace(metrics["kappa"], name="mine"))
        os.environ["SLEEPAI_MINE"] = "1"
        warnings.filterwarnings("error", "mine")
        np.random.seed(1); plt.figure(); mine = 1"""
    find = """
        import os, warnings, matplotlib.pyplot as plt
        from sleepai.registry import metrics
        assert "mine" not in metrics and "SLEEPAI_MINE" not in os.environ and not plt.get_fignums()
        assert "mine" not in globals() and not any("mine" in str(f[1]) for f in warnings.filters)"""
    for source in (leave, find):
        fault = forked(failing(tmp_path, dedent(source)))
        assert not fault, fault


# What can be read


def exported_lines(cell) -> int:
    """Lines of code that a cell sends to the package; empty ones and directives do not count."""
    if cell.cell_type != "code" or not re.search(r"^#\|\s*export", cell.source, re.M):
        return 0
    return sum(bool(line.strip()) and not line.startswith("#|") for line in cell.source.splitlines())


def wall(cells) -> int:
    """The most exported lines in a row with nothing between them to read or to look at."""
    longest = run = 0
    for cell in cells:
        if lines := exported_lines(cell):
            run = 0 if cell.get("outputs") else run + lines
        elif cell.cell_type != "markdown" or len(cell.source) > 60:
            run = 0
        longest = max(longest, run)
    return longest


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_teaches(name):
    """A title, a blurb, prose around the code, and something to look at."""
    cells = nbformat.read(ROOT / name, 4).cells
    assert (
        cells[0].cell_type == "markdown"
        and cells[0].source.startswith("# ")
        and cells[0].source[2] != "#"
        and "\n> " in cells[0].source
    )
    assert sum(c.cell_type == "markdown" for c in cells) >= 3
    assert any(c.get("outputs") for c in cells), "no stored output: nothing to look at"
    exported = [c.source for c in cells if c.cell_type == "code" and c.source.startswith("#| export")]
    for source in exported:
        has_import = any(line.startswith(("import ", "from ")) for line in source.splitlines())
        assert not (
            has_import and any(line.startswith(("def ", "class ")) for line in source.splitlines())
        ), "imports stand in cells of their own"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_is_not_a_wall_of_code(name):
    cells = nbformat.read(ROOT / name, 4).cells
    sizes = [exported_lines(c) for c in cells]
    assert max(sizes) <= CELL, f"cell {sizes.index(max(sizes))} exports {max(sizes)} lines; split it"
    assert sum(sizes) <= NOTEBOOK, f"exports {sum(sizes)} lines; split the notebook"
    assert wall(cells) <= WALL, f"{wall(cells)} exported lines in a row; show or say something in between"
