"""AdapterFusion, reproduced: adapters, their fusion, and the study that judges them."""

__version__ = "0.1.0"
