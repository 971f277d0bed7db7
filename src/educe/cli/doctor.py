"""x."""

EXAMPLES = ""


def command() -> None:
    """x."""
