"""Scripts that complete commands, options and choices in bash, zsh and fish, without Python."""

import argparse
from collections.abc import Callable, Iterator

Path = tuple[str, ...]  # of a command: ("models", "pull")


def bash_script(parser: argparse.ArgumentParser) -> str:
    """Return a script for bash; files are completed where no word fits."""
    cases = "".join(
        f'    "{" ".join(path)}") words="{" ".join(_words(command))}" ;;\n'
        for path, command in _iter_commands(parser, ())
    )
    return f"""\
# filmlet completion bash > ~/.local/share/bash-completion/completions/filmlet
_filmlet() {{
  local word path="" words=""
  for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    _filmlet_words "${{path:+$path }}$word" && path="${{path:+$path }}$word"
  done
  _filmlet_words "$path"
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
_filmlet_words() {{
  case "$1" in
{cases}    *) return 1 ;;
  esac
}}
complete -o default -F _filmlet filmlet
"""


def zsh_script(parser: argparse.ArgumentParser) -> str:
    """Return a script for zsh, which runs the one for bash."""
    return f"""\
# source <(filmlet completion zsh)
autoload -U +X bashcompinit && bashcompinit
{bash_script(parser)}"""


def fish_script(parser: argparse.ArgumentParser) -> str:
    """Return a script for fish."""
    lines = ["# filmlet completion fish > ~/.config/fish/completions/filmlet.fish"]
    for path, command in _iter_commands(parser, ()):
        where = " && ".join(f"__fish_seen_subcommand_from {name}" for name in path)
        condition = where or "__fish_use_subcommand"
        lines += [f"complete -c filmlet -n '{condition}' -a '{word}'" for word in _words(command)]
    return "\n".join(lines) + "\n"


SHELLS: dict[str, Callable[[argparse.ArgumentParser], str]] = {
    "bash": bash_script,
    "zsh": zsh_script,
    "fish": fish_script,
}


def _iter_commands(
    parser: argparse.ArgumentParser, path: Path
) -> Iterator[tuple[Path, argparse.ArgumentParser]]:
    """Yield every parser with its path, the one of all commands first."""
    yield path, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield from _iter_commands(command, (*path, name))


def _words(parser: argparse.ArgumentParser) -> list[str]:
    """Return the commands, choices and options that may follow."""
    words: list[str] = []
    for action in parser._actions:
        words += action.option_strings or map(str, action.choices or ())
    return words
