"""Controllers: the agents of a team acting on their own observations."""

from controllers.basic_controller import BasicMAC
from controllers.dcg_controller import DCGMAC
from controllers.gated_controller import GatedMAC
from controllers.quantile_controller import QuantileMAC

REGISTRY = {"basic_mac": BasicMAC, "gated_mac": GatedMAC, "quantile_mac": QuantileMAC, "dcg_mac": DCGMAC}
