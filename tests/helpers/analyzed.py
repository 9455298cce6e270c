"""How the run of ``tests/analyses/conftest.py`` is analyzed."""

from fewchannels.analyses.concentration.units import Concentration
from fewchannels.cluster.shares import Pool

ALONE = Pool(1, 0, 1)
K = 6
CONCENTRATION = Concentration(ks=(1, K), k=K, register_threshold=1.2)
