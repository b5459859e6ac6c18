"""`python -m hessprune` is the command line."""

from hessprune.lab.cli import main

if __name__ == "__main__":
    main()
