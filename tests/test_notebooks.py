"""Every notebook runs from top to bottom, and its own checks pass."""

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

NOTEBOOKS = sorted(
    p.relative_to(ROOT).as_posix()
    for p in (ROOT / "nbs").rglob("*.ipynb")
    if not {".ipynb_checkpoints", "templates"} & set(p.parts)
)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook(name):
    path = ROOT / name
    nb = nbformat.read(path, 4)
    NotebookClient(
        nb, timeout=600, kernel_name="python3", resources=dict(metadata=dict(path=str(path.parent)))
    ).execute()


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
