"""A run's numbers as TensorBoard's events, in its folder."""

from collections.abc import Mapping, Sequence

from torch.utils.tensorboard import SummaryWriter

from server_app.results.sinks.base import LoggedRun


class TensorBoard:
    """Writes event files into `tensorboard/`; of a run that is gone on with, rounds that are run again are hidden."""

    def __init__(self, run: LoggedRun) -> None:
        purge_step = None if run.resume_after is None else run.resume_after + 1
        self._writer = SummaryWriter(str(run.run_dir / "tensorboard"), purge_step=purge_step)

    def catch_up(self, rounds: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Do nothing: the files of these rounds are there."""

    def add(self, round_number: int, numbers: Mapping[str, float]) -> None:
        """Add a round."""
        for tag, value in numbers.items():
            self._writer.add_scalar(tag, value, round_number)

    def close(self, best: Mapping[str, float] | None) -> None:
        """Write what is still buffered."""
        self._writer.close()
