"""Zero-shot classification with a dual encoder: each image goes to the class whose prompts are nearest.

    python -m clip_vl.zero_shot --dataset data/shapes_pairs --load snap/align/N/epoch_2.pt --output snap/zero_shot/N
    python -m clip_vl.zero_shot --dataset torchvision:CIFAR10 --datasets_dir data/torchvision --image_model ViT-B-32 \
        --text_model ViT-B-32 --pretrained_image_model --pretrained_text_model --output snap/zero_shot/cifar10 \
        --templates en_zeroshot_classification_templates.json
    bash scripts/zero_shot.bash 0,1 NAME 9590 2 --dataset elevater:dtd --load ...              two GPUs

Each prompt is a template with the name of a class in it; the class's weight vector is the mean of its prompts, each
normalised first as OpenAI does it (CLIP, arXiv:2103.00020). Writes samples.jsonl, result.json and report.html with the
confusion matrix. The same command resumes an interrupted run; features are encoded once per dataset and model.
"""

from dataclasses import dataclass

from clip_vl.flags.classes import ClassSetFlags
from clip_vl.flags.dual import ImageTowerFlags, SharedTowerFlags, TextTowerFlags, recalled
from clip_vl.flags.evaluation import EvaluationFlags
from clip_vl.flags.parser import flag, parse


@dataclass
class ZeroShotFlags(EvaluationFlags, ClassSetFlags, ImageTowerFlags, TextTowerFlags, SharedTowerFlags):
    """Zero-shot classification"""

    templates: str | None = flag(
        None, "Prompt templates, with {} or {c} for the class name: a text file with one per line, or JSON such as "
              "CLIP_benchmark's en_zeroshot_classification_templates.json [eight of our own].",
    )  # fmt: skip
    normalise_prompts: bool = flag(
        True, "Normalise the features of the prompts of a class before their mean; some published code does not."
    )
    map11: str = flag(
        "voc", "Definition of mAP11: PASCAL VOC 2007's, or ELEVATER's, whose precision at recall 0 is 1.",
        choices=["voc", "elevater"],
    )  # fmt: skip
    gallery: int = flag(24, "Images shown in the report.")


FLAGS = parse(ZeroShotFlags, __doc__) if __name__ == "__main__" else None  # before torch: --help answers at once

from clip_vl.datasets.classes.prompts import Prompts, read_templates
from clip_vl.datasets.classes.sets import open_class_set
from clip_vl.encoding.classes import image_features, prompt_features
from clip_vl.engine import dist
from clip_vl.engine.evaluation_run import EvaluationRun
from clip_vl.evaluation.class_scores import class_scores, top_ties
from clip_vl.evaluation.zero_shot import class_probabilities, class_weights
from clip_vl.models.dual.sides import open_sides
from clip_vl.reports.classes import class_gallery, sample_rows
from clip_vl.reports.page import write_report


def main(args):
    device = dist.setup()
    args = recalled(args)
    run = EvaluationRun("zero_shot", args.run(), device, write_report)
    source, encoder = args.class_source(), args.encoder(device)
    images = open_class_set(source, args.test_split)
    prompts = Prompts(images.class_names, read_templates(args.templates, source.benchmark_key))
    image_side, text_side = open_sides(args.towers(), device)
    towers = [image_side.digest, image_side.head_digest, text_side.digest]
    if run.begin({"images": images.digest, "prompts": prompts.digest, "towers": towers}):
        return dist.print0(f"{args.output} holds this evaluation already; --overwrite repeats it")

    features = image_side.project(image_features(images, image_side, encoder, args.image_crop, run.stop))
    texts = prompt_features(prompts, text_side, encoder, args.max_seq_length, run.stop)
    C, T = len(images.class_names), len(prompts.templates)
    weights = class_weights(texts.view(C, T, -1), args.normalise_prompts)
    scores = class_probabilities(features, weights).numpy()
    found = class_scores(scores, images.labels, images.metric, args.seed, map11=args.map11)
    protocol = {"metric": images.metric, "classes": C, "templates": T, "ties": top_ties(scores),
                "prompts": "each normalised, then their mean" if args.normalise_prompts else "mean, then normalised",
                "names_from": args.classnames or "data set", "templates_from": args.templates or "clip_vl"}  # fmt: skip
    protocol |= {"map11": args.map11} if images.multi_label else {}
    result = {"task": "zero_shot", "dataset": args.dataset, "split": args.test_split, "checkpoint": args.load, **found,
              "protocol": protocol}  # fmt: skip
    gallery = class_gallery(images, scores, args.gallery, args.seed) if dist.rank() == 0 else None
    run.finish(sample_rows(images, scores), result, gallery)
    dist.print0(f"{images.title}: {images.metric} {found[images.metric]:.2f} of {len(images):,} images")


if __name__ == "__main__":
    dist.run_program(main, FLAGS)
