"""The report of an evaluation: one page that needs no network, and the same as Markdown and JSON.

`Contents` says what there is to report, `page.write_report` writes it; `page.search_page` is the page of a search
alone. Matplotlib is imported with those two alone.
"""

from stages.report.contents import Attacked, Broken, Contents, LineageEntry, Pictures, TrajectoryPictures

__all__ = [
    "Attacked",
    "Broken",
    "Contents",
    "LineageEntry",
    "Pictures",
    "TrajectoryPictures",
]
