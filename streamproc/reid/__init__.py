"""Person re-identification: OSNet turns a crop of a person into a unit vector.

torch is imported only for a GPU, and to export a checkpoint for the CPU.
"""

from streamproc.networks.weights import Weights
from streamproc.reid.embedder import Embedder, person_vector, unit
from streamproc.reid.export import find_weights

__all__ = ["Embedder", "Weights", "find_weights", "person_vector", "unit"]
