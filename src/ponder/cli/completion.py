"""Print a script that completes verbs, flags and names of parts in a shell."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping

from ponder import flags
from ponder.cli import list as listing
from ponder.cli._output import say
from ponder.runs import trackers

EPILOG = """\
examples (bash, with the package bash-completion, zsh and fish look for such a file by themselves):
  ponder completion bash > ~/.local/share/bash-completion/completions/ponder
  ponder completion zsh  > DIRECTORY/_ponder       a directory of $fpath, before compinit runs
  ponder completion fish > ~/.config/fish/completions/ponder.fish

Print it again after an update: it holds the flags and the parts of the version that printed it.
"""
SHELLS = ("bash", "zsh", "fish")
CONFIGS = {
    "doctor": "cli.doctor:DoctorConfig",
    "eval": "cli._eval_config:EvalConfig",
    "export": "cli.export:ExportConfig",
    "quickstart": "cli.quickstart:QuickstartConfig",
    "replay": "cli.replay:ReplayConfig",
    "solve": "cli._solve_config:SolveConfig",
    "train pretrain": "training.supervised:PretrainConfig",
    "train rl": "training.rl_config:RLConfig",
    "train sft": "training.supervised:SFTConfig",
}
"""Where the flags of a verb are, if they are a dataclass; other verbs have a function `parser`."""
PARTS = {
    "--advantage": "advantages",
    "--engine": "engines",
    "--environment": "environments",
    "--eval-strategy": "strategies",
    "--loss": "losses",
    "--scorer": "scorers",
    "--strategy": "strategies",
    "--verifier": "verifiers",
}
"""Flags that take the name of a part, and its kind."""
FILE = ("--config",)
"""What `config.parse` adds to the flags of a dataclass."""


def parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = argparse.ArgumentParser(
        prog="ponder completion",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=SHELLS, help="for which shell")
    return parser


def main(args: list[str]) -> int:
    script = {"bash": bash, "zsh": zsh, "fish": fish}[parser().parse_args(args).shell]
    say(script(flags_of_verbs(), words_after()))
    return 0


def flags_of_verbs() -> dict[str, list[str]]:
    """Every long flag of each verb; those of `train` by its kind."""
    found = {}
    for verb in _verbs():
        if verb in CONFIGS:
            # `--no-X` is only useful where X is on by itself.
            known = [word for word in flags.names(_config(verb)) if not word.startswith("--no-")] + [*FILE]
        else:
            known = [word for action in _parser(verb)._actions for word in action.option_strings]
        found[verb] = sorted({*(word for word in known if word.startswith("--")), "--help"})
    return found


def words_after() -> dict[tuple[str, str], list[str]]:
    """What may follow a word: (verb, the word before) to words. The verb itself is before its first argument."""
    from ponder.cli.main import verbs
    from ponder.models.load import BUILTIN

    found = {
        ("", "ponder"): [*verbs(), "--help", "--version"],
        ("list", "list"): [*listing.KINDS],
        ("completion", "completion"): [*SHELLS],
        ("train", "train"): [verb.partition(" ")[2] for verb in CONFIGS if verb.startswith("train ")],
    }
    named = {flag: [row["name"] for row in listing.rows(kind)] for flag, kind in PARTS.items()}
    named |= {"--model": [*BUILTIN], "--track": [*trackers.NAMES]}
    for verb, known in flags_of_verbs().items():
        limited = flags.choices(_config(verb)) if verb in CONFIGS else _limited(verb)
        for flag in known:
            if words := named.get(flag) or limited.get(flag):
                found[verb, flag] = [*words]
    return found


def _verbs() -> list[str]:
    """Verbs as they are completed: `train` with its kind."""
    from ponder.cli.main import verbs

    return sorted({*CONFIGS, *(verb for verb in verbs() if verb != "train")})


def _config(verb: str) -> type:
    module, _, name = CONFIGS[verb].partition(":")
    config: type = getattr(importlib.import_module(f"ponder.{module}"), name)
    return config


def _parser(verb: str) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = importlib.import_module(f"ponder.cli.{verb}").parser()
    return made


def _limited(verb: str) -> dict[str, tuple[str, ...]]:
    return {word: tuple(a.choices) for a in _parser(verb)._actions if a.choices for word in a.option_strings}


def _cases(after: Mapping[tuple[str, str], list[str]], line: str) -> str:
    """The branches of a `case` of bash and zsh, by the verb and the word before."""
    return "\n".join(line.format(f"'{verb} {before}'", " ".join(words)) for (verb, before), words in after.items())


def bash(known: Mapping[str, list[str]], after: Mapping[tuple[str, str], list[str]]) -> str:
    """The script for bash. What it does not know is completed as the name of a file."""
    cases = _cases(after, "        {}) words='{}' ;;")
    lists = "\n".join(f"            '{verb}') words='{' '.join(words)}' ;;" for verb, words in known.items())
    return f"""# bash completion for ponder, printed by: ponder completion bash
_ponder() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD - 1]}}" verb="" words=""
    # bash makes --flag=value three words.
    if [[ $word == "=" ]]; then
        word=""
    elif [[ $before == "=" ]]; then
        before="${{COMP_WORDS[COMP_CWORD - 2]}}"
    fi
    if ((COMP_CWORD == 1)); then
        before=ponder
    elif [[ ${{COMP_WORDS[1]}} == train ]] && ((COMP_CWORD > 2)); then
        verb="train ${{COMP_WORDS[2]}}"
    else
        verb="${{COMP_WORDS[1]}}"
    fi
    case "$verb $before" in
{cases}
    esac
    if [[ -z $words && $word == -* ]]; then
        case "$verb" in
{lists}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _ponder ponder"""


def zsh(known: Mapping[str, list[str]], after: Mapping[tuple[str, str], list[str]]) -> str:
    """The script for zsh, for a directory of `$fpath` or to be sourced."""
    cases = _cases(after, "        {}) found=({}) ;;")
    lists = "\n".join(f"            '{verb}') found=({' '.join(words)}) ;;" for verb, words in known.items())
    return f"""#compdef ponder
# zsh completion for ponder, printed by: ponder completion zsh
_ponder() {{
    local word="$words[CURRENT]" before="$words[CURRENT-1]" verb=""
    local -a found
    if (( CURRENT == 2 )); then
        before=ponder
    elif [[ $words[2] == train ]] && (( CURRENT > 3 )); then
        verb="train $words[3]"
    else
        verb="$words[2]"
    fi
    case "$verb $before" in
{cases}
    esac
    if (( ! $#found )) && [[ $word == -* ]]; then
        case "$verb" in
{lists}
        esac
    fi
    if (( $#found )); then
        compadd -- $found
    else
        _files
    fi
}}
if [[ $funcstack[1] == _ponder ]]; then
    _ponder "$@"
else
    compdef _ponder ponder
fi"""


def fish(known: Mapping[str, list[str]], after: Mapping[tuple[str, str], list[str]]) -> str:
    """The script for fish: a line for each flag of each verb."""
    lines = ["# fish completion for ponder, printed by: ponder completion fish"]
    lines.append(f"complete -c ponder -f -n __fish_use_subcommand -a '{' '.join(after['', 'ponder'])}'")
    for verb in ("list", "completion", "train"):
        words = " ".join(after[verb, verb])
        unsaid = f"__fish_seen_subcommand_from {verb}; and not __fish_seen_subcommand_from {words}"
        lines.append(f"complete -c ponder -f -n '{unsaid}' -a '{words}'")
    for verb, flags_of_verb in known.items():
        said = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in verb.split())
        for flag in flags_of_verb:
            words = " ".join(after.get((verb, flag), []))
            values = f" -r -a '{words}'" if words else ""
            lines.append(f"complete -c ponder -n '{said}' -l '{flag[2:]}'{values}")
    return "\n".join(lines)
