"""Command lines: published spellings, prefixes, booleans, and mistakes that are explained."""

from dataclasses import dataclass

import pytest

from clip_vl.flags.parser import flag, parse
from clip_vl.flags.published import Ignored


@dataclass
class Args:
    """Toy flags"""

    epochs: int = flag(10, "Passes over the data.")
    batch_size: int = flag(256, "Samples per process, 100 % of them.", "--batchSize", at_least=1)
    valid: str = flag("minival", "Split.")
    use_clip: bool = flag(False, "CLIP backbone.")
    bf16: bool | None = flag(None, "bfloat16.")
    names: list[str] = flag([], "Several.", positional=True)
    tower: str = flag("clip", "Library.", choices=["clip", "OpenCLIP", "timm"])

    IGNORED = {
        "--bars": Ignored("bars are always on"),
        "--nodes": Ignored("torchrun decides", 1),
        "--pad": Ignored("images are always padded", warns=False),
    }


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


def test_a_choice_takes_any_case_and_suggests_the_nearest(capsys):
    assert parse(Args, "doc", ["--tower", "openclip"]).tower == "OpenCLIP"
    assert "opencilp is not one of clip, OpenCLIP, timm; did you mean OpenCLIP?" in fails_with(
        capsys, "--tower", "opencilp"
    )


def test_a_number_below_the_least_is_refused(capsys):
    assert "--batch_size is 0; it must be at least 1" in fails_with(capsys, "--batchSize", "0")


def test_what_is_required_comes_first_in_the_help_and_cannot_be_left_out(capsys):
    @dataclass
    class Training(Args):
        """Training"""

        data: str | None = flag(None, "Table of the training data.", required=True)

    with pytest.raises(SystemExit) as stop:
        parse(Training, "python -m clip_vl.toy", [])
    assert stop.value.code == 2 and "--data is needed: Table of the training data." in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse(Training, "python -m clip_vl.toy", ["--help"])
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "usage: python -m clip_vl.toy --data DATA [NAMES ...] [flags]"
    assert out.index("--data DATA") < out.index("Table of") < out.index("Toy flags")


def test_a_published_flag_without_effect_is_taken_with_its_values_and_warns_once(capsys):
    args = parse(Args, "doc", ["--bars", "--nodes", "4", "--bars", "--pad", "a"])
    said = capsys.readouterr().err
    assert args.names == ["a"] and "bars" not in vars(args)
    assert said.count("--bars has no effect: bars are always on") == 1 and said.count("--nodes") == 1
    assert "--pad" not in said  # the run does what it asks for
    parse(Args, "doc", ["--no-pad"])
    assert "--no-pad has no effect: images are always padded" in capsys.readouterr().err


def test_published_flags_without_effect_have_a_help_of_their_own(capsys):
    for flag_of_help, there in (("--help", False), ("--help_published", True)):
        with pytest.raises(SystemExit) as stop:
            parse(Args, "doc", [flag_of_help])
        out = capsys.readouterr().out
        assert stop.value.code == 0 and ("--nodes VALUE" in out and "torchrun decides" in out) == there
        assert ("--nodes" in out) == there


def test_help_opens_with_the_docstring_and_lists_defaults(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(Args, "The story.", ["--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0 and "The story." in out and "[256]" in out and "Toy flags" in out


def test_a_flag_that_became_a_program_starts_it_with_the_same_command_line(monkeypatch, capsys):
    """The published trainer's --add-projection-head: align becomes protoclip."""
    from clip_vl.align import AlignFlags

    class Replaced(Exception):
        pass

    def execv(path, argv):
        raise Replaced(argv)

    monkeypatch.setattr("os.execv", execv)
    monkeypatch.setattr("sys.argv", ["align.py", "--k", "4", "--add-projection-head"])
    with pytest.raises(Replaced) as replaced:
        parse(AlignFlags, "doc")
    assert replaced.value.args[0][1:] == ["-m", "clip_vl.protoclip", "--k", "4", "--add-projection-head"]
    with pytest.raises(SystemExit):
        parse(AlignFlags, "doc", ["--add_projection_head"])
    assert "python -m clip_vl.protoclip takes the same flags" in capsys.readouterr().err
