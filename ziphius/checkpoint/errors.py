"""What a folder that cannot be read says."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A checkpoint folder that is not whole, or not of this family: one line naming the file or tensor and the mend."""
