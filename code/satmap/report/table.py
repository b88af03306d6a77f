"""Scores as a table for people."""

from satmap.metrics.apls import AplsScore, RoadsReport


def score_table(report: RoadsReport, images: bool = False) -> str:
    """One line an area and a last one for all; with ``images`` one an image before them.

    Where some images stand in one file only, the last lines say so and give the total that counts
    them as 0.
    """
    rows = [("", "images", "APLS length", "APLS time")]
    if images:
        rows += [(name, "", *_figures(score)) for name, score in report.images.items()]
    for aoi, total in report.aois.items():
        rows.append((aoi, str(total.images), *_figures(total.official)))
    rows.append(("total", str(report.total.images), *_figures(report.total.official)))
    width = max(len(row[0]) for row in rows)
    lines = [f"{name:<{width}}  {a:>6}  {b:>11}  {c:>9}" for name, a, b, c in rows]
    lonely = ((report.truth_only, "truth"), (report.proposal_only, "proposal"))
    for names, file in lonely:
        if names:
            subject = "1 image stands" if len(names) == 1 else f"{len(names)} images stand"
            lines.append(f"{subject} in the {file} only, {names[0]} for one")
    if report.truth_only or report.proposal_only:
        length, time = _figures(report.total.fair)
        lines.append(
            "the total above leaves them out, as the official scorer does; counted as 0: "
            f"length {length}, time {time}"
        )
    return "\n".join(lines)


def _figures(score: AplsScore) -> tuple[str, str]:
    time = "-" if score.time is None else f"{score.time.score:.3f}"
    return f"{score.length.score:.3f}", time
