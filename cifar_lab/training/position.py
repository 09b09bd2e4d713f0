"""Where a run stands in its training."""


class Position:
    """Whole epochs behind a run, and steps of the epoch under way. Only the methods here change it."""

    def __init__(self, steps_per_epoch: int) -> None:
        self.steps_per_epoch = steps_per_epoch
        self.epochs = 0
        self.step = 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Position) and (self.epochs, self.step) == (other.epochs, other.step)

    __hash__ = None

    def __str__(self) -> str:
        return f"epoch {self.epochs}, step {self.step}"

    @property
    def total(self) -> int:
        """Steps behind the run, over all epochs."""
        return self.epochs * self.steps_per_epoch + self.step

    def at(self, epoch: int, step: int) -> bool:
        """Whether the step (from 0) of the epoch (from 1) is the next one to do."""
        return (self.epochs, self.step) == (epoch - 1, step)

    def go_to(self, epochs: int, step: int) -> None:
        """To where a checkpoint was written, or back to before the step that diverged."""
        self.epochs, self.step = epochs, step

    def end_step(self) -> None:
        """One step is done."""
        self.step += 1

    def end_epoch(self) -> None:
        """The epoch is done, its evaluation included."""
        self.epochs, self.step = self.epochs + 1, 0
