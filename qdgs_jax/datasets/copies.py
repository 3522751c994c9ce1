"""Which of many images are no copies of others, by features or embeddings of them."""

import numpy as np
from scipy.spatial.distance import cdist


def distinct(features: np.ndarray, distance: float) -> np.ndarray:
    """Which of features [n, F] are further than `distance` from all those before that are, [n]."""
    features = np.asarray(features, np.float64)
    new = np.ones(len(features), bool)
    for row in range(len(features)):
        if new[row]:
            rest = slice(row + 1, None)
            # Differences, not products: these would not be exactly 0 between equal features.
            new[rest] &= cdist(features[row : row + 1], features[rest])[0] > distance
    return new
