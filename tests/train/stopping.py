"""Signals that come when a test wants them."""

from vitscale.train.stop import Stop


class StopAfter(Stop):
    """A signal that comes after so many looks for one.

    A look is before the first step, after each, between the micro-batches of a step, and before each chunk of images
    that is scored.
    """

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.looked, self.looks = 0, looks

    @property
    def requested(self) -> bool:
        self.looked += 1
        return self.looked > self.looks

    @requested.setter
    def requested(self, value: bool) -> None:
        pass
