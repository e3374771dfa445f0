"""The build backend: setuptools, with the list of a source distribution's files in this folder."""

from setuptools.build_meta import *  # noqa: F403 - the hooks are setuptools' own
from setuptools.command.egg_info import manifest_maker

manifest_maker.template = ".ci/MANIFEST.in"
