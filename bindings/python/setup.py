"""What pyproject.toml cannot say: the wheel's tag. build_wheel.py runs this, and checks the library."""

import os
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.dist import Distribution


class BinaryDistribution(Distribution):
    """The wheel holds a library, so that it is no wheel for every platform."""

    def has_ext_modules(self):
        return True


class Wheel(bdist_wheel):
    def get_tag(self):
        if not list(Path("src/libsiren/lib").glob("libsiren.so.*")):
            raise SystemExit("src/libsiren/lib has no library: build the wheel with build_wheel.py PREFIX OUT")
        # The library is opened with ctypes: every Python 3 will do.
        return "py3", "none", os.environ["SIREN_WHEEL_PLATFORM"]


setup(distclass=BinaryDistribution, cmdclass={"bdist_wheel": Wheel})
