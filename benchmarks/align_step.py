"""Claim: a training step of CLIP is >= 1.7x open_clip's best setting and >= 4x its default (fp32), of the same result.

    taskset -c 0,1 .venv/bin/python benchmarks/align_step.py          about six minutes on 2 cores
    taskset -c 0 .venv/bin/python benchmarks/align_step.py --clock cpu     where other work shares the cores
    .venv/bin/python benchmarks/align_step.py --equal                 features, 50 steps of losses, fp32: four minutes
    .venv/bin/python benchmarks/align_step.py --device cuda           on a GPU: pairs/s, memory, utilisation

ViT-S-32 and its text tower on photographs in memory (uint8 for ours, normalised floats for theirs, as each has them in
its loop) and real captions, tokenised; a batch of 64. CLIP_VL_REAL_DATA names the folder of both [../shared/data].
openclip fp32, bf16  open_clip's model and ClipLoss, the optimizer and loop of its trainer; texts are 77 tokens long
ours fp32, bf16      clip_vl's `DualEncoder`, InfoNCE and `Updater`; texts are as long as they are
All run under the allocator's settings of scripts/launch.bash. Processes take turns, so that a noisy machine disturbs
all alike; ratios are of medians over all rounds. On a GPU ours alone runs: ViT-B-32, batch 1,024, with and without
--compile.
"""

import argparse
import contextlib
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "benchmarks"))
from needs import require  # noqa: E402
from pretrain_step import launch_settings  # noqa: E402

from clip_vl.align import AlignFlags  # noqa: E402
from clip_vl.datasets.images.crops import EvalCrop  # noqa: E402
from clip_vl.engine.optim import Updater, autocast_dtype  # noqa: E402
from clip_vl.flags.parser import parse  # noqa: E402
from clip_vl.losses.alignment import build_loss  # noqa: E402
from clip_vl.models.dual.build import build_dual_encoder  # noqa: E402
from clip_vl.models.dual.optim import build_optimizers  # noqa: E402
from clip_vl.models.dual.spec import LossNeeds  # noqa: E402
from clip_vl.models.dual.training import compile_towers  # noqa: E402
from clip_vl.models.towers.pixels import normalise  # noqa: E402

DATA = Path(os.environ.get("CLIP_VL_REAL_DATA", ROOT.parent / "shared" / "data"))
VARIANTS = ("openclip fp32", "openclip bf16", "ours fp32", "ours bf16")
LR, WARMUP = 5e-4, 10
WARM = 5  # updates ahead, in which the heap still grows
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def photographs(count):
    """uint8 (count, 3, 224, 224): the photographs of the real data, again from the first where they are too few."""
    crop = EvalCrop(224, "bicubic")
    pixels = [crop(path.read_bytes()) for path in sorted((DATA / "images").glob("*.JPEG"))[:count]]
    return torch.stack([pixels[i % len(pixels)] for i in range(count)])


def captions(size):
    """Batches of that many real captions, one of each image, then the images' second ones, and so on."""
    rows = json.loads((DATA / "probes" / "retrieval" / "coco_karpathy_test_first1500.json").read_text())
    texts = [row["caption"][i] for i in range(5) for row in rows]
    return [texts[start : start + size] for start in range(0, len(texts) - size + 1, size)]


def factor(update):
    return min(1.0, (update + 1) / WARMUP)


def ours(precision, size, name="ViT-S-32", device="cpu", compiled=False, weights=None):
    """-> (function of the number of an update that makes it and returns the loss, the model)."""
    flags = ["--image_model", name, "--text_model", name, "--precision", precision, "--lr", str(LR)]
    flags += ["--image_weights", weights, "--text_weights", weights] if weights else []
    args, device = parse(AlignFlags, "", flags), torch.device(device)
    model = build_dual_encoder(args.towers(), LossNeeds(scale=True)).train()
    model = model.to(device, memory_format=torch.channels_last)
    images = photographs(size).contiguous(memory_format=torch.channels_last).to(device)
    tokens = [model.tokenizer(texts)["input_ids"].to(device) for texts in captions(size)]
    if compiled:
        compile_towers(model)
    loss_of = build_loss("InfoNCE", model.image_head.width).to(device)
    optimizers = build_optimizers(model, args.optimizer(), {"image": factor, "text": factor})
    updater = Updater(model, optimizers, device=device, dtype=autocast_dtype(device, args.bf16, args.fp16),
                      max_grad_norm=args.max_grad_norm, seed=args.seed)  # fmt: skip

    def step(number):
        with updater.forward():
            outputs = model({"images": images, "tokens": {"input_ids": tokens[number % len(tokens)]}})
            features = outputs["text_features"], outputs["image_features"]
            loss = loss_of(*features, logit_scale=outputs["logit_scale"])
        updater(loss)
        model.clamp_scales()
        return loss.detach()

    return step, model


def openclip(precision, size, weights=None):
    """The same of open_clip, as open_clip_train/train.py and main.py do it."""
    import open_clip
    from open_clip_train.precision import get_autocast

    torch.manual_seed(0)
    model = open_clip.create_model("ViT-S-32", output_dict=True).train()
    if weights:
        torch.save(model.state_dict(), weights)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (model.visual.image_mean, model.visual.image_std))
    images, tokenizer = normalise(photographs(size), mean, std), open_clip.get_tokenizer("ViT-S-32")
    tokens = [tokenizer(texts) for texts in captions(size)]
    named = list(model.named_parameters())
    kept = {n for n, p in named if p.ndim < 2 or any(word in n for word in ("bn", "ln", "bias", "logit_scale"))}
    groups = [{"params": [p for n, p in named if n in kept], "weight_decay": 0.0},
              {"params": [p for n, p in named if n not in kept], "weight_decay": 0.2}]  # fmt: skip
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.98), eps=1e-6)
    loss_of = open_clip.ClipLoss()
    autocast = get_autocast({"bf16": "amp_bf16"}.get(precision, precision), device_type="cpu")

    def step(number):
        for group in optimizer.param_groups:
            group["lr"] = LR * factor(number)
        optimizer.zero_grad()
        with autocast():
            loss = loss_of(**model(images, tokens[number % len(tokens)]), output_dict=True)["contrastive_loss"]
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        return loss.detach()

    return step, model


def build(variant, size):
    side, precision = variant.split()
    return (ours if side == "ours" else openclip)(precision, size)[0]


def measure(variant, args):
    """Seconds of each of `steps` updates, in a process of their own."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    environment |= {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))} | launch_settings()
    command = [sys.executable, __file__, "--variant", variant, "--clock", args.clock]
    command += ["--steps", str(args.steps), "--batch", str(args.batch)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def one_measurement(args):
    step, seconds, now = build(args.variant, args.batch), [], CLOCKS[args.clock]
    for number in range(WARM + args.steps):
        start = now()
        step(number)
        seconds.append(now() - start)
    print(json.dumps(seconds[WARM:]))


def compare(args):
    taken = {name: [] for name in VARIANTS}
    for number in range(args.rounds):
        for name, values in taken.items():
            values += measure(name, args)
            print(f"round {number + 1} {name}: {statistics.median(values):.3f}", flush=True)
    median = {name: statistics.median(values) for name, values in taken.items()}
    best = min((name for name in median if name.startswith("openclip")), key=median.get)
    print(f"\n{' '.join(sys.argv)}\n{machine()}, torch {torch.__version__}, batch {args.batch}, {args.clock} clock")
    for name, seconds in median.items():
        spread, rate = f"{min(taken[name]):.2f} to {max(taken[name]):.2f}", args.batch / seconds
        faster = f"{median[best] / seconds:.2f}x {best}   {median['openclip fp32'] / seconds:.2f}x openclip fp32"
        print(f"{name:14s} {seconds:6.2f} s ({spread})   {rate:6.1f} pairs/s   {faster}")
    print("claims for ours bf16: 1.7x open_clip's best, 4x its default (fp32)")


def machine():
    """Cores, processor, and the load of the last minute, in which others may have had a part."""
    lines = Path("/proc/cpuinfo").read_text().split("\n")
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")] or [platform.machine()]
    return f"{len(os.sched_getaffinity(0))} cores of {names[0]}, load {os.getloadavg()[0]:.1f}"


def equal(steps, size):
    """Features of equal weights before training, and the losses of both while they train, in fp32."""
    import open_clip

    with tempfile.TemporaryDirectory() as folder:
        weights = f"{folder}/weights.pt"
        their_step, theirs = openclip("fp32", size, weights)
        our_step, model = ours("fp32", size, weights=weights)
    images, texts = photographs(size), captions(size)[0]
    with torch.no_grad():
        pixels, ids = normalise(images, model.mean, model.std), open_clip.get_tokenizer("ViT-S-32")(texts)
        image = model.encode_image(images) - theirs.encode_image(pixels, normalize=True)
        text = model.encode_text(texts) - theirs.encode_text(ids, normalize=True)
    for side, difference in (("image", image), ("text", text)):
        print(f"{side} features: largest difference {difference.abs().max():.1e} (claim: 1e-5)", flush=True)
    losses = [(float(our_step(number)), float(their_step(number))) for number in range(steps)]
    for number in sorted({0, steps // 2, steps - 1}):
        print(f"step {number + 1}: loss {losses[number][0]:.6f} ours, {losses[number][1]:.6f} open_clip")
    worst = max(abs(mine / other - 1) for mine, other in losses)
    print(f"{steps} steps of {size} pairs: largest relative difference of the loss {worst:.1e}")


def on_gpu(device, size, peak, steps):
    """Print pairs/s, the largest memory, and the share of `peak` TFLOP/s that the model's own operations reach."""
    from torch.utils.flop_counter import FlopCounterMode

    for compiled in (False, True):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        step, _ = ours("bf16", size, "ViT-B-32", device, compiled)
        with contextlib.nullcontext() if compiled else FlopCounterMode(display=False) as counter:
            step(0)
        flops = flops if compiled else counter.get_total_flops()  # noqa: F821 - counted by the eager round
        for number in range(5):
            step(number)
        torch.cuda.synchronize()
        start = time.perf_counter()
        for number in range(steps):
            step(number)
        torch.cuda.synchronize()
        seconds = (time.perf_counter() - start) / steps
        memory = torch.cuda.max_memory_allocated() / 2**30
        share = 100 * flops / seconds / peak / 1e12
        print(f"ViT-B-32 {'compiled' if compiled else 'eager':8s} batch {size}   {size / seconds:6.0f} pairs/s   "
              f"{memory:5.1f} GiB   {share:4.1f} % of {peak:g} TFLOP/s", flush=True)  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of a measurement [4, on a GPU 20], or of --equal [50]")
    parser.add_argument("--batch", type=int, help="pairs [64; with --equal 16, on a GPU 1024]")
    parser.add_argument("--variant", choices=VARIANTS, help="one measurement, as JSON")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: seconds of the process, for one core")
    parser.add_argument("--equal", action="store_true", help="compare features and losses instead of seconds")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--peak", type=float, default=989.0, help="the GPU's dense bf16 TFLOP/s [an H100's]")
    args = parser.parse_args()
    if args.device == "cpu":
        require(DATA / "images", "CLIP_VL_REAL_DATA must name a folder with images/ and probes/retrieval/")
    if args.device != "cpu":
        return on_gpu(args.device, args.batch or 1024, args.peak, args.steps or 20)
    if args.equal:
        return equal(args.steps or 50, args.batch or 16)
    args.steps, args.batch = args.steps or 4, args.batch or 64
    return one_measurement(args) if args.variant else compare(args)


if __name__ == "__main__":
    main()
