"""``python -m fewchannels``: the command, where its script is not on the path."""

from fewchannels.cli import main

if __name__ == "__main__":
    main()
