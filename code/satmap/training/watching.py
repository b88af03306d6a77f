"""How a training can be watched: a table, curves, TensorBoard, all made from its history."""

import csv
import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path

from satmap.errors import SatmapError
from satmap.files import write_text
from satmap.recipe import Member
from satmap.report.curves import Curve, draw_curves
from satmap.report.panels import write_picture
from satmap.training.checkpoint import Progress
from satmap.training.objectives import Objective
from satmap.training.workplace import Workplace

_COLUMNS = ("stage", "epoch", "learning_rate", "seconds", "ms_per_step", "crops_per_second")


def watch(member: Member, progress: Progress, place: Workplace, objective: Objective) -> None:
    """Bring the member's log, curves and TensorBoard up to the last epoch.

    The files are written whole: an epoch that is done again after a kill has one row all the same.

    Raises:
        SatmapError: a file cannot be written.
    """
    stem = place.weights / member.name
    figures = ("loss", *objective.parts), objective.scores
    write_text(Path(f"{stem}.log.csv"), _table(progress.history, [*figures[0], *figures[1]]))
    panels = [_curves(progress.history, names) for names in figures]
    write_picture(Path(f"{stem}.curves.png"), draw_curves([panel for panel in panels if panel]))
    if place.tensorboard is not None:
        _tell_tensorboard(place.tensorboard / member.name, progress.history)


def require_tensorboard() -> None:
    """Fail before any work is done if TensorBoard is asked for and not there.

    Raises:
        SatmapError: it is not installed.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise SatmapError(
            "--tensorboard needs the package `tensorboard`, which is not installed: "
            "`pip install tensorboard`, or leave the option out; the log beside the weights has "
            "the same figures."
        )


def _table(history: Sequence[dict[str, float]], figures: Sequence[str]) -> str:
    text = io.StringIO()
    table = csv.DictWriter(text, (*_COLUMNS, *figures), lineterminator="\n")
    table.writeheader()
    for record in history:
        table.writerow({name: f"{value:.6g}" for name, value in record.items()})
    return text.getvalue()


def _curves(history: Sequence[dict[str, float]], names: Sequence[str]) -> list[Curve]:
    """The named figures over the epochs of all stages, as far as there are any."""
    points = {
        name: [(epoch, record[name]) for epoch, record in enumerate(history, 1) if name in record]
        for name in names
    }
    return [Curve(name, found) for name, found in points.items() if found]


def _tell_tensorboard(directory: Path, history: Sequence[dict[str, float]]) -> None:
    from torch.utils.tensorboard import SummaryWriter

    epoch = len(history)
    # Events of this epoch that an earlier, killed run has left are hidden.
    with SummaryWriter(str(directory), purge_step=epoch) as writer:
        for name, value in history[-1].items():
            writer.add_scalar(name, value, epoch)
