"""`python -m driftsched` is `driftsched`."""

from driftsched.cli import main

if __name__ == "__main__":
    main()
