"""Losses and gradients that are not finite, on one of two ranks. A row of benchmarks/faults.py."""

import contextlib
import io
import os
import re

import torch
from fault_check import check

from clip_vl.engine import dist
from clip_vl.engine.optim import Updater
from clip_vl.engine.readers.text import split_lines

POISONS = ("loss", "gradient", "input")


def non_finite_steps(count, folder, rng):
    """One update in a hundred is not finite on a rank: exactly those are skipped on both, their samples named, and the
    weights are those of the others alone."""
    bad = {step: (rng.randrange(2), rng.choice(POISONS)) for step in rng.sample(range(count), max(1, count // 100))}
    found = on_two_ranks(lambda: train(range(count), bad), folder / "with")
    expected = on_two_ranks(lambda: train([step for step in range(count) if step not in bad], {}), folder / "without")
    for rank, ((weights, skipped, update, said), (wanted, *_)) in enumerate(zip(found, expected)):
        check((skipped, update) == (len(bad), count - len(bad)), f"rank {rank}: {skipped} of {len(bad)} skipped")
        other = [name for name in wanted if not torch.equal(weights[name], wanted[name])]
        check(not other, f"rank {rank}: other {other}")
        named = [int(step) for line in said for step in re.findall(r"skipped: .* samples \['sample (\d+)'\]", line)]
        check(named == sorted(bad) and len(said) == len(bad), f"rank {rank}: {len(named)} of {len(bad)} named")


def on_two_ranks(function, folder):
    """The results of a function on two processes that exchange gradients."""
    folder.mkdir(parents=True)
    ranks = []
    for rank in range(2):
        ranks.append(os.fork())
        if ranks[rank] == 0:
            code = 1
            try:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
                torch.distributed.init_process_group(
                    "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
                )
                torch.save(function(), folder / f"{rank}.pt")
                code = 0
            finally:
                os._exit(code)
    codes = [os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks]
    check(codes == [0, 0], f"the ranks ended with {codes}")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def train(steps, bad):
    """Weights and statistics without the counter of forward passes, skipped updates, updates made, what was said."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = dist.wrap(torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1)),
                      torch.device("cpu"))  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    updater = Updater(model, {"adam": (optimizer, lambda update: 1.0)}, device=torch.device("cpu"),
                      max_skipped=len(bad) + 1, name_of="sample {}".format)  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()) as said:
        for step in steps:
            rank, poison = bad.get(step, (None, None))
            poison = poison if rank == dist.rank() else None
            x = torch.randn(4, 8, generator=torch.Generator().manual_seed(2 * step + dist.rank()))
            x[0, 0] = float("inf") if poison == "input" else x[0, 0]
            updater.begin(rows=[step])
            with updater.forward():
                output = model(x)
                if poison == "gradient":
                    output.register_hook(lambda gradient: gradient * float("inf"))
                loss = output.square().mean()
            updater(loss * float("nan") if poison == "loss" else loss)
    weights = {name: value for name, value in model.module.state_dict().items() if value.is_floating_point()}
    return weights, updater.skipped, updater.update, split_lines(said.getvalue())
