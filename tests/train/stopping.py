"""Signals that come when a test wants them."""

from vitscale.train.loop import Stop


class StopAfter(Stop):
    """A signal that comes while step `step` is computed."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.asked, self.step = 0, step

    @property
    def requested(self) -> bool:
        self.asked += 1
        return self.asked > self.step

    @requested.setter
    def requested(self, value: bool) -> None:
        pass
