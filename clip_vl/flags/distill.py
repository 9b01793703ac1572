"""The flags of distillation: the student, its teacher and the losses between them."""

from dataclasses import dataclass

from clip_vl.flags.parser import flag


@dataclass
class StudentFlags:
    """Student"""

    bert: str = flag("cache/weights/bert-base-uncased", "Folder of a BERT model: configuration, vocabulary, weights.")
    data2vec2_ckpt: str | None = flag(None, "File of Data2Vec2's image encoder, base_imagenet.pt.")
    load: str | None = flag(None, "Checkpoint of a student to start from.", "--checkpoint")
    random_init: bool = flag(False, "Random weights of both encoders; a --data2vec2_ckpt is still read.")
    image_blocks: int = flag(6, "Blocks of the image encoder, from the first.")
    text_layers: int = flag(6, "Layers of the text encoder, from the first.")
    width: int = flag(768, "Width of the image encoder and the shared layer; --bert must have the same.")
    heads: int = flag(12, "Attention heads of the image encoder and the shared layer.")
    patch: int = flag(16, "Side of a patch in pixels.")
    image_resolution: int = flag(224, "Side of the images in pixels.")
    max_length: int = flag(64, "Tokens of a caption at most.")
    text_dropout: float = flag(0.0, "Dropout of the text encoder; the published run had none.")
    token_types: str = flag("after", "Where the modality's embedding is added: after or before the encoders, or off.",
                            choices=["after", "before", "off"])  # fmt: skip
    shared_layerscale: bool = flag(True, "The shared layer scales its residual branches.")
    init: str = flag("truncated", "Initial values of new linear layers: truncated, or normal as in the published run.",
                     choices=["truncated", "normal"])  # fmt: skip

    def student(self, targets):
        """The `StudentSpec` of these flags, with targets of this width."""
        from clip_vl.models.distill.build import text_config
        from clip_vl.models.distill.image_encoder import ImageEncoderSpec
        from clip_vl.models.distill.student import StudentSpec

        hidden = 4 * self.width
        image = ImageEncoderSpec(self.image_blocks, self.width, self.heads, hidden, self.patch, self.image_resolution)
        text = text_config(self.bert, self.text_layers, self.text_dropout)
        return StudentSpec(image, text, targets, self.token_types, self.shared_layerscale, self.init)


@dataclass
class TeacherFlags:
    """Teacher and losses"""

    teacher: str = flag("beitv2", "Image teacher; supervised is a timm classifier whose classes are the target.",
                        choices=["beitv2", "data2vec2", "dino", "supervised", "none"])  # fmt: skip
    teacher_ckpt: str | None = flag(None, "File of the teacher's weights.", "--beitv2_ckpt")
    teacher_name: str = flag("resnet50.a1_in1k", "timm model of a supervised teacher.")
    teacher_norm: bool | None = flag(None, "BEiTv2's final LayerNorm on the target [off with --kd bank, else on].")
    teacher_view: str = flag("same", "View of the image that the teacher sees; published runs: independent.",
                             choices=["same", "independent"])  # fmt: skip
    kd: str = flag("bank", "Distillation loss: bank, batch (no bank), mse, or none.",
                   choices=["bank", "batch", "mse", "none"])  # fmt: skip
    bank_size: int = flag(65536, "Targets in the bank.")
    bank_init: str = flag("empty", "First content of the bank: empty, or random noise as published.",
                          choices=["empty", "random"])  # fmt: skip
    bank_candidates: str = flag("global", "Batch targets that are candidates: of all processes, or local as published.",
                                choices=["global", "local"])  # fmt: skip
    mask_same_image: bool = flag(True, "Leave captions and targets of the same image out of the negatives.")
    learn_kd_temp: bool = flag(False, "Train the temperature of the distillation loss; published runs did not.")
    itc_layers: str = flag("both", "Outputs of the shared layer that image-text contrast aligns: both, or the final one.",
                           choices=["both", "final"])  # fmt: skip
    jitter: float = flag(0.4, "Strength of brightness, contrast and saturation jitter of training images.")
    hflip: bool = flag(True, "Flip training images at random; captions may name left and right.")

    def image_teacher(self):
        """The `TeacherSpec` of these flags."""
        from clip_vl.models.distill.teachers import TeacherSpec

        norm = self.kd != "bank" if self.teacher_norm is None else self.teacher_norm
        return TeacherSpec(self.teacher, self.teacher_ckpt or "", self.teacher_name, norm, self.image_resolution)


@dataclass
class UpdateFlags:
    """Updates"""

    warmup_ratio: float = flag(0.1, "Share of the updates with a rising learning rate.")
    max_grad_norm: float = flag(1e16, "Joint L2 norm to which gradients are clipped.")
    gradient_accumulation_steps: int = flag(1, "Micro-batches per update, each with its own negatives.")
    max_skipped: int = flag(50, "Updates with a non-finite loss or gradient after which the run stops.")
    bf16: bool | None = flag(None, "bfloat16 autocast [where the device is fast at it].")
    fp16: bool = flag(False, "float16 autocast with a gradient scaler, on a GPU.")

    def steps(self, batch_size, epochs):
        """The `StepSettings` of these flags."""
        from clip_vl.engine.optim import StepSettings

        return StepSettings(batch_size, last_epoch=epochs, accumulate=self.gradient_accumulation_steps, bf16=self.bf16,
                            fp16=self.fp16, max_grad_norm=self.max_grad_norm, max_skipped=self.max_skipped)  # fmt: skip
