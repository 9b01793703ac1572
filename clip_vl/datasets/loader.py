"""Batches: the images of a batch decoded once each and placed on one canvas, its texts padded to the longest."""


import torch
from torch.utils.data import DataLoader

from clip_vl.engine import dist
from clip_vl.engine.errors import DataError, ProgramError, printable
from clip_vl.engine.signals import start_worker


def build_loader(dataset, epoch, batches, args, device):
    """A loader of `dataset[(epoch, rows)]` for each row of `batches`, in order; each is one batch already."""
    keys = [(epoch, rows) for rows in batches]
    num_workers = min(args.num_workers, len(keys))
    return _Loader(
        _InSharedMemory(dataset) if num_workers else dataset,
        sampler=keys,
        batch_size=None,
        num_workers=num_workers,
        worker_init_fn=_start_worker,
        pin_memory=device.type == "cuda",
        prefetch_factor=4 if num_workers else None,
        timeout=dist.timeout_seconds() if num_workers else 0,
    )


class _Loader(DataLoader):
    """A loader that says in one sentence what is wrong with its workers."""

    def __iter__(self):
        batches = super().__iter__()
        try:
            yield from batches
        except (OSError, RuntimeError, EOFError) as error:
            if self.num_workers:
                batches._shutdown_workers()  # the traceback would keep them
                if isinstance(error, ConnectionError | EOFError):  # while it handed its tensors over; not yet reaped
                    raise RuntimeError(f"DataLoader worker died: {type(error).__name__}") from error
            if "No space left" in str(error) or "shared memory" in str(error):
                raise ProgramError(
                    "loader workers have no room in /dev/shm: give the container more (docker run --ipc=host, or "
                    f"--shm-size=8g), or use fewer --num_workers than {self.num_workers}"
                ) from error
            if "timed out" in str(error):
                raise ProgramError(f"loader workers gave no batch in {self.timeout} s (CLIP_VL_TIMEOUT)") from error
            raise


class _InSharedMemory:
    """A dataset for workers whose batches lie in shared memory already.

    A failure there is then an error of the worker like any other; the thread that sends batches would lose this one,
    and the program would wait for it for ever.
    """

    def __init__(self, dataset):
        self.dataset = dataset

    def __getitem__(self, key):
        return _shared(self.dataset[key])


def _shared(value):
    if torch.is_tensor(value):
        value.share_memory_()
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        _shared(item)
    return value


def training_loader(dataset, epoch, batches, damage, device, args):
    """Yields the batches of an epoch on `device`; `damage` (DamageCount) hears of each image that was not readable."""
    loader = build_loader(dataset, epoch, batches, args, device)
    for batch in dist.progress(loader, f"epoch {epoch + 1}", args.tqdm):
        damage.add(batch.get("damaged", []))
        yield to_device(batch, device)


def evaluation_loader(dataset, order, device, args):
    """Yields this process's share of the evaluation batches on `device`.

    Evaluation needs every image: a score over the rest would be another score, so a damaged one raises DataError.
    """
    loader = build_loader(dataset, 0, list(order), args, device)
    for batch in dist.progress(loader, "evaluation", args.tqdm):
        for _, reason in batch.get("damaged", []):
            raise DataError(f"evaluation needs every image: {reason}")
        yield to_device(batch, device)


def _start_worker(worker_id):
    torch.set_num_threads(1)
    start_worker(worker_id)


def to_device(batch, device):
    """The tensors of a batch, and of dicts in it, on `device`; everything else as it is."""

    def moved(value):
        if isinstance(value, dict):
            return to_device(value, device)
        return value.to(device, non_blocking=True) if torch.is_tensor(value) else value

    return {name: moved(value) for name, value in batch.items()}


class DamageCount:
    """Names each training image that is missing or damaged once, and ends the run when there are too many of them."""

    consequence = "its samples count for nothing"

    def __init__(self, annotations, args):
        self.total, self.tolerated = len(annotations.image_ids), args.max_damaged
        self.names = set()
        dropped = annotations.meta["dropped_images"]
        if dropped:
            dist.print0(f"{dropped} images of the annotations are not on disk; their sentences are left out")
        if dropped > self.tolerated * (self.total + dropped):
            raise DataError(
                f"{dropped} of {self.total + dropped} images are not on disk, more than --max_damaged "
                f"{self.tolerated:g} allows; `python -m clip_vl.prepare check` says which and how to fetch them"
            )

    def add(self, damaged):
        """damaged: (image id, sentence) pairs of one batch."""
        for image_id, sentence in damaged:
            if image_id not in self.names:
                self.names.add(image_id)
                print(printable(f"warning: {sentence}; {self.consequence}"), flush=True)
        if len(self.names) > self.tolerated * self.total:
            raise DataError(
                f"{len(self.names)} of {self.total} images are missing or damaged, more than --max_damaged "
                f"{self.tolerated:g} allows; the last one: {damaged[-1][1]}"
            )


class DamagedPairs(DamageCount):
    """The same for pairs of images and captions, of which `total` are trained on."""

    def __init__(self, total, args, consequence="another pair takes its place"):
        self.total, self.tolerated, self.names, self.consequence = total, args.max_damaged, set(), consequence
