"""The warm interpreters that all tests of the door share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from places import Places
from warm import SETTINGS, TRAINING, Warm


@pytest.fixture(scope="session")
def settings() -> Iterator[Warm]:
    """Runs commands that are refused, or answer, before torch is needed."""
    with Warm(SETTINGS) as warm:
        yield warm


@pytest.fixture(scope="session")
def training() -> Iterator[Warm]:
    """Runs commands that train or predict."""
    with Warm(TRAINING) as warm:
        yield warm


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """The folders of one case."""
    (tmp_path / "case").mkdir()
    return Places(tmp_path / "case")
