"""`python -m leanvit` is the program `leanvit`."""

from leanvit.cli.main import main

main()
