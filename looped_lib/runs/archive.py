"""Results that travel as one small file: packed where they were made, unpacked into runs/recorded/.

    looped-lib unpack results.tar.gz

An archive holds the records of finished runs (see `record`) and the timings beside them, by their paths below runs/; no weights.
Unpacking writes nothing else and nowhere else: an archive with a link, a path that leaves runs/recorded/, a name that is not one
of these or a file that is too large is refused as a whole.
"""

import argparse
import io
import tarfile
from pathlib import Path, PurePosixPath

from looped_lib.core.files import replacing
from looped_lib.core.project import CONFIG, DIGITS, METRICS, RECORDED, RESULT, find_root
from looped_lib.runs.record import LARGEST, record_of

TIMINGS = "timings.json"  # of a machine, beside the runs that it made
NAMES = (RESULT, METRICS, TIMINGS, CONFIG, DIGITS)  # the last two in archives of before


class ArchiveError(ValueError):
    """An archive that cannot be unpacked; the message names the file and the entry."""


def pack(folder: str | Path, archive: str | Path, root: Path | None = None) -> list[str]:
    """Write what is small of the finished runs below `folder`, which lies in runs/, into `archive`; returns the names in it.

    Paths into the project's folder are cut short, as in a record. ValueError if the folder is not one of runs/.
    """
    root = root or find_root()
    folder, runs = Path(folder).resolve(), root.resolve() / "runs"
    if runs not in folder.parents:
        raise ValueError(f"{folder} must be a folder below {runs}")
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(folder.rglob(TIMINGS))}
    for run in sorted(p.parent for p in folder.rglob(RESULT)):
        texts |= {run / name: text for name, text in record_of(run, root.resolve()).items()}
    names = [path.relative_to(runs).as_posix() for path in texts]
    with replacing(archive) as partial, tarfile.open(partial, "w:gz") as file:
        for name, text in zip(names, texts.values(), strict=True):
            entry = tarfile.TarInfo(name)
            entry.size = len(blob := text.encode())
            file.addfile(entry, io.BytesIO(blob))
    return names


def unpack(archive: str | Path, root: Path | None = None) -> list[Path]:
    """Write the files of `archive` into runs/recorded/; returns them.

    ArchiveError, before anything is written, on an archive that holds anything else.
    """
    recorded = (root or find_root()) / "runs" / RECORDED
    try:
        with tarfile.open(archive, "r:gz") as file:
            found = {_checked(entry, archive): file.extractfile(entry).read() for entry in file}
    except (tarfile.TarError, EOFError, OSError) as e:
        raise ArchiveError(f"{archive} cannot be read as a .tar.gz: {e}") from None
    for name, blob in found.items():
        with replacing(recorded / name) as partial:
            partial.write_bytes(blob)
    return [recorded / name for name in found]


def _checked(entry: tarfile.TarInfo, archive: str | Path) -> PurePosixPath:
    name = PurePosixPath(entry.name)
    if not entry.isfile():
        raise ArchiveError(f"{archive}: {entry.name!r} must be a file, and is a link, a folder or a device")
    if name.is_absolute() or ".." in name.parts or len(name.parts) < 2 or name.parts[0] == RECORDED:
        raise ArchiveError(f"{archive}: {entry.name!r} must be a path below runs/, such as paper/stars-seed0/result.json")
    if name.name not in NAMES:
        raise ArchiveError(f"{archive}: {entry.name!r} is not one of {', '.join(NAMES)}")
    if entry.size > LARGEST:
        raise ArchiveError(f"{archive}: {entry.name!r} has {entry.size} bytes: more than {LARGEST} are not recorded")
    return name


def main(arguments: list[str]) -> None:
    """Unpack an archive."""
    parser = argparse.ArgumentParser(prog="looped-lib unpack", description="Write an archive's results into runs/recorded/")
    parser.add_argument("archive", type=Path)
    archive = parser.parse_args(arguments).archive
    print(f"{archive}: {len(unpack(archive))} files written into runs/{RECORDED}")
