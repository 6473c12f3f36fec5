"""`python -m coxless` is the `coxless` command."""

from .cli import main

main(prog_name="coxless")
