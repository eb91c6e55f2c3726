"""`python -m capsnet`, as torchrun starts it: the command line."""

import sys

from capsnet.cli import main

if __name__ == "__main__":
    sys.argv[0] = "capsnet"
    main()
