"""What a network makes of a whole data set, kept in a folder and searched."""

from .build import Job, begin, ids_in
from .database import Database
from .maps import Principal, lay_out, place, tsne
from .observe import Observed, Observer, Recipe, features_of, no_maps, thumbnails
from .search import nearest
from .store import Found, Index, read_manifest, verify
from .tally import Histogram, Strongest, exact_quantile

__all__ = [
    "Database",
    "Found",
    "Histogram",
    "Index",
    "Job",
    "Observed",
    "Observer",
    "Principal",
    "Recipe",
    "Strongest",
    "begin",
    "exact_quantile",
    "features_of",
    "ids_in",
    "lay_out",
    "nearest",
    "no_maps",
    "place",
    "read_manifest",
    "thumbnails",
    "tsne",
    "verify",
]
