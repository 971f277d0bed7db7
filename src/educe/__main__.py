"""``python -m educe``: the command line."""

from educe.cli.main import run

run()
