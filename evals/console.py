"""Where tables go."""

from rich.console import Console


def screen(width: int = 160) -> Console:
    """The terminal; elsewhere, a console of `width` columns: a file has no width, and cut columns help nobody."""
    console = Console()
    return console if console.is_terminal else Console(width=width)
