"""The commands of `mh-pfedhn`, one file each: `add` declares its arguments, and its handler returns the exit code."""

import argparse
from typing import TypeAlias

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
