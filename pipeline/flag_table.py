"""Prints the README's table of flags from the parser itself: `python -m pipeline.flag_table`."""

from __future__ import annotations

import argparse

from pipeline.options import build_parser


def describe_flags() -> str:
    """Returns the flags of `annotate` as Markdown, a row each, in the groups of `--help`."""
    (commands,) = (action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    groups = [group for group in commands.choices["annotate"]._action_groups if group.title and group._group_actions]
    rows = [
        _describe(group.title or "", action)
        for group in groups
        for action in group._group_actions
        if not isinstance(action, argparse._HelpAction)
    ]
    return "\n".join(["| group | flag | what it does (default) |", "|---|---|---|", *rows])


def _describe(group: str, action: argparse.Action) -> str:
    choices = f" {{{', '.join(map(str, action.choices))}}}" if action.choices else ""
    metavar = f" {action.metavar}" if isinstance(action.metavar, str) else ""
    text = (action.help or "").replace("|", "\\|")
    return f"| {group} | `{action.option_strings[0]}{metavar}`{choices} | {text} |"


if __name__ == "__main__":
    print(describe_flags())
