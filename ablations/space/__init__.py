"""The space of cells: factors, rules, conditions and designs. Pure functions: no torch, Hydra or MLflow."""
