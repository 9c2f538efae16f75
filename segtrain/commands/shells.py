"""Tab completion in a shell: `eval "$(segtrain -sc install=bash)"`, as users of Hydra know it.

One line in a shell's start-up file serves all five commands. The shell calls the command that
stands on its line with `-sc query=SHELL` and takes a line of the answer for each way to go on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from segtrain.commands.complete import COMMANDS, candidates
from segtrain.errors import UserError

FLAGS = ("-sc", "--shell-completion")
_NAMES = " ".join(COMMANDS)
# A word that is finished ends in a space by itself, as one that is not must have none after it.
BASH = f"""_segtrain_completion() {{
    COMPREPLY=()
    local word
    while IFS= read -r word; do
        COMPREPLY+=("$word")
    done < <(COMP_LINE="$COMP_LINE" COMP_POINT="$COMP_POINT" COMP_WORDBREAKS="$COMP_WORDBREAKS" \\
        "$1" -sc query=bash 2>/dev/null)
}}
complete -o nospace -F _segtrain_completion {_NAMES}"""
ZSH = f"""(( $+functions[compdef] )) || {{ autoload -Uz compinit && compinit; }}
_segtrain_completion() {{
    local line="${{(j: :)words[1,CURRENT-1]}} $PREFIX"
    local -a ways
    ways=("${{(@f)$(COMP_LINE=$line COMP_POINT=${{#line}} "${{words[1]}}" -sc query=zsh \\
        2>/dev/null)}}")
    [[ -n $ways ]] && compadd -Q -S '' -- "${{ways[@]}}"
}}
compdef _segtrain_completion {_NAMES}"""
FISH = f"""function _segtrain_completion
    set -lx COMP_LINE (commandline -cp)
    set -lx COMP_POINT (string length -- "$COMP_LINE")
    set -l words (commandline -opc)
    $words[1] -sc query=fish 2>/dev/null
end
for name in {_NAMES}
    complete -c $name -f -a '(_segtrain_completion)'
end"""
INSTALL = {"bash": BASH, "zsh": ZSH, "fish": FISH}
UNINSTALL = {
    "bash": f"complete -r {_NAMES}; unset -f _segtrain_completion",
    "zsh": f"compdef -d {_NAMES}; unfunction _segtrain_completion",
    "fish": f"for name in {_NAMES}; complete -e -c $name; end; functions -e _segtrain_completion",
}


def run(command: str, words: Sequence[str]) -> None:
    """Do what `-sc install|uninstall|query=SHELL` asks for. Errors: UserError."""
    action, _, shell = (words[0] if len(words) == 1 else "").partition("=")
    known = {"install": INSTALL, "uninstall": UNINSTALL}
    if shell not in INSTALL or action not in (*known, "query"):
        raise UserError(
            f"{FLAGS[0]}: write install=SHELL or uninstall=SHELL, of {', '.join(INSTALL)}: "
            f'eval "$({command} {FLAGS[0]} install=bash)"'
        )
    lines = [known[action][shell]] if action in known else answer(command, shell, os.environ)
    for line in lines:
        print(line)


def answer(command: str, shell: str, environment: Mapping[str, str]) -> list[str]:
    """Return how the line COMP_LINE may go on at COMP_POINT, in the form that a shell takes.

    Bash replaces what follows the last of COMP_WORDBREAKS, such as `=`, and the others the word.
    """
    line = environment.get("COMP_LINE", "")
    point = environment.get("COMP_POINT", "")
    typed = line[: int(point)] if point.isdecimal() else line
    words, word, raw, quote = split(typed)
    names = [index for index, each in enumerate(words) if Path(each).name == command]
    ways = candidates(command, words[names[0] + 1 if names else 1 :], word)
    if shell == "fish":  # it quotes, and adds spaces, by itself
        return [way.text for way in ways]
    done = 0
    if shell == "bash" and not quote:
        breaks = re.escape(environment.get("COMP_WORDBREAKS", "").strip("\"' \n\t") or "=")
        done = max((found.end() for found in re.finditer(rf"(?<!\\)[{breaks}]", raw)), default=0)
    return [
        (way.text if quote else escaped(way.text))[done:] + ("" if way.open else " ")
        for way in ways
    ]


def escaped(text: str) -> str:
    """Return a word as a shell reads it back."""
    return re.sub(r"([^\w@%+=:,./~-])", r"\\\1", text)


def split(line: str) -> tuple[list[str], str, str, str]:
    """Split a line that is being typed, by the rules of shells.

    Returns the words before the last one, the last one, the same as it was typed, and the quote
    that is open in it, or "".
    """
    words: list[str] = []
    word = raw = quote = ""
    letters = iter(line)
    for letter in letters:
        if not quote and letter.isspace():
            if raw:
                words.append(word)
            word = raw = ""
            continue
        raw += letter
        if letter == quote:
            quote = ""
        elif not quote and letter in "'\"":
            quote = letter
        elif letter == "\\" and quote != "'":
            following = next(letters, "")
            raw += following
            word += following
        else:
            word += letter
    return words, word, raw, quote
