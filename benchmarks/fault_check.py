"""The check of all rows of benchmarks/faults.py."""


class Broken(Exception):
    """A check that failed."""


def check(kept, what):
    if not kept:
        raise Broken(what)
