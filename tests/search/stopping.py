"""A stop that comes at a known place."""

from train.stopping import StopFlag


class StopAfter(StopFlag):
    """Asks to stop when it has been polled so many times."""

    def __init__(self, polls):
        super().__init__()
        self.polls = polls

    @property
    def requested(self):
        self.polls -= 1
        return "test" if self.polls < 0 else None
