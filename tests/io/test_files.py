"""Atomic writing under every kind of interruption, reading with exact places, YAML, JSON lines, hashes."""

from __future__ import annotations

import errno
import gzip
import os
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpq.io import (
    BadInput,
    Hyp,
    LatticeBuilder,
    NBest,
    atomic_path,
    atomic_write,
    check_writable,
    hash_config,
    open_text,
    os_errors,
    read_jsonl,
    read_kaldi_nbest,
    read_lines,
    read_yaml,
    sha256_file,
    write_jsonl,
    write_kaldi_nbest,
    write_lattices,
    write_yaml,
)


def test_content_appears_at_the_end_and_all_at_once(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.txt"
    with atomic_write(path) as file:
        file.write("grün\n")
        assert not path.exists()
    assert path.read_bytes() == "grün\n".encode()
    assert os.listdir(path.parent) == ["file.txt"]


@pytest.mark.parametrize("interruption", [RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("name", ["file.txt", "file.txt.gz"])
def test_any_exception_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, name: str, interruption: type[BaseException]
) -> None:
    path = tmp_path / name
    path.write_text("old")
    with pytest.raises(interruption), atomic_write(path) as file:
        file.write("half of the new")
        raise interruption
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == [name]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may grow beyond this: like a full disk, for this process only."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("name", ["file.txt", "file.txt.gz"])
def test_no_room_names_the_file_and_leaves_the_old_one(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("old")
    with pytest.raises(OSError) as caught, largest_file(4096), atomic_write(path) as file:
        file.write("".join(str(hash((i, name))) for i in range(20_000)))
    assert caught.value.errno == errno.EFBIG
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == [name]


def test_no_room_for_what_a_library_writes(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with pytest.raises(OSError) as caught, largest_file(4096), atomic_write(path, "wb") as file, os_errors():
        torch.save({"a": torch.zeros(100_000)}, file)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))
    assert os.listdir(tmp_path) == []
    with pytest.raises(RuntimeError, match="another"), os_errors():
        raise RuntimeError("another")


def test_no_room_for_k2_lattices(tmp_path: Path) -> None:
    long = LatticeBuilder("u")
    for state in range(5000):
        long.add_arc(state, state + 1, 1, (0.0, 0.0, ()))
    long.set_final(5000, (0.0, 0.0, ()))
    with pytest.raises(OSError) as caught, largest_file(4096):
        write_lattices(tmp_path / "lat.pt", [long.build()])
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(tmp_path / "lat.pt"))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("there", [False, True])
def test_no_room_for_a_folder(tmp_path: Path, there: bool) -> None:
    folder, old = tmp_path / "nbest", [NBest("u", [Hyp("a b", -1.0, -2.0)])]
    if there:
        write_kaldi_nbest(folder, old)
    # words_text fits, the costs of many digits do not
    new = [NBest(f"u{i}", [Hyp("w", -1 / (i + 3), -1 / (i + 7))]) for i in range(200)]
    with pytest.raises(OSError) as caught, largest_file(4096):
        write_kaldi_nbest(folder, new)
    assert caught.value.errno == errno.EFBIG and caught.value.filename in (f"{folder}/ac_cost", f"{folder}/lm_cost")
    assert os.listdir(tmp_path) == (["nbest"] if there else [])
    if there:
        assert list(read_kaldi_nbest(folder)) == old
        (folder / "other").touch()
    write_kaldi_nbest(folder, new)
    assert list(read_kaldi_nbest(folder)) == new and (folder / "other").exists() == there
    assert os.listdir(tmp_path) == ["nbest"]


def test_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        (disk / "file").write_text("old")
        with pytest.raises(OSError) as caught, atomic_write(disk / "file") as file:
            file.write("x" * 200_000)
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(disk / "file"))
        assert (disk / "file").read_text() == "old"
        assert os.listdir(disk) == ["file"]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    program = f"""
        import os, signal
        from mpq.io import atomic_write
        with atomic_write({str(path)!r}) as file:
            file.write("x" * 100_000)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], env={**os.environ, "PYTHONPATH": "."})
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"


def test_gzip_has_no_time_stamp(tmp_path: Path) -> None:
    for name in ("a.gz", "b.gz"):
        with atomic_write(tmp_path / name) as file:
            file.write("content\n" * 100)
    data = (tmp_path / "a.gz").read_bytes()
    assert data == (tmp_path / "b.gz").read_bytes()
    assert data[4:8] == b"\0\0\0\0"
    assert gzip.decompress(data) == b"content\n" * 100


def test_links_are_written_through_and_permissions_follow_the_umask(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    old = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "link", "wb") as file:
            file.write(b"new")
    finally:
        os.umask(old)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"
    assert (tmp_path / "target").stat().st_mode & 0o777 == 0o640


def test_a_device_stays_a_device() -> None:
    with atomic_write("/dev/null") as file:
        file.write("away")
    assert Path("/dev/null").is_char_device()


def test_atomic_path_keeps_the_suffix_and_needs_the_file(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a.flac") as temporary:
        assert temporary.suffix == ".flac"
        temporary.write_bytes(b"sound")
    assert (tmp_path / "a.flac").read_bytes() == b"sound"
    with pytest.raises(FileNotFoundError) as caught, atomic_path(tmp_path / "b.flac"):
        pass
    assert caught.value.filename == str(tmp_path / "b.flac")


def test_a_folder_cannot_be_written_or_read(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is a folder"), atomic_write(tmp_path):
        pass
    with pytest.raises(BadInput, match="is a folder"):
        open_text(tmp_path)


def test_missing_files_say_what_to_do(tmp_path: Path) -> None:
    for read in (open_text, sha256_file, read_yaml, lambda path: list(read_jsonl(path))):
        with pytest.raises(BadInput, match=r"none\.txt: no such file; check the path"):
            read(tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("latin", "gut\nh\xfctte\n".encode("latin-1"), r"latin:2: byte 0xfc is not UTF-8; convert the file"),
        ("packed", gzip.compress(b"text"), r"packed: is gzip data; give it a name that ends in \.gz"),
        ("wide", "text".encode("utf-16"), r"wide: is UTF-16, expected UTF-8; convert it"),
        ("latin.gz", gzip.compress(b"a\n\xe9\n"), r"latin\.gz:2: byte 0xe9 is not UTF-8"),
        ("cut2.gz", gzip.compress(b"\xe9" + os.urandom(3000))[:-200], r"cut2\.gz(:1)?: (byte 0x.. )?is not UTF-8"),
        ("cut.gz", gzip.compress(os.urandom(3000).hex().encode())[:-200], r"cut\.gz: after line 0: broken gzip"),
        ("plain.gz", b"not compressed\n", r"plain\.gz: after line 0: broken gzip data .*"),
    ],
)
def test_broken_text_names_the_place(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(BadInput, match=message):
        list(read_lines(path))


def test_a_name_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    for name in ("file/new", "file/new/deeper"):
        with pytest.raises(BadInput, match=r"file is not a folder; write to another place"):
            check_writable(tmp_path / name)
    with pytest.raises(BadInput, match="file is not a folder"), atomic_write(tmp_path / "file" / "new"):
        pass
    os.symlink("file", tmp_path / "link")
    check_writable(tmp_path / "file", [None, tmp_path / "other"])
    with pytest.raises(BadInput, match="link: is also an input"):
        check_writable(tmp_path / "link", [None, tmp_path / "file"])
    assert (tmp_path / "file").read_text() == "old"


def test_a_byte_order_mark_and_windows_line_ends_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert list(read_lines(tmp_path / "file")) == [(1, "one"), (2, "two")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", r":3: not valid YAML: key 'a' is given twice"),
        ("a: [1, 2\nb: 3\n", r":2: not valid YAML"),
        ("- a\n- b\n", r"expected 'key: value' lines at the top level, found a list"),
        ("1: a\n", r"expected 'key: value' lines"),
        ("a: !!python/object:os.system x\n", r":1: not valid YAML"),
    ],
)
def test_wrong_yaml(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(BadInput, match=message) as caught:
        read_yaml(tmp_path / "c.yaml")
    assert "\n" not in str(caught.value)


def test_yaml_round_trip(tmp_path: Path) -> None:
    config = {"b": 1, "a": {"list": [1, 2.5, "x"], "none": None, "word": "grün"}}
    write_yaml(tmp_path / "c.yaml", config)
    assert read_yaml(tmp_path / "c.yaml") == config
    assert list(read_yaml(tmp_path / "c.yaml")) == ["b", "a"]
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert read_yaml(tmp_path / "empty.yaml") == {}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)


@given(rows=st.lists(st.dictionaries(st.text(), JSON, max_size=4), max_size=4), suffix=st.sampled_from(["", ".gz"]))
def test_jsonl_round_trip(rows: list[dict[str, object]], suffix: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("jsonl") / f"rows{suffix}"
    write_jsonl(path, rows)
    assert list(read_jsonl(path)) == list(enumerate(rows, start=1))


def test_wrong_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    for line, message in (
        ('{"a": ', r"rows:2: not JSON \(.* at column 7\)"),
        ("[1]", r"rows:2: .* found list"),
        ("", "rows:2: an empty line"),
    ):
        path.write_text('{"a": 1}\n' + line + "\n")
        with pytest.raises(BadInput, match=message):
            list(read_jsonl(path))
    with pytest.raises(BadInput, match="row 2 holds NaN"):
        write_jsonl(path, [{"a": 1.0}, {"a": float("nan")}])
    assert path.read_text().startswith('{"a": 1}')


def test_hash_config_is_of_the_content_only() -> None:
    assert hash_config({"a": 1, "b": [1.5, "x"]}) == hash_config({"b": [1.5, "x"], "a": 1})
    assert hash_config({"a": 1}) != hash_config({"a": 2})
    assert hash_config(Path("x")) == hash_config("x")
    with pytest.raises(TypeError, match="set cannot be part"):
        hash_config({"a": {1, 2}})
