"""What a Flex Template starts: it knows no sub-commands, so `annotate` is put before its parameters."""

import sys

from run_pipeline import main

if __name__ == "__main__":
    sys.exit(main(["annotate", *sys.argv[1:]]))
