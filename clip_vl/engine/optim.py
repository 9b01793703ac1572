"""Parameter groups, schedules as functions of the update number, and the one place where weights are updated."""

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from clip_vl.engine import dist
from clip_vl.engine.errors import Diverged, printable
from clip_vl.engine.random import seed_step


def param_groups(named_parameters, weight_decay):
    """Two groups for AdamW: those of `is_decayed`, and the others."""
    decayed, kept = [], []
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            (decayed if is_decayed(name) else kept).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def is_decayed(name):
    """Whether a parameter of this name has weight decay: all but biases and BERT's LayerNorms (the BERT convention)."""
    return not any(word in name for word in ("bias", "LayerNorm.weight"))


def warmup_linear(total, warmup_ratio):
    """update -> factor: linear from 0 over the first `warmup_ratio * total` updates, then linear to 0 at `total`."""
    warmup = int(total * warmup_ratio)

    def factor(update):
        if update < warmup:
            return update / max(1, warmup)
        return max(0.0, (total - update) / max(1, total - warmup))

    return factor


def warmup_cosine(total, warmup, held_until=0):
    """update -> factor: (update + 1) / warmup over the first `warmup` updates, then a half cosine to 0 at `total`.

    held_until: updates before it have a factor of 0, and the rest is laid out from there
    A warm-up longer than the run ends with it.
    """
    length = total - held_until
    warmup = min(warmup, length)

    def factor(update):
        update = update - held_until
        if not 0 <= update < length:
            return 0.0
        if update < warmup:
            return (update + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (update - warmup) / max(1, length - warmup))))

    return factor


def say_long_warmup(warmup, updates, whose="the run's"):
    """One line where --warmup is longer than the updates there are."""
    if warmup > updates > 0:
        dist.print0(
            f"--warmup {warmup} is longer than {whose} {updates} updates: the learning rate rises over all of them and "
            f"does not fall; --warmup {max(1, updates // 10)} is a tenth"
        )


def step_decay(milestones, updates_per_epoch, first_epoch=0):
    """update -> factor: a tenth at each milestone, an epoch number counted from 0."""

    def factor(update):
        epoch = first_epoch + update // max(1, updates_per_epoch)
        return 0.1 ** sum(milestone <= epoch for milestone in milestones)

    return factor


def autocast_dtype(device, bf16=None, fp16=False):
    """The dtype of autocast, or None for fp32. bf16=None means bfloat16 where the device is fast at it."""
    if fp16 and device.type == "cuda":
        return torch.float16
    if bf16 is None:
        bf16 = fp16 or is_fast_at_bf16(device)
    return torch.bfloat16 if bf16 or fp16 else None


def is_fast_at_bf16(device):
    """GPUs with bfloat16 units; CPUs with AMX, and AMD's with AVX512-BF16.

    Intel's AVX512-BF16 without AMX (hidden in many virtual machines) multiplies bfloat16 at half the speed of float32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if torch.cpu._is_amx_tile_supported():
        return True
    return torch.cpu._is_avx512_bf16_supported() and "AuthenticAMD" in Path("/proc/cpuinfo").read_text()


def autocast(device, bf16=None, fp16=False):
    """A context for a forward pass without an `Updater`; bf16 and fp16 as in `autocast_dtype`."""
    dtype = autocast_dtype(device, bf16, fp16)
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


@dataclass(frozen=True)
class StepSettings:
    """How an update is made: its precision, as in `autocast_dtype`, micro-batches, clipping, and the epochs there are.

    batch_size:  samples per process and micro-batch;  accumulate: micro-batches per update
    max_skipped: updates with a non-finite loss or gradient after which the run stops
    """

    batch_size: int
    last_epoch: int
    first_epoch: int = 0
    accumulate: int = 1
    bf16: bool | None = None
    fp16: bool = False
    max_grad_norm: float = 1.0
    max_skipped: int = 50

    def updates_per_epoch(self, batches):
        """Updates made of the micro-batches of an epoch; what is left at its end makes one as well."""
        return -(-batches // self.accumulate)


class Updater:
    """Forward precision, gradient accumulation, the finite check, clipping and the step, for one or several optimizers.

        updater.begin(rows)
        with updater.forward():
            loss = ...
        updater(loss, {"loss": loss})

    model:       the module, wrapped for distributed training
    beside:      modules without parameters whose state the forward pass moves, such as a loss with a queue
    optimizers:  {name: (optimizer, factor)}; `factor(update)` scales each group's base learning rate
    log:         a `StepLog`;  stop: true when a signal asks to stop;  name_of: row -> the sample's name in messages
    guard:       () -> a context in which weights change
    An update whose loss or gradient is not finite on any rank is skipped on all of them: weights, optimizer state,
    BatchNorm statistics and the state beside stay as they were, and the schedule does not move. `max_skipped` of them
    raise Diverged.
    """

    def __init__(self, model, optimizers, *, device, dtype=None, max_grad_norm=1.0, max_skipped=50, seed=0, beside=(),
                 log=None, stop=False, name_of=str, guard=contextlib.nullcontext):  # fmt: skip
        self.model, self.device, self.dtype, self.seed = model, device, dtype, seed
        self.log, self.stop, self.name_of, self.guard = log, stop, name_of, guard
        self.optimizers = {name: optimizer for name, (optimizer, _) in optimizers.items()}
        self.factors = {name: factor for name, (_, factor) in optimizers.items()}
        self.base_lrs = {name: [g["lr"] for g in o.param_groups] for name, o in self.optimizers.items()}
        self.parameters = [p for o in self.optimizers.values() for g in o.param_groups for p in g["params"]]
        self.max_grad_norm, self.max_skipped = max_grad_norm, max_skipped
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.update = self.micro_step = self.skipped = 0
        self.stopped = False  # whether a signal asked any rank to stop, as of the last update
        self._loss_is_finite = torch.ones((), dtype=torch.bool, device=device)
        self._buffers = [b for b in model.buffers() if b.is_floating_point() and b.numel()]
        self._buffers += [b for module in beside for b in module.buffers() if b.numel()]
        self._good_buffers = [b.clone() for b in self._buffers]
        self.begin()

    def begin(self, rows=(), epoch=0, is_last=True, accumulate=1):
        """A micro-batch of these rows comes: is it the last of its update, and how many does that have?"""
        self.rows, self.epoch, self.is_last, self.accumulate = rows, epoch, is_last, accumulate

    def forward(self):
        """A context for the forward pass of one micro-batch.

        Autocast, dropout keyed by (seed, micro-batch, rank), and no exchange of gradients before the last of an update.
        """
        seed_step(self.seed, self.micro_step, dist.rank())
        context = contextlib.ExitStack()
        context.enter_context(self._exchange())
        context.enter_context(self.autocast())
        return context

    def _exchange(self):
        waits = not self.is_last and hasattr(self.model, "no_sync")
        return self.model.no_sync() if waits else contextlib.nullcontext()

    def autocast(self):
        return torch.autocast(self.device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None)

    def __call__(self, loss, values=None, weights=None):
        """Backward, and whether it was the last micro-batch of an update, which is then made.

        values, weights: for the log, as in `StepLog.add`
        """
        self.backward(loss)
        return self.advance(values, weights)

    def backward(self, loss):
        """Add the gradient of `loss`, divided by the micro-batches of the update."""
        self._loss_is_finite &= torch.isfinite(loss.detach())
        with self._exchange(), torch.autocast(self.device.type, enabled=False):  # fp32 has its gradient in fp32
            self.scaler.scale(loss / self.accumulate).backward()
        self.micro_step += 1

    def advance(self, values=None, weights=None):
        """What follows a backward pass: the log, and at the last micro-batch of an update the step; whether it was."""
        if self.log:
            self.log.add(values or {}, weights)
            self.log.write_if_due(self)
        if self.is_last:
            with self.guard():
                norm, (self.stopped,) = self.step(int(bool(self.stop)))
            if norm is None:
                skipped = f"update {self.update} skipped: loss or gradient not finite"
                names = [self.name_of(int(row)) for row in self.rows[:4]]
                print(printable(f"warning: {skipped}; samples {names}..."), flush=True)
        return self.is_last

    def step(self, *flags):
        """One update of all optimizers -> (gradient norm, or None when skipped; the maximum of `flags` over ranks)."""
        for optimizer in self.optimizers.values():
            self.scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        norm, loss_is_finite = torch.stack([norm.float(), self._loss_is_finite.float()]).tolist()
        bad_loss, overflow, *flags = dist.agree(int(not loss_is_finite), int(not math.isfinite(norm)), *flags)
        if bad_loss or overflow:
            self._skip(counts=bool(bad_loss) or not self.scaler.is_enabled() or self.scaler.get_scale() <= 1)
        else:
            self._apply()
        self.scaler.update()
        self._loss_is_finite.fill_(True)
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        return (None if bad_loss or overflow else norm), flags

    def _apply(self):
        for name, optimizer in self.optimizers.items():
            for group, base in zip(optimizer.param_groups, self.base_lrs[name]):
                group["lr"] = base * self.factors[name](self.update)
            self.scaler.step(optimizer)
        self.update += 1
        if self._buffers:
            torch._foreach_copy_(self._good_buffers, self._buffers)

    def _skip(self, counts):
        """Leave everything as it was; the scaler's own search for a scale (`counts` false) is no failure."""
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._good_buffers)
        self.skipped += counts
        if self.skipped >= self.max_skipped:
            raise Diverged(
                f"{self.skipped} updates had a non-finite loss or gradient (--max_skipped); "
                "lower --lr, or train with --no-bf16"
            )

    def learning_rates(self):
        """{optimizer: the learning rate of its next update}."""
        return {name: self.base_lrs[name][0] * factor(self.update) for name, factor in self.factors.items()}

    def state(self):
        """What a checkpoint needs besides weights and optimizer tensors (JSON)."""
        counters = {name: getattr(self, name) for name in ("update", "micro_step", "skipped")}
        return counters | {"scaler": self.scaler.state_dict()}

    def load_state(self, state):
        self.update, self.micro_step, self.skipped = (state[name] for name in ("update", "micro_step", "skipped"))
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.keep_buffers()

    def good_buffers(self):
        """{address: copy} of every buffer as the last update left it; a forward pass may have moved the buffer."""
        return {b.data_ptr(): good for b, good in zip(self._buffers, self._good_buffers)}

    def keep_buffers(self):
        """Take the buffers as they are now as good (after loading weights)."""
        for good, buffer in zip(self._good_buffers, self._buffers):
            good.copy_(buffer)
