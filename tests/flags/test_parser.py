"""Command lines: published spellings, prefixes, booleans, and mistakes that are explained."""

from dataclasses import dataclass

import pytest

from clip_vl.flags.parser import flag, parse


@dataclass
class Args:
    """Toy flags"""

    epochs: int = flag(10, "Passes over the data.")
    batch_size: int = flag(256, "Samples per process, 100 % of them.", "--batchSize")
    valid: str = flag("minival", "Split.")
    use_clip: bool = flag(False, "CLIP backbone.")
    bf16: bool | None = flag(None, "bfloat16.")
    names: list[str] = flag([], "Several.", positional=True)
    tqdm: bool = flag(False, "Bar.", dead="bars are always on")


def fails_with(capsys, *argv):
    with pytest.raises(SystemExit) as stop:
        parse(Args, "doc", argv)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_every_spelling_reaches_the_same_field():
    for spelling in ("--batchSize", "--batch_size", "--batchS", "--batch"):
        assert parse(Args, "doc", [spelling, "8"]).batch_size == 8
    assert parse(Args, "doc", ["--batchSize=8"]).batch_size == 8


def test_dashes_and_underscores_are_the_same():
    assert parse(Args, "doc", ["--batch-size", "8", "--no-use-clip"]).batch_size == 8
    assert parse(Args, "doc", ["--batch-s=8"]).batch_size == 8
    assert parse(Args, "doc", ["--use-clip", "--use-cl"]).use_clip is True


def test_defaults_empty_strings_and_positionals():
    args = parse(Args, "doc", ["--valid", "", "a", "b"])
    assert (args.epochs, args.valid, args.names, args.bf16) == (10, "", ["a", "b"], None)


def test_booleans_have_a_negative_form():
    assert parse(Args, "doc", ["--use_clip"]).use_clip is True
    assert parse(Args, "doc", ["--use_clip", "--no-use_clip"]).use_clip is False
    assert parse(Args, "doc", ["--no-bf16"]).bf16 is False


def test_the_last_value_wins():
    assert parse(Args, "doc", ["--epochs", "3", "--epoch", "5"]).epochs == 5


def test_an_unknown_flag_suggests_the_nearest(capsys):
    assert "unknown flag --bachSize; did you mean --batchSize?" in fails_with(capsys, "--bachSize", "3")


def test_a_wrong_value_names_the_flag(capsys):
    assert "--epochs" in fails_with(capsys, "--epochs", "three")


def test_a_dead_flag_warns_once(capsys):
    assert parse(Args, "doc", ["--tqdm"]).tqdm is True
    assert capsys.readouterr().err.count("--tqdm has no effect") == 1


def test_help_opens_with_the_docstring_and_lists_defaults(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(Args, "The story.", ["--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0 and "The story." in out and "[256]" in out and "Toy flags" in out
