"""The flags that the programs of the fused encoder share: every published one, and ours beside them.

A flag is found by the part that reads it; a program derives its own dataclass, which may change a default. Published
spellings stay valid as aliases. This file imports no torch, so that `--help` answers at once.
"""

from dataclasses import asdict, dataclass

from clip_vl.flags.parser import flag, given, values_of
from clip_vl.flags.published import CLIP_VIL
from clip_vl.flags.run import RunFlags

SETTINGS = ("image_size_min", "image_size_max", "dynamic_padding", "mask_padding", "max_length", "input_raw_images",
            "region_dim", "drop_boxes", "use_max_pooling", "pooler_tanh", "question_only", "dataset")  # fmt: skip
TOWER_SETTINGS = ("clip_model_name", "clip_weights", "data_root", "random_init")  # of one that was trained from features


@dataclass
class FusedRunFlags(RunFlags):
    """Run folder and processes"""

    output: str = flag("snap/test", "Run folder: settings, log, checkpoints, result and report.")
    save_step: int = flag(
        -1, "Updates between extra checkpoints under the published name Epoch{E}Step{U}; -1 for none."
    )
    max_train_samples: int | None = flag(None, "Train on the first N samples only.")
    max_eval_samples: int | None = flag(None, "Evaluate on the first N samples only.")


@dataclass
class DataFlags:
    """Data and images"""

    data_root: str = flag("data", "Folder with the images, annotations, vocabulary and weights (data/README.md).")
    train: str = flag("train", "Training splits, separated by commas.")
    valid: str = flag("valid", "Validation splits, separated by commas; '' for none.")
    batch_size: int = flag(256, "Samples per process and micro-batch.", "--batchSize")
    sentences_per_image: int = flag(1, "Sentences of one image that share a batch, and one pass of the visual tower.")
    image_size_min: int = flag(384, "Short side of an image after resizing, and of its canvas.")
    image_size_max: int = flag(640, "Long side of the canvas.")
    aspect_ratio_group_factor: int = flag(0, "Batches hold images of like shape: 2k+2 groups; 0 two; negative none.")
    dynamic_padding: bool = flag(False, "Pad to the largest image of the batch instead of the full canvas.")
    mask_padding: bool = flag(
        False, "Leave the cells outside the picture out of attention (published: attended like others)."
    )
    use_lmdb: bool = flag(False, "Read images from the LMDBs that `python -m clip_vl.prepare images` writes.")
    max_damaged: float = flag(
        0.001, "Share of missing or damaged training images that is tolerated; each one is named."
    )
    skip_bad: bool = flag(False, "Leave out annotation entries of the wrong form; their number is said.")
    limit_source: str = flag("", "Sentence categories to leave out, separated by commas.")
    max_length: int = flag(20, "Tokens of a sentence, [CLS] and [SEP] included.")
    input_raw_images: bool = flag(False, "Read images; without it a detector's regions, from --features.")
    features: str | None = flag(
        None,
        "Instead of pixels: stores of `python -m clip_vl.extract_features`; without --input_raw_images regions: LXMERT's "
        ".tsv, .h5 or .lmdb. Several separated by commas.",
    )
    region_dim: int = flag(2048, "Width of the region features.")
    drop_boxes: bool = flag(False, "Regions without their boxes.")


@dataclass
class EncoderFlags:
    """Encoder"""

    bert: str | None = flag(None, "Folder of the BERT-shaped text model [<data_root>/bert-base-uncased].")
    clip_model_name: str = flag(
        "RN50", "Visual tower: RN50, RN101, RN50x4, RN50x16, ViT-B/32, ViT-B/16, ViT-L/14, RN-tiny or RN-micro."
    )
    clip_weights: str | None = flag(
        None, "Weights of the visual tower: OpenAI, open_clip or safetensors [<data_root>/clip/<name>.pt]."
    )
    random_init: bool = flag(False, "Start from random weights instead of CLIP's and BERT's.")
    load: str | None = flag(None, "Stem of a checkpoint to start from, such as snap/pretrain/NAME/Epoch09.")
    load_lxmert: str | None = flag(
        None, "Stem of a pre-trained checkpoint whose encoder to start from.", "--loadLXMERT"
    )
    load_lxmert_qa: str | None = flag(None, "The same, and its answer head by answer text.", "--loadLXMERTQA")
    allow_partial: bool = flag(False, "Load what fits of a checkpoint and list the rest, instead of refusing it.")
    llayers: int = flag(9, "Layers of the single stream (--visualbert_style), or of the text stream.")
    xlayers: int = flag(5, "Cross layers of the two-stream encoder; none with --visualbert_style.")
    rlayers: int = flag(5, "Visual layers of the two-stream encoder; none with --visualbert_style.")
    visualbert_style: bool = flag(False, "One stream of text and image tokens; without it two, as in LXMERT.")
    pooler_tanh: bool | None = flag(
        None, "Tanh in the pooler [two streams of region features have it, as in LXMERT; a single stream and models with "
              "a CLIP tower do not, as in CLIP-ViL].",
    )  # fmt: skip
    use_positional_embedding: bool = flag(False, "Learned row and column positions added to the grid cells.")
    pos_num: int = flag(25, "Rows and columns that have a position.")
    use_max_pooling: bool = flag(False, "2x2 max pooling of the grid.")
    sub_sampling: bool = flag(False, "Keep random grid cells in training; all of them in evaluation.")
    sub_feat_num: int = flag(36, "Cells kept by --sub_sampling.")
    freeze_clip: bool = flag(False, "No gradients for the visual tower.")
    bn_mode: str = flag(
        "train",
        "BatchNorm of the visual tower: batch statistics (published), or CLIP's own.",
        choices=["train", "frozen"],
    )
    checkpoint_backbone: bool = flag(
        False, "Recompute the visual tower's activations in backward: less memory, more time."
    )
    from_scratch: bool = flag(
        False, "Published flag: random weights everywhere; the same as --random_init.", "--fromScratch"
    )


@dataclass
class OptimFlags:
    """Optimisation"""

    epochs: int = flag(10, "Passes over the training data that the schedules are laid out for.")
    stop_after_epoch: int | None = flag(None, "End after this epoch, on the schedule of --epochs.")
    start_epoch: int = flag(0, "Number of the first epoch, in file names and milestones.")
    lr: float = flag(1e-4, "Peak learning rate of the transformer.")
    warmup_ratio: float = flag(0.1, "Share of the updates with a rising learning rate.")
    weight_decay: float = flag(
        0.01, "Decoupled decay of the AdamWs, not on biases and LayerNorm weights, and of bert, on everything."
    )
    adam_epsilon: float = flag(1e-6, "Epsilon of the AdamWs and of bert.")
    max_grad_norm: float = flag(1.0, "Joint L2 norm to which the gradients of all optimizers are clipped.")
    gradient_accumulation_steps: int = flag(1, "Micro-batches per update.")
    use_separate_optimizer_for_visual: bool = flag(False, "SGD with its own schedule for the visual tower.")
    use_adam_for_visual: bool = flag(False, "AdamW (that of --optim) instead of SGD there.")
    sgd_lr: float = flag(0.001, "Learning rate of the visual optimizer.")
    sgd_momentum: float = flag(0.0, "Its momentum.")
    sgd_weight_decay: float = flag(0.0004, "Its weight decay, on everything.")
    schedule: str = flag("2,5", "Epochs at which the visual learning rate drops to a tenth, separated by commas.")
    optim: str = flag(
        "hf_adamw",
        "Optimizer: hf_adamw, CLIP-ViL's (AdamW of transformers 3.3); bert, LXMERT's (BertAdam without bias correction); "
        "adamw (torch's); these with linear warm-up and decay. adam, adamax, rms, sgd: torch's at a constant --lr.",
        choices=["hf_adamw", "bert", "adamw", "adam", "adamax", "rms", "sgd"],
    )
    bf16: bool | None = flag(None, "bfloat16 autocast [on where the device is fast at it].")
    fp16: bool = flag(False, "float16 autocast with a gradient scaler; on a CPU it means bfloat16.")
    compile: bool = flag(False, "torch.compile the visual tower and the transformer layers.")
    apex: bool = flag(False, "NVIDIA apex's fused Adam and layer norm, on GPUs where apex is installed; the run says which.")
    max_skipped: int = flag(50, "Updates with a non-finite loss or gradient after which the run stops.")
    reduce_counts: bool = flag(
        False, "Divide each loss by the number of targets over all processes, not by each one's own."
    )
    skip_training: bool = flag(False, "Published flag: stop each epoch after four micro-batches.")

    def optimizers(self):
        """These flags as `OptimSettings`."""
        from clip_vl.engine.errors import UserError
        from clip_vl.models.fused.optim import OptimSettings

        try:
            milestones = tuple(int(epoch) for epoch in self.schedule.split(",") if epoch)
        except ValueError:
            raise UserError(f"--schedule {self.schedule!r} is not a list of epochs such as 12,17") from None
        return values_of(
            self, OptimSettings, epsilon=self.adam_epsilon,
            visual=("adam" if self.use_adam_for_visual else "sgd") if self.use_separate_optimizer_for_visual else None,
            visual_lr=self.sgd_lr,
            visual_momentum=self.sgd_momentum,
            visual_weight_decay=self.sgd_weight_decay,
            milestones=milestones,
            first_epoch=self.start_epoch,
        )  # fmt: skip

    def steps(self):
        """The `StepSettings` of these flags."""
        from clip_vl.engine.optim import StepSettings

        epochs = {"first_epoch": self.start_epoch, "last_epoch": self.stop_after_epoch or self.epochs}
        return values_of(self, StepSettings, accumulate=self.gradient_accumulation_steps, **epochs)


@dataclass
class FusedEncoderFlags(FusedRunFlags, DataFlags, EncoderFlags, OptimFlags):
    """Fused encoder"""

    IGNORED = CLIP_VIL

    def split_results(self, samples, paths):
        """The `SplitResults` of --test: for this many samples, of these annotation files."""
        from clip_vl.engine.split_results import SplitResults
        from clip_vl.models.fused.checkpoints import checkpoint_path

        return SplitResults(
            self.output,
            self.test,
            samples=min(samples, self.max_eval_samples or samples),
            checkpoint=checkpoint_path(self.load, ".pth"),
            data=paths,
            settings=fused_settings(self, paths=False),
            overwrite=self.overwrite,
        )


def fused_settings(args, paths=True):
    """The settings that a checkpoint of a run with these flags holds: JSON values. paths: and where files are found"""
    from clip_vl.models.fused.settings import bert_folder, digest_of_bert

    folder = bert_folder(args.bert, args.data_root)
    names = (*SETTINGS, *TOWER_SETTINGS) if paths else SETTINGS
    values = {name: value for name, value in asdict(args).items() if name in names}
    return values | ({"bert": str(folder)} if paths else {}) | {"bert_digest": digest_of_bert(folder)}


def recall_flags(args):
    """Take what the command line leaves open from the settings of the checkpoint that the run starts from."""
    from clip_vl.models.fused.settings import recall_fused

    stem = args.load or args.load_lxmert_qa or args.load_lxmert
    if stem:
        suffix = ".pth" if args.load and hasattr(args, "test") else "_LXRT.pth"  # a task's own, or of pre-training
        names = SETTINGS if "clip_model_name" in given(args) else (*SETTINGS, "clip_model_name")
        for name, value in recall_fused(stem, suffix, asdict(args), given(args), names).items():
            setattr(args, name, value)


def check_fused_flags(args):
    """Take over a checkpoint's settings, and refuse what cannot work, in one sentence, before anything is built."""
    from clip_vl.engine.errors import UserError

    recall_flags(args)
    if not 0 <= args.warmup_ratio <= 1:
        raise UserError(f"--warmup_ratio {args.warmup_ratio:g} is a share of the updates, from 0 to 1, such as 0.1")
    if not args.visualbert_style and args.xlayers < 1:
        raise UserError("--xlayers 0 is one stream: pass --visualbert_style, or --xlayers 5 for two streams that meet")
    if not args.input_raw_images and not args.features:
        raise UserError(
            "no --input_raw_images means a detector's regions, and these need --features, such as train2014_obj36.tsv"
        )
    for name in ("use_lmdb", "dynamic_padding") if args.features else ():
        if getattr(args, name):
            raise UserError(f"--{name} is about pixels, but --features {args.features} stands in their place")
    for name in (
        ("sub_sampling", "use_positional_embedding", "use_max_pooling", "mask_padding")
        if not args.input_raw_images
        else ()
    ):
        if getattr(args, name):
            raise UserError(f"--{name} is about grid cells, but without --input_raw_images there are regions")
    if args.fp16 and args.bf16:
        raise UserError("--fp16 and --bf16 exclude each other; pass one of them")
    for name in ("batch_size", "epochs", "gradient_accumulation_steps", "report_step", "checkpoint_steps", "keep_last"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} is {getattr(args, name)}; it must be at least 1")
    if args.batch_size % args.sentences_per_image:
        raise UserError(
            f"--batch_size {args.batch_size} is not a multiple of --sentences_per_image {args.sentences_per_image}"
        )
    if args.image_size_min > args.image_size_max:
        raise UserError(f"--image_size_min {args.image_size_min} is larger than --image_size_max {args.image_size_max}")


def check_test_flags(args, program):
    """--test needs --load."""
    from clip_vl.engine.errors import UserError

    if args.test and not args.load:
        raise UserError(f"--test needs the fine-tuned model: pass --load, such as --load snap/{program}/NAME/BEST")
