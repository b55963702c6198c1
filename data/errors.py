"""The one exception of this package: what came from outside is not usable."""


class DataError(ValueError):
    """Bad data. The message states the rule, what was received and what to do about it."""
