"""How good the masks are, and how late.

>>> import numpy as np
>>> truth = np.zeros((3, 40, 60), np.uint8)
>>> truth[:, 10:30, 10:30] = 1
>>> score = evaluate_sequence(truth, truth, name="goat")
>>> summarize([score]).to_json()["mean"]["J&F"]
100.0
"""

from typing import TYPE_CHECKING

from streamvos.lazy import import_on_use

if TYPE_CHECKING:
    from streamvos.metrics.evaluation import SequenceScorer, evaluate_sequence
    from streamvos.metrics.folders import DATASETS, score_folders
    from streamvos.metrics.latency import Latencies
    from streamvos.metrics.measures import TOLERANCE, boundary_accuracy, measure_objects, region_similarity
    from streamvos.metrics.scores import (
        MEASURES,
        ObjectScore,
        Scores,
        SequenceScore,
        Statistics,
        statistics,
        summarize,
    )
    from streamvos.metrics.youtube_vos import (
        YouTubeScores,
        evaluate_youtube_sequence,
        score_youtube_folders,
        summarize_youtube,
    )

__all__ = [
    "DATASETS",
    "MEASURES",
    "TOLERANCE",
    "Latencies",
    "ObjectScore",
    "Scores",
    "SequenceScore",
    "SequenceScorer",
    "Statistics",
    "YouTubeScores",
    "boundary_accuracy",
    "evaluate_sequence",
    "evaluate_youtube_sequence",
    "measure_objects",
    "region_similarity",
    "score_folders",
    "score_youtube_folders",
    "statistics",
    "summarize",
    "summarize_youtube",
]

__getattr__ = import_on_use(
    __name__,
    {
        "streamvos.metrics.evaluation": ["SequenceScorer", "evaluate_sequence"],
        "streamvos.metrics.folders": ["DATASETS", "score_folders"],
        "streamvos.metrics.latency": ["Latencies"],
        "streamvos.metrics.measures": [
            "TOLERANCE",
            "boundary_accuracy",
            "measure_objects",
            "region_similarity",
        ],
        "streamvos.metrics.scores": [
            "MEASURES",
            "ObjectScore",
            "Scores",
            "SequenceScore",
            "Statistics",
            "statistics",
            "summarize",
        ],
        "streamvos.metrics.youtube_vos": [
            "YouTubeScores",
            "evaluate_youtube_sequence",
            "score_youtube_folders",
            "summarize_youtube",
        ],
    },
)
