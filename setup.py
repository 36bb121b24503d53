"""What pyproject.toml cannot say: a man page and a completion are made of the parser."""

import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent


class BuildWithDocuments(build_py):
    """Build the modules of today, and the documents that are installed with them.

    Everything is written into the build directory only.
    """

    def run(self) -> None:
        """Forget modules of an earlier build, build, and let `install_data` find the documents."""
        package = Path(self.build_lib, "buttervolume")
        if not self.editable_mode:
            shutil.rmtree(package, ignore_errors=True)
        super().run()
        documents = Path(self.get_finalized_command("build").build_temp, "documents")
        documents.mkdir(parents=True, exist_ok=True)
        self.distribution.data_files = self.make_documents(documents)

    def make_documents(self, directory: Path) -> list[tuple[str, list[str]]]:
        """Make the man page and the completion for bash; where each is to be installed."""
        import shtab

        try:
            from argparse_manpage.manpage import Manpage
        except ImportError:  # before version 3, as in Debian 12
            from build_manpages.manpage import Manpage

        sys.path.insert(0, str(HERE))
        from buttervolume.cli.completion import PREAMBLE, completed
        from buttervolume.cli.parser import build_parser

        parser = build_parser()
        parser.man_short_description = self.distribution.get_description()
        page = Manpage(parser)
        page.description = self.distribution.get_description()
        page.source = self.distribution.get_fullname()
        page.manual = "Buttervolume"
        man_page, completion = directory / "buttervolume.1", directory / "buttervolume"
        man_page.write_text(str(page), encoding="utf-8")
        script = shtab.complete(completed(build_parser()), "bash", preamble={"bash": PREAMBLE})
        completion.write_text(script, encoding="utf-8")
        return [
            ("share/man/man1", [str(man_page)]),
            ("share/bash-completion/completions", [str(completion)]),
        ]


setup(license="Apache-2.0", cmdclass={"build_py": BuildWithDocuments})
