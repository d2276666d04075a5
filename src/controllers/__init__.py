"""Controllers: the agents of a team acting on their own observations."""

from controllers.basic_controller import BasicMAC

REGISTRY = {"basic_mac": BasicMAC}
