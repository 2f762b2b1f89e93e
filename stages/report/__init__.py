"""The report of an evaluation: one page that needs no network, and the same as Markdown and JSON.

`Contents` says what there is to report, `write_report` writes it; `search_page` is the page of a search alone.
"""

from stages.report.contents import Attacked, Broken, Contents, LineageEntry, Pictures, TrajectoryPictures
from stages.report.page import ReportFiles, search_page, write_report
from stages.report.tried import SearchContents

__all__ = [
    "Attacked",
    "Broken",
    "Contents",
    "LineageEntry",
    "Pictures",
    "ReportFiles",
    "SearchContents",
    "TrajectoryPictures",
    "search_page",
    "write_report",
]
