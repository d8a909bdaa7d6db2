"""The bridge from a dataclass of settings to flags, --help, records and the printed table."""

import shlex
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pytest

from recover import recover  # its batches, committees and terms enter the tables
from utils import recipes
from utils.data.table import get_dataset
from utils.recipes.settings import RecoverSettings, ValidateSettings
from utils.run.errors import UserError
from utils.run.settings import (
    ALWAYS,
    NEVER,
    WHERE_SET,
    WIDTH,
    StageSettings,
    check,
    flags_of,
    folder,
    identity_of,
    parser_of,
    record_name,
    setting,
    shape_of,
    shaping,
    show,
    spell,
    younger,
)

assert recover


@dataclass(frozen=True)
class Settings(StageSettings):
    """A stage with one setting of each kind."""

    out: Path | None = folder("{root}/{dataset}", "where it goes", group="files")
    pool: Path | None = folder("{root}/pool", "where from", required=False)
    alpha: float = shaping(1.0, "a share", within=(0, 1), group="method")
    rate: float = shaping(0.1, "a rate", "--lr", within=(1e-12, 10))
    sizes: tuple[int, ...] | None = setting(None, "pixels", "--input-size-lis --sizes", within=(1, 4096))
    names: tuple[str, ...] = younger((), "some names")
    augment: bool = shaping(False, "crop and flip", "--apply-data-augmentation")
    start: str = setting("Gaussian", "its start", choices=("Patches", "Gaussian"), spellings={"noise": "Gaussian"})
    source: str = setting("offline", "where from", switches={"--online": "online", "--no-online": "offline"})
    young: int = younger(1, "a setting of later", within=(1, 9))
    tests: tuple[int, ...] = setting((1,), "some numbers", within=(0, 9), required=True)


BY_NAME = {field.name: field for field in fields(Settings)}
NEEDED = ["--dataset-name", "cifar100", "--out", "here"]


def parse(*words, ignored=None):
    parser = parser_of(Settings, "recover.recover", "A stage.", ignored)
    values = vars(parser.parse_args([*NEEDED, *words]))
    return Settings(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


# Fields and flags


def test_a_field_has_its_name_as_flag_or_those_that_it_gives():
    assert flags_of(BY_NAME["dataset_name"]) == ["--dataset-name"]
    assert flags_of(BY_NAME["sizes"]) == ["--input-size-lis", "--sizes"]
    assert [record_name(BY_NAME[name]) for name in ("dataset_name", "sizes", "rate")] == [
        "dataset_name",
        "input_size_lis",
        "lr",
    ]


def test_kinds_of_fields():
    identities = {name: field.metadata["identity"] for name, field in BY_NAME.items()}
    assert (identities["alpha"], identities["young"], identities["start"]) == (ALWAYS, WHERE_SET, NEVER)
    for name, required in (("out", True), ("pool", False)):
        told = BY_NAME[name].metadata
        assert (told["required"], told["identity"], BY_NAME[name].default) == (required, NEVER, None)
    assert BY_NAME["out"].metadata["place"] == "{root}/{dataset}"


def test_a_stage_knows_its_dataset():
    assert parse().dataset is get_dataset("cifar100")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("out", (Path, False)),
        ("alpha", (float, False)),
        ("sizes", (int, True)),
        ("names", (str, True)),
        ("augment", (bool, False)),
        ("seed", (int, False)),
    ],
)
def test_the_annotation_says_what_a_flag_takes(name, shape):
    assert shape_of(Settings, BY_NAME[name]) == shape


def test_flags_of_every_kind():
    assert parse() == Settings("cifar100", out=Path("here"))
    words = "--alpha 0.5 --lr 1e-3 --sizes 24 32 --names a b --apply-data-augmentation --start noise --online --seed 7"
    assert parse(*words.split()) == Settings(
        "cifar100",
        seed=7,
        out=Path("here"),
        alpha=0.5,
        rate=1e-3,
        sizes=(24, 32),
        names=("a", "b"),
        augment=True,
        start="Gaussian",
        source="online",
    )
    assert parse("--online", "--no-online", "--apply-data-augmentation", "--no-apply-data-augmentation") == parse()
    assert parse("--sizes").sizes == ()


def test_a_tilde_that_the_shell_left_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert parse("--out=~/x").out == Path("/home/me/x")
    assert parse("--out", "~x/a").out == Path("~x/a")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--alpha half", "argument --alpha: invalid float value: 'half'"),
        ("--alpha", "argument --alpha: expected one argument"),
        ("--sizes 24 x", "argument --input-size-lis/--sizes: invalid int value: 'x'"),
        ("--nothing 1", "unrecognized arguments: --nothing 1"),
        ("--input 1 2", "unrecognized arguments: --input 1 2"),  # nothing is abbreviated
        ("--seed 0 1", "unrecognized arguments: 1"),
    ],
)
def test_what_does_not_parse_is_a_user_error_that_names_help(words, message):
    with pytest.raises(UserError) as caught:
        parse(*words.split())
    assert str(caught.value) == f"{message}; `python -m recover.recover --help` explains every flag"


def test_help_shows_defaults_groups_and_choices(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse("--help")
    assert stopped.value.code == 0
    output = capsys.readouterr().out
    for text in ("a share (default: 1.0)", "\nmethod:\n", "{Patches,Gaussian}", "the same as online", "A stage."):
        assert text in output


# Ranges and choices


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset_name": None}, "--dataset-name is missing: one of utils/data/table.py, or one of your own"),
        ({"out": None}, "--out is missing: where it goes"),
        ({"tests": ()}, "--tests is missing: some numbers"),
        ({"alpha": 1.5}, "--alpha 1.5: it must be from 0 to 1"),
        ({"alpha": -0.5}, "--alpha -0.5: it must be from 0 to 1"),
        ({"alpha": float("nan")}, "--alpha nan: it must be from 0 to 1"),
        ({"rate": 0.0}, "--lr 0.0: it must be from 1e-12 to 10"),
        ({"rate": float("inf")}, "--lr inf: it must be from 1e-12 to 10"),
        ({"sizes": (32, 0)}, "--input-size-lis 0: it must be from 1 to 4,096"),
        ({"start": "zeros"}, "--start zeros: there are Patches Gaussian"),
        ({"device": "tpu"}, "--device tpu: there are auto cpu cuda mps"),
        ({"seed": -1}, "--seed -1: it must be from 0 to 9,223,372,036,854,775,807"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(UserError) as caught:
        check(replace(parse(), **changes))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("stage", "flag"), [("relabel", "--model-choice"), ("recover", "--teacher-model-list"), ("validate", "--seed")]
)
def test_what_has_to_be_given_needs_a_word(stage, flag):
    """A flag that takes several words may have none, which is as good as none given."""
    places = {
        "relabel": "--syn-data-path a --fkd-path b --model-pool-dir c",
        "recover": "--syn-data-path a --exp-name b --model-pool-dir c",
        "validate": "--original-data-path a --fkd-path b --val-dir c --output-dir d --exp-name e --model ResNet18",
    }
    with pytest.raises(UserError, match=f"^{flag} is missing: "):
        recipes.parse(stage, ["--dataset-name", "cifar100", *places[stage].split(), flag])


def test_the_ends_of_a_range_are_in_it():
    for changes in (
        {"alpha": 0.0},
        {"alpha": 1.0},
        {"rate": 10.0},
        {"pool": None},
        {"seed": 2**63 - 1},
        {"sizes": (1,)},
    ):
        check(replace(parse(), **changes))


# Identity


def test_the_identity_has_what_shapes_the_result_by_the_first_flags_name():
    always = {"seed": 0, "alpha": 1.0, "lr": 0.1, "apply_data_augmentation": False}
    assert identity_of(parse()) == always
    given = parse("--names", "a", "b", "--young", "2", "--device", "cpu", "--dry-run", "--sizes", "32")
    assert identity_of(given) == always | {"names": ["a", "b"], "young": 2}


# The printed table


def test_a_setting_is_spelled_as_the_flag_that_gives_it():
    for name, value, words in (
        ("alpha", 0.5, ["--alpha", "0.5"]),
        ("sizes", (24, 32), ["--input-size-lis", "24", "32"]),
        ("names", (), ["--names"]),
        ("augment", True, ["--apply-data-augmentation"]),
        ("augment", False, ["--no-apply-data-augmentation"]),
        ("out", Path("a b"), ["--out", "a b"]),
    ):
        assert spell(BY_NAME[name], value) == words


def test_the_table_shows_what_is_not_at_its_default_by_group(capsys):
    show("recover", parse("--seed", "3", "--sizes", "24", "32", "--apply-data-augmentation"))
    assert capsys.readouterr().out == (
        "recover: settings\n"
        "  run       --dataset-name cifar100   --seed 3\n"
        "  files     --out here\n"
        "  method    --input-size-lis 24 32   --apply-data-augmentation\n"
    )


def copied(text):
    """The words of a printed table without its title and headings."""
    lines = text.splitlines()[1:]
    return [word for line in lines for word in shlex.split(line[12:])]


def test_printed_settings_are_flags_to_copy(capsys):
    names = [f"name number {index}" for index in range(20)]
    given = parse("--alpha", "0.25", "--online", "--start", "Patches", "--sizes", *map(str, range(1, 60)))
    given = replace(given, out=Path("a b"), names=tuple(names))
    show("recover", given)
    output = capsys.readouterr().out
    lines = output.splitlines()
    assert lines[0] == "recover: settings" and all(line.startswith("  ") for line in lines[1:])
    assert "None" not in output
    assert Settings(**{**vars(parse()), **vars(parse(*copied(output)))}) == given


def test_lines_of_the_table_are_no_wider_than_a_flag_needs(capsys):
    show(
        "recover", replace(parse("--alpha", "0.5", "--lr", "0.5", "--online", "--start", "Patches"), out=Path("x" * 70))
    )
    assert max(map(len, capsys.readouterr().out.splitlines())) <= WIDTH


# Recipes


def parse_recover(*words):
    places = ("--syn-data-path", "a", "--exp-name", "b", "--model-pool-dir", "c", "--patch-dir", "d")
    return recipes.parse("recover", [*words, *places])


def test_a_recipe_gives_defaults_and_flags_win_wherever_they_stand():
    recipe = recipes.recipe_of(get_dataset("cifar100"), "fadrm", 1).recover
    words = ["--alpha", "0.9", "--recipe", "fadrm", "--dataset-name", "cifar100", "--ipc", "1"]
    for given in (words, words[2:] + words[:2]):
        settings = parse_recover(*given)
        assert settings.alpha == 0.9 != recipe.alpha
        assert settings.budgets == recipe.budgets == (500,) * 4
        assert settings.augment is True
        assert settings.recipe == "fadrm"


def test_without_a_recipe_nothing_changes():
    settings = parse_recover("--dataset-name", "cifar100", "--ipc", "1")
    assert (settings.alpha, settings.budgets, settings.recipe) == (1.0, (1000,), None)


@pytest.mark.parametrize("words", ["--recipe fadrm --dataset-name cifar100", "--recipe fadrm --ipc 1"])
def test_a_recipe_needs_dataset_and_ipc(words):
    with pytest.raises(UserError, match="--recipe needs --dataset-name and --ipc beside it"):
        recipes.parse("recover", words.split())


def test_seed_and_device_are_everywhere():
    for stage in recipes.STAGES.values():
        assert {"seed", "device", "dry_run"} <= {field.name for field in fields(stage.settings)}
    assert shape_of(ValidateSettings, next(f for f in fields(ValidateSettings) if f.name == "seed")) == (int, True)
    assert shape_of(RecoverSettings, next(f for f in fields(RecoverSettings) if f.name == "seed")) == (int, False)


# Flags of the published scripts

OLD = {"--gpu": "there is one", "-j": "no workers", "--mode": "always"}


@pytest.mark.parametrize("words", ["--gpu 0", "--gpu", "--gpu 0 1 2", "-j 4"])
def test_flags_without_effect_say_so_and_leave_no_trace(capsys, words):
    assert parse(*words.split(), ignored=OLD) == parse()
    flag = words.split()[0]
    assert capsys.readouterr().out == f"note: {flag} has no effect here: {OLD[flag]}\n"


def test_flags_without_effect_are_not_in_help():
    text = parser_of(Settings, "recover.recover", "", OLD).format_help()
    assert "--gpu" not in text and "--world-size" not in text and "--alpha" in text


@pytest.mark.parametrize(
    "flag", ["--world-size 2", "--rank 0", "--dist-url tcp://x", "--dist-backend nccl", "--multiprocessing-distributed"]
)
def test_flags_of_the_old_launcher_name_torchrun(flag):
    with pytest.raises(UserError, match=f"{flag.split()[0]} is not used: start several processes with torchrun"):
        parse(*flag.split())
