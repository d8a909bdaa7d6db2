"""What the command lines of all stages share: errors of one line, recipes as defaults, names of old flags."""

import argparse
import shlex
from collections.abc import Callable, Sequence

from utils import recipes
from utils.errors import UserError


class StageParser(argparse.ArgumentParser):
    """An argument parser whose errors are `UserError`s and whose --help shows every default."""

    def __init__(self, module: str, description: str, add_help: bool = True) -> None:
        super().__init__(
            prog=f"python -m {module}",
            description=description,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
            allow_abbrev=False,
            add_help=add_help,
        )
        self.module = module

    def error(self, message: str) -> None:
        raise UserError(f"{message}; `{self.prog} --help` explains every flag")

    def add_common_flags(self, several_seeds: bool = False) -> None:
        """The flags that every stage has."""
        if several_seeds:
            self.add_argument("--seed", type=int, nargs="+", default=[0], help="one run for each seed")
        else:
            self.add_argument("--seed", type=int, default=0, help="every random number follows from it")
        self.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where to compute")

    def add_dry_run_flag(self) -> None:
        self.add_argument(
            "--dry-run",
            action="store_true",
            help="write nothing: tell how much work is left, and the files, memory and time that it will take",
        )

    def add_recipe_flag(self) -> None:
        self.add_argument(
            "--recipe",
            metavar="METHOD",
            help="take the settings of METHOD for --dataset-name and --ipc from utils/recipes.py; flags given win",
        )

    def add_ignored_flags(self, reasons: dict[str, str]) -> None:
        """Flags of the published scripts that are accepted without effect, each with the reason it prints."""
        for flag, reason in reasons.items():
            self.add_argument(flag, action=_Ignored, reason=reason, help=argparse.SUPPRESS)

    def add_refused_distributed_flags(self) -> None:
        """Flags of the published launcher, refused with a line that names torchrun."""
        for flag in ("--world-size", "--rank", "--dist-url", "--dist-backend", "--multiprocessing-distributed"):
            self.add_argument(flag, action=_Refused, help=argparse.SUPPRESS)

    def parse_with_recipe(self, stage: str, argv: Sequence[str] | None) -> argparse.Namespace:
        """Parse `argv`; where it names a --recipe, that recipe's settings are the defaults of its stage."""
        probe = StageParser(self.module, "", add_help=False)
        probe.add_argument("--recipe")
        probe.add_argument("--dataset-name")
        probe.add_argument("--ipc", type=int)
        probe.add_argument("--model")
        chosen, _ = probe.parse_known_args(argv)
        if chosen.recipe is not None:
            if chosen.dataset_name is None or chosen.ipc is None:
                raise UserError("--recipe needs --dataset-name and --ipc beside it")
            self.set_defaults(
                **recipes.settings(stage, chosen.dataset_name, chosen.recipe, chosen.ipc, model=chosen.model)
            )
        return self.parse_args(argv)


def print_settings(stage: str, settings: argparse.Namespace) -> None:
    """Print every setting that a run resolved, as flags to copy."""
    words = []
    for name, value in sorted(vars(settings).items()):
        if value is None or value is False:
            continue
        words.append(f"--{name.replace('_', '-')}")
        if value is not True:
            values = value if isinstance(value, (list, tuple)) else [value]
            words += [shlex.quote(str(item)) for item in values]
    print(f"{stage}: {' '.join(words)}", flush=True)


def one_of(kind: str, table: Sequence[str]) -> Callable[[str], str]:
    """An argparse type: a name from `table`, whose error lists the names there are."""

    def parse(name: str) -> str:
        if name not in table:
            raise UserError(f"unknown {kind} {name!r}; there are: {' '.join(table)}")
        return name

    return parse


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
