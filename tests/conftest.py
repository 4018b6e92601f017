"""What all tests share: thread limits, skip rules that say why, AN4, and a runner for the command `mpq`."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# before torch or numpy are imported: a test uses one core
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

MpqCli = Callable[..., "subprocess.CompletedProcess[str]"]


def lacking(marker: str) -> str | None:
    """Why tests with this marker cannot run here; None where they can."""
    if marker == "k2" and importlib.util.find_spec("k2") is None and not (ROOT / ".venv-k2" / "mpq-mark").exists():
        return "k2 is not installed here, nor is there .venv-k2; utils/k2_env.sh makes it where there is a CPython 3.9"
    if marker == "slurm" and not slurm_answers():
        if not all(map(shutil.which, ("munged", "slurmctld", "slurmd"))):
            return "no SLURM cluster answers (sinfo), nor is there a SLURM to start; utils/install_apt.sh installs it"
        if os.getuid() != 0:
            return "no SLURM cluster answers (sinfo), and starting one of this machine needs root"
    if marker == "gpu":
        import torch

        if not torch.cuda.is_available():
            return "no CUDA device"
    return None


def slurm_answers() -> bool:
    """Is there a SLURM cluster already?"""
    return bool(shutil.which("sinfo") and subprocess.run(["sinfo", "-h"], capture_output=True).stdout.strip())


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A SLURM cluster: the one there is, or one of this machine alone."""
    if slurm_answers():
        yield
        return
    script, folder = ROOT / "utils" / "slurm_node.sh", tmp_path_factory.mktemp("slurm") / "node"
    try:
        started = subprocess.run([script, "start", folder], capture_output=True, text=True, timeout=60)
        assert started.returncode == 0, started.stderr
        os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
        yield
    finally:
        os.environ.pop("SLURM_CONF", None)
        subprocess.run([script, "stop", folder], capture_output=True, timeout=60)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what this machine cannot run, with the reason."""
    for marker in ("k2", "slurm", "gpu"):
        marked = [item for item in items if item.get_closest_marker(marker)]
        reason = lacking(marker) if marked else None
        for item in marked:
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))
            elif marker == "slurm":
                item.fixturenames.insert(0, "slurm")  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def an4_tar() -> Path:
    """The archive of AN4 in FLAC: $AN4_TAR, or ../shared/data/an4.tar beside the project."""
    path = Path(os.environ.get("AN4_TAR", ROOT.parent / "shared" / "data" / "an4.tar"))
    if not path.is_file():
        pytest.skip(f"AN4 is not at {path}; set AN4_TAR to an4.tar")
    return path


@pytest.fixture(scope="session")
def an4_dir(an4_tar: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AN4 unpacked: a folder with wav/ and etc/ (read it only)."""
    folder = tmp_path_factory.mktemp("an4")
    with tarfile.open(an4_tar) as archive:
        if sys.version_info >= (3, 12):
            archive.extractall(folder, filter="data")
        else:
            archive.extractall(folder)
    return folder / "an4"


@pytest.fixture(scope="session")
def librispeech_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small synthetic LibriSpeech, its language model files in the folder beside it (read it only)."""
    from tests.corpora.librispeech import make_librispeech

    return make_librispeech(tmp_path_factory.mktemp("librispeech"))


@pytest.fixture(scope="session")
def ami_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small synthetic AMI: audio and annotations in one folder (read it only)."""
    from tests.corpora.ami import make_ami

    return make_ami(tmp_path_factory.mktemp("ami"))


@pytest.fixture(scope="session")
def swbd_dirs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A small synthetic Switchboard with its tests and Fisher's text, in six folders (read them only)."""
    from tests.corpora.swbd import make_swbd

    return make_swbd(tmp_path_factory.mktemp("swbd"))


@pytest.fixture(scope="session")
def sctk_bin() -> Path:
    """Folder with NIST sclite and sc_stats."""
    for folder in (Path("/usr/lib/sctk/bin"), *map(Path, os.environ.get("PATH", "").split(os.pathsep))):
        if (folder / "sclite").is_file():
            return folder
    pytest.skip("no sclite; utils/install_apt.sh installs sctk")


@pytest.fixture
def mpq_cli(tmp_path: Path) -> MpqCli:
    """Runs ``mpq WORDS...`` as a user does: ``mpq_cli("score", "--ref", path).returncode``.

    Keywords of `subprocess.run` may be given; the folder is ``tmp_path`` unless ``cwd`` says otherwise.
    """

    def run(*words: object, **options: object) -> subprocess.CompletedProcess[str]:
        env = dict(os.environ, PYTHONPATH=str(ROOT), LC_ALL="C", PYTHONUTF8="1")
        env.update(options.pop("env", {}))  # type: ignore[call-overload]
        settings: dict[str, object] = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 250}
        settings.update(options)
        command = [sys.executable, "-m", "mpq", *map(str, words)]
        return subprocess.run(command, env=env, **settings)  # type: ignore[call-overload, no-any-return]

    return run
