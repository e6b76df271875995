"""python -m lutra: the command line, where its script is not on the PATH."""

from lutra.cli import main

if __name__ == "__main__":
    main()
