"""python -m gadjax.export --push uploads an export to a hub on loopback: every byte, once, to those who may see it."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Callable, Iterator

import pytest

from tests.hub_server import HubServer

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture
def hub(monkeypatch) -> Iterator[HubServer]:
    from huggingface_hub.utils import _http

    # Where the hub answers 503, its client would wait for seconds between its attempts.
    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)
    with HubServer() as server:
        server.use(monkeypatch)
        yield server


@pytest.fixture
def export(tmp_path) -> pathlib.Path:
    """An export of both networks, of small files."""
    for network, weights in {"generator": b"weights", "discriminator": b"other weights"}.items():
        folder = tmp_path / "export" / network
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(weights)
        (folder / "gadjax.json").write_text("{}")
        (folder / "README.md").write_text(f"---\ntags:\n- {network}\n---\n\n# A {network}\n\nAbout.\n\n## Training\n")
    (tmp_path / "export" / "generator" / "adapter").mkdir()
    (tmp_path / "export" / "generator" / "adapter" / "adapter_model.safetensors").write_bytes(b"adapters")
    return tmp_path / "export"


@pytest.fixture
def push(command, export) -> Callable:
    """Runs the command on the export."""
    return lambda *flags: command("gadjax.export", f"--out={export}", *flags)


def files(folder: pathlib.Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_run_is_exported_and_pushed(command, finished_run, hub, tmp_path):
    flags = (f"--workdir={finished_run.workdir}", f"--out={tmp_path}", "--step=4")
    done = command("gadjax.export", *flags, "--push=ada/student", "--push_discriminator=lab/judge")
    assert done.status == 0, done.err
    for network, name in {"generator": "ada/student", "discriminator": "lab/judge"}.items():
        assert hub.files(name) == files(tmp_path / network)
        assert hub.repositories[name]["private"] is True
    assert [title.partition(", gadjax")[0] for title in hub.commits] == ["generator, step 4", "discriminator, step 4"]


def test_an_earlier_export_is_pushed_as_it_is(push, export, hub):
    done = push("--push=ada/student")
    assert done.status == 0, done.err
    assert hub.files("ada/student") == files(export / "generator")
    assert list(hub.repositories) == ["ada/student"]


def test_what_goes_is_shown_before(push, export, hub):
    hub.fail["/api/repos/create"] = 403
    told = push("--push=ada/student").out
    size = (export / "generator" / "README.md").stat().st_size
    assert "uploading to ada/student (private)" in told
    assert f"{size} B  README.md" in told and "7 B  model.safetensors" in told and "adapter/adapter_model" in told
    assert "  # A generator\n" in told and "Training" not in told


@pytest.mark.parametrize(("flags", "private"), [((), True), (("--public",), False)])
def test_a_repository_is_private_unless_told(push, hub, flags, private):
    assert push("--push=ada/student", *flags).status == 0
    assert hub.repositories["ada/student"]["private"] is private


def test_another_push_sends_what_has_changed(push, export, hub):
    """Weights that are there are not sent, and those of an earlier export do not stay; a person's files do."""
    assert push("--push=ada/student").status == 0
    hub.files("ada/student")["picture.png"] = b"mine"
    hub.requests.clear()
    shutil.rmtree(export / "generator" / "adapter")
    (export / "generator" / "config.json").write_text("{}")
    assert push("--push=ada/student").status == 0
    assert hub.files("ada/student") == files(export / "generator") | {"picture.png": b"mine"}
    assert not [request for request in hub.requests if request.startswith("PUT")]


@pytest.mark.parametrize(
    ("path", "status", "remedy"),
    [
        ("/api/repos/create", 403, "use a token that may write there"),
        ("/api/models/ada/student/preupload", 500, "run it again later"),
        ("/ada/student.git", 503, "run it again later"),
        ("/lfs/", 403, "use a token that may write there"),
        ("/api/models/ada/student/commit", 409, "somebody else writes there; run it again"),
        ("/api/models/ada/student/commit", 401, "run `hf auth login`, or set HF_TOKEN to a valid token"),
        ("/api/models/ada/student/commit", 429, "the hub wants fewer requests; run it again later"),
    ],
)
def test_an_upload_that_fails_is_one_line_and_can_go_on(push, export, hub, path, status, remedy):
    before = files(export)
    hub.fail[path] = status
    done = push("--push=ada/student")
    (error,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert done.status == 2 and "Traceback" not in done.err
    assert error.startswith(f"error: --push=ada/student: the hub answers {status} (")
    assert error.endswith(f": {remedy}; {export / 'generator'} is complete and stays")
    assert files(export) == before

    hub.fail.clear()
    assert push("--push=ada/student").status == 0
    assert hub.files("ada/student") == files(export / "generator")


def test_a_hub_that_is_away(push, hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    done = push("--push=ada/student")
    assert done.status == 2 and done.err.startswith("error: --push=ada/student: the hub gives no answer (")
    assert len(done.err.splitlines()) == 1


class TestBeforeAnythingIsWritten:
    """Nothing is exported, and no repository is made."""

    @pytest.fixture
    def refused(self, command, finished_run, hub, tmp_path) -> Callable:
        def run(*flags: str) -> str:
            done = command("gadjax.export", f"--workdir={finished_run.workdir}", f"--out={tmp_path / 'out'}", *flags)
            assert done.status == 2 and len(done.err.splitlines()) == 1
            assert not (tmp_path / "out").exists()
            assert "POST /api/repos/create" not in hub.requests
            return done.err

        return run

    def test_no_token(self, refused, monkeypatch, tmp_path):
        from huggingface_hub import constants

        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        assert refused("--push=ada/student") == (
            "error: --push=ada/student: no token for the hub: run `hf auth login`, or set HF_TOKEN\n"
        )

    def test_a_token_that_the_hub_refuses(self, refused, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", "hf_old")
        told = refused("--push=ada/student")
        assert "the hub answers 401 (" in told and told.endswith("or set HF_TOKEN to a valid token\n")
        assert "hf_old" not in told

    def test_a_token_that_may_only_read(self, refused, hub):
        hub.user["auth"]["accessToken"]["role"] = "read"
        assert "the token may only read; make one that may write" in refused("--push=ada/student")

    def test_another_owner(self, refused):
        told = refused("--push=eve/student")
        assert "the token is of ada, who may upload to ada, lab, not to eve" in told

    @pytest.mark.parametrize("name", ["student", "ada/student/x", "ada/my model", "ada/..", "/student"])
    def test_a_name_that_is_none(self, refused, hub, name):
        assert refused(f"--push={name}").startswith(f"error: --push={name}: ")
        assert hub.requests == [], "the hub is not asked"

    @pytest.mark.parametrize(("private", "flags"), [(False, ()), (True, ("--public",))])
    def test_a_repository_that_others_may_see_or_may_not(self, refused, hub, private, flags):
        hub.repositories["ada/student"] = {"private": private, "files": {}}
        told = refused("--push=ada/student", *flags)
        assert f"the repository is there and {'private' if private else 'public'}: push with" in told
        assert hub.files("ada/student") == {}

    def test_flags_that_do_not_go_together(self, refused):
        assert "give each network its own" in refused("--push=ada/a", "--push_discriminator=ada/a")
        assert "give --push=OWNER/NAME too" in refused("--public")


def test_what_is_no_export_is_not_pushed(push, export, hub):
    (export / "generator" / "gadjax.json").unlink()
    done = push("--push=ada/student", "--push_discriminator=ada/judge")
    assert done.status == 2 and f"there is no export in {export / 'generator'}" in done.err
    assert hub.repositories == {}
    assert push().err == "error: no run to export: give --workdir\n"
