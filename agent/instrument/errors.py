"""What goes wrong with models."""


class InstrumentError(ValueError):
    """A file or model that cannot be observed, and why."""
