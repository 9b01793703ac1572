"""Runs the jobs that draw a generated dataset in several processes, and writes its text files."""

import multiprocessing
import sys

from tqdm import tqdm

from clip_vl.engine.signals import start_pool_worker


def run_jobs(make, jobs, workers, description):
    """{key: [make(job) for its jobs]} of {key: [job, ...]}, with a progress bar over all jobs."""
    results = {}
    with (
        multiprocessing.Pool(workers, start_pool_worker) as pool,
        tqdm(total=sum(map(len, jobs.values())), desc=description, disable=not sys.stderr.isatty()) as bar,
    ):
        for key, its_jobs in jobs.items():
            results[key] = []
            for result in pool.imap(make, its_jobs, chunksize=8):
                results[key].append(result)
                bar.update()
    return results


def write_text(path, text):
    """Write a file of a folder that is renamed when all of it is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
