"""Builds the package from settings.ini, the one place for its name, version and requirements."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).resolve().parent
config = ConfigParser(delimiters=["="], interpolation=None)
config.read(here/"settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]


class BuildWithTutorials(build_py):
    """Adds the notebooks to the built package as `labelkit/tutorials`; the source tree stays as it
    is"""

    def tutorials(self):
        "Pairs (notebook in nbs/, its place in the build)"
        nbs = here/"nbs"
        dest = Path(self.build_lib)/cfg["lib_name"]/"tutorials"
        found = (p.relative_to(nbs) for p in sorted(nbs.rglob("*.ipynb")))
        return [(nbs/p, dest/p) for p in found if not any(part[0] in "._" for part in p.parts)]

    def run(self):
        super().run()
        if self.editable_mode: return
        for src, dst in self.tutorials():
            self.mkpath(str(dst.parent))
            self.copy_file(str(src), str(dst), preserve_mode=False)

    def get_outputs(self, include_bytecode=1):
        return super().get_outputs(include_bytecode) + (
            [] if self.editable_mode else [str(d) for _, d in self.tutorials()]
        )


setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    keywords=cfg["keywords"],
    author=cfg["author"],
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=" + cfg["min_python"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    packages=find_packages(include=["labelkit", "labelkit.*"]),
    include_package_data=True,
    zip_safe=False,
    package_data={"labelkit": ["py.typed", "static/**/*", "assets/**/*"]},
    cmdclass={"build_py": BuildWithTutorials},
    install_requires=cfg["requirements"].split(),
    extras_require={
        "dev": (cfg["dev_requirements"] + " " + cfg["bench_requirements"]).split(),
        "bench": cfg["bench_requirements"].split(),
    },
    entry_points={"console_scripts": cfg["console_scripts"].split("\n")},
)
