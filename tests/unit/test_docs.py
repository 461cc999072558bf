"""The examples of the documentation run."""

import doctest
from pathlib import Path

import pytest

DOCS = sorted((Path(__file__).resolve().parents[2] / "docs").glob("*.md"))


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_examples_run(path):
    result = doctest.testfile(str(path), module_relative=False)
    assert result.failed == 0
