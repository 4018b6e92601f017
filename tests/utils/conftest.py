"""Fixtures of the tests of the shell library."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy_project import Project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """An empty project."""
    return Project(tmp_path / "a project")
