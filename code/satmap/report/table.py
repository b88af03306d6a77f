"""Format scores as a text table."""

from satmap.evaluation.metrics.figures import Figures, Report
from satmap.evaluation.metrics.reliability import Reliability
from satmap.io.text import padded

# Figures with a column, and their headings.
_HEADINGS = {
    "images": "images",
    "apls_length": "APLS length",
    "apls_time": "APLS time",
    "topo_precision": "TOPO precision",
    "topo_recall": "TOPO recall",
    "topo_f1": "TOPO F1",
    "crossings_found": "crossings found",
    "crossings_missed": "missed",
    "crossings_false": "false",
    "crossings_precision": "crossing precision",
    "crossings_recall": "crossing recall",
    "crossings_f1": "crossing F1",
    "crossings_order": "order right",
    "false_turns": "false turns",
    "missed_turns": "missed turns",
    "false_turn_rate": "false-turn rate",
    "lost_routes": "lost routes",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "iou": "IoU",
    "c_iou": "C-IoU",
    "n_ratio": "N-ratio",
    "mta": "MTA",
    "polis": "PoLiS",
    "boundary_ap": "boundary AP",
    "ap50": "AP50",
    "ar50": "AR50",
    "ap": "AP",
    "jaccard": "Jaccard",
    "tp": "TP",
    "fp": "FP",
    "fn": "FN",
}


def score_table(report: Report, images: bool = False) -> str:
    """Return a table with one line per area and a total; ``images`` adds one line per image.

    If some images are in only one file, the last lines say so. If the metric leaves them out, they
    also give the total that counts them. Tables of the confidences follow, if there are any.
    """
    keys = [key for key in _HEADINGS if key in report.total]
    rows = [("", *(_HEADINGS[key] for key in keys))]
    if images:
        rows += [_row(name, figures, keys) for name, figures in report.images.items()]
    rows += [_row(name, figures, keys) for name, figures in report.aois.items()]
    rows.append(_row("total", report.total, keys))
    lines = ["  ".join(row) for row in padded(rows, right=True)]
    for names, file in ((report.truth_only, "truth"), (report.proposal_only, "proposal")):
        if names:
            subject = "1 image is" if len(names) == 1 else f"{len(names)} images are"
            lines.append(f"{subject} only in the {file}, for example {names[0]}")
    fair = [key for key in keys if f"fair_{key}" in report.total]
    if any(report.total[key] != report.total[f"fair_{key}"] for key in fair):
        figures = ", ".join(
            f"{_HEADINGS[key]} {_cell(report.total[f'fair_{key}'])}" for key in fair
        )
        lines.append(
            "The total above leaves them out, as the official scorer does. Counted as missed or "
            f"false, they give: {figures}"
        )
    if isinstance(report.confidence, Reliability):
        lines += ["", *reliability_tables(report.confidence)]
    elif report.confidence is not None:
        lines.append(f"confidence: {report.confidence}")
    return "\n".join(lines)


def reliability_tables(found: Reliability) -> list[str]:
    """Return the lines of three tables: by group, by bin of confidence, and by coverage."""
    groups = {"all": found, **found.groups}
    rows = [("confidence", "objects", "mean", "right", "calibration error")]
    rows += [
        (name, str(its.count), _cell(its.confidence), _cell(its.right), _cell(its.error))
        for name, its in groups.items()
    ]
    bins = [("bin", "objects", "mean", "right")]
    bins += [
        (f"{its.low:.1f} to {its.high:.1f}", str(its.count), _cell(its.confidence),
         _cell(its.right))
        for its in found.bins
    ]  # fmt: skip
    kept = [("coverage", "least confidence", "precision", "risk")]
    kept += [
        (f"{its.coverage:.1f}", _cell(its.least_confidence), _cell(its.precision), _cell(its.risk))
        for its in found.coverage
    ]
    tables = [padded(table, right=True) for table in (rows, bins, kept)]
    joined = [["  ".join(row) for row in table] for table in tables]
    return [*joined[0], "", *joined[1], "", *joined[2]]


def _row(name: str, figures: Figures, keys: list[str]) -> tuple[str, ...]:
    return (name, *(_cell(figures[key]) if key in figures else "" for key in keys))


def _cell(figure: float | int | None) -> str:
    if figure is None:
        return "-"
    return str(figure) if isinstance(figure, int) else f"{figure:.3f}"
