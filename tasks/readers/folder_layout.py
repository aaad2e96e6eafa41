"""How a folder of images is laid out: splits, classes, and what is neither."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tasks.readers.reading import Reading, listed
from tasks.running.errors import DataReadError

EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
_SPLITS = {
    **{name: name for name in ("train", "calibration", "validation", "test")},
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "testing": "test",
}
_LEFTOVERS = {"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "system volume information"}
"""What systems leave in folders, besides hidden files."""


def class_names(folder: Path) -> list[str]:
    """The classes of an image folder: the names of its subfolders with images, sorted."""
    return sorted(sub.name for sub in _subfolders(folder) if _holds_images(sub))


def images_below(folder: Path) -> list[Path]:
    """All images in the folder and its subfolders, sorted, without what systems leave behind."""
    found = (p for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
    return sorted(p for p in found if not _is_leftover(p.relative_to(folder)))


def split_folders(folder: Path) -> dict[str, Path]:
    """The folders of classes by split; ``all`` where the folder itself holds the classes.

    A folder is a split if it is called like one and holds folders with images, but no image itself.

    Raises:
        DataReadError: splits beside classes, two folders for a split, no train, splits without classes.
    """
    names = class_names(folder)
    called = [name for name in names if name.lower() in _SPLITS]
    splits = [name for name in called if not any(p.suffix.lower() in EXTENSIONS for p in (folder / name).iterdir())]
    others = [name for name in names if name not in splits]
    if not splits:
        if called and not set(names) - set(called):
            raise DataReadError(
                f"{folder}: {listed(names)} are called like splits and hold images themselves; each must hold a "
                "folder per class"
            )
        return {"all": folder}
    if others:
        raise DataReadError(
            f"{folder}: {listed(splits)} look like splits, with a folder per class inside, and {listed(others)} like "
            "classes, with images; leave one kind in the folder, or name the folders one by one: "
            "source: {train: ..., test: ...}"
        )
    found: dict[str, Path] = {}
    for name in splits:
        split = _SPLITS[name.lower()]
        if split in found:
            raise DataReadError(f"{folder}: {found[split].name!r} and {name!r} are both the split {split}; keep one")
        found[split] = folder / name
    if "train" not in found:
        raise DataReadError(f"{folder} holds the splits {listed(splits)} and no train; add it")
    return {split: found[split] for split in dict.fromkeys(_SPLITS.values()) if split in found}


def passed_over(folder: Path) -> Reading:
    """What in the folder is not read, and how much of it."""
    leftovers, loose, endings = 0, 0, Counter[str]()
    for path in folder.rglob("*"):
        inside = path.relative_to(folder)
        if not path.is_file():
            continue
        if _is_leftover(inside):
            leftovers += 1
        elif path.suffix.lower() not in EXTENSIONS:
            endings[path.suffix.lower() or "no ending"] += 1
        elif len(inside.parts) == 1:
            loose += 1
    empty = [sub.name for sub in _subfolders(folder) if not _holds_images(sub)]
    facts = [f"{leftovers} hidden files and leftovers of systems and archives were passed over."] if leftovers else []
    findings = []
    if endings:
        kinds = ", ".join(f"{ending} {count}" for ending, count in sorted(endings.items()))
        findings.append(f"{sum(endings.values())} files that are no images by their ending were passed over: {kinds}")
    if loose:
        findings.append(f"{loose} images lie beside the folders, in none of them, and were passed over")
    if empty:
        findings.append(f"the folders {listed(empty)} hold no images and were passed over")
    return Reading(tuple(f"{folder.name}: {t}" for t in facts), tuple(f"{folder.name}: {t}" for t in findings))


def _subfolders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not _is_leftover(Path(p.name)))


def _holds_images(folder: Path) -> bool:
    return next(
        (True for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS and not _is_leftover(p.relative_to(folder))),
        False,
    )


def _is_leftover(inside: Path) -> bool:
    return any(part.startswith(".") or part.lower() in _LEFTOVERS for part in inside.parts)
