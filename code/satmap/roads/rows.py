"""Road graphs as rows of a submission."""

from satmap.roads.graph import RoadGraph
from satmap.submissions.roads_csv import RoadRow


def to_rows(graph: RoadGraph) -> list[RoadRow]:
    """One row an edge, in the graph's order."""
    return [
        RoadRow(line=edge.line, length_m=edge.length_m, travel_time_s=edge.travel_time_s)
        for edge in graph.edges
    ]
