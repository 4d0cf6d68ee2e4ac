"""Results travel as one file, and an archive writes where it may and nowhere else."""

import io
import tarfile

import pytest

from looped_lib.core.files import write_json
from looped_lib.runs.archive import ArchiveError, main, pack, unpack


def make_runs(root):
    run = root / "runs" / "paper" / "stars" / "random-seed0"
    (run / "checkpoints").mkdir(parents=True)
    config = {"data": f"{root.resolve()}/data/train.jsonl"}
    write_json(run / "config.json", config)
    write_json(run / "result.json", {"accuracy": [1.0], "config": config})
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    (run / "checkpoints" / "model.safetensors").write_bytes(b"weights")
    write_json(root / "runs" / "paper" / "timings.json", {"step": 1})
    write_json(root / "runs" / "paper" / "stars" / "at_work" / "config.json", {})  # no result: not finished


def test_what_is_packed_is_unpacked_into_the_records(tmp_path):
    make_runs(tmp_path / "there")
    names = pack(tmp_path / "there" / "runs" / "paper", tmp_path / "a.tar.gz", tmp_path / "there")
    run = "paper/stars/random-seed0"
    assert names == ["paper/timings.json", *(f"{run}/{name}" for name in ("result.json", "metrics.jsonl"))]
    written = unpack(tmp_path / "a.tar.gz", tmp_path / "here")
    recorded = tmp_path / "here" / "runs" / "recorded"
    assert written == [recorded / name for name in names]
    assert sorted(p for p in (tmp_path / "here").rglob("*") if p.is_file()) == sorted(written)
    assert "there" not in (recorded / run / "result.json").read_text()  # a record speaks of no machine
    assert (recorded / run / "metrics.jsonl").read_text() == '{"step": 1}\n'


@pytest.mark.parametrize(
    "name, kind, message",
    [
        ("../outside/result.json", tarfile.REGTYPE, "must be a path below runs/"),
        ("paper/../../../result.json", tarfile.REGTYPE, "must be a path below runs/"),
        ("/etc/result.json", tarfile.REGTYPE, "must be a path below runs/"),
        ("result.json", tarfile.REGTYPE, "must be a path below runs/"),
        ("recorded/x/result.json", tarfile.REGTYPE, "must be a path below runs/"),
        ("paper/x/model.safetensors", tarfile.REGTYPE, "is not one of result.json"),
        ("paper/x/result.json", tarfile.SYMTYPE, "must be a file, and is a link"),
        ("paper/x/result.json", tarfile.LNKTYPE, "must be a file, and is a link"),
        ("paper/result.json", tarfile.DIRTYPE, "must be a file, and is a link, a folder"),
    ],
)
def test_an_archive_with_anything_else_is_refused_whole(tmp_path, name, kind, message):
    with tarfile.open(tmp_path / "bad.tar.gz", "w:gz") as file:
        good = tarfile.TarInfo("paper/good/result.json")
        good.size = 2
        file.addfile(good, io.BytesIO(b"{}"))
        bad = tarfile.TarInfo(name)
        bad.type, bad.linkname = kind, "/etc/passwd"
        file.addfile(bad)
    with pytest.raises(ArchiveError, match=message) as error:
        unpack(tmp_path / "bad.tar.gz", tmp_path / "root")
    assert "bad.tar.gz" in str(error.value) and not (tmp_path / "root").exists()


def test_what_is_no_archive_is_one_error(tmp_path):
    (tmp_path / "no.tar.gz").write_text("not an archive")
    with pytest.raises(ArchiveError, match="no.tar.gz cannot be read as a .tar.gz"):
        unpack(tmp_path / "no.tar.gz", tmp_path)
    with pytest.raises(ArchiveError, match="missing.tar.gz cannot be read"):
        main([str(tmp_path / "missing.tar.gz")])
    with pytest.raises(ValueError, match="must be a folder below"):
        pack(tmp_path, tmp_path / "a.tar.gz", tmp_path)


def test_a_file_too_large_is_refused(tmp_path, monkeypatch):
    make_runs(tmp_path)
    pack(tmp_path / "runs" / "paper", tmp_path / "a.tar.gz", tmp_path)
    monkeypatch.setattr("looped_lib.runs.archive.LARGEST", 5)
    with pytest.raises(ArchiveError, match="more than 5 are not recorded"):
        unpack(tmp_path / "a.tar.gz", tmp_path / "root")
