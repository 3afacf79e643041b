"""`python -m undertow`: the command, for an interpreter without its script on the path."""

from undertow.cli import main

if __name__ == "__main__":
    main()
