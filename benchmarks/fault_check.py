"""What every row of the fault table asks with."""


class Broken(Exception):
    """A promise that was not kept."""


def check(kept, what):
    if not kept:
        raise Broken(what)
