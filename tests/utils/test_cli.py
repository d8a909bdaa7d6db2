"""What all command lines share."""

import argparse
import shlex

import pytest

from utils import recipes
from utils.cli import StageParser, one_of, print_settings
from utils.errors import UserError


@pytest.fixture
def parser():
    """A stage with a few flags of recover."""
    parser = StageParser("recover.recover", "A stage.")
    parser.add_argument("--dataset-name", required=True)
    parser.add_argument("--ipc", type=int)
    parser.add_argument("--alpha", type=float, default=1.0, help="a share")
    parser.add_argument("--optimization-budgets", type=int, nargs="+", help="iterations")
    parser.add_argument("--apply-data-augmentation", action="store_true")
    parser.add_recipe_flag()
    parser.add_common_flags()
    for name in recipes.settings("recover", "cifar100", "fadrm", 1):
        if f"--{name.replace('_', '-')}" not in parser._option_string_actions:
            parser.add_argument(f"--{name.replace('_', '-')}")
    return parser


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "the following arguments are required: --dataset-name"),
        ("--dataset-name a --alpha half", "argument --alpha: invalid float value: 'half'"),
        ("--dataset-name a --ipc", "argument --ipc: expected one argument"),
        ("--dataset-name a --nothing 1", "unrecognized arguments: --nothing 1"),
        ("--dataset-name a --opt 1 2", "unrecognized arguments: --opt 1 2"),  # nothing is abbreviated
        ("--dataset-name a --device tpu", "argument --device: invalid choice: 'tpu'"),
        ("--dataset-name a --seed 0 1", "unrecognized arguments: 1"),
    ],
)
def test_what_does_not_parse_is_a_user_error_that_names_help(parser, words, message):
    with pytest.raises(UserError) as caught:
        parser.parse_args(words.split())
    assert str(caught.value).startswith(message)
    assert str(caught.value).endswith("; `python -m recover.recover --help` explains every flag")


def test_help_shows_defaults(parser, capsys):
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args(["--help"])
    assert stopped.value.code == 0
    assert "a share (default: 1.0)" in capsys.readouterr().out


def test_seed_and_device_are_everywhere(parser):
    given = parser.parse_args(["--dataset-name", "a", "--seed", "-3", "--device", "cpu"])
    assert (given.seed, given.device) == (-3, "cpu")
    several = StageParser("validate.validate", "")
    several.add_common_flags(several_seeds=True)
    assert several.parse_args([]).seed == [0]
    assert several.parse_args(["--seed", "2", "0"]).seed == [2, 0]


def test_a_recipe_gives_defaults_and_flags_win_wherever_they_stand(parser):
    recipe = recipes.settings("recover", "cifar100", "fadrm", 1)
    words = ["--alpha", "0.9", "--recipe", "fadrm", "--dataset-name", "cifar100", "--ipc", "1"]
    for given in (words, words[2:] + words[:2]):
        settings = parser.parse_with_recipe("recover", given)
        assert settings.alpha == 0.9
        assert settings.optimization_budgets == recipe["optimization_budgets"]
        assert settings.apply_data_augmentation is True
        assert settings.recipe == "fadrm"


def test_without_a_recipe_nothing_changes(parser):
    settings = parser.parse_with_recipe("recover", ["--dataset-name", "cifar100", "--ipc", "1"])
    assert (settings.alpha, settings.optimization_budgets, settings.recipe) == (1.0, None, None)


@pytest.mark.parametrize("words", ["--recipe fadrm --dataset-name cifar100", "--recipe fadrm --ipc 1"])
def test_a_recipe_needs_dataset_and_ipc(parser, words):
    with pytest.raises(UserError, match="--recipe needs --dataset-name and --ipc beside it"):
        parser.parse_with_recipe("recover", words.split())


@pytest.fixture
def with_old_flags(parser):
    parser.add_ignored_flags({"--gpu": "there is one", "-j": "no workers", "--mode": "always"})
    parser.add_refused_distributed_flags()
    return parser


@pytest.mark.parametrize("words", ["--gpu 0", "--gpu", "--gpu 0 1 2", "-j 4"])
def test_flags_without_effect_say_so_and_leave_no_trace(with_old_flags, capsys, words):
    settings = with_old_flags.parse_args([*words.split(), "--dataset-name", "a"])
    flag = words.split()[0]
    assert capsys.readouterr().out.startswith(f"note: {flag} has no effect here: ")
    assert {"gpu", "j", "mode"}.isdisjoint(vars(settings))


def test_flags_without_effect_are_not_in_help(with_old_flags):
    text = with_old_flags.format_help()
    assert "--gpu" not in text and "--world-size" not in text and "--alpha" in text


@pytest.mark.parametrize(
    "flag", ["--world-size 2", "--rank 0", "--dist-url tcp://x", "--dist-backend nccl", "--multiprocessing-distributed"]
)
def test_flags_of_the_old_launcher_name_torchrun(with_old_flags, flag):
    with pytest.raises(UserError, match=f"{flag.split()[0]} is not used: start several processes with torchrun"):
        with_old_flags.parse_args([*flag.split(), "--dataset-name", "a"])


def test_printed_settings_are_flags_to_copy(parser, capsys):
    words = ["--dataset-name", "a b", "--optimization-budgets", "5", "6", "--apply-data-augmentation", "--seed", "-1"]
    settings = parser.parse_args(words)
    print_settings("recover", settings)
    stage, _, copied = capsys.readouterr().out.partition(": ")
    assert stage == "recover" and copied.endswith("\n")
    assert "None" not in copied and "'a b'" in copied
    assert parser.parse_args(shlex.split(copied)) == settings


def test_settings_that_are_off_are_not_printed(capsys):
    print_settings("x", argparse.Namespace(on=True, off=False, none=None, zero=0, empty=""))
    assert capsys.readouterr().out == "x: --empty '' --on --zero 0\n"


def test_one_of_a_table():
    parse = one_of("thing", ("a", "b"))
    assert parse("b") == "b"
    with pytest.raises(UserError, match="unknown thing 'c'; there are: a b"):
        parse("c")
