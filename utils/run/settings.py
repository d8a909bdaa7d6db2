"""Settings: one frozen dataclass a stage, from whose fields come its flags, --help, recipes, records and printed table.

    @dataclass(frozen=True)
    class Settings(StageSettings):
        alpha: float = setting(1.0, "share of the optimised image kept at each merge", within=(0, 1))

The annotation says what a flag takes: bool (a switch), int, float, str, Path, a tuple of these (several words), or one
of them `| None`. Numbers have a range, names the table that they are from.
"""

import argparse
import dataclasses
import shlex
import textwrap
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

from utils.data.table import Dataset, get_dataset
from utils.run.errors import UserError

# Whether a setting is part of the identity of what a stage makes: never (where files lie, how fast), always, or where
# it differs from its default. The last is for settings younger than results that people have, and keeps these valid.
NEVER, ALWAYS, WHERE_SET = "never", "always", "where set"
WIDTH = 112


def setting(
    default: object,
    help: str,
    flags: str = "",
    *,
    within: tuple[float, float] | None = None,
    choices: Collection[str] | None = None,
    spellings: Mapping[str, object] | None = None,
    switches: Mapping[str, object] | None = None,
    required: bool = False,
    place: str | None = None,
    group: str | None = None,
    identity: str = NEVER,
    recorded_as: Sequence[str] = (),
) -> Any:
    """A field of a settings class.

    flags: its names on the command line where they are not the field's; the first is its name in records. within: the
    range of a number, both ends included; choices: the words there are; spellings: words taken for others; switches:
    further flags that stand for a value; required: it has to be given; place: the default of a folder where a recipe is
    named, see `fill_places` of utils/recipes; recorded_as: the name of each of its values in records, where they have
    some of their own; group: heading of this field and those behind it in --help and in the
    printed table.
    """
    return dataclasses.field(default=default, metadata={name: v for name, v in locals().items() if name != "default"})


shaping = partial(setting, identity=ALWAYS)
younger = partial(setting, identity=WHERE_SET)


def folder(place: str, help: str, required: bool = True, group: str | None = None) -> Any:
    """A field that names a folder."""
    return setting(None, help, required=required, place=place, group=group)


@dataclass(frozen=True)
class StageSettings:
    """What every stage has."""

    dataset_name: str | None = setting(None, "one of utils/data/table.py, or one of your own", required=True)
    seed: int = shaping(0, "every random number follows from it", within=(0, 2**63 - 1))
    device: str = setting("auto", "where to compute", choices=("auto", "cpu", "cuda", "mps"))
    dry_run: bool = setting(False, "write nothing: tell what is left to do, and the files and bytes it will write")

    @property
    def dataset(self) -> Dataset:
        return get_dataset(self.dataset_name)

    def resolved(self) -> Self:
        """The same with every default filled in that depends on other settings. UserError where they contradict."""
        return self


def flags_of(field: dataclasses.Field) -> list[str]:
    """The names of a setting on the command line."""
    return field.metadata["flags"].split() or [f"--{field.name.replace('_', '-')}"]


def record_name(field: dataclasses.Field) -> str:
    """The name of a setting in records: that of its first flag."""
    return flags_of(field)[0].lstrip("-").replace("-", "_")


def shape_of(owner: type, field: dataclasses.Field) -> tuple[type, bool]:
    """The type of a setting's values, and whether it takes several."""
    kind = typing.get_type_hints(owner)[field.name]
    if isinstance(kind, types.UnionType):
        (kind,) = (option for option in typing.get_args(kind) if option is not type(None))
    if typing.get_origin(kind) is tuple:
        return typing.get_args(kind)[0], True
    return kind, False


def identity_of(settings: StageSettings) -> dict[str, object]:
    """The settings that shape what a stage makes, by their names in records."""
    found = {}
    for field in dataclasses.fields(settings):
        value, kind = getattr(settings, field.name), field.metadata["identity"]
        if names := field.metadata["recorded_as"]:
            found |= zip(names, value, strict=True)
        elif kind == ALWAYS or (kind == WHERE_SET and value != field.default):
            found[record_name(field)] = list(value) if isinstance(value, tuple) else value
    return found


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are `UserError`s and whose --help shows every default."""

    def __init__(self, module: str, description: str = "", add_help: bool = True) -> None:
        super().__init__(
            prog=f"python -m {module}",
            description=description,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
            allow_abbrev=False,
            add_help=add_help,
        )

    def error(self, message: str) -> typing.NoReturn:
        raise UserError(f"{message}; `{self.prog} --help` explains every flag")


def parser_of(
    owner: type[StageSettings], module: str, description: str, ignored: Mapping[str, str] | None = None
) -> Parser:
    """The parser of a stage. ignored: flags of the published scripts without effect here, each with the reason."""
    parser = Parser(module, description)
    group = parser
    for field in dataclasses.fields(owner):
        if field.metadata["group"]:
            group = parser.add_argument_group(field.metadata["group"])
        _add(group, owner, field)
    for flag, reason in (ignored or {}).items():
        parser.add_argument(flag, action=_Ignored, reason=reason, help=argparse.SUPPRESS)
    for flag in ("--world-size", "--rank", "--dist-url", "--dist-backend", "--multiprocessing-distributed"):
        parser.add_argument(flag, action=_Refused, help=argparse.SUPPRESS)
    return parser


def _add(group: Any, owner: type[StageSettings], field: dataclasses.Field) -> None:
    kind, several = shape_of(owner, field)
    options: dict[str, object] = {"dest": field.name, "default": field.default, "help": field.metadata["help"]}
    if kind is bool:
        options["action"] = argparse.BooleanOptionalAction
    else:
        spellings = field.metadata["spellings"] or {}
        read = _path if kind is Path else kind
        options["type"] = lambda word: spellings.get(word) or read(word)
        options["type"].__name__ = kind.__name__
        options["nargs"] = "*" if several else None
        options["metavar"] = _metavar(kind, field)
    group.add_argument(*flags_of(field), **options)
    for flag, value in (field.metadata["switches"] or {}).items():
        group.add_argument(
            flag, dest=field.name, action="store_const", const=value, default=field.default, help=f"the same as {value}"
        )


def _path(word: str) -> Path:
    """A path as given, but for the ~ that a shell leaves in --flag=~/folder and in quotes."""
    return Path(word).expanduser() if word.startswith("~/") else Path(word)


def _metavar(kind: type, field: dataclasses.Field) -> str:
    choices = field.metadata["choices"]
    return f"{{{','.join(choices)}}}" if choices else {int: "N", float: "X", Path: "PATH"}.get(kind, "NAME")


def check(settings: StageSettings) -> None:
    """UserError for a setting that is missing, out of its range, or none of its choices."""
    for field in dataclasses.fields(settings):
        value, flag, told = getattr(settings, field.name), flags_of(field)[0], field.metadata
        if value in (None, ()):
            if told["required"]:
                raise UserError(f"{flag} is missing: {told['help']}")
            continue
        for item in value if isinstance(value, tuple) else (value,):
            if told["choices"] is not None and item not in told["choices"]:
                raise UserError(f"{flag} {item}: there are {' '.join(told['choices'])}")
            if isinstance(item, (int, float)) and not isinstance(item, bool):
                low, high = told["within"]
                if not low <= item <= high:
                    bounds = (f"{bound:,}" if isinstance(bound, int) else f"{bound:g}" for bound in (low, high))
                    raise UserError(f"{flag} {item}: it must be from {' to '.join(bounds)}")


def show(stage: str, settings: StageSettings) -> None:
    """Print the settings that a run resolved as a table by group, each as the flag that gives it."""
    print(f"{stage}: settings", flush=True)
    heading, words = "run", []
    for field in dataclasses.fields(settings):
        if field.metadata["group"]:
            _print_row(heading, words)
            heading, words = field.metadata["group"], []
        if (value := getattr(settings, field.name)) != field.default:
            words.append(shlex.join(spell(field, value)))
    _print_row(heading, words)


def _print_row(heading: str, words: Sequence[str]) -> None:
    text = "   ".join(word.replace(" ", "\0") for word in words)  # a flag stays with its values
    lines = textwrap.wrap(text, WIDTH - 12, break_long_words=False, break_on_hyphens=False) if words else []
    for name, line in zip([heading, *[""] * len(lines)], lines, strict=False):
        print(f"  {name:<10}{line}".replace("\0", " "), flush=True)


def spell(field: dataclasses.Field, value: object) -> list[str]:
    """A setting as words of a command line."""
    flag = flags_of(field)[0]
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag.removeprefix('--')}"]
    return [flag, *map(str, value if isinstance(value, tuple) else (value,))]


class _Ignored(argparse.Action):
    def __init__(self, option_strings: list[str], dest: str, reason: str, help: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs="*", default=argparse.SUPPRESS, help=help)
        self.reason = reason

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        print(f"note: {option_string} has no effect here: {self.reason}", flush=True)


class _Refused(argparse.Action):
    def __init__(self, option_strings: list[str], dest: str, help: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs="*", default=argparse.SUPPRESS, help=help)

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        raise UserError(f"{option_string} is not used: start several processes with torchrun --nproc-per-node N -m ...")
