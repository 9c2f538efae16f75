"""Split `name=value` arguments of a command from settings of the run."""

from __future__ import annotations

from collections.abc import Sequence

from segtrain.errors import UserError, did_you_mean


def take(arguments: Sequence[str], *names: str) -> tuple[dict[str, str], list[str]]:
    """Return {name: value} of the arguments `name=value`, and the others as overrides of the run.

    Errors: UserError on a flag or a word without `=`.
    """
    taken: dict[str, str] = {}
    overrides: list[str] = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key in names and equals:
            taken[key] = value
        elif argument.startswith("-") or not equals:
            raise UserError(
                f"{argument}: not understood; arguments are written key=value."
                f"{did_you_mean(key, names)}"
            )
        else:
            overrides.append(argument)
    return taken, overrides
