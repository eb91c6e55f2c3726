"""`python -m capsnet`: the command line, as torchrun starts it."""

import sys

from capsnet.cli import main

if __name__ == "__main__":
    sys.argv[0] = "capsnet"
    main()
