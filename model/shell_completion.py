"""Lets an installed command write the script by which a shell completes its options.

The script holds the options themselves, so no program runs when a key is pressed. Knows no option.
"""

import sys
from argparse import SUPPRESS, Action, ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

SHELLS = ("bash", "zsh", "fish", "tcsh")
OPTION = "--print-completion"


def add_completion_option(
    parser: ArgumentParser,
    fields: Mapping[str, FieldInfo],
    unused_parser: Callable[[], ArgumentParser],
) -> None:
    """Add `--print-completion SHELL`, which writes the script to standard output and exits.

    fields: the settings, by the names that the parser stores them under.
    unused_parser: makes an equal parser; one that parses intermixed arguments changes itself.
    """

    class WriteScript(Action):
        def __call__(
            self, parser: ArgumentParser, namespace: Namespace, values: Any, option: Any = None
        ) -> None:
            sys.stdout.write(_script(unused_parser(), values, fields))
            parser.exit()

    parser.add_argument(
        OPTION,
        action=WriteScript,
        choices=SHELLS,
        dest=SUPPRESS,
        default=SUPPRESS,
        help="write the script by which a shell completes this command, and do nothing else",
    )


def _script(parser: ArgumentParser, shell: str, fields: Mapping[str, FieldInfo]) -> str:
    import shtab  # here, since no other run needs it

    for action in parser._actions:
        if action.dest in fields:
            parts = list(_parts(fields[action.dest].annotation))
            literals = [each for part in parts for each in get_args(part)]
            if literals:
                action.choices = literals
            elif Path in parts:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    script: str = shtab.complete(parser, shell)
    return script.rstrip() + "\n"


def _parts(annotation: Any) -> Iterator[Any]:
    """Yield the literals and the plain types that a type is a union of."""
    if get_origin(annotation) in (None, Literal):
        yield annotation
    else:
        for part in get_args(annotation):
            yield from _parts(part)
