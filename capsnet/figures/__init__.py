"""Pictures of a network and of its training, as PNG files, and the report that holds them all."""

from capsnet.figures.confusion import draw_confusion
from capsnet.figures.curves import draw_curves
from capsnet.figures.drawings import draw_drawings
from capsnet.figures.report import write_report

__all__ = ["draw_confusion", "draw_curves", "draw_drawings", "write_report"]
