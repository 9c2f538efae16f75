"""Split `name=value` arguments of a command from settings of the run."""

from __future__ import annotations

from collections.abc import Sequence

from segtrain.errors import UserError, did_you_mean


def take(arguments: Sequence[str], *names: str) -> tuple[dict[str, str], list[str]]:
    """({name: value} of `name=value` arguments, the rest as overrides). Errors: UserError on a flag."""
    taken, rest = {}, []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key in names and equals:
            taken[key] = value
        elif argument.startswith("-") or not equals:
            raise UserError(
                f"{argument}: not understood; arguments are written key=value.{did_you_mean(key, names)}"
            )
        else:
            rest.append(argument)
    return taken, rest
