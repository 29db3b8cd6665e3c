"""Brings the examples of `jobs/` into what is built; all else is in pyproject.toml.

They lie outside of the package, where package-data does not reach. A wheel has them in `raystage/examples`.
"""

from __future__ import annotations

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

EXAMPLES = (
    "jobs/schedules/*.yaml",
    "jobs/schedules/recipes/*.yaml",
    "jobs/sweeps/*.yaml",
    "jobs/text/*.*",
    "jobs/text/characters/*",
)


def examples() -> list[str]:
    """By their paths from here, where a build runs."""
    found = [sorted(Path().glob(pattern)) for pattern in EXAMPLES]
    if not all(found):
        raise SystemExit(f"no files for {' or '.join(EXAMPLES)}: the examples are missing")
    return [path.as_posix() for paths in found for path in paths]


class BuildWithExamples(build_py):
    """An editable install has none of its own, and reads those of `jobs/`."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for source, target in self._examples().items():
                self.mkpath(str(Path(target).parent))
                self.copy_file(source, target, preserve_mode=False)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        ours = [] if self.editable_mode else [*self._examples().values()]
        return [*super().get_outputs(include_bytecode), *ours]

    def get_source_files(self) -> list[str]:
        """For a source distribution, which has to be built from, too."""
        return [*super().get_source_files(), *self._examples()]

    def _examples(self) -> dict[str, str]:
        """Where each goes."""
        built = Path(self.build_lib) / "raystage" / "examples"
        return {source: str(built / Path(source).relative_to("jobs")) for source in examples()}


setup(cmdclass={"build_py": BuildWithExamples})
