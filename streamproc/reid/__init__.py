"""Re-identification: weights, the network, vectors. torch is imported only by `osnet` and to export a checkpoint."""

from streamproc.networks.weights import Weights
from streamproc.reid.embedder import Embedder, person_vector, unit
from streamproc.reid.export import find_weights

__all__ = ["Embedder", "Weights", "find_weights", "person_vector", "unit"]
