"""The base of every error that is the user's to mend: shown without a traceback, exit code 2."""


class PetlbenchError(ValueError):
    """The message names the thing, the place and the way out."""
