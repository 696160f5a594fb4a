"""Capsules in folders and on a Hub that is a fake; nothing is asked unless it is meant."""

import sys
import types

import pytest

from attnseg import cli
from attnseg.errors import ConfigError, ResourceError
from attnseg.prediction.capsule import Capsule
from attnseg.prediction.hub import fetch_capsule, publish_capsule
from tests.export import made


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The client, its requests noted, its files in a folder."""
    asked = []

    class HfApi:
        def create_repo(self, repo_id, private, exist_ok):
            asked.append(("create", repo_id, private))

        def upload_file(self, path_or_fileobj, path_in_repo, repo_id, revision, commit_message):
            asked.append(("upload", repo_id, path_in_repo, revision))
            (tmp_path / path_in_repo).write_bytes(path_or_fileobj)

    def hf_hub_download(repo_id, filename, revision):
        asked.append(("download", repo_id, filename, revision))
        if repo_id == "no/body":
            raise OSError("404 not found\nand much more")
        return str(tmp_path / filename)

    module = types.ModuleType("huggingface_hub")
    module.__spec__ = types.SimpleNamespace()
    module.HfApi, module.hf_hub_download, module.asked = HfApi, hf_hub_download, asked
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return asked


def test_a_folder(tmp_path, hub):
    path = made.write(tmp_path / "c.zip")
    publish_capsule(str(path), str(tmp_path / "shared" / "models"))
    found = fetch_capsule(str(tmp_path / "shared" / "models"))
    assert found.read_bytes() == path.read_bytes()
    card = (tmp_path / "shared/models/README.md").read_text()
    assert card.startswith("---\nlibrary_name: attnseg\n") and card.endswith("# A card\n")
    assert fetch_capsule(str(path)) == path
    assert hub == []


def test_the_hub(tmp_path, hub):
    path = made.write(tmp_path / "c.zip")
    publish_capsule(str(path), "hf://some/body")
    assert Capsule(fetch_capsule("hf://some/body@v1")).digest == Capsule(path).digest
    assert hub == [
        ("create", "some/body", True),
        ("upload", "some/body", "capsule.zip", None),
        ("upload", "some/body", "README.md", None),
        ("download", "some/body", "capsule.zip", "v1"),
    ]


def test_a_hub_that_has_it_not(hub):
    with pytest.raises(ResourceError, match=r"^hf://no/body: 404 not found; "):
        fetch_capsule("hf://no/body")


@pytest.mark.parametrize("place", ["hf://nobody", "hf://a/b/c", "https://example.org/c.zip"])
def test_places_that_cannot_be(hub, place):
    with pytest.raises(ConfigError):
        fetch_capsule(place)
    assert hub == []


def test_a_damaged_capsule_is_not_published(call, tmp_path, hub):
    path = made.write(tmp_path / "c.zip")
    path.write_bytes(path.read_bytes()[:-1])
    answer = call(f"capsule={path}", "to=hf://some/body", command=cli.publish)
    assert answer.code == 4 and hub == []


def test_without_the_client(monkeypatch, call, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'attnseg\[hub\]'"):
        fetch_capsule("hf://some/body")
