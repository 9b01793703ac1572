"""Convert checkpoints to the forms of other libraries and back, and the region features of a detector to stores.

    python -m clip_vl.convert snap/pretrain/NAME/Epoch09_LXRT.pth model.safetensors     plain names, no pickle
    python -m clip_vl.convert model.safetensors Epoch09_LXRT.pth                        back to the published form
    python -m clip_vl.convert Epoch09_LXRT.pth bert/ --bert data/bert-base-uncased      transformers' BERT, text only
    python -m clip_vl.convert Epoch20_LXRT.pth lxmert/ --bert data/bert-base-uncased    transformers' LXMERT
    python -m clip_vl.convert lxmert/ Epoch20_LXRT.pth                                  back from such a folder
    python -m clip_vl.convert train2014_obj36.tsv data/features/obj36.lmdb              regions of LXMERT or VL-T5
    python -m clip_vl.convert snap/align/NAME/epoch_32.pt open_clip.pt                  a dual encoder for open_clip
    python -m clip_vl.convert snap/align/NAME/epoch_32.pt clip/                         transformers' CLIP, with a card
    python -m clip_vl.convert clip/ ours.pt                                             back from clip/ or open_clip.pt

The suffix of the target selects the form. A target without a suffix is a folder: BERT's, or LXMERT's for two streams
over regions with boxes. Each form can be loaded: .pth and .safetensors with --load, a BERT folder with --bert.

Pooled vectors: transformers' BERT applies a tanh after the pooler, which the one-stream encoder does not have, so that
only hidden states and MLM logits are equal. transformers' LXMERT gives equal pooled vectors; a model of
regions trained with --no-pooler_tanh is not converted to it.

Region features (.tsv, .h5, .lmdb) become a store of float16 features (.lmdb, .h5) for --features. More files can be
added to a store, and an interrupted conversion is continued by the same command. --instances
official/instances_train2014.json labels boxes with COCO's categories, which --taskObjPredict needs where the detector
recorded no object classes.
"""

from dataclasses import asdict, dataclass

from clip_vl.flags.parser import flag, parse


@dataclass
class ConvertFlags:
    """Conversion"""

    source: str = flag(
        "", "Checkpoint (.pth, .safetensors, .pt), transformers folder, or file of region features.", positional=True
    )
    target: str = flag(
        "", "File or folder to write, which must not exist, or a store of region features.", positional=True
    )
    bert: str = flag("data/bert-base-uncased", "BERT folder whose config.json and vocab.txt a target folder receives.")
    instances: str | None = flag(
        None, "COCO instances files, separated by commas, whose categories label the boxes of region features."
    )


FLAGS = parse(ConvertFlags, __doc__) if __name__ == "__main__" else None

import sys
from pathlib import Path

from clip_vl.engine.checkpoint import write_plain
from clip_vl.engine.dist import run_program
from clip_vl.engine.errors import UserError
from clip_vl.engine.files import atomic_file
from clip_vl.engine.readers.json_files import read_object
from clip_vl.models.loading.settings import as_record, assumed, read_settings
from clip_vl.models.loading.state_dicts import is_archive, read_state_dict

STORES = (".lmdb", ".h5", ".hdf5")


def read_source(path):
    """The state dict of a file, or of a transformers folder under the names of this repository."""
    if not path.is_dir():
        return read_state_dict(path)
    file = next((path / name for name in ("model.safetensors", "pytorch_model.bin") if (path / name).is_file()), None)
    if file is None:
        raise UserError(f"{path} holds neither model.safetensors nor pytorch_model.bin; is it a transformers folder?")
    state = read_state_dict(file)
    if any(name.startswith("vision_model.") for name in state):
        from clip_vl.models.loading.clip_exchange import from_transformers

        return from_transformers(state)
    from clip_vl.models.fused.exchange import from_transformers_bert

    return from_transformers_bert(state)


def settings_of(source):
    """The settings that a file or a folder was written with; of a transformers folder, what its configurations say."""
    if not source.is_dir():
        values = read_settings(source).values
        return values | {"quick_gelu": [1, 1]} if is_archive(source) else values
    if (source / "model.safetensors").is_file() and (found := read_settings(source / "model.safetensors")).found:
        return found.values
    config, processor = (read_object(source / name) or {} for name in ("config.json", "preprocessor_config.json"))
    if config.get("model_type") != "clip":
        return {}
    parts = [config.get(f"{part}_config") for part in ("vision", "text")]
    quick = [int(not isinstance(p, dict) or p.get("hidden_act", "quick_gelu") == "quick_gelu") for p in parts]
    if not processor:
        return {"quick_gelu": quick}
    from clip_vl.models.loading.processor import pixels_of_processor

    return {"quick_gelu": quick, "pixels": asdict(pixels_of_processor(processor))}


def write_regions(source, target, instances):
    """Add the regions of a file to the store `target`; instances: COCO files whose categories label the boxes."""
    from tqdm import tqdm

    from clip_vl.datasets.features.regions import convert_regions
    from clip_vl.datasets.official.coco import BoxLabels

    relabel = [BoxLabels(instances)] if instances else []
    with tqdm(unit="image", disable=not sys.stderr.isatty()) as bar:
        count = convert_regions(source, target, bar.update, *relabel)
    print(f"{target}: the regions of {count:,} images added")
    for labels in relabel:
        print(f"boxes of {labels.relabelled:,} images labelled; {labels.kept:,} images are not listed and stay")


def write_dual(source, target):
    """Write a trained dual encoder for open_clip or transformers."""
    from clip_vl.models.loading.export import write_clip
    from clip_vl.reports.page import score_groups

    if target.suffix not in (".pt", ""):
        raise UserError(f"a dual encoder becomes a .pt for open_clip or a folder for transformers, not {target.suffix}")
    result = read_object(Path(source).parent / "result.json") or {}
    scores = [row for group in score_groups(result) for row in group["rows"]]
    write_clip(source, target, result.get("split", ""), scores)


def write_loadable(source, state, target, settings):
    """Write CLIP weights under open_clip's names as a .pt of this repository, for --load."""
    from clip_vl.models.loading.clip_exchange import from_openclip

    if target.suffix != ".pt":
        raise UserError(f"CLIP's weights become a .pt for --load, not {target}")
    if "quick_gelu" not in settings:
        print(assumed(source, {"activation": "gelu"}))
    quick = settings.get("quick_gelu", [0, 0])
    with atomic_file(target) as file:
        write_plain(file, {"state_dict": from_openclip(state, quick)}, as_record(settings))


def main(args):
    if not (args.source and args.target):
        raise UserError("name a source and a target, such as Epoch09_LXRT.pth model.safetensors")
    source, target = Path(args.source), Path(args.target)
    if target.suffix in STORES:
        return write_regions(source, target, args.instances.split(",") if args.instances else [])
    if args.instances:
        raise UserError("--instances labels the boxes of regions, whose target ends in .lmdb or .h5")
    if target.exists():
        raise UserError(f"{target} exists already; remove it or choose another target")
    state, settings = read_source(source), settings_of(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    if any(name.startswith("image_tower.") for name in state):
        write_dual(source, target)
    elif any(name.startswith("visual.") for name in state):
        write_loadable(source, state, target, settings)
    else:
        from clip_vl.models.fused.exchange import write_fused

        write_fused(state, target, args.bert, settings)
    print(f"{target}: {len(state)} tensors read")


if __name__ == "__main__":
    run_program(main, FLAGS)
