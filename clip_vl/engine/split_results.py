"""The results of one split in a folder, and what they are about: a result is not replaced by another one's.

    results = SplitResults("snap/vqa/first", "minival", samples=4784, checkpoint=path, data=[path], settings={...})
    ...                                     # predictions and scores are written
    results.finish()                        # about_minival.json
"""

import hashlib
import json
from pathlib import Path

from clip_vl.engine.errors import UserError
from clip_vl.engine.files import atomic_json
from clip_vl.engine.readers.json_files import parse_json, read_bounded, read_object

WORDS = {"samples": "{} samples", "checkpoint": "the checkpoint {:.12}...", "data": "the annotations {:.12}...",
         "settings": "the settings {:.12}..."}  # fmt: skip


class SplitResults:
    """folder, split: where, and of what;  samples: how many;  checkpoint: its file;  data: the annotation files

    settings:  JSON values that change a score, such as image sizes
    overwrite: replace whatever is there
    raises:    UserError where the folder holds results of the split that are about something else
    """

    def __init__(self, folder, split, *, samples, checkpoint, data, settings, overwrite=False):
        self.folder, self.split = Path(folder), split
        said = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
        self.about = {"samples": samples, "checkpoint": _digest([checkpoint]), "data": _digest(data), "settings": said}
        before = None if overwrite else self._before()
        for name, text in WORDS.items():
            if before and name in before and before[name] != self.about[name]:
                raise UserError(
                    f"{self.folder} holds results of {split} for {text.format(before[name])}, and these would be for "
                    f"{text.format(self.about[name])}: choose another --output, or pass --overwrite to replace them"
                )

    def write_predictions(self, rows, what="answers"):
        """<split>_predict.json, the submission format: `rows`, a list of JSON objects."""
        self.folder.mkdir(parents=True, exist_ok=True)
        atomic_json(self.folder / f"{self.split}_predict.json", rows)
        print(f"{len(rows)} {what}: {self.folder / self.split}_predict.json")

    def write_score(self, report, what="questions", **names):
        """result_<split>.json from `names` (program, task, checkpoint) and a report, whose accuracy is printed."""
        head = {"program": names["program"], "task": names["task"], "split": self.split}
        atomic_json(self.folder / f"result_{self.split}.json", head | {"checkpoint": names["checkpoint"]} | report)
        print(f"{self.split}: {report['accuracy'] / 100:.4f} over {report['accuracy_n']} {what}")

    def finish(self):
        """Note what the results are about, once they are written."""
        atomic_json(self.folder / f"about_{self.split}.json", self.about)

    def _before(self):
        """What is noted, or at least the number of the predictions that are there; None without results."""
        noted = read_object(self.folder / f"about_{self.split}.json")
        if noted is not None:
            return noted
        if (table := read_bounded(self.folder / f"{self.split}_predict.csv")) is not None:
            return {"samples": table.count(b"\n")}
        rows = read_bounded(self.folder / f"{self.split}_predict.json")
        try:
            return None if rows is None else {"samples": len(parse_json(rows))}
        except (ValueError, TypeError):
            return None


def _digest(paths):
    digest = hashlib.sha256()
    for path in paths:
        with Path(path).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
