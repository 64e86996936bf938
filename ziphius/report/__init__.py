"""The page a run leaves behind: one self-contained HTML file."""

from ziphius.report.page import write_report

__all__ = ["write_report"]
