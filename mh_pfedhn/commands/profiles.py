"""`mh-pfedhn profiles`: what can be run, by which methods, and every key that can be set."""

import argparse

from common.config import described_comparisons, described_methods, keys_with_help, profiles
from mh_pfedhn.commands import Subparsers


def add(commands: Subparsers) -> None:
    """Declare the command."""
    commands.add_parser("profiles", help="list profiles, methods and keys").set_defaults(handle=_profiles)


def _profiles(options: argparse.Namespace) -> int:
    print("Profiles (join several with '+', later ones win):")
    for name, description in profiles():
        print(f"  {name:<38} {description}")
    print("\nComparisons (mh-pfedhn compare NAME):")
    for name, description in described_comparisons():
        print(f"  {name:<38} {description}")
    print("\nMethods (-c method=NAME):")
    for name, description in described_methods():
        print(f"  {name:<38} {description}")
    print("\nKeys (-c KEY=VALUE), with the defaults that profiles start from:")
    of_last = ""
    for of, key, default, text in keys_with_help():
        if of != of_last:
            print(f"\nof {of}:")
        print(f"  {key + ' = ' + str(default):<34} {text}")
        of_last = of
    return 0
