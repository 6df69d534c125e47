"""Names the packages: the repository root is `gradfuse`, every room below it a sub-package."""

from setuptools import find_packages, setup

NOT_SHIPPED = ("tests", "benchmarks", "scripts", "docs")

rooms = find_packages(exclude=[pattern for name in NOT_SHIPPED for pattern in (name, f"{name}.*")])
setup(
    packages=["gradfuse", *(f"gradfuse.{room}" for room in rooms)],
    script_name="setup.py",  # a build front end leaves its own name here, and this file would count as a module
)
