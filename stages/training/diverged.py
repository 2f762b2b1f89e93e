"""What ends a training that has left the numbers."""


class DivergedError(RuntimeError):
    """The loss has become NaN or infinite."""
