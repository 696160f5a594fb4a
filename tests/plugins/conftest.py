"""The package of docs/extending.md, installed for one test."""

import sys
from pathlib import Path

import pytest

from attnseg import plugins
from tests.plugins.package import install_package


@pytest.fixture(scope="session")
def package(tmp_path_factory) -> Path:
    """Folder with the package; read only."""
    return install_package(tmp_path_factory.mktemp("site"))


@pytest.fixture
def clean(monkeypatch):
    """Forget what a test installs, adds and imports."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = {*sys.modules}
    yield
    plugins._files.clear()
    forget()
    for name in {*sys.modules} - before:
        if name.startswith("my_"):
            del sys.modules[name]


def forget() -> None:
    """Let the next call look for installed plugins again."""
    plugins.list_installed.cache_clear()


@pytest.fixture
def installed(clean, package, monkeypatch) -> Path:
    """Install the package; return its folder."""
    monkeypatch.syspath_prepend(package)
    forget()
    return package
