"""A folder with a subfolder for each class, in a folder for each split, as a classification set."""

from clip_vl.datasets.captions.folders import class_names, read_class_folders, warn_of_order
from clip_vl.datasets.classes.class_set import ClassSet, FolderReader
from clip_vl.datasets.images.files import is_hidden
from clip_vl.engine.errors import UserError


def open_class_folder(folder, split, metric, classnames=None):
    """The images of a split of a folder; classnames: file whose names follow the order of the class folders."""
    if not folder.is_dir():
        raise UserError(
            f"--dataset {folder} is neither a folder, a .csv or .tsv file, elevater:NAME nor torchvision:NAME"
        )
    root = folder / split
    if not root.is_dir():
        found = sorted(path.name for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))
        raise UserError(f"{folder} has no folder {split!r} for the split; it has {', '.join(found[:8]) or 'none'} "
                        "('.' stands for the folder itself)")  # fmt: skip
    classes = read_class_folders(root)
    ids = [f"{name}/{image}" for name, found in classes.items() for image in found]
    labels = [label for label, found in enumerate(classes.values()) for _ in found]
    names, reader = class_names(root, list(classes)), FolderReader(root)
    if classnames and names == [name.replace("_", " ") for name in classes]:
        warn_of_order(classnames, list(classes))
    return ClassSet(f"{folder} {split}", ids, reader, labels, names, reader.content(ids), metric)
