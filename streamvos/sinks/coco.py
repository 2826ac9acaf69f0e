"""Results as one COCO file, for the tools that read COCO.

    value = coco_of(Path("out/results.jsonl"))
    json.dump(value, file)

Every frame is an image, every mask an annotation, every object id a category; the score and the object's id
come along as "score" and "track_id".
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from streamvos.types import InputError


def coco_of(results: Path, file_name: str = "{index:05d}.png") -> dict[str, Any]:
    """The COCO data set of a results file.

    Args:
        results: what `JsonLinesSink` wrote; a partial file will do.
        file_name: pattern of the images' names, with the frame's {index} and {stream}.

    Returns:
        "images", "annotations" and "categories", as in COCO's instances files; masks are compressed run
        lengths.

    Raises:
        InputError: the file cannot be read, or a line is not one of a results file.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    ids: set[int] = set()
    try:
        with open(results, encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    _add(json.loads(line), file_name, images, annotations, ids)
                except (KeyError, TypeError, ValueError, IndexError) as error:
                    reason = " ".join(str(error).split())
                    raise InputError(
                        f"{results}, line {number} is no line of a results file: {reason}"
                    ) from None
    except OSError as error:
        raise InputError(f"cannot read {results}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise InputError(f"{results} is no results file: it is not UTF-8") from None
    categories = [{"id": one, "name": f"object {one}", "supercategory": "object"} for one in sorted(ids)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _add(
    line: dict[str, Any],
    file_name: str,
    images: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
    ids: set[int],
) -> None:
    height, width = line["size"]
    name = file_name.format(index=line["index"], stream=line["stream"])
    images.append({"id": len(images) + 1, "file_name": name, "height": height, "width": width})
    for one in line["objects"]:
        ids.add(int(one["id"]))
        if one["box"] is None:  # nothing of it is seen
            continue
        left, top, right, bottom = one["box"]
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": len(images),
                "category_id": one["id"],
                "track_id": one["id"],
                "segmentation": one["rle"],
                "bbox": [left, top, right - left, bottom - top],
                "area": one["area"],
                "iscrowd": 0,
                "score": one["score"],
            }
        )
