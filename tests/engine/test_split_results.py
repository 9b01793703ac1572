"""Results of a split are not replaced by those of less, of other data or of another checkpoint."""

import json

import pytest

from clip_vl.engine.errors import UserError
from clip_vl.engine.run_folder import RunFolder
from clip_vl.engine.split_results import SplitResults


@pytest.fixture
def results(tmp_path):
    for name in ("BEST.pth", "other.pth", "minival.json"):
        (tmp_path / name).write_text(name)

    def of(samples=4784, checkpoint="BEST.pth", size=384, **more):
        files = {"checkpoint": tmp_path / checkpoint, "data": [tmp_path / "minival.json"]}
        return SplitResults(tmp_path, "minival", samples=samples, settings={"image_size_min": size}, **files, **more)

    return of


@pytest.mark.parametrize("other, sentence", [
    ({"samples": 300}, "for 4784 samples, and these would be for 300 samples: choose another --output, or pass"),
    ({"checkpoint": "other.pth"}, "for the checkpoint "),
    ({"size": 96}, "for the settings "),
])  # fmt: skip
def test_other_results_are_kept_unless_asked(results, tmp_path, other, sentence):
    results().finish()
    results()  # the same again
    with pytest.raises(UserError, match=sentence):
        results(**other)
    results(**other, overwrite=True).finish()
    with pytest.raises(UserError, match="holds results of minival"):
        results()


def test_a_run_that_starts_again_takes_them_with_it(tmp_path):
    (tmp_path / "args.json").write_text('{"program": "vqa"}')
    for name in ("about_minival.json", "result_minival.json", "minival_predict.json"):
        (tmp_path / name).write_text("{}")
    RunFolder(tmp_path, {}, "vqa", overwrite=True)
    assert not [path.name for path in tmp_path.iterdir() if "minival" in path.name]


def test_changed_annotations_are_other_data(results, tmp_path):
    results().finish()
    (tmp_path / "minival.json").write_text("changed")
    with pytest.raises(UserError, match="for the annotations"):
        results()


def test_predictions_of_an_older_version_are_counted(results, tmp_path):
    (tmp_path / "minival_predict.json").write_text(json.dumps([{}] * 4784))
    results()
    with pytest.raises(UserError, match="4784 samples, and these would be for 300"):
        results(samples=300)
