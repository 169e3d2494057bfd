"""`python -m handmade` is the command `handmade`."""

from handmade.cli import main

main()
