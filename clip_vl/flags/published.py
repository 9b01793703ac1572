"""Flags of the published commands that have no effect here: how many values follow each, and why.

A group of flags names its table in `IGNORED`. The parser takes these flags with their values and warns of each once;
`--help_published` lists them. They are no fields: args.json does not record them.
"""

from typing import NamedTuple


class Ignored(NamedTuple):
    """reason: why it has no effect;  values: how many follow it;  warns: false where the run does what it asks for"""

    reason: str
    values: int = 0
    warns: bool = True


TORCHRUN = "torchrun's environment decides"
NEVER_READ = "the original code never read it"

CLIP_VIL = {
    "--distributed": Ignored(f"{TORCHRUN}; with it the original ran --optim hf_adamw whatever --optim said"),
    "--nodes": Ignored(f"{TORCHRUN}; set NNODES for the launch scripts", 1),
    "--local_rank": Ignored(TORCHRUN, 1),
    "--multi_gpu": Ignored("start one process per GPU with the launch scripts"),
    "--multiGPU": Ignored("start one process per GPU with the launch scripts"),
    "--fp16_opt_level": Ignored("PyTorch's autocast has no levels", 1),
    "--vqa_style_transform": Ignored("images are always resized, padded and normalised", warns=False),
    "--add_zero_padding": Ignored("images are always padded with black", warns=False),
    "--compress_data": Ignored("processes always share the annotations", warns=False),
    "--use_clip": Ignored("the visual tower is always CLIP's", warns=False),
    "--fast": Ignored("use --max_train_samples 5000"),
    "--tiny": Ignored("use --max_train_samples 500"),
    "--use_h5_file": Ignored("--features names the file, and the file's suffix its format"),
    "--pad_square": Ignored(NEVER_READ),
    "--separate_image": Ignored(NEVER_READ),
    "--vilt_style": Ignored("text inside the vision transformer ran the layers twice and is not offered"),
    "--use_vit": Ignored("the ImageNet ViT that it needs was never published"),
    "--reset_pos_embedding": Ignored("it concerns ViT grids; the original set the table to zero"),
    "--dropout": Ignored("config.json in the BERT folder decides", 1),
}  # fmt: skip

CLIP_VIL_VQA = {
    "--mce_loss": Ignored("it is a flag of gqa"),
    "--mceLoss": Ignored("it is a flag of gqa"),
}  # fmt: skip

ITRA = {
    "--save_most_recent": Ignored("each epoch ends with a resumable checkpoint", warns=False),
    "--local_loss": Ignored("each process always computes its rows of the logits", warns=False),
    "--gather_with_grad": Ignored("gradients always reach the features of every process", warns=False),
    "--restart": Ignored("--load always counts epochs from 0; --resume continues a run", warns=False),
    "--report_to": Ignored("TensorBoard events are always written, and nothing else", 1),
    "--copy_codebase": Ignored("args.json records the git commit and whether files were changed"),
    "--debug": Ignored("there is one level of messages"),
    "--log_local": Ignored("rank 0 writes the log"),
    "--wandb_notes": Ignored("TensorBoard has no notes", 1),
    "--dist_url": Ignored(TORCHRUN, 1),
    "--dist_backend": Ignored("NCCL on GPUs, gloo on CPUs", 1),
    "--no_set_device_rank": Ignored(TORCHRUN),
    "--horovod": Ignored(TORCHRUN),
    "--ddp_static_graph": Ignored("it changes no result"),
    "--find_unused_parameters": Ignored("every parameter takes part"),
    "--torchscript": Ignored("use --compile"),
    "--trace": Ignored("use --compile"),
    "--config_yaml": Ignored("scripts/recipes and args.json hold the flags", 1),
    "--zeroshot_frequency": Ignored("run clip_vl.zero_shot on an epoch_N.pt", 1),
    "--zeroshot_eval_frequency": Ignored("run clip_vl.zero_shot on an epoch_N.pt", 1),
    "--linear_frequency": Ignored("run clip_vl.linear_probe on an epoch_N.pt", 1),
    "--linear_eval_frequency": Ignored("run clip_vl.linear_probe on an epoch_N.pt", 1),
    "--linear_prob_mode": Ignored("clip_vl.linear_probe has one", 1),
    "--C": Ignored("it is a flag of clip_vl.linear_probe", 1),
    "--nlp_eval_frequency": Ignored("sentence evaluations are not offered yet", 1),
    "--eval_with_wise_ft": Ignored("interpolation with the first weights is not offered yet", 1),
    "--visualize_frequency": Ignored(NEVER_READ, 1),
    "--skip_scheduler": Ignored(NEVER_READ),
}  # fmt: skip

NEGCLIP = {
    "--train_data": Ignored("the table of --train_negatives is the training data", 1),
    "--dataset_size": Ignored("--max_steps limits training", 1),
}  # fmt: skip

PROTOCLIP = "it is a flag of clip_vl.protoclip, which --add_projection_head of align starts"
PROTOCLIP_ALONE = {
    "--PBT": Ignored(PROTOCLIP),
    **{name: Ignored(PROTOCLIP, 1) for name in (
        "--projection_hidden_dim", "--projection_dim", "--projection_n_layers", "--w_clip", "--w_proto", "--w_proto_external",
        "--target_temperature", "--k", "--kmeans_max_iter", "--kmeans_nredo", "--external_teacher",
        "--clustering_frequency", "--infonce_warmup_epoch",
    )},
}  # fmt: skip

INFONCE_ALONE = {
    "--add_projection_head": Ignored("this program always has projection heads", warns=False),
    "--sinkhorn": Ignored("InfoNCE does not read it"),
    **{name: Ignored("InfoNCE does not read it", 1) for name in (
        "--loss_variant", "--teacher", "--w_align", "--w_distill", "--w_rkd_d", "--w_rkd_a", "--dino_teacher_temp",
        "--queue_size", "--num_prototypes",
    )},
}  # fmt: skip
