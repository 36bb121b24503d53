"""Completion for bash: what `shtab` makes of the parser, and what asks the daemon for names.

It waits two seconds at the most, and offers only names without anything that a shell would act on:
names of volumes and snapshots may come from anybody, and what is offered here becomes a command.
"""

import argparse

_KINDS = {
    "volume": "volumes",
    "target": "volumes",
    "snapshot": "snapshots",
    "name": "either",
    "host": "hosts",
    "origin": "hosts",
    "words": "volumes",
    "action": "actions",
}
"""What arguments are completed to, by their names in the parser."""
_OTHERS = ("removed", "undelete")
"""Commands whose volumes no longer exist."""

PREAMBLE = r"""
# Lines that begin with the first argument and are safe in a command line.
_buttervolume_fitting() {
    local line
    while IFS= read -r line; do
        [[ $line == "$1"* && $line =~ ^[A-Za-z0-9][A-Za-z0-9_.@:+-]*$ ]] && printf '%s\n' "$line"
    done
    return 0
}

_buttervolume_list_volumes() {
    timeout 2 buttervolume volumes --json 2>/dev/null | sed -n 's/^      "Name": "\(.*\)",$/\1/p'
}

_buttervolume_list_snapshots() {
    timeout 2 buttervolume snapshots 2>/dev/null
}

_buttervolume_volumes() { _buttervolume_list_volumes | _buttervolume_fitting "$1"; }

_buttervolume_snapshots() { _buttervolume_list_snapshots | _buttervolume_fitting "$1"; }

_buttervolume_either() {
    if [[ $1 == *@* ]]; then _buttervolume_snapshots "$1"; else _buttervolume_volumes "$1"; fi
}

_buttervolume_hosts() {
    {
        sed -n 's/^[[:space:]]*[Hh]ost[[:space:]=]*//p' ~/.ssh/config 2>/dev/null | tr ' ' '\n'
        _buttervolume_list_snapshots | awk -F@ 'NF == 3 { print $3 }'
    } | sort -u | _buttervolume_fitting "$1"
}

_buttervolume_actions() {
    printf '%s\n' snapshot purge: replicate: mirror: receive: synchronize: |
        _buttervolume_fitting "$1"
}
"""


def completed(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The parser, with what `shtab` wants to know of its arguments."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                for argument in command._actions:
                    if argument.dest in _KINDS and name not in _OTHERS:
                        kind = f"_buttervolume_{_KINDS[argument.dest]}"
                        vars(argument)["complete"] = {"bash": kind}
    return parser
