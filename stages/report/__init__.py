"""The report of an evaluation: one page that needs no network, and the same as Markdown and JSON.

`Contents` says what there is to report, `write_report` writes it.
"""

from stages.report.contents import Artifact, Attacked, Broken, Contents, Pictures, TrajectoryPictures
from stages.report.page import ReportFiles, write_report

__all__ = [
    "Artifact",
    "Attacked",
    "Broken",
    "Contents",
    "Pictures",
    "ReportFiles",
    "TrajectoryPictures",
    "write_report",
]
