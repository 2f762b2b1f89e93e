"""The report of an evaluation: one page that needs no network, and the same as Markdown and JSON.

`Contents` says what there is to report, `write_report` writes it.
"""

from stages.report.contents import Attacked, Broken, Contents, LineageEntry, Pictures, TrajectoryPictures
from stages.report.page import ReportFiles, write_report

__all__ = [
    "Attacked",
    "Broken",
    "Contents",
    "LineageEntry",
    "Pictures",
    "ReportFiles",
    "TrajectoryPictures",
    "write_report",
]
