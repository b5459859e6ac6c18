"""Report: everything a run measured, decided and set, as one value, one JSON file and one page."""

from hessprune.lab.report.headline import headline
from hessprune.lab.report.html import render, write_html
from hessprune.lab.report.run_report import (
    CurvePoint,
    EpochPoint,
    Estimate,
    GroupSaliency,
    LayerRow,
    LayerWidth,
    ModelResult,
    RunReport,
)

__all__ = [
    "CurvePoint",
    "EpochPoint",
    "Estimate",
    "GroupSaliency",
    "LayerRow",
    "LayerWidth",
    "ModelResult",
    "RunReport",
    "headline",
    "render",
    "write_html",
]
