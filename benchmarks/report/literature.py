"""Published figures of the four sets of polyphonic music: test set, nats a time step, mean of averages.

Source: Krishnan, Shalit and Sontag, 2017, arXiv 1609.09869: DMM and DMM-Aug from table 3, DMM-Aug-NADE from
table 4. The NLL of RNN-NADE (Boulanger-Lewandowski et al., 2012) is exact; those of the others are by
importance sampling.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple


class Published(NamedTuple):
    """A published NLL, and the bound where the likelihood is not exact."""

    nll: float
    bound: float | None


EXACT = "RNN-NADE, exact"
SETS = ("JSB", "Nottingham", "Piano-midi", "MuseData")
FIGURES: dict[str, tuple[Published, ...]] = {
    "DMM": (
        Published(6.388, 6.926),
        Published(2.770, 2.964),
        Published(7.835, 7.980),
        Published(6.831, 6.989),
    ),
    "DMM-Aug": (
        Published(6.288, 6.773),
        Published(2.679, 2.856),
        Published(7.591, 7.721),
        Published(6.356, 6.476),
    ),
    "DMM-Aug-NADE": (
        Published(5.118, 5.335),
        Published(2.305, 2.347),
        Published(7.048, 7.099),
        Published(6.049, 6.115),
    ),
    EXACT: (Published(5.19, None), Published(2.31, None), Published(7.05, None), Published(5.60, None)),
}
# Names of files, in small letters without punctuation, that hold these sets.
_NAMES = {
    **dict.fromkeys(("jsb", "jsbchorales"), 0),
    "nottingham": 1,
    **dict.fromkeys(("pianomidi", "pianomidide"), 2),
    **dict.fromkeys(("muse", "musedata"), 3),
}


def place_of(data: str) -> int | None:
    """The place in :data:`SETS` of a data set of this name; None if it is not one of them."""
    return _NAMES.get(re.sub(r"[^a-z0-9]", "", data.lower()))


def published(data: str, model: str | None) -> Published | None:
    """The published figures of a model on a data set; None if there are none."""
    place = place_of(data)
    return None if place is None or model is None else FIGURES[model][place]


def model_of(settings: Mapping[str, Any]) -> str | None:
    """The name in the literature of a model with these settings of training; None if it has none."""
    kind = settings["emission"], settings["augment"]
    return {
        ("bernoulli", None): "DMM",
        ("bernoulli", "both"): "DMM-Aug",
        ("nade", "both"): "DMM-Aug-NADE",
    }.get(kind)
