"""Prompts: class names in prompt templates."""

import hashlib
import json
import re

from clip_vl.datasets.classes.names import read_list
from clip_vl.engine import dist
from clip_vl.engine.errors import DataError

ODD_NAMES = {"WordNet ids": r"n\d{8}", "bare numbers": r"[-+]?\d+(\.\d+)?"}
TEMPLATES = (
    "a photo of a {}.",
    "a picture of the {}.",
    "a close view of a {}.",
    "a {} seen from far away.",
    "a dark photo of a {}.",
    "a bright photo of the {}.",
    "a drawing of a {}.",
    "an image that shows a {}.",
)


def read_templates(path, key):
    """Prompt templates, with {} for the class name; files may write {c}. Without a path our own."""
    if path is None:
        return list(TEMPLATES)
    templates = [template.replace("{c}", "{}") for template in read_list(path, key, "templates")]
    for template in templates:
        if "{}" not in template:
            raise DataError(
                f"{path}: the template {template!r:.60} has neither {{}} nor {{c}} for the name of the class"
            )
    return templates


class Prompts:
    """Text c * T + t is template t, of T, with the name of class c."""

    def __init__(self, class_names, templates):
        warn_of_names(class_names)
        self.class_names, self.templates = class_names, templates
        self.digest = hashlib.sha256(json.dumps([class_names, templates]).encode()).hexdigest()

    def __len__(self):
        return len(self.class_names) * len(self.templates)

    def text(self, number):
        label, template = divmod(number, len(self.templates))
        return self.templates[template].replace("{}", self.class_names[label])


def warn_of_names(names):
    """Warn of class names in prompts that are no words."""
    for what, form in ODD_NAMES.items():
        found = [name for name in names if re.fullmatch(form, name, re.ASCII)]
        if found:
            dist.print0(f"warning: {len(found):,} of {len(names):,} class names in the prompts are {what}, such as "
                        f"{found[0]!r}; classnames.txt or --classnames gives them words")  # fmt: skip
