"""`python -m unjam`: the same as the `unjam` command."""

from unjam.cli.main import main

if __name__ == "__main__":
    main()
