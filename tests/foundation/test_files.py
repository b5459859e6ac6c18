import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hessprune.errors import DataError, OutputError
from hessprune.foundation import files as _files


def test_a_folder_in_place_of_a_file_is_named(tmp_path):
    with pytest.raises(OutputError, match=rf"must be a file, got the folder '{tmp_path}'\. Add the name of a file"):
        _files.write_text(tmp_path, "text")


def test_a_written_file_reads_back_and_leaves_no_neighbour(tmp_path):
    target = tmp_path / "new" / "value.json"
    _files.write_json(target, {"α": [1, 2.5, None]})
    assert _files.read_json(target) == {"α": [1, 2.5, None]}
    assert [path.name for path in target.parent.iterdir()] == ["value.json"]


def test_a_failing_block_keeps_the_former_file(tmp_path):
    target = _files.write_text(tmp_path / "a.txt", "old")

    def interrupted():
        with _files.replacing(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        interrupted()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_staged_files_arrive_together_or_not_at_all(tmp_path):
    def stage(fails: bool):
        with _files.staging(tmp_path / "out") as folder:
            (folder / "a").write_text(str(fails))
            (folder / "b").write_text(str(fails))
            if fails:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    stage(fails=False)
    with pytest.raises(OutputError, match=r"No space left on device.*Free the disk"):
        stage(fails=True)
    assert [(path.name, path.read_text()) for path in sorted((tmp_path / "out").iterdir())] == [
        ("a", "False"),
        ("b", "False"),
    ]


def test_writable_folder_creates_parents_and_stays_empty(tmp_path):
    folder = _files.writable_folder(tmp_path / "a" / "b")
    assert folder.is_dir()
    assert list(folder.iterdir()) == []


def test_a_file_in_place_of_the_folder_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"output must be writable, got '.*file'.*another folder"):
        _files.writable_folder(tmp_path / "file")
    with pytest.raises(OutputError, match="output must be writable"):
        _files.write_text(tmp_path / "file" / "below.txt", "")


def test_a_full_disk_is_one_clear_error_and_the_former_file_stays(tmp_path, monkeypatch):
    target = _files.write_text(tmp_path / "a.txt", "old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"No space left on device.*Free the disk"):
        _files.write_text(target, "new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into read-only folders")
def test_a_read_only_folder_is_one_clear_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="Permission denied"):
        _files.writable_folder(tmp_path)


def test_missing_unreadable_and_truncated_json_are_named(tmp_path):
    with pytest.raises(DataError, match=r"file must exist, got '.*absent.json'"):
        _files.read_json(tmp_path / "absent.json")
    with pytest.raises(DataError, match="file must be readable"):
        _files.read_json(tmp_path)
    half = Path(_files.write_text(tmp_path / "half.json", '{"a": 1'))
    with pytest.raises(DataError, match=r"file must hold JSON, got '.*half.json'"):
        _files.read_json(half)


def test_json_without_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        _files.write_json(tmp_path / "nan.json", float("nan"))


def test_sha256_of_text_is_that_of_its_bytes():
    assert _files.sha256("é") == _files.sha256("é".encode())


def test_a_disk_that_fills_while_weights_are_written_is_one_clear_error(tmp_path):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(OutputError, match=r"output must be writable, got .*File too large"):  # noqa: SIM117
            with _files.replacing(tmp_path / "a.safetensors") as path:
                save_file({"a": torch.zeros(1000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())
