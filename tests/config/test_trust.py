"""Whom a command trusts is known before any config is read."""

from __future__ import annotations

import pytest

from segtrain.config import trust
from segtrain.errors import UserError


def test_the_variable_is_read_once_at_the_start_of_a_command(monkeypatch) -> None:
    with trust.trusting([]):
        monkeypatch.setenv("SEGTRAIN_TRUST", "not_installed")  # by a config, say
        with trust.trusting([]):
            assert not trust.folders()
    with pytest.raises(UserError, match="not_installed"), trust.trusting([]):
        pass
