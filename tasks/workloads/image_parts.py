"""Images in many files, larger than the memory: their splits a partition at a time."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

from tasks.readers.image_pixels import read_pixels
from tasks.readers.image_shards import read_samples
from tasks.readers.kept_columns import Unlabelled
from tasks.readers.reading import Reading
from tasks.readers.splitting import Divided, in_one_part, shares_of
from tasks.running.errors import DataReadError
from tasks.running.splits import SPLITS
from tasks.workloads.gathered_images import GatheredImages, ImageFacts


class ImageParts:
    """The images of all files, divided by what they hold.

    The hash of an image's pixels decides its split, where the source does not, and its place there; so neither depends
    on the file that it is in, and equal images are neighbours. Classes are those of the train images.

    Args:
        source: a pattern of files, or one for each split; the splits that are not named are taken out of train.
        The others as for :class:`tasks.workloads.images.Images`.
    """

    def __init__(
        self,
        source: str | Mapping[str, str],
        *,
        size: tuple[int, int] | None,
        channels: int | None,
        seed: int,
        image: str | None,
        target: str | None,
        unlabelled: Unlabelled,
    ) -> None:
        by_split = {"all": source} if isinstance(source, str) else source
        self.sources = {split: by_split[split] for split in ("all", *SPLITS) if split in by_split}
        if not {"all", "train"} & set(self.sources):
            raise DataReadError(f"source names the splits {sorted(self.sources)} and no train; name its files")
        self.size, self.channels, self.seed = size, channels, seed
        self.image, self.target, self.unlabelled = image, target, unlabelled

    @cached_property
    def facts(self) -> ImageFacts:
        """What all images tell; reads all files, unless it was given or :meth:`divided` has done so."""
        with tempfile.TemporaryDirectory(prefix="winnow-rows-") as folder:
            return self._gathered(Path(folder) / "rows").facts()

    def divided(self, folder: Path) -> Iterator[Divided]:
        """The splits, partition by partition; the first says how the files were understood. Rows of the source are
        samples, counted through all files, in the order of their names.

        Args:
            folder: for the pixels, which lie there until the last partition was taken.

        Raises:
            DataReadError: the files cannot be read, or do not fit each other.
        """
        gathered = self._gathered(folder / "rows")
        self.facts = gathered.facts()
        reading = gathered.reading(self.facts)
        for rows in gathered.partitions():
            chosen = {name: rows[rows["split"] == number] for number, name in enumerate(SPLITS)}
            splits = {name: gathered.encoded(part, self.facts) for name, part in chosen.items()}
            yield Divided(splits, {name: part["row"] for name, part in chosen.items()}, reading)
            reading = Reading()

    def whole(self) -> Divided:
        """All partitions in one, for those who have the memory."""
        return in_one_part(self.divided)

    def _gathered(self, folder: Path) -> GatheredImages:
        gathered = GatheredImages(folder, ", ".join(self.sources.values()), channels=self.channels, seed=self.seed)
        for split, source in self.sources.items():
            gathered.begin(shares_of(split, self.sources))
            for sample in read_samples(source, image=self.image, target=self.target, left=gathered.left):
                if sample.image is None:
                    gathered.leave_out("samples without an image")
                elif sample.label is not None:
                    pixels, mode = read_pixels(io.BytesIO(sample.image), sample.where, self.size, self.channels)
                    gathered.add(pixels, mode, sample.label, where=sample.where)
                elif self.unlabelled == "drop":
                    gathered.leave_out("samples without a label")
                else:
                    raise DataReadError(
                        f"{sample.where} has no label; give it one (in a tar file .cls or .json, right beside the "
                        "image), or leave such images out by `unlabelled: drop`"
                    )
        gathered.finish()
        return gathered
